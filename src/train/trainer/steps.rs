//! One step: batches, the passes over the graph, reports, steps that are skipped.

use std::time::Instant;

use super::{Event, StepReport, Trainer};
use crate::data::Role;
use crate::error::{Error, Result};
use crate::exec::{Adam, Executor, MemberStep};
use crate::text::pack::{Batch, MemberTexts, Text};
use crate::train::program::Losses;
use crate::train::schedule::cosine;

/// Steps in a row without a finite gradient after which a run ends.
const MAX_SKIPS: u32 = 3;

impl Trainer<'_> {
    /// The texts and images of a step, and what each member does with them.
    fn batch(&mut self) -> Result<(Batch, Vec<MemberStep>)> {
        let step = self.step;
        let items: Vec<Vec<u32>> = (0..self.members.len())
            .map(|g| match step < self.total_steps(g) {
                true => self.batches[g].items(step).to_vec(),
                false => Vec::new(),
            })
            .collect();
        let mut texts = Vec::new();
        let mut steps = Vec::new();
        let mut images = Vec::new();
        for (g, m) in self.members.iter().enumerate() {
            let side = |role: Role| -> Result<Vec<Text<'_>>> {
                let all = m.train.text(role)?;
                let text = |(i, item): (usize, &u32)| Text {
                    ids: &all[*item as usize],
                    role: role.index() as u8,
                    item: i as u32,
                };
                Ok(items[g].iter().enumerate().map(text).collect())
            };
            let anchors = side(m.config.strategy.anchor())?;
            let partners = m.config.strategy.partner().map_or(Ok(vec![]), side)?;
            texts.push(MemberTexts { anchors, partners });
            images.extend(
                items[g]
                    .iter()
                    .flat_map(|i| m.train.image(*i as usize))
                    .copied(),
            );
            steps.push(self.member_step(g, !items[g].is_empty()));
        }
        let offset = self.engine.model().config.position_offset() as u32;
        Ok((Batch::pack(&texts, offset, images), steps))
    }

    fn member_step(&self, g: usize, active: bool) -> MemberStep {
        let c = &self.members[g].config;
        let lr = cosine(c.lr, self.step, c.warmup, self.total_steps(g));
        MemberStep {
            seed: c.seed,
            step: self.step as u32,
            weights: c.strategy.weights(c.text_loss, c.ratio, c.stop_partner),
            loss_scale: self.progress[g].loss_scale,
            active,
            adam: Adam {
                lr,
                weight_decay: c.weight_decay,
                clip_norm: c.clip_norm.unwrap_or(f64::INFINITY),
                ..Adam::default()
            },
        }
    }

    pub(super) fn one_step(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let start = Instant::now();
        let (batch, steps) = self.batch()?;
        self.exec.run(&mut self.state, &batch, &steps)?;
        let seconds = start.elapsed().as_secs_f64();
        self.step += 1;
        let l = self.program.losses;
        let terms = [l.image_anchor, l.mse, l.partner_anchor, l.image_partner]
            .map(|id| self.exec.output(id));
        let norms = self.exec.output(self.program.grad_norm);
        for (g, s) in steps.iter().enumerate().filter(|(_, s)| s.active) {
            let (parts, loss) = Losses::combine(&s.weights, std::array::from_fn(|i| terms[i][g]));
            let report = StepReport {
                member: g,
                step: self.step,
                total: self.total_steps(g),
                loss,
                image_loss: parts[0],
                text_loss: parts[1],
                lr: s.adam.lr,
                grad_norm: norms[g],
                skipped: !norms[g].is_finite(),
                tokens: batch.tokens(),
                seconds,
            };
            tell(Event::Step(report));
            self.count_skips(g, &report)?;
        }
        Ok(())
    }

    fn count_skips(&mut self, g: usize, report: &StepReport) -> Result<()> {
        let p = &mut self.progress[g];
        if !report.skipped {
            p.skips = 0;
            return Ok(());
        }
        p.skips += 1;
        p.skipped += 1;
        if p.skips == 1 {
            p.first_skip = report.step;
        }
        let (first, skips) = (p.first_skip, p.skips);
        if skips < MAX_SKIPS {
            return Ok(());
        }
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
    pub(super) fn check_trained(&self) -> Result<()> {
        for (g, p) in self.progress.iter().enumerate() {
            if self.state.adam_steps[g] == 0 && p.skipped > 0 {
                let tensor = self.state.first_bad_gradient(g).unwrap_or("(none)");
                return Err(Error::Run(format!(
                    "nothing was learnt: the gradient of {tensor} was never finite; {}",
                    self.engine.blame(&self.state, g)
                )));
            }
        }
        Ok(())
    }
}
