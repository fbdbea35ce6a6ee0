//! OpenDelta's bottlenecks and Compacters, in and out.

mod common;

use common::tiny::random;
use common::world::{Ran, World, train_args};
use crosstune::adapter::file::AdapterFile;
use crosstune::engine::{Engine, EngineOptions};
use serde_json::{Value, json};

const ADAPTER: &str = "run/adapter_last.safetensors";
const DELTA: &str = "delta/model.safetensors";
const IMPORT: [&str; 5] = [
    "import",
    "--from=opendelta",
    "--model=model",
    "--adapter=delta",
    "--out=back.safetensors",
];

/// A method's options, and how OpenDelta says the same.
struct Kind {
    train: &'static [&'static str],
    settings: fn() -> Value,
}

const KINDS: [Kind; 3] = [
    Kind {
        train: &["--method=adapter", "--bottleneck=3"],
        settings: || json!({"delta_type": "adapter", "bottleneck_dim": 3}),
    },
    Kind {
        train: &["--method=adapter", "--bottleneck=3", "--parallel"],
        settings: || json!({"delta_type": "adapter", "non_linearity": "gelu_new"}),
    },
    Kind {
        train: &["--method=compacter", "--reduction=7"],
        settings: || json!({"delta_type": "compacter", "reduction_factor": 7, "phm_rank": 1}),
    },
];

/// A world with an adapter of random values, large enough to matter.
fn trained(method: &[&str], more: &[&str]) -> World {
    let w = World::new();
    let mut args = train_args("run", &[method, more, &["--rank="]].concat());
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

/// Our tensors as a delta folder, without what says that they are ours.
fn delta(w: &World, settings: &Value) {
    std::fs::create_dir_all(w.path("delta")).expect("made");
    w.write(DELTA, w.read(ADAPTER));
    w.edit_header(DELTA, |h| {
        h.as_object_mut().expect("an object").remove("__metadata__");
    });
    w.write("delta/config.json", settings.to_string());
}

/// Gives every tensor of the delta another name.
fn rename(w: &World, to: impl Fn(&str) -> String) {
    w.edit_header(DELTA, |h| {
        let fields = h.as_object_mut().expect("an object");
        let renamed = std::mem::take(fields).into_iter();
        *fields = renamed.map(|(name, v)| (to(&name), v)).collect();
    });
}

fn load(w: &World, name: &str) -> AdapterFile {
    AdapterFile::load(&w.path(name)).expect("an adapter")
}

fn features(w: &World, adapter: &AdapterFile) -> Vec<f32> {
    let options = EngineOptions {
        threads: Some(1),
        ..EngineOptions::default()
    };
    let engine = Engine::open(&w.path("model"), options).expect("a model");
    let texts = ["a red circle", "ein blaues Quadrat"];
    engine.encode(&texts, Some(adapter)).expect("features")
}

#[test]
fn a_delta_is_ours_by_other_words() {
    for Kind { train, settings } in KINDS {
        for more in [&[][..], &["--freeze-layer-norms"], &["--train-head"]] {
            let w = trained(train, more);
            delta(&w, &settings());
            w.run(IMPORT).ok();
            let (want, back) = (load(&w, ADAPTER), load(&w, "back.safetensors"));
            assert_eq!(back.tensors, want.tensors, "{train:?}");
            assert_eq!(back.config, want.config, "{train:?}");
            assert_eq!(features(&w, &back), features(&w, &want), "{train:?}");
        }
    }
}

#[test]
fn names_inside_the_encoder_and_files_without_settings_do_too() {
    for Kind { train, .. } in KINDS {
        let w = trained(train, &[]);
        delta(&w, &json!({}));
        rename(&w, |name| name.replace("transformer.", ""));
        let args = ["import", "--from=pectvlm", "--model=model"];
        let files = [
            "--adapter=delta/model.safetensors",
            "--out=back.safetensors",
        ];
        w.run(args.iter().chain(&files)).ok();
        let (want, back) = (load(&w, ADAPTER), load(&w, "back.safetensors"));
        assert_eq!(back.tensors, want.tensors, "{train:?}");
        // 32 over 7 and over 8 are 4: nothing tells them apart.
        let reduction = back.config.compacter.map(|c| c.reduction);
        assert_eq!(reduction, want.config.compacter.map(|_| 8), "{train:?}");
    }
}

/// `ParallelAdapterModel` keeps an adapter under the first module of its pair, which reads.
#[test]
fn a_parallel_adapter_may_stand_at_the_first_of_its_modules() {
    let w = trained(KINDS[1].train, &[]);
    delta(&w, &json!({}));
    rename(&w, |name| {
        let kind = ".parallel_adapter.";
        match name.split_once(kind) {
            Some((module, rest)) if module.ends_with("attention.output.dense") => {
                format!(
                    "{}self{kind}{rest}",
                    module.trim_end_matches("output.dense")
                )
            }
            Some((module, rest)) => {
                format!(
                    "{}intermediate.dense{kind}{rest}",
                    module.trim_end_matches("output.dense")
                )
            }
            None => name.into(),
        }
    });
    w.run(IMPORT).ok();
    assert_eq!(
        load(&w, "back.safetensors").tensors,
        load(&w, ADAPTER).tensors
    );
}

#[track_caller]
fn refused(w: &World, says: &str) {
    let before = w.snapshot();
    let ran: Ran = w.run(IMPORT);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains(says), "{}\n{says}", ran.stderr);
    assert!(w.snapshot() == before);
}

#[test]
fn other_settings_are_named() {
    let cases: [(usize, Value, &str); 6] = [
        (
            0,
            json!({"non_linearity": "relu"}),
            "delta/config.json: non_linearity: found \"relu\", expected \"gelu_new\"",
        ),
        (
            2,
            json!({"non_linearity": "gelu_new"}),
            "non_linearity: found \"gelu_new\", expected \"relu\"",
        ),
        (2, json!({"phm_rank": 2}), "phm_rank: found 2, expected 1"),
        (
            2,
            json!({"shared_phm_rule": true}),
            "shared_phm_rule: found true, expected false",
        ),
        (
            2,
            json!({"reduction_factor": 4}),
            "W_right is (4, 1, 1), expected (4, 1, 2): it was trained for another model",
        ),
        (
            2,
            json!({"reduction_factor": 0}),
            "reduction: found 0, expected at least 1",
        ),
    ];
    for (kind, settings, says) in cases {
        let w = trained(KINDS[kind].train, &[]);
        delta(&w, &settings);
        refused(&w, says);
    }
}

#[test]
fn tensors_that_are_missing_or_elsewhere_are_named() {
    let block = "transformer.encoder.layer.1";
    for (kind, from, to, says) in [
        (
            0,
            "layer.1.output.dense.adapter",
            "layer.2.output.dense.adapter",
            format!("has no tensor for {block}.output.dense.adapter.modulelist.down_proj"),
        ),
        (
            0,
            ".attention.output.dense.adapter",
            ".attention.adapter",
            "is of an adapter at another place than attention.output.dense and output.dense".into(),
        ),
        (
            0,
            "down_proj.bias",
            "down_proj.gain",
            "has no tensor for".into(),
        ),
        (
            1,
            ".attention.output.dense.parallel_adapter",
            ".attention.parallel_adapter",
            "is of an adapter at another place".into(),
        ),
        (
            2,
            "down_sampler.b",
            "down_sampler.c",
            "has no tensor for transformer.encoder.layer.0.attention.output.dense.compactor".into(),
        ),
        (
            2,
            "layer.1.output.dense.compactor.up_sampler.W_left",
            "layer.1.output.dense.compactor.up_sampler.W_left_left",
            format!("has no tensor for {block}.output.dense.compactor.up_sampler.W_left"),
        ),
    ] {
        let w = trained(KINDS[kind].train, &[]);
        delta(&w, &json!({}));
        rename(&w, |name| name.replace(from, to));
        refused(&w, &says);
    }
}
