//! The loop: steps, evaluations, checkpoints, for one member or many at once.

mod evaluation;
mod outcome;
mod results;
mod run_name;
mod steps;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

pub use self::evaluation::evaluate;
pub use self::results::Kept;
use self::run_name::run_name;
pub use self::run_name::{examples_hash, weights_hash};
use super::checkpoint::{self, MemberProgress, Progress};
use super::config::{MemberConfig, Shared};
use super::examples::Examples;
use super::program::TrainProgram;
use super::step::StepRunner;
use crate::adapter::Adapter;
use crate::adapter::file::AdapterFile;
use crate::bad_input;
use crate::data::Role;
use crate::data::batches::Batches;
use crate::engine::{Engine, TextEncoder};
use crate::error::{Error, Result};
use crate::eval::retrieval::Recall;
use crate::exec::state::TrainState;
use crate::profile::Phase;
use crate::weights::config::TextConfig;

/// One member: its settings and its data.
#[derive(Clone)]
pub struct Member {
    /// Settings of its own.
    pub config: MemberConfig,
    /// Its languages: one as a rule. With several, its objective is the mean of theirs (joint
    /// training, the preliminary study of Zhang, Wang and Wang, 2023). Their code halves a running
    /// sum, which weighs the last language most; here all weigh the same.
    pub languages: Vec<LanguageSet>,
}

/// What a member is trained on in one language.
#[derive(Clone)]
pub struct LanguageSet {
    /// What it is trained on. A step takes a batch of every language; languages with equally many
    /// items take the same items, since the order depends on their number and the seed alone.
    pub train: Arc<Examples>,
    /// What it is evaluated on while it trains; none for no evaluation.
    pub validation: Option<Arc<Examples>>,
}

impl Member {
    /// A member of one language.
    pub fn new(
        config: MemberConfig,
        train: Arc<Examples>,
        validation: Option<Arc<Examples>>,
    ) -> Member {
        Member {
            config,
            languages: vec![LanguageSet { train, validation }],
        }
    }
}

/// What a run tells its caller. Losses and norms are those before the step's update.
#[derive(Clone, Debug)]
pub enum Event {
    /// A member's part of a finished step.
    Step(StepReport),
    /// A member was evaluated in one of its languages.
    Evaluated {
        /// The member.
        member: usize,
        /// Index of the language in [`Member::languages`].
        language: usize,
        /// Steps done.
        step: usize,
        /// On its validation items.
        recall: Recall,
        /// Whether the step is the best so far, by the mean of its languages' scores; a later tie
        /// replaces an earlier best.
        best: bool,
    },
    /// A checkpoint was written.
    Saved {
        /// Steps done.
        step: usize,
    },
}

/// A member's part of a finished step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// The member.
    pub member: usize,
    /// Steps done, this one included.
    pub step: usize,
    /// Steps in all.
    pub total: usize,
    /// The objective, averaged over languages, as the next two.
    pub loss: f32,
    /// Its image-text part.
    pub image_loss: f32,
    /// Its text-text part, before the ratio.
    pub text_loss: f32,
    /// Learning rate of the step.
    pub lr: f64,
    /// Norm of the gradient, before clipping.
    pub grad_norm: f32,
    /// Whether the update was left out because the gradient was not finite.
    pub skipped: bool,
    /// Packed tokens of the step, all members'.
    pub tokens: usize,
    /// Seconds of the step, all members', without evaluation.
    pub seconds: f64,
}

/// What a member leaves.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The adapter after the last step.
    pub last: AdapterFile,
    /// The adapter of the best evaluation, its score and its step.
    pub best: Option<(AdapterFile, f64, usize)>,
    /// Steps whose update was left out.
    pub skipped: u32,
    /// Why it was given up before its last step, if it was ([`OnFailure::Retire`]).
    pub failed: Option<String>,
}

/// What happens to a run when a member's numbers stop being finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The run ends with an error.
    #[default]
    Stop,
    /// The member takes no part from then on; the others do not notice.
    Retire,
}

/// When to write checkpoints, and where.
#[derive(Clone, Debug)]
pub struct SavePolicy {
    /// The file.
    pub path: PathBuf,
    /// Steps between two of them.
    pub every: usize,
}

/// A run of one or more members.
pub struct Trainer<'e> {
    engine: &'e Engine,
    shared: Shared,
    members: Vec<Member>,
    /// By member and language.
    batches: Vec<Vec<Batches>>,
    progress: Vec<MemberProgress>,
    runner: StepRunner,
    encoder: TextEncoder,
    state: TrainState,
    step: usize,
    save: Option<SavePolicy>,
    on_failure: OnFailure,
    run_name: String,
}

impl<'e> Trainer<'e> {
    /// Checks everything and binds the graph to memory; nothing is computed yet.
    ///
    /// # Errors
    /// Settings that make no sense, data that lacks a role, no items.
    pub fn new(
        engine: &'e Engine,
        mut shared: Shared,
        members: Vec<Member>,
    ) -> Result<Trainer<'e>> {
        shared.check()?;
        shared
            .adapter
            .read_words(|words| engine.encode_words(words))?;
        shared.adapter.check_model(&engine.model().config)?;
        if members.is_empty() {
            return Err(bad_input!("a run needs at least one member"));
        }
        if shared.adapter.full && members.len() > 1 {
            return Err(bad_input!(
                "full training holds one member, found {}; train one language a run, or all of \
                 them jointly",
                members.len()
            ));
        }
        let mut batches = Vec::new();
        for m in &members {
            m.config.check_with(&shared)?;
            batches.push(check_data(m, &shared.adapter, &engine.model().config)?);
            for l in &m.languages {
                shared.check_texts(&l.train)?;
            }
        }
        let model = engine.model();
        let rates = shared.dropout(&model.config);
        let program = TrainProgram::new(&model.config, model.head, &shared.adapter, rates);
        let seeds: Vec<u64> = members.iter().map(|m| m.config.seed).collect();
        let state = model.init(&program.graph, &shared.adapter, &seeds)?;
        let exec = engine.executor(&program.graph, &state)?;
        let encoder = TextEncoder::new(engine, &shared.adapter)?;
        let run_name = run_name(&shared, &members, model.weights());
        let limit = shared.max_tokens;
        let mut fresh = MemberProgress::default();
        fresh.begin_scale(engine.first_loss_scale());
        let progress = vec![fresh; members.len()];
        Ok(Trainer {
            engine,
            shared,
            members,
            batches,
            progress,
            runner: StepRunner::new(program, exec, limit),
            encoder,
            state,
            step: 0,
            save: None,
            on_failure: OnFailure::Stop,
            run_name,
        })
    }

    /// Writes a checkpoint every so many steps, and when cancelled.
    pub fn save_to(&mut self, policy: SavePolicy) {
        self.save = Some(policy);
    }

    /// Chooses what a member that fails does to the others.
    pub fn on_failure(&mut self, choice: OnFailure) {
        self.on_failure = choice;
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// If it can't be read or belongs to another run.
    pub fn resume(&mut self, path: &std::path::Path) -> Result<usize> {
        let (step, progress) = checkpoint::load(path, &self.run_name, &mut self.state)?;
        self.step = step;
        self.progress = progress;
        // The run may go on elsewhere than where it was begun.
        let first = self.engine.first_loss_scale();
        self.progress.iter_mut().for_each(|p| p.begin_scale(first));
        Ok(step)
    }

    /// The trainable state.
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// Steps of a member: epochs of the language with the most items. One with fewer begins its
    /// next epoch while that one is not done.
    pub fn total_steps(&self, member: usize) -> usize {
        let steps = self.batches[member].iter().map(Batches::steps_per_epoch);
        self.members[member].config.epochs * steps.max().unwrap_or(0)
    }

    /// Steps of the run: those of its longest member.
    pub fn last_step(&self) -> usize {
        let totals = (0..self.members.len()).map(|g| self.total_steps(g));
        totals.max().unwrap_or(0)
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Trainable parameters of one member.
    pub fn parameters(&self) -> usize {
        self.state.parameters()
    }

    /// Size in bytes of the arena of activations and gradients so far.
    pub fn arena_bytes(&self) -> usize {
        self.runner.arena_bytes()
    }

    /// Runs to the end. The callback is told of every step and evaluation; when it breaks, a
    /// checkpoint is written and the run ends.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; a gradient that is not finite several times in a row; a checkpoint that
    /// can't be written.
    pub fn run(
        &mut self,
        on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Vec<Outcome>> {
        self.runner.load(&self.state)?;
        while self.step < self.end() {
            let mut flow = ControlFlow::Continue(());
            let mut tell = |event: Event| {
                if on_event(&event).is_break() {
                    flow = ControlFlow::Break(());
                }
            };
            self.one_step(&mut tell)?;
            self.evaluate_due(&mut tell)?;
            let due = self
                .save
                .as_ref()
                .is_some_and(|s| self.step.is_multiple_of(s.every.max(1)));
            // A member that has ended is not trained again, whenever the run is killed.
            let ended = (0..self.members.len()).any(|g| self.total_steps(g) == self.step);
            if due || ended || self.step >= self.end() {
                self.save_now(&mut tell)?;
            }
            if flow.is_break() {
                self.save_now(&mut |_| {})?;
                return Err(Error::Cancelled);
            }
        }
        self.runner.store(&mut self.state)?;
        self.check_trained()?;
        Ok((0..self.members.len()).map(|g| self.outcome(g)).collect())
    }

    /// The step after which no member has anything left to do.
    fn end(&self) -> usize {
        let left = (0..self.members.len()).filter(|g| self.progress[*g].failed.is_none());
        left.map(|g| self.total_steps(g)).max().unwrap_or(0)
    }

    /// Whether a member takes part in the next step.
    fn takes_part(&self, g: usize) -> bool {
        self.step < self.total_steps(g) && self.progress[g].failed.is_none()
    }

    /// Ends the run because of a member, or the member's part in it.
    fn fail(&mut self, g: usize, error: Error) -> Result<()> {
        match (self.on_failure, error) {
            (OnFailure::Retire, Error::Run(why)) => {
                self.progress[g].failed = Some(why);
                Ok(())
            }
            (_, error) => Err(error),
        }
    }

    fn save_now(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let _phase = self.engine.phase(Phase::Save);
        self.runner.store(&mut self.state)?;
        let Some(policy) = &self.save else {
            return Ok(());
        };
        let progress = Progress {
            step: self.step,
            members: &self.progress,
            run: &self.run_name,
        };
        checkpoint::save(&policy.path, &progress, &self.state)?;
        tell(Event::Saved { step: self.step });
        Ok(())
    }
}

/// Checks that a member's languages have what its strategy compares; gives their batches.
fn check_data(m: &Member, adapter: &Adapter, config: &TextConfig) -> Result<Vec<Batches>> {
    let c = &m.config;
    if m.languages.is_empty() {
        return Err(bad_input!("a member needs at least one language"));
    }
    // Names of random numbers hold 20 bits of an item's place in the step.
    let items = m.languages.len().saturating_mul(c.batch);
    if items >= 1 << 20 {
        let (found, limit) = (m.languages.len(), 1 << 20);
        return Err(bad_input!(
            "batch: {found} languages of {} items are {items} a step, expected below {limit}",
            c.batch
        ));
    }
    let roles = [Some(c.strategy.anchor()), c.strategy.partner()];
    let check = |examples: &Examples, role: Role| {
        let texts = examples.text(role)?.iter().map(|ids| &ids[..]).enumerate();
        adapter
            .check_lengths(texts, config)
            .map_err(|e| bad_input!("captions `{}`: {e}", role.name()))
    };
    let batches = m.languages.iter().map(|l| {
        for role in roles.into_iter().flatten() {
            check(&l.train, role)?;
        }
        if l.train.is_empty() {
            return Err(bad_input!("there is nothing to train on: 0 items"));
        }
        if let Some(v) = &l.validation {
            check(v, c.strategy.anchor())?;
        }
        Batches::new(l.train.len(), c.batch, c.seed)
    });
    batches.collect()
}
