//! Settings of a run: what all members share, and what each has of its own.

use serde::{Deserialize, Serialize};

use super::examples::Examples;
use super::objective::{Strategy, TextLoss};
use crate::adapter::Adapter;
use crate::bad_input;
use crate::error::Result;
use crate::eval::retrieval::Recall;
use crate::model::text::DropoutRates;
use crate::weights::config::TextConfig;
use crate::weights::text_model::HEAD_WEIGHT;

/// What decides which evaluation was the best one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectBy {
    /// Mean of image-to-text and text-to-image R@1, rounded to four digits: the original's.
    #[default]
    MeanR1,
    /// The same at 5.
    MeanR5,
    /// The same at 10.
    MeanR10,
    /// Mean of all six recalls.
    MeanRecall,
}

impl SelectBy {
    /// The score of an evaluation, rounded to four digits.
    pub fn score(self, r: &Recall) -> f64 {
        let at = |k: usize| (r.i2t[k] + r.t2i[k]) / 2.0;
        let exact = match self {
            SelectBy::MeanR1 => return r.score(),
            SelectBy::MeanR5 => at(1),
            SelectBy::MeanR10 => at(2),
            SelectBy::MeanRecall => (at(0) + at(1) + at(2)) / 3.0,
        };
        round4(exact)
    }
}

/// Four digits, as the original rounds a score.
pub(super) fn round4(score: f64) -> f64 {
    (score * 1e4).round() / 1e4
}

/// What all members of a run share: the graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// What is trained.
    pub adapter: Adapter,
    /// Dropout of embeddings and sub-layers; the checkpoint's own where not set.
    pub hidden_dropout: Option<f32>,
    /// Dropout of attention probabilities; the checkpoint's own where not set.
    pub attention_dropout: Option<f32>,
    /// Most packed tokens of a pass through the tower; a step of more is made in pieces, in the
    /// memory of this many, at the cost of a second forward pass. No limit where not set. Rounding
    /// differs where a member's texts are cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
}

/// What a member has of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberConfig {
    /// Which texts meet.
    pub strategy: Strategy,
    /// How anchor and partner are drawn together.
    pub text_loss: TextLoss,
    /// Weight of the text loss.
    pub ratio: f32,
    /// No gradient through the partner's features.
    pub stop_partner: bool,
    /// Learning rate at its highest.
    pub lr: f64,
    /// That of the linear head, if it is another; it falls as the other does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_lr: Option<f64>,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// Added to the gradient, times the value.
    pub weight_decay: f64,
    /// Largest norm of the gradient, if any.
    pub clip_norm: Option<f64>,
    /// Passes over the data.
    pub epochs: usize,
    /// Items a step.
    pub batch: usize,
    /// Names every random number of the run.
    pub seed: u64,
    /// Steps between evaluations; 0 evaluates after the last step only.
    pub eval_every: usize,
    /// What the best evaluation is chosen by.
    pub select_by: SelectBy,
}

impl Default for MemberConfig {
    /// The original's scripts: 50 epochs of batch 5, evaluated every 5 steps.
    fn default() -> MemberConfig {
        MemberConfig {
            strategy: Strategy::Routine1,
            text_loss: TextLoss::Mse,
            ratio: 1.0,
            stop_partner: false,
            lr: 2e-4,
            head_lr: None,
            warmup: 0,
            weight_decay: 0.0,
            clip_norm: None,
            epochs: 50,
            batch: 5,
            seed: 1,
            eval_every: 5,
            select_by: SelectBy::MeanR1,
        }
    }
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            adapter: Adapter::lora(1),
            hidden_dropout: None,
            attention_dropout: None,
            max_tokens: None,
        }
    }
}

impl Shared {
    /// The dropout that a model is trained with: as set, or else the checkpoint's own.
    pub fn dropout(&self, model: &TextConfig) -> DropoutRates {
        DropoutRates {
            hidden: self.hidden_dropout.unwrap_or(model.hidden_dropout),
            attention: self.attention_dropout.unwrap_or(model.attention_dropout),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// An adapter that trains nothing, a probability outside [0, 1), no tokens at all.
    pub fn check(&self) -> Result<()> {
        self.adapter.check()?;
        if self.max_tokens == Some(0) {
            return Err(bad_input!("max-tokens: found 0, expected at least 1"));
        }
        for (name, p) in [
            ("hidden", self.hidden_dropout),
            ("attention", self.attention_dropout),
        ] {
            if p.is_some_and(|p| !(0.0..1.0).contains(&p)) {
                let p = p.unwrap_or_default();
                return Err(bad_input!(
                    "{name} dropout: found {p}, expected 0 or more and below 1"
                ));
            }
        }
        Ok(())
    }

    /// Fails if a text to train on is too long for a pass: it can't be cut.
    ///
    /// # Errors
    /// Its length.
    pub fn check_texts(&self, train: &Examples) -> Result<()> {
        let Some(limit) = self.max_tokens else {
            return Ok(());
        };
        let texts = train.texts.iter().flatten().map(Vec::len);
        let slots = self.adapter.prompt.as_ref().map_or(0, |p| p.length);
        let longest = texts.max().unwrap_or(0) + slots;
        if longest > limit {
            return Err(bad_input!(
                "max-tokens: found {limit}, but the longest text to train on has {longest} tokens; \
                 give at least as many"
            ));
        }
        Ok(())
    }
}

impl MemberConfig {
    /// Checks the settings, and that they go with what is trained.
    ///
    /// # Errors
    /// As [`MemberConfig::check`]; a learning rate for a head that is frozen.
    pub fn check_with(&self, shared: &Shared) -> Result<()> {
        self.check()?;
        match self.head_lr {
            Some(_) if !shared.adapter.trains(HEAD_WEIGHT) => Err(bad_input!(
                "head-lr: the linear head is not trained; add --train-head or drop --head-lr"
            )),
            _ => Ok(()),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A number that makes no sense, named.
    pub fn check(&self) -> Result<()> {
        let positive = [("epochs", self.epochs), ("batch", self.batch)];
        if let Some((name, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(bad_input!("{name}: found 0, expected at least 1"));
        }
        let numbers = [
            ("lr", self.lr),
            ("head-lr", self.head_lr.unwrap_or(0.0)),
            ("ratio", f64::from(self.ratio)),
            ("weight-decay", self.weight_decay),
            ("clip-norm", self.clip_norm.unwrap_or(1.0)),
        ];
        if let Some((name, x)) = numbers.iter().find(|(_, x)| !x.is_finite() || *x < 0.0) {
            return Err(bad_input!(
                "{name}: found {x}, expected a number not below 0"
            ));
        }
        if self.clip_norm == Some(0.0) {
            return Err(bad_input!("clip-norm: found 0, expected a number above 0"));
        }
        let mse = self.strategy.partner().is_some() && self.text_loss == TextLoss::Mse;
        if self.batch == 1 && !(mse && self.ratio > 0.0) {
            return Err(bad_input!(
                "batch: a contrastive loss needs at least 2 items a step to tell apart, found 1"
            ));
        }
        if self.batch >= 1 << 20 {
            return Err(bad_input!(
                "batch: found {}, expected below {}",
                self.batch,
                1 << 20
            ));
        }
        Ok(())
    }
}
