//! Adapters: which tensors are trained, and what is added to the frozen model.

pub mod bottleneck;
pub mod compacter;
pub mod file;
mod found;
pub mod merge;
pub mod opendelta;
pub mod peft;
mod peft_config;

use bottleneck::BottleneckConfig;
use compacter::CompacterConfig;

use crate::bad_input;
use crate::error::Result;
use crate::ops::philox::Stream;
use crate::weights::config::TextConfig;

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
}

impl LoraConfig {
    /// alpha / R.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

impl Default for LoraConfig {
    /// OpenDelta's: rank 8, alpha 16, beside query and value.
    fn default() -> LoraConfig {
        LoraConfig {
            rank: 8,
            alpha: 16.0,
            targets: vec!["query".into(), "value".into()],
        }
    }
}

/// What is trained.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Adapter {
    /// Low-rank branches, if any.
    pub lora: Option<LoraConfig>,
    /// Bottlenecks on what each sub-layer gives, if any.
    pub bottleneck: Option<BottleneckConfig>,
    /// Bottlenecks of hypercomplex layers on what each sub-layer gives, if any.
    pub compacter: Option<CompacterConfig>,
    /// Whether the layer norms of every block (`output.LayerNorm`) are trained; the embeddings' is
    /// not.
    pub layer_norms: bool,
    /// Whether the linear head is trained.
    pub head: bool,
    /// Whether every tensor of the model is trained. Nothing else may be set then.
    pub full: bool,
}

/// A linear layer that may get a branch.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Full name: `transformer.encoder.layer.0.attention.self.query`.
    pub module: &'a str,
    /// Output channels.
    pub oc: usize,
    /// Input channels.
    pub k: usize,
}

/// Endings of the linear layers of a block.
pub const LINEAR_LAYERS: [&str; 6] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
];

/// Whether `name` is `suffix` or ends in `.suffix`: OpenDelta's rule for its module names.
pub fn ends_with(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// `attention.self.query` of `layer.3.attention.self.query`, which names one layer's; other targets
/// as they are.
fn without_layer(target: &str) -> &str {
    let numbered = target
        .strip_prefix("layer.")
        .and_then(|t| t.split_once('.'));
    match numbered {
        Some((n, linear)) if n.parse::<u32>().is_ok() && LINEAR_LAYERS.contains(&linear) => linear,
        _ => target,
    }
}

impl Adapter {
    /// The original's: LoRA beside query and value, and the layer norms of every block.
    pub fn lora(rank: usize) -> Adapter {
        let lora = LoraConfig {
            rank,
            ..LoraConfig::default()
        };
        Adapter {
            lora: Some(lora),
            layer_norms: true,
            ..Adapter::default()
        }
    }

    /// The original's: a bottleneck after both sub-layers, and the layer norms of every block.
    pub fn bottleneck(channels: usize) -> Adapter {
        Adapter {
            bottleneck: Some(BottleneckConfig { channels }),
            layer_norms: true,
            ..Adapter::default()
        }
    }

    /// The original's: a Compacter after both sub-layers, and the layer norms of every block.
    pub fn compacter(reduction: usize) -> Adapter {
        let compacter = CompacterConfig {
            reduction,
            ..CompacterConfig::default()
        };
        Adapter {
            compacter: Some(compacter),
            layer_norms: true,
            ..Adapter::default()
        }
    }

    /// Every tensor of the model.
    pub fn full() -> Adapter {
        Adapter {
            full: true,
            ..Adapter::default()
        }
    }

    /// Whether a tensor of the checkpoint is trained.
    pub fn trains(&self, name: &str) -> bool {
        let is_norm = |name: &str| {
            let module = name.rsplit_once('.').map_or(name, |(m, _)| m);
            ends_with(module, "output.LayerNorm")
        };
        self.full
            || (self.layer_norms && is_norm(name))
            || (self.head && name.starts_with("LinearTransformation."))
    }

    /// What it adds that is no branch of a linear layer, by its name, if it adds such a thing.
    pub fn own_layers(&self) -> Option<&'static str> {
        let kinds = [
            ("bottlenecks", self.bottleneck.is_some()),
            ("Compacters", self.compacter.is_some()),
        ];
        kinds.iter().find(|(_, has)| *has).map(|(name, _)| *name)
    }

    /// The branch beside a linear layer, if there is one.
    pub fn lora_at(&self, site: &Site<'_>) -> Option<&LoraConfig> {
        let lora = self.lora.as_ref()?;
        lora.targets
            .iter()
            .any(|t| ends_with(site.module, t))
            .then_some(lora)
    }

    /// Checks that the settings, which are good in themselves, fit a model.
    ///
    /// # Errors
    /// The target of a layer that the model has not, and those of [`CompacterConfig::check_width`].
    pub fn check_model(&self, model: &TextConfig) -> Result<()> {
        if let Some(compacter) = &self.compacter {
            compacter.check_width(model.hidden)?;
        }
        let layers = model.layers;
        let targets = self.lora.iter().flat_map(|l| &l.targets);
        for target in targets {
            let number = target
                .strip_prefix("layer.")
                .and_then(|t| t.split('.').next());
            if number.is_some_and(|n| n.parse().is_ok_and(|n: usize| n >= layers)) {
                return Err(bad_input!(
                    "targets: `{target}` is of no layer; the model's {layers} are counted from 0"
                ));
            }
        }
        Ok(())
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A rank of 0, an unknown target, nothing to train, a mixture with full training.
    pub fn check(&self) -> Result<()> {
        if let Some(lora) = &self.lora {
            if lora.rank == 0 {
                return Err(bad_input!("rank: found 0, expected at least 1"));
            }
            if !lora.alpha.is_finite() || lora.alpha == 0.0 {
                return Err(bad_input!(
                    "alpha: found {}, expected a number not 0",
                    lora.alpha
                ));
            }
            for target in &lora.targets {
                let ending = without_layer(target);
                if !LINEAR_LAYERS.iter().any(|l| ends_with(l, ending)) {
                    let list = LINEAR_LAYERS.join(", ");
                    return Err(bad_input!(
                        "targets: no linear layer ends in `{target}`; there are {list}"
                    ));
                }
            }
            if lora.targets.is_empty() {
                return Err(bad_input!(
                    "targets: expected at least one linear layer, found none"
                ));
            }
        }
        if self.full && *self != Adapter::full() {
            return Err(bad_input!(
                "full training already trains every tensor; drop the others"
            ));
        }
        if let Some(bottleneck) = &self.bottleneck {
            bottleneck.check()?;
        }
        if let Some(compacter) = &self.compacter {
            compacter.check()?;
        }
        if *self == Adapter::default() {
            return Err(bad_input!(
                "nothing to train: choose lora, adapter, compacter, layernorm, head or full"
            ));
        }
        Ok(())
    }
}

/// Initial values of a tensor that the checkpoint does not have, `None` if it must have it:
/// OpenDelta's. `lora_A` (R, K) is uniform in +-1/sqrt(K) (Kaiming with a = sqrt 5), `lora_B` zero.
/// Named random numbers: the same for a member alone and in company.
pub fn initial(name: &str, shape: &[usize], seed: u64) -> Option<Vec<f32>> {
    let len = shape.iter().product();
    if name.ends_with(".lora_A") {
        let bound = 1.0 / (shape[1] as f32).sqrt();
        Some(Stream::named(seed, name).uniform(len, bound))
    } else if name.ends_with(".lora_B") {
        Some(vec![0.0; len])
    } else {
        bottleneck::initial(name, len, seed).or_else(|| compacter::initial(name, shape, seed))
    }
}
