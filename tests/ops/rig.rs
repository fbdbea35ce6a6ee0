//! A rig for one op, or a few: random inputs and parameters, gradients of everything, a scalar
//! objective that weights the outputs. Finite differences prove the reference, the reference proves
//! the CPU code.

use std::collections::HashMap;
use std::sync::Arc;

use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::reference::RefExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, Frozen, FrozenTensor, LossWeights, MemberStep};
use crosstune::graph::backward::backward_from;
use crosstune::graph::{Dim, Graph, Role, ValueId};
use crosstune::ops::philox::{Dropout, Stream};
use crosstune::text::pack::{Batch, Layout, Rows};

use crate::common::tiny::{MemberData, pack, pool};
use crate::limits::{FINITE_DIFFERENCE, limit};

/// Reads the weight of a loss.
pub type Weight = fn(&LossWeights) -> f32;

/// Rows of the word table that ids of random batches reach.
pub const VOCAB: usize = 17;

/// Members as (items, whether they have partners).
pub type Members = [(usize, bool)];

/// One token, one text.
pub const ONE: &Members = &[(1, false)];
/// One member of an ordinary step.
pub const ALONE: &Members = &[(3, true)];
/// Three members of unequal sizes.
pub const THREE: &Members = &[(2, true), (1, false), (3, true)];
/// About 300 tokens.
pub const REAL: &Members = &[(16, true)];
/// The same in three members.
pub const REAL_THREE: &Members = &[(3, true), (11, false), (8, true)];

/// A graph under construction.
pub struct Rig {
    pub graph: Graph,
    pub batch: Batch,
    pub steps: Vec<MemberStep>,
    frozen: Frozen,
    params: Vec<(String, Vec<f32>)>,
    wanted: Vec<ValueId>,
    seeds: Vec<(ValueId, ValueId)>,
    losses: Vec<(ValueId, Weight)>,
}

/// A graph with its gradients and its data.
pub struct Built {
    graph: Arc<Graph>,
    frozen: Arc<Frozen>,
    /// Gradients hold random numbers: what is accumulated must leave them in.
    state: TrainState,
    grads: HashMap<ValueId, ValueId>,
    checked: Vec<ValueId>,
    rig: Rig,
}

/// Dropout of a half, so that a wrong mask is seen at once.
pub fn half(site: u32) -> Option<Dropout> {
    Some(Dropout { p: 0.5, site })
}

impl Rig {
    /// Random texts of at most `longest` tokens for `members`, whose weights, seeds and steps
    /// differ. All weights are sums of powers of two: f32 holds their products exactly.
    pub fn new(members: &Members, longest: usize) -> Rig {
        Rig::with_prompt(members, longest, 0)
    }

    /// The same with `prompt` slots in each text, which do not count in `longest`.
    pub fn with_prompt(members: &Members, longest: usize, prompt: usize) -> Rig {
        let layout = Layout {
            position_offset: 2,
            prompt,
        };
        let data: Vec<MemberData> = members
            .iter()
            .enumerate()
            .map(|(g, m)| MemberData::new(g as u64 + 3, *m, longest, (VOCAB, 0)))
            .collect();
        let batch = pack(&data.iter().collect::<Vec<_>>(), layout);
        let steps = (0..members.len()).map(|g| MemberStep {
            seed: 0x1234_5678_9abc + g as u64,
            step: 7 + g as u32,
            weights: LossWeights {
                image_anchor: 1.0 + g as f32,
                mse: 0.75,
                partner_anchor: 0.5,
                image_partner: 0.25,
                stop_partner: false,
            },
            loss_scale: [1.0, 4.0, 0.5][g % 3],
            ..MemberStep::default()
        });
        Rig {
            graph: Graph::new(),
            steps: steps.collect(),
            batch,
            frozen: Frozen::default(),
            params: Vec::new(),
            wanted: Vec::new(),
            seeds: Vec::new(),
            losses: Vec::new(),
        }
    }

    /// An activation whose gradient is checked. Past the true rows it holds NaN.
    pub fn input(&mut self, name: &str, rows: Rows, c: usize, std: f32) -> ValueId {
        let id = self.constant(name, rows, c, std);
        self.wanted.push(id);
        id
    }

    /// An activation without a gradient.
    pub fn constant(&mut self, name: &str, rows: Rows, c: usize, std: f32) -> ValueId {
        let dim = match rows {
            Rows::Tokens => Dim::Tokens,
            Rows::Seqs => Dim::Seqs,
            Rows::Items => Dim::Items,
        };
        let shape = vec![dim, Dim::N(c)];
        let true_len = self.batch.rows(rows) * c;
        self.given(name, shape, true_len, std)
    }

    /// What another op would compute, of which no gradient is wanted.
    pub fn given(&mut self, name: &str, shape: Vec<Dim>, true_len: usize, std: f32) -> ValueId {
        let id = self.graph.value(name, shape, Role::Frozen);
        let mut data = Stream::named(5, name).normal(true_len, std);
        data.resize(self.graph.get(id).elements(&self.batch.bucket()), f32::NAN);
        self.frozen
            .insert(name, FrozenTensor::Owned(Arc::new(data)));
        id
    }

    /// A parameter near `mean`: one frozen copy, or a trainable one for each member.
    pub fn param(
        &mut self,
        name: &str,
        shape: &[usize],
        trainable: bool,
        (mean, std): (f32, f32),
    ) -> ValueId {
        let mut dims: Vec<Dim> = shape.iter().map(|n| Dim::N(*n)).collect();
        let len: usize = shape.iter().product();
        let copies = if trainable { self.steps.len() } else { 1 };
        let mut data = Stream::named(6, name).normal(len * copies, std);
        data.iter_mut().for_each(|x| *x += mean);
        if trainable {
            dims.insert(0, Dim::Members);
            self.params.push((name.into(), data));
            self.graph.value(name, dims, Role::Trainable)
        } else {
            self.frozen
                .insert(name, FrozenTensor::Owned(Arc::new(data)));
            self.graph.value(name, dims, Role::Frozen)
        }
    }

    /// Weights `out` with random numbers, which are its gradient.
    pub fn weigh(&mut self, out: ValueId, rows: Rows) {
        let value = self.graph.get(out);
        let (name, shape) = (format!("seed.{}", value.name), value.shape.clone());
        let true_len = self.batch.rows(rows) * self.graph.channels(out);
        let seed = self.given(&name, shape, true_len, 1.0);
        self.seeds.push((out, seed));
    }

    /// Adds a loss, weighted as its op weights it.
    pub fn loss(&mut self, loss: ValueId, weight: Weight) {
        self.losses.push((loss, weight));
    }

    /// Appends the gradients.
    pub fn build(mut self) -> Built {
        let mut graph = std::mem::take(&mut self.graph);
        let grads = backward_from(&mut graph, &self.seeds, &self.wanted);
        for id in &self.wanted {
            if let Some(grad) = grads.get(id) {
                graph.get_mut(*grad).role = Role::Output;
            }
        }
        graph.check();
        let mut state = TrainState::new(&graph, self.steps.len());
        for (name, data) in &self.params {
            let t = state.find(name).expect("a tensor of that name");
            let from = state.tensors[t].offset;
            state.values[from..from + data.len()].copy_from_slice(data);
        }
        state.grads = Stream::named(8, "gradients").normal(state.grads.len(), 1.0);
        let trainable = graph.with_role(Role::Trainable);
        let checked = self.wanted.iter().copied().chain(trainable).collect();
        Built {
            graph: Arc::new(graph),
            frozen: Arc::new(std::mem::take(&mut self.frozen)),
            state,
            grads,
            checked,
            rig: self,
        }
    }
}

impl Built {
    /// The structure of the step.
    pub fn batch(&self) -> &Batch {
        &self.rig.batch
    }

    /// In both executors, the first member's rows of the gradient of `id` are exactly 0.
    pub fn first_member_rests(&self, id: ValueId) {
        let rows = self.rig.batch.members[0].seqs.len() * self.graph.channels(id);
        let mut exec = self.reference();
        exec.step(&self.rig.batch, &self.rig.steps);
        let reference = &exec.value(self.grads[&id])[..rows];
        assert!(reference.iter().all(|x| *x == 0.0), "{reference:?}");
        let (cpu, _) = self.run(self.graph.clone(), true);
        let cpu = &cpu.output(self.grads[&id])[..rows];
        assert!(cpu.iter().all(|x| *x == 0.0), "{cpu:?}");
    }

    fn reference(&self) -> RefExecutor<f64> {
        let mut exec = RefExecutor::new(self.graph.clone(), &self.frozen, &self.state);
        for id in self.graph.with_role(Role::Trainable) {
            *exec.value_mut(self.grads[&id]) = self.former(id);
        }
        exec
    }

    /// What the gradient of a trainable value held before the step.
    fn former(&self, id: ValueId) -> Vec<f64> {
        let t = self.state.find(&self.graph.get(id).name);
        let t = &self.state.tensors[t.expect("a tensor of that name")];
        let all = &self.state.grads[t.offset..t.offset + t.len * self.state.members];
        all.iter().map(|x| f64::from(*x)).collect()
    }

    /// The objective: every output times its seed, every loss times weight and loss scale.
    fn objective(&self, exec: &RefExecutor<f64>) -> f64 {
        let mut sum = 0.0;
        for (out, seed) in &self.rig.seeds {
            let pairs = exec.value(*out).iter().zip(exec.value(*seed));
            sum += pairs.map(|(x, w)| x * w).sum::<f64>();
        }
        for (loss, weight) in &self.rig.losses {
            for (x, step) in exec.value(*loss).iter().zip(&self.rig.steps) {
                sum += x * f64::from(weight(&step.weights) * step.loss_scale);
            }
        }
        sum
    }

    /// Compares every gradient with differences of the objective. Where `flows` is false for a row
    /// of a value, the gradient must be 0 instead. Returns the worst error.
    pub fn finite_differences(&self, flows: impl Fn(ValueId, usize) -> bool) -> f64 {
        const H: f64 = 1e-5;
        let mut exec = self.reference();
        let (batch, steps) = (&self.rig.batch, &self.rig.steps[..]);
        exec.step(batch, steps);
        let level = self.objective(&exec).abs();
        assert!(level.is_finite(), "the objective is {level}");
        let analytic: Vec<Vec<f64>> = self
            .checked
            .iter()
            .map(|id| self.gradient(&exec, *id))
            .collect();
        let mut worst = 0f64;
        for (&id, want) in self.checked.iter().zip(&analytic) {
            let c = self.graph.channels(id);
            let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
            let scale = largest + 1e-3 * level;
            for i in (0..want.len()).step_by(want.len().div_ceil(400)) {
                let x = exec.value(id)[i];
                let mut at = |k: f64| {
                    exec.value_mut(id)[i] = x + k * H;
                    exec.step(batch, steps);
                    self.objective(&exec)
                };
                let near = at(1.0) - at(-1.0);
                let far = at(2.0) - at(-2.0);
                exec.value_mut(id)[i] = x;
                let got = (8.0 * near - far) / (12.0 * H);
                let name = &self.graph.get(id).name;
                if !flows(id, i / c) {
                    assert_eq!(want[i], 0.0, "{name}[{i}] is stopped");
                    continue;
                }
                let error = (got - want[i]).abs() / scale;
                assert!(
                    error <= FINITE_DIFFERENCE,
                    "d.{name}[{i}] is {}, differences give {got}: {error:.2e} of the largest",
                    want[i]
                );
                worst = worst.max(error);
            }
            let alive = largest > 0.0 || (0..want.len()).all(|i| !flows(id, i / c));
            assert!(alive, "d.{} is zero", self.graph.get(id).name);
        }
        worst
    }

    /// The gradient that a step left, without what was there before.
    fn gradient(&self, exec: &RefExecutor<f64>, id: ValueId) -> Vec<f64> {
        let grad = *self.grads.get(&id).unwrap_or_else(|| {
            panic!("{} has no gradient", self.graph.get(id).name);
        });
        let mut x = exec.value(grad).to_vec();
        if self.graph.get(id).role == Role::Trainable {
            x.iter_mut().zip(self.former(id)).for_each(|(x, f)| *x -= f);
        }
        x
    }

    /// Compares everything that any node writes with the reference in f64; then the same bytes
    /// must come out with memory reused. Prints the worst error.
    pub fn cpu_agrees(&self, stem: &str) {
        let mut exec = self.reference();
        exec.step(&self.rig.batch, &self.rig.steps);
        let mut all = (*self.graph).clone();
        let temps: Vec<ValueId> = all.with_role(Role::Temp).collect();
        let reused: Vec<ValueId> = all.with_role(Role::Output).collect();
        temps
            .iter()
            .for_each(|id| all.get_mut(*id).role = Role::Output);
        let (spread, state) = self.run(Arc::new(all), true);
        let mut worst = Worst::default();
        for id in temps.iter().chain(&reused) {
            let got = spread.output(*id);
            let name = &self.graph.get(*id).name;
            // What rounding took from a value is nothing in f64; those that need it are compared.
            if !name.ends_with(".low") {
                worst.compare(stem, name, &got, exec.value(*id));
            }
        }
        for id in self.graph.with_role(Role::Trainable) {
            let grad = self.grads[&id];
            let name = &self.graph.get(grad).name;
            let t = state.find(&self.graph.get(id).name);
            let t = &state.tensors[t.expect("a tensor of that name")];
            let got = &state.grads[t.offset..t.offset + t.len * state.members];
            worst.compare(stem, name, got, exec.value(grad));
        }
        let (packed, again) = self.run(self.graph.clone(), false);
        for id in reused {
            let name = &self.graph.get(id).name;
            same_bytes(name, &packed.output(id), &spread.output(id));
        }
        same_bytes("gradients", &again.grads, &state.grads);
        println!(
            "{stem}: worst error {:.1e}, NMSE {:.1e}",
            worst.error, worst.nmse
        );
    }

    fn run(&self, graph: Arc<Graph>, spread: bool) -> (CpuExecutor, TrainState) {
        let mut state = self.state.clone();
        let frozen = self.frozen.clone();
        let mut exec = CpuExecutor::new(graph, frozen, &state, pool(2));
        if spread {
            exec = exec.spread();
        }
        exec.run(&mut state, &self.rig.batch, &self.rig.steps)
            .expect("ran");
        (exec, state)
    }
}

/// Byte for byte, NaN included.
pub fn same_bytes(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let differ = |i: &usize| got[*i].to_bits() != want[*i].to_bits();
    if let Some(i) = (0..got.len()).find(differ) {
        panic!("{what}: at {i} {} and {}", got[i], want[i]);
    }
}

/// The worst errors so far.
#[derive(Default)]
struct Worst {
    /// |got - want| / (level + |want|), level the larger of 1 and the tensor's root mean square.
    error: f64,
    /// Squared error over squared length.
    nmse: f64,
}

impl Worst {
    fn compare(&mut self, stem: &str, name: &str, got: &[f32], want: &[f64]) {
        assert!(want.len() >= got.len(), "{name}: lengths differ");
        let limit = limit(stem);
        let length: f64 = want[..got.len()].iter().map(|w| w * w).sum();
        // A sum of many terms is as wrong as its terms are large, however small it comes out.
        let level = (length / got.len().max(1) as f64).sqrt().max(1.0);
        let mut square = 0f64;
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let d = (f64::from(*g) - w).abs();
            let error = d / (level + w.abs());
            assert!(
                error <= limit.error,
                "{stem}: {name}[{i}] is {g}, want {w}: {error:.2e}, limit {:.0e}",
                limit.error
            );
            self.error = self.error.max(error);
            square += d * d;
        }
        // A loss near 0 is a difference of large logits: its own error says enough.
        let few = got.len() < 8 || square == 0.0;
        let nmse = if few { 0.0 } else { square / length };
        assert!(
            nmse <= limit.nmse,
            "{stem}: {name}: NMSE {nmse:.2e}, limit {:.0e}",
            limit.nmse
        );
        self.nmse = self.nmse.max(nmse);
    }
}
