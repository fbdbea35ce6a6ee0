//! What a visit to a GPU machine brought back becomes docs/gpu.md, and nothing else does.

use std::path::Path;
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
            "phase": "forward", "op": "Linear", "calls": 97, "seconds": 0.004, "share": 0.25,
            "of_ceiling": 0.75, "predicted_seconds": 0.003,
        }],
    })
    .to_string()
}

/// Runs the summary over a folder of these files; gives what it left of gpu.md.
fn summary(files: &[(&str, String)]) -> (Output, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("written");
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
        "launched node by node between events; ceilings of the same run: 2900.0 GB/s and 310.00 TFLOP/s",
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
