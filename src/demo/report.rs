//! What a demo found, as plain data.

use serde::Serialize;

use super::adapt::{Adapted, STRATEGIES};
use super::captions::Language;
use super::pretrain::Stamp;
use super::run::DemoOptions;
use super::sight::TowerReport;
use crate::eval::retrieval::Recall;

/// The demo's results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DemoReport {
    /// The seed of everything.
    pub seed: u64,
    /// A row for each language, English first.
    pub rows: Vec<LanguageRow>,
    /// The vision tower.
    pub tower: TowerReport,
    /// Parameters of the model.
    pub parameters: usize,
    /// Trainable parameters of one adapter.
    pub trainable: usize,
    /// Their share of the model's.
    pub trainable_share: f64,
    /// Adapters that were trained in one run.
    pub adapters: usize,
    /// Sizes of the world.
    pub world: WorldSizes,
    /// What depends on the machine and its load.
    pub speed: Speed,
}

/// One language.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LanguageRow {
    /// The language.
    pub language: Language,
    /// Captions that the model was pre-trained on.
    pub captions: usize,
    /// The model as it is.
    pub before: Scores,
    /// After adaptation with baseline1; none if it was not adapted.
    pub baseline1: Option<Scores>,
    /// After adaptation with routine1; none if it was not adapted.
    pub routine1: Option<Scores>,
}

/// R@1 on the test items, as fractions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Mean of the two directions.
    pub mean_r1: f64,
    /// Images as queries.
    pub i2t_r1: f64,
    /// Texts as queries.
    pub t2i_r1: f64,
}

/// Sizes of the world.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorldSizes {
    /// Scenes of pre-training.
    pub pool: usize,
    /// Items that each adapter is trained on.
    pub train: usize,
    /// Items to choose by.
    pub validation: usize,
    /// Items that recall is measured on.
    pub test: usize,
    /// Pieces of the vocabulary.
    pub vocab: usize,
}

/// What depends on the machine and its load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Whether the model came from an earlier run; its seconds below are that run's then.
    pub cached: bool,
    /// Tokens a second over the steps of adaptation, all adapters together.
    pub tokens_per_second: f64,
    /// Threads.
    pub threads: usize,
    /// Seconds of world, vision, English, distillation, zero-shot recall and adaptation.
    pub seconds: [f64; 6],
}

impl From<&Recall> for Scores {
    fn from(recall: &Recall) -> Scores {
        Scores {
            mean_r1: recall.mean_r1(),
            i2t_r1: recall.i2t[0],
            t2i_r1: recall.t2i[0],
        }
    }
}

impl DemoReport {
    pub(super) fn new(
        options: &DemoOptions,
        stamp: &Stamp,
        (before, adapted): (&[Recall], &Adapted),
        (seconds, threads, cached): ([f64; 6], usize, bool),
    ) -> DemoReport {
        let rows = Language::ALL
            .into_iter()
            .zip(&stamp.captions)
            .zip(before)
            .map(|((language, captions), before)| {
                let after = adapted.recalls.iter().find(|(l, _)| *l == language);
                let after = after.map(|(_, recalls)| recalls);
                LanguageRow {
                    language,
                    captions: *captions,
                    before: before.into(),
                    baseline1: after.map(|[baseline1, _]| baseline1.into()),
                    routine1: after.map(|[_, routine1]| routine1.into()),
                }
            })
            .collect();
        let r = &options.recipe;
        DemoReport {
            seed: options.seed,
            rows,
            tower: stamp.tower.clone(),
            parameters: stamp.parameters,
            trainable: adapted.parameters,
            trainable_share: adapted.parameters as f64 / stamp.parameters as f64,
            adapters: adapted.recalls.len() * STRATEGIES.len(),
            world: WorldSizes {
                pool: r.n_pool,
                train: r.n_train,
                validation: r.n_val,
                test: r.n_test,
                vocab: stamp.vocab,
            },
            speed: Speed {
                cached,
                tokens_per_second: adapted.tokens as f64 / adapted.seconds.max(1e-9),
                threads,
                seconds,
            },
        }
    }

    /// The language that the model knew least before adaptation.
    pub fn weakest(&self) -> Option<&LanguageRow> {
        let by_recall =
            |a: &&LanguageRow, b: &&LanguageRow| a.before.mean_r1.total_cmp(&b.before.mean_r1);
        self.rows.iter().min_by(by_recall)
    }
}
