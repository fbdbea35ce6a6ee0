//! The text tower: XLM-R or BERT, masked mean pooling, linear head; or CLIP's own ([`clip_text`]).
//!
//! Post-LN layers: `h = LN(x + drop(W_o attention))`, `y = LN(h + drop(W2 gelu(W1 h)))`; then the mean
//! of a text's tokens and M-CLIP's `LinearTransformation`. Values of weights carry the names of an
//! M-CLIP checkpoint.

use super::clip_text;
use crate::adapter::Adapter;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::ops::attention::{Attention, Mask};
use crate::ops::embedding::{Embedding, Tables};
use crate::ops::gelu::Gelu;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::linear::{Layer, Linear, LoraLayer};
use crate::ops::philox::Dropout;
use crate::ops::pool::{Pool, Pooling};
use crate::text::pack::Rows;
use crate::weights::config::{Encoder, TextConfig};
use crate::weights::text_model::{HEAD_BIAS, HEAD_WEIGHT};

/// The name of the word table (V, C).
pub const WORD_EMBEDDINGS: &str = "transformer.embeddings.word_embeddings.weight";

/// The name of a tower's word table.
pub fn word_embeddings(config: &TextConfig) -> &'static str {
    match config.encoder {
        Encoder::XlmRoberta | Encoder::Bert => WORD_EMBEDDINGS,
        Encoder::Clip(_) => clip_text::WORD_EMBEDDINGS,
    }
}

/// Dropout probabilities of a run; both 0 for evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutRates {
    /// On the embeddings and on what each sub-layer gives.
    pub hidden: f32,
    /// On attention probabilities.
    pub attention: f32,
}

impl DropoutRates {
    /// No dropout.
    pub const NONE: DropoutRates = DropoutRates {
        hidden: 0.0,
        attention: 0.0,
    };
}

/// Pushes the tower's nodes and keeps what they share.
pub(super) struct Builder<'a> {
    pub(super) g: &'a mut Graph,
    pub(super) config: &'a TextConfig,
    pub(super) adapter: &'a Adapter,
    pub(super) dropout: DropoutRates,
    /// Linear layers of blocks so far.
    n_linear: usize,
}

/// Adds the text tower; returns the features (S, E), not normalised.
///
/// `head` says whether the checkpoint has a `LinearTransformation`; without one the feature is the
/// pooled text.
pub fn text_tower(
    g: &mut Graph,
    config: &TextConfig,
    head: bool,
    adapter: &Adapter,
    dropout: DropoutRates,
) -> ValueId {
    let mut b = Builder {
        g,
        config,
        adapter,
        dropout,
        n_linear: 0,
    };
    if let Encoder::Clip(gelu) = config.encoder {
        return b.clip_tower(gelu, head);
    }
    let mut x = b.embedding();
    for layer in 0..config.layers {
        x = b.layer(layer, x);
    }
    let pooled = Pool::push(b.g, "pooled", Pooling::Mean, x);
    if !head {
        return pooled;
    }
    let weight = b.weight(HEAD_WEIGHT, &[config.embed_dim, config.hidden]);
    let bias = Some(b.weight(HEAD_BIAS, &[config.embed_dim]));
    let layer = Layer {
        weight,
        bias,
        lora: None,
    };
    Linear::push(b.g, "features", (pooled, Rows::Seqs), &[layer], None)
}

impl Builder<'_> {
    /// A weight of the checkpoint: frozen, or trainable where the adapter says so.
    pub(super) fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let dims = shape.iter().map(|n| Dim::N(*n));
        if self.adapter.trains(name) {
            let dims = std::iter::once(Dim::Members).chain(dims).collect();
            self.g.value(name, dims, Role::Trainable)
        } else {
            self.g.value(name, dims.collect(), Role::Frozen)
        }
    }

    pub(super) fn drop(&self, p: f32, site: usize) -> Option<Dropout> {
        (p > 0.0).then_some(Dropout {
            p,
            site: site as u32,
        })
    }

    fn embedding(&mut self) -> ValueId {
        let (config, c) = (self.config, self.config.hidden);
        let e = "transformer.embeddings";
        let tables = Tables {
            word: self.weight(WORD_EMBEDDINGS, &[config.vocab, c]),
            position: self.weight(
                &format!("{e}.position_embeddings.weight"),
                &[config.max_positions, c],
            ),
            token_type: Some(self.weight(
                &format!("{e}.token_type_embeddings.weight"),
                &[config.token_types, c],
            )),
            weight: self.weight(&format!("{e}.LayerNorm.weight"), &[c]),
            bias: self.weight(&format!("{e}.LayerNorm.bias"), &[c]),
            prompt: self.adapter.prompt.as_ref().map(|p| p.push(self.g, c)),
        };
        let dropout = self.drop(self.dropout.hidden, 0);
        Embedding::push(self.g, "embeddings", tables, config.layer_norm_eps, dropout)
    }

    /// A linear layer of a block, with its low-rank branch if the adapter puts one there.
    pub(super) fn linear(&mut self, name: &str, oc: usize, k: usize) -> Layer {
        let weight = self.weight(&format!("{name}.weight"), &[oc, k]);
        let bias = Some(self.weight(&format!("{name}.bias"), &[oc]));
        // Sites up to here are those of the layers' own dropout.
        let site = self.config.layers * 3 + 1 + self.n_linear;
        self.n_linear += 1;
        let lora = self.adapter.lora_at(name).map(|l| {
            let mut factor = |suffix: &str, shape: [usize; 2]| {
                let dims = vec![Dim::Members, Dim::N(shape[0]), Dim::N(shape[1])];
                self.g
                    .value(format!("{name}.lora.{suffix}"), dims, Role::Trainable)
            };
            LoraLayer {
                lora_a: factor("lora_A", [l.rank, k]),
                lora_b: factor("lora_B", [oc, l.rank]),
                scale: l.scale,
                dropout: self.drop(l.dropout, site),
            }
        });
        Layer { weight, bias, lora }
    }

    /// What the adapter makes of the result of a sub-layer that read `inp`.
    pub(super) fn after(&mut self, module: &str, out: ValueId, inp: ValueId) -> ValueId {
        let out = match &self.adapter.bottleneck {
            Some(b) => b.push(self.g, module, out, inp),
            None => out,
        };
        match &self.adapter.compacter {
            Some(c) => c.push(self.g, module, out),
            None => out,
        }
    }

    pub(super) fn norm(&mut self, name: &str) -> (ValueId, ValueId) {
        let c = self.config.hidden;
        let weight = self.weight(&format!("{name}.weight"), &[c]);
        (weight, self.weight(&format!("{name}.bias"), &[c]))
    }

    fn layer(&mut self, layer: usize, x: ValueId) -> ValueId {
        let (c, ffn, eps) = (
            self.config.hidden,
            self.config.ffn,
            self.config.layer_norm_eps,
        );
        let p = format!("encoder.layer.{layer}");
        let qkv: Vec<Layer> = ["query", "key", "value"]
            .iter()
            .map(|which| self.linear(&format!("transformer.{p}.attention.self.{which}"), c, c))
            .collect();
        let qkv = Linear::push(self.g, &format!("{p}.qkv"), (x, Rows::Tokens), &qkv, None);
        let attention_drop = self.drop(self.dropout.attention, layer * 3 + 1);
        let name = format!("{p}.attention");
        let att = Attention::push(
            self.g,
            &name,
            qkv,
            (self.config.heads, Mask::All),
            attention_drop,
        );
        let dense = self.linear(&format!("transformer.{p}.attention.output.dense"), c, c);
        let name = format!("{p}.attention.output.dense");
        let out = Linear::push(self.g, &name, (att, Rows::Tokens), &[dense], None);
        let out = self.after(&format!("transformer.{name}"), out, x);
        let norm = self.norm(&format!("transformer.{p}.attention.output.LayerNorm"));
        let drop = self.drop(self.dropout.hidden, layer * 3 + 2);
        let name = format!("{p}.attention.output.LayerNorm");
        let h = LayerNorm::push(self.g, &name, (out, x), norm, eps, drop);
        let up = self.linear(&format!("transformer.{p}.intermediate.dense"), ffn, c);
        let name = format!("{p}.intermediate.dense");
        let act = Linear::push(self.g, &name, (h, Rows::Tokens), &[up], Some(Gelu::Exact));
        let down = self.linear(&format!("transformer.{p}.output.dense"), c, ffn);
        let name = format!("{p}.output.dense");
        let out = Linear::push(self.g, &name, (act, Rows::Tokens), &[down], None);
        let out = self.after(&format!("transformer.{name}"), out, h);
        let norm = self.norm(&format!("transformer.{p}.output.LayerNorm"));
        let drop = self.drop(self.dropout.hidden, layer * 3 + 3);
        LayerNorm::push(
            self.g,
            &format!("{p}.output.LayerNorm"),
            (out, h),
            norm,
            eps,
            drop,
        )
    }
}
