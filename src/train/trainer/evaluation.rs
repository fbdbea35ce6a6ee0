//! Evaluations while a run goes on: when they are due, and which was the best.

use super::{Event, Trainer};
use crate::adapter::file::AdapterFile;
use crate::data::Role;
use crate::engine::{Engine, TextEncoder};
use crate::error::Result;
use crate::eval::retrieval::{Recall, retrieval};
use crate::profile::Phase;
use crate::train::checkpoint::Best;
use crate::train::config::round4;
use crate::train::examples::Examples;

impl Trainer<'_> {
    /// Evaluates the members whose turn it is, each in all its languages.
    pub(super) fn evaluate_due(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        for g in 0..self.members.len() {
            let (total, every) = (self.total_steps(g), self.members[g].config.eval_every);
            let due = self.step == total || (every > 0 && self.step.is_multiple_of(every));
            if self.step > total || !due || self.progress[g].failed.is_some() {
                continue;
            }
            let recalls = match self.recalls(g) {
                Ok(recalls) => recalls,
                Err(error) => {
                    self.fail(g, error)?;
                    continue;
                }
            };
            if recalls.is_empty() {
                continue;
            }
            let best = self.is_best(g, &recalls);
            for (language, recall) in recalls {
                tell(Event::Evaluated {
                    member: g,
                    language,
                    step: self.step,
                    recall,
                    best,
                });
            }
        }
        Ok(())
    }

    /// Recall of a member in each language that has validation items.
    fn recalls(&mut self, g: usize) -> Result<Vec<(usize, Recall)>> {
        self.runner.store(&mut self.state)?;
        let languages = self.members[g].languages.clone();
        let with_items = languages.iter().enumerate();
        with_items
            .filter_map(|(l, set)| Some((l, set.validation.as_ref()?)))
            .map(|(l, items)| Ok((l, self.evaluate(g, items)?)))
            .collect()
    }

    /// Whether the mean score of `recalls` is not below any before; keeps the values if so.
    fn is_best(&mut self, g: usize, recalls: &[(usize, Recall)]) -> bool {
        let select_by = self.members[g].config.select_by;
        let sum: f64 = recalls.iter().map(|(_, r)| select_by.score(r)).sum();
        let score = round4(sum / recalls.len() as f64);
        let former = self.progress[g].best.as_ref();
        let best = former.is_none_or(|b| score >= b.score);
        if best {
            let values = self.member_values(g);
            self.progress[g].best = Some(Best {
                score,
                step: self.step,
                values,
            });
        }
        best
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

    /// Recall of an adapter of this run's kind on some items, with the texts of a role.
    ///
    /// # Errors
    /// If the adapter has other tensors, the items lack these texts, or a feature is not finite.
    pub fn measure(
        &mut self,
        adapter: &AdapterFile,
        items: &Examples,
        role: Role,
    ) -> Result<Recall> {
        adapter.load_into(&mut self.encoder.state, 0)?;
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
    let _phase = engine.phase(Phase::Evaluate);
    let features = encoder.encode(engine, items.text(role)?, &mut |_| {})?;
    let pool = engine.pool();
    pool.install(|| retrieval(&features, &items.images, items.len(), items.dim))
}
