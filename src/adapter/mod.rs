//! Adapters: which tensors are trained, and what is added to the frozen model.

pub mod bottleneck;
pub mod compacter;
mod delta_config;
mod deltas;
pub mod file;
mod found;
pub mod lora;
pub mod merge;
pub mod opendelta;
pub mod peft;
mod peft_config;
pub mod prompt;

use std::borrow::Cow;

use bottleneck::BottleneckConfig;
use compacter::CompacterConfig;
use lora::Branch;
pub use lora::LoraConfig;
use prompt::PromptConfig;

use crate::bad_input;
use crate::error::Result;
use crate::weights::config::TextConfig;
use crate::weights::text_model::is_head;

/// What is trained.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Adapter {
    /// Low-rank branches, if any.
    pub lora: Option<LoraConfig>,
    /// Bottlenecks on what each sub-layer gives, if any.
    pub bottleneck: Option<BottleneckConfig>,
    /// Bottlenecks of hypercomplex layers on what each sub-layer gives, if any.
    pub compacter: Option<CompacterConfig>,
    /// Trained vectors in every text, if any.
    pub prompt: Option<PromptConfig>,
    /// Whether the layer norms of every block (`output.LayerNorm`; of CLIP's own tower `layer_norm1` and
    /// `layer_norm2`) are trained; those before and behind the blocks are not.
    pub layer_norms: bool,
    /// Whether every bias of every block is trained, of linear layers and of layer norms: BitFit (Ben
    /// Zaken, Goldberg and Ravfogel, 2022). Those of the embeddings' norm and of the head are not
    /// among the paper's equations and stay as they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub biases: bool,
    /// Whether the linear head is trained.
    pub head: bool,
    /// Whether every tensor of the model is trained. Nothing else may be set then.
    pub full: bool,
}

/// What stands in front of a block's number in M-CLIP.
const BLOCKS: &str = "transformer.encoder.layer.";
/// The same in CLIP's own text tower.
const CLIP_BLOCKS: &str = "text_model.encoder.layers.";

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

/// The name of a block's linear layer as M-CLIP has it, where it is one of CLIP's own text tower.
fn standard(module: &str) -> Cow<'_, str> {
    const OWN: [(&str, &str); 6] = [
        ("self_attn.q_proj", LINEAR_LAYERS[0]),
        ("self_attn.k_proj", LINEAR_LAYERS[1]),
        ("self_attn.v_proj", LINEAR_LAYERS[2]),
        ("self_attn.out_proj", LINEAR_LAYERS[3]),
        ("mlp.fc1", LINEAR_LAYERS[4]),
        ("mlp.fc2", LINEAR_LAYERS[5]),
    ];
    let clip = || {
        let (layer, rest) = module.strip_prefix(CLIP_BLOCKS)?.split_once('.')?;
        let (_, name) = OWN.iter().find(|(own, _)| *own == rest)?;
        Some(format!("{BLOCKS}{layer}.{name}"))
    };
    clip().map_or(Cow::Borrowed(module), Cow::Owned)
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

    /// The original's `run_cross`: LoRA beside all four linear layers of the attention, the layer
    /// norms and the head. It also makes the pooler trainable, which no feature of M-CLIP passes
    /// through: its values never change, so it is left out here.
    pub fn cross(rank: usize) -> Adapter {
        let mut adapter = Adapter::lora(rank);
        if let Some(lora) = &mut adapter.lora {
            let all = ["query", "value", "key", "attention.output.dense"];
            lora.targets = all.map(String::from).to_vec();
        }
        Adapter {
            head: true,
            ..adapter
        }
    }

    /// The original's: a bottleneck after both sub-layers, and the layer norms of every block.
    pub fn bottleneck(channels: usize) -> Adapter {
        Adapter {
            bottleneck: Some(BottleneckConfig {
                channels,
                ..BottleneckConfig::default()
            }),
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

    /// BitFit: every bias of the blocks.
    pub fn bitfit() -> Adapter {
        Adapter {
            biases: true,
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

    /// The same where nothing is dropped: for evaluation.
    pub fn without_dropout(&self) -> Adapter {
        let mut adapter = self.clone();
        if let Some(lora) = &mut adapter.lora {
            lora.dropout = 0.0;
        }
        adapter
    }

    /// Whether a tensor of the checkpoint is trained.
    pub fn trains(&self, name: &str) -> bool {
        let is_norm = |name: &str| {
            let module = name.rsplit_once('.').map_or(name, |(m, _)| m);
            let clips = |n| name.starts_with(CLIP_BLOCKS) && ends_with(module, n);
            ends_with(module, "output.LayerNorm") || clips("layer_norm1") || clips("layer_norm2")
        };
        let in_block = |name: &str| name.starts_with(BLOCKS) || name.starts_with(CLIP_BLOCKS);
        self.full
            || (self.layer_norms && is_norm(name))
            || (self.biases && in_block(name) && name.ends_with(".bias"))
            || (self.head && is_head(name))
    }

    /// What it adds that is no branch of a linear layer, by its name, if it adds such a thing.
    pub fn own_layers(&self) -> Option<&'static str> {
        let kinds = [
            ("bottlenecks", self.bottleneck.is_some()),
            ("Compacters", self.compacter.is_some()),
        ];
        kinds.iter().find(|(_, has)| *has).map(|(name, _)| *name)
    }

    /// The branch beside the linear layer of that name, if there is one.
    pub fn lora_at(&self, module: &str) -> Option<Branch> {
        self.lora.as_ref()?.at(module)
    }

    /// Checks that the settings, which are good in themselves, fit a model.
    ///
    /// # Errors
    /// Those of [`CompacterConfig::check_width`], [`PromptConfig::check_positions`] and
    /// [`LoraConfig::check_layers`].
    pub fn check_model(&self, model: &TextConfig) -> Result<()> {
        if let Some(compacter) = &self.compacter {
            compacter.check_width(model.hidden)?;
        }
        if let Some(prompt) = &self.prompt {
            prompt.check_positions(model.max_tokens())?;
        }
        let lora = self.lora.as_ref();
        lora.map_or(Ok(()), |l| l.check_layers(model.layers))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A rank of 0, an unknown target, nothing to train, a mixture with full training.
    pub fn check(&self) -> Result<()> {
        if let Some(lora) = &self.lora {
            lora.check()?;
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
        if let Some(prompt) = &self.prompt {
            prompt.check()?;
        }
        if *self == Adapter::default() {
            return Err(bad_input!(
                "nothing to train: choose lora, adapter, compacter, prompt, bitfit, layernorm, head or \
                 full"
            ));
        }
        Ok(())
    }
}

/// Initial values of a tensor that the checkpoint does not have, `None` if it must have it. Named
/// random numbers: the same for a member alone and in company.
pub fn initial(name: &str, shape: &[usize], seed: u64) -> Option<Vec<f32>> {
    let len = shape.iter().product();
    lora::initial(name, shape, seed)
        .or_else(|| bottleneck::initial(name, len, seed))
        .or_else(|| compacter::initial(name, shape, seed))
        .or_else(|| prompt::initial(name, len, seed))
}
