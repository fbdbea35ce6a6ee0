//! OpenDelta's `config.json`, and what takes its place where it is missing.
//!
//! Source: opendelta 0.3.2 (`delta_configs.py`, the config class beside each model in
//! `delta_models/`) and, for the names of BitFit before 0.3, 0.2.4: both run to see what they write and
//! read.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::peft_config::number;
use super::{Adapter, LINEAR_LAYERS, LoraConfig};
use crate::bad_input;
use crate::error::{Error, Result};

/// OpenDelta's alpha, which PECTVLM leaves as it is.
pub(super) const ALPHA: f32 = 16.0;
/// Blocks of a Compacter's layers where nothing says otherwise: OpenDelta's, and PECTVLM's.
const PHM_DIM: usize = 4;

/// What is said about the tensors of a delta, beside them.
pub(super) struct Said {
    /// What messages call it.
    path: PathBuf,
    /// The folder's `config.json`; null for a file.
    config: Value,
    /// The settings that crosstune wrote into the file, if it wrote it. `config.json` goes first.
    pub saved: Option<Adapter>,
    /// What nothing says and the adapter depends on: sentences for its user.
    pub assumed: Vec<String>,
}

impl Said {
    /// Reads the `config.json` in `path`, if that is a folder and has one.
    pub fn read(path: &Path, saved: Option<Adapter>) -> Result<Said> {
        let file = path.join("config.json");
        let config = match file.is_file() {
            false => Value::Null,
            true => {
                let text = fs::read_to_string(&file).map_err(Error::read(&file))?;
                serde_json::from_str(&text)
                    .map_err(|e| bad_input!("{}: is not valid JSON: {e}", file.display()))?
            }
        };
        Ok(Said {
            path: path.into(),
            config,
            saved,
            assumed: vec![],
        })
    }

    /// A field of `config.json` that is not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.config.get(field).filter(|v| !v.is_null())
    }

    /// A number of `config.json`.
    ///
    /// # Errors
    /// If it is something else: what is taken where nothing is said would be wrong.
    pub fn number(&self, field: &str) -> Result<Option<f64>> {
        let Some(found) = self.get(field) else {
            return Ok(None);
        };
        match found.as_f64() {
            Some(x) => Ok(Some(x)),
            None => Err(bad_input!(
                "{}: {field}: found {found}, expected a number",
                self.path.join("config.json").display()
            )),
        }
    }

    /// Notes that nothing says `field`, and what is taken, unless crosstune wrote the file.
    pub fn assume(&mut self, field: &str, taken: &str) {
        if self.saved.is_none() {
            let path = self.path.display();
            self.assumed
                .push(format!("{path}: nothing says {field}; {taken}"));
        }
    }

    /// Fails where `config.json` says something else than what crosstune computes.
    pub fn expect(&self, field: &str, want: &Value) -> Result<()> {
        match self.get(field) {
            Some(found) if !same(found, want) => Err(bad_input!(
                "{}: {field}: found {found}, expected {want}; crosstune has no other",
                self.path.join("config.json").display()
            )),
            _ => Ok(()),
        }
    }

    /// [`Said::expect`] for the function between the layers of a bottleneck.
    pub fn expect_activation(&mut self, want: &str, whose: &str) -> Result<()> {
        let field = "non_linearity";
        self.expect(field, &json!(want))?;
        if self.get(field).is_none() {
            self.assume(field, &format!("{want} is taken, {whose}"));
        }
        Ok(())
    }
}

/// Whether two values are equal, 1 and 1.0 too.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|x| b.as_f64() == Some(x))
}

/// What a Compacter of crosstune is in OpenDelta's words, and it has no other.
pub(super) fn compacter_kind() -> [(&'static str, Value); 5] {
    [
        ("phm_rank", json!(1)),
        ("factorized_phm", json!(true)),
        ("factorized_phm_rule", json!(false)),
        ("shared_phm_rule", json!(false)),
        ("shared_W_phm", json!(false)),
    ]
}

/// The `config.json` of an adapter.
///
/// # Errors
/// [`Error::Input`] for what a delta of OpenDelta cannot be.
pub(super) fn write(adapter: &Adapter) -> Result<Value> {
    if adapter.full {
        return Err(bad_input!(
            "adapter: trains every tensor, which is no delta of OpenDelta; give --to pectvlm"
        ));
    }
    if adapter.prompt.is_some() {
        return Err(bad_input!(
            "adapter: has a soft prompt, whose vectors follow the first token; OpenDelta's stand \
             before it, PECTVLM's do not: give --to pectvlm"
        ));
    }
    one_kind(adapter, "OpenDelta", true)?;
    let mut config = delta(adapter)?;
    let mut unfrozen = vec!["deltas"];
    if adapter.layer_norms {
        unfrozen.push("output.LayerNorm");
    }
    if adapter.head {
        unfrozen.push("LinearTransformation");
    }
    config["unfrozen_modules"] = json!(unfrozen);
    Ok(config)
}

/// The settings of the one delta that there is.
fn delta(adapter: &Adapter) -> Result<Value> {
    let sub_layers = json!(["attention.output.dense", "output.dense"]);
    if let Some(lora) = &adapter.lora {
        one_scale(lora, "OpenDelta")?;
        return Ok(json!({
            "delta_type": "lora",
            "lora_r": lora.rank,
            "lora_alpha": number(lora.alpha),
            "lora_dropout": number(lora.dropout),
            "modified_modules": lora.targets_beside_pooler(),
        }));
    }
    if let Some(bottleneck) = &adapter.bottleneck {
        let (kind, modules) = match bottleneck.parallel {
            false => ("adapter", sub_layers),
            // Two pairs: where it reads, and where it adds.
            true => (
                "parallel_adapter",
                json!([
                    "attention.self",
                    "attention.output.dense",
                    "intermediate.dense",
                    "output.dense"
                ]),
            ),
        };
        return Ok(json!({
            "delta_type": kind,
            "bottleneck_dim": bottleneck.channels,
            "non_linearity": "gelu_new",
            "modified_modules": modules,
        }));
    }
    if let Some(compacter) = &adapter.compacter {
        let mut config = json!({
            "delta_type": "compacter",
            "reduction_factor": compacter.reduction,
            "hypercomplex_division": compacter.phm_dim,
            "non_linearity": "relu",
            "modified_modules": sub_layers,
        });
        for (field, value) in compacter_kind() {
            config[field] = value;
        }
        return Ok(config);
    }
    if adapter.biases {
        let modules = [&LINEAR_LAYERS[..], &["output.LayerNorm"]].concat();
        return Ok(json!({"delta_type": "bitfit", "modified_modules": modules}));
    }
    Err(bad_input!(
        "adapter: has tensors of the model alone, and so is no delta of OpenDelta; give --to pectvlm"
    ))
}

/// Where PECTVLM puts LoRA: for one language, and in run_cross; sorted.
const PECTVLM_TARGETS: [&[&str]; 2] = [
    &["query", "value"],
    &["attention.output.dense", "key", "query", "value"],
];

/// Fails where PECTVLM, which keeps its settings in its scripts, would compute something else from the
/// tensors.
///
/// # Errors
/// [`Error::Input`].
pub(super) fn check_pectvlm(adapter: &Adapter) -> Result<()> {
    one_kind(adapter, "PECTVLM", false)?;
    if let Some(lora) = &adapter.lora {
        one_scale(lora, "PECTVLM")?;
        let mut targets: Vec<&str> = lora.targets.iter().map(String::as_str).collect();
        targets.sort_unstable();
        if !PECTVLM_TARGETS.iter().any(|known| targets == *known) {
            return Err(bad_input!(
                "adapter: has branches beside {}, PECTVLM's are beside query and value, or with \
                 run_cross also key and attention.output.dense; give --to opendelta",
                targets.join(", ")
            ));
        }
        if lora.alpha != ALPHA {
            return Err(bad_input!(
                "adapter: has an alpha of {}, PECTVLM's is always {ALPHA}, and its file says none",
                lora.alpha
            ));
        }
    }
    if adapter.bottleneck.as_ref().is_some_and(|b| b.parallel) {
        return Err(bad_input!(
            "adapter: has parallel bottlenecks, which PECTVLM has not; give --to opendelta"
        ));
    }
    match &adapter.compacter {
        Some(c) if c.phm_dim != PHM_DIM => Err(bad_input!(
            "adapter: has a phm-dim of {}, PECTVLM's is always {PHM_DIM}; give --to opendelta",
            c.phm_dim
        )),
        _ => Ok(()),
    }
}

/// Fails for several kinds of deltas; `biases` says whether they are one.
fn one_kind(adapter: &Adapter, program: &str, biases: bool) -> Result<()> {
    let kinds = [
        ("LoRA", adapter.lora.is_some()),
        ("bottlenecks", adapter.bottleneck.is_some()),
        ("Compacters", adapter.compacter.is_some()),
        ("a soft prompt", adapter.prompt.is_some()),
        ("trained biases", biases && adapter.biases),
    ];
    let has: Vec<&str> = kinds.iter().filter(|k| k.1).map(|k| k.0).collect();
    match has.len() {
        0 | 1 => Ok(()),
        _ => Err(bad_input!(
            "adapter: has {}; {program} holds one of them at a time",
            has.join(" and ")
        )),
    }
}

/// Fails where not every branch is multiplied by the same alpha over the same rank.
fn one_scale(lora: &LoraConfig, program: &str) -> Result<()> {
    if lora.rslora {
        return Err(bad_input!(
            "adapter: multiplies its branches by alpha / sqrt(R) (rslora), {program} by alpha / R"
        ));
    }
    match lora.rank_pattern.is_empty() && lora.alpha_pattern.is_empty() {
        true => Ok(()),
        false => Err(bad_input!(
            "adapter: has ranks or alphas that differ between layers, {program} has one for all"
        )),
    }
}
