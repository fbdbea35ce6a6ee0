//! The CUDA executor: each node's kernels, in node order, on a GPU or in the virtual machine.
//!
//! What is fixed per bucket (addresses, extents, strides) is in the launches; what changes per step is
//! copied into the step's parameters before. So a list of launches is captured once and replayed.

pub mod memory;
mod nodes;
mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use half::slice::HalfFloatSliceExt;

use self::memory::{Arena, Memory, Room};
use self::nodes::Run;
use self::state::DeviceState;
use super::state::TrainState;
use super::{Executor, Observer, Pass, Ran, Told};
use crate::bad_input;
use crate::cuda::device::{Device, Opened, Source};
use crate::cuda::ops::{Context, DeviceTensor, embedding, layer_norm, phm};
use crate::cuda::step_params::StepBuffer;
use crate::cuda::{DevicePtr, Driver, EventId, GraphId};
use crate::error::Result;
use crate::graph::plan::Reuse;
use crate::graph::{Bucket, Graph, Role, ValueId};
use crate::ops::Op;
use crate::tensor::Dtype;

/// Runs a graph on a device.
pub struct CudaExecutor {
    device: Device,
    graph: Arc<Graph>,
    weights: HashMap<ValueId, DeviceTensor>,
    state: DeviceState,
    rooms: HashMap<Room, Prepared>,
    arena: Arena,
    /// Allocations that are given back at the end.
    owned: Vec<DevicePtr>,
    /// Of the last pass.
    last: Option<Room>,
    true_rows: Bucket,
    capture: bool,
    n_replays: usize,
    observer: Option<Observer>,
    /// Marks between nodes that are observed, used again in each pass.
    marks: Vec<EventId>,
}

/// What is made once for a room.
struct Prepared {
    memory: Memory,
    step: StepBuffer,
    /// By the nodes of a pass.
    replays: HashMap<(usize, usize), Replay>,
}

/// A list of launches.
#[derive(Clone, Copy)]
enum Replay {
    /// It ran once: kernels are loaded, and it may come again.
    Seen,
    Captured(GraphId),
}

impl CudaExecutor {
    /// Binds a graph: frozen weights go to the device unless they are there, and there is room for
    /// the trainable tensors of `state`, whose values [`Executor::load`] copies.
    ///
    /// # Errors
    /// If the kernels do not take a graph of these sizes; if the checkpoint lacks a weight or holds
    /// one that f16 can't; if the device has no room.
    pub fn new(
        device: &Device,
        source: Source<'_>,
        graph: Arc<Graph>,
        state: &TrainState,
    ) -> Result<CudaExecutor> {
        check_graph(&graph)?;
        let mut opened = device.lock();
        let mut weights = HashMap::new();
        for id in graph.with_role(Role::Frozen) {
            weights.insert(id, opened.weight(source, graph.get(id))?);
        }
        let mut owned = Vec::new();
        let on_device = DeviceState::new(opened.driver(), &graph, state, &mut owned)?;
        drop(opened);
        Ok(CudaExecutor {
            device: device.clone(),
            graph,
            weights,
            state: on_device,
            rooms: HashMap::new(),
            arena: Arena::default(),
            owned,
            last: None,
            true_rows: NOTHING,
            capture: true,
            n_replays: 0,
            observer: None,
            marks: vec![],
        })
    }

    /// Launches every kernel by itself: to compare with captured steps.
    pub fn without_capture(mut self) -> CudaExecutor {
        self.capture = false;
        self
    }

    /// Passes so far that replayed a list captured before.
    pub fn n_replays(&self) -> usize {
        self.n_replays
    }

    /// Plans and places a room, unless that was done.
    fn prepare(&mut self, opened: &Opened, room: Room) -> Result<()> {
        if self.rooms.contains_key(&room) {
            self.last = Some(room);
            return Ok(());
        }
        let driver = opened.driver();
        let place = (&room, self.device.reuse());
        let placed = Memory::new(driver, &self.graph, place, &mut self.arena, &mut self.owned);
        if !matches!(placed, Ok((_, false))) {
            // What was placed and captured before names memory that is gone.
            self.rooms.clear();
            self.last = None;
        }
        let (memory, _) = placed?;
        let ptr = driver.alloc(StepBuffer::bytes(&room.bucket), "step")?;
        self.owned.push(ptr);
        let prepared = Prepared {
            memory,
            step: StepBuffer::new(ptr, room.bucket, room.longest).with_prompt(room.prompt),
            replays: HashMap::new(),
        };
        self.rooms.insert(room, prepared);
        self.last = Some(room);
        Ok(())
    }

    fn over<'a>(&'a self, opened: &'a Opened, prepared: &'a Prepared) -> Run<'a> {
        Run {
            cx: Context {
                driver: opened.driver(),
                step: &prepared.step,
            },
            graph: &self.graph,
            weights: &self.weights,
            state: &self.state,
            memory: &prepared.memory,
            forget: self.device.reuse() == Reuse::Packed,
        }
    }

    /// Launches a pass node by node, with a mark before each and one at the end, and tells the
    /// observer what lay between them.
    fn observed(&mut self, opened: &Opened, room: Room, pass: &Pass<'_>) -> Result<()> {
        let driver = opened.driver();
        while self.marks.len() <= pass.nodes.len() {
            self.marks.push(driver.record()?);
        }
        // What was queued before would count for the first node.
        driver.synchronize()?;
        let begin = Instant::now();
        // Taken out, for what runs borrows the rest.
        let Some(mut observer) = self.observer.take() else {
            return Ok(());
        };
        let run = self.over(opened, &self.rooms[&room]);
        let mut launch = || {
            for (node, mark) in pass.nodes.clone().zip(&self.marks) {
                observer(Told::Begins(node));
                driver.record_again(*mark)?;
                run.nodes(node..node + 1)?;
            }
            driver.record_again(self.marks[pass.nodes.len()])
        };
        let launched = launch();
        let observer = self.observer.insert(observer);
        launched?;
        let mut start = begin;
        for (i, node) in pass.nodes.clone().enumerate() {
            let ms = driver.elapsed_ms(self.marks[i], self.marks[i + 1])?;
            let time = Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3);
            observer(Told::Ran(Ran {
                node,
                pass,
                start,
                time,
            }));
            start += time;
        }
        Ok(())
    }

    /// Copies in what a pass brings.
    fn bring(&self, opened: &Opened, prepared: &Prepared, pass: &Pass<'_>) -> Result<()> {
        let driver = opened.driver();
        for op in &self.graph.nodes[pass.nodes.clone()] {
            if let Op::Embedding(op) = op {
                let run = self.over(opened, prepared);
                embedding::check_ids(&run.tables(&op.tables), pass.batch)?;
            }
        }
        prepared.step.upload(driver, pass.batch, pass.steps)?;
        if self.device.reuse() == Reuse::Spread && pass.nodes.start == 0 {
            // Nothing of the step before is wanted any more.
            for t in prepared.memory.tensors.iter().flatten() {
                driver.forget(t.ptr, t.len() * t.dtype.size())?;
            }
        }
        if !pass.batch.images.is_empty() {
            for t in prepared.memory.scratch.inputs.values() {
                copy_in(driver, t, &pass.batch.images)?;
            }
        }
        for (id, values) in pass.given {
            let memory = &prepared.memory;
            let input = || memory.scratch.inputs.get(id);
            if let Some(t) = memory.tensors[id.idx()].as_ref().or_else(input) {
                copy_in(driver, t, values)?;
            }
        }
        Ok(())
    }
}

const NOTHING: Bucket = Bucket {
    tokens: 0,
    seqs: 0,
    items: 0,
    members: 0,
};

impl Executor for CudaExecutor {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn load(&mut self, state: &TrainState) -> Result<()> {
        let opened = self.device.lock();
        let bucket = Bucket {
            members: state.members,
            ..NOTHING
        };
        let cx = Context {
            driver: opened.driver(),
            step: &StepBuffer::new(DevicePtr::NULL, bucket, 1),
        };
        Ok(self.state.load(cx, state)?)
    }

    fn store(&self, state: &mut TrainState) -> Result<()> {
        let opened = self.device.lock();
        Ok(self.state.store(opened.driver(), state)?)
    }

    fn pass(&mut self, _: &mut TrainState, pass: &Pass<'_>) -> Result<()> {
        let device = self.device.clone();
        let opened = device.lock();
        let batch = pass.batch;
        let room = Room::of(batch);
        self.prepare(&opened, room)?;
        self.true_rows = Bucket {
            tokens: batch.tokens(),
            seqs: batch.seqs(),
            items: batch.items(),
            members: batch.members.len(),
        };
        self.bring(&opened, &self.rooms[&room], pass)?;
        if self.observer.is_some() {
            return self.observed(&opened, room, pass);
        }
        let key = (pass.nodes.start, pass.nodes.end);
        let driver = opened.driver();
        let prepared = &self.rooms[&room];
        let run = self.over(&opened, prepared);
        let next = match prepared.replays.get(&key) {
            Some(Replay::Captured(graph)) => {
                driver.replay(*graph)?;
                self.n_replays += 1;
                return Ok(());
            }
            Some(Replay::Seen) if self.capture => {
                driver.begin_capture()?;
                let noted = run.nodes(pass.nodes.clone());
                // A capture is ended whatever happened in it.
                let graph = driver.end_capture();
                noted?;
                let graph = graph?;
                driver.replay(graph)?;
                Replay::Captured(graph)
            }
            _ => {
                run.nodes(pass.nodes.clone())?;
                Replay::Seen
            }
        };
        if let Some(prepared) = self.rooms.get_mut(&room) {
            prepared.replays.insert(key, next);
        }
        Ok(())
    }

    fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    fn output(&self, id: ValueId) -> Result<Vec<f32>> {
        let prepared = self.last.and_then(|room| self.rooms.get(&room));
        let Some(t) = prepared.and_then(|p| p.memory.tensors[id.idx()]) else {
            return Ok(vec![]);
        };
        let opened = self.device.lock();
        let rows = self.graph.rows(id, &self.true_rows);
        let driver = opened.driver();
        let mut all = vec![0f32; rows * t.ld];
        match t.dtype {
            Dtype::F16 => {
                let mut halves = vec![f16::ZERO; all.len()];
                driver.copy_out(t.ptr, bytemuck::cast_slice_mut(&mut halves))?;
                halves.convert_to_f32_slice(&mut all);
            }
            _ => driver.copy_out(t.ptr, bytemuck::cast_slice_mut(&mut all))?,
        }
        Ok(all
            .chunks(t.ld)
            .flat_map(|row| &row[..t.cols])
            .copied()
            .collect())
    }

    fn arena_bytes(&self) -> usize {
        self.arena.bytes()
    }
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        let opened = self.device.lock();
        // A failure here is the echo of one that a call returned.
        let _ = self.arena.free(opened.driver());
        for ptr in self.owned.drain(..) {
            let _ = opened.driver().free(ptr);
        }
    }
}

/// Fails if the kernels do not take a graph: before anything is copied, and with what to do.
fn check_graph(graph: &Graph) -> Result<()> {
    let refuse = |what: String| bad_input!("device: {what}; use --device cpu, which takes any");
    for op in &graph.nodes {
        match op {
            Op::Attention(op) => {
                let size = graph.channels(op.out) / op.heads.max(1);
                if !size.is_multiple_of(8) || !(8..=128).contains(&size) {
                    return Err(refuse(format!(
                        "found heads of {size} numbers, expected a multiple of 8 from 8 to 128"
                    )));
                }
            }
            Op::LayerNorm(op) if graph.channels(op.out) > layer_norm::MAX_C => {
                let (c, most) = (graph.channels(op.out), layer_norm::MAX_C);
                return Err(refuse(format!(
                    "found {c} channels, expected at most {most}"
                )));
            }
            Op::Phm(op) => {
                let (n, c) = (graph.channels(op.weights.rule), graph.channels(op.out));
                if n > phm::MAX_N || c.max(graph.channels(op.inp)) > phm::MAX_C {
                    return Err(refuse(format!(
                        "found Compacters of {n} blocks and {c} channels, expected at most {} and {}",
                        phm::MAX_N,
                        phm::MAX_C
                    )));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Copies rows into a tensor of the device.
fn copy_in(driver: &dyn Driver, to: &DeviceTensor, values: &[f32]) -> Result<()> {
    let rows = values.chunks(to.cols);
    match to.dtype {
        Dtype::F16 => {
            let mut padded = vec![f16::ZERO; values.len() / to.cols * to.ld];
            for (row, values) in padded.chunks_mut(to.ld).zip(rows) {
                row[..to.cols].convert_from_f32_slice(values);
            }
            driver.copy_in(to.ptr, bytemuck::cast_slice(&padded))?;
        }
        _ => driver.copy_in(to.ptr, bytemuck::cast_slice(values))?,
    }
    Ok(())
}
