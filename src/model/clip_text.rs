//! CLIP's own text tower (Radford et al., "Learning transferable visual models from natural language
//! supervision", 2021).
//!
//! Causal, pre-LN: `x += W_o attention(LN(x))`, `x += W2 gelu(W1 LN(x))`; the feature is that of a
//! text's last token, normed and projected. Values of weights carry the names of Hugging Face's CLIP.

use super::pre_norm::{Blocks, Tower};
use super::text::Builder;
use crate::graph::{Graph, ValueId};
use crate::ops::attention::Mask;
use crate::ops::embedding::{Embedding, Tables};
use crate::ops::gelu::Gelu;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::linear::{Layer, Linear};
use crate::ops::philox::Dropout;
use crate::ops::pool::{Pool, Pooling};
use crate::text::pack::Rows;
use crate::weights::text_model::CLIP_PROJECTION;

/// The name of the word table (V, C).
pub const WORD_EMBEDDINGS: &str = "text_model.embeddings.token_embedding.weight";
/// The name of the position table (P, C).
pub const POSITIONS: &str = "text_model.embeddings.position_embedding.weight";
/// Of a text's last token.
pub const FINAL_NORM: &str = "text_model.final_layer_norm";

/// What stands in front of a block's names.
pub fn block(layer: usize) -> String {
    format!("text_model.encoder.layers.{layer}")
}

impl Builder<'_> {
    /// Adds the tower; returns the features (S, E), not normalised.
    pub(super) fn clip_tower(&mut self, gelu: Gelu, head: bool) -> ValueId {
        let blocks = Blocks {
            name: block,
            layers: self.config.layers,
            hidden: self.config.hidden,
            ffn: self.config.ffn,
            heads: (self.config.heads, Mask::Causal),
            gelu,
            eps: self.config.layer_norm_eps,
        };
        let embedded = self.clip_embeddings(&blocks);
        let x = blocks.push(self, embedded);
        let last = Pool::push(self.g, "pooled", Pooling::Last, x);
        let norm = self.norm(FINAL_NORM);
        let eps = self.config.layer_norm_eps;
        let last = LayerNorm::push_alone(self.g, FINAL_NORM, last, norm, eps);
        if !head {
            return last;
        }
        let dims = [self.config.embed_dim, self.config.hidden];
        let layer = Layer {
            weight: self.weight(CLIP_PROJECTION, &dims),
            bias: None,
            lora: None,
        };
        Linear::push(self.g, "features", (last, Rows::Seqs), &[layer], None)
    }

    /// The residual stream before the first block, and its norm there.
    fn clip_embeddings(&mut self, blocks: &Blocks) -> (ValueId, ValueId) {
        let (config, c) = (self.config, self.config.hidden);
        let (weight, bias) = self.norm(&blocks.first_norm(0));
        let tables = Tables {
            word: self.weight(WORD_EMBEDDINGS, &[config.vocab, c]),
            position: self.weight(POSITIONS, &[config.max_positions, c]),
            token_type: None,
            weight,
            bias,
            prompt: self.adapter.prompt.as_ref().map(|p| p.push(self.g, c)),
        };
        Embedding::push_sum(self.g, "embeddings", tables, config.layer_norm_eps)
    }
}

impl Tower for Builder<'_> {
    fn graph(&mut self) -> &mut Graph {
        self.g
    }

    fn linear(&mut self, name: &str, oc: usize, k: usize) -> Layer {
        Builder::linear(self, name, oc, k)
    }

    fn norm(&mut self, name: &str) -> (ValueId, ValueId) {
        Builder::norm(self, name)
    }

    fn attention_dropout(&self, layer: usize) -> Option<Dropout> {
        self.drop(self.dropout.attention, layer * 3 + 1)
    }

    fn after(&mut self, module: &str, out: ValueId, inp: ValueId) -> ValueId {
        Builder::after(self, module, out, inp)
    }
}
