//! A report as text for a terminal, or as Markdown: by file, a table of machine code and one of what
//! the virtual machine counted.

use std::fmt::Write as _;

use super::workload::cases;
use super::{Code, Line, Report, Widths, Work};

/// How tables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Columns of equal width.
    Text,
    /// For docs/kernels.md.
    Markdown,
}

/// Writes the table that is committed.
pub const REGENERATE: &str = "cargo run --features cuda -- kernels --write docs";

const CODE: [&str; 9] = [
    "kernel",
    "for",
    "registers",
    "shared",
    "stack",
    "tensor",
    "loads",
    "stores",
    "copies",
];
const WORK: [&str; 8] = [
    "kernel",
    "case",
    "launches",
    "instructions",
    "KB",
    "sectors",
    "by 16",
    "conflicts",
];

/// Columns that are not numbers alone.
const WORDS: [&str; 8] = [
    "kernel",
    "for",
    "case",
    "loads",
    "stores",
    "copies",
    "line",
    "most of it",
];

/// All tables of a report.
pub fn render(report: &Report, style: Style) -> String {
    let mut out = String::new();
    let mut files: Vec<&str> = report.code.iter().map(|c| &*c.file).collect();
    files.dedup();
    for file in files {
        let _ = match style {
            Style::Text => writeln!(out, "kernels/{file}.cu"),
            Style::Markdown => writeln!(out, "\n## {file}\n"),
        };
        let code = report.code.iter().filter(|c| c.file == file);
        out += &lay_out(&CODE, code.map(code_row).collect(), style);
        out.push('\n');
        let work = report.work.iter().filter(|w| w.file == file);
        let work = work_rows(&work.collect::<Vec<_>>());
        if !work.is_empty() {
            out += &lay_out(&WORK, work, style);
            if style == Style::Text {
                out.push('\n');
            }
        }
    }
    out
}

/// docs/kernels.md.
pub fn document(report: &Report) -> String {
    format!(
        "# What each kernel costs\n\nMade by `{REGENERATE}`; a test fails where a figure is more than \
         2 % off. [kernels_history.md](kernels_history.md) tells what was improved after reading it.\n\n{}{}",
        legend(report, Style::Markdown),
        render(report, Style::Markdown)
    )
}

/// What the columns mean, and what the cases are.
pub fn legend(report: &Report, style: Style) -> String {
    let quote = |word: &str| match style {
        Style::Text => word.to_string(),
        Style::Markdown => format!("`{word}`"),
    };
    let sass = match &report.disassembler {
        Some(version) => format!("cuobjdump {version}"),
        None => {
            "nothing: cuobjdump and nvdisasm were not beside nvcc when this was built, so tensor \
                 instructions and widths are not known (scripts/cuda.sh installs them)"
                .into()
        }
    };
    let mut out = format!(
        "Machine code by nvcc {}, read by {sass}. Registers and stack (bytes, spills in brackets) are \
         a thread's, shared memory (bytes) a block's; tensor instructions and accesses to global memory \
         as they stand in the code, bits a thread times how many; copies are those to shared memory.\n\n\
         Counts are the PTX virtual machine's: instructions of warps; KB that lanes read and write; \
         sectors of 32 bytes that requests touch for each one that their bytes fill, and the share of \
         them that requests of 16 bytes a lane touch; bank conflicts for each request to shared memory. \
         The cases, one step each:\n\n",
        report.nvcc
    );
    for case in cases() {
        let _ = writeln!(out, "* {}: {}", quote(case.name), case.what);
    }
    out
}

/// The lines of a kernel; `source` gives a line's text where it is at hand.
pub fn lines(lines: &[Line], source: impl Fn(&Line) -> Option<String>) -> String {
    const HEAD: [&str; 6] = [
        "instructions",
        "KB",
        "sectors",
        "by 16",
        "conflicts",
        "line",
    ];
    let row = |l: &Line| {
        let c = &l.counted;
        let text = source(l).unwrap_or_default();
        vec![
            c.instructions.to_string(),
            kilobytes(c.read_bytes + c.written_bytes),
            if_any(c.sectors_moved, ratio(c.sector_ratio())),
            if_any(c.sectors_moved, percent(c.vector_share())),
            if_any(c.shared_requests, ratio(c.conflict_ratio())),
            format!("{}:{} {}", l.file, l.line, text.trim()),
        ]
    };
    lay_out(&HEAD, lines.iter().map(row).collect(), Style::Text)
}

/// What says nothing where nothing was counted.
fn if_any(n: u64, shown: String) -> String {
    if n > 0 { shown } else { String::new() }
}

fn code_row(c: &Code) -> Vec<String> {
    let spills = match c.spill_bytes {
        0 => String::new(),
        n => format!(" ({n})"),
    };
    let sass = |f: fn(&super::Sass) -> String| c.sass.as_ref().map_or("?".into(), f);
    vec![
        c.kernel.clone(),
        c.architecture.clone(),
        c.registers.to_string(),
        c.shared_bytes.to_string(),
        format!("{}{spills}", c.stack_bytes),
        sass(|s| s.tensor.to_string()),
        sass(|s| widths(&s.loads)),
        sass(|s| widths(&s.stores)),
        sass(|s| widths(&s.copies)),
    ]
}

/// Cases that count the same share a row.
fn work_rows(work: &[&Work]) -> Vec<Vec<String>> {
    let mut groups: Vec<(&Work, Vec<&str>)> = vec![];
    for w in work {
        let same = |g: &&mut (&Work, Vec<&str>)| {
            let key = |w: &Work| (w.launches, w.counted);
            g.0.kernel == w.kernel && key(g.0) == key(w)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.1.push(&w.case),
            None => groups.push((w, vec![&w.case])),
        }
    }
    let row = |(w, cases): &(&Work, Vec<&str>)| work_row(w, cases.join(" "));
    groups.iter().map(row).collect()
}

fn work_row(w: &Work, cases: String) -> Vec<String> {
    let c = &w.counted;
    vec![
        w.kernel.clone(),
        cases,
        w.launches.to_string(),
        c.instructions.to_string(),
        kilobytes(c.read_bytes + c.written_bytes),
        ratio(c.sector_ratio()),
        percent(c.vector_share()),
        ratio(c.conflict_ratio()),
    ]
}

/// Widest first: `128x4 32x1`.
fn widths(w: &Widths) -> String {
    let all: Vec<String> = w
        .iter()
        .rev()
        .map(|(bits, n)| format!("{bits}x{n}"))
        .collect();
    all.join(" ")
}

fn kilobytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e3)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn ratio(x: f64) -> String {
    format!("{x:.2}")
}

/// Words left, numbers right.
pub(super) fn lay_out(head: &[&str], rows: Vec<Vec<String>>, style: Style) -> String {
    let is_word = |k: usize| WORDS.contains(&head[k]);
    let words: Vec<bool> = (0..head.len()).map(is_word).collect();
    let width = |k: usize| {
        let cells = rows.iter().map(|r| r[k].chars().count());
        cells.chain([head[k].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let cells = cells
            .iter()
            .enumerate()
            .map(|(k, cell)| match (style, words[k]) {
                (Style::Markdown, _) => cell.to_string(),
                (Style::Text, true) => format!("{cell:<w$}", w = widths[k]),
                (Style::Text, false) => format!("{cell:>w$}", w = widths[k]),
            });
        let cells: Vec<String> = cells.collect();
        match style {
            Style::Text => format!("  {}", cells.join("  ").trim_end()),
            Style::Markdown => format!("| {} |", cells.join(" | ")),
        }
    };
    let mut out = line(head) + "\n";
    if style == Style::Markdown {
        let rule = words
            .iter()
            .map(|word| if *word { "---|" } else { "---:|" });
        out += &format!("|{}\n", rule.collect::<String>());
    }
    for row in &rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        out += &(line(&cells) + "\n");
    }
    out
}
