//! The options of a TOML file: those of `crosstune train` by the names of the command line.

use std::path::Path;

use clap::CommandFactory;
use crosstune::bad_input;
use crosstune::error::{Error, Result};
use serde_json::{Value, json};

use super::train_args::Args;

/// A stub command that knows the names of all options.
#[derive(clap::Parser)]
struct Names {
    #[command(flatten)]
    args: Args,
}

/// The options of `crosstune train` that a file may hold, in the order of its help.
pub fn names() -> Vec<String> {
    Names::command()
        .get_arguments()
        .filter_map(|a| a.get_long().map(String::from))
        .filter(|n| !["help", "config", "resume", "profile"].contains(&n.as_str()))
        .collect()
}

/// Reads a TOML file.
///
/// # Errors
/// If it can't be read or is no TOML.
pub fn read(path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path).map_err(Error::read(path))?;
    parse(&path.display().to_string(), &text)
}

/// Parses TOML; `origin` is what errors call it.
///
/// # Errors
/// If it is none.
pub fn parse(origin: &str, text: &str) -> Result<toml::Table> {
    toml::from_str(text).map_err(|e| bad_input!("{origin}: is not TOML: {}", e.message()))
}

/// The option that a key means: `weight_decay` is `weight-decay`.
///
/// # Errors
/// If there is none; the ones nearest to it are named.
pub fn known(origin: &str, key: &str, names: &[String], command: &str) -> Result<String> {
    let name = key.replace('_', "-");
    if names.contains(&name) {
        return Ok(name);
    }
    let near: Vec<String> = near(&name, names).map(|n| format!("`{n}`")).collect();
    let hint = match near.is_empty() {
        true => String::new(),
        false => format!("did you mean {}? ", near.join(" or ")),
    };
    Err(bad_input!(
        "{origin}: unknown option `{key}`; {hint}the options are those of `{command} --help`"
    ))
}

/// A value as JSON.
///
/// # Errors
/// If it holds a number that is not finite, which JSON has not.
pub fn value(origin: &str, key: &str, value: toml::Value) -> Result<Value> {
    fn bad(value: &toml::Value) -> Option<f64> {
        match value {
            toml::Value::Float(x) if !x.is_finite() => Some(*x),
            toml::Value::Array(list) => list.iter().find_map(bad),
            _ => None,
        }
    }
    if let Some(x) = bad(&value) {
        return Err(bad_input!(
            "{origin}: `{key}`: found {}, expected a finite number",
            toml::Value::Float(x)
        ));
    }
    serde_json::to_value(value).map_err(|e| bad_input!("{origin}: `{key}`: {e}"))
}

/// Checks that an option may have a value. On its own: an error of all options together would not
/// say which one it is.
///
/// # Errors
/// What was expected and what was found.
pub fn check(origin: &str, key: &str, name: &str, value: &Value) -> Result<()> {
    match serde_json::from_value::<Args>(json!({ name: value })) {
        Ok(_) => Ok(()),
        Err(e) => Err(bad_input!("{origin}: `{key}`: {e}")),
    }
}

/// Names that someone who wrote `word` may have meant.
fn near<'n>(word: &'n str, names: &'n [String]) -> impl Iterator<Item = &'n String> {
    let far = 1 + word.len() / 4;
    let least = names.iter().map(|n| edits(word, n)).min().unwrap_or(0);
    names
        .iter()
        .filter(move |n| least <= far && edits(word, n) == least)
        .take(3)
}

/// Letters to insert, delete or replace to make `b` of `a` (Levenshtein 1966).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_by_hand() {
        for (a, b, want) in [
            ("", "", 0),
            ("", "lr", 2),
            ("rnak", "rank", 2),
            ("epoch", "epochs", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!((edits(a, b), edits(b, a)), (want, want), "{a} {b}");
        }
    }

    #[test]
    fn near_names_are_named() {
        let names = names();
        let error = |key| known("f", key, &names, "x").unwrap_err().to_string();
        assert!(error("epoch").contains("did you mean `epochs`?"));
        assert!(error("learning_rate").contains("`learning_rate`; the options"));
        assert_eq!(
            known("f", "weight_decay", &names, "x").unwrap(),
            "weight-decay"
        );
    }
}
