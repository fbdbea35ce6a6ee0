//! Adapters that leave and enter the program: merged into a model, to and from other programs.

mod common;

use std::path::Path;

use common::assert_close;
use common::tiny::random;
use common::world::{World, train_args};
use crosstune::adapter::file::AdapterFile;
use crosstune::engine::{Engine, EngineOptions};
use crosstune::weights::checkpoint::Checkpoint;

const TEXTS: [&str; 3] = ["a red circle", "ein blaues Quadrat über einem Kreis", "x"];
const ADAPTER: &str = "run/adapter_last.safetensors";

/// A world with an adapter of random values, large enough to matter.
fn trained(more: &[&str]) -> World {
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

fn features(model: &Path, adapter: Option<&AdapterFile>) -> Vec<f32> {
    let options = EngineOptions { threads: Some(1) };
    let engine = Engine::open(model, options).expect("a model");
    engine.encode(&TEXTS, adapter).expect("features")
}

const MERGE: [&str; 4] = ["merge", "--model=model", "--adapter", ADAPTER];

#[test]
fn a_merged_model_gives_the_features_of_model_and_adapter() {
    let all = "--targets=query,key,value,attention.output.dense,intermediate.dense,output.dense";
    for more in [
        &["--alpha=3"] as &[&str],
        &[all, "--train-head"],
        &["--method=full", "--rank="],
    ] {
        let w = trained(more);
        let adapter = AdapterFile::load(&w.path(ADAPTER)).expect("an adapter");
        let out = w.path("merged");
        let said = w.run(MERGE.iter().chain(&["--out=merged"])).ok();
        assert_eq!(said.stdout, "merged: written\n");
        let want = features(&w.path("model"), Some(&adapter));
        let plain = features(&w.path("model"), None);
        assert!(common::max_diff(&plain, &want) > 0.1);
        assert_close("merged", &features(&out, None), &want, 2e-5, 2e-5);
        for file in ["config.json", "tokenizer.json"] {
            assert_eq!(
                w.read(format!("model/{file}")),
                w.read(format!("merged/{file}"))
            );
        }
        let open = |name: &str| Checkpoint::open(&w.path(name)).expect("a checkpoint");
        let (old, new) = (open("model"), open("merged"));
        assert!(old.names().eq(new.names()));
        assert_eq!(new.metadata()["format"], "pt");
        let word = "transformer.embeddings.LayerNorm.weight";
        let same = old.get(word).map(|t| t.bytes) == new.get(word).map(|t| t.bytes);
        assert_eq!(same, !more.contains(&"--method=full"));
        // Nothing is overwritten, and nothing else is left.
        let before = w.snapshot();
        let again = w.run(MERGE.iter().chain(&["--out=merged"]));
        assert_eq!(again.code, 2);
        assert!(again.stderr.starts_with("error: merged: already exists"));
        assert!(w.snapshot() == before);
        assert!(!before.keys().any(|p| p.to_string_lossy().contains(".tmp")));
    }
}

#[test]
fn a_model_of_halves_stays_one_of_halves() {
    let w = trained(&[]);
    let half = [
        "convert",
        "model/model.safetensors",
        "model/model.safetensors",
    ];
    w.run(half.iter().chain(&["--dtype=f16", "--force"])).ok();
    w.run(MERGE.iter().chain(&["--out=merged"])).ok();
    let adapter = AdapterFile::load(&w.path(ADAPTER)).expect("an adapter");
    let want = features(&w.path("model"), Some(&adapter));
    assert_close(
        "merged",
        &features(&w.path("merged"), None),
        &want,
        1e-2,
        1e-2,
    );
    let report = w.run(["inspect", "merged", "--json"]).ok().json();
    assert_eq!(report["report"]["dtypes"]["F16"], 39);
}

#[test]
fn what_cannot_be_merged_is_named() {
    let w = trained(&[]);
    let says = |args: &[&str], parts: &[&str]| {
        let before = w.snapshot();
        let ran = w.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        for part in parts {
            assert!(ran.stderr.contains(part), "{}\n{part}", ran.stderr);
        }
        assert!(w.snapshot() == before, "{args:?}");
    };
    let model = "--model=model";
    let file = format!("--adapter={ADAPTER}");
    says(
        &[
            "merge",
            model,
            "--adapter=model/model.safetensors",
            "--out=m",
        ],
        &["model/model.safetensors: is not an adapter of crosstune"],
    );
    says(
        &["merge", model, &file, "--out=no/m"],
        &["no/m: cannot be written: no is not a folder; make it first"],
    );
    says(
        &["merge", "--model=nowhere", &file, "--out=m"],
        &["nowhere: there is no such file or folder"],
    );
    w.edit_header(ADAPTER, |h| {
        let name = "transformer.encoder.layer.0.attention.self.query.lora.lora_B";
        h[name]["shape"] = serde_json::json!([2, 32]);
    });
    says(
        &["merge", model, &file, "--out=m"],
        &["query.lora.lora_B is (2, 32), the model's is (32, 2): it was trained for another model"],
    );
    w.edit_header(ADAPTER, |h| {
        let text = h["__metadata__"]["adapter"].as_str().expect("text");
        h["__metadata__"]["adapter"] = text.replace("\"rank\":2", "\"rank\":0").into();
    });
    says(
        &["merge", model, &file, "--out=m"],
        &["rank: found 0, expected at least 1"],
    );
}
