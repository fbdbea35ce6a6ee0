//! Soft prompts of other programs, and what no other program can take.

mod common;

use common::world::{World, train_args};
use crosstune::adapter::file::AdapterFile;
use crosstune::engine::{Engine, EngineOptions};
use serde_json::json;

const ADAPTER: &str = "run/adapter_last.safetensors";
const TENSOR: &str = "transformer.soft_prompt_layer.soft_embeds";
const IMPORT: [&str; 4] = [
    "import",
    "--model=model",
    "--out=back.safetensors",
    "--force",
];

/// A world with a prompt, and its tensors by their own names alone in `delta`.
fn trained(more: &[&str]) -> World {
    let w = World::new();
    let mut args = train_args("run", &[&["--method=prompt", "--lr=0.1"], more].concat());
    args.retain(|a| !a.starts_with("--rank="));
    w.run(args).ok();
    std::fs::create_dir(w.path("delta")).expect("made");
    w.write("delta/model.safetensors", w.read(ADAPTER));
    w.edit_header("delta/model.safetensors", |h| {
        h.as_object_mut().expect("an object").remove("__metadata__");
    });
    let settings = json!({"delta_type": "soft_prompt", "soft_token_num": 4});
    w.write("delta/config.json", settings.to_string());
    w
}

fn load(w: &World, name: &str) -> AdapterFile {
    AdapterFile::load(&w.path(name)).expect("an adapter")
}

fn rename(w: &World, to: &str) {
    w.edit_header("delta/model.safetensors", |h| {
        let fields = h.as_object_mut().expect("an object");
        let tensor = fields.remove(TENSOR).expect("the prompt");
        fields.insert(to.into(), tensor);
    });
}

#[test]
fn a_prompt_of_pectvlm_or_opendelta_is_ours() {
    for more in [
        &[] as &[&str],
        &["--freeze-layer-norms=false", "--train-head"],
    ] {
        let w = trained(more);
        let want = load(&w, ADAPTER);
        let check = |args: &[&str]| {
            w.run(IMPORT.iter().chain(args)).ok();
            let back = load(&w, "back.safetensors");
            assert_eq!((&back.config, &back.tensors), (&want.config, &want.tensors));
        };
        check(&["--from=pectvlm", "--adapter=delta/model.safetensors"]);
        check(&["--from=opendelta", "--adapter=delta"]);
        // Of the encoder alone, as a delta on a bare XLM-R is saved.
        rename(&w, "soft_prompt_layer.soft_embeds");
        check(&["--from=opendelta", "--adapter=delta"]);
        let options = EngineOptions {
            threads: Some(1),
            ..EngineOptions::default()
        };
        let engine = Engine::open(&w.path("model"), options).expect("a model");
        let texts = ["ein roter Kreis", "x"];
        let features = |file| engine.encode(&texts, file).expect("features");
        let back = load(&w, "back.safetensors");
        assert_eq!(features(Some(&back)), features(Some(&want)));
        assert!(common::max_diff(&features(Some(&back)), &features(None)) > 0.01);
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_named() {
    let w = trained(&[]);
    let tensors = w.read("delta/model.safetensors");
    let cases = [
        (
            TENSOR,
            json!([8, 16]),
            "soft_embeds is (8, 16), expected (8, 32)",
        ),
        (
            TENSOR,
            json!([2, 8, 8]),
            "soft_embeds is (2, 8, 8), expected (2, 32)",
        ),
        (
            TENSOR,
            json!([128, 1]),
            "prompt: has 128 vectors, but the model has 96 positions",
        ),
        (
            "transformer.soft_prompt_layer.other",
            json!([4, 32]),
            "other cannot be represented",
        ),
    ];
    for (name, shape, says) in cases {
        rename(&w, name);
        w.edit_header("delta/model.safetensors", |h| {
            h[name]["shape"] = shape.clone()
        });
        let before = w.snapshot();
        let ran = w.run(
            IMPORT
                .iter()
                .chain(&["--from=opendelta", "--adapter=delta"]),
        );
        assert!(
            ran.code == 2 && ran.stderr.contains(says),
            "{}\n{says}",
            ran.stderr
        );
        assert!(w.snapshot() == before);
        w.write("delta/model.safetensors", &tensors);
    }
}

#[test]
fn neither_a_model_nor_peft_takes_a_prompt() {
    let w = trained(&[]);
    let before = w.snapshot();
    let ran = w.run(["merge", "--model=model", "--adapter", ADAPTER, "--out=m"]);
    let says = "adapter: has a soft prompt, which is tokens of its own in every text: no weight of \
                the model can take it in";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    let ran = w.run(["export", "--to=peft", "--adapter", ADAPTER, "--out=peft"]);
    let says = "adapter: has a soft prompt, whose vectors follow the first token; PEFT's stand \
                before it";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    assert!(w.snapshot() == before);
}
