//! `crosstune kernels`: every kernel is counted, and docs/ tells what each costs.

use std::path::Path;
use std::sync::OnceLock;

use crosstune::cuda::embedded::{FILES, NVCC_RELEASE};
use crosstune::cuda::report::changes::{Change, changes};
use crosstune::cuda::report::{Report, table};

/// How far a figure may be from the committed one.
const DRIFT: f64 = 0.02;

/// Made once for all tests.
pub fn report() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| Report::make().expect("a workload without faults"))
}

/// What is dearer or cheaper by more than the drift.
pub fn drifted(old: &Report, new: &Report) -> Vec<Change> {
    let mut all = changes(old, new);
    all.retain(|c| c.relative().abs() > DRIFT);
    all
}

#[test]
fn the_workload_launches_every_kernel() {
    let counted = |kernel: &str| report().work.iter().any(|w| w.kernel == kernel);
    let mut n_kernels = 0;
    for file in FILES {
        for r in file.resources() {
            assert!(
                counted(&r.kernel),
                "no case launches {} of {}",
                r.kernel,
                file.name
            );
            n_kernels += 1;
        }
    }
    assert_eq!(report().code.len(), n_kernels);
    let empty = |w: &&_| -> bool { matches!(w, crosstune::cuda::report::Work { launches: 0, .. }) };
    assert_eq!(report().work.iter().find(empty), None);
}

#[test]
fn docs_tell_what_kernels_cost() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let read = |name: &str| std::fs::read_to_string(docs.join(name)).expect(name);
    let json = read("kernels.json");
    let committed: Report = serde_json::from_str(&json).expect("docs/kernels.json is a report");
    let make = table::REGENERATE;
    assert!(
        read("kernels.md") == table::document(&committed),
        "docs/kernels.md is not docs/kernels.json in words: {make}"
    );
    if committed.nvcc != NVCC_RELEASE || committed.disassembler != report().disassembler {
        println!("SKIPPED: docs/kernels.json is of other tools than these kernels");
        return;
    }
    let told: Vec<String> = drifted(&committed, report())
        .iter()
        .map(Change::to_string)
        .collect();
    assert!(
        told.is_empty(),
        "docs/kernels.md is out of date; if this is meant, write it anew with `{make}`:\n{}",
        told.join("\n")
    );
}
