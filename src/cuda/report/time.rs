//! A model of time by kernel: what the virtual machine counted, at the rates of a card.
//!
//! A kernel moves its sectors, multiplies its matrices and issues its instructions at once, so the
//! longest of the three counts; each launch costs its own on top. Every sector comes from memory, as
//! if nothing were found in a cache, and all of a card's SMs are busy: of small steps, as the
//! workload's are, launches take most.

use std::fmt::Write as _;

use serde::Serialize;

use super::table::{Style, lay_out};
use super::{Report, Work};
use crate::profile::card::{CARDS, Card};

/// Bytes of a sector.
const SECTOR: f64 = 32.0;

/// What a kernel comes to in a case of the workload, or, without a name, all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTime {
    /// The case.
    pub case: String,
    /// Its symbol; none for the whole step.
    pub kernel: Option<String>,
    /// How often it is launched.
    pub launches: u64,
    /// Seconds by card, in the order of [`CARDS`].
    pub seconds: [f64; 3],
    /// What takes longest on the first card; none for the whole step.
    pub bound: Option<&'static str>,
}

/// Each part's seconds, by its name.
fn parts(card: &Card, w: &Work) -> [(&'static str, f64); 4] {
    let c = &w.counted;
    let bytes = c.sectors_moved as f64 * SECTOR;
    [
        ("launches", w.launches as f64 * card.launch),
        ("memory", bytes / (card.memory * card.memory_share)),
        (
            "products",
            c.matrix_flops as f64 / (card.tensor * card.tensor_share),
        ),
        ("instructions", c.instructions as f64 / card.issue),
    ]
}

fn seconds(card: &Card, w: &Work) -> f64 {
    let [(_, launches), work @ ..] = parts(card, w);
    launches + work.iter().map(|(_, s)| *s).fold(0.0, f64::max)
}

/// By case, its step as a whole first, then its kernels, the dearest on the first card first.
pub fn times(report: &Report) -> Vec<KernelTime> {
    let mut cases: Vec<&str> = report.work.iter().map(|w| &*w.case).collect();
    cases.sort_unstable();
    cases.dedup();
    cases
        .into_iter()
        .flat_map(|case| of_case(report, case))
        .collect()
}

fn of_case(report: &Report, case: &str) -> Vec<KernelTime> {
    let kernel = |w: &Work| {
        let mut parts = parts(&CARDS[0], w);
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        KernelTime {
            case: case.into(),
            kernel: Some(w.kernel.clone()),
            launches: w.launches,
            seconds: CARDS.map(|card| seconds(&card, w)),
            bound: Some(parts[0].0),
        }
    };
    let of_case = report.work.iter().filter(|w| w.case == case);
    let mut kernels: Vec<KernelTime> = of_case.map(kernel).collect();
    kernels.sort_by(|a, b| b.seconds[0].total_cmp(&a.seconds[0]));
    let step = KernelTime {
        case: case.into(),
        kernel: None,
        launches: kernels.iter().map(|k| k.launches).sum(),
        seconds: [0, 1, 2].map(|card| kernels.iter().map(|k| k.seconds[card]).sum()),
        bound: None,
    };
    std::iter::once(step).chain(kernels).collect()
}

/// For people: the table, and what it goes by.
pub fn table(report: &Report) -> String {
    let names = CARDS.map(|card| format!("{} us", card.name));
    let head = [
        "case", "kernel", "launches", &names[0], &names[1], &names[2],
    ];
    let head: Vec<&str> = head.into_iter().chain(["most of it"]).collect();
    let row = |t: &KernelTime| {
        let mut row = vec![t.case.clone(), t.kernel.clone().unwrap_or_default()];
        row.push(t.launches.to_string());
        row.extend(t.seconds.iter().map(|s| format!("{:.2}", s * 1e6)));
        row.push(t.bound.unwrap_or("").into());
        row
    };
    let times = times(report);
    let mut out = lay_out(&head, times.iter().map(row).collect(), Style::Text);
    out += "\nBy the virtual machine's counts and a model of the card; nothing here was measured \
            (docs/profiling.md).\n";
    for card in &CARDS {
        let _ = writeln!(out, "{}", card.describe());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::report::Counted;

    fn work(kernel: &str, counted: Counted) -> Work {
        Work {
            file: "f".into(),
            kernel: kernel.into(),
            case: "a".into(),
            launches: 2,
            counted,
            lines: vec![],
        }
    }

    #[test]
    fn the_longest_part_counts_and_the_step_is_the_sum() {
        let mover = Counted {
            sectors_moved: 1_000_000,
            ..Counted::default()
        };
        let thinker = Counted {
            instructions: 500_000_000,
            sectors_moved: 10,
            ..Counted::default()
        };
        let product = Counted {
            matrix_flops: 1 << 40,
            instructions: 10,
            ..Counted::default()
        };
        let all = [("mover", mover), ("thinker", thinker), ("product", product)];
        let report = Report::new(all.map(|(k, c)| work(k, c)).to_vec());
        let times = times(&report);
        let names: Vec<_> = times
            .iter()
            .map(|t| (t.kernel.as_deref(), t.bound))
            .collect();
        let expected = [
            (None, None),
            (Some("product"), Some("products")),
            (Some("thinker"), Some("instructions")),
            (Some("mover"), Some("memory")),
        ];
        assert_eq!(names, expected);
        let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-9, "{got} {want}");
        // 32 MB at 85 % of 300 GB/s, and two launches.
        close(times[3].seconds[2], 32e6 / (0.85 * 300e9) + 2e-6);
        close(
            times[0].seconds[1],
            times[1..].iter().map(|t| t.seconds[1]).sum(),
        );
        assert_eq!(times[0].launches, 6);
    }
}
