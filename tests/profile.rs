//! `--profile`: what it records, what it writes, and that it changes nothing; the model of time.

mod common;

use common::world::{Ran, World};
use crosstune::adapter::Adapter;
use crosstune::exec::LossWeights;
use crosstune::graph::Bucket;
use crosstune::graph::cost::{Cost, Work};
use crosstune::model::text::DropoutRates;
use crosstune::profile::card::{CARDS, Card, estimate};
use crosstune::profile::ceiling::Ceilings;
use crosstune::train::program::TrainProgram;
use crosstune::weights::published;
use serde_json::Value;

/// A run of a few steps with and without; the adapter must be the same.
fn train(world: &World, out: &str, more: &[&str]) -> Ran {
    let few = ["--epochs=1", "--eval-every=0"];
    world.train(out, &[&few[..], more].concat()).ok()
}

fn json(world: &World, path: &str) -> Value {
    serde_json::from_str(&world.text(path)).expect(path)
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v} is no number"))
}

/// The line of an op in a phase.
fn op<'a>(report: &'a Value, phase: &str, name: &str) -> &'a Value {
    let all = report["ops"].as_array().expect("ops");
    let found = all.iter().find(|l| l["phase"] == phase && l["op"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {phase}"))
}

/// What holds of every profile: shares add up, no time is counted twice, the trace is one.
fn check(world: &World, folder: &str) -> Value {
    let report = json(world, &format!("{folder}/profile.json"));
    let lines = |of: &str| report[of].as_array().expect("lines").clone();
    let sum = |lines: &[Value], of: &str| lines.iter().map(|l| number(&l[of])).sum::<f64>();
    let phases = lines("phases");
    assert!((sum(&phases, "share") - 1.0).abs() < 1e-9, "{phases:?}");
    assert!(sum(&phases, "seconds") <= number(&report["seconds"]));
    for phase in &phases {
        let of_phase: Vec<Value> = lines("ops")
            .into_iter()
            .filter(|l| l["phase"] == phase["phase"])
            .collect();
        if of_phase.is_empty() {
            continue;
        }
        for what in ["seconds", "bytes", "flops", "calls"] {
            let (whole, parts) = (number(&phase[what]), sum(&of_phase, what));
            assert!((whole - parts).abs() <= 1e-9 * whole, "{what} of {phase}");
        }
    }
    let ceilings = &report["ceilings"];
    assert!(ceilings.is_object(), "{}", report["notes"]);
    assert!(number(&ceilings["copy"]) > 0.0 && number(&ceilings["product"]) > 0.0);
    let trace = json(world, &format!("{folder}/trace.json"));
    let events = trace["traceEvents"].as_array().expect("events");
    let (mut nodes, mut node_us) = (0, 0.0);
    for event in events {
        match event["ph"].as_str() {
            Some("M") => assert!(event["args"]["name"].is_string()),
            Some("X") => {
                assert!(number(&event["ts"]) >= 0.0 && event["name"].is_string());
                if event["args"]["node"].is_u64() {
                    nodes += 1;
                    node_us += number(&event["dur"]);
                }
            }
            other => panic!("an event of kind {other:?}"),
        }
    }
    let ops = lines("ops");
    assert_eq!(nodes as f64, sum(&ops, "calls"));
    assert!((node_us / 1e6 - sum(&ops, "seconds")).abs() < 1e-6 * node_us);
    report
}

#[test]
fn a_profiled_run_trains_the_same_adapter() {
    let world = World::new();
    train(&world, "plain", &[]);
    let ran = train(&world, "profiled", &["--profile"]);
    let adapter = |out: &str| world.read(format!("{out}/adapter_last.safetensors"));
    assert!(adapter("plain") == adapter("profiled"));
    assert!(!world.path("plain/profile").exists());
    let report = check(&world, "profiled/profile");
    assert_eq!(report["device"], "CPU");
    assert_eq!(report["virtual_machine"], false);
    let steps = number(&json(&world, "profiled/summary.json")["steps"]);
    for (phase, name) in [
        ("forward", "Embedding"),
        ("backward", "MseGrad"),
        ("optimiser", "AdamStep"),
    ] {
        assert_eq!(number(&op(&report, phase, name)["calls"]), steps, "{name}");
    }
    let names = report["phases"].as_array().expect("phases").iter();
    let names: Vec<&str> = names.filter_map(|l| l["phase"].as_str()).collect();
    let all = [
        "tokenise",
        "batches",
        "step",
        "forward",
        "backward",
        "optimiser",
        "encode",
        "evaluate",
        "save",
    ];
    assert_eq!(names, all);
    let linear = op(&report, "forward", "Linear");
    assert!(number(&linear["flops"]) > 0.0 && number(&linear["of_ceiling"]) > 0.0);
    let text = world.text("profiled/profile/profile.txt");
    assert!(ran.stdout.contains(&text), "{}\n{text}", ran.stdout);
    assert!(text.contains("GFLOP/s") && text.contains("ceilings, measured in this run"));
}

#[test]
fn encoding_is_profiled_into_a_folder() {
    let world = World::new();
    let texts = "ein Hund\neine Katze\nzwei Vögel auf einem Dach\n";
    world.write("texts.txt", texts);
    let encode = |out: &str, more: &[&str]| {
        let out = format!("--out={out}");
        let args = ["encode", "--model=model", "--texts=texts.txt", &out];
        world.run(args.iter().chain(more))
    };
    encode("plain.safetensors", &[]).ok();
    encode("profiled.safetensors", &["--profile=where"]).ok();
    assert!(world.read("plain.safetensors") == world.read("profiled.safetensors"));
    let report = check(&world, "where");
    assert!(number(&op(&report, "encode", "Linear")["calls"]) > 0.0);
    // Nothing is written over.
    let again = encode("again.safetensors", &["--profile=where"]);
    assert_eq!(again.code, 2);
    assert!(
        again.stderr.contains("where: already exists"),
        "{}",
        again.stderr
    );
    assert!(!world.path("again.safetensors").exists());
}

#[cfg(feature = "cuda")]
#[test]
fn a_virtual_machines_times_are_called_so() {
    let world = World::new();
    let few = ["--device=vm", "--shots=8", "--batch=8"];
    train(&world, "plain", &few);
    train(&world, "profiled", &[&few[..], &["--profile"]].concat());
    // Captured and replayed, or launched one by one between marks.
    let adapter = |out: &str| world.read(format!("{out}/adapter_last.safetensors"));
    assert!(adapter("plain") == adapter("profiled"));
    let report = check(&world, "profiled/profile");
    assert_eq!(report["virtual_machine"], true);
    let notes = report["notes"].to_string();
    assert!(notes.contains("times are the virtual machine's"), "{notes}");
    assert!(number(&op(&report, "forward", "Linear")["launches"]) > 0.0);
    assert!(op(&report, "forward", "Linear")["predicted_seconds"].is_null());
}

fn work(tokens: usize) -> Work {
    Work {
        bucket: Bucket {
            tokens,
            seqs: tokens / 20,
            items: tokens / 40,
            members: 1,
        },
        weights: LossWeights {
            image_anchor: 1.0,
            mse: 1.0,
            ..LossWeights::default()
        },
    }
}

#[test]
fn the_model_of_time_by_hand() {
    let card = Card {
        memory: 1e12,
        memory_share: 0.5,
        tensor: 1e14,
        tensor_share: 0.25,
        launch: 1e-6,
        ..CARDS[0]
    };
    let cost = |bytes: f64, flops: f64| Cost {
        read: 0.75 * bytes,
        written: 0.25 * bytes,
        flops,
    };
    let near = |found: f64, want: f64| assert!((found / want - 1.0).abs() < 1e-12, "{found}");
    // 1 MB at 0.5 TB/s are 2 us; 1 GFLOP at 25 TFLOP/s is 40 us; the longer counts, and launches.
    near(card.seconds(&cost(1e6, 0.0), 1), 3e-6);
    near(card.seconds(&cost(1e6, 1e9), 2), 42e-6);
    near(card.seconds(&cost(1e9, 1e9), 0), 2e-3);
    let ceilings = Ceilings {
        copy: 10e9,
        copy_bytes: 1,
        product: 100e9,
        product_side: 1,
    };
    near(ceilings.seconds(20e9, 100e9), 2.0);
    near(ceilings.seconds(20e9, 300e9), 3.0);
    assert_eq!(
        Card::find("NVIDIA H100 80GB HBM3 (cuda:0)"),
        Some(&CARDS[0])
    );
    assert_eq!(
        Card::find("NVIDIA A100-SXM4-80GB (cuda:0)"),
        Some(&CARDS[1])
    );
    assert_eq!(Card::find("NVIDIA L4 (cuda:1)"), Some(&CARDS[2]));
    for other in [
        "NVIDIA L40S (cuda:0)",
        "NVIDIA H100 PCIe (cuda:0)",
        "NVIDIA A100-SXM4-40GB (cuda:0)",
        "PTX virtual machine",
        "CPU",
    ] {
        assert_eq!(Card::find(other), None, "{other}");
    }
}

/// The whole is the sum of its parts, more tokens take longer, and no card beats its data sheet.
#[test]
fn the_model_of_a_step() {
    let config = published::find(published::PAPERS).expect("the paper's model");
    let program = TrainProgram::new(&config, true, &Adapter::lora(8), DropoutRates::NONE);
    let graph = &*program.graph;
    let total = |tokens: usize| -> [f64; 3] {
        let rows = estimate(graph, &work(tokens));
        let nodes: usize = rows.iter().map(|r| r.nodes).sum();
        assert_eq!(nodes, graph.nodes.len());
        std::array::from_fn(|c| rows.iter().map(|r| r.seconds[c]).sum())
    };
    let sizes = [200, 1056, 4224];
    let times = sizes.map(total);
    for pair in times.windows(2) {
        assert!(
            pair[0].iter().zip(&pair[1]).all(|(a, b)| a < b),
            "{times:?}"
        );
    }
    for (c, card) in CARDS.iter().enumerate() {
        let flops: f64 = graph
            .nodes
            .iter()
            .map(|n| n.flops(graph, &work(4224).bucket))
            .sum();
        let floor = flops / (card.tensor * card.tensor_share);
        assert!(times[2][c] > floor, "{}", card.name);
        assert!(times[2][c] < 2.0 * floor, "{}: {}", card.name, times[2][c]);
    }
    // Bound by weights and launches, 200 tokens take more than their share.
    assert!(
        times[0][0] > 1.5 * times[2][0] * 200.0 / 4224.0,
        "{times:?}"
    );
}

#[test]
fn plan_prints_the_model_of_time() {
    let world = World::new();
    let plan = [
        "plan",
        "--arch=xlm-roberta-large-vit-l-14",
        "--tokens=4224",
        "--texts=211",
    ];
    let with = |more: &[&'static str]| world.run(plan.iter().chain(more));
    let ran = with(&["--time"]).ok();
    let lines = ["the whole step", "tokens a second", "H100 SXM", "InputGrad"];
    for line in lines {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
    let json = with(&["--time", "--json"]).ok().json();
    let time = &json["time"];
    for (c, card) in time["cards"].as_array().expect("cards").iter().enumerate() {
        let ops = time["ops"].as_array().expect("ops").iter();
        let sum: f64 = ops.map(|r| number(&r["seconds"][c])).sum();
        assert!((sum / number(&card["step_seconds"]) - 1.0).abs() < 1e-9);
        assert!(
            card["sources"]
                .as_str()
                .expect("text")
                .contains("data sheet")
        );
    }
    assert!(with(&["--json"]).ok().json()["time"].is_null());
    assert_eq!(with(&["--time", "--max-tokens=512"]).code, 2);
}
