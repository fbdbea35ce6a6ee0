//! Towers on disk: tensors by name, and small vision towers of any shape.

use std::collections::BTreeMap;
use std::path::Path;

use crosstune::tensor::Dtype;
use crosstune::weights::write::{OutTensor, write_safetensors};
use serde_json::{Value, json};

use super::tiny::random;

/// Shapes and values by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes `files` and weights into a folder, which is made.
pub fn write(folder: &Path, files: &[(&str, Value)], tensors: &Tensors) {
    std::fs::create_dir_all(folder).expect("made");
    let path = folder.join("model.safetensors");
    write_safetensors(&path, &out(tensors), &BTreeMap::new()).expect("written");
    for (name, value) in files {
        std::fs::write(folder.join(name), value.to_string()).expect("written");
    }
}

/// Tensors as a file has them.
pub fn out(tensors: &Tensors) -> Vec<OutTensor<'_>> {
    let all = tensors.iter();
    all.map(|(name, (shape, values))| OutTensor {
        name,
        dtype: Dtype::F32,
        shape: shape.clone(),
        bytes: bytemuck::cast_slice(values).into(),
    })
    .collect()
}

/// Sizes of a tower.
#[derive(Clone, Copy)]
pub struct Tower {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub ffn: usize,
    pub patch: usize,
    /// Patches of a picture's side.
    pub grid: usize,
    pub embed_dim: usize,
}

/// The least that passes for one.
pub const LEAST: Tower = Tower {
    hidden: 8,
    layers: 1,
    heads: 2,
    ffn: 12,
    patch: 4,
    grid: 2,
    embed_dim: 6,
};

impl Tower {
    /// Tensors under Hugging Face's names.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (c, p) = (self.hidden, self.patch);
        let tower = |name: &str| format!("vision_model.{name}");
        let places = self.grid * self.grid + 1;
        let mut out = vec![
            (tower("embeddings.class_embedding"), vec![c]),
            (tower("embeddings.patch_embedding.weight"), vec![c, 3, p, p]),
            (
                tower("embeddings.position_embedding.weight"),
                vec![places, c],
            ),
            ("visual_projection.weight".into(), vec![self.embed_dim, c]),
        ];
        let mut linear = |name: &str, shape: &[usize]| {
            out.push((tower(&format!("{name}.weight")), shape.to_vec()));
            out.push((tower(&format!("{name}.bias")), shape[..1].to_vec()));
        };
        linear("pre_layrnorm", &[c]);
        linear("post_layernorm", &[c]);
        for layer in 0..self.layers {
            let block = format!("encoder.layers.{layer}");
            for norm in ["layer_norm1", "layer_norm2"] {
                linear(&format!("{block}.{norm}"), &[c]);
            }
            for which in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                linear(&format!("{block}.self_attn.{which}"), &[c, c]);
            }
            linear(&format!("{block}.mlp.fc1"), &[self.ffn, c]);
            linear(&format!("{block}.mlp.fc2"), &[c, self.ffn]);
        }
        out
    }

    /// Random weights.
    pub fn tensors(&self) -> Tensors {
        let shapes = self.shapes().into_iter();
        shapes
            .map(|(name, shape)| {
                let values = random(3, &name, &shape);
                (name, (shape, values))
            })
            .collect()
    }

    /// Settings as `CLIPVisionConfig` has them.
    pub fn config(&self) -> Value {
        json!({
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.ffn,
            "patch_size": self.patch,
            "image_size": self.grid * self.patch,
        })
    }

    /// Pixels of some pictures, by a formula.
    pub fn pixels(&self, n: usize) -> Vec<f32> {
        let side = self.grid * self.patch;
        let len = n * 3 * side * side;
        (0..len).map(|i| (i as f32 * 0.37).sin()).collect()
    }
}
