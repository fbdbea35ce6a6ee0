//! Where a run's time goes: by phase and by op, against what moves and what is computed.
//!
//! A [`Profiler`] is attached to an engine; who has none pays for none. Phases are times of their
//! own: what an inner one takes is not the outer one's as well, so they add up to the run.

pub mod card;
pub mod ceiling;
pub mod report;
mod trace;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

#[cfg(feature = "cuda")]
use crate::cuda::nvtx::Nvtx;
use crate::exec::{LossWeights, Observer, Told};
use crate::graph::cost::{Cost, Counter, Numbers, Work};
use crate::graph::{Bucket, Graph};
use crate::ops::Op;
use trace::{Span as TraceSpan, Trace};

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Texts become token ids.
    Tokenise,
    /// Items of a step are drawn and packed.
    Batches,
    /// A step's copies and launches: what is in no node.
    Step,
    /// Tower and objective of training steps.
    Forward,
    /// Their gradients.
    Backward,
    /// Gradients are zeroed, measured and spent.
    Optimiser,
    /// The tower alone, in evaluations and when encoding.
    Encode,
    /// An evaluation without the tower: ranking.
    Evaluate,
    /// Checkpoints and results are written.
    Save,
}

impl Phase {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Tokenise => "tokenise",
            Phase::Batches => "batches",
            Phase::Step => "step",
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Optimiser => "optimiser",
            Phase::Encode => "encode",
            Phase::Evaluate => "evaluate",
            Phase::Save => "save",
        }
    }
}

/// What all calls of one kind came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// How often.
    pub calls: u64,
    /// How long, together.
    pub time: Duration,
    /// What they cost at least.
    pub cost: Cost,
    /// Launches on a device.
    pub launches: u64,
}

/// What was recorded so far.
struct Log {
    begin: Instant,
    phases: BTreeMap<Phase, Tally>,
    ops: BTreeMap<(Phase, &'static str), Tally>,
    /// The sum of all phases.
    recorded: Duration,
    trace: Trace,
}

/// Records a run. Clones record the same one.
#[derive(Clone)]
pub struct Profiler {
    numbers: Numbers,
    log: Arc<Mutex<Log>>,
    #[cfg(feature = "cuda")]
    nvtx: Option<Nvtx>,
}

impl Profiler {
    /// Begins to record; executors hold `numbers`.
    pub fn new(numbers: Numbers) -> Profiler {
        let begin = Instant::now();
        let log = Log {
            begin,
            phases: BTreeMap::new(),
            ops: BTreeMap::new(),
            recorded: Duration::ZERO,
            trace: Trace::new(begin),
        };
        Profiler {
            numbers,
            log: Arc::new(Mutex::new(log)),
            #[cfg(feature = "cuda")]
            nvtx: Nvtx::open(),
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // Numbers alone: whole after every call.
        self.log.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A phase of the host's, until what is returned is dropped.
    pub fn phase(&self, phase: Phase) -> PhaseGuard {
        self.enter(phase.name());
        PhaseGuard {
            recorded: self.log().recorded,
            profiler: self.clone(),
            phase,
            start: Instant::now(),
        }
    }

    /// What records the nodes of a graph.
    pub fn observer(&self, graph: &Arc<Graph>) -> Observer {
        let mut nodes = Nodes::new(self, graph.clone());
        Box::new(move |told| nodes.told(&told))
    }

    /// Whether ranges go to NVTX too.
    pub fn has_nvtx(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.nvtx.is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Begins a range for outside profilers.
    fn enter(&self, name: &str) {
        #[cfg(feature = "cuda")]
        self.nvtx.iter().for_each(|n| n.push(name));
        #[cfg(not(feature = "cuda"))]
        let _ = name;
    }

    /// Ends it.
    fn leave(&self) {
        #[cfg(feature = "cuda")]
        self.nvtx.iter().for_each(Nvtx::pop);
    }
}

/// Ends a phase.
pub struct PhaseGuard {
    profiler: Profiler,
    phase: Phase,
    start: Instant,
    recorded: Duration,
}

impl Drop for PhaseGuard {
    fn drop(&mut self) {
        let whole = self.start.elapsed();
        self.profiler.leave();
        let mut log = self.profiler.log();
        let inner = log.recorded.saturating_sub(self.recorded);
        let own = whole.saturating_sub(inner);
        log.recorded += own;
        let tally = log.phases.entry(self.phase).or_default();
        tally.calls += 1;
        tally.time += own;
        log.trace.add(TraceSpan {
            name: self.phase.name(),
            phase: self.phase,
            node: None,
            start: self.start,
            time: whole,
            cost: Cost::default(),
        });
    }
}

/// Records the nodes of one graph.
struct Nodes {
    profiler: Profiler,
    graph: Arc<Graph>,
    phases: Vec<Phase>,
    launches: Vec<u64>,
    /// What nodes cost in the last step's work: steps of one size follow one another.
    costs: Option<((Bucket, LossWeights), Vec<Cost>)>,
    /// Whether a range is open.
    open: bool,
}

impl Nodes {
    fn new(profiler: &Profiler, graph: Arc<Graph>) -> Nodes {
        let launches = graph.nodes.iter().map(|op| card::launches(op) as u64);
        Nodes {
            profiler: profiler.clone(),
            phases: phases(&graph),
            launches: launches.collect(),
            graph,
            costs: None,
            open: false,
        }
    }

    fn told(&mut self, told: &Told<'_>) {
        if std::mem::take(&mut self.open) {
            self.profiler.leave();
        }
        let ran = match told {
            Told::Begins(node) => {
                self.profiler.enter(self.graph.nodes[*node].name());
                self.open = true;
                return;
            }
            Told::Ran(ran) => ran,
        };
        let cost = self.cost(&Work::of(ran.pass.batch, ran.pass.steps), ran.node);
        let (phase, name) = (self.phases[ran.node], self.graph.nodes[ran.node].name());
        let launches = match self.profiler.numbers {
            Numbers::F32 => 0,
            Numbers::F16 => self.launches[ran.node],
        };
        let mut log = self.profiler.log();
        log.recorded += ran.time;
        let log = &mut *log;
        let of_phase = log.phases.entry(phase).or_default();
        let of_op = log.ops.entry((phase, name)).or_default();
        for tally in [of_phase, of_op] {
            tally.calls += 1;
            tally.time += ran.time;
            tally.cost = tally.cost + cost;
            tally.launches += launches;
        }
        log.trace.add(TraceSpan {
            name,
            phase,
            node: Some(ran.node),
            start: ran.start,
            time: ran.time,
            cost,
        });
    }

    fn cost(&mut self, work: &Work, node: usize) -> Cost {
        let key = (work.bucket, work.weights);
        match &self.costs {
            Some((same, costs)) if *same == key => costs[node],
            _ => {
                let counter = Counter::new(&self.graph, self.profiler.numbers);
                let all = self.graph.nodes.iter().map(|op| counter.node(op, work));
                let all: Vec<Cost> = all.collect();
                let cost = all[node];
                self.costs = Some((key, all));
                cost
            }
        }
    }
}

/// The phase of each node: a graph without an optimiser encodes; in one with, gradients begin at the
/// first of their nodes.
fn phases(graph: &Graph) -> Vec<Phase> {
    let trains = graph.nodes.iter().any(|op| matches!(op, Op::AdamStep(_)));
    let is_grad = |op: &Op| op.name().ends_with("Grad");
    let first_grad = graph.nodes.iter().position(is_grad);
    let first_grad = first_grad.unwrap_or(graph.nodes.len());
    let phase = |(i, op): (usize, &Op)| match op {
        _ if !trains => Phase::Encode,
        Op::ZeroGrads(_) | Op::GradNorm(_) | Op::AdamStep(_) => Phase::Optimiser,
        _ if i < first_grad => Phase::Forward,
        _ => Phase::Backward,
    };
    graph.nodes.iter().enumerate().map(phase).collect()
}
