//! `--device` from the command line, in the virtual machine: runs and sweeps that are stopped and go
//! on, there or elsewhere, encoding and evaluation.
#![cfg(feature = "cuda")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::sweep::{assert_same, results};
use common::world::{Ran, World, train_args};
use crosstune::data::features::Features;
use crosstune::device::DeviceChoice;
use crosstune::weights::checkpoint::Checkpoint;
use serde_json::Value;

/// How far features in f16 may be off those in f32, over their largest; measured 7.3e-4.
const HALF: f32 = 3e-3;

/// Twelve steps, a checkpoint after each.
const RUN: [&str; 6] = [
    "--strategy=routine1",
    "--epochs=3",
    "--eval-every=6",
    "--save-every=1",
    "--quiet",
    "--device=vm",
];
const STEPS: usize = 12;
const RESULTS: [&str; 4] = [
    "adapter_last.safetensors",
    "adapter_best.safetensors",
    "metrics.jsonl",
    "checkpoint.safetensors",
];

/// Two groups of two members of four steps.
const SWEEP: &str = "model = 'model'\njsonl = 'world.jsonl'\nfeatures = 'features.safetensors'\n\
    lang = 'de'\nstrategy = ['baseline1', 'routine1']\nlr = [1e-3, 3e-3]\nshots = 10\nbatch = 5\n\
    epochs = 2\neval-every = 4\nrank = 2\nthreads = 1\nmax-members = 2\nsave-every = 1\n";

fn start(mut command: Command) -> Child {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    quiet.stderr(Stdio::piped()).spawn().expect("started")
}

/// Waits until it is so.
#[track_caller]
fn wait_until(what: &str, so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a process that is still at work.
#[track_caller]
fn kill(mut child: Child) {
    let ended = child.try_wait().expect("waited");
    assert!(ended.is_none(), "it ended before it was killed");
    child.kill().expect("killed");
    child.wait().expect("waited");
}

/// Kills a run after so many lines of metrics.
fn kill_after(w: &World, command: Command, lines: usize) {
    let child = start(command);
    wait_until("step", || {
        let text = std::fs::read_to_string(w.path("run/metrics.jsonl")).unwrap_or_default();
        text.lines().count() >= lines && w.path("run/checkpoint.safetensors").exists()
    });
    kill(child);
}

/// Runs the program with these options alone.
fn bare(w: &World, args: &[&str]) -> Ran {
    Ran::of(&mut assert_cmd::Command::from_std(w.bare_command(args)))
}

#[test]
fn a_run_that_is_killed_goes_on_where_it_was() {
    let w = World::new();
    w.train("undisturbed", &RUN).ok();
    let want = RESULTS.map(|file| w.read(format!("undisturbed/{file}")));
    kill_after(&w, w.command(train_args("run", &RUN)), 2);
    let resume = ["train", "--resume=run", "--quiet"];
    kill_after(&w, w.bare_command(resume), 6);
    bare(&w, &resume).ok();
    for (file, want) in RESULTS.iter().zip(&want) {
        assert!(w.read(format!("run/{file}")) == *want, "{file} differs");
    }
    let summary: Value = serde_json::from_str(&w.text("run/summary.json")).expect("JSON");
    assert_eq!(summary["device"], "PTX virtual machine");
}

/// Of the first member.
fn first_scale(w: &World) -> Value {
    let file = Checkpoint::open(&w.path("run/checkpoint.safetensors")).expect("a checkpoint");
    let progress = file.metadata().get("progress").expect("progress");
    let progress: Value = serde_json::from_str(progress).expect("JSON");
    progress["members"][0]["first_scale"].clone()
}

#[test]
fn a_run_may_go_on_elsewhere_with_a_loss_scale_of_its_own() {
    let w = World::new();
    kill_after(&w, w.command(train_args("run", &RUN)), 2);
    assert_eq!(first_scale(&w), 1024.0);
    let resume = ["train", "--resume=run", "--device=cpu", "--json"];
    let summary = bare(&w, &resume).ok().json();
    assert_eq!(
        (&summary["device"], &summary["steps"]),
        (&"CPU".into(), &STEPS.into())
    );
    assert_eq!(first_scale(&w), 1.0);
}

/// The loss scale is lowered in five of the eight steps, and nothing is left to try in the last three.
#[test]
fn every_skip_in_a_row_is_counted() {
    let w = World::new();
    // The unknown token, which no text but those of the training items holds.
    let words = "transformer.embeddings.word_embeddings.weight";
    w.spoil_weight(words, 3 * 32 + 1, f32::NAN);
    (1..=40).for_each(|line| {
        w.edit_line("world.jsonl", line, |l| {
            l.replace("\"de\":\"", "\"de\":\"ж ")
        });
    });
    let ran = w.train("run", &["--device=vm", "--eval-every=0"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let says = "is not finite for 8 steps in a row, since step 1";
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
    let names = "word_embeddings.weight holds NaN at element 97";
    assert!(ran.stderr.contains(names), "{}", ran.stderr);
}

fn encode(w: &World, device: &str) -> Vec<u8> {
    let (out, device) = (
        format!("--out={device}.features"),
        format!("--device={device}"),
    );
    let args = [
        "encode",
        "--model=model",
        "--texts=xtd10/XTD10/test_1kcaptions_de.txt",
    ];
    w.run(args.iter().copied().chain([&*out, &*device])).ok();
    w.read(&out["--out=".len()..])
}

#[test]
fn encoding_is_the_same_however_memory_is_laid_out() {
    let w = World::new();
    let [cpu, packed, spread] = ["cpu", "vm", "vm:spread"].map(|device| encode(&w, device));
    assert!(packed == spread, "packed and spread differ");
    assert!(packed != cpu, "the CPU's features: did the kernels run?");
    let load = |name: &str| Features::load(&w.path(name)).expect("features").values;
    let (got, want) = (load("vm.features"), load("cpu.features"));
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = common::max_diff(&got, &want) / largest;
    println!("features off the CPU's by {worst:.1e} of the largest");
    assert!(worst <= HALF, "{worst:.1e}");
}

#[test]
fn an_evaluation_finds_what_the_cpus_finds() {
    let w = World::new();
    let recall = |device: &str| {
        let device = format!("--device={device}");
        let data = [
            "--model=model",
            "--jsonl=world.jsonl",
            "--features=features.safetensors",
        ];
        let args = [
            "eval",
            "--lang=de,ko",
            "--split=train",
            "--shots=20",
            "--json",
            &device,
        ];
        let json = w.run(args.iter().chain(&data)).ok().json();
        let list = json["languages"].as_array().expect("a list").clone();
        let of = |l: &Value, side: &str| {
            let items = (0..3).map(|k| l[side][k].as_f64().expect("recall") * 20.0);
            items.collect::<Vec<_>>()
        };
        let all = list
            .iter()
            .flat_map(|l| [of(l, "i2t"), of(l, "t2i")].concat());
        all.collect::<Vec<f64>>()
    };
    let (cpu, vm) = (recall("cpu"), recall("vm"));
    println!("items found of 20: CPU {cpu:?}, VM {vm:?}");
    assert_eq!((cpu.len(), vm.len()), (12, 12));
    assert!(
        cpu.iter().zip(&vm).all(|(a, b)| (a - b).abs() <= 2.0),
        "CPU {cpu:?}, VM {vm:?}"
    );
    assert!(vm.iter().any(|n| *n > 0.0));
}

/// The device that each finished member names.
fn devices(w: &World, out: &str) -> Vec<String> {
    let text = w.text(format!("{out}/results.jsonl"));
    let device = |line: &str| {
        let member: Value = serde_json::from_str(line).expect("JSON");
        member["device"].as_str().expect("a device").to_string()
    };
    text.lines().map(device).collect()
}

#[test]
fn a_sweep_that_is_stopped_goes_on_where_it_was() {
    let w = common::sweep::world(SWEEP);
    let sweep = |out: &str| w.command(["sweep", "sweep.toml", "--device=vm", "--quiet", out]);
    Ran::of(&mut assert_cmd::Command::from_std(sweep(
        "--out=undisturbed",
    )))
    .ok();
    let want = results(&w, "undisturbed");
    assert_eq!(devices(&w, "undisturbed"), ["vm"; 4]);
    // In its first group, by a signal that it may answer; in its second, by one that it may not.
    let child = start(sweep("--out=run"));
    wait_until("checkpoint", || {
        w.path("run/checkpoint.safetensors").exists()
    });
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.expect("kill").success());
    let said = child.wait_with_output().expect("waited");
    assert_eq!(
        said.status.code(),
        Some(130),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    let child = start(w.bare_command(["sweep", "run/config.toml", "--quiet"]));
    wait_until("second group", || {
        ["results.jsonl", "checkpoint.safetensors"]
            .iter()
            .all(|file| w.path("run").join(file).exists())
    });
    kill(child);
    bare(&w, &["sweep", "sweep.toml", "--out=run", "--quiet"]).ok();
    assert_same(&w, "run", &want);
    let undisturbed = w.text("undisturbed/config.toml");
    assert_eq!(
        w.text("run/config.toml"),
        undisturbed.replace("undisturbed", "run")
    );
}

#[test]
fn a_sweep_may_go_on_elsewhere_and_says_where_each_member_ended() {
    let w = common::sweep::world(SWEEP);
    let args = ["sweep", "sweep.toml", "--out=run", "--device=vm", "--quiet"];
    let child = start(w.command(args));
    wait_until("first group", || w.path("run/results.jsonl").exists());
    kill(child);
    bare(&w, &["sweep", "run/config.toml", "--device=cpu", "--quiet"]).ok();
    assert_eq!(devices(&w, "run"), ["vm", "vm", "cpu", "cpu"]);
}

#[test]
fn what_auto_took_is_written_down() {
    let w = common::sweep::world(&SWEEP.replace("epochs = 2", "epochs = 1"));
    bare(&w, &["sweep", "sweep.toml", "--out=swept", "--quiet"]).ok();
    let train = train_args("trained", &["--quiet", "--epochs=1"]);
    let train: Vec<&str> = train.iter().map(String::as_str).collect();
    bare(&w, &train).ok();
    for out in ["swept", "trained"] {
        let config: toml::Table = w.text(format!("{out}/config.toml")).parse().expect("TOML");
        let device = config["device"].as_str().expect("a device");
        let taken: DeviceChoice = device.parse().expect("a device");
        assert!(
            matches!(taken, DeviceChoice::Cpu | DeviceChoice::Cuda(_)),
            "{device}"
        );
        if out == "swept" {
            assert_eq!(devices(&w, out), [device; 4]);
        }
    }
    // A device that is not here is asked for by no one but the user.
    let config = w.text("swept/config.toml");
    let elsewhere = config.lines().map(|l| match l.starts_with("device") {
        true => "device = \"cuda:4096\"",
        false => l,
    });
    let elsewhere = elsewhere.collect::<Vec<_>>().join("\n");
    w.write("swept/config.toml", elsewhere);
    std::fs::remove_file(w.path("swept/summary.json")).expect("removed");
    let refused = bare(&w, &["sweep", "sweep.toml", "--out=swept"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("cuda:4096: "), "{}", refused.stderr);
    bare(&w, &["sweep", "sweep.toml", "--out=swept", "--device=cpu"]).ok();
}
