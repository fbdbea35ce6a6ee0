//! The demo's vision tower before it has learnt anything, and as files: CLIP's layout in small.
//!
//! What stands below the blocks stays as it is here, so it must be good from the start: the patches'
//! embedding is the lowest frequencies of a cosine transform (Ahmed, Natarajan and Rao, "Discrete
//! cosine transform", 1974) of each colour, centred and evened out by what the pictures themselves show.

use std::f64::consts::PI;
use std::fs;
use std::path::Path;

use rayon::prelude::*;
use serde_json::json;

use super::features::D;
use super::model::{Tensors, deviation, write_json, write_weights};
use super::recipe::VisionRecipe;
use super::render::SIDE;
use crate::engine::vision::{VisionProgram, patches};
use crate::error::{Error, Result};
use crate::graph::{Dim, Role};
use crate::image::preprocess::Preprocess;
use crate::model::vision::names;
use crate::ops::gelu::Gelu;
use crate::ops::philox::Stream;
use crate::weights::vision::VisionConfig;

/// Pixels of a patch's side.
const PATCH: usize = 16;
/// Deviation of a place's embedding: a patch's channels have from 0.5 to 3 or so. What the map makes of
/// a patch depends on where it lies, so a place must be as plain as what lies there.
const PLACE: f32 = 1.0;

/// Sizes and settings of the tower.
pub(super) fn config(recipe: &VisionRecipe) -> VisionConfig {
    VisionConfig {
        hidden: recipe.hidden,
        layers: recipe.layers,
        heads: recipe.heads,
        ffn: recipe.ffn,
        patch: PATCH,
        grid: SIDE / PATCH,
        embed_dim: D,
        gelu: Gelu::Quick,
        layer_norm_eps: 1e-5,
        patch_bias: false,
        pre_norm: true,
        projection: true,
    }
}

/// What pictures go through before the tower sees them.
pub(super) fn preprocess() -> Preprocess {
    Preprocess::clip(SIDE)
}

/// Whether a weight is trained: all but the embeddings, which have no gradient.
pub(super) fn trained(name: &str) -> bool {
    ![names::PATCH, names::CLASS, names::POSITION].contains(&name)
}

/// Initial values. `pixels` (N, 3, side, side) are some pictures as the tower will see them.
pub(super) fn initial(config: &VisionConfig, pixels: &[f32], seed: u64) -> Tensors {
    let (patch, means) = embedding(config, pixels);
    let program = VisionProgram::new(config);
    let std = deviation(config.hidden);
    let fill = |name: &str, len: usize| {
        let normal = |std: f32| Stream::named(seed, name).normal(len, std);
        match name {
            names::PATCH => patch.clone(),
            names::CLASS => normal(1.0),
            names::POSITION => centred(normal(PLACE), &means),
            names::PROJECTION => normal((config.hidden as f32).sqrt().recip()),
            _ if name.ends_with("bias") => vec![0.0; len],
            _ if name.contains("norm") => vec![1.0; len],
            _ => normal(std),
        }
    };
    let graph = &program.graph;
    let tensor = |id| {
        let value = graph.get(id);
        let extent = |dim: &Dim| match dim {
            Dim::N(n) => *n,
            _ => 1,
        };
        let shape: Vec<usize> = value.shape.iter().map(extent).collect();
        let values = fill(&value.name, shape.iter().product());
        // The file has the convolution's four dims.
        let shape = match value.name == names::PATCH {
            true => vec![config.hidden, 3, PATCH, PATCH],
            false => shape,
        };
        (value.name.clone(), shape, values)
    };
    graph.with_role(Role::Frozen).map(tensor).collect()
}

/// Takes the patches' means from all places but the class token's.
fn centred(mut position: Vec<f32>, means: &[f32]) -> Vec<f32> {
    for row in position.chunks_exact_mut(means.len()).skip(1) {
        row.iter_mut().zip(means).for_each(|(x, mean)| *x -= mean);
    }
    position
}

/// The patches' embedding (C, 3 P P), and the mean of each channel over the patches. A channel of
/// deviation s is brought to its root: low frequencies stay the louder ones, but by less.
fn embedding(config: &VisionConfig, pixels: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let len = config.patch_len();
    let rows = patches(config, pixels);
    let waves = frequencies(config.hidden.div_ceil(3));
    let channel = |c: usize| {
        let wave = cosine(waves[c / 3]);
        let own = |row: &[f32]| -> f64 {
            let colour = &row[c % 3 * PATCH * PATCH..][..PATCH * PATCH];
            let products = colour.iter().zip(&wave);
            products.map(|(x, w)| f64::from(*x) * w).sum()
        };
        // Rows of class tokens are none of a picture.
        let seen = rows.chunks_exact(len).enumerate();
        let seen = seen.filter(|(i, _)| i % config.tokens() > 0);
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for x in seen.map(|(_, row)| own(row)) {
            (n, sum, squares) = (n + 1.0, sum + x, squares + x * x);
        }
        let mean = sum / f64::max(n, 1.0);
        let variance = squares / f64::max(n, 1.0) - mean * mean;
        let scale = variance.max(1e-6).powf(-0.25);
        let mut weight = vec![0.0; len];
        let colour = &mut weight[c % 3 * PATCH * PATCH..][..PATCH * PATCH];
        let pairs = colour.iter_mut().zip(&wave);
        pairs.for_each(|(weight, wave)| *weight = (wave * scale) as f32);
        (weight, (mean * scale) as f32)
    };
    let (weights, means): (Vec<_>, _) = (0..config.hidden).into_par_iter().map(channel).unzip();
    (weights.concat(), means)
}

/// The `n` lowest frequencies (down, across) of a patch, lowest first.
fn frequencies(n: usize) -> Vec<(usize, usize)> {
    let square = (0..PATCH).flat_map(|v| (0..PATCH).map(move |u| (v, u)));
    let mut all: Vec<_> = square.collect();
    all.sort_by_key(|(v, u)| (v * v + u * u, *v));
    all.truncate(n);
    all
}

/// One basis picture (P, P) of the cosine transform, of unit length.
fn cosine((down, across): (usize, usize)) -> Vec<f64> {
    let line = |frequency: usize| {
        let gain = if frequency == 0 { 1.0 } else { 2.0 };
        let step = PI * frequency as f64 / PATCH as f64;
        let at = move |x: usize| (gain / PATCH as f64).sqrt() * (step * (x as f64 + 0.5)).cos();
        (0..PATCH).map(at).collect::<Vec<f64>>()
    };
    let (down, across) = (line(down), line(across));
    let row = |y: &f64| across.iter().map(|x| x * y).collect::<Vec<f64>>();
    down.iter().flat_map(row).collect()
}

/// Writes the tower as Hugging Face's `CLIPVisionModelWithProjection` is published.
pub(super) fn write(folder: &Path, config: &VisionConfig, tensors: &Tensors) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::write(folder))?;
    let settings = json!({
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "image_size": config.image_size(),
        "patch_size": config.patch,
        "projection_dim": config.embed_dim,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
    });
    write_json(&folder.join("config.json"), &settings)?;
    let own = preprocess();
    let processor = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": true,
        "size": { "shortest_edge": own.crop },
        "resample": 3,
        "do_center_crop": true,
        "crop_size": { "height": own.crop, "width": own.crop },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": own.mean,
        "image_std": own.std,
        "do_convert_rgb": true,
    });
    write_json(&folder.join("preprocessor_config.json"), &processor)?;
    write_weights(folder, tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::recipe::Recipe;
    use crate::demo::render::render;
    use crate::demo::scene::scenes;
    use crate::demo::vision::pixels;
    use crate::weights::vision::VisionFiles;

    #[test]
    fn basis_pictures_are_of_unit_length_and_apart() {
        let all: Vec<Vec<f64>> = frequencies(30).into_iter().map(cosine).collect();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let dot: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                let want = if i == j { 1.0 } else { 0.0 };
                assert!((dot - want).abs() < 1e-12, "{i} {j}: {dot}");
            }
        }
        assert_eq!(frequencies(4), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    }

    #[test]
    fn patches_are_centred_and_the_files_open() {
        let config = config(&Recipe::quick().vision);
        let pictures: Vec<_> = scenes(1, 60).iter().map(|s| render(s, 1)).collect();
        let pixels = pixels(&preprocess(), &pictures).unwrap();
        let (weight, means) = embedding(&config, &pixels);
        let rows = patches(&config, &pixels);
        let own = weight.chunks_exact(config.patch_len()).zip(&means);
        for (c, (weight, mean)) in own.enumerate() {
            let rows = rows.chunks_exact(config.patch_len()).enumerate();
            let values = rows
                .filter(|(i, _)| i % config.tokens() > 0)
                .map(|(_, row)| {
                    let sum: f32 = row.iter().zip(weight).map(|(x, w)| x * w).sum();
                    sum - mean
                });
            let values: Vec<f32> = values.collect();
            let of_all = values.iter().sum::<f32>() / values.len() as f32;
            assert!(of_all.abs() < 1e-2, "{c}: {of_all}");
        }

        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &config, &initial(&config, &pixels, 3)).unwrap();
        let files = VisionFiles::open(folder.path(), Some(SIDE)).unwrap();
        assert_eq!(files.config, config);
        let read = Preprocess::read(folder.path(), || panic!("the file says it")).unwrap();
        assert_eq!(read, preprocess());
    }
}
