//! The sizes of a demo: its world, its model, and how long each part of it is trained.

use serde::{Deserialize, Serialize};

use super::world::WorldConfig;
use crate::train::config::MemberConfig;
use crate::train::objective::Strategy;
use crate::weights::config::TensorSizes;

/// Everything that decides a demo's numbers, beside its seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Scenes that the small model is pre-trained on.
    pub n_pool: usize,
    /// Items that a language is adapted on.
    pub n_train: usize,
    /// Items to choose a step on; the demo reports the last step and leaves them to its users.
    pub n_val: usize,
    /// Items that recall is measured on.
    pub n_test: usize,
    /// The vision tower, and how it learns to see.
    pub vision: VisionRecipe,
    /// The most pieces of the vocabulary.
    pub vocab: usize,
    /// Channels C.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of the feed-forward network.
    pub ffn: usize,
    /// Length of the noise on a teacher's feature, whose own is 1.
    pub noise: f32,
    /// Languages that are adapted: those that the model knows least.
    pub n_adapted: usize,
    /// Rank of the low-rank branches in adaptation.
    pub rank: usize,
    /// Weight of routine1's text loss.
    pub ratio: f32,
    /// English first: captions meet their pictures.
    pub english: Stage,
    /// Then every language meets the English teacher.
    pub distillation: Stage,
    /// A few parameters for one language.
    pub adaptation: Stage,
}

/// A vision tower's sizes and its training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisionRecipe {
    /// Channels C.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads: one a patch lets the class token read each place in its own way.
    pub heads: usize,
    /// Channels of the feed-forward network.
    pub ffn: usize,
    /// The pool's pictures meet the hand-made map's vectors.
    pub stage: Stage,
}

/// How a stage is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Passes over its data.
    pub epochs: usize,
    /// Items a step.
    pub batch: usize,
    /// Learning rate at its highest.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup: usize,
}

/// Rows of the position table: texts of up to 96 tokens.
const MAX_POSITIONS: usize = 98;

impl Recipe {
    /// The demo that a user sees.
    pub fn full() -> Recipe {
        Recipe {
            n_pool: 5000,
            n_train: 600,
            n_val: 50,
            n_test: 250,
            vision: VisionRecipe {
                hidden: 96,
                layers: 2,
                heads: 16,
                ffn: 192,
                stage: Stage {
                    epochs: 4,
                    batch: 32,
                    lr: 8e-3,
                    warmup: 40,
                },
            },
            vocab: 1000,
            hidden: 128,
            layers: 2,
            heads: 4,
            ffn: 256,
            noise: 1.0,
            n_adapted: 3,
            rank: 2,
            ratio: 1.0,
            english: Stage {
                epochs: 8,
                batch: 64,
                lr: 2e-3,
                warmup: 40,
            },
            distillation: Stage {
                epochs: 2,
                batch: 64,
                lr: 2e-3,
                warmup: 20,
            },
            adaptation: Stage {
                epochs: 10,
                batch: 25,
                lr: 6e-3,
                warmup: 5,
            },
        }
    }

    /// A smaller one for tests, about a quarter of the work.
    pub fn quick() -> Recipe {
        let full = Recipe::full();
        let short = |stage: Stage| Stage { lr: 3e-3, ..stage };
        Recipe {
            n_pool: 3000,
            n_train: 1000,
            n_val: 20,
            n_test: 200,
            hidden: 64,
            ffn: 128,
            vision: VisionRecipe {
                hidden: 64,
                ffn: 128,
                ..full.vision
            },
            english: short(full.english),
            distillation: Stage {
                epochs: 3,
                ..short(full.distillation)
            },
            adaptation: Stage {
                epochs: 6,
                ..full.adaptation
            },
            n_adapted: 1,
            ..full
        }
    }

    /// Sizes of the world, under a seed.
    pub fn world(&self, seed: u64) -> WorldConfig {
        WorldConfig {
            seed,
            n_pool: self.n_pool,
            n_train: self.n_train,
            n_val: self.n_val,
            n_test: self.n_test,
        }
    }

    /// Whether both have the same world and the same frozen model: all but adaptation is equal.
    pub(super) fn gives_the_model_of(&self, other: &Recipe) -> bool {
        let adapted = Recipe {
            rank: other.rank,
            n_adapted: other.n_adapted,
            ratio: other.ratio,
            adaptation: other.adaptation,
            ..*self
        };
        adapted == *other
    }

    /// Sizes of the model's tensors.
    pub(super) fn sizes(&self, vocab: usize, embed_dim: usize) -> TensorSizes {
        TensorSizes {
            vocab,
            hidden: self.hidden,
            layers: self.layers,
            ffn: self.ffn,
            max_positions: MAX_POSITIONS,
            token_types: 1,
            head: Some(embed_dim),
        }
    }
}

impl Stage {
    /// As settings of a run.
    pub(super) fn member(&self, strategy: Strategy, seed: u64) -> MemberConfig {
        MemberConfig {
            strategy,
            lr: self.lr,
            warmup: self.warmup,
            epochs: self.epochs,
            batch: self.batch,
            seed,
            eval_every: 0,
            ..MemberConfig::default()
        }
    }
}
