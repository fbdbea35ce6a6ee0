//! Trainable tensors on the device: values, gradients, moments, and the f16 copies that kernels read.

use std::collections::HashMap;

use bytemuck::{cast_slice, cast_slice_mut};

use crate::cuda::ops::adam::{self, Layout, Trainable};
use crate::cuda::ops::{Context, DeviceTensor};
use crate::cuda::{DevicePtr, Driver, Result};
use crate::exec::state::TrainState;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::ops::Op;
use crate::ops::linear::Lora;
use crate::weights::text_model::is_head;

/// The trainable tensors of all members of a graph.
pub struct DeviceState {
    layout: Layout,
    table: DevicePtr,
    values: DeviceTensor,
    halves: DeviceTensor,
    /// None where the graph only reads the values.
    training: Option<Training>,
    shapes: Vec<Trainable>,
    /// Index of a trainable value or of the gradient of one.
    index: HashMap<ValueId, usize>,
    members: usize,
}

/// What the optimiser needs besides.
struct Training {
    grads: DeviceTensor,
    m: DeviceTensor,
    v: DeviceTensor,
    n: DeviceTensor,
    factors: DeviceTensor,
    partials: DeviceTensor,
}

impl DeviceState {
    /// Room for the trainable values of `graph`, which stand in `state` in the same order. What is
    /// allocated is put on `owned`.
    pub fn new(
        driver: &dyn Driver,
        graph: &Graph,
        state: &TrainState,
        owned: &mut Vec<DevicePtr>,
    ) -> Result<DeviceState> {
        let shapes = shapes(graph);
        let members = state.members;
        let layout = Layout::new(members, &shapes);
        let mut alloc = |t: DeviceTensor, label: &str| -> Result<DeviceTensor> {
            // The device gives nothing for nought, and a graph may train nothing.
            let ptr = driver.alloc((t.len() * t.dtype.size()).max(16), label)?;
            owned.push(ptr);
            Ok(DeviceTensor { ptr, ..t })
        };
        let flat = DeviceTensor::f32(DevicePtr::NULL, 1, layout.len());
        let per_member = |cols| DeviceTensor::f32(DevicePtr::NULL, 1, cols).per_member(members);
        let values = alloc(flat, "trainable values")?;
        let halves = DeviceTensor::f16(DevicePtr::NULL, 1, layout.half_len());
        let halves = alloc(halves, "f16 copies of trainable values")?;
        // Padding stays zero from here on.
        driver.fill(halves.ptr, 0, halves.len() * 2)?;
        let trains = graph.nodes.iter().any(|op| matches!(op, Op::AdamStep(_)));
        let training = match trains {
            true => Some(Training {
                grads: alloc(flat, "gradients")?,
                m: alloc(flat, "first moments")?,
                v: alloc(flat, "second moments")?,
                n: alloc(per_member(1), "Adam's steps")?,
                factors: alloc(per_member(4), "Adam's factors")?,
                partials: alloc(per_member(layout.n_chunks()), "sums of gradients")?,
            }),
            false => None,
        };
        let bytes = layout.table();
        let table = driver.alloc(bytes.len().max(16), "places of trainable tensors")?;
        owned.push(table);
        driver.copy_in(table, &bytes)?;
        Ok(DeviceState {
            layout,
            table,
            values,
            halves,
            training,
            shapes,
            index: index(graph, state),
            members,
        })
    }

    /// Bytes that [`DeviceState::new`] allocates.
    pub fn bytes(graph: &Graph, members: usize) -> usize {
        let layout = Layout::new(members, &shapes(graph));
        let (flat, per_member) = (layout.len() * 4, |cols: usize| members * cols * 4);
        let mut sizes = vec![flat, layout.half_len() * 2, layout.table().len()];
        if graph.nodes.iter().any(|op| matches!(op, Op::AdamStep(_))) {
            sizes.extend([flat; 3]);
            sizes.extend([1, 4, layout.n_chunks()].map(per_member));
        }
        sizes.into_iter().map(|bytes| bytes.max(16)).sum()
    }

    /// The f32 values (G, rows, cols) of a trainable value.
    pub fn value(&self, id: ValueId) -> DeviceTensor {
        self.part(self.values, id)
    }

    /// The gradient (G, rows, cols) f32 of a value, by the id of the gradient.
    ///
    /// # Panics
    /// If the graph trains nothing: then no node asks for it.
    pub fn grad(&self, id: ValueId) -> DeviceTensor {
        match &self.training {
            Some(t) => self.part(t.grads, id),
            None => unreachable!("a graph without an optimiser has no gradients"),
        }
    }

    /// The f16 copy (G, rows, cols) of a trainable value, its rows as many as kernels read.
    ///
    /// # Panics
    /// If no kernel reads one: [`shapes`] left it out.
    pub fn half(&self, id: ValueId) -> DeviceTensor {
        let i = self.index[&id];
        match self.layout.half_at(i) {
            Some(at) => self.copy(i, at),
            None => unreachable!("{:?} has no f16 copy", self.shapes[i]),
        }
    }

    /// What rounding took from [`DeviceState::half`], where that is kept.
    pub fn low(&self, id: ValueId) -> Option<DeviceTensor> {
        let i = self.index[&id];
        self.layout.low_at(i).map(|at| self.copy(i, at))
    }

    fn copy(&self, i: usize, at: usize) -> DeviceTensor {
        let Trainable {
            half_rows, cols, ..
        } = self.shapes[i];
        let ptr = self.halves.ptr.offset(at * 2);
        DeviceTensor::f16(ptr, half_rows.unwrap_or(0), cols).per_member(self.members)
    }

    fn part(&self, of: DeviceTensor, id: ValueId) -> DeviceTensor {
        let i = self.index[&id];
        let ptr = of.ptr.offset(self.layout.at(i) * 4);
        let Trainable { rows, cols, .. } = self.shapes[i];
        DeviceTensor::f32(ptr, rows, cols).per_member(self.members)
    }

    /// Sets every gradient to zero.
    pub fn zero_grads(&self, driver: &dyn Driver) -> Result<()> {
        match &self.training {
            Some(t) => driver.fill(t.grads.ptr, 0, t.grads.len() * 4),
            None => Ok(()),
        }
    }

    /// Measures the gradients and takes the members' steps; `norm` is (G, 1) f32.
    pub fn step(&self, cx: Context<'_>, norm: DeviceTensor) -> Result<()> {
        let Some(t) = &self.training else {
            return Ok(());
        };
        let step = adam::Step {
            layout: &self.layout,
            table: self.table,
            values: self.values,
            grads: t.grads,
            m: t.m,
            v: t.v,
            halves: self.halves,
            norm,
            n: t.n,
            factors: t.factors,
            partials: t.partials,
        };
        adam::step(cx, &step)
    }

    /// Copies values, moments and step counts in.
    pub fn load(&self, cx: Context<'_>, state: &TrainState) -> Result<()> {
        let driver = cx.driver;
        self.copy_in(driver, self.values, state, &state.values)?;
        if let Some(t) = &self.training {
            self.copy_in(driver, t.m, state, &state.m)?;
            self.copy_in(driver, t.v, state, &state.v)?;
            let n: Vec<f32> = state.adam_steps.iter().map(|n| *n as f32).collect();
            driver.copy_in(t.n.ptr, cast_slice(&n))?;
        }
        adam::copy_halves(cx, &self.layout, self.table, (self.halves, self.values))
    }

    /// Copies values, gradients, moments and step counts out.
    pub fn store(&self, driver: &dyn Driver, state: &mut TrainState) -> Result<()> {
        let Some(t) = &self.training else {
            return Ok(());
        };
        let places = self.places(state);
        let parts = [
            (self.values, &mut state.values),
            (t.grads, &mut state.grads),
            (t.m, &mut state.m),
            (t.v, &mut state.v),
        ];
        let mut all = vec![0f32; self.layout.len()];
        for (from, to) in parts {
            driver.copy_out(from.ptr, cast_slice_mut(&mut all))?;
            for (at, host) in &places {
                to[host.clone()].copy_from_slice(&all[*at..at + host.len()]);
            }
        }
        let mut n = vec![0f32; self.members];
        driver.copy_out(t.n.ptr, cast_slice_mut(&mut n))?;
        state.adam_steps = n.into_iter().map(|n| n as u32).collect();
        Ok(())
    }

    fn copy_in(
        &self,
        driver: &dyn Driver,
        to: DeviceTensor,
        state: &TrainState,
        from: &[f32],
    ) -> Result<()> {
        let mut all = vec![0f32; self.layout.len()];
        for (at, host) in self.places(state) {
            all[at..at + host.len()].copy_from_slice(&from[host]);
        }
        driver.copy_in(to.ptr, cast_slice(&all))
    }

    /// Where each tensor begins on the device, and where it lies on the host.
    fn places(&self, state: &TrainState) -> Vec<(usize, std::ops::Range<usize>)> {
        let place = |(i, t): (usize, &crate::exec::state::TrainTensor)| {
            (self.layout.at(i), t.offset..t.offset + t.len * self.members)
        };
        state.tensors.iter().enumerate().map(place).collect()
    }
}

/// Trainable values in the graph's order, and which of them kernels read as f16. Rounding touches all
/// of what a product's weight passes on, and Adam would turn it into steps of its own: kernels get what
/// it took too. A branch's tables are a correction already.
fn shapes(graph: &Graph) -> Vec<Trainable> {
    // The rows' multiple, and whether there is a second copy.
    let mut halves: HashMap<ValueId, (usize, bool)> = HashMap::new();
    for op in &graph.nodes {
        match op {
            Op::Linear(op) => {
                for p in &op.parts {
                    halves.insert(p.weight, (1, true));
                    halves.extend(p.bias.map(|id| (id, (1, false))));
                    // The product reads ranks in groups of 8.
                    let tables = |l: &Lora| [(l.lora_a, (8, false)), (l.lora_b, (1, false))];
                    halves.extend(p.lora.iter().flat_map(tables));
                }
            }
            Op::Embedding(op) => {
                let tables = [op.tables.word, op.tables.position];
                let tables = tables.into_iter().chain(op.tables.token_type);
                halves.extend(tables.map(|id| (id, (1, false))));
            }
            _ => {}
        }
    }
    let size = |d: &Dim| match d {
        Dim::N(n) => *n,
        _ => 1,
    };
    let shape = |id: ValueId| {
        let dims = &graph.get(id).shape[1..];
        let cols = dims.last().map_or(1, size);
        let rows = dims.iter().rev().skip(1).map(size).product();
        let copy = halves.get(&id);
        Trainable {
            rows,
            cols,
            half_rows: copy.map(|(multiple, _)| usize::next_multiple_of(rows, *multiple)),
            split: copy.is_some_and(|(_, split)| *split),
            is_head: is_head(&graph.get(id).name),
        }
    };
    graph.with_role(Role::Trainable).map(shape).collect()
}

/// The tensor of each trainable value and of each gradient.
fn index(graph: &Graph, state: &TrainState) -> HashMap<ValueId, usize> {
    let ids = (0..graph.values.len() as u32).map(ValueId);
    let find = |id: ValueId| {
        let value = graph.get(id);
        let name = match value.role {
            Role::Trainable => &value.name,
            Role::Grad => value.name.strip_prefix("d.")?,
            _ => return None,
        };
        Some((id, state.find(name)?))
    };
    ids.filter_map(find).collect()
}
