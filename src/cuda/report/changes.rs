//! What differs between two reports, figure by figure.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{Code, Report, Work};

/// A figure that is not what it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// A kernel.
    pub kernel: String,
    /// The architecture or the case.
    pub place: String,
    /// Its name in the JSON, such as `sass.loads.128`.
    pub figure: String,
    /// Before; none if the kernel or the figure is new.
    pub was: Option<u64>,
    /// Now; none if it is gone.
    pub is: Option<u64>,
}

impl Change {
    /// The difference over what it was; infinite for what comes or goes.
    pub fn relative(&self) -> f64 {
        match (self.was, self.is) {
            (Some(was), Some(is)) if was > 0 => (is as f64 - was as f64) / was as f64,
            _ => f64::INFINITY,
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |n: Option<u64>| n.map_or("-".into(), |n| n.to_string());
        let (was, is) = (number(self.was), number(self.is));
        let Change {
            kernel,
            place,
            figure,
            ..
        } = self;
        write!(f, "{kernel} {place} {figure} {was} -> {is}")?;
        match self.relative() {
            x if x.is_finite() => write!(f, " ({:+.1} %)", 100.0 * x),
            _ => Ok(()),
        }
    }
}

/// The figures of `new` that differ from those of `old`.
pub fn changes(old: &Report, new: &Report) -> Vec<Change> {
    let (old, new) = (figures(old), figures(new));
    let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let change = |key: &Key| {
        let (was, is) = (old.get(key).copied(), new.get(key).copied());
        (was != is).then(|| Change {
            kernel: key.0.clone(),
            place: key.1.clone(),
            figure: key.2.clone(),
            was,
            is,
        })
    };
    keys.into_iter().filter_map(change).collect()
}

/// Kernel, architecture or case, figure.
type Key = (String, String, String);

fn figures(report: &Report) -> BTreeMap<Key, u64> {
    let mut out = BTreeMap::new();
    for row in &report.code {
        let Code {
            kernel,
            architecture,
            ..
        } = row;
        collect(&mut out, (kernel, architecture), "", &value(row));
    }
    for row in &report.work {
        let Work { kernel, case, .. } = row;
        collect(&mut out, (kernel, case), "", &value(row));
    }
    out
}

fn value(row: &impl Serialize) -> Value {
    // Rows hold numbers, strings and maps of them, all of which JSON has.
    serde_json::to_value(row).unwrap_or_default()
}

/// The numbers of a JSON value, each by the names that lead to it.
fn collect(out: &mut BTreeMap<Key, u64>, row: (&str, &str), path: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = match path {
                    "" => name.clone(),
                    _ => format!("{path}.{name}"),
                };
                collect(out, row, &path, value);
            }
        }
        Value::Number(n) => {
            out.extend(
                n.as_u64()
                    .map(|n| ((row.0.into(), row.1.into(), path.into()), n)),
            );
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::report::{Counted, Sass};

    fn report() -> Report {
        let sass = Sass {
            loads: [(128, 3)].into(),
            ..Sass::default()
        };
        Report {
            nvcc: "13.0".into(),
            disassembler: None,
            code: vec![Code {
                file: "add".into(),
                kernel: "add_f16".into(),
                architecture: "sm_80".into(),
                registers: 16,
                shared_bytes: 0,
                stack_bytes: 0,
                spill_bytes: 0,
                sass: Some(sass),
            }],
            work: vec![Work {
                file: "add".into(),
                kernel: "add_f16".into(),
                case: "lora".into(),
                launches: 1,
                counted: Counted {
                    instructions: 1000,
                    ..Counted::default()
                },
                lines: vec![],
            }],
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let (old, mut new) = (report(), report());
        assert_eq!(changes(&old, &new), []);
        new.work[0].counted.instructions = 1025;
        new.code[0].sass.as_mut().expect("set").loads = [(64, 6)].into();
        let told: Vec<String> = changes(&old, &new).iter().map(Change::to_string).collect();
        let want = [
            "add_f16 lora instructions 1000 -> 1025 (+2.5 %)",
            "add_f16 sm_80 sass.loads.128 3 -> -",
            "add_f16 sm_80 sass.loads.64 - -> 6",
        ];
        assert_eq!(told, want);
        new.work.clear();
        let gone = changes(&old, &new);
        assert!(
            gone.iter().any(|c| c.is.is_none() && c.place == "lora"),
            "{gone:?}"
        );
    }

    #[test]
    fn a_report_goes_round_as_json() {
        let text = report().to_json().expect("JSON");
        let back: Report = serde_json::from_str(&text).expect("a report");
        assert_eq!(back, report());
    }
}
