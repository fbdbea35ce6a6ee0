//! The CUDA executor: each node's kernels, in node order, on a GPU or in the virtual machine.
//!
//! What is fixed per bucket (addresses, extents, strides) is in the launches; what changes per step is
//! copied into the step's parameters before. So a list of launches is captured once and replayed.

pub mod memory;
mod nodes;
mod rooms;
mod state;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use half::slice::HalfFloatSliceExt;

use self::memory::{Memory, Room};
use self::nodes::Run;
use self::rooms::{Prepared, Replay, Rooms, free_all};
use self::state::DeviceState;
use super::state::TrainState;
use super::{Executor, Observer, Pass, Ran, Told};
use crate::bad_input;
use crate::cuda::device::{Device, Opened, Source};
use crate::cuda::ops::{Context, DeviceTensor, embedding, layer_norm, phm, vision_embedding};
use crate::cuda::step_params::StepBuffer;
use crate::cuda::{self, DevicePtr, Driver, DriverError, EventId, GraphId};
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
    rooms: Rooms,
    /// Allocations of the state, which are given back at the end.
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
        let before = opened.weight_names();
        let mut owned = Vec::new();
        let (weights, state) = match copy(&mut opened, source, (&graph, state), &mut owned) {
            Ok(copied) => copied,
            Err(error) => {
                // The device is left as it was; the error that is told is the one that came first.
                let _ = free_all(opened.driver(), owned);
                let _ = opened.keep_weights(&before);
                return Err(error);
            }
        };
        drop(opened);
        Ok(CudaExecutor {
            device: device.clone(),
            graph,
            weights,
            state,
            rooms: Rooms::default(),
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

    /// Launches a pass: noted the second time and replayed from then on, where the device has room.
    fn launch(&mut self, opened: &Opened, room: Room, nodes: Range<usize>) -> cuda::Result<()> {
        let driver = opened.driver();
        let prepared = self.rooms.at(&room);
        let key = (nodes.start, nodes.end);
        let launch = || self.over(opened, prepared).nodes(nodes.clone());
        let known = match prepared.replay(key) {
            Some(Replay::Captured(graph)) => {
                driver.replay(graph)?;
                self.n_replays += 1;
                return Ok(());
            }
            Some(Replay::Seen) if self.capture => match replayed(driver, launch) {
                Ok(graph) => Replay::Captured(graph),
                Err(DriverError::NoRoomToCapture { .. }) => {
                    launch()?;
                    Replay::Launched
                }
                Err(error) => return Err(error),
            },
            known => {
                launch()?;
                known.unwrap_or(Replay::Seen)
            }
        };
        self.rooms.note(&room, key, known);
        Ok(())
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
        let run = self.over(opened, self.rooms.at(&room));
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
            let run = self.over(opened, prepared);
            match op {
                Op::Embedding(op) => {
                    embedding::check_ids(&run.tables(&op.tables), pass.batch)?;
                }
                Op::VisionEmbedding(op) => {
                    vision_embedding::check_places(&self.weights[&op.position], pass.batch)?;
                }
                _ => {}
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

/// Bytes that an executor of `graph` takes beside frozen weights: trainable tensors of `members`, and the
/// largest of its rooms.
pub fn planned_bytes(graph: &Graph, members: usize, (rooms, reuse): (&[Room], Reuse)) -> u64 {
    let room =
        |room: &Room| Memory::planned_bytes(graph, room, reuse) + StepBuffer::bytes(&room.bucket);
    let largest = rooms.iter().map(room).max().unwrap_or(0);
    (DeviceState::bytes(graph, members) + largest) as u64
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
        // What an earlier pass left is gone where the room finds no place.
        self.last = None;
        let place = (&room, self.device.reuse());
        self.rooms.prepare(opened.driver(), &self.graph, place)?;
        self.last = Some(room);
        self.true_rows = Bucket {
            tokens: batch.tokens(),
            seqs: batch.seqs(),
            items: batch.items(),
            members: batch.members.len(),
        };
        self.bring(&opened, self.rooms.at(&room), pass)?;
        if self.observer.is_some() {
            return self.observed(&opened, room, pass);
        }
        Ok(self.launch(&opened, room, pass.nodes.clone())?)
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
        self.rooms.arena_bytes()
    }
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        let opened = self.device.lock();
        // A failure here is the echo of one that a call returned.
        for mark in self.marks.drain(..) {
            let _ = opened.driver().drop_event(mark);
        }
        let _ = self.rooms.free(opened.driver());
        let _ = free_all(opened.driver(), self.owned.drain(..));
    }
}

/// The frozen weights of a graph, and room for its trainable tensors, which is put on `owned`.
fn copy(
    opened: &mut Opened,
    source: Source<'_>,
    (graph, state): (&Graph, &TrainState),
    owned: &mut Vec<DevicePtr>,
) -> Result<(HashMap<ValueId, DeviceTensor>, DeviceState)> {
    let mut weights = HashMap::new();
    for id in graph.with_role(Role::Frozen) {
        weights.insert(id, opened.weight(source, graph.get(id))?);
    }
    let state = DeviceState::new(opened.driver(), graph, state, owned)?;
    Ok((weights, state))
}

/// A capture under way. Dropped before its end, by an error or a panic, it is ended and given back: the
/// device goes on.
struct Capture<'a> {
    driver: &'a dyn Driver,
    under_way: bool,
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.under_way
            && let Ok(graph) = self.driver.end_capture()
        {
            let _ = self.driver.drop_graph(graph);
        }
    }
}

/// What `launch` launches, noted and then run.
fn replayed(
    driver: &dyn Driver,
    launch: impl FnOnce() -> cuda::Result<()>,
) -> cuda::Result<GraphId> {
    driver.begin_capture()?;
    let mut capture = Capture {
        driver,
        under_way: true,
    };
    launch()?;
    capture.under_way = false;
    let graph = driver.end_capture()?;
    if let Err(error) = driver.replay(graph) {
        // The error that is told is the one that came first.
        let _ = driver.drop_graph(graph);
        return Err(error);
    }
    Ok(graph)
}

/// Fails if the kernels do not take a graph: before anything is copied, and with what to do.
fn check_graph(graph: &Graph) -> Result<()> {
    let refuse = |what: String| bad_input!("device: {what}; use --device cpu, which takes any");
    let channels = |id: ValueId, most: usize| match graph.channels(id) {
        c if c > most => Err(refuse(format!(
            "found {c} channels, expected at most {most}"
        ))),
        _ => Ok(()),
    };
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
            Op::LayerNorm(op) => channels(op.out, layer_norm::MAX_FORWARD_C)?,
            Op::LayerNormGrad(op) => channels(op.dz, layer_norm::MAX_C)?,
            Op::Embedding(op) => channels(op.out, layer_norm::MAX_C)?,
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
