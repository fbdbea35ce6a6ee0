//! The reference executor: plain loops over f32 or f64, one thread, every value a vector of its
//! own. It is the specification that everything fast is compared with.

use std::sync::Arc;

use super::state::TrainState;
use super::{Executor, Frozen, MemberStep, Observer, Pass, watched};
use crate::error::Result;
use crate::graph::{Graph, Role, ValueId};
use crate::ops::real::Real;
use crate::text::pack::Batch;

/// Memory of a reference run: values are cloned out and put back.
pub struct RefMem<'a, F> {
    /// The graph that runs.
    pub graph: &'a Graph,
    /// The structure of the step.
    pub batch: &'a Batch,
    /// What changes from step to step.
    pub steps: &'a [MemberStep],
    /// The trainable state, for the optimiser.
    pub state: &'a mut RefState<F>,
    values: &'a mut Vec<Vec<F>>,
}

/// Trainable state in the precision of the reference.
#[derive(Clone, Debug, Default)]
pub struct RefState<F> {
    /// First moments by value.
    pub m: Vec<Vec<F>>,
    /// Second moments by value.
    pub v: Vec<Vec<F>>,
    /// Adam's step counts.
    pub adam_steps: Vec<u32>,
}

impl<F: Real> RefMem<'_, F> {
    /// A copy of a value.
    pub fn get(&self, id: ValueId) -> Vec<F> {
        self.values[id.idx()].clone()
    }

    /// Replaces a value.
    pub fn set(&mut self, id: ValueId, value: Vec<F>) {
        self.values[id.idx()] = value;
    }

    /// Adds to a value: a parameter gradient.
    pub fn accumulate(&mut self, id: ValueId, term: &[F]) {
        for (x, t) in self.values[id.idx()].iter_mut().zip(term) {
            *x += *t;
        }
    }

    /// The last extent of a value.
    pub fn channels(&self, id: ValueId) -> usize {
        self.graph.channels(id)
    }

    /// Whether a value has a copy for each member.
    pub fn per_member(&self, id: ValueId) -> bool {
        matches!(self.graph.get(id).role, Role::Trainable | Role::Grad)
    }
}

/// Runs a graph in the precision `F`.
pub struct RefExecutor<F> {
    graph: Arc<Graph>,
    values: Vec<Vec<F>>,
    /// Trainable state in the precision of the run.
    pub state: RefState<F>,
    observer: Option<Observer>,
}

impl<F: Real> RefExecutor<F> {
    /// Binds the frozen weights and the trainable values.
    pub fn new(graph: Arc<Graph>, frozen: &Frozen, state: &TrainState) -> RefExecutor<F> {
        let cast = |x: &[f32]| x.iter().map(|v| F::of(f64::from(*v))).collect::<Vec<F>>();
        let mut values = vec![Vec::new(); graph.values.len()];
        for (i, value) in graph.values.iter().enumerate() {
            match value.role {
                Role::Frozen => values[i] = cast(frozen.get(&value.name).unwrap_or(&[])),
                Role::Trainable => {
                    let t = state.find(&value.name).map(|t| &state.tensors[t]);
                    let range = t.map_or(0..0, |t| t.offset..t.offset + t.len * state.members);
                    values[i] = cast(&state.values[range]);
                }
                _ => {}
            }
        }
        let zeros: Vec<Vec<F>> = values.iter().map(|v| vec![F::of(0.0); v.len()]).collect();
        let state = RefState {
            m: zeros.clone(),
            v: zeros,
            adam_steps: vec![0; state.members],
        };
        RefExecutor {
            graph,
            values,
            state,
            observer: None,
        }
    }

    /// Any value after a run.
    pub fn value(&self, id: ValueId) -> &[F] {
        &self.values[id.idx()]
    }

    /// Changes a value before a run.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Vec<F> {
        &mut self.values[id.idx()]
    }

    /// Runs every node once, in the precision of the reference; the trainable values stay here.
    pub fn step(&mut self, batch: &Batch, steps: &[MemberStep]) {
        let graph = self.graph.clone();
        self.pass_in_place(&Pass::whole(&graph, batch, steps));
    }

    /// The same for some nodes.
    fn pass_in_place(&mut self, pass: &Pass<'_>) {
        let batch = pass.batch;
        for id in self.graph.with_role(Role::Input) {
            let images = batch.images.iter().map(|v| F::of(f64::from(*v))).collect();
            self.values[id.idx()] = images;
        }
        for (id, given) in pass.given {
            self.values[id.idx()] = given.iter().map(|v| F::of(f64::from(*v))).collect();
        }
        let graph = self.graph.clone();
        let mut mem = RefMem {
            graph: &graph,
            batch,
            steps: pass.steps,
            state: &mut self.state,
            values: &mut self.values,
        };
        for node in pass.nodes.clone() {
            let op = &graph.nodes[node];
            watched(&mut self.observer, node, pass, || op.reference(&mut mem));
        }
    }
}

impl Executor for RefExecutor<f32> {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn pass(&mut self, state: &mut TrainState, pass: &Pass<'_>) -> Result<()> {
        let named: Vec<(usize, ValueId)> = self
            .graph
            .with_role(Role::Trainable)
            .filter_map(|id| Some((state.find(&self.graph.get(id).name)?, id)))
            .collect();
        let span = |state: &TrainState, t: usize| {
            let t = &state.tensors[t];
            t.offset..t.offset + t.len * state.members
        };
        for &(t, id) in &named {
            self.values[id.idx()] = state.values[span(state, t)].to_vec();
        }
        self.pass_in_place(pass);
        for &(t, id) in &named {
            let range = span(state, t);
            state.values[range].copy_from_slice(&self.values[id.idx()]);
        }
        state.adam_steps.clone_from(&self.state.adam_steps);
        Ok(())
    }

    fn load(&mut self, _: &TrainState) -> Result<()> {
        Ok(())
    }

    fn store(&self, _: &mut TrainState) -> Result<()> {
        Ok(())
    }

    fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    fn output(&self, id: ValueId) -> Result<Vec<f32>> {
        Ok(self.values[id.idx()].clone())
    }

    fn arena_bytes(&self) -> usize {
        0
    }
}
