//! Lists of values become points; points get names.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::bad_input;
use crate::error::Result;
use crate::train::config::MemberConfig;

/// The options of one member, by name.
pub type Options = Map<String, Value>;

/// An option and the values that it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The option.
    pub name: String,
    /// Its values, in the order given.
    pub values: Vec<Value>,
}

/// Every combination of the axes' values; the last axis runs fastest. No axis gives the one empty
/// point.
pub fn product(axes: &[Axis]) -> Vec<Options> {
    let mut points = vec![Options::new()];
    for axis in axes {
        let longer = |point: &Options| {
            let one = |value: &Value| {
                let mut point = point.clone();
                point.insert(axis.name.clone(), value.clone());
                point
            };
            axis.values.iter().map(one).collect::<Vec<_>>()
        };
        points = points.iter().flat_map(longer).collect();
    }
    points
}

/// The name of a member: languages and strategy, what `more` tells apart, and learning rate, ratio
/// (where there is a text loss) and seed. It depends on the member's own settings only, so a sweep
/// that grows keeps its names; what cannot stand in a file name becomes `_`.
pub fn name(languages: &[String], config: &MemberConfig, more: &[String]) -> String {
    let mut parts = vec![languages.join("+"), config.strategy.to_string()];
    parts.extend(more.iter().cloned());
    parts.push(format!("lr{}", number(config.lr)));
    if config.strategy.partner().is_some() {
        // By its digits: 0.1 of f32 is 0.10000000149 of f64.
        let ratio = config.ratio.to_string().parse().unwrap_or_default();
        parts.push(format!("ratio{}", number(ratio)));
    }
    parts.push(format!("seed{}", config.seed));
    let plain = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '+' => c,
        _ => '_',
    };
    parts.join("-").chars().map(plain).collect()
}

/// An option and its value as part of a name: `rank8`, `adapter` for a method.
pub fn label(option: &str, value: &Value) -> String {
    let text = match value {
        Value::String(s) => s.clone(),
        Value::Number(n) => number(n.as_f64().unwrap_or_default()),
        Value::Array(list) => {
            let text = |v: &Value| v.as_str().map_or(v.to_string(), String::from);
            list.iter().map(text).collect::<Vec<_>>().join("+")
        }
        other => other.to_string(),
    };
    match value {
        Value::String(_) => text,
        _ => format!("{option}{text}"),
    }
}

/// 0.3 as `0.3`, 0.0001 as `1e-4`.
fn number(x: f64) -> String {
    if x != 0.0 && x.abs() < 1e-3 {
        format!("{x:e}")
    } else {
        x.to_string()
    }
}

/// Fails if two members have one name: their folders would be one.
///
/// # Errors
/// The name.
pub fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(bad_input!(
            "two members would be called {name}; give languages names that differ in letters, \
             digits, `-`, `.` and `+`"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::objective::Strategy;
    use serde_json::json;

    fn axis(name: &str, values: Value) -> Axis {
        let values = values.as_array().cloned().unwrap_or_default();
        Axis {
            name: name.into(),
            values,
        }
    }

    #[test]
    fn the_last_axis_runs_fastest() {
        let points = product(&[
            axis("lang", json!(["de", "ko"])),
            axis("lr", json!([1, 2, 3])),
        ]);
        let text: Vec<String> = points
            .iter()
            .map(|p| format!("{}{}", p["lang"], p["lr"]))
            .collect();
        let want = [
            "\"de\"1", "\"de\"2", "\"de\"3", "\"ko\"1", "\"ko\"2", "\"ko\"3",
        ];
        assert_eq!(text, want);
        assert_eq!(product(&[]), [Options::new()]);
        assert!(product(&[axis("lr", json!([]))]).is_empty());
    }

    #[test]
    fn names_are_readable_and_fit_for_files() {
        let config = MemberConfig {
            strategy: Strategy::Routine1,
            lr: 1e-4,
            ratio: 0.3,
            ..MemberConfig::default()
        };
        assert_eq!(
            name(&["ko".into()], &config, &[]),
            "ko-routine1-lr1e-4-ratio0.3-seed1"
        );
        let baseline = MemberConfig {
            strategy: Strategy::Baseline2,
            lr: 2e-3,
            seed: 7,
            ..config.clone()
        };
        let more = ["adapter".to_string(), label("rank", &json!(8))];
        assert_eq!(
            name(&["../x y".into(), "de".into()], &baseline, &more),
            ".._x_y+de-baseline2-adapter-rank8-lr0.002-seed7"
        );
        assert_eq!(
            label("targets", &json!(["query", "key"])),
            "targetsquery+key"
        );
        assert_eq!(label("weight-decay", &json!(5e-5)), "weight-decay5e-5");
        assert_eq!(label("train-head", &json!(true)), "train-headtrue");
    }

    #[test]
    fn one_name_for_two_is_refused() {
        assert!(check_names(["a", "b"]).is_ok());
        let error = check_names(["a", "b", "a"]).unwrap_err().to_string();
        assert!(error.contains("called a;"), "{error}");
    }
}
