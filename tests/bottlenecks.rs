//! Adapters that are layers of their own, from end to end: trained, resumed, measured, refused.

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::max_diff;
use common::world::{World, train_args};
use crosstune::adapter::compacter::CompacterConfig;
use crosstune::adapter::file::AdapterFile;
use crosstune::adapter::{Adapter, initial};
use crosstune::engine::{Engine, EngineOptions};
use crosstune::ops::Op;
use crosstune::train::program::EncodeProgram;
use serde_json::Value;

const RESULTS: [&str; 3] = [
    "adapter_best.safetensors",
    "adapter_last.safetensors",
    "metrics.jsonl",
];

/// A method's options.
type Method = &'static [&'static str];

const COMPACTER: Method = &["--method=compacter", "--reduction=8"];

const PARALLEL: Method = &["--method=adapter", "--bottleneck=3", "--parallel"];

/// Every method here, and the trainable parameters of a layer of 32 channels without its norms.
const METHODS: [(Method, u64); 2] = [
    // Twice: 3 channels, in and out.
    (PARALLEL, 2 * (2 * 3 * 32 + 3 + 32)),
    // Twice: two rules, 4 (8 + 1) + 4 in the way down, 4 (1 + 8) + 32 in the way up.
    (COMPACTER, 2 * (2 * 64 + 40 + 68)),
];

fn train(w: &World, out: &str, method: Method, more: &[&str]) {
    let mut args = train_args(out, &[method, more, &["--rank="]].concat());
    args.retain(|a| !a.ends_with('='));
    w.run(args).ok();
}

fn results(w: &World, run: &str) -> [Vec<u8>; 3] {
    RESULTS.map(|file| w.read(format!("{run}/{file}")))
}

#[test]
fn a_run_repeats_from_its_settings_with_any_threads() {
    for (method, _) in METHODS {
        let w = World::new();
        train(&w, "a", method, &["--strategy=routine1"]);
        let config = w.text("a/config.toml").replace("\"a\"", "\"b\"");
        w.write("again.toml", config);
        w.run(["train", "--config=again.toml", "--threads=3"]).ok();
        assert!(results(&w, "a") == results(&w, "b"), "{method:?}");
    }
}

#[test]
fn killed_it_ends_with_the_same_bytes() {
    for (method, _) in METHODS {
        let w = World::new();
        let long = ["--epochs=60", "--eval-every=30", "--save-every=1"];
        train(&w, "undisturbed", method, &long);
        let mut args = train_args("run", &[method, &long, &["--rank="]].concat());
        args.retain(|a| !a.ends_with('='));
        let mut command = w.command(args);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = quiet.spawn().expect("started");
        let (begin, metrics) = (Instant::now(), w.path("run/metrics.jsonl"));
        while std::fs::read(&metrics).map_or(0, |t| t.len()) < 500 {
            assert!(begin.elapsed() < Duration::from_secs(120), "no step");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("waited");
        w.run(["train", "--resume=run"]).ok();
        let same = results(&w, "run") == results(&w, "undisturbed");
        assert!(same, "{method:?}");
    }
}

#[test]
fn an_adapter_file_is_enough_to_use_it() {
    for (method, _) in METHODS {
        let w = World::new();
        train(&w, "run", method, &["--lr=1e-2", "--freeze-layer-norms"]);
        let file = "run/adapter_last.safetensors";
        let adapter = AdapterFile::load(&w.path(file)).expect("an adapter");
        let options = EngineOptions {
            threads: Some(1),
            ..EngineOptions::default()
        };
        let engine = Engine::open(&w.path("model"), options).expect("a model");
        let texts = ["a red circle", "ein Kreis"];
        let encode = |adapter| engine.encode(&texts, adapter).expect("features");
        let (plain, adapted) = (encode(None), encode(Some(&adapter)));
        assert!(max_diff(&plain, &adapted) > 1e-3, "{method:?}");
        let data = ["--jsonl=world.jsonl", "--features=features.safetensors"];
        let eval = ["eval", "--model=model", "--lang=de", "--json", "--adapter"];
        let ran = w.run(eval.iter().chain([&file]).chain(&data)).ok().json();
        let summary: Value = serde_json::from_str(&w.text("run/summary.json")).expect("JSON");
        assert_eq!(
            ran["languages"][0]["i2t"], summary["last"]["test"]["i2t"],
            "{method:?}"
        );
        let inspected = w.run(["inspect", file, "--json"]).ok().json();
        assert_eq!(inspected["report"]["kind"], "adapter", "{method:?}");
    }
}

#[test]
fn plan_counts_what_is_trained() {
    let w = World::new();
    for (method, layer) in METHODS {
        let args = ["plan", "--model=model", "--json"];
        let plan = w.run(args.iter().chain(method)).ok().json();
        assert_eq!(plan["trainable_parameters"], 2 * (4 * 32 + layer));
    }
}

/// An option of the method that is wrong, and what is said.
#[test]
fn what_does_not_fit_is_named_before_anything_is_written() {
    let cases: [(Method, &str); 8] = [
        (
            &["--method=compacter"],
            "reduction: 32 channels over 16 make a bottleneck of 2; expected a multiple of phm-dim, 4",
        ),
        (
            &["--method=compacter", "--reduction=40"],
            "reduction: 32 channels over 40 make a bottleneck of 0; expected a multiple of phm-dim, 4",
        ),
        (
            &["--method=compacter", "--phm-dim=5"],
            "phm-dim: 5 does not divide the model's 32 channels; choose a divisor",
        ),
        (
            &["--method=compacter", "--phm-dim=0"],
            "phm-dim: found 0, expected at least 1",
        ),
        (
            &["--method=compacter", "--reduction=0"],
            "reduction: found 0, expected at least 1",
        ),
        (
            &["--method=adapter", "--reduction=8"],
            "reduction: goes with --method compacter alone",
        ),
        (
            &["--method=compacter", "--parallel"],
            "parallel: goes with --method adapter alone",
        ),
        (
            &["--method=lora", "--phm-dim=4"],
            "phm-dim: goes with --method compacter alone",
        ),
    ];
    let w = World::new();
    for (options, says) in cases {
        let before = w.snapshot();
        let mut train = train_args("run", &[options, &["--rank="]].concat());
        train.retain(|a| !a.ends_with('='));
        let plan = ["plan", "--model=model"].iter().chain(options);
        for ran in [w.run(train), w.run(plan)] {
            assert_eq!(ran.code, 2, "{options:?}: {}", ran.stderr);
            assert_eq!(ran.stderr, format!("error: {says}\n"));
        }
        assert!(w.snapshot() == before, "{options:?}");
    }
}

#[test]
fn an_adapter_of_another_width_is_refused() {
    let w = World::new();
    train(&w, "run", COMPACTER, &[]);
    let path = w.path("run/adapter_last.safetensors");
    let mut file = AdapterFile::load(&path).expect("an adapter");
    let c = file.config.compacter.as_mut().expect("a Compacter");
    c.reduction = 3;
    file.save(&path).expect("saved");
    let args = ["encode", "--model=model", "--texts=-", "--out=x"];
    let adapter = "--adapter=run/adapter_last.safetensors";
    let ran = w.run_with_stdin(args.iter().chain([&adapter]), b"a circle");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let says =
        "reduction: 32 channels over 3 make a bottleneck of 10; expected a multiple of phm-dim";
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
}

/// A parallel bottleneck reads what its sub-layer reads, others what it gives; both end before the
/// layer norm.
#[test]
fn a_bottleneck_reads_what_it_should() {
    for (adapter, kind, parallel) in [
        (Adapter::bottleneck(3), "adapter", false),
        (common::tiny::parallel(3), "parallel_adapter", true),
    ] {
        let graph = EncodeProgram::new(&common::tiny::config(), true, &adapter).graph;
        let named = |name: &str| graph.find(name).unwrap_or_else(|| panic!("no {name}"));
        let input = |name: &str| {
            let out = named(name);
            let node = graph.nodes.iter().find_map(|node| match node {
                Op::Linear(l) if l.out == out => Some(l.inp),
                _ => None,
            });
            node.expect("a linear layer")
        };
        for layer in ["encoder.layer.0", "encoder.layer.1"] {
            for (first, last) in [
                ("qkv", "attention.output.dense"),
                ("intermediate.dense", "output.dense"),
            ] {
                let own = format!("transformer.{layer}.{last}.{kind}");
                let last = format!("{layer}.{last}");
                let want = match parallel {
                    true => input(&format!("{layer}.{first}")),
                    false => named(&last),
                };
                assert_eq!(input(&format!("{own}.modulelist.down")), want, "{own}");
                let added = graph.nodes.iter().find_map(|node| match node {
                    Op::Add(add) if add.out == named(&own) => Some((add.a, add.b)),
                    _ => None,
                });
                let up = named(&format!("{own}.modulelist.up"));
                assert_eq!(added, Some((named(&last), up)), "{own}");
                let norm = last.replace("dense", "LayerNorm");
                let read = graph.nodes.iter().any(|node| match node {
                    Op::LayerNorm(norm_op) => {
                        norm_op.out == named(&norm) && norm_op.inp == named(&own)
                    }
                    _ => false,
                });
                assert!(read, "{own} goes into {norm}");
            }
        }
    }
}

/// No weight of the model can take it in, and PEFT has no such thing.
#[test]
fn it_is_neither_merged_nor_exported_to_peft() {
    let w = World::new();
    train(&w, "run", COMPACTER, &[]);
    let adapter = "--adapter=run/adapter_last.safetensors";
    for (args, says) in [
        (
            ["merge", "--model=model"],
            "adapter: has Compacters, which are layers of their own",
        ),
        (
            ["export", "--to=peft"],
            "adapter: has Compacters, which PEFT's LoRA format cannot hold",
        ),
    ] {
        let ran = w.run(args.iter().chain(&[adapter, "--out=out"]));
        assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
        assert!(!w.path("out").exists());
    }
}

/// OpenDelta's, by name: rules normal, factors uniform within Glorot's bound for ReLU, biases 0.
#[test]
fn a_compacter_begins_as_opendeltas() {
    let module = "transformer.encoder.layer.0.output.dense.compactor.down_sampler";
    let values = |which: &str, shape: &[usize]| {
        initial(&format!("{module}.{which}"), shape, 3).expect("a tensor of a Compacter")
    };
    let rule = values("phm_rule", &[4, 4, 4]);
    let std = (rule.iter().map(|x| x * x).sum::<f32>() / 64.0).sqrt();
    assert!((0.007..0.013).contains(&std), "{std}");
    let bound = 2f32.sqrt() * (6f32 / 257.0).sqrt();
    for (which, shape) in [("W_left", [4, 256, 1]), ("W_right", [4, 1, 256])] {
        let most = values(which, &shape)
            .iter()
            .fold(0f32, |m, x| m.max(x.abs()));
        assert!((0.98 * bound..=bound).contains(&most), "{most}");
    }
    assert_eq!(values("b", &[64]), [0.0; 64]);
    assert!(rule != initial(&format!("{module}.phm_rule"), &[4, 4, 4], 4).expect("a rule"));
}

#[test]
fn the_library_checks_the_width_too() {
    let tiny = common::tiny::config();
    let says = |adapter: Adapter| {
        adapter
            .check_model(&tiny)
            .expect_err("35 channels")
            .to_string()
    };
    assert!(says(Adapter::compacter(7)).contains("phm-dim: 4 does not divide the model's 35"));
    let compacter = Some(CompacterConfig {
        reduction: 16,
        phm_dim: 5,
    });
    let adapter = Adapter {
        compacter,
        ..Adapter::compacter(16)
    };
    assert!(says(adapter).contains("make a bottleneck of 2; expected a multiple of phm-dim, 5"));
}
