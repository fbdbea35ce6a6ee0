//! Sweeps on the tiny world: a file of one, and what must not depend on how it ran.

use std::collections::BTreeMap;

use serde_json::Value;

use super::world::{Ran, World};

/// Two languages, a baseline that knows no ratio and a routine that does: 2 x (2 + 2 x 2) members.
pub const FILE: &str = "model = 'model'\njsonl = 'world.jsonl'\nfeatures = 'features.safetensors'\n\
    lang = ['de', 'ko']\nstrategy = ['baseline1', 'routine1']\nlr = [1e-3, 3e-3]\n\
    ratio = [0.1, 1.0]\nshots = 20\nbatch = 5\nepochs = 2\neval-every = 4\nrank = 2\nseed = 3\n\
    weight-decay = 0.01\nclip-norm = 1.0\nwarmup = 2\nthreads = 1\n";

/// A world with a sweep's file in it.
pub fn world(file: &str) -> World {
    let w = World::new();
    w.write("sweep.toml", file);
    w
}

/// Runs that file, with more options.
pub fn sweep(w: &World, more: &[&str]) -> Ran {
    w.run(["sweep", "sweep.toml"].iter().chain(more))
}

/// What a sweep left, by name: adapters, results and table, seconds taken out.
pub fn results(w: &World, out: &str) -> BTreeMap<String, Vec<u8>> {
    let without_seconds = |bytes: &[u8]| {
        let mut value: Value = serde_json::from_slice(bytes).expect("JSON");
        assert!(value["seconds"].take().as_f64() > Some(0.0));
        value.to_string().into_bytes()
    };
    let mut all = BTreeMap::new();
    for (path, bytes) in w.snapshot() {
        let Ok(name) = path.strip_prefix(out) else {
            continue;
        };
        let name = name.to_string_lossy().into_owned();
        let kept = match name.rsplit('/').next() {
            Some("adapter_last.safetensors" | "adapter_best.safetensors") => bytes,
            Some("table.md" | "zero_shot.json") => bytes,
            Some("result.json") => without_seconds(&bytes),
            Some("results.jsonl") => {
                let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
                lines.flat_map(without_seconds).collect()
            }
            _ => continue,
        };
        all.insert(name, kept);
    }
    all
}

/// Fails unless a sweep left just that, and nothing half done.
#[track_caller]
pub fn assert_same(w: &World, out: &str, want: &BTreeMap<String, Vec<u8>>) {
    let got = results(w, out);
    assert!(got.keys().eq(want.keys()), "{:?}", got.keys());
    for (name, bytes) in want {
        assert!(got[name] == *bytes, "{out}/{name} differs");
    }
    let left: Vec<_> = w.snapshot().into_keys().collect();
    for gone in [".tmp", "running.json", "checkpoint.safetensors"] {
        let mut left = left.iter().filter(|p| p.starts_with(out));
        let found = left.find(|p| p.to_string_lossy().ends_with(gone));
        assert_eq!(found, None);
    }
}
