//! A step of training as passes over one graph: gradients are zeroed, one or more batches add to
//! them, the optimiser spends them.

use super::program::TrainProgram;
use crate::error::Result;
use crate::exec::cpu::CpuExecutor;
use crate::exec::state::TrainState;
use crate::exec::{Executor, MemberStep, Pass};
use crate::text::pack::Batch;

/// A batch of a step. Its objective is its own; what it adds to the gradient joins that of the
/// step's other batches, so weights of 1/L over L batches train on their mean.
pub struct Round {
    /// Texts and images of all members; a member that has none takes no part.
    pub batch: Batch,
    /// The members' settings; the optimiser's are read in the last round.
    pub steps: Vec<MemberStep>,
}

/// What a step measured, before its update.
pub struct Measured {
    /// By round: the objective's terms, each (G), in the order of [`TrainProgram::losses`]: image and
    /// anchor, mse, partner and anchor, image and partner.
    pub terms: Vec<[Vec<f32>; 4]>,
    /// (G) norm of each member's gradient.
    pub norms: Vec<f32>,
}

/// Runs the steps of a program.
pub struct StepRunner {
    program: TrainProgram,
    exec: CpuExecutor,
}

impl StepRunner {
    /// A runner of `program`, which `exec` is bound to.
    pub fn new(program: TrainProgram, exec: CpuExecutor) -> StepRunner {
        StepRunner { program, exec }
    }

    /// The program.
    pub fn program(&self) -> &TrainProgram {
        &self.program
    }

    /// Size in bytes of the arena of activations and gradients so far.
    pub fn arena_bytes(&self) -> usize {
        self.exec.arena_bytes()
    }

    /// One step: all rounds, then the update.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step(&mut self, state: &mut TrainState, rounds: &[Round]) -> Result<Measured> {
        let parts = self.program.parts.clone();
        let mut terms = Vec::with_capacity(rounds.len());
        for (i, round) in rounds.iter().enumerate() {
            let start = if i == 0 {
                parts.begin.start
            } else {
                parts.tower.start
            };
            let end = if i + 1 == rounds.len() {
                parts.update.end
            } else {
                parts.update.start
            };
            self.exec.pass(
                state,
                &Pass {
                    nodes: start..end,
                    batch: &round.batch,
                    steps: &round.steps,
                    given: &[],
                },
            )?;
            let l = self.program.losses;
            terms.push(
                [l.image_anchor, l.mse, l.partner_anchor, l.image_partner]
                    .map(|id| self.exec.output(id)),
            );
        }
        let norms = self.exec.output(self.program.grad_norm);
        Ok(Measured { terms, norms })
    }
}
