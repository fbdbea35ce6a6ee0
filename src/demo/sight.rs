//! Pictures' features by the demo's own vision tower, read back from its folder as anybody's would be.

use std::ops::ControlFlow;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::event::Teller;
use super::render::{Picture, SIDE};
use super::run::DemoOptions;
use super::vision::teach;
use super::world::World;
use super::{tower, vision};
use crate::data::features::Features;
use crate::engine::vision::VisionEngine;
use crate::engine::{EngineOptions, pool};
use crate::error::{Error, Result};
use crate::eval::retrieval::retrieval;
use crate::image::cache::{Digest, FeatureCache, key, origin};
use crate::image::encode::encode;
use crate::image::list;
use crate::image::preprocess::Preprocess;
use crate::tensor::Dtype;
use crate::weights::vision::VisionFiles;

/// What became of the vision tower.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TowerReport {
    /// Its parameters.
    pub parameters: usize,
    /// Those of them that were trained: all but the embeddings.
    pub trained: usize,
    /// Pictures that it was not taught, which are those of the folder.
    pub pictures: usize,
    /// R@1 among them of the hand-made map's vector of a picture by the tower's feature of it.
    pub map_r1: f64,
}

/// The tower of a demo's folder.
struct Sight {
    engine: VisionEngine,
    preprocess: Preprocess,
    key: Digest,
}

impl Sight {
    fn open(folder: &Path, options: EngineOptions) -> Result<Sight> {
        let path = folder.join("vision");
        let preprocess = Preprocess::read(&path, || Ok(SIDE))?;
        let files = VisionFiles::open(&path, Some(preprocess.crop))?;
        let key = key(&files, &preprocess, "f32")?;
        Ok(Sight {
            engine: VisionEngine::new(files, options)?,
            preprocess,
            key,
        })
    }

    /// Features (N, E) of pictures that are on no disk.
    fn of_memory(&mut self, pictures: &[Picture]) -> Result<Vec<f32>> {
        let pool = self.engine.pool();
        let mut all = Vec::new();
        for some in pictures.chunks(self.engine.pass()) {
            let pixels = pool.install(|| vision::pixels(&self.preprocess, some))?;
            all.extend(self.engine.encode(&pixels)?);
        }
        Ok(all)
    }

    /// Features of the folder's pictures, as `crosstune features` makes them.
    fn of_folder(&mut self, folder: &Path, names: &[String]) -> Result<Features> {
        let pictures = list::by_names(&folder.join("pictures"), names)?;
        let dim = self.engine.config().embed_dim;
        let mut cache = FeatureCache::open(&folder.join("cache"), &self.key, dim, |_| ())?;
        let go_on = &mut |_| ControlFlow::Continue(());
        let encoded = encode(
            &mut self.engine,
            &self.preprocess,
            &mut cache,
            &pictures,
            go_on,
        )?;
        if let Some(bad) = encoded.unreadable.first() {
            let path = bad.path.display();
            return Err(Error::Run(format!(
                "{path}: was just written, but {}",
                bad.why
            )));
        }
        Ok(Features {
            names: encoded.names,
            dim,
            values: encoded.values,
        })
    }
}

/// Whether a folder has a tower that can be opened.
pub(super) fn is_whole(folder: &Path, options: EngineOptions) -> bool {
    Sight::open(folder, options).is_ok()
}

/// Teaches a tower what the map sees in the pool's pictures, writes it, and gives every picture of the
/// world the feature that the written tower has for it.
pub(super) fn give_sight(
    options: &DemoOptions,
    engine: EngineOptions,
    world: &mut World,
    teller: &mut Teller<'_>,
) -> Result<TowerReport> {
    let folder = &options.folder;
    let threads = pool(engine.threads)?;
    let pictures: Vec<Picture> =
        threads.install(|| world.pool.par_iter().map(|item| item.picture()).collect());
    let (config, tensors) = teach(options, (world, &pictures), &threads, teller)?;
    tower::write(&folder.join("vision"), &config, &tensors)?;

    let mut sight = Sight::open(folder, engine)?;
    let of_pool = sight.of_memory(&pictures)?;
    let names: Vec<String> = world.items.iter().map(|item| item.image.clone()).collect();
    let items = sight.of_folder(folder, &names)?;
    let metadata = origin(sight.engine.files(), &sight.preprocess, &sight.key)?;
    items.save_with(&folder.join("features.safetensors"), Dtype::F32, metadata)?;

    let map: Vec<f32> = world
        .items
        .iter()
        .flat_map(|item| &item.features)
        .copied()
        .collect();
    let recall = retrieval(&map, &items.values, items.len(), items.dim)?;
    world.replace_features(items.dim, &of_pool, &items.values);
    let counts = |keep: &dyn Fn(&str) -> bool| {
        let kept = tensors.iter().filter(|(name, ..)| keep(name));
        kept.map(|(_, _, values)| values.len()).sum()
    };
    Ok(TowerReport {
        parameters: counts(&|_| true),
        trained: counts(&tower::trained),
        pictures: items.len(),
        map_r1: recall.i2t[0],
    })
}
