//! Runs that are killed, interrupted or run out of disk: whatever happened, the run that goes on
//! ends with the bytes of one that nobody disturbed.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::world::{World, train_args};
use crosstune::ops::philox::Stream;

/// Long enough to be killed in, with a checkpoint after every step.
const LONG: [&str; 5] = [
    "--strategy=routine1",
    "--epochs=60",
    "--eval-every=30",
    "--save-every=1",
    "--quiet",
];
const STEPS: usize = 240;
/// What must not differ.
const RESULTS: [&str; 3] = [
    "adapter_last.safetensors",
    "adapter_best.safetensors",
    "metrics.jsonl",
];

fn results(w: &World, run: &str) -> [Vec<u8>; 3] {
    RESULTS.map(|file| w.read(Path::new(run).join(file)))
}

#[track_caller]
fn assert_same(w: &World, run: &str, want: &[Vec<u8>; 3]) {
    for ((file, got), want) in RESULTS.iter().zip(&results(w, run)).zip(want) {
        assert!(
            got == want,
            "{run}/{file} differs from the undisturbed run's"
        );
    }
    let left = w.snapshot();
    let temporary = left.keys().find(|p| p.to_string_lossy().ends_with(".tmp"));
    assert_eq!(temporary, None);
}

fn undisturbed(w: &World, more: &[&str]) -> [Vec<u8>; 3] {
    w.train("undisturbed", more).ok();
    results(w, "undisturbed")
}

fn start(mut command: Command) -> Child {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    quiet.stderr(Stdio::piped()).spawn().expect("started")
}

fn lines(w: &World, run: &str) -> usize {
    let text = std::fs::read(w.path(run).join("metrics.jsonl")).unwrap_or_default();
    text.iter().filter(|b| **b == b'\n').count()
}

/// Waits until the run has written so many lines of metrics; false if it ended before.
fn wait_for_lines(w: &World, run: &str, child: &mut Child, wanted: usize) -> bool {
    let begin = Instant::now();
    while lines(w, run) < wanted {
        if child.try_wait().expect("waited").is_some() {
            return false;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "no step in two minutes"
        );
        std::thread::sleep(Duration::from_micros(500));
    }
    true
}

fn stderr_of(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("waited");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into(),
    )
}

#[test]
fn killed_anywhere_it_ends_with_the_same_bytes() {
    let w = World::new();
    let want = undisturbed(&w, &LONG);
    let random = Stream::named(5, "kills").uniform(40, 1.0);
    let random: Vec<f32> = random.iter().map(|x| (x + 1.0) / 2.0).collect();
    let mut kills = 0;
    for (i, moments) in random.chunks(2).take(14).enumerate() {
        // A kill before config.toml is there leaves nothing to go on with.
        let command = match w.path("run/config.toml").exists() {
            true => w.command(["train", "--resume=run", "--quiet"]),
            false => w.command(train_args("run", &LONG)),
        };
        let mut child = start(command);
        // The first ones are killed while they start.
        let more = if i < 3 {
            0
        } else {
            1 + (moments[0] * 25.0) as usize
        };
        let target = (lines(&w, "run") + more).min(STEPS - 5);
        wait_for_lines(&w, "run", &mut child, target);
        std::thread::sleep(Duration::from_micros((moments[1] * 9000.0) as u64));
        kills += usize::from(child.try_wait().expect("waited").is_none());
        child.kill().expect("killed");
        child.wait().expect("waited");
    }
    assert!(kills >= 5, "{kills} kills came in time");
    w.run(["train", "--resume=run", "--threads=2"]).ok();
    assert_same(&w, "run", &want);
}

#[test]
fn killed_before_its_first_checkpoint_it_begins_again() {
    let w = World::new();
    let more = ["--save-every=1000", "--epochs=40", "--eval-every=7"];
    let want = undisturbed(&w, &more);
    let mut child = start(w.command(train_args("run", &more)));
    assert!(wait_for_lines(&w, "run", &mut child, 5));
    child.kill().expect("killed");
    child.wait().expect("waited");
    assert!(!w.path("run/checkpoint.safetensors").exists());
    // A torn last line, as a full disk or a lost page leaves it.
    w.write(
        "run/metrics.jsonl",
        w.text("run/metrics.jsonl") + "{\"step\":6,\"lo",
    );
    w.run(["train", "--resume=run"]).ok();
    assert_same(&w, "run", &want);
}

#[test]
fn interrupted_it_says_how_to_go_on() {
    let w = World::new();
    let want = undisturbed(&w, &LONG);
    for signal in ["INT", "TERM"] {
        let mut more = LONG.to_vec();
        more[3] = "--save-every=1000";
        let run = format!("run_{signal}");
        let mut child = start(w.command(train_args(&run, &more)));
        assert!(wait_for_lines(&w, &run, &mut child, 20));
        let kill = Command::new("kill")
            .args([format!("-{signal}"), child.id().to_string()])
            .status();
        assert!(kill.expect("kill").success());
        let (code, said) = stderr_of(child);
        assert_eq!(code, Some(130), "{said}");
        let advice = format!("of {STEPS}; go on with: crosstune train --resume {run}\n");
        assert!(
            said.contains("stopped after step ") && said.ends_with(&advice),
            "{said}"
        );
        assert!(!said.contains("error"), "{said}");
        w.run(["train", &format!("--resume={run}")]).ok();
        assert_same(&w, &run, &want);
    }
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let w = World::new();
    w.train("run", &[]).ok();
    let before = w.snapshot();
    let ran = w.run(["train", "--resume=run"]).ok();
    assert!(
        ran.stdout
            .contains("run: this run is finished, all 8 steps of it"),
        "{}",
        ran.stdout
    );
    assert!(w.snapshot() == before);
    // Killed between its last step and its summary, it only lacks what comes last.
    let want = results(&w, "run");
    for file in ["summary.json", "adapter_best.safetensors"] {
        std::fs::remove_file(w.path("run").join(file)).expect("removed");
    }
    w.run(["train", "--resume=run"]).ok();
    assert_same(&w, "run", &want);
    assert!(w.path("run/summary.json").exists());
}

/// Stops a run by kill -9 after its first checkpoint.
fn half_a_run(w: &World, more: &[&str]) {
    let mut child = start(w.command(train_args("run", more)));
    assert!(wait_for_lines(w, "run", &mut child, 10));
    child.kill().expect("killed");
    child.wait().expect("waited");
}

#[test]
fn it_goes_on_with_its_own_model_and_data_only() {
    let w = World::new();
    let want = undisturbed(&w, &LONG);
    half_a_run(&w, &LONG);
    let refused = |name: &str| {
        let before = w.snapshot();
        let ran = w.run(["train", "--resume=run"]);
        assert_eq!(ran.code, 2, "{name}: {}", ran.stderr);
        let says = "run/checkpoint.safetensors: belongs to a run with another model, other settings \
                    or other data";
        assert!(ran.stderr.contains(says), "{name}: {}", ran.stderr);
        let mut after = w.snapshot();
        after.retain(|p, _| before.contains_key(p));
        let torn = |p: &std::path::PathBuf| p.to_string_lossy().ends_with(".tmp");
        assert!(
            before
                .iter()
                .all(|(p, b)| torn(p) || after.get(p) == Some(b)),
            "{name}"
        );
    };
    let (captions, features) = (w.text("world.jsonl"), w.read("features.safetensors"));
    let weights = w.read("model/model.safetensors");
    for (name, line) in [
        ("training captions", None),
        ("validation captions", Some(45)),
    ] {
        let edit = |l: &str| l.replace("\"de\":\"", "\"de\":\"ein ");
        let range = line.map_or(1..=40, |l| l..=l);
        range.for_each(|l| w.edit_line("world.jsonl", l, edit));
        refused(name);
        w.write("world.jsonl", &captions);
    }
    w.edit_features(|f| f.values.iter_mut().for_each(|x| *x += 1e-3));
    refused("image features");
    w.write("features.safetensors", features);
    w.spoil_weight("LinearTransformation.weight", 2, 0.123);
    refused("weights");
    w.write("model/model.safetensors", weights);
    let config = w.text("run/config.toml");
    w.write("run/config.toml", config.replace("seed = 3", "seed = 4"));
    refused("settings");
    w.write("run/config.toml", config);
    w.run(["train", "--resume=run"]).ok();
    assert_same(&w, "run", &want);
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let w = World::new();
    half_a_run(&w, &LONG);
    let bytes = w.read("run/checkpoint.safetensors");
    w.write("run/checkpoint.safetensors", &bytes[..bytes.len() / 2]);
    let ran = w.run(["train", "--resume=run"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr
            .contains("run/checkpoint.safetensors: is truncated"),
        "{}",
        ran.stderr
    );
    w.write("run/checkpoint.safetensors", w.read("features.safetensors"));
    let ran = w.run(["train", "--resume=run"]);
    assert!(
        ran.stderr
            .contains("run/checkpoint.safetensors: is not a checkpoint of a run")
    );
}

#[test]
fn two_processes_do_not_share_a_run() {
    let w = World::new();
    let more: Vec<&str> = LONG
        .iter()
        .map(|a| {
            if a.starts_with("--epochs") {
                "--epochs=100000"
            } else {
                a
            }
        })
        .collect();
    let mut child = start(w.command(train_args("run", &more)));
    assert!(wait_for_lines(&w, "run", &mut child, 3));
    let ran = w.run(["train", "--resume=run"]);
    child.kill().expect("killed");
    child.wait().expect("waited");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("run: another process is running in it"),
        "{}",
        ran.stderr
    );
}

/// A limit on the size of a file stands in for a full disk: writing beyond it fails.
#[cfg(unix)]
#[test]
fn a_full_disk_costs_no_checkpoint() {
    let w = World::new();
    let more = [&LONG[..], &["--rank=32"]].concat();
    let want = undisturbed(&w, &more);
    half_a_run(&w, &more);
    let checkpoint = w.read("run/checkpoint.safetensors");
    let metrics = w.read("run/metrics.jsonl").len();
    let limited = |bytes: usize| {
        // In blocks of 512 bytes (dash) or of 1024 (bash).
        let script = "trap '' XFSZ; ulimit -f $0; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args([
            "-c",
            script,
            &(bytes / 1024).to_string(),
            env!("CARGO_BIN_EXE_crosstune"),
        ]);
        command
            .args(["train", "--resume=run", "--quiet"])
            .current_dir(w.path(""));
        stderr_of(start(command))
    };
    // Room for the metrics, not for a checkpoint.
    assert!(
        checkpoint.len() / 4 > metrics + 1024,
        "{} {metrics}",
        checkpoint.len()
    );
    let (code, said) = limited(checkpoint.len() / 2);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("run/checkpoint.safetensors: cannot be written: File too large"),
        "{said}"
    );
    assert!(w.read("run/checkpoint.safetensors") == checkpoint);
    // Not even room for the metrics.
    let (code, said) = limited(1024);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("run/metrics.jsonl: cannot be written: File too large"),
        "{said}"
    );
    assert!(w.read("run/checkpoint.safetensors") == checkpoint);
    w.run(["train", "--resume=run"]).ok();
    assert_same(&w, "run", &want);
}
