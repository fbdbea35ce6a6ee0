//! Adapters to and from Hugging Face PEFT.

mod common;

use common::adapters::{ADAPTER, features, trained};
use common::tiny::random;
use common::world::World;
use crosstune::adapter::file::AdapterFile;
use crosstune::weights::checkpoint::Checkpoint;
use serde_json::{Value, json};

const EXPORT: [&str; 5] = ["export", "--to=peft", "--adapter", ADAPTER, "--out=peft"];
const IMPORT: [&str; 5] = [
    "import",
    "--from=peft",
    "--model=model",
    "--adapter=peft",
    "--out=back.safetensors",
];

/// Changes one field of the exported settings.
fn set(w: &World, field: &str, value: Value) {
    let mut config: Value =
        serde_json::from_str(&w.text("peft/adapter_config.json")).expect("JSON");
    config[field] = value;
    w.write("peft/adapter_config.json", config.to_string());
}

#[test]
fn an_adapter_comes_back_from_peft_to_the_byte() {
    let cases: [(&[&str], &[&str], &str); 4] = [
        (&[], &[], "transformer.encoder"),
        (&["--alpha=2.5"], &["--module=encoder"], "encoder"),
        (
            &["--train-head", "--freeze-layer-norms"],
            &[],
            "transformer.encoder",
        ),
        (&["--targets=dense,key"], &[], "transformer.encoder"),
    ];
    for (train, export, at) in cases {
        let w = trained(train);
        w.run(EXPORT.iter().chain(export)).ok();
        let name = match train.contains(&"--targets=dense,key") {
            true => "key",
            false => "query",
        };
        let file = Checkpoint::open(&w.path("peft/adapter_model.safetensors")).expect("tensors");
        let name = format!("base_model.model.{at}.layer.1.attention.self.{name}.lora_A.weight");
        assert_eq!(file.get(&name).map(|t| t.shape.to_vec()), Some(vec![2, 32]));
        let said = w.run(IMPORT).ok();
        assert!(said.stdout.starts_with("back.safetensors: written, "));
        assert_eq!(said.stderr, "");
        let load = |name: &str| AdapterFile::load(&w.path(name)).expect("an adapter");
        let (want, back) = (load(ADAPTER), load("back.safetensors"));
        assert_eq!((&back.tensors, &back.origin), (&want.tensors, &want.origin));
        if !train.contains(&"--targets=dense,key") {
            assert_eq!(w.read("back.safetensors"), w.read(ADAPTER));
        }
        let model = w.path("model");
        assert_eq!(features(&model, Some(&back)), features(&model, Some(&want)));
        let again = w.run(IMPORT);
        assert!(again.code == 2 && again.stderr.contains("give --force to replace it"));
        let again = w.run(EXPORT);
        assert!(again.code == 2 && again.stderr.starts_with("error: peft: already exists"));
    }
}

#[test]
fn settings_of_peft_become_ours() {
    let w = trained(&["--freeze-layer-norms"]);
    w.run(EXPORT).ok();
    let import = || {
        let ran = w.run(IMPORT.iter().chain(&["--force", "--json"])).ok();
        (ran.json(), ran.stderr)
    };
    set(&w, "use_rslora", true.into());
    set(&w, "lora_dropout", 0.25.into());
    set(&w, "target_modules", ".*(query|value)".into());
    set(&w, "base_model_name_or_path", "some/model".into());
    let (report, stderr) = import();
    let lora = &report["settings"]["lora"];
    assert_eq!(
        (&lora["alpha"], &lora["rslora"]),
        (&16.0.into(), &true.into())
    );
    let want = json!(["attention.self.query", "attention.self.value"]);
    assert_eq!(lora["targets"], want);
    assert_eq!((&lora["dropout"], &*stderr), (&0.25.into(), ""));
    let export = [
        "export",
        "--to=peft",
        "--adapter=back.safetensors",
        "--out=two",
    ];
    w.run(export).ok();
    let config: Value = serde_json::from_str(&w.text("two/adapter_config.json")).expect("JSON");
    assert_eq!(
        (&config["lora_dropout"], &config["base_model_name_or_path"]),
        (&0.25.into(), &"some/model".into())
    );
    assert_eq!(
        (&config["lora_alpha"], &config["use_rslora"]),
        (&16.into(), &true.into())
    );
    // Branches in one layer alone.
    let tensors = "peft/adapter_model.safetensors";
    let file = AdapterFile::load(&w.path(ADAPTER)).expect("an adapter");
    let keep = |n: &str| n.contains("layer.1.") && n.contains("query");
    let all: Vec<_> = file.tensors.into_iter().filter(|t| keep(&t.0)).collect();
    let part = AdapterFile {
        tensors: all,
        ..file
    };
    std::fs::remove_dir_all(w.path("two")).expect("removed");
    part.save(&w.path("part.safetensors")).expect("saved");
    w.run([
        "export",
        "--to=peft",
        "--adapter=part.safetensors",
        "--out=two",
    ])
    .ok();
    w.write(tensors, w.read("two/adapter_model.safetensors"));
    let (report, _) = import();
    let want = json!(["layer.1.attention.self.query"]);
    assert_eq!(report["settings"]["lora"]["targets"], want);
    let back = AdapterFile::load(&w.path("back.safetensors")).expect("an adapter");
    assert_eq!(back.tensors, part.tensors);
    features(&w.path("model"), Some(&back));
}

#[test]
fn layers_may_have_ranks_and_alphas_of_their_own() {
    let w = trained(&["--rslora", "--lora-dropout=0.1", "--freeze-layer-norms"]);
    // Rank 3 and another alpha for two of the four branches, as if PEFT had trained them.
    let mut file = AdapterFile::load(&w.path(ADAPTER)).expect("an adapter");
    let odd = |name: &str| name.contains("layer.1.") || name.contains("value");
    for (name, shape, values) in file.tensors.iter_mut().filter(|t| odd(&t.0)) {
        let at = usize::from(name.ends_with("lora_B"));
        shape[at] = 3;
        *values = random(12, name, shape);
    }
    let lora = file.config.lora.as_mut().expect("LoRA");
    for module in [
        "layer.0.attention.self.value",
        "layer.1.attention.self.query",
    ] {
        lora.rank_pattern.insert(module.into(), 3);
    }
    lora.rank_pattern
        .insert("layer.1.attention.self.value".into(), 3);
    lora.alpha_pattern
        .insert("layer.1.attention.self.query".into(), 5.5);
    file.save(&w.path(ADAPTER)).expect("saved");
    w.run(EXPORT).ok();
    let config: Value = serde_json::from_str(&w.text("peft/adapter_config.json")).expect("JSON");
    assert_eq!(
        config["alpha_pattern"],
        json!({"layer.1.attention.self.query": 5.5})
    );
    assert_eq!(config["lora_dropout"], 0.1);
    assert_eq!(config["rank_pattern"].as_object().map(|p| p.len()), Some(3));
    w.run(IMPORT).ok();
    assert_eq!(w.read("back.safetensors"), w.read(ADAPTER));
    // The same in PEFT's own words: names of modules that end so.
    set(
        &w,
        "rank_pattern",
        json!({"layer\\.0\\.attention\\.self\\.query": 2}),
    );
    set(&w, "r", 3.into());
    w.run(IMPORT.iter().chain(&["--force"])).ok();
    let back = AdapterFile::load(&w.path("back.safetensors")).expect("an adapter");
    let lora = back.config.lora.as_ref().expect("LoRA");
    assert_eq!((lora.rank, lora.rank_pattern.len()), (3, 1));
    let model = w.path("model");
    let want = features(&model, Some(&file));
    assert_eq!(features(&model, Some(&back)), want);
    // Folded into the weights, each with its own factor.
    w.run([
        "merge",
        "--model=model",
        "--adapter=back.safetensors",
        "--out=merged",
    ])
    .ok();
    common::assert_close(
        "merged",
        &features(&w.path("merged"), None),
        &want,
        2e-5,
        2e-5,
    );
}

#[test]
fn layer_norms_that_peft_did_not_save_are_the_models() {
    let w = trained(&[]);
    w.run(EXPORT).ok();
    w.edit_header("peft/adapter_model.safetensors", |h| {
        // As if the pooler's: left out.
        let fields = h.as_object_mut().expect("an object");
        let at = "base_model.model.transformer.encoder.layer.0.output.LayerNorm.bias";
        let tensor = fields.remove(at).expect("a tensor");
        fields.insert(
            "base_model.model.transformer.pooler.dense.bias".into(),
            tensor,
        );
    });
    let ran = w.run(IMPORT).ok();
    for part in [
        "warning: transformer.pooler.dense.bias is left out",
        "warning: transformer.encoder.layer.0.output.LayerNorm.bias is not in it: the model's",
    ] {
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
}

#[test]
fn what_peft_has_and_we_have_not_is_named() {
    let w = trained(&[]);
    w.run(EXPORT).ok();
    let config = w.text("peft/adapter_config.json");
    let tensors = w.read("peft/adapter_model.safetensors");
    let refused = |args: &[&str], says: &str| {
        let before = w.snapshot();
        let ran = w.run(args);
        assert_eq!(ran.code, 2, "{says}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}\n{says}", ran.stderr);
        assert!(w.snapshot() == before, "{says}");
    };
    let query = "transformer.encoder.layer.1.attention.self.query";
    let settings: [(&str, Value, &str); 9] = [
        (
            "use_dora",
            true.into(),
            "peft/adapter_config.json: use_dora is true, expected false",
        ),
        ("bias", "all".into(), "bias is \"all\", expected \"none\""),
        (
            "peft_type",
            "LOHA".into(),
            "peft_type is \"LOHA\", expected \"LORA\"",
        ),
        (
            "r",
            4.into(),
            "has 2 rows, but r and rank_pattern in adapter_config.json say 4",
        ),
        (
            "rank_pattern",
            json!({query: 3}),
            "query has 2 rows, but r and rank_pattern",
        ),
        (
            "lora_dropout",
            1.into(),
            "lora-dropout: found 1, expected 0 or more and below 1",
        ),
        (
            "alpha_pattern",
            json!({"query": 0}),
            "alpha: found 0, expected a number not 0",
        ),
        (
            "init_lora_weights",
            "pissa".into(),
            "which changes the model's own weights too",
        ),
        (
            "layer_replication",
            json!([[0, 1]]),
            "layer_replication is [[0,1]], which crosstune",
        ),
    ];
    for (field, value, says) in settings {
        set(&w, field, value);
        refused(&IMPORT, says);
        w.write("peft/adapter_config.json", &config);
    }
    let name = |n: &str| format!("base_model.model.{n}");
    let a = name(&format!("{query}.lora_A.weight"));
    let norm = name("transformer.encoder.layer.0.output.LayerNorm.weight");
    let rename: [(&str, String, &str); 7] = [
        (
            &a,
            name("x.lora_A.weight"),
            "belongs to no BERT, XLM-R or M-CLIP",
        ),
        (&a, query.into(), "does not begin with base_model.model."),
        (
            &a,
            a.replace("lora_A.weight", "lora_magnitude_vector"),
            "crosstune reads the blocks' output.LayerNorm and LinearTransformation alone",
        ),
        (
            &a,
            a.replace("layer.1.", "layer.7."),
            "but the model has 2 layers",
        ),
        (
            &a,
            a.replace("query", "nothing"),
            "is a branch beside no linear layer of a block",
        ),
        (
            &norm,
            norm.replace("encoder.layer.0.output", "embeddings"),
            "embeddings.LayerNorm.weight cannot be represented",
        ),
        (
            &a,
            a.replace("query", "key"),
            "has no tensor for transformer.encoder.layer.1.attention.self.query.lora.lora_A",
        ),
    ];
    for (old, new, says) in rename {
        w.edit_header("peft/adapter_model.safetensors", |h| {
            let fields = h.as_object_mut().expect("an object");
            let tensor = fields.remove(old).expect("a tensor");
            fields.insert(new.clone(), tensor);
        });
        refused(&IMPORT, says);
        w.write("peft/adapter_model.safetensors", &tensors);
    }
    w.edit_header("peft/adapter_model.safetensors", |h| {
        h[&a]["shape"] = json!([4, 16]);
    });
    set(
        &w,
        "rank_pattern",
        json!({"layer.1.attention.self.query": 4}),
    );
    refused(&IMPORT, "lora_A.weight is (4, 16), expected (4, 32)");
    w.write("peft/adapter_config.json", &config);
    w.write("peft/adapter_model.safetensors", &tensors);
    w.edit_header("peft/adapter_model.safetensors", |h| {
        h[&a]["shape"] = json!([2, 16, 2])
    });
    refused(
        &IMPORT,
        "lora_A.weight is (2, 16, 2), expected (2, 32): it was trained for another",
    );
    w.write("peft/adapter_model.safetensors", &tensors);
    let mut import = IMPORT;
    import[3] = "--adapter=model";
    refused(&import, "model/adapter_config.json: cannot be read");
    w.write("model/adapter_config.json", &config);
    refused(
        &import,
        "model: holds no adapter of PEFT; expected adapter_config.json and adapter_m",
    );
    let alpha: Vec<&str> = IMPORT.into_iter().chain(["--alpha=3"]).collect();
    refused(&alpha, "adapter_config.json says it; drop --alpha");
}

#[test]
fn what_peft_cannot_hold_is_refused() {
    let cases: [(&[&str], &[&str], &str); 5] = [
        (
            &["--method=adapter", "--rank="],
            &[],
            "has bottlenecks, which PEFT's LoRA format cannot hold",
        ),
        (
            &["--method=full", "--rank="],
            &[],
            "trains every tensor, which PEFT's LoRA cannot hold",
        ),
        (
            &["--method=bitfit", "--rank="],
            &[],
            "trains biases, which are not written for PEFT",
        ),
        (
            &["--method=layernorm", "--rank="],
            &[],
            "has no LoRA, which PEFT's LoRA format needs",
        ),
        (
            &["--train-head"],
            &["--module=encoder"],
            "which is no part of the encoder; give --mod",
        ),
    ];
    for (train, export, says) in cases {
        let w = trained(train);
        let ran = w.run(EXPORT.iter().chain(export));
        assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
        assert!(!w.path("peft").exists());
    }
}

#[test]
fn features_are_those_of_peft_itself() {
    let Some(python) = std::env::var_os("CROSSTUNE_PEFT_PYTHON") else {
        println!(
            "SKIPPED: set CROSSTUNE_PEFT_PYTHON to a Python with torch, transformers and peft"
        );
        return;
    };
    let w = trained(&[]);
    let output = std::process::Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/peft_roundtrip.py"
        ))
        .arg(env!("CARGO_BIN_EXE_crosstune"))
        .arg(w.path(""))
        .output()
        .expect("Python runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
}
