//! Launches of `kernels/adam.cu`, and where trainable tensors lie on the device.

use bytemuck::{Pod, Zeroable, cast_slice};

use super::{Check, Context, DeviceTensor, Launch, int};
use crate::cuda::{Arg, DevicePtr, Result};
use crate::tensor::Dtype;

/// Numbers of a block.
const BLOCK: usize = 4096;
/// Tensors begin at a multiple of this many numbers, so that kernels find them aligned.
const ALIGN: usize = 64;

/// A trainable tensor: (G, rows, cols) f32 in values, gradients and both moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trainable {
    /// Of a member's copy.
    pub rows: usize,
    /// Of a member's copy.
    pub cols: usize,
    /// Rows of its f16 copy, the last ones zero; none where kernels read the f32 values.
    pub half_rows: Option<usize>,
    /// Whether a second copy, also f16, holds what rounding took from the first.
    pub split: bool,
    /// Whether it is of the linear head, which may have a learning rate of its own.
    pub is_head: bool,
}

/// `TensorParams`
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct TensorParams {
    at: i64,
    half_at: i64,
    len: u32,
    cols: u32,
    half_len: u32,
    ld: u32,
    is_head: u32,
    split: u32,
    unused: [u32; 2],
}

/// `Chunk`
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Chunk {
    tensor: u32,
    start: u32,
}

/// Where the trainable tensors of all members lie, one after the other, in flat buffers: values,
/// gradients and moments alike, and f16 copies.
#[derive(Clone, Debug)]
pub struct Layout {
    tensors: Vec<TensorParams>,
    chunks: Vec<Chunk>,
    members: usize,
    len: usize,
    half_len: usize,
}

impl Layout {
    /// The layout of `members` copies of each.
    pub fn new(members: usize, trainable: &[Trainable]) -> Layout {
        let (mut len, mut half_len) = (0usize, 0usize);
        let (mut tensors, mut chunks) = (Vec::new(), Vec::new());
        for (i, t) in trainable.iter().enumerate() {
            let ld = t.cols.next_multiple_of(8);
            let own_half = t.half_rows.map_or(0, |rows| rows * ld);
            let own = t.rows * t.cols;
            // What the kernel indexes by int, and a copy's rows within its own place.
            assert!(
                i32::try_from(own.max(own_half)).is_ok(),
                "{t:?} is too large"
            );
            assert!(t.half_rows.is_none_or(|rows| rows >= t.rows), "{t:?}");
            tensors.push(TensorParams {
                at: len as i64,
                half_at: t.half_rows.map_or(-1, |_| half_len as i64),
                len: own as u32,
                cols: t.cols as u32,
                half_len: own_half as u32,
                ld: ld as u32,
                is_head: t.is_head.into(),
                split: t.split.into(),
                unused: [0; 2],
            });
            let starts = (0..own as u32).step_by(BLOCK);
            chunks.extend(starts.map(|start| Chunk {
                tensor: i as u32,
                start,
            }));
            len = (len + members * own).next_multiple_of(ALIGN);
            let copies = if t.split { 2 * members } else { members };
            half_len = (half_len + copies * own_half).next_multiple_of(ALIGN);
        }
        Layout {
            tensors,
            chunks,
            members,
            len,
            half_len,
        }
    }

    /// Numbers of each f32 buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trainable.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers of the buffer of f16 copies, which must be zeroed once.
    pub fn half_len(&self) -> usize {
        self.half_len
    }

    /// The number that tensor `i` begins at in an f32 buffer, a multiple of 64.
    pub fn at(&self, i: usize) -> usize {
        self.tensors[i].at as usize
    }

    /// The same in the buffer of f16 copies; none without a copy.
    pub fn half_at(&self, i: usize) -> Option<usize> {
        usize::try_from(self.tensors[i].half_at).ok()
    }

    /// The same of the second copy; none without one.
    pub fn low_at(&self, i: usize) -> Option<usize> {
        let t = &self.tensors[i];
        let high = self.half_at(i).filter(|_| t.split > 0)?;
        Some(high + self.members * t.half_len as usize)
    }

    /// Columns of [`Step::partials`].
    pub fn n_chunks(&self) -> usize {
        self.chunks.len()
    }

    /// What lies at [`Step::table`]: copied in once.
    pub fn table(&self) -> Vec<u8> {
        let tensors: &[u8] = cast_slice(&self.tensors);
        [tensors, cast_slice(&self.chunks)].concat()
    }
}

/// One step of Adam on all trainable tensors.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Where the tensors lie.
    pub layout: &'a Layout,
    /// [`Layout::table`] on the device.
    pub table: DevicePtr,
    /// ([`Layout::len`]) f32
    pub values: DeviceTensor,
    /// ([`Layout::len`]) f32, times the members' loss scales.
    pub grads: DeviceTensor,
    /// ([`Layout::len`]) f32 first moment.
    pub m: DeviceTensor,
    /// ([`Layout::len`]) f32 second moment.
    pub v: DeviceTensor,
    /// ([`Layout::half_len`]) f16 `=`
    pub halves: DeviceTensor,
    /// (G, 1) f32 `=`, unscaled; not finite where the gradient is not: that member stays as it is.
    pub norm: DeviceTensor,
    /// (G, 1) f32: steps that Adam has taken.
    pub n: DeviceTensor,
    /// (G, 4) f32 scratch.
    pub factors: DeviceTensor,
    /// (G, [`Layout::n_chunks`]) f32 scratch.
    pub partials: DeviceTensor,
}

/// Launches the kernels that measure the gradients, decide and take the step.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn step(cx: Context<'_>, op: &Step<'_>) -> Result<()> {
    let check = Check("adam_step");
    let (layout, members) = (op.layout, cx.step.bucket().members);
    check.that(layout.members == members, || {
        format!(
            "the layout is for {} members, expected {members}",
            layout.members
        )
    })?;
    for (name, t) in [
        ("values", &op.values),
        ("grads", &op.grads),
        ("m", &op.m),
        ("v", &op.v),
    ] {
        check.f32(name, t, (0, 1, layout.len))?;
    }
    check_halves(check, layout, &op.halves)?;
    check.f32("norm", &op.norm, (members, 1, 1))?;
    check.f32("n", &op.n, (members, 1, 1))?;
    check.f32("factors", &op.factors, (members, 1, 4))?;
    check.f32("partials", &op.partials, (members, 1, layout.n_chunks()))?;
    if layout.is_empty() {
        return Ok(());
    }
    let [tensors, chunks] = table(check, layout, op.table)?;
    let args = [
        op.partials.into(),
        op.grads.into(),
        tensors.clone(),
        chunks.clone(),
    ];
    launch("adam_partials_f32", layout).run(cx, &args)?;
    let decide = Launch {
        grid: [members, 1, 1],
        ..launch("adam_factors_f32", layout)
    };
    let args = [
        op.norm.into(),
        op.n.into(),
        op.factors.into(),
        op.partials.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.adams()),
        int(layout.n_chunks()),
    ];
    decide.run(cx, &args)?;
    let args = [
        op.values.into(),
        op.m.into(),
        op.v.into(),
        op.halves.into(),
        op.grads.into(),
        op.factors.into(),
        tensors,
        chunks,
        Arg::Ptr(cx.step.adams()),
    ];
    launch("adam_step_f32", layout).run(cx, &args)
}

/// Makes the f16 copies anew, after values came from the host.
///
/// # Errors
/// If a tensor does not fit the layout, or the launch fails.
pub fn copy_halves(
    cx: Context<'_>,
    layout: &Layout,
    at: DevicePtr,
    (halves, values): (DeviceTensor, DeviceTensor),
) -> Result<()> {
    let check = Check("adam_copy");
    check_halves(check, layout, &halves)?;
    check.f32("values", &values, (0, 1, layout.len))?;
    if layout.is_empty() {
        return Ok(());
    }
    let [tensors, chunks] = table(check, layout, at)?;
    let args = [halves.into(), values.into(), tensors, chunks];
    launch("adam_copy_f16", layout).run(cx, &args)
}

fn check_halves(check: Check, layout: &Layout, t: &DeviceTensor) -> Result<()> {
    let fits = t.dtype == Dtype::F16 && t.len() == layout.half_len;
    check.that(fits && t.ptr.0.is_multiple_of(16), || {
        format!("halves is {t:?}, expected {} F16", layout.half_len)
    })
}

/// The tensors and the chunks of a table at `at`.
fn table(check: Check, layout: &Layout, at: DevicePtr) -> Result<[Arg; 2]> {
    check.place("table", at)?;
    let tensors = layout.tensors.len() * size_of::<TensorParams>();
    Ok([Arg::Ptr(at), Arg::Ptr(at.offset(tensors))])
}

fn launch(kernel: &'static str, layout: &Layout) -> Launch {
    Launch {
        file: "adam",
        kernel,
        grid: [layout.n_chunks(), layout.members, 1],
        block: [256, 1, 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_begin_apart_and_chunks_cover_them() {
        let tensor = |rows, cols, half_rows| Trainable {
            rows,
            cols,
            half_rows,
            split: cols == 37,
            is_head: false,
        };
        let layout = Layout::new(
            3,
            &[
                tensor(5, 37, Some(8)),
                tensor(1, 5000, None),
                tensor(1, 1, Some(1)),
            ],
        );
        assert_eq!([0, 1, 2].map(|i| layout.at(i)), [0, 576, 15616]);
        assert_eq!(layout.len(), 15680);
        assert_eq!(
            [0, 1, 2].map(|i| layout.half_at(i)),
            [Some(0), None, Some(1920)]
        );
        assert_eq!([0, 1, 2].map(|i| layout.low_at(i)), [Some(960), None, None]);
        assert_eq!(layout.half_len(), 1984);
        let chunks: Vec<_> = layout.chunks.iter().map(|c| (c.tensor, c.start)).collect();
        assert_eq!(chunks, [(0, 0), (1, 0), (1, 4096), (2, 0)]);
        assert_eq!(layout.table().len(), 3 * 48 + 4 * 8);
        assert!(Layout::new(3, &[]).is_empty());
    }
}
