//! The loop: batches, steps, evaluations, checkpoints, for one member or many at once.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::checkpoint::{self, Best, MemberProgress, Progress};
use super::config::{MemberConfig, Shared};
use super::examples::Examples;
use super::program::{Losses, TrainProgram};
use super::schedule::cosine;
use crate::adapter::file::AdapterFile;
use crate::bad_input;
use crate::data::Role;
use crate::data::batches::Batches;
use crate::engine::{Engine, TextEncoder};
use crate::error::{Error, Result};
use crate::eval::retrieval::{Recall, retrieval};
use crate::exec::cpu::CpuExecutor;
use crate::exec::state::TrainState;
use crate::exec::{Adam, Executor, MemberStep};
use crate::model::text::DropoutRates;
use crate::text::pack::{Batch, MemberTexts, Text};
use crate::weights::checkpoint::Checkpoint;

/// Steps in a row without a finite gradient after which a run ends.
const MAX_SKIPS: u32 = 3;

/// One member: its settings and its data.
#[derive(Clone)]
pub struct Member {
    /// Settings of its own.
    pub config: MemberConfig,
    /// What it is trained on.
    pub train: Arc<Examples>,
    /// What it is evaluated on while it trains; none for no evaluation.
    pub validation: Option<Arc<Examples>>,
}

/// What a run tells its caller. Losses and norms are those before the step's update.
#[derive(Clone, Debug)]
pub enum Event {
    /// A member's part of a finished step.
    Step(StepReport),
    /// A member was evaluated.
    Evaluated {
        /// The member.
        member: usize,
        /// Steps done.
        step: usize,
        /// On its validation items.
        recall: Recall,
        /// Whether it is the best so far; a later tie replaces an earlier best.
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
    /// The objective.
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
    batches: Vec<Batches>,
    progress: Vec<MemberProgress>,
    program: TrainProgram,
    exec: CpuExecutor,
    encoder: TextEncoder,
    state: TrainState,
    step: usize,
    save: Option<SavePolicy>,
    run_name: String,
}

impl<'e> Trainer<'e> {
    /// Checks everything and binds the graph to memory; nothing is computed yet.
    ///
    /// # Errors
    /// Settings that make no sense, data that lacks a role, no items.
    pub fn new(engine: &'e Engine, shared: Shared, members: Vec<Member>) -> Result<Trainer<'e>> {
        shared.check()?;
        shared.adapter.check_model(&engine.model().config)?;
        if members.is_empty() {
            return Err(bad_input!("a run needs at least one member"));
        }
        if shared.adapter.full && members.len() > 1 {
            return Err(bad_input!(
                "full training holds one member, found {}",
                members.len()
            ));
        }
        let mut batches = Vec::new();
        for m in &members {
            m.config.check()?;
            check_data(m)?;
            batches.push(Batches::new(m.train.len(), m.config.batch, m.config.seed)?);
        }
        let model = engine.model();
        let rates = DropoutRates {
            hidden: shared.hidden_dropout.unwrap_or(model.config.hidden_dropout),
            attention: shared
                .attention_dropout
                .unwrap_or(model.config.attention_dropout),
        };
        let program = TrainProgram::new(&model.config, model.head, &shared.adapter, rates);
        let frozen = Arc::new(model.bind(&program.graph)?);
        let seeds: Vec<u64> = members.iter().map(|m| m.config.seed).collect();
        let state = model.init(&program.graph, &seeds)?;
        let exec = CpuExecutor::new(program.graph.clone(), frozen, &state, engine.pool());
        let encoder = TextEncoder::new(engine, &shared.adapter)?;
        let run_name = run_name(&shared, &members, model.weights());
        let fresh = MemberProgress {
            loss_scale: 1.0,
            ..MemberProgress::default()
        };
        let progress = vec![fresh; members.len()];
        Ok(Trainer {
            engine,
            shared,
            members,
            batches,
            progress,
            program,
            exec,
            encoder,
            state,
            step: 0,
            save: None,
            run_name,
        })
    }

    /// Writes a checkpoint every so many steps, and when cancelled.
    pub fn save_to(&mut self, policy: SavePolicy) {
        self.save = Some(policy);
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// If it can't be read or belongs to another run.
    pub fn resume(&mut self, path: &std::path::Path) -> Result<usize> {
        let (step, progress) = checkpoint::load(path, &self.run_name, &mut self.state)?;
        self.step = step;
        self.progress = progress;
        Ok(step)
    }

    /// Begins a member with an adapter's values instead of fresh ones.
    ///
    /// # Errors
    /// If the adapter has other tensors.
    pub fn start_from(&mut self, member: usize, adapter: &AdapterFile) -> Result<()> {
        let mut single = std::mem::take(&mut self.encoder.state);
        let loaded = adapter.load_into(&mut single, 0);
        self.encoder.state = single;
        loaded?;
        let values = self.encoder.state.values.clone();
        self.put_values(member, &values);
        Ok(())
    }

    /// The trainable state.
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// Steps of a member.
    pub fn total_steps(&self, member: usize) -> usize {
        self.members[member].config.epochs * self.batches[member].steps_per_epoch()
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
        self.exec.arena_bytes()
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
        let end = (0..self.members.len())
            .map(|g| self.total_steps(g))
            .max()
            .unwrap_or(0);
        while self.step < end {
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
            if due || self.step == end {
                self.save_now(&mut tell)?;
            }
            if flow.is_break() {
                self.save_now(&mut |_| {})?;
                return Err(Error::Cancelled);
            }
        }
        self.check_trained()?;
        Ok((0..self.members.len()).map(|g| self.outcome(g)).collect())
    }

    fn save_now(&self, tell: &mut dyn FnMut(Event)) -> Result<()> {
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

    fn one_step(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
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
    fn check_trained(&self) -> Result<()> {
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

    fn evaluate_due(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
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

    fn put_values(&mut self, g: usize, values: &[f32]) {
        let mut at = 0;
        for t in 0..self.state.tensors.len() {
            let len = self.state.tensors[t].len;
            self.state.set_value(t, g, &values[at..at + len]);
            at += len;
        }
    }

    fn outcome(&self, g: usize) -> Outcome {
        let origin = |step: usize| {
            let c = &self.members[g].config;
            BTreeMap::from([
                ("strategy".to_string(), c.strategy.to_string()),
                ("step".to_string(), step.to_string()),
                ("seed".to_string(), c.seed.to_string()),
            ])
        };
        let adapter = &self.shared.adapter;
        let last = AdapterFile::from_state(adapter, &self.state, g, origin(self.step));
        let best = self.progress[g].best.as_ref().map(|b| {
            let mut file = AdapterFile {
                origin: origin(b.step),
                ..last.clone()
            };
            let mut at = 0;
            for (_, _, values) in &mut file.tensors {
                let len = values.len();
                values.copy_from_slice(&b.values[at..at + len]);
                at += len;
            }
            (file, b.score, b.step)
        });
        Outcome {
            last,
            best,
            skipped: self.progress[g].skipped,
        }
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

fn check_data(m: &Member) -> Result<()> {
    m.train.text(m.config.strategy.anchor())?;
    if let Some(role) = m.config.strategy.partner() {
        m.train.text(role)?;
    }
    if m.train.is_empty() {
        return Err(bad_input!("there is nothing to train on: 0 items"));
    }
    if let Some(v) = &m.validation {
        v.text(m.config.strategy.anchor())?;
    }
    Ok(())
}

/// Names settings, model and data, so that a checkpoint goes on with its own run only. Of each
/// weight the first bytes count: enough to tell models apart without reading them.
fn run_name(shared: &Shared, members: &[Member], weights: &Checkpoint) -> String {
    let mut name = serde_json::to_string(shared).unwrap_or_default();
    let mut hash = Fnv::default();
    for (tensor, view) in weights.tensors() {
        hash.add(tensor.as_bytes());
        hash.add(&view.bytes[..view.bytes.len().min(64)]);
    }
    name.push_str(&format!("model {:016x}", hash.0));
    for m in members {
        name.push_str(&serde_json::to_string(&m.config).unwrap_or_default());
        let mut hash = Fnv::default();
        for examples in [Some(&m.train), m.validation.as_ref()]
            .into_iter()
            .flatten()
        {
            for ids in examples.texts.iter().flatten() {
                hash.add(&(ids.len() as u32).to_le_bytes());
                hash.add(bytemuck::cast_slice(ids));
            }
            hash.add(bytemuck::cast_slice(&examples.images));
        }
        name.push_str(&format!("{} items {:016x}", m.train.len(), hash.0));
    }
    name
}

/// The FNV-1a hash, 64 bits.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
}
