//! Adapters that leave for OpenDelta and PECTVLM, and come back.

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::adapters::{ADAPTER, features, trained};
use common::world::{Ran, World};
use crosstune::adapter::Adapter;
use crosstune::adapter::bottleneck::BottleneckConfig;
use crosstune::adapter::file::AdapterFile;
use crosstune::weights::checkpoint::Checkpoint;
use crosstune::weights::pickle_write::write_pytorch;
use crosstune::weights::write::OutTensor;
use serde_json::{Value, json};

const DELTA: &str = "delta/pytorch_model.bin";
const CKPT: &str = "text_model_best.ckpt";
const EXPORT_DELTA: [&str; 5] = [
    "export",
    "--to=opendelta",
    "--adapter",
    ADAPTER,
    "--out=delta",
];
const EXPORT_CKPT: [&str; 6] = [
    "export",
    "--to=pectvlm",
    "--adapter",
    ADAPTER,
    "--out",
    CKPT,
];
const IMPORT: [&str; 4] = [
    "import",
    "--model=model",
    "--out=back.safetensors",
    "--force",
];
const FROM_DELTA: [&str; 2] = ["--from=opendelta", "--adapter=delta"];
const FROM_CKPT: [&str; 3] = ["--from=pectvlm", "--adapter", CKPT];

/// What OpenDelta holds: options of training, and the type that config.json names.
const DELTAS: [(&[&str], &str); 9] = [
    (&[], "lora"),
    (
        &["--alpha=2.5", "--lora-dropout=0.1", "--targets=dense,key"],
        "lora",
    ),
    (
        &["--targets=layer.1.output.dense", "--freeze-layer-norms"],
        "lora",
    ),
    (&["--method=cross"], "lora"),
    (
        &["--method=adapter", "--rank=", "--bottleneck=3"],
        "adapter",
    ),
    (
        &["--method=adapter", "--rank=", "--parallel"],
        "parallel_adapter",
    ),
    (
        &["--method=compacter", "--rank=", "--reduction=7"],
        "compacter",
    ),
    (
        &["--method=compacter", "--rank=", "--phm-dim=2"],
        "compacter",
    ),
    (&["--method=bitfit", "--rank=", "--train-head"], "bitfit"),
];

/// What PECTVLM holds.
const CKPTS: [&[&str]; 10] = [
    &[],
    &["--method=cross"],
    &["--method=adapter", "--rank=", "--train-head"],
    &["--method=compacter", "--rank=", "--reduction=7"],
    &["--method=prompt", "--rank="],
    &["--method=prompt", "--rank=", "--prompt-text=a red circle"],
    &["--method=layernorm", "--rank="],
    &["--method=head", "--rank="],
    &["--method=bitfit", "--rank="],
    &["--method=full", "--rank="],
];

fn load(w: &World, name: &str) -> AdapterFile {
    AdapterFile::load(&w.path(name)).expect("an adapter")
}

fn import(w: &World, from: &[&str]) -> Ran {
    w.run(IMPORT.iter().chain(from)).ok()
}

/// The module that OpenDelta wraps: M-CLIP as a whole where the head is trained.
fn module(w: &World) -> &'static [&'static str] {
    match load(w, ADAPTER).config.head {
        true => &["--module=m-clip"],
        false => &[],
    }
}

/// Takes away what crosstune wrote beside the tensors, as PyTorch would that saves them again.
fn forget(w: &World, name: &str) {
    let path = w.path(name);
    let file = Checkpoint::open(&path).expect("a checkpoint");
    assert!(file.metadata().contains_key("adapter"));
    let tensors: Vec<OutTensor<'_>> = file
        .tensors()
        .map(|(name, view)| OutTensor {
            name,
            dtype: view.dtype,
            shape: view.shape.to_vec(),
            bytes: view.bytes.to_vec().into(),
        })
        .collect();
    write_pytorch(&path, &tensors, &BTreeMap::new()).expect("written");
}

#[test]
fn a_delta_comes_back_to_the_byte() {
    for (train, kind) in DELTAS {
        let w = trained(train);
        let said = w.run(EXPORT_DELTA.iter().chain(module(&w))).ok();
        assert_eq!(said.stdout, "delta: written\n");
        let config: Value = serde_json::from_str(&w.text("delta/config.json")).expect("JSON");
        assert_eq!(config["delta_type"], kind);
        let said = import(&w, &FROM_DELTA);
        assert_eq!(said.stderr, "", "{train:?}");
        assert_eq!(w.read("back.safetensors"), w.read(ADAPTER), "{train:?}");
        // The tensors and config.json alone are enough to use it.
        forget(&w, DELTA);
        let said = import(&w, &FROM_DELTA);
        assert_eq!(said.stderr, "", "{train:?}");
        let (want, back) = (load(&w, ADAPTER), load(&w, "back.safetensors"));
        assert_eq!(back.tensors, want.tensors, "{train:?}");
        let model = w.path("model");
        let same = features(&model, Some(&back)) == features(&model, Some(&want));
        assert!(same, "{train:?}");
        // Nothing is overwritten.
        let before = w.snapshot();
        let again = w.run(EXPORT_DELTA);
        assert_eq!(again.code, 2);
        assert!(again.stderr.starts_with("error: delta: already exists"));
        assert!(w.snapshot() == before);
    }
}

#[test]
fn a_checkpoint_of_pectvlm_comes_back_to_the_byte() {
    for train in CKPTS {
        let w = trained(train);
        let said = w.run(EXPORT_CKPT).ok();
        assert_eq!(said.stdout, "text_model_best.ckpt: written\n");
        let names: Vec<String> = load(&w, ADAPTER).tensors.into_iter().map(|t| t.0).collect();
        let file = Checkpoint::open(&w.path(CKPT)).expect("a checkpoint");
        assert!(file.names().eq(names.iter().map(String::as_str)));
        let said = import(&w, &FROM_CKPT);
        assert_eq!(said.stderr, "", "{train:?}");
        assert_eq!(w.read("back.safetensors"), w.read(ADAPTER), "{train:?}");
        // The tensors alone are enough to use it, as PECTVLM does.
        forget(&w, CKPT);
        import(&w, &FROM_CKPT);
        let (want, back) = (load(&w, ADAPTER), load(&w, "back.safetensors"));
        assert_eq!(back.tensors, want.tensors, "{train:?}");
        let model = w.path("model");
        let same = features(&model, Some(&back)) == features(&model, Some(&want));
        assert!(same, "{train:?}");
    }
}

#[test]
fn what_no_file_says_is_assumed_aloud() {
    let lora =
        "nothing says lora_alpha; 16 is taken, OpenDelta's and PECTVLM's; --alpha says another";
    let adapter = "nothing says non_linearity; gelu_new is taken, OpenDelta's and PECTVLM's";
    let prompt = "nothing says where the soft prompt stands; it is taken to follow the first token";
    let cases: [(&[&str], &str); 4] = [
        (&[], lora),
        (&["--method=adapter", "--rank="], adapter),
        (
            &["--method=compacter", "--rank=", "--reduction=7"],
            "nothing says non_linearity; relu is taken, PECTVLM's",
        ),
        (&["--method=prompt", "--rank="], prompt),
    ];
    for (train, says) in cases {
        let w = trained(train);
        w.run(EXPORT_CKPT).ok();
        forget(&w, CKPT);
        let want = format!("warning: {CKPT}: {says}");
        let said = import(&w, &FROM_CKPT).stderr;
        assert!(
            said.starts_with(&want) && said.lines().count() == 1,
            "{said}"
        );
        // An OpenDelta folder without its config.json, too.
        std::fs::create_dir(w.path("delta")).expect("made");
        w.write(DELTA, w.read(CKPT));
        let said = import(&w, &FROM_DELTA).stderr;
        assert!(
            said.starts_with(&format!("warning: delta: {says}")),
            "{said}"
        );
        if train.is_empty() {
            let said = import(&w, &[&FROM_DELTA[..], &["--alpha=16"]].concat());
            assert_eq!(said.stderr, "");
        }
    }
}

/// OpenDelta before 0.3 puts a layer of its own after a layer norm, and leaves the norm's bias.
#[test]
fn an_old_bitfits_biases_are_added_to_the_norms() {
    let w = trained(&["--method=bitfit", "--rank="]);
    let want = load(&w, ADAPTER);
    let is_norm = |name: &str| name.ends_with("LayerNorm.bias");
    let old = |name: &str| match is_norm(name) {
        true => name.replace("LayerNorm.bias", "LayerNorm.bitfit.bias"),
        false => name.to_string(),
    };
    let names: Vec<String> = want.tensors.iter().map(|t| old(&t.0)).collect();
    let write = |left_out: &str| {
        let tensors = want.tensors.iter().zip(&names);
        let kept = tensors.filter(|(_, name)| !name.contains(left_out));
        let tensors: Vec<OutTensor<'_>> = kept
            .map(|((_, shape, values), name)| OutTensor {
                name,
                dtype: crosstune::tensor::Dtype::F32,
                shape: shape.clone(),
                bytes: bytemuck::cast_slice(values).into(),
            })
            .collect();
        write_pytorch(&w.path(CKPT), &tensors, &BTreeMap::new()).expect("written");
    };
    write("nothing of it");
    import(&w, &FROM_CKPT);
    let back = load(&w, "back.safetensors");
    assert_eq!(back.config, Adapter::bitfit());
    let model = Checkpoint::open(&w.path("model")).expect("a model");
    for (got, want) in back.tensors.iter().zip(&want.tensors) {
        let base = match is_norm(&want.0) {
            true => model.tensor(&want.0).expect("a norm").to_f32(),
            false => vec![0.0; want.2.len()],
        };
        let sum: Vec<f32> = base.iter().zip(&want.2).map(|(a, b)| a + b).collect();
        assert_eq!((&got.0, &got.2), (&want.0, &sum));
    }
    // Biases of the attention alone: the others are the model's.
    write("dense");
    let said = import(&w, &FROM_CKPT).stderr;
    let first = "transformer.encoder.layer.0.attention.output.dense.bias";
    let says =
        format!("warning: {first} and 5 more tensors are not in it: the model's are taken\n");
    assert_eq!(said, says);
    // At another place there is nothing that it could be added to.
    let text = "transformer.embeddings.LayerNorm.bitfit.bias";
    let tensor = OutTensor {
        name: text,
        dtype: crosstune::tensor::Dtype::F32,
        shape: vec![32],
        bytes: vec![0; 128].into(),
    };
    write_pytorch(&w.path(CKPT), &[tensor], &BTreeMap::new()).expect("written");
    let ran = w.run(IMPORT.iter().chain(&FROM_CKPT));
    assert!(ran.code == 2, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains(&format!("{text} cannot be represented"))
    );
}

#[track_caller]
fn refused(w: &World, args: &[&str], code: i32, says: &str) {
    let before = w.snapshot();
    let ran = w.run(args);
    assert_eq!(ran.code, code, "{says}: {}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(says), "{}\n{says}", ran.stderr);
    assert!(w.snapshot() == before, "{says}");
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let cases: [(&[&str], &[&str], &str); 12] = [
        (
            &["--targets=dense"],
            &EXPORT_CKPT,
            "has branches beside dense, PECTVLM's are beside query and value",
        ),
        (
            &["--method=full", "--rank="],
            &EXPORT_DELTA,
            "trains every tensor, which is no delta of OpenDelta; give --to pectvlm",
        ),
        (
            &["--method=prompt", "--rank="],
            &EXPORT_DELTA,
            "OpenDelta's stand before it, PECTVLM's do not: give --to pectvlm",
        ),
        (
            &["--method=layernorm", "--rank="],
            &EXPORT_DELTA,
            "has tensors of the model alone, and so is no delta of OpenDelta",
        ),
        (
            &["--rslora"],
            &EXPORT_DELTA,
            "multiplies its branches by alpha / sqrt(R) (rslora), OpenDelta by alpha / R",
        ),
        (
            &["--train-head"],
            &EXPORT_DELTA,
            "which is no part of the encoder; give --module m-clip",
        ),
        (&["--rslora"], &EXPORT_CKPT, "PECTVLM by alpha / R"),
        (
            &["--alpha=3"],
            &EXPORT_CKPT,
            "has an alpha of 3, PECTVLM's is always 16, and its file says none",
        ),
        (
            &["--method=adapter", "--rank=", "--parallel"],
            &EXPORT_CKPT,
            "has parallel bottlenecks, which PECTVLM has not; give --to opendelta",
        ),
        (
            &["--method=compacter", "--rank=", "--phm-dim=2"],
            &EXPORT_CKPT,
            "has a phm-dim of 2, PECTVLM's is always 4; give --to opendelta",
        ),
        (
            &[],
            &[&EXPORT_CKPT[..], &["--module=encoder"]].concat(),
            "module: PECTVLM's names are those of M-CLIP; drop it",
        ),
        (
            &[],
            &[&EXPORT_DELTA[..], &["--force"]].concat(),
            "force: goes with --to pectvlm alone; no folder is replaced",
        ),
    ];
    for (train, export, says) in cases {
        refused(&trained(train), export, 2, says);
    }
    let w = trained(&[]);
    let change = |edit: &dyn Fn(&mut Adapter)| {
        let mut file = load(&w, ADAPTER);
        edit(&mut file.config);
        file.save(&w.path(ADAPTER)).expect("saved");
    };
    change(&|a| {
        let lora = a.lora.as_mut().expect("LoRA");
        lora.alpha_pattern
            .insert("layer.1.attention.self.query".into(), 5.0);
    });
    let says = "has ranks or alphas that differ between layers, OpenDelta has one for all";
    refused(&w, &EXPORT_DELTA, 2, says);
    change(&|a| a.bottleneck = Some(BottleneckConfig::default()));
    let says = "has LoRA and bottlenecks; PECTVLM holds one of them at a time";
    refused(&w, &EXPORT_CKPT, 2, says);
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let w = trained(&[]);
    w.write(CKPT, "old");
    refused(
        &w,
        &EXPORT_CKPT,
        2,
        "already exists; give --force to replace it",
    );
    let to = |out: &'static str| [&EXPORT_CKPT[..5], &[out]].concat();
    refused(&w, &to("no/x.ckpt"), 2, "no is not a folder; make it first");
    refused(
        &w,
        &to("model"),
        2,
        "model: is a folder, expected a file name",
    );
    refused(
        &w,
        &to("/proc/x.ckpt"),
        1,
        "/proc/x.ckpt: cannot be written: ",
    );
    let folder = [&EXPORT_DELTA[..4], &["--out=/proc/delta"]].concat();
    refused(&w, &folder, 1, "/proc/delta: cannot be written: ");
    // As on a full disk: a write fails after the first bytes.
    let out = [&EXPORT_CKPT[..], &["--force"]].concat();
    for args in [&out[..], &EXPORT_DELTA] {
        let before = w.snapshot();
        let limited = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_crosstune"))
            .args(args)
            .current_dir(w.path(""))
            .output()
            .expect("it runs");
        let stderr = String::from_utf8(limited.stderr).expect("UTF-8");
        assert_eq!(limited.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("cannot be written: File too large"),
            "{stderr}"
        );
        assert!(w.snapshot() == before, "{args:?}");
    }
    w.run(&out).ok();
    import(&w, &FROM_CKPT);
    assert_eq!(w.read("back.safetensors"), w.read(ADAPTER));
}

#[test]
fn pytorch_reads_the_same_tensors() {
    let Some(python) = std::env::var_os("CROSSTUNE_PEFT_PYTHON") else {
        println!("SKIPPED: set CROSSTUNE_PEFT_PYTHON to a Python with torch and safetensors");
        return;
    };
    let deltas = DELTAS.iter().map(|(train, _)| {
        let w = trained(train);
        w.run(EXPORT_DELTA.iter().chain(module(&w))).ok();
        (w, DELTA, &FROM_DELTA[..])
    });
    let ckpts = CKPTS.iter().map(|train| {
        let w = trained(train);
        w.run(EXPORT_CKPT).ok();
        (w, CKPT, &FROM_CKPT[..])
    });
    let all: Vec<_> = deltas.chain(ckpts).collect();
    let output = Command::new(&python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torch_load.py"))
        .args(all.iter().map(|(w, name, _)| w.path(name)))
        .output()
        .expect("Python runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(lines.lines().count(), all.len());
    for ((w, name, from), keys) in all.iter().zip(lines.lines()) {
        let ours = Checkpoint::open(&w.path(name)).expect("a checkpoint");
        let keys: Value = serde_json::from_str(keys).expect("JSON");
        assert_eq!(keys, json!(ours.names().collect::<Vec<_>>()));
        let loaded = w.path(format!("{name}.loaded.safetensors"));
        let theirs = Checkpoint::open(&loaded).expect("tensors");
        assert_eq!(theirs.len(), ours.len());
        for (name, want) in ours.tensors() {
            let got = theirs.tensor(name).expect("a tensor");
            assert_eq!((got.dtype, got.shape), (want.dtype, want.shape), "{name}");
            assert!(got.bytes == want.bytes, "{name}");
        }
        // What PyTorch saves again is the adapter still.
        w.write(name, w.read(format!("{name}.saved")));
        import(w, from);
        assert_eq!(
            load(w, "back.safetensors").tensors,
            load(w, ADAPTER).tensors
        );
    }
}
