//! Evaluations while a run goes on: when they are due, and which was the best.

use super::{Event, Trainer};
use crate::data::Role;
use crate::engine::{Engine, TextEncoder};
use crate::error::Result;
use crate::eval::retrieval::{Recall, retrieval};
use crate::train::checkpoint::Best;
use crate::train::examples::Examples;

impl Trainer<'_> {
    pub(super) fn evaluate_due(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        for g in 0..self.members.len() {
            let (total, every) = (self.total_steps(g), self.members[g].config.eval_every);
            let due = self.step == total || (every > 0 && self.step.is_multiple_of(every));
            let Some(validation) = self.members[g].validation.clone() else {
                continue;
            };
            if self.step > total || !due {
                continue;
            }
            let recall = self.evaluate(g, &validation)?;
            let score = self.members[g].config.select_by.score(&recall);
            let best = self.progress[g]
                .best
                .as_ref()
                .is_none_or(|b| score >= b.score);
            if best {
                let values = self.member_values(g);
                self.progress[g].best = Some(Best {
                    score,
                    step: self.step,
                    values,
                });
            }
            tell(Event::Evaluated {
                member: g,
                step: self.step,
                recall,
                best,
            });
        }
        Ok(())
    }

    /// Recall of a member on some items, with the texts that its strategy is evaluated on.
    ///
    /// # Errors
    /// If the items lack these texts, or a feature is not finite.
    pub fn evaluate(&mut self, member: usize, items: &Examples) -> Result<Recall> {
        self.encoder.state.values = self.member_values(member);
        let role = self.members[member].config.strategy.anchor();
        evaluate(self.engine, &mut self.encoder, items, role)
    }

    /// One member's values, tensor after tensor.
    fn member_values(&self, g: usize) -> Vec<f32> {
        (0..self.state.tensors.len())
            .flat_map(|t| self.state.value(t, g))
            .copied()
            .collect()
    }
}

/// Recall of an encoder on some items, with the texts of a role.
///
/// # Errors
/// If the items lack these texts, or a feature is not finite.
pub fn evaluate(
    engine: &Engine,
    encoder: &mut TextEncoder,
    items: &Examples,
    role: Role,
) -> Result<Recall> {
    let features = encoder.encode(engine, items.text(role)?, &mut |_| {})?;
    let pool = engine.pool();
    pool.install(|| retrieval(&features, &items.images, items.len(), items.dim))
}
