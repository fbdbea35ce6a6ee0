//! One step: batches, the passes over the graph, reports, steps that are skipped.

use std::time::Instant;

use super::{Event, StepReport, Trainer};
use crate::data::Role;
use crate::error::{Error, Result};
use crate::exec::{Adam, LossWeights, MemberStep};
use crate::profile::Phase;
use crate::text::pack::{Batch, MemberTexts, Text};
use crate::train::program::Losses;
use crate::train::schedule::cosine;
use crate::train::step::{Measured, Round};

/// Steps in a row without a finite gradient after which a run ends, each with the smallest loss scale.
const MAX_SKIPS: u32 = 3;

impl Trainer<'_> {
    /// The batches of a step: one a language, which all members share.
    fn rounds(&mut self) -> Result<Vec<Round>> {
        let step = self.step;
        let n_rounds = self.members.iter().map(|m| m.languages.len()).max();
        let active: Vec<bool> = (0..self.members.len())
            .map(|g| self.takes_part(g))
            .collect();
        let mut rounds = Vec::new();
        for l in 0..n_rounds.unwrap_or(0) {
            let items = self.batches.iter_mut().zip(&active).map(|(b, active)| {
                let batches = b.get_mut(l).filter(|_| *active);
                batches.map_or(Vec::new(), |b| b.items(step).to_vec())
            });
            let items: Vec<Vec<u32>> = items.collect();
            let steps = (0..items.len()).map(|g| self.member_step(g, active[g]));
            let steps = steps.collect();
            let batch = self.batch(l, &items)?;
            rounds.push(Round { batch, steps });
        }
        Ok(rounds)
    }

    /// Texts and images of the members' items in their `l`-th language.
    fn batch(&self, l: usize, items: &[Vec<u32>]) -> Result<Batch> {
        let mut texts = Vec::new();
        let mut images = Vec::new();
        for (m, items) in self.members.iter().zip(items) {
            let Some(set) = m.languages.get(l) else {
                texts.push(MemberTexts::default());
                continue;
            };
            // Items of a member are counted through all its languages: no two texts of a step
            // share the names of their random numbers.
            let first = l * m.config.batch;
            let side = |role: Role| -> Result<Vec<Text<'_>>> {
                let all = set.train.text(role)?;
                let text = |(i, item): (usize, &u32)| Text {
                    ids: &all[*item as usize],
                    role: role.index() as u8,
                    item: (first + i) as u32,
                };
                Ok(items.iter().enumerate().map(text).collect())
            };
            let anchors = side(m.config.strategy.anchor())?;
            let partners = m.config.strategy.partner().map_or(Ok(vec![]), side)?;
            texts.push(MemberTexts { anchors, partners });
            let rows = items.iter().flat_map(|i| set.train.image(*i as usize));
            images.extend(rows.copied());
        }
        let layout = self.shared.adapter.layout(&self.engine.model().config);
        Ok(Batch::pack(&texts, layout, images))
    }

    fn member_step(&self, g: usize, active: bool) -> MemberStep {
        let m = &self.members[g];
        let c = &m.config;
        let now = |lr: f64| cosine(lr, self.step, c.warmup, self.total_steps(g));
        let weights = c.strategy.weights(c.text_loss, c.ratio, c.stop_partner);
        MemberStep {
            seed: c.seed,
            step: self.step as u32,
            weights: weights.times(1.0 / m.languages.len() as f32),
            loss_scale: self.progress[g].loss_scale,
            active,
            adam: Adam {
                lr: now(c.lr),
                head_lr: c.head_lr.map(now),
                weight_decay: c.weight_decay,
                clip_norm: c.clip_norm.unwrap_or(f64::INFINITY),
                ..Adam::default()
            },
        }
    }

    pub(super) fn one_step(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let start = Instant::now();
        let rounds = {
            let _phase = self.engine.phase(Phase::Batches);
            self.rounds()?
        };
        let measured = {
            let _phase = self.engine.phase(Phase::Step);
            self.runner.step(&mut self.state, &rounds)?
        };
        let seconds = start.elapsed().as_secs_f64();
        self.step += 1;
        let tokens = rounds.iter().map(|r| r.batch.tokens()).sum();
        let steps = rounds.first().map_or(&[][..], |r| &r.steps);
        for (g, s) in steps.iter().enumerate().filter(|(_, s)| s.active) {
            let (parts, loss) = self.losses(g, &s.weights, &measured);
            let norm = measured.norms[g];
            let report = StepReport {
                member: g,
                step: self.step,
                total: self.total_steps(g),
                loss,
                image_loss: parts[0],
                text_loss: parts[1],
                lr: s.adam.lr,
                grad_norm: norm,
                skipped: !norm.is_finite(),
                tokens,
                seconds,
            };
            tell(Event::Step(report));
            if let Err(error) = self.count_skips(g, &report) {
                self.fail(g, error)?;
            }
        }
        Ok(())
    }

    /// The two parts of a member's objective, averaged over its languages, and the objective. Its
    /// weights are those of a round.
    fn losses(&self, g: usize, weights: &LossWeights, measured: &Measured) -> ([f32; 2], f32) {
        let n = self.members[g].languages.len();
        let mut parts = [0.0; 2];
        let mut loss = 0.0;
        for terms in &measured.terms[..n] {
            let terms = std::array::from_fn(|i| terms[i][g]);
            let (part, own) = Losses::combine(weights, terms);
            parts = [0, 1].map(|i| parts[i] + part[i] / n as f32);
            loss += own;
        }
        (parts, loss)
    }

    fn count_skips(&mut self, g: usize, report: &StepReport) -> Result<()> {
        let p = &mut self.progress[g];
        if !report.skipped {
            (p.skips, p.stuck) = (0, 0);
            p.grow_scale();
            return Ok(());
        }
        p.skipped += 1;
        p.skips += 1;
        if p.skips == 1 {
            p.first_skip = report.step;
        }
        p.stuck = if p.shrink_scale() { 0 } else { p.stuck + 1 };
        let (first, skips) = (p.first_skip, p.skips);
        if p.stuck < MAX_SKIPS {
            return Ok(());
        }
        self.runner.store(&mut self.state)?;
        let tensor = self.state.first_bad_gradient(g).unwrap_or("(none)");
        Err(Error::Run(format!(
            "the gradient of {tensor} is not finite for {skips} steps in a row, since step {first} \
             (loss {}, learning rate {:e}); {}",
            report.loss,
            self.members[g].config.lr,
            self.engine.blame(&self.state, g)
        )))
    }

    /// A run too short for [`MAX_SKIPS`] must not pass for a trained one.
    pub(super) fn check_trained(&mut self) -> Result<()> {
        for g in 0..self.members.len() {
            let p = &self.progress[g];
            if self.state.adam_steps[g] == 0 && p.skipped > 0 && p.failed.is_none() {
                let tensor = self.state.first_bad_gradient(g).unwrap_or("(none)");
                let error = Error::Run(format!(
                    "nothing was learnt: the gradient of {tensor} was never finite; {}",
                    self.engine.blame(&self.state, g)
                ));
                self.fail(g, error)?;
            }
        }
        Ok(())
    }
}
