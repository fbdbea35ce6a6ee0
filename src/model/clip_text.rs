//! CLIP's own text tower (Radford et al., "Learning transferable visual models from natural language
//! supervision", 2021).
//!
//! Causal, pre-LN: `x += W_o attention(LN(x))`, `x += W2 gelu(W1 LN(x))`; the feature is that of a
//! text's last token, normed and projected. Values of weights carry the names of Hugging Face's CLIP.

use super::text::Builder;
use crate::graph::ValueId;
use crate::ops::add::Add;
use crate::ops::attention::{Attention, Mask};
use crate::ops::embedding::{Embedding, Tables};
use crate::ops::gelu::Gelu;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::linear::{Layer, Linear};
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
        let (mut x, mut normed) = self.clip_embeddings();
        for layer in 0..self.config.layers {
            (x, normed) = self.clip_block((layer, gelu), x, normed);
        }
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
    fn clip_embeddings(&mut self) -> (ValueId, ValueId) {
        let (config, c) = (self.config, self.config.hidden);
        let (weight, bias) = self.norm(&format!("{}.layer_norm1", block(0)));
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

    /// The residual stream behind a block, and its norm in the next one; behind the last, only the
    /// stream.
    fn clip_block(
        &mut self,
        (layer, gelu): (usize, Gelu),
        x: ValueId,
        normed: ValueId,
    ) -> (ValueId, ValueId) {
        let (config, c) = (self.config, self.config.hidden);
        let eps = config.layer_norm_eps;
        let p = block(layer);
        let qkv = ["q_proj", "k_proj", "v_proj"];
        let qkv = qkv.map(|w| self.linear(&format!("{p}.self_attn.{w}"), c, c));
        let inp = (normed, Rows::Tokens);
        let qkv = Linear::push(self.g, &format!("{p}.qkv"), inp, &qkv, None);
        let heads = (config.heads, Mask::Causal);
        let drop = self.drop(self.dropout.attention, layer * 3 + 1);
        let att = Attention::push(self.g, &format!("{p}.self_attn"), qkv, heads, drop);
        let name = format!("{p}.self_attn.out_proj");
        let dense = self.linear(&name, c, c);
        let out = Linear::push(self.g, &name, (att, Rows::Tokens), &[dense], None);
        let out = self.after(&name, out, normed);
        let name = format!("{p}.layer_norm2");
        let norm = self.norm(&name);
        let (x, normed) = LayerNorm::push_sum(self.g, &name, (out, x), norm, eps);
        let name = format!("{p}.mlp.fc1");
        let up = self.linear(&name, config.ffn, c);
        let inp = (normed, Rows::Tokens);
        let act = Linear::push(self.g, &name, inp, &[up], Some(gelu));
        let name = format!("{p}.mlp.fc2");
        let down = self.linear(&name, c, config.ffn);
        let out = Linear::push(self.g, &name, (act, Rows::Tokens), &[down], None);
        let out = self.after(&name, out, normed);
        if layer + 1 == config.layers {
            let x = Add::push(self.g, &format!("{p}.out"), (out, x));
            return (x, x);
        }
        let name = format!("{}.layer_norm1", block(layer + 1));
        let norm = self.norm(&name);
        LayerNorm::push_sum(self.g, &name, (out, x), norm, eps)
    }
}
