//! A step of training as passes over one graph: gradients are zeroed, one or more batches add to
//! them, the optimiser spends them.
//!
//! A batch of more tokens than memory is given for goes through the tower in pieces, twice (GradCache,
//! Gao, Zhang, Han and Callan, 2021, arXiv 2101.06983): first for the features, from which the
//! objective and the gradient of every feature follow for the batch as a whole; then once more, each
//! piece forward and backward from its features' gradient. Random numbers have names, so both times
//! the same are dropped.

use std::ops::Range;

use super::program::TrainProgram;
use crate::error::Result;
use crate::exec::state::TrainState;
use crate::exec::{Executor, MemberStep, Pass};
use crate::graph::ValueId;
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
    exec: Box<dyn Executor + Send>,
    max_tokens: Option<usize>,
}

impl StepRunner {
    /// A runner of `program`, which `exec` is bound to; no pass of the tower takes more than
    /// `max_tokens` packed tokens, unless a text has more.
    ///
    /// A member whose texts are cut has the gradient of one whose texts are not, within rounding:
    /// sums over rows begin anew in each piece. One whose texts fit has the same bytes.
    pub fn new(
        program: TrainProgram,
        exec: Box<dyn Executor + Send>,
        max_tokens: Option<usize>,
    ) -> StepRunner {
        StepRunner {
            program,
            exec,
            max_tokens,
        }
    }

    /// The program.
    pub fn program(&self) -> &TrainProgram {
        &self.program
    }

    /// Size in bytes of the arena of activations and gradients so far.
    pub fn arena_bytes(&self) -> usize {
        self.exec.arena_bytes()
    }

    /// See [`Executor::load`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn load(&mut self, state: &TrainState) -> Result<()> {
        self.exec.load(state)
    }

    /// See [`Executor::store`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn store(&self, state: &mut TrainState) -> Result<()> {
        self.exec.store(state)
    }

    /// One step: all rounds, then the update.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step(&mut self, state: &mut TrainState, rounds: &[Round]) -> Result<Measured> {
        let mut terms = Vec::with_capacity(rounds.len());
        for (i, round) in rounds.iter().enumerate() {
            let ends = (i == 0, i + 1 == rounds.len());
            let limit = self.max_tokens.filter(|n| round.batch.tokens() > *n);
            terms.push(match limit {
                Some(max_tokens) => self.in_pieces(state, round, ends, max_tokens)?,
                None => self.at_once(state, round, ends)?,
            });
        }
        let norms = self.exec.output(self.program.grad_norm)?;
        Ok(Measured { terms, norms })
    }

    /// A round whose tokens fit; `ends` says whether it is the step's first and its last.
    fn at_once(
        &mut self,
        state: &mut TrainState,
        round: &Round,
        (first, last): (bool, bool),
    ) -> Result<[Vec<f32>; 4]> {
        let parts = &self.program.parts;
        let start = match first {
            true => parts.begin.start,
            false => parts.tower.start,
        };
        let end = match last {
            true => parts.update.end,
            false => parts.tower_grad.end,
        };
        self.pass(state, start..end, (&round.batch, &round.steps), &[])?;
        self.terms()
    }

    /// A round whose texts go through the tower in pieces.
    fn in_pieces(
        &mut self,
        state: &mut TrainState,
        round: &Round,
        (first, last): (bool, bool),
        max_tokens: usize,
    ) -> Result<[Vec<f32>; 4]> {
        let parts = self.program.parts.clone();
        let (features, dfeatures) = (self.program.features, self.program.dfeatures);
        let e = self.program.graph.channels(features);
        let steps = &round.steps;
        let whole = round.batch.without_tokens();
        if first {
            self.pass(state, parts.begin, (&whole, steps), &[])?;
        }
        let pieces = round.batch.pieces(max_tokens);
        let mut all = vec![0f32; whole.seqs() * e];
        for piece in &pieces {
            let batch = round.batch.piece(piece);
            self.pass(state, parts.tower.clone(), (&batch, steps), &[])?;
            let mut rows = &self.exec.output(features)?[..];
            for seqs in piece {
                let (own, rest) = rows.split_at(seqs.len() * e);
                all[seqs.start * e..seqs.end * e].copy_from_slice(own);
                rows = rest;
            }
        }
        self.pass(state, parts.objective, (&whole, steps), &[(features, &all)])?;
        let terms = self.terms()?;
        let grads = self.exec.output(dfeatures)?;
        for piece in &pieces {
            let batch = round.batch.piece(piece);
            let rows = piece
                .iter()
                .map(|seqs| &grads[seqs.start * e..seqs.end * e]);
            let own = rows.collect::<Vec<_>>().concat();
            self.pass(state, parts.tower.clone(), (&batch, steps), &[])?;
            let given = [(dfeatures, &own[..])];
            self.pass(state, parts.tower_grad.clone(), (&batch, steps), &given)?;
        }
        if last {
            self.pass(state, parts.update, (&whole, steps), &[])?;
        }
        Ok(terms)
    }

    fn pass(
        &mut self,
        state: &mut TrainState,
        nodes: Range<usize>,
        (batch, steps): (&Batch, &[MemberStep]),
        given: &[(ValueId, &[f32])],
    ) -> Result<()> {
        let pass = Pass {
            nodes,
            batch,
            steps,
            given,
        };
        self.exec.pass(state, &pass)
    }

    /// The objective's terms of the last pass.
    fn terms(&self) -> Result<[Vec<f32>; 4]> {
        let l = self.program.losses;
        let term = |id| self.exec.output(id);
        Ok([
            term(l.image_anchor)?,
            term(l.mse)?,
            term(l.partner_anchor)?,
            term(l.image_partner)?,
        ])
    }
}
