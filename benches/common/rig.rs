//! One op and its gradient as a graph of its own, run as in a training step, on the CPU or on the
//! device that `CROSSTUNE_TEST_DEVICE` names (`cuda:N`, `vm`; with feature `cuda`).
//!
//! On a GPU times are those of device events around the nodes in question; before each run the L2
//! cache is flushed, and three copies of the inputs are taken in turn. On a CPU caches are as the run
//! before left them. All data are random.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, measurement::WallTime};
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, Frozen, FrozenTensor, LossWeights, MemberStep, Pass, Told};
use crosstune::graph::backward::backward_from;
use crosstune::graph::cost::{Cost, Counter, Work};
use crosstune::graph::{Dim, Graph, Role, ValueId};
use crosstune::ops::Op;
use crosstune::ops::philox::Stream;
use crosstune::text::pack::{Batch, Layout, MemberTexts};

use super::place::{Place, THREADS, threads};

/// Ids of the vocabulary.
pub const VOCAB: usize = 1000;

/// A graph under construction, over random values.
pub struct Rig {
    /// The op.
    pub graph: Graph,
    /// Half of its texts are anchors, half partners.
    pub batch: Batch,
    frozen: Frozen,
    /// Values that stand for what other ops would compute.
    inputs: Vec<(ValueId, Arc<Vec<f32>>)>,
    seeds: Vec<(ValueId, ValueId)>,
    wanted: Vec<ValueId>,
    /// The first node that is timed.
    first: usize,
    place: Place,
}

impl Rig {
    /// For so many texts.
    pub fn new(texts: usize) -> Rig {
        Rig::with_prompt(texts, 0)
    }

    /// The same with slots of a soft prompt.
    pub fn with_prompt(texts: usize, prompt: usize) -> Rig {
        let layout = Layout {
            position_offset: 2,
            prompt,
        };
        let lengths = super::lengths("train.de");
        let word = |x: f32| ((x + 0.5) * VOCAB as f32) as u32 % VOCAB as u32;
        let words = |i: usize| Stream::named(i as u64, "words").uniform(lengths[i], 0.5);
        let ids = (0..texts).map(|i| words(i).into_iter().map(word).collect());
        Rig::packed(ids.collect(), layout)
    }

    /// For so many pictures of as many tokens each.
    pub fn pictures(pictures: usize, tokens: usize) -> Rig {
        Rig::packed(vec![vec![0; tokens]; pictures], Layout::default())
    }

    fn packed(ids: Vec<Vec<u32>>, layout: Layout) -> Rig {
        let (anchors, partners) = ids.split_at(ids.len() / 2);
        let member = MemberTexts {
            anchors: super::texts(anchors, 0),
            partners: super::texts(partners, 1),
        };
        Rig {
            graph: Graph::new(),
            batch: Batch::pack(&[member], layout, vec![]),
            frozen: Frozen::default(),
            inputs: vec![],
            seeds: vec![],
            wanted: vec![],
            first: 0,
            place: Place::open(),
        }
    }

    fn random(&self, id: ValueId) -> Arc<Vec<f32>> {
        let value = self.graph.get(id);
        let n = value.elements(&self.batch.bucket());
        Arc::new(Stream::named(1, &value.name).uniform(n, 0.1))
    }

    /// A weight of the checkpoint.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let shape = shape.iter().map(|n| Dim::N(*n)).collect();
        let id = self.graph.value(name, shape, Role::Frozen);
        let data = self.random(id);
        self.frozen.insert(name, FrozenTensor::Owned(data));
        id
    }

    /// A weight that is trained.
    pub fn trainable(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let dims = shape.iter().map(|n| Dim::N(*n));
        let dims = std::iter::once(Dim::Members).chain(dims).collect();
        self.graph.value(name, dims, Role::Trainable)
    }

    /// What another op would compute.
    pub fn given(&mut self, name: &str, shape: Vec<Dim>) -> ValueId {
        // A CPU reads it where it lies, a device gets a copy.
        let role = match self.place {
            Place::Cpu => Role::Frozen,
            #[cfg(feature = "cuda")]
            Place::Device(_) => Role::Input,
        };
        let id = self.graph.value(name, shape, role);
        let data = self.random(id);
        if role == Role::Frozen {
            self.frozen.insert(name, FrozenTensor::Owned(data.clone()));
        }
        self.inputs.push((id, data));
        id
    }

    /// The same where its gradient is wanted.
    pub fn input(&mut self, name: &str, rows: Dim, c: usize) -> ValueId {
        let id = self.given(name, vec![rows, Dim::N(c)]);
        self.wanted.push(id);
        id
    }

    /// Takes what was pushed so far as given, and wants the gradient of `id`.
    pub fn begin(&mut self, id: ValueId) {
        self.first = self.graph.nodes.len();
        self.wanted = vec![id];
    }

    /// Gives a result a gradient.
    pub fn seed(&mut self, out: ValueId) {
        let shape = self.graph.get(out).shape.clone();
        let seed = self.given(&format!("seed.{}", out.0), shape);
        self.seeds.push((out, seed));
    }

    /// Benches the nodes of the forward pass, then those of the gradient.
    pub fn bench(mut self, c: &mut Criterion, stem: &str, shape: &str) {
        let forward = self.graph.nodes.len();
        backward_from(&mut self.graph, &self.seeds, &self.wanted);
        let all = self.graph.nodes.len();
        self.place.complete(&mut self.graph);
        self.graph.check();
        for (side, range) in [("forward", self.first..forward), ("backward", forward..all)] {
            if !range.is_empty() {
                let name = format!("{side}/{shape}/T{}", self.batch.tokens());
                self.side(c, stem, &name, range);
            }
        }
    }

    fn side(&self, c: &mut Criterion, stem: &str, name: &str, range: Range<usize>) {
        let steps = [MemberStep {
            weights: LossWeights {
                image_anchor: 1.0,
                mse: 0.1,
                ..LossWeights::default()
            },
            ..MemberStep::default()
        }];
        let counter = Counter::new(&self.graph, self.place.numbers());
        let work = Work::of(&self.batch, &steps);
        let cost = counter.nodes(&self.graph.nodes[range.clone()], &work);
        let mut group = c.benchmark_group(stem);
        short(&mut group).throughput(throughput(&cost));
        // Made once, and only for what is asked for: criterion calls the closure for every sample.
        let mut made = None;
        group.bench_function(name, |b| {
            let runs = made.get_or_insert_with(|| Runs::new(self, &range));
            b.iter_custom(|n| {
                let time = runs.run(self, &steps, range.clone(), n);
                note(&format!("{stem}/{name}"), &cost, time, n);
                time
            });
        });
        group.finish();
    }
}

/// Executors that take turns.
struct Runs {
    execs: Vec<(Box<dyn Executor + Send>, TrainState)>,
    spent: Arc<AtomicU64>,
    turn: usize,
}

impl Runs {
    fn new(rig: &Rig, range: &Range<usize>) -> Runs {
        let graph = Arc::new(rig.graph.clone());
        let spent = Arc::new(AtomicU64::new(0));
        let pool = threads(THREADS);
        let is_zero = |op: &Op| matches!(op, Op::ZeroGrads(_));
        let zero = graph.nodes.iter().position(is_zero);
        let zero = zero.unwrap_or(graph.nodes.len());
        let exec = |_| {
            let mut state = TrainState::new(&graph, 1);
            let n = state.values.len();
            state.values = Stream::named(2, "trainable").uniform(n, 0.1);
            let mut exec = rig
                .place
                .executor(&graph, &rig.frozen, &state, pool.clone());
            exec.load(&state).expect("loaded");
            let (total, range) = (spent.clone(), range.clone());
            exec.observe(Box::new(move |told| match told {
                Told::Ran(ran) if range.contains(&ran.node) => {
                    total.fetch_add(ran.time.as_nanos() as u64, Ordering::Relaxed);
                }
                _ => {}
            }));
            let given: Vec<_> = rig.inputs.iter().map(|(id, x)| (*id, &x[..])).collect();
            let pass = Pass {
                nodes: zero..(zero + 1).min(graph.nodes.len()),
                batch: &rig.batch,
                steps: &[MemberStep::default()],
                given: if rig.place.is_device() { &given } else { &[] },
            };
            exec.pass(&mut state, &pass)
                .expect("inputs are copied, gradients zeroed");
            (exec, state)
        };
        let execs = (0..rig.place.sets()).map(exec).collect();
        Runs {
            execs,
            spent,
            turn: 0,
        }
    }

    /// Time of the nodes in `range`, `n` times over.
    fn run(&mut self, rig: &Rig, steps: &[MemberStep], range: Range<usize>, n: u64) -> Duration {
        self.spent.store(0, Ordering::Relaxed);
        for _ in 0..n {
            let turn = self.turn % self.execs.len();
            self.turn += 1;
            let (exec, state) = &mut self.execs[turn];
            let mut pass = |nodes| {
                let pass = Pass {
                    nodes,
                    batch: &rig.batch,
                    steps,
                    given: &[],
                };
                exec.pass(state, &pass).expect("a pass");
            };
            if range.start > 0 {
                pass(0..range.start);
            }
            rig.place.flush();
            pass(range.clone());
        }
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }
}

/// The group of one stem.
pub type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Seconds a bench, not minutes.
pub fn short<'a, 'b>(group: &'b mut Group<'a>) -> &'b mut Group<'a> {
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
}

/// Operations as elements, where there are any.
fn throughput(cost: &Cost) -> Throughput {
    let (elements, bytes) = (cost.flops as u64, cost.bytes() as u64);
    match elements {
        0 => Throughput::BytesDecimal(bytes),
        _ => Throughput::ElementsAndBytes { elements, bytes },
    }
}

/// What was measured: name, cost and the least seconds of a run.
static MEASURED: Mutex<Vec<(String, Cost, f64)>> = Mutex::new(Vec::new());

/// Notes a measurement for [`shares`].
pub fn note(name: &str, cost: &Cost, time: Duration, n: u64) {
    let seconds = time.as_secs_f64() / n.max(1) as f64;
    let mut all = MEASURED.lock().expect("no panic holds it");
    match all.iter_mut().find(|(other, ..)| other == name) {
        Some((.., least)) => *least = least.min(seconds),
        None => all.push((name.into(), *cost, seconds)),
    }
}

/// Measures the ceilings and prints what share of them each bench came to at its best.
pub fn shares(_: &mut Criterion) {
    let all = MEASURED.lock().expect("no panic holds it");
    if all.is_empty() {
        return;
    }
    let place = Place::open();
    let ceilings = place.ceilings(THREADS);
    println!(
        "\non {}; ceilings: {:.1} GB/s (a copy of {} MiB), {:.1} GFLOP/s (a product of {} cubed)\n\
         {:44} {:>10} {:>8} {:>9}  of ceiling",
        place.name(),
        ceilings.copy / 1e9,
        ceilings.copy_bytes >> 20,
        ceilings.product / 1e9,
        ceilings.product_side,
        "bench",
        "us",
        "GB/s",
        "GFLOP/s"
    );
    for (name, cost, seconds) in all.iter() {
        let rate = |x: f64| x / seconds / 1e9;
        println!(
            "{name:44} {:10.1} {:8.2} {:9.1}  {:7.1} %",
            seconds * 1e6,
            rate(cost.bytes()),
            rate(cost.flops),
            100.0 * ceilings.seconds(cost.bytes(), cost.flops) / seconds
        );
    }
}
