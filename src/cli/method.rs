//! Options that say what is trained.

use anyhow::Result;
use clap::ValueEnum;
use crosstune::adapter::bottleneck::BottleneckConfig;
use crosstune::adapter::compacter::CompacterConfig;
use crosstune::adapter::prompt::PromptConfig;
use crosstune::adapter::{Adapter, LoraConfig};
use crosstune::bad_input;
use crosstune::train::config::Shared;
use serde::{Deserialize, Serialize};

use super::finite;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Low-rank branches beside linear layers, and the layer norms.
    Lora,
    /// The original's run_cross: low-rank branches beside the attention's four linear layers, the layer
    /// norms and the linear head (its pooler, which no feature passes through, is left out).
    Cross,
    /// Bottlenecks after both sub-layers of every block, or beside them, and the layer norms.
    Adapter,
    /// Bottlenecks of hypercomplex layers in the same places, and the layer norms.
    Compacter,
    /// Every bias of every block alone, of linear layers and of layer norms (BitFit).
    Bitfit,
    /// A soft prompt: vectors after the first token of every text.
    Prompt,
    /// The layer norms of every block alone.
    Layernorm,
    /// The linear head alone.
    Head,
    /// Every tensor.
    Full,
}

/// What is trained, and with how much dropout.
#[derive(clap::Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Method")]
pub struct MethodArgs {
    /// What is trained [default: lora].
    #[arg(long)]
    pub method: Option<Method>,
    /// LoRA's rank R [default: 8; the original's scripts use 1].
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// LoRA's alpha; the branch is multiplied by alpha / R [default: 16].
    #[arg(long, value_parser = finite::<f32>)]
    pub alpha: Option<f32>,
    /// Multiply the branch by alpha / sqrt(R) instead (rslora).
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub rslora: Option<bool>,
    /// Dropout of what LoRA's branches read [default: 0].
    #[arg(long, value_name = "P", value_parser = finite::<f32>)]
    pub lora_dropout: Option<f32>,
    /// Name endings of the linear layers with a branch: query, key, value, attention.output.dense,
    /// intermediate.dense, output.dense [default: query,value].
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub targets: Option<Vec<String>>,
    /// Channels of a bottleneck [default: 24].
    #[arg(long, value_name = "N")]
    pub bottleneck: Option<usize>,
    /// Bottlenecks beside the sub-layers instead of after them.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub parallel: Option<bool>,
    /// A Compacter's bottleneck has this many times fewer channels than the model [default: 16].
    #[arg(long, value_name = "N")]
    pub reduction: Option<usize>,
    /// Blocks of a Compacter's layers; the model and the bottleneck must be multiples [default: 4].
    #[arg(long, value_name = "N")]
    pub phm_dim: Option<usize>,
    /// Vectors of a soft prompt that begins random [default: 4].
    #[arg(long, value_name = "K")]
    pub prompt_length: Option<usize>,
    /// Words that a soft prompt begins as, such as "Language: ", with a vector a token.
    #[arg(long, value_name = "WORDS")]
    pub prompt_text: Option<String>,
    /// With an adapter beside them: leave the layer norms frozen [default: false; true for prompt].
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub freeze_layer_norms: Option<bool>,
    /// Train the linear head too.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub train_head: Option<bool>,
    /// Dropout of the tower, instead of the checkpoint's own (0.1 in M-CLIP).
    #[arg(long, value_name = "P", value_parser = finite::<f32>)]
    pub dropout: Option<f32>,
    /// Dropout of embeddings and sub-layers.
    #[arg(long, value_name = "P", value_parser = finite::<f32>)]
    pub hidden_dropout: Option<f32>,
    /// Dropout of attention probabilities.
    #[arg(long, value_name = "P", value_parser = finite::<f32>)]
    pub attention_dropout: Option<f32>,
}

impl MethodArgs {
    /// Resolves the defaults and checks.
    pub fn shared(&self) -> Result<Shared> {
        let method = self.method.unwrap_or(Method::Lora);
        self.check_options(method)?;
        let layer_norms = !self.freeze_layer_norms.unwrap_or(method == Method::Prompt);
        let with_norms = Adapter {
            layer_norms,
            ..Adapter::default()
        };
        let mut adapter = match method {
            Method::Lora => self.branches(with_norms, LoraConfig::default()),
            Method::Cross => {
                let d = Adapter::cross(LoraConfig::default().rank);
                let lora = d.lora.clone().unwrap_or_default();
                self.branches(Adapter { layer_norms, ..d }, lora)
            }
            Method::Adapter => {
                let d = BottleneckConfig::default();
                let bottleneck = BottleneckConfig {
                    channels: self.bottleneck.unwrap_or(d.channels),
                    parallel: self.parallel.unwrap_or(d.parallel),
                };
                Adapter {
                    bottleneck: Some(bottleneck),
                    ..with_norms
                }
            }
            Method::Compacter => {
                let d = CompacterConfig::default();
                let compacter = CompacterConfig {
                    reduction: self.reduction.unwrap_or(d.reduction),
                    phm_dim: self.phm_dim.unwrap_or(d.phm_dim),
                };
                Adapter {
                    compacter: Some(compacter),
                    ..with_norms
                }
            }
            Method::Bitfit => Adapter::bitfit(),
            Method::Prompt => Adapter {
                prompt: Some(self.prompt()),
                ..with_norms
            },
            Method::Layernorm => Adapter {
                layer_norms: true,
                ..Adapter::default()
            },
            Method::Head => Adapter {
                head: true,
                ..Adapter::default()
            },
            Method::Full => Adapter::full(),
        };
        adapter.head |= self.train_head.unwrap_or(false);
        let shared = Shared {
            adapter,
            hidden_dropout: self.hidden_dropout.or(self.dropout),
            attention_dropout: self.attention_dropout.or(self.dropout),
            max_tokens: None,
        };
        shared.check()?;
        Ok(shared)
    }

    /// An adapter with branches as the options say, by default as `d` says.
    fn branches(&self, adapter: Adapter, d: LoraConfig) -> Adapter {
        let lora = LoraConfig {
            rank: self.rank.unwrap_or(d.rank),
            alpha: self.alpha.unwrap_or(d.alpha),
            targets: self.targets.clone().unwrap_or(d.targets),
            rslora: self.rslora.unwrap_or(d.rslora),
            dropout: self.lora_dropout.unwrap_or(d.dropout),
            ..d
        };
        Adapter {
            lora: Some(lora),
            ..adapter
        }
    }

    /// Fills the defaults in.
    pub fn resolve(&mut self) {
        match *self.method.get_or_insert(Method::Lora) {
            method @ (Method::Lora | Method::Cross) => {
                let d = match method {
                    Method::Cross => Adapter::cross(LoraConfig::default().rank).lora,
                    _ => None,
                };
                let d = d.unwrap_or_default();
                self.rank.get_or_insert(d.rank);
                self.alpha.get_or_insert(d.alpha);
                self.rslora.get_or_insert(d.rslora);
                self.lora_dropout.get_or_insert(d.dropout);
                self.targets.get_or_insert(d.targets);
            }
            Method::Adapter => {
                let d = BottleneckConfig::default();
                self.bottleneck.get_or_insert(d.channels);
                self.parallel.get_or_insert(d.parallel);
            }
            Method::Compacter => {
                let d = CompacterConfig::default();
                self.reduction.get_or_insert(d.reduction);
                self.phm_dim.get_or_insert(d.phm_dim);
            }
            Method::Prompt if self.prompt_text.is_some() => {}
            Method::Prompt => {
                let d = PromptConfig::default();
                self.prompt_length.get_or_insert(d.length);
            }
            Method::Bitfit | Method::Layernorm | Method::Head | Method::Full => {}
        }
    }

    fn prompt(&self) -> PromptConfig {
        match (&self.prompt_text, self.prompt_length) {
            (Some(text), _) => PromptConfig::of_words(text),
            (None, Some(length)) => PromptConfig::random(length),
            (None, None) => PromptConfig::default(),
        }
    }

    /// Fails if an option is given that the method has no use for.
    fn check_options(&self, method: Method) -> Result<()> {
        if self.prompt_length.is_some() && self.prompt_text.is_some() {
            return Err(bad_input!(
                "prompt-length: the tokens of --prompt-text say it; drop one of the two"
            )
            .into());
        }
        match self.unused(method).first() {
            None => Ok(()),
            Some((name, methods)) => {
                let names: Vec<String> = methods.iter().map(Method::to_string).collect();
                let names = names.join(" or ");
                Err(bad_input!("{name}: goes with --method {names} alone").into())
            }
        }
    }

    /// The given options that a method has no use for, and the methods that have one.
    pub fn unused(&self, method: Method) -> Vec<(&'static str, &'static [Method])> {
        let lora = &[Method::Lora, Method::Cross][..];
        let adapter = &[Method::Adapter][..];
        let compacter = &[Method::Compacter][..];
        let prompt = &[Method::Prompt][..];
        let mut options: Vec<(&str, bool, &[Method])> = vec![
            ("rank", self.rank.is_some(), lora),
            ("alpha", self.alpha.is_some(), lora),
            ("rslora", self.rslora.is_some(), lora),
            ("lora-dropout", self.lora_dropout.is_some(), lora),
            ("targets", self.targets.is_some(), lora),
            ("bottleneck", self.bottleneck.is_some(), adapter),
            ("parallel", self.parallel.is_some(), adapter),
            ("reduction", self.reduction.is_some(), compacter),
            ("phm-dim", self.phm_dim.is_some(), compacter),
            ("prompt-length", self.prompt_length.is_some(), prompt),
            ("prompt-text", self.prompt_text.is_some(), prompt),
            (
                "train-head",
                self.train_head.is_some(),
                &[
                    Method::Lora,
                    Method::Adapter,
                    Method::Compacter,
                    Method::Prompt,
                    Method::Bitfit,
                    Method::Layernorm,
                ],
            ),
            (
                "freeze-layer-norms",
                self.freeze_layer_norms.is_some(),
                &[
                    Method::Lora,
                    Method::Cross,
                    Method::Adapter,
                    Method::Compacter,
                    Method::Prompt,
                ],
            ),
        ];
        options.retain(|(_, given, methods)| *given && !methods.contains(&method));
        options
            .into_iter()
            .map(|(name, _, methods)| (name, methods))
            .collect()
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |v| v.get_name()))
    }
}
