//! Folders of towers: the golden one, and small ones of any shape.

use std::path::Path;

use crosstune::engine::EngineOptions;
use crosstune::engine::vision::VisionEngine;
use crosstune::weights::checkpoint::Checkpoint;
use serde_json::Value;

use crate::common::goldens;
pub use crate::common::towers::{LEAST, Tensors, Tower, out, write};

/// A folder of `files` without weights.
pub fn bare(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, value) in files {
        std::fs::write(dir.path().join(name), value.to_string()).expect("written");
    }
    dir
}

/// A folder of `files` and weights.
pub fn folder(files: &[(&str, Value)], tensors: &Tensors) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), files, tensors);
    dir
}

/// The golden tower as its files lie, and its numbers.
pub struct Golden {
    pub config: Value,
    pub tensors: Tensors,
    pub io: Checkpoint,
}

pub fn golden() -> Option<Golden> {
    let at = goldens()?;
    let text = std::fs::read_to_string(at.join("vit_config.json")).expect("a config");
    let weights = Checkpoint::open(&at.join("vit_model.safetensors")).expect("opens");
    let tensors = weights.tensors();
    let tensors = tensors.map(|(name, t)| (name.to_string(), (t.shape.to_vec(), t.to_f32())));
    Some(Golden {
        config: serde_json::from_str(&text).expect("JSON"),
        tensors: tensors.collect(),
        io: Checkpoint::open(&at.join("vit_io.safetensors")).expect("opens"),
    })
}

/// Features by the tower of a folder.
pub fn encode(path: &Path, pixels: &[f32]) -> Vec<f32> {
    let engine = VisionEngine::open(path, None, EngineOptions::default());
    engine.expect("opens").encode(pixels).expect("encodes")
}
