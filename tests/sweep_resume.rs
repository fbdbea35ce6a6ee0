//! Sweeps that are killed, interrupted, repacked or run out of disk end with the bytes of one that
//! nobody disturbed.

mod common;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::sweep::{assert_same, results};
use common::world::World;
use crosstune::ops::philox::Stream;

/// Two lengths of run in groups of four: 2 x (1 + 2) x 2 members, long enough to be killed in.
const FILE: &str = "model = 'model'\njsonl = 'world.jsonl'\nfeatures = 'features.safetensors'\n\
    lang = ['de', 'ko']\nstrategy = ['baseline1', 'routine1']\nlr = 3e-3\nratio = [0.1, 1.0]\n\
    shots = 20\nbatch = 5\nepochs = [6, 12]\neval-every = 5\nrank = 2\nthreads = 1\n\
    max-members = 4\nsave-every = 1\n";
const MEMBERS: usize = 12;

fn world() -> (World, BTreeMap<String, Vec<u8>>) {
    let w = common::sweep::world(FILE);
    w.run(["sweep", "sweep.toml", "--out=undisturbed"]).ok();
    let want = results(&w, "undisturbed");
    assert_eq!(want.len(), 3 * MEMBERS + 3);
    (w, want)
}

fn start(w: &World, more: &[&str]) -> Child {
    let mut command = w.command(["sweep", "sweep.toml", "--out=run"].iter().chain(more));
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    quiet.stderr(Stdio::piped()).spawn().expect("started")
}

fn finished(w: &World) -> usize {
    let members = w.snapshot().into_keys();
    members
        .filter(|p| p.starts_with("run") && p.ends_with("result.json"))
        .count()
}

/// Waits until a file of the run is there; false if the process ended before.
fn wait_for(w: &World, file: &str, child: &mut Child) -> bool {
    let begin = Instant::now();
    while !w.path("run").join(file).exists() {
        if child.try_wait().expect("waited").is_some() {
            return false;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "{file} did not come"
        );
        std::thread::sleep(Duration::from_micros(300));
    }
    true
}

fn kill(mut child: Child) -> bool {
    let alive = child.try_wait().expect("waited").is_none();
    child.kill().expect("killed");
    child.wait().expect("waited");
    alive
}

#[test]
fn killed_anywhere_it_ends_with_the_same_bytes() {
    let (w, want) = world();
    let random = Stream::named(9, "kills").uniform(30, 1.0);
    let (mut kills, mut before) = (0, 0);
    for x in random {
        let mut child = start(&w, &["--quiet"]);
        wait_for(&w, "running.json", &mut child);
        std::thread::sleep(Duration::from_micros(((x + 1.0) * 60_000.0) as u64));
        kills += usize::from(kill(child));
        let now = finished(&w);
        assert!(now >= before, "a finished member is not lost");
        before = now;
    }
    assert!(kills >= 5, "{kills} kills came in time");
    w.run(["sweep", "run/config.toml", "--threads=2"]).ok();
    assert_same(&w, "run", &want);
}

#[test]
fn a_finished_member_is_not_run_again() {
    let (w, want) = world();
    let copy = |name: &str| {
        let from = w.path("undisturbed").join(name);
        std::fs::create_dir_all(w.path("run").join(name)).expect("made");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let path = entry.expect("an entry").path();
            let to = w
                .path("run")
                .join(name)
                .join(path.file_name().expect("a name"));
            std::fs::copy(path, to).expect("copied");
        }
    };
    w.write("ignored", "");
    std::fs::create_dir(w.path("run")).expect("made");
    let config = w.text("undisturbed/config.toml");
    w.write("run/config.toml", config.replace("undisturbed", "run"));
    let name = "de-baseline1-epochs12-lr0.003-seed1";
    copy(name);
    // It would be written anew, were it run again.
    w.write(format!("run/{name}/adapter_last.safetensors"), "kept");
    let dry = w
        .run(["sweep", "run/config.toml", "--dry-run", "--json"])
        .ok()
        .json();
    assert_eq!((&dry["members"], &dry["left"]), (&12.into(), &11.into()));
    w.run(["sweep", "run/config.toml"]).ok();
    assert_eq!(
        w.text(format!("run/{name}/adapter_last.safetensors")),
        "kept"
    );
    copy(name);
    assert_same(&w, "run", &want);
}

#[test]
fn what_is_left_may_be_packed_anew() {
    let (w, want) = world();
    let mut child = start(&w, &["--quiet"]);
    assert!(wait_for(&w, "checkpoint.safetensors", &mut child));
    assert!(kill(child));
    // The group that was trained has four members; two are allowed now, and it begins again, once its
    // checkpoint is given up.
    let dry = ["sweep", "sweep.toml", "--out=run", "--dry-run", "--json"];
    let groups = |more: &[&str]| {
        let json = w.run(dry.iter().chain(more)).ok().json();
        json["groups"].as_array().map(Vec::len)
    };
    assert_eq!(groups(&[]), Some(3));
    let fewer = ["sweep", "sweep.toml", "--out=run", "--max-members=2"];
    let less = ["sweep", "sweep.toml", "--out=run", "--memory=1e-6"];
    let file = w.path("run/checkpoint.safetensors");
    for (args, why) in [
        (fewer, "--max-members allows 2; allow as many, or"),
        (
            less,
            "0.000 GiB are allowed (--memory); give a larger --memory, or",
        ),
    ] {
        let ran = w.run(args);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        let says = [
            "run/checkpoint.safetensors: its group ",
            why,
            " remove the file, and",
        ];
        assert!(
            says.iter().all(|s| ran.stderr.contains(s)),
            "{}",
            ran.stderr
        );
        assert!(file.exists());
    }
    let named = w.path("run/running.json");
    let names = std::fs::read(&named).expect("names");
    std::fs::remove_file(&named).expect("removed");
    let lost = w.run(["sweep", "sweep.toml", "--out=run"]);
    assert_eq!(lost.code, 2, "{}", lost.stderr);
    assert!(
        lost.stderr
            .contains("running.json beside it names no group of this sweep")
    );
    std::fs::write(&named, names).expect("written");
    std::fs::remove_file(&file).expect("removed");
    assert_eq!(groups(&["--max-members=2"]), Some(6));
    w.run(fewer).ok();
    assert_same(&w, "run", &want);
}

#[test]
fn interrupted_it_says_how_to_go_on() {
    let (w, want) = world();
    let mut child = start(&w, &["--set=save-every=1000"]);
    assert!(wait_for(&w, "running.json", &mut child));
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.expect("kill").success());
    let output = child.wait_with_output().expect("waited");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(
        said.ends_with("stopped; go on with: crosstune sweep run/config.toml\n"),
        "{said}"
    );
    w.run(["sweep", "run/config.toml"]).ok();
    assert_same(&w, "run", &want);
}

#[test]
fn two_processes_do_not_share_a_sweep() {
    let w = World::new();
    w.write(
        "sweep.toml",
        FILE.replace("epochs = [6, 12]", "epochs = 10000"),
    );
    let mut child = start(&w, &["--quiet"]);
    assert!(wait_for(&w, "running.json", &mut child));
    let ran = w.run(["sweep", "sweep.toml", "--out=run"]);
    kill(child);
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
fn a_full_disk_is_named_and_costs_nothing() {
    let (w, want) = world();
    let script = "trap '' XFSZ; ulimit -f $0; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "8", env!("CARGO_BIN_EXE_crosstune")]);
    command.args([
        "sweep",
        "sweep.toml",
        "--out=run",
        "--quiet",
        "--device=cpu",
    ]);
    let output = command.current_dir(w.path("")).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("run/checkpoint.safetensors: cannot be written: File too large"),
        "{said}"
    );
    w.run(["sweep", "run/config.toml"]).ok();
    assert_same(&w, "run", &want);
}

#[test]
fn a_damaged_result_is_named() {
    let (w, want) = world();
    let name = "undisturbed/ko-routine1-epochs6-lr0.003-ratio1-seed1/result.json";
    w.write(name, "{\"name\": ");
    let ran = w.run(["sweep", "undisturbed/config.toml"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr
            .contains(&format!("{name}: is not what a sweep writes")),
        "{}",
        ran.stderr
    );
    std::fs::remove_file(w.path(name)).expect("removed");
    w.run(["sweep", "undisturbed/config.toml"]).ok();
    assert_same(&w, "undisturbed", &want);
}
