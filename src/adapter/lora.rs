//! Low-rank branches beside linear layers (Hu et al., "LoRA: low-rank adaptation of large language
//! models", 2021).
//!
//! `y += scale (x A^T) B^T`, where scale is alpha / R, or alpha / sqrt(R) with `rslora`
//! (Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA", 2023). In training
//! the branch may read `drop(x)`, as PEFT has it; the layer itself always reads x.

use std::collections::BTreeMap;

use super::{LINEAR_LAYERS, ends_with, standard};
use crate::bad_input;
use crate::error::Result;
use crate::ops::philox::Stream;

/// Low-rank branches beside linear layers.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraConfig {
    /// R.
    pub rank: usize,
    /// The branch is multiplied by alpha / R.
    pub alpha: f32,
    /// Name endings of the linear layers that get one: `query`, `value`, `output.dense`; or
    /// `layer.3.output.dense` for one of them.
    pub targets: Vec<String>,
    /// Whether the branch is multiplied by alpha / sqrt(R) instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
    /// R of single layers that differ, by `layer.3.attention.self.query`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alpha of single layers that differ, by the same names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f32>,
    /// Probability that the branch does not see a number of its input, in training.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropout: f32,
}

/// The branch beside one linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Branch {
    /// R.
    pub rank: usize,
    /// What the branch is multiplied by.
    pub scale: f32,
    /// Dropout of its input, in training.
    pub dropout: f32,
}

impl Default for LoraConfig {
    /// OpenDelta's: rank 8, alpha 16, beside query and value.
    fn default() -> LoraConfig {
        LoraConfig {
            rank: 8,
            alpha: 16.0,
            targets: vec!["query".into(), "value".into()],
            rslora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            dropout: 0.0,
        }
    }
}

impl LoraConfig {
    /// The branch beside the linear layer of that name, if there is one.
    pub fn at(&self, module: &str) -> Option<Branch> {
        let module = &*standard(module);
        let targeted = self.targets.iter().any(|t| ends_with(module, t));
        targeted.then(|| {
            let rank = of_pattern(&self.rank_pattern, module).unwrap_or(self.rank);
            let alpha = of_pattern(&self.alpha_pattern, module).unwrap_or(self.alpha);
            let divisor = match self.rslora {
                true => (rank as f32).sqrt(),
                false => rank as f32,
            };
            Branch {
                rank,
                scale: alpha / divisor,
                dropout: self.dropout,
            }
        })
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A rank of 0, an alpha of 0, an unknown target, a pattern for no single layer, a dropout
    /// outside [0, 1).
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(bad_input!(
                "lora-dropout: found {}, expected 0 or more and below 1",
                self.dropout
            ));
        }
        let ranks = self.rank_pattern.values().chain([&self.rank]);
        if ranks.into_iter().any(|r| *r == 0) {
            return Err(bad_input!("rank: found 0, expected at least 1"));
        }
        let mut alphas = self.alpha_pattern.values().chain([&self.alpha]);
        if let Some(alpha) = alphas.find(|a| !a.is_finite() || **a == 0.0) {
            return Err(bad_input!("alpha: found {alpha}, expected a number not 0"));
        }
        if self.targets.is_empty() {
            return Err(bad_input!(
                "targets: expected at least one linear layer, found none"
            ));
        }
        for target in &self.targets {
            let ending = of_layer(target).map_or(&**target, |(_, linear)| linear);
            if !LINEAR_LAYERS.iter().any(|l| ends_with(l, ending)) {
                let list = LINEAR_LAYERS.join(", ");
                return Err(bad_input!(
                    "targets: no linear layer ends in `{target}`; there are {list}"
                ));
            }
        }
        let keys = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
        match keys.into_iter().find(|key| of_layer(key).is_none()) {
            Some(key) => Err(bad_input!(
                "pattern: found `{key}`, expected a layer such as layer.3.attention.self.query"
            )),
            None => Ok(()),
        }
    }

    /// The targets in a program for which `dense` is the pooler too, which has no branch here.
    pub(super) fn targets_beside_pooler(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for target in &self.targets {
            match ends_with("pooler.dense", target) {
                true => names.extend(LINEAR_LAYERS.iter().filter(|l| ends_with(l, target))),
                false => names.push(target),
            }
        }
        names
    }

    /// Checks that the layers which targets and patterns number are there.
    ///
    /// # Errors
    /// One of a layer that a model of `layers` has not.
    pub fn check_layers(&self, layers: usize) -> Result<()> {
        let ranks = self.rank_pattern.keys().map(|k| ("rank_pattern", k));
        let alphas = self.alpha_pattern.keys().map(|k| ("alpha_pattern", k));
        let targets = self.targets.iter().map(|t| ("targets", t));
        for (field, name) in targets.chain(ranks).chain(alphas) {
            if of_layer(name).is_some_and(|(n, _)| n >= layers) {
                return Err(bad_input!(
                    "{field}: `{name}` is of no layer; the model's {layers} are counted from 0"
                ));
            }
        }
        Ok(())
    }
}

fn is_zero(x: &f32) -> bool {
    *x == 0.0
}

/// 3 and `attention.self.query` of `layer.3.attention.self.query`, which names one layer's.
fn of_layer(name: &str) -> Option<(usize, &str)> {
    let (n, linear) = name.strip_prefix("layer.")?.split_once('.')?;
    let n = n.parse().ok()?;
    LINEAR_LAYERS.contains(&linear).then_some((n, linear))
}

/// Its keys name single layers: at most one matches.
fn of_pattern<T: Copy>(pattern: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let found = pattern.iter().find(|(key, _)| ends_with(module, key));
    found.map(|(_, x)| *x)
}

/// Initial values of a branch's tensor, OpenDelta's: `lora_A` (R, K) uniform in +-1/sqrt(K) (Kaiming
/// with a = sqrt 5), `lora_B` zero.
pub fn initial(name: &str, shape: &[usize], seed: u64) -> Option<Vec<f32>> {
    let len = shape.iter().product();
    if name.ends_with(".lora_A") {
        let bound = 1.0 / (shape[1] as f32).sqrt();
        Some(Stream::named(seed, name).uniform(len, bound))
    } else if name.ends_with(".lora_B") {
        Some(vec![0.0; len])
    } else {
        None
    }
}
