//! Bad input: each mistake ends with its exit code and one sentence that names file or field,
//! and leaves every file of the folder as it was, with none added.

mod common;

use bad_input::{captions, features, models, output, settings};
use common::world::{Ran, World, train_args};
use serde_json::Value;

mod bad_input {
    pub mod captions;
    pub mod features;
    pub mod models;
    mod numbers;
    pub mod output;
    pub mod settings;
}

/// A mistake, and what must be said of it.
struct Row {
    /// What is wrong.
    name: &'static str,
    /// Makes it so.
    spoil: fn(&World),
    /// Options that replace or follow those of a good `train`, or a whole command.
    args: &'static [&'static str],
    /// Parts of the message.
    says: &'static [&'static str],
}

const NOTHING: fn(&World) = |_| {};
const MODEL: &str = "model/model.safetensors";

/// Every mistake here is one in the input: exit code 2.
const THEMES: [&[Row]; 5] = [
    models::ROWS,
    captions::ROWS,
    features::ROWS,
    settings::ROWS,
    output::ROWS,
];

#[test]
fn every_mistake_is_named_and_leaves_nothing() {
    let mut failures = Vec::new();
    let rows: Vec<&Row> = THEMES.into_iter().flatten().collect();
    for row in &rows {
        let w = World::new();
        (row.spoil)(&w);
        let before = w.snapshot();
        let ran = run(&w, row.args);
        let mut wrong: Vec<String> = Vec::new();
        if ran.code != 2 {
            wrong.push(format!("exit code {}", ran.code));
        }
        let missing = row.says.iter().filter(|part| !ran.stderr.contains(**part));
        wrong.extend(missing.map(|part| format!("does not say `{part}`")));
        let errors = ran
            .stderr
            .lines()
            .filter(|l| l.starts_with("error: "))
            .count();
        if errors != 1 || ran.stderr.contains("panicked") {
            wrong.push(format!("{errors} errors"));
        }
        if !ran.stdout.is_empty() {
            wrong.push(format!("prints {}", ran.stdout));
        }
        let after = w.snapshot();
        let changed = |p: &&std::path::PathBuf| before.get(*p) != after.get(*p);
        let both = before.keys().chain(after.keys());
        wrong.extend(
            both.filter(changed)
                .map(|p| format!("{} changed", p.display())),
        );
        if !wrong.is_empty() {
            failures.push(format!(
                "{}: {}\n    {}",
                row.name,
                wrong.join(", "),
                ran.stderr.trim()
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n")
    );
}

/// A whole command, or a good `train` with some options replaced; `--name=` takes one away.
fn run(w: &World, args: &[&str]) -> Ran {
    if args.first().is_some_and(|a| !a.starts_with('-')) {
        return w.run(args);
    }
    let out = if args.iter().any(|a| a.starts_with("--out=")) {
        ""
    } else {
        "run"
    };
    let mut args = train_args(out, args);
    args.retain(|a| !a.ends_with('='));
    // An unset option lets the config file's through.
    if args.iter().any(|a| a.starts_with("--config=")) {
        args.retain(|a| !a.starts_with("--rank="));
    }
    w.run(args)
}

fn edit_caption(w: &World, line: usize, text: &str) {
    w.edit_line("world.jsonl", line, |l| {
        let mut row: Value = serde_json::from_str(l).expect("JSON");
        row["captions"]["de"] = text.into();
        row.to_string()
    });
}
