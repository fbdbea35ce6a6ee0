//! The blocks of pre-LN transformers under the names of Hugging Face's CLIP, for pictures and for texts:
//! `x += W_o attention(LN(x))`, `x += W2 gelu(W1 LN(x))`.

use crate::graph::{Graph, ValueId};
use crate::ops::add::Add;
use crate::ops::attention::{Attention, Mask};
use crate::ops::gelu::Gelu;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::linear::{Layer, Linear};
use crate::ops::philox::Dropout;
use crate::text::pack::Rows;

/// A tower that is being built: its weights, and what an adapter adds to them.
pub(super) trait Tower {
    /// The graph.
    fn graph(&mut self) -> &mut Graph;

    /// A linear layer (OC, K).
    fn linear(&mut self, name: &str, oc: usize, k: usize) -> Layer;

    /// Weight and bias (C) of a layer norm.
    fn norm(&mut self, name: &str) -> (ValueId, ValueId);

    /// Dropout of a block's attention probabilities.
    fn attention_dropout(&self, _layer: usize) -> Option<Dropout> {
        None
    }

    /// What an adapter makes of the result of a sub-layer that read `inp`.
    fn after(&mut self, _module: &str, out: ValueId, _inp: ValueId) -> ValueId {
        out
    }
}

/// Blocks of one shape.
pub(super) struct Blocks {
    /// What stands in front of a block's names.
    pub name: fn(usize) -> String,
    /// How many there are.
    pub layers: usize,
    /// Channels C.
    pub hidden: usize,
    /// Channels of the feed-forward network.
    pub ffn: usize,
    /// Attention heads, and what a query sees.
    pub heads: (usize, Mask),
    /// Of the feed-forward network.
    pub gelu: Gelu,
    /// Added to the variance in every layer norm.
    pub eps: f32,
}

impl Blocks {
    /// The name of a block's norm before its attention: of the first one's, the embeddings push the op.
    pub fn first_norm(&self, layer: usize) -> String {
        format!("{}.layer_norm1", (self.name)(layer))
    }

    /// Adds the blocks on the residual stream and its norm in the first of them; returns the stream
    /// behind the last.
    pub fn push(&self, t: &mut impl Tower, (x, normed): (ValueId, ValueId)) -> ValueId {
        let (mut x, mut normed) = (x, normed);
        for layer in 0..self.layers {
            let (stream, out) = self.block(t, layer, x, normed);
            if layer + 1 == self.layers {
                return Add::push(
                    t.graph(),
                    &format!("{}.out", (self.name)(layer)),
                    (out, stream),
                );
            }
            let name = self.first_norm(layer + 1);
            let norm = t.norm(&name);
            (x, normed) = LayerNorm::push_sum(t.graph(), &name, (out, stream), norm, self.eps);
        }
        x
    }

    /// The stream between a block's two halves, and what the second one adds to it.
    fn block(
        &self,
        t: &mut impl Tower,
        layer: usize,
        x: ValueId,
        normed: ValueId,
    ) -> (ValueId, ValueId) {
        let (p, c) = ((self.name)(layer), self.hidden);
        let qkv = ["q_proj", "k_proj", "v_proj"];
        let qkv = qkv.map(|w| t.linear(&format!("{p}.self_attn.{w}"), c, c));
        let inp = (normed, Rows::Tokens);
        let qkv = Linear::push(t.graph(), &format!("{p}.qkv"), inp, &qkv, None);
        let drop = t.attention_dropout(layer);
        let name = format!("{p}.self_attn");
        let att = Attention::push(t.graph(), &name, qkv, self.heads, drop);
        let name = format!("{p}.self_attn.out_proj");
        let dense = t.linear(&name, c, c);
        let out = Linear::push(t.graph(), &name, (att, Rows::Tokens), &[dense], None);
        let out = t.after(&name, out, normed);
        let name = format!("{p}.layer_norm2");
        let norm = t.norm(&name);
        let (x, normed) = LayerNorm::push_sum(t.graph(), &name, (out, x), norm, self.eps);
        let name = format!("{p}.mlp.fc1");
        let up = t.linear(&name, self.ffn, c);
        let inp = (normed, Rows::Tokens);
        let act = Linear::push(t.graph(), &name, inp, &[up], Some(self.gelu));
        let name = format!("{p}.mlp.fc2");
        let down = t.linear(&name, c, self.ffn);
        let out = Linear::push(t.graph(), &name, (act, Rows::Tokens), &[down], None);
        (x, t.after(&name, out, normed))
    }
}
