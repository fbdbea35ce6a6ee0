//! Where the values of a step lie on the device, for one bucket.

use std::collections::HashMap;
use std::convert::Infallible;

use crate::cuda::ops::DeviceTensor;
use crate::cuda::ops::{attention, l2_norm};
use crate::cuda::step_params::StepBuffer;
use crate::cuda::{DevicePtr, Driver, Result};
use crate::graph::cost::{Kind, kinds};
use crate::graph::plan::{Plan, Reuse};
use crate::graph::{Bucket, Dim, Graph, Role, ValueId};
use crate::ops::Op;
use crate::text::pack::Batch;

/// Bytes that everything begins at a multiple of.
const ALIGN: usize = 256;

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    /// Extents.
    pub bucket: Bucket,
    /// Tokens of the longest text.
    pub longest: usize,
    /// Slots of a soft prompt in each text.
    pub prompt: usize,
}

impl Room {
    /// The room for a batch and for everything a little larger: few rooms serve all steps, and a
    /// block past a step's true rows returns at once.
    pub fn of(batch: &Batch) -> Room {
        let bucket = Bucket {
            tokens: batch.tokens(),
            seqs: batch.seqs(),
            items: batch.items(),
            members: batch.members.len(),
        };
        Room {
            prompt: batch.prompt,
            ..Room::around(bucket, batch.longest())
        }
    }

    /// The same for a batch of these extents, whose longest text has so many tokens and no prompt.
    pub fn around(extents: Bucket, longest: usize) -> Room {
        // An eighth of the next power of two: at most a fifth of what is taken is left over.
        let coarse = |n: usize, least: usize| {
            n.max(1)
                .next_multiple_of(least.max(n.next_power_of_two() / 8))
        };
        let bucket = Bucket {
            tokens: coarse(extents.tokens, 32),
            seqs: coarse(extents.seqs, 8),
            items: coarse(extents.items, 8),
            members: extents.members,
        };
        Room {
            bucket,
            longest: longest.max(1).next_multiple_of(32),
            prompt: 0,
        }
    }
}

/// What kernels need beside the graph's values. Shared by all nodes unless it says otherwise: each
/// node writes before it reads.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// (chunks, 2 C) f32 for the sums of layer norms' gradients.
    pub partials: Option<DeviceTensor>,
    /// (T, NH) f32 for long texts.
    pub delta: Option<DeviceTensor>,
    /// (T, C) f16 sums of the tables' rows, and their gradient.
    pub embedding: Option<[DeviceTensor; 2]>,
    /// (T, 2) f32 their mean and reciprocal standard deviation.
    pub stats: Option<DeviceTensor>,
    /// (N, 2) f32 terms of a contrastive loss.
    pub terms: Option<DeviceTensor>,
    /// By input; images are (N, E) f32.
    pub inputs: HashMap<ValueId, DeviceTensor>,
}

/// The values of the arena and the scratch, placed.
pub struct Memory {
    /// By value id; none where the memory is not the arena's.
    pub tensors: Vec<Option<DeviceTensor>>,
    /// What nodes need besides.
    pub scratch: Scratch,
}

/// The device memory that plans share, one at a time.
#[derive(Default)]
pub struct Arena {
    ptr: Option<DevicePtr>,
    bytes: usize,
}

impl Arena {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it begins, if it is that large.
    pub fn holding(&self, bytes: usize) -> Option<DevicePtr> {
        self.ptr.filter(|_| bytes <= self.bytes)
    }

    /// Gives it back and takes a larger one: what was placed in it is gone.
    pub fn grow(&mut self, driver: &dyn Driver, bytes: usize) -> Result<DevicePtr> {
        self.free(driver)?;
        let ptr = driver.alloc(bytes, "activations")?;
        (self.ptr, self.bytes) = (Some(ptr), bytes);
        Ok(ptr)
    }

    /// Gives it back.
    pub fn free(&mut self, driver: &dyn Driver) -> Result<()> {
        self.bytes = 0;
        self.ptr.take().map_or(Ok(()), |ptr| driver.free(ptr))
    }
}

/// Where a graph's values and scratch lie in the arena: planned once a room, placed when the arena is
/// large enough.
pub struct Layout<'g> {
    graph: &'g Graph,
    room: Room,
    plan: Plan,
    kinds: Vec<Kind>,
    bytes: usize,
}

impl<'g> Layout<'g> {
    /// Plans a graph.
    pub fn new(graph: &'g Graph, room: &Room) -> Layout<'g> {
        let kinds = kinds(graph);
        let shape = |id: ValueId| shape(graph, id, &room.bucket, kinds[id.idx()]);
        let plan = Plan::sized(graph, room.bucket, Reuse::Packed, |id| words(&shape(id)));
        let mut layout = Layout {
            graph,
            room: *room,
            plan,
            kinds,
            bytes: 0,
        };
        (_, layout.bytes) = layout.scratch(DevicePtr::NULL);
        layout
    }

    /// Bytes of the arena that it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Places it in an arena that begins at `base`.
    pub fn place(&self, base: DevicePtr) -> Memory {
        let place = |id: ValueId| {
            let kind = self.kinds[id.idx()];
            self.plan.span(id).map(|span| DeviceTensor {
                ptr: base.offset(span.offset * 4),
                ..shape(self.graph, id, &self.room.bucket, kind)
            })
        };
        Memory {
            tensors: ids(self.graph).map(place).collect(),
            scratch: self.scratch(base).0,
        }
    }

    /// The scratch behind the plan's values, and the bytes from `base` to its end.
    fn scratch(&self, base: DevicePtr) -> (Scratch, usize) {
        let mut end = self.plan.arena_len * 4;
        let Ok(scratch) = scratch::<Infallible>(self.graph, &self.room, &mut |t, _| {
            let at = end.next_multiple_of(ALIGN);
            end = at + bytes(&t);
            Ok(DeviceTensor {
                ptr: base.offset(at),
                ..t
            })
        });
        (scratch, end)
    }
}

impl Memory {
    /// Bytes that a graph takes in a room.
    pub fn planned_bytes(graph: &Graph, room: &Room, reuse: Reuse) -> usize {
        if reuse == Reuse::Packed {
            return Layout::new(graph, room).bytes();
        }
        let mut sum = 0;
        let Ok(_) = Memory::each::<Infallible>(graph, room, &mut |t, _| {
            sum += bytes(&t).next_multiple_of(ALIGN);
            Ok(t)
        });
        sum
    }

    /// Every value and scratch in an allocation of its own, which is put on `owned`.
    pub fn spread(
        driver: &dyn Driver,
        graph: &Graph,
        room: &Room,
        owned: &mut Vec<DevicePtr>,
    ) -> Result<Memory> {
        Memory::each(graph, room, &mut |t, label| {
            let ptr = driver.alloc(bytes(&t), label)?;
            owned.push(ptr);
            Ok(DeviceTensor { ptr, ..t })
        })
    }

    /// Values and scratch, each placed by `alloc`.
    fn each<E>(
        graph: &Graph,
        room: &Room,
        alloc: &mut dyn FnMut(DeviceTensor, &str) -> std::result::Result<DeviceTensor, E>,
    ) -> std::result::Result<Memory, E> {
        let kinds = kinds(graph);
        let mut tensors = Vec::with_capacity(graph.values.len());
        for id in ids(graph) {
            let value = graph.get(id);
            let shape = shape(graph, id, &room.bucket, kinds[id.idx()]);
            tensors.push(match value.role {
                Role::Temp | Role::Output => Some(alloc(shape, &value.name)?),
                _ => None,
            });
        }
        let scratch = scratch(graph, room, alloc)?;
        Ok(Memory { tensors, scratch })
    }
}

fn ids(graph: &Graph) -> impl Iterator<Item = ValueId> {
    (0..graph.values.len() as u32).map(ValueId)
}

/// A value of the arena in a bucket, without a place.
fn shape(graph: &Graph, id: ValueId, bucket: &Bucket, kind: Kind) -> DeviceTensor {
    let dims = &graph.get(id).shape;
    let cols = dims.last().map_or(1, |d| d.size(bucket));
    let rows = graph.rows(id, bucket);
    match (dims.first(), kind) {
        (Some(Dim::Members), _) => DeviceTensor::f32(DevicePtr::NULL, 1, cols).per_member(rows),
        (_, Kind::Single) => DeviceTensor::f32(DevicePtr::NULL, rows, cols),
        (_, Kind::Unit) => l2_norm::unit(DevicePtr::NULL, rows, cols),
        (_, Kind::Half) => DeviceTensor::f16(DevicePtr::NULL, rows, cols),
    }
}

fn bytes(t: &DeviceTensor) -> usize {
    t.len() * t.dtype.size()
}

fn words(t: &DeviceTensor) -> usize {
    bytes(t).div_ceil(4)
}

/// What the nodes of a graph need besides its values, each placed by `alloc`.
fn scratch<E>(
    graph: &Graph,
    room: &Room,
    alloc: &mut dyn FnMut(DeviceTensor, &str) -> std::result::Result<DeviceTensor, E>,
) -> std::result::Result<Scratch, E> {
    let b = &room.bucket;
    let step = StepBuffer::new(DevicePtr::NULL, *b, room.longest);
    let f32 = |rows, cols| DeviceTensor::f32(DevicePtr::NULL, rows, cols);
    let (mut norm_cols, mut heads, mut items) = (0, 0, false);
    let mut out = Scratch::default();
    for op in &graph.nodes {
        match op {
            Op::LayerNormGrad(op) if op.dweight.or(op.dbias).is_some() => {
                norm_cols = norm_cols.max(graph.channels(op.z));
            }
            Op::EmbeddingGrad(op) => {
                let c = graph.channels(op.dout);
                if op.grads[3].or(op.grads[4]).is_some() {
                    norm_cols = norm_cols.max(c);
                }
                let rows = DeviceTensor::f16(DevicePtr::NULL, b.tokens, c);
                let sums = [alloc(rows, "embedding.z")?, alloc(rows, "embedding.dz")?];
                out.embedding = Some(sums);
                out.stats = Some(alloc(f32(b.tokens, 2), "embedding.stats")?);
            }
            Op::AttentionGrad(op) => heads = heads.max(op.heads),
            Op::Contrastive(_) => items = true,
            _ => {}
        }
    }
    if norm_cols > 0 {
        let t = f32(step.max_chunks(), 2 * norm_cols);
        out.partials = Some(alloc(t, "partials")?);
    }
    if heads > 0 && attention::Backward::needs_delta(room.longest) {
        out.delta = Some(alloc(f32(b.tokens, heads), "delta")?);
    }
    if items {
        out.terms = Some(alloc(f32(b.items, 2), "terms")?);
    }
    let kinds = kinds(graph);
    for id in graph.with_role(Role::Input) {
        let t = shape(graph, id, b, kinds[id.idx()]);
        out.inputs.insert(id, alloc(t, &graph.get(id).name)?);
    }
    Ok(out)
}
