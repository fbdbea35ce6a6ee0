//! The vision tower: CLIP's ViT, and DINOv2's (Radford et al., "Learning transferable visual models from
//! natural language supervision", 2021; Oquab et al., "DINOv2", 2023).
//!
//! Pre-LN blocks: `x += W_o attention(LN(x))`, `x += W2 gelu(W1 LN(x))`; the feature is the class
//! token's, normed and projected. Values of weights carry the names of Hugging Face's CLIP.

use super::pre_norm::{Blocks, Tower};
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::ops::attention::Mask;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::linear::{Layer, Linear};
use crate::ops::pool::{Pool, Pooling};
use crate::ops::vision_embedding::VisionEmbedding;
use crate::text::pack::Rows;
use crate::weights::vision::VisionConfig;

/// Names of weights.
pub mod names {
    /// (C, 3 P P)
    pub const PATCH: &str = "vision_model.embeddings.patch_embedding.weight";
    /// (C); CLIP has none.
    pub const PATCH_BIAS: &str = "vision_model.embeddings.patch_embedding.bias";
    /// (C)
    pub const CLASS: &str = "vision_model.embeddings.class_embedding";
    /// (tokens, C)
    pub const POSITION: &str = "vision_model.embeddings.position_embedding.weight";
    /// Spelt so.
    pub const PRE_NORM: &str = "vision_model.pre_layrnorm";
    /// Of the class token.
    pub const POST_NORM: &str = "vision_model.post_layernorm";
    /// (E, C)
    pub const PROJECTION: &str = "visual_projection.weight";

    /// What stands in front of a block's names.
    pub fn block(layer: usize) -> String {
        format!("vision_model.encoder.layers.{layer}")
    }
}

/// The input: patches (T, 3 P P), the row of each picture's class token being read by nothing.
pub const PATCHES: &str = "patches";

struct Builder<'a> {
    g: &'a mut Graph,
    config: &'a VisionConfig,
    trains: &'a dyn Fn(&str) -> bool,
}

/// Adds the vision tower; returns the features (S, E), not normalised. `trains` says which weights are
/// trained, of those behind the embeddings.
pub fn vision_tower(
    g: &mut Graph,
    config: &VisionConfig,
    trains: &dyn Fn(&str) -> bool,
) -> ValueId {
    let mut b = Builder { g, config, trains };
    let blocks = Blocks {
        name: names::block,
        layers: config.layers,
        hidden: config.hidden,
        ffn: config.ffn,
        heads: (config.heads, Mask::All),
        gelu: config.gelu,
        eps: config.layer_norm_eps,
    };
    let embedded = b.embeddings(&blocks);
    let x = blocks.push(&mut b, embedded);
    let class = Pool::push(b.g, "class", Pooling::First, x);
    let norm = b.norm(names::POST_NORM);
    let class = LayerNorm::push_alone(b.g, names::POST_NORM, class, norm, config.layer_norm_eps);
    if !config.projection {
        return class;
    }
    let weight = b.weight(names::PROJECTION, &[config.embed_dim, config.hidden]);
    let layer = Layer {
        weight,
        bias: None,
        lora: None,
    };
    Linear::push(b.g, "features", (class, Rows::Seqs), &[layer], None)
}

impl Builder<'_> {
    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let dims = shape.iter().map(|n| Dim::N(*n));
        if (self.trains)(name) {
            let dims = std::iter::once(Dim::Members).chain(dims).collect();
            return self.g.value(name, dims, Role::Trainable);
        }
        self.g.value(name, dims.collect(), Role::Frozen)
    }

    /// The residual stream before the first block, and its norm there.
    fn embeddings(&mut self, blocks: &Blocks) -> (ValueId, ValueId) {
        let (config, eps) = (self.config, self.config.layer_norm_eps);
        let shape = vec![Dim::Tokens, Dim::N(config.patch_len())];
        let patches = self.g.value(PATCHES, shape, Role::Input);
        let layer = Layer {
            weight: self.weight(names::PATCH, &[config.hidden, config.patch_len()]),
            bias: config
                .patch_bias
                .then(|| self.weight(names::PATCH_BIAS, &[config.hidden])),
            lora: None,
        };
        let inp = (patches, Rows::Tokens);
        let patches = Linear::push(self.g, "patches.embedded", inp, &[layer], None);
        let class = self.weight(names::CLASS, &[config.hidden]);
        let position = self.weight(names::POSITION, &[config.tokens(), config.hidden]);
        let mut x = VisionEmbedding::push(self.g, "embeddings", patches, (class, position));
        if config.pre_norm {
            let norm = self.norm(names::PRE_NORM);
            x = LayerNorm::push_alone(self.g, names::PRE_NORM, x, norm, eps);
        }
        let name = blocks.first_norm(0);
        let norm = self.norm(&name);
        (x, LayerNorm::push_alone(self.g, &name, x, norm, eps))
    }
}

impl Tower for Builder<'_> {
    fn graph(&mut self) -> &mut Graph {
        self.g
    }

    fn norm(&mut self, name: &str) -> (ValueId, ValueId) {
        let c = self.config.hidden;
        let weight = self.weight(&format!("{name}.weight"), &[c]);
        (weight, self.weight(&format!("{name}.bias"), &[c]))
    }

    fn linear(&mut self, name: &str, oc: usize, k: usize) -> Layer {
        Layer {
            weight: self.weight(&format!("{name}.weight"), &[oc, k]),
            bias: Some(self.weight(&format!("{name}.bias"), &[oc])),
            lora: None,
        }
    }
}
