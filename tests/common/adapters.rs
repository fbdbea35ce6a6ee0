//! Worlds with a trained adapter, and what a model makes of one.

use std::path::Path;

use crosstune::adapter::file::AdapterFile;
use crosstune::engine::{Engine, EngineOptions};

use super::tiny::random;
use super::world::{World, train_args};

/// What is encoded.
pub const TEXTS: [&str; 3] = ["a red circle", "ein blaues Quadrat über einem Kreis", "x"];
/// Where [`trained`] leaves it.
pub const ADAPTER: &str = "run/adapter_last.safetensors";

/// A world with an adapter of random values, large enough to matter.
pub fn trained(more: &[&str]) -> World {
    let w = World::new();
    let mut args = train_args("run", more);
    args.retain(|a| !a.ends_with('='));
    w.run(args).ok();
    let path = w.path(ADAPTER);
    let mut file = AdapterFile::load(&path).expect("an adapter");
    for (name, shape, values) in &mut file.tensors {
        *values = random(11, name, shape);
    }
    file.save(&path).expect("saved");
    w
}

/// Features of [`TEXTS`].
pub fn features(model: &Path, adapter: Option<&AdapterFile>) -> Vec<f32> {
    let options = EngineOptions {
        threads: Some(1),
        ..EngineOptions::default()
    };
    let engine = Engine::open(model, options).expect("a model");
    engine.encode(&TEXTS, adapter).expect("features")
}
