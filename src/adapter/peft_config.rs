//! PEFT's `adapter_config.json`: what of it the engine can do, and what it must refuse.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::adapter::{Adapter, ends_with};
use crate::bad_input;
use crate::error::{Error, Result};

/// Fields that change nothing about a trained adapter, or say again what its tensors say.
const NEUTRAL: [&str; 18] = [
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];

/// Initialisations that leave the model's own weights as they are.
const PLAIN_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The settings of a LoRA by PEFT that the engine can use.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// Names or name endings of the modules with a branch; `None` where it is a pattern.
    pub targets: Option<Vec<String>>,
    /// Dropout before the branch, in training.
    pub dropout: f64,
    /// `base_model_name_or_path`.
    pub base: Option<String>,
    /// R where no pattern says another.
    pub rank: u64,
    /// Alpha where no pattern says another.
    pub alpha: f64,
    /// Whether the factor of a branch is alpha / sqrt(R), not alpha / R.
    pub rslora: bool,
    rank_pattern: Vec<(String, f64)>,
    alpha_pattern: Vec<(String, f64)>,
}

impl PeftConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Input`] that names the field that can't be represented.
    pub fn read(path: &Path) -> Result<PeftConfig> {
        let text = fs::read_to_string(path).map_err(Error::read(path))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| bad_input!("{}: is not valid JSON: {e}", path.display()))?;
        let Value::Object(fields) = value else {
            let file = path.display();
            return Err(bad_input!("{file}: expected a JSON object of settings"));
        };
        parse(&fields).map_err(|why| bad_input!("{}: {why}", path.display()))
    }

    /// R of a module, by its name inside the module that PEFT wrapped.
    pub fn rank_of(&self, module: &str) -> f64 {
        of_pattern(&self.rank_pattern, module).unwrap_or(self.rank as f64)
    }

    /// The alpha of a module.
    pub fn alpha_of(&self, module: &str) -> f64 {
        of_pattern(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }
}

/// The settings of an adapter as PEFT writes them.
///
/// # Errors
/// [`Error::Input`] for an adapter without LoRA, or of every tensor.
pub fn write(adapter: &Adapter, base: Option<&str>) -> Result<Value> {
    if adapter.full {
        return Err(bad_input!(
            "adapter: trains every tensor, which PEFT's LoRA cannot hold; `crosstune merge` makes a \
             model of it"
        ));
    }
    if adapter.biases {
        return Err(bad_input!(
            "adapter: trains biases, which are not written for PEFT; `crosstune merge` makes a model \
             of it"
        ));
    }
    let Some(lora) = &adapter.lora else {
        return Err(bad_input!(
            "adapter: has no LoRA, which PEFT's LoRA format needs; `crosstune merge` makes a model \
             of it"
        ));
    };
    let mut saved = Vec::new();
    if adapter.layer_norms {
        saved.push("output.LayerNorm");
    }
    if adapter.head {
        saved.push("LinearTransformation");
    }
    let alphas = lora.alpha_pattern.iter();
    let alphas: Map<String, Value> = alphas.map(|(key, x)| (key.clone(), number(*x))).collect();
    Ok(json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": number(lora.alpha),
        "lora_dropout": number(lora.dropout),
        "modules_to_save": (!saved.is_empty()).then_some(saved),
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": lora.rank_pattern,
        "target_modules": lora.targets_beside_pooler(),
        "task_type": null,
        "use_dora": false,
        "use_rslora": lora.rslora,
    }))
}

/// The shortest decimal that is this number; a whole one where it is one: PEFT declares alpha as an
/// integer.
pub(super) fn number(x: f32) -> Value {
    match x.fract() == 0.0 && x.abs() < 1e9 {
        true => json!(x as i64),
        false => x.to_string().parse::<f64>().map_or(json!(x), |x| json!(x)),
    }
}

/// The error is the rest of a sentence that begins with the file's name.
fn parse(fields: &Map<String, Value>) -> std::result::Result<PeftConfig, String> {
    let get = |field: &str| fields.get(field).filter(|v| !v.is_null());
    let real = |field: &str, default: f64| match get(field) {
        None => Ok(default),
        Some(v) => v
            .as_f64()
            .ok_or_else(|| format!("{field} is {v}, expected a number")),
    };
    match get("peft_type") {
        Some(kind) if kind == "LORA" => {}
        Some(kind) => return Err(format!("peft_type is {kind}, expected \"LORA\"")),
        None => return Err("has no peft_type, expected \"LORA\"".into()),
    }
    refuse(fields)?;
    let rank = match get("r") {
        None => 8,
        Some(v) => v
            .as_u64()
            .filter(|r| *r > 0)
            .ok_or_else(|| format!("r is {v}, expected at least 1"))?,
    };
    let targets = get("target_modules").and_then(|v| {
        let list = v.as_array()?.iter();
        list.map(|t| t.as_str().map(String::from)).collect()
    });
    Ok(PeftConfig {
        targets,
        dropout: real("lora_dropout", 0.0)?,
        base: get("base_model_name_or_path")
            .and_then(|v| v.as_str())
            .filter(|b| !b.is_empty())
            .map(String::from),
        rank,
        alpha: real("lora_alpha", 8.0)?,
        rslora: get("use_rslora") == Some(&Value::Bool(true)),
        rank_pattern: pattern(fields, "rank_pattern")?,
        alpha_pattern: pattern(fields, "alpha_pattern")?,
    })
}

/// Refuses what would be another function than W x + scale B A x.
fn refuse(fields: &Map<String, Value>) -> std::result::Result<(), String> {
    const KNOWN: [&str; 7] = [
        "peft_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
    ];
    for (field, value) in fields {
        let unset = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        let name = field.as_str();
        if unset || KNOWN.contains(&name) || NEUTRAL.contains(&name) {
            continue;
        }
        let why = match name {
            "bias" if value == "none" => continue,
            "bias" => "expected \"none\": the biases of the layers are frozen here",
            "use_dora" => {
                "expected false: a weight decomposed into magnitude and direction (DoRA) \
                           is not supported"
            }
            "init_lora_weights" if value == true => continue,
            "init_lora_weights" if PLAIN_INITS.iter().any(|i| value == *i) => continue,
            "init_lora_weights" => {
                "which changes the model's own weights too; save it with PEFT's \
                 path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
            }
            "fan_in_fan_out" => "expected false: no layer of a BERT or XLM-R is transposed",
            "lora_bias" => "expected false: branches have no biases here",
            "ensure_weight_tying" => continue,
            _ => "which crosstune cannot represent",
        };
        return Err(format!("{field} is {value}, {why}"));
    }
    Ok(())
}

fn pattern(
    fields: &Map<String, Value>,
    field: &str,
) -> std::result::Result<Vec<(String, f64)>, String> {
    let Some(value) = fields.get(field).filter(|v| !v.is_null()) else {
        return Ok(Vec::new());
    };
    let map = value
        .as_object()
        .ok_or_else(|| format!("{field} is {value}, expected an object of numbers"))?;
    let one = |(key, value): (&String, &Value)| {
        let name = key.replace("\\.", ".");
        if name.contains(|c| "*+?[](){}|\\$".contains(c)) {
            return Err(format!(
                "{field} has the regular expression `{key}`, expected names of modules"
            ));
        }
        match value.as_f64() {
            Some(x) => Ok((name, x)),
            None => Err(format!("{field}: `{key}` is {value}, expected a number")),
        }
    };
    map.iter().map(one).collect()
}

/// The first that matches, as PEFT's `get_pattern_key`.
fn of_pattern(pattern: &[(String, f64)], module: &str) -> Option<f64> {
    let matches = |key: &str| match key.strip_prefix('^') {
        Some(whole) => module == whole,
        None => ends_with(module, key),
    };
    pattern.iter().find(|(key, _)| matches(key)).map(|p| p.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> std::result::Result<PeftConfig, String> {
        parse(value.as_object().unwrap())
    }

    #[test]
    fn patterns_give_rank_and_alpha() {
        let c = read(
            json!({"peft_type": "LORA", "r": 4, "lora_alpha": 3, "use_rslora": true,
            "rank_pattern": {"layer\\.1.query": 9}, "alpha_pattern": {"^a.query": 5}}),
        );
        let c = c.unwrap();
        assert!(c.rslora);
        assert_eq!((c.rank_of("x.query"), c.alpha_of("x.query")), (4.0, 3.0));
        assert_eq!((c.alpha_of("a.query"), c.alpha_of("b.a.query")), (5.0, 3.0));
        assert_eq!(
            (c.rank_of("layer.1.query"), c.rank_of("layer.11.query")),
            (9.0, 4.0)
        );
    }

    #[test]
    fn what_is_another_function_is_refused_by_name() {
        let with = |field: &str, value: Value| {
            let mut c = json!({"peft_type": "LORA", "megatron_config": null, "loftq_config": {},
                "inference_mode": true, "layers_to_transform": [1], "bias": "none"});
            c[field] = value;
            read(c)
        };
        let fine = [
            ("use_dora", json!(false)),
            ("init_lora_weights", json!("gaussian")),
            ("target_modules", json!(".*query")),
            ("new_switch", json!(false)),
        ];
        for (field, value) in fine {
            assert!(with(field, value).is_ok(), "{field}");
        }
        let cases = [
            (
                "peft_type",
                json!("IA3"),
                "peft_type is \"IA3\", expected \"LORA\"",
            ),
            ("use_dora", json!(true), "use_dora is true, expected false"),
            (
                "bias",
                json!("lora_only"),
                "bias is \"lora_only\", expected \"none\"",
            ),
            (
                "init_lora_weights",
                json!("pissa_niter_4"),
                "which changes the model's own weights",
            ),
            (
                "fan_in_fan_out",
                json!(true),
                "fan_in_fan_out is true, expected false",
            ),
            ("lora_bias", json!(true), "lora_bias is true"),
            (
                "trainable_token_indices",
                json!([3]),
                "trainable_token_indices is [3], which",
            ),
            (
                "new_switch",
                json!(true),
                "new_switch is true, which crosstune cannot represent",
            ),
            ("r", json!(0), "r is 0, expected at least 1"),
            (
                "lora_alpha",
                json!("x"),
                "lora_alpha is \"x\", expected a number",
            ),
            (
                "alpha_pattern",
                json!({"q.*": 1}),
                "alpha_pattern has the regular expression `q.*`",
            ),
            (
                "rank_pattern",
                json!({"q": "1"}),
                "rank_pattern: `q` is \"1\", expected a number",
            ),
        ];
        for (field, value, says) in cases {
            let text = with(field, value).unwrap_err();
            assert!(text.contains(says), "{text}\n{says}");
        }
    }
}
