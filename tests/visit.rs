//! What a visit to a GPU machine brought back becomes docs/gpu.md, and nothing else does; what runs there
//! fails where it must, seen with programs that only pretend.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What the file said before.
const BEFORE: &str =
    "# On a GPU\n\nNothing has been run.\n\n## How to visit\nSo.\n\n## Old\nGone.\n";
const DRIVER: &str = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05";
const NO_DRIVER: &str = "no NVIDIA driver";

fn doctor(device: &str) -> String {
    serde_json::json!({
        "device": {"name": device, "kernels_loaded": 1},
        "cuda": {"driver": "13.0", "gpus": [
            {"name": "NVIDIA H100", "compute_capability": "9.0", "memory_bytes": 85_899_345_920_u64},
        ]},
    })
    .to_string()
}

fn profile(virtual_machine: bool) -> String {
    serde_json::json!({
        "virtual_machine": virtual_machine,
        "ceilings": {"copy": 2.9e12, "product": 3.1e14},
        "ops": [{
            "phase": "forward", "op": "Linear", "calls": 3 * 97, "seconds": 0.012, "share": 0.25,
            "of_ceiling": 0.75, "predicted_seconds": 0.009,
        }],
    })
    .to_string()
}

/// What bench_step prints.
fn run(batch: u32, profiled: bool) -> String {
    serde_json::json!({
        "size": "large", "batch": batch, "profiled": profiled, "runs": 3, "median_s": 0.0041234,
        "real_tokens_per_s": 1e5,
    })
    .to_string()
}

/// Runs the summary over a folder of these files; gives what it left of gpu.md.
fn summary(files: &[(&str, String)]) -> (Output, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    let page = folder.path().join("gpu.md");
    std::fs::write(&page, BEFORE).expect("written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/visit_summary.py");
    let mut python = Command::new("python3");
    python
        .arg(script)
        .arg(folder.path())
        .arg("--write")
        .arg(&page);
    let output = python.output().expect("python3");
    (output, std::fs::read_to_string(page).expect("read"))
}

fn visit(device: &str, driver: &str, virtual_machine: bool) -> Vec<(&'static str, String)> {
    vec![
        ("doctor.json", doctor(device)),
        ("visit.txt", format!("2026-11-30\n{driver}\n0123abcd\n")),
        (
            "steps.tsv",
            "kernels\tpassed\t12\ntorch\tleft out: no PyTorch\t0\n".into(),
        ),
        ("runs/steps.json", run(105, true)),
        ("runs/steps-28.json", run(28, false)),
        ("runs/steps-5.json", run(5, false)),
        ("profile.json", profile(virtual_machine)),
    ]
}

#[test]
fn a_visit_is_told_with_card_driver_and_date() {
    let (output, page) = summary(&visit("NVIDIA H100 (cuda:0)", DRIVER, false));
    assert!(output.status.success(), "{output:?}");
    for part in [
        "Card: NVIDIA H100, compute capability 9.0, 80 GiB.",
        "580.95.05",
        "Date: 2026-11-30. Commit: 0123abcd.",
        "| kernels | passed | 12 |",
        "| torch | left out: no PyTorch | 0 |",
        "| crosstune | large | 5 | 4.12 | 100000 |\n| crosstune | large | 28 |",
        "large, 105 items; mean of 3 steps, launched node by node between events; ceilings of the same run: 2900.0 GB/s and 310.00 TFLOP/s",
        // A step's, of sums over three.
        "| forward | Linear | 97 | 4.00 | 25.0 | 75 | 3.00 |",
        "## How to visit\nSo.\n\n## What ran",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
    assert!(!page.contains("Nothing has been run") && !page.contains("Gone."));
}

#[test]
fn what_ran_on_no_gpu_is_never_written() {
    let runs = [
        visit("PTX virtual machine", DRIVER, true),
        visit("PTX virtual machine", NO_DRIVER, true),
        // A card that was opened, but steps that ran elsewhere.
        visit("NVIDIA H100 (cuda:0)", DRIVER, true),
        visit("NVIDIA H100 (cuda:0)", NO_DRIVER, false),
        vec![],
    ];
    for files in runs {
        let (output, page) = summary(&files);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(page, BEFORE);
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/visit.sh")
}

/// The programs of a visit: each prints what the script reads, the driver's version is `$DRIVER`, what
/// ncu prints is `$NCU`.
const PROGRAMS: [(&str, &str); 4] = [
    (
        "bin/crosstune",
        "echo warned >&2; echo '{\"device\": null}'",
    ),
    (
        "bin/bench_step",
        r#"while [ $# -gt 0 ]; do
    if [ "$1" = --profile ]; then
        mkdir -p "$2"
        echo '{"ops": [{"op": "ZeroGrads"}, {"op": "InputGrad"}]}' >"$2/profile.json"
    fi
    shift
done
[ -z "$(ls "$CROSSTUNE_SHARED")" ] && echo '{"batch": 5}'"#,
    ),
    ("path/nvidia-smi", r#"echo "$DRIVER""#),
    ("path/ncu", r#"echo "$*"; echo "$NCU""#),
];

/// A folder that was carried to a machine; what is in PATH there is in `path`.
fn carried() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    for name in ["bin", "path"] {
        std::fs::create_dir(at(name)).expect("made");
    }
    for (name, text) in PROGRAMS {
        std::fs::write(at(name), format!("#!/bin/bash\n{text}\n")).expect("written");
        let permissions = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(at(name), permissions).expect("set");
    }
    let pack = "import tarfile; tarfile.open('bin.tar.xz', 'w:xz').add('bin')";
    let mut python = Command::new("python3");
    let packed = python.args(["-c", pack]).current_dir(folder.path());
    assert!(packed.status().expect("python3").success());
    std::fs::remove_dir_all(at("bin")).expect("removed");
    std::fs::write(at("glibc.txt"), "2.17\n").expect("written");
    std::fs::write(at("commit.txt"), "0123abcd\n").expect("written");
    std::fs::copy(script(), at("visit.sh")).expect("copied");
    folder
}

/// Runs steps there, the driver being of that version and ncu printing that.
fn visited(folder: &Path, steps: &[&str], driver: &str, ncu: &str) -> Output {
    let path = std::env::var("PATH").expect("a PATH");
    let mut bash = Command::new("bash");
    bash.arg(folder.join("visit.sh")).arg("run").args(steps);
    bash.env("PATH", format!("{}:{path}", folder.join("path").display()));
    bash.env("DRIVER", driver).env("NCU", ncu);
    bash.env("OUT", folder.join("back"));
    bash.env("CROSSTUNE_SHARED", env!("CARGO_MANIFEST_DIR"));
    bash.output().expect("bash")
}

/// Lines of steps.tsv, without their seconds.
fn told(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("back/steps.tsv")).expect("read");
    let line = |l: &str| l.rsplit_once('\t').expect("three columns").0.to_string();
    text.lines().map(line).collect()
}

/// What the machine says of its own driver comes before what a program in PATH says.
fn has_driver() -> bool {
    Path::new("/proc/driver/nvidia/version").exists()
}

#[test]
fn ncu_that_met_no_kernel_fails_its_step() {
    if has_driver() {
        println!("SKIPPED: this machine has a driver of its own");
        return;
    }
    let folder = carried();
    let at = folder.path();
    let nothing = "==WARNING== No kernels were profiled.";
    let output = visited(at, &["steps", "ncu"], "580.95.05", nothing);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let steps = told(at);
    let (last, timed) = steps.split_last().expect("steps");
    let four = ["steps", "steps-5", "steps-28", "steps-105"].map(|name| format!("{name}\tpassed"));
    assert_eq!(timed, four);
    assert!(
        last.starts_with("ncu\tfailed (printed nothing like"),
        "{last}"
    );
    assert!(!at.join("back/ncu.txt").exists());

    let met = "  linear_backward_small_f16 (16, 8, 1)x(128, 1, 1), Context 1, Stream 7";
    let output = visited(at, &["ncu"], "580.95.05", met);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(at.join("back/ncu.txt")).expect("read");
    let asked = "--kernel-name regex:^(linear_backward_f16|linear_backward_small_f16)$ ";
    assert!(text.contains(asked), "{text}");
    // The step ran twice and stands there once.
    assert_eq!(told(at).last().expect("a line"), "ncu\tpassed");
    assert_eq!(told(at).len(), 5);
}

#[test]
fn a_machine_that_does_not_fit_is_told_before_anything_runs() {
    if has_driver() {
        println!("SKIPPED: this machine has a driver of its own");
        return;
    }
    let folder = carried();
    let at = folder.path();
    let refused = |driver: &str, has: &str| {
        let output = visited(at, &["doctor"], driver, "");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(has), "{stderr}");
        assert!(!at.join("back").exists());
    };
    refused(
        "570.10",
        "NVIDIA driver: found 570.10, expected 580 or later",
    );
    refused("", "NVIDIA driver: found none, expected 580 or later");
    std::fs::write(at.join("glibc.txt"), "99.1\n").expect("written");
    refused("580.95.05", "expected 99.1 or later");

    std::fs::write(at.join("glibc.txt"), "2.17\n").expect("written");
    // Unpacking was interrupted.
    std::fs::create_dir(at.join("bin")).expect("made");
    let output = visited(at, &["doctor"], "580.95.05", "");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(told(at), ["doctor\tpassed"]);
    let doctor = std::fs::read_to_string(at.join("back/doctor.json")).expect("read");
    assert_eq!(doctor, "{\"device\": null}\n");
}

#[test]
fn pack_replaces_what_it_made_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("thesis.txt");
    std::fs::write(&file, "dear").expect("written");
    let mut bash = Command::new("bash");
    bash.arg(script()).arg("pack").arg(folder.path());
    let output = bash.output().expect("bash");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("has no commit.txt"), "{stderr}");
    assert_eq!(std::fs::read_to_string(file).expect("read"), "dear");
}

/// What ncu is asked for: every kernel that a step launches is an op's, and every op's is a kernel.
#[cfg(feature = "cuda")]
#[test]
fn each_op_has_its_kernels() {
    use crosstune::cuda::embedded::FILES;
    use crosstune::ops::Op;

    let all = FILES.iter().flat_map(|file| file.resources());
    let mut all: Vec<String> = all.map(|r| r.kernel).collect();
    all.sort();
    all.dedup();
    let mut named = vec![];
    for op in Op::NAMES {
        let mut bash = Command::new("bash");
        let output = bash.arg(script()).args(["kernels-of", op]).output();
        let text = String::from_utf8(output.expect("bash").stdout).expect("UTF-8");
        let kernels: Vec<String> = text.trim().split('|').map(Into::into).collect();
        if kernels == [""] {
            let without = ["ZeroGrads", "GradNorm"];
            assert!(without.contains(op), "{op} has no kernel");
            continue;
        }
        for kernel in &kernels {
            assert!(all.contains(kernel), "{op}: no kernel {kernel}");
        }
        named.extend(kernels);
    }
    // Launched when values come from the host.
    named.push("adam_copy_f16".into());
    named.sort();
    named.dedup();
    assert_eq!(named, all);
}
