//! Executors: what runs a graph. The CPU's is the fast one on a CPU, CUDA's runs the kernels, the
//! reference is the specification.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
pub mod state;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::graph::{Graph, Role, ValueId};
use crate::text::pack::Batch;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::text_model::is_head;
use state::TrainState;

/// Weights of the objective's terms, per member: strategy and text loss are nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossWeights {
    /// itc(image, anchor).
    pub image_anchor: f32,
    /// mse(anchor, partner).
    pub mse: f32,
    /// itc(partner, anchor).
    pub partner_anchor: f32,
    /// itc(image, partner).
    pub image_partner: f32,
    /// The partner's features are constants: no gradient flows through them.
    pub stop_partner: bool,
}

impl LossWeights {
    /// All weights times `factor`.
    pub fn times(self, factor: f32) -> LossWeights {
        LossWeights {
            image_anchor: self.image_anchor * factor,
            mse: self.mse * factor,
            partner_anchor: self.partner_anchor * factor,
            image_partner: self.image_partner * factor,
            stop_partner: self.stop_partner,
        }
    }
}

/// What changes from step to step, per member.
#[derive(Clone, Copy, Debug)]
pub struct MemberStep {
    /// Key of its random numbers.
    pub seed: u64,
    /// Training step, from 0: part of the counter of its random numbers.
    pub step: u32,
    /// Weights of the objective's terms.
    pub weights: LossWeights,
    /// A power of two that multiplies the loss gradient; 1 on a CPU.
    pub loss_scale: f32,
    /// Whether it takes part: one that has finished keeps its values and moments.
    pub active: bool,
    /// The optimiser's settings for this step.
    pub adam: Adam,
}

/// Settings of Adam (Kingma and Ba, 2015) for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Learning rate of this step.
    pub lr: f64,
    /// That of the linear head, where it has its own.
    pub head_lr: Option<f64>,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Added to the gradient, times the value (not decoupled).
    pub weight_decay: f64,
    /// Largest norm of a member's gradient; infinite for none.
    pub clip_norm: f64,
}

impl Adam {
    /// The learning rate of a trainable tensor.
    pub fn lr_of(&self, tensor: &str) -> f64 {
        self.head_lr.filter(|_| is_head(tensor)).unwrap_or(self.lr)
    }
}

impl Default for Adam {
    fn default() -> Adam {
        Adam {
            lr: 1e-3,
            head_lr: None,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: f64::INFINITY,
        }
    }
}

impl Default for MemberStep {
    fn default() -> MemberStep {
        let weights = LossWeights {
            image_anchor: 1.0,
            ..LossWeights::default()
        };
        MemberStep {
            seed: 0,
            step: 0,
            weights,
            loss_scale: 1.0,
            active: true,
            adam: Adam::default(),
        }
    }
}

/// One frozen weight: where it lies in the checkpoint, or a private copy.
#[derive(Clone)]
pub enum FrozenTensor {
    /// Read in the memory map.
    Mapped {
        /// The file.
        checkpoint: Arc<Checkpoint>,
        /// Its name there.
        name: String,
        /// The elements of it that count; all where not set.
        part: Option<Range<usize>>,
    },
    /// Converted from another type, or made here.
    Owned(Arc<Vec<f32>>),
}

/// The frozen weights of a model, by the name of their value.
#[derive(Clone, Default)]
pub struct Frozen {
    tensors: HashMap<String, FrozenTensor>,
}

impl Frozen {
    /// Binds a weight.
    pub fn insert(&mut self, name: impl Into<String>, tensor: FrozenTensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// The elements of a weight, if it is bound.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        match self.tensors.get(name)? {
            FrozenTensor::Mapped {
                checkpoint,
                name,
                part,
            } => {
                let all = checkpoint.get(name)?.as_f32()?;
                part.as_ref()
                    .map_or(Some(all), |part| all.get(part.clone()))
            }
            FrozenTensor::Owned(values) => Some(values),
        }
    }

    /// Names and sizes in bytes of the private copies.
    pub fn copies(&self) -> Vec<(&str, usize)> {
        let mut rows: Vec<(&str, usize)> = self
            .tensors
            .iter()
            .filter_map(|(name, t)| match t {
                FrozenTensor::Owned(v) => Some((name.as_str(), v.len() * 4)),
                FrozenTensor::Mapped { .. } => None,
            })
            .collect();
        rows.sort_unstable();
        rows
    }

    /// Fails unless every frozen value of `graph` is bound.
    ///
    /// # Panics
    /// If one is not: the model builder forgot it.
    pub fn check(&self, graph: &Graph) {
        for id in graph.with_role(Role::Frozen) {
            let name = &graph.get(id).name;
            assert!(
                self.get(name).is_some(),
                "frozen value {name} is not bound to memory"
            );
        }
    }
}

/// Some nodes of a graph over a batch. What passes over one batch compute stays for the next ones, as
/// long as the plan keeps it; gradients of trainable tensors stay until a node zeroes them, so that
/// a step may consist of passes over several batches.
pub struct Pass<'a> {
    /// The nodes, which run in their order.
    pub nodes: Range<usize>,
    /// Its structure.
    pub batch: &'a Batch,
    /// What changes from step to step, by member.
    pub steps: &'a [MemberStep],
    /// Values that are set before, true rows only: what nodes left out of this pass would compute.
    pub given: &'a [(ValueId, &'a [f32])],
}

impl<'a> Pass<'a> {
    /// Every node.
    pub fn whole(graph: &Graph, batch: &'a Batch, steps: &'a [MemberStep]) -> Pass<'a> {
        Pass {
            nodes: 0..graph.nodes.len(),
            batch,
            steps,
            given: &[],
        }
    }
}

/// A node that ran.
pub struct Ran<'a> {
    /// Index of the node in its graph.
    pub node: usize,
    /// The pass that it belongs to.
    pub pass: &'a Pass<'a>,
    /// When it began, by this machine's clock.
    pub start: Instant,
    /// How long it took where it ran.
    pub time: Duration,
}

/// What an observer is told.
pub enum Told<'a> {
    /// The node of that index is about to run, or to be launched.
    Begins(usize),
    /// A node ran. On a device this is known when all nodes of its pass have run.
    Ran(Ran<'a>),
}

/// Told of every node.
pub type Observer = Box<dyn FnMut(Told<'_>) + Send>;

/// Runs a node on this machine and tells who watches; where nobody does, no clock is read.
fn watched(observer: &mut Option<Observer>, node: usize, pass: &Pass<'_>, run: impl FnOnce()) {
    let Some(observer) = observer else {
        return run();
    };
    observer(Told::Begins(node));
    let start = Instant::now();
    run();
    let time = start.elapsed();
    observer(Told::Ran(Ran {
        node,
        pass,
        start,
        time,
    }));
}

/// Runs a graph, step by step.
pub trait Executor {
    /// What it runs.
    fn graph(&self) -> &Graph;

    /// Takes over what the host has set in `state`: before the first pass, and whenever values were
    /// set since. Does nothing where passes work on `state` itself.
    ///
    /// # Errors
    /// If the device fails.
    fn load(&mut self, state: &TrainState) -> Result<()>;

    /// Brings values, gradients, moments and step counts back into `state`. Does nothing where
    /// passes work on `state` itself.
    ///
    /// # Errors
    /// If the device fails.
    fn store(&self, state: &mut TrainState) -> Result<()>;

    /// Runs some nodes.
    ///
    /// # Errors
    /// If the device fails or the batch does not fit the graph.
    fn pass(&mut self, state: &mut TrainState, pass: &Pass<'_>) -> Result<()>;

    /// Tells `observer` of every node from now on. On a device nodes are then launched one by one,
    /// never replayed.
    fn observe(&mut self, observer: Observer);

    /// Runs every node once.
    ///
    /// # Errors
    /// As [`Executor::pass`].
    fn run(&mut self, state: &mut TrainState, batch: &Batch, steps: &[MemberStep]) -> Result<()> {
        let pass = Pass::whole(self.graph(), batch, steps);
        self.pass(state, &pass)
    }

    /// The content of an output of the last pass, true rows only.
    ///
    /// # Errors
    /// If the device fails.
    fn output(&self, id: ValueId) -> Result<Vec<f32>>;

    /// Size in bytes of the arena of activations so far.
    fn arena_bytes(&self) -> usize;
}
