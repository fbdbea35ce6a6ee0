//! Adapters that leave and enter the program: merged into a model, and from OpenDelta's formats.
//! PEFT's are in `tests/peft.rs`.

mod common;

use common::adapters::{ADAPTER, features, trained};
use common::assert_close;
use common::world::World;
use crosstune::adapter::file::AdapterFile;
use crosstune::weights::checkpoint::Checkpoint;
use serde_json::{Value, json};

const MERGE: [&str; 4] = ["merge", "--model=model", "--adapter", ADAPTER];

#[test]
fn a_merged_model_gives_the_features_of_model_and_adapter() {
    let all = "--targets=query,key,value,attention.output.dense,intermediate.dense,output.dense";
    for more in [
        &["--alpha=3"] as &[&str],
        &[all, "--train-head"],
        &["--method=bitfit", "--rank="],
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
        h[name]["shape"] = json!([2, 32]);
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

#[test]
fn a_target_may_name_one_layer() {
    let w = trained(&["--targets=layer.1.attention.self.key,value"]);
    let file = AdapterFile::load(&w.path(ADAPTER)).expect("an adapter");
    let branches: Vec<_> = file
        .tensors
        .iter()
        .filter(|t| t.0.ends_with("lora_A"))
        .collect();
    assert_eq!(branches.len(), 3);
    let ran = w.train("no", &["--targets=layer.2.attention.self.key"]);
    let says = "error: targets: `layer.2.attention.self.key` is of no layer; the model's 2 are";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    let ran = w.train("no", &["--targets=layer.1.nothing"]);
    assert!(
        ran.stderr
            .contains("no linear layer ends in `layer.1.nothing`")
    );
}

#[test]
fn bottlenecks_cannot_be_merged() {
    let w = trained(&["--method=adapter", "--rank="]);
    let ran = w.run(MERGE.iter().chain(&["--out=m"]));
    let says = "adapter: has bottlenecks, which are layers of their own";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    assert!(!w.path("m").exists());
}

const DELTA: [&str; 5] = [
    "import",
    "--from=opendelta",
    "--model=model",
    "--adapter=delta",
    "--out=back.safetensors",
];

/// A delta folder: our tensors by their own names, with nothing that says what they are.
fn delta(w: &World, settings: &Value) {
    std::fs::create_dir(w.path("delta")).expect("made");
    w.write("delta/model.safetensors", w.read(ADAPTER));
    w.edit_header("delta/model.safetensors", |h| {
        h.as_object_mut().expect("an object").remove("__metadata__");
    });
    w.write("delta/config.json", settings.to_string());
}

#[test]
fn an_adapter_of_opendelta_is_ours_by_other_words() {
    let all = "--targets=query,key,value,attention.output.dense";
    for more in [
        &["--alpha=3"] as &[&str],
        &[all, "--alpha=3", "--train-head"],
        &["--method=layernorm", "--rank="],
    ] {
        let w = trained(more);
        delta(
            &w,
            &json!({"delta_type": "lora", "lora_r": 2, "lora_alpha": 3}),
        );
        w.run(DELTA).ok();
        let load = |name: &str| AdapterFile::load(&w.path(name)).expect("an adapter");
        let (want, back) = (load(ADAPTER), load("back.safetensors"));
        assert_eq!(back.tensors, want.tensors);
        let model = w.path("model");
        assert_eq!(features(&model, Some(&back)), features(&model, Some(&want)));
        // PECTVLM's file says no alpha.
        let file = [
            "--from=pectvlm",
            "--adapter=delta/model.safetensors",
            "--force",
        ];
        let import = |more: &[&str]| {
            let args = ["import", "--model=model", "--out=back.safetensors"];
            w.run(args.iter().chain(&file).chain(more)).ok();
            load("back.safetensors").config.lora.map(|l| l.alpha)
        };
        let lora = !more.contains(&"--rank=");
        assert_eq!(import(&[]), lora.then_some(16.0));
        assert_eq!(import(&["--alpha=3"]), lora.then_some(3.0));
        if lora {
            let kind = w.run(["inspect", "delta", "--json"]).ok().json();
            assert_eq!(kind["report"]["kind"], "adapter");
        }
    }
}

#[test]
fn what_opendelta_has_and_we_have_not_is_named() {
    let w = trained(&[]);
    delta(&w, &json!({}));
    let tensors = w.read("delta/model.safetensors");
    let a = "transformer.encoder.layer.1.attention.self.query.lora.lora_A";
    let dense = "transformer.encoder.layer.0.output.dense";
    let down = format!("{dense}.low_rank_adapter.down_proj.weight");
    let prefix = "prefix_layer.embeds".to_string();
    let cases: [(String, Value, &str); 5] = [
        (
            down,
            json!([2, 32]),
            "down_proj.weight cannot be represented: beside LoRA",
        ),
        (
            prefix,
            json!([2, 32]),
            "prefix_layer.embeds belongs to no BERT, XLM-R or M-CLIP",
        ),
        (
            a.into(),
            json!([4, 16]),
            "query.lora.lora_A is (4, 16), expected (4, 32): it was",
        ),
        (
            a.replace("_A", "_C"),
            json!([2, 32]),
            "lora_C cannot be represented",
        ),
        (
            a.replace("query", "key"),
            json!([2, 32]),
            "has no tensor for transformer.encoder.layer.1",
        ),
    ];
    for (name, shape, says) in cases {
        w.edit_header("delta/model.safetensors", |h| {
            let fields = h.as_object_mut().expect("an object");
            let mut tensor = fields.remove(a).expect("a tensor");
            tensor["shape"] = shape.clone();
            fields.insert(name.clone(), tensor);
        });
        let before = w.snapshot();
        let ran = w.run(DELTA);
        assert_eq!(
            (ran.code, ran.stderr.lines().count()),
            (2, 1),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains(says), "{}\n{says}", ran.stderr);
        assert!(w.snapshot() == before);
        w.write("delta/model.safetensors", &tensors);
    }
}

#[test]
fn a_setting_of_another_kind_is_not_taken_for_none() {
    let w = trained(&[]);
    delta(&w, &json!({"delta_type": "lora", "lora_alpha": "32"}));
    let ran = w.run(DELTA);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let says = "config.json: lora_alpha: found \"32\", expected a number";
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
}
