//! Launches of `kernels/layer_norm.cu`.

use super::{Check, Context, DeviceTensor, Launch, dropout, int, ptr};
use crate::cuda::{Arg, Result};
use crate::ops::philox::Dropout;
use crate::tensor::Dtype;
use crate::text::pack::Rows;

/// The widest row that the kernels keep in registers.
pub const MAX_C: usize = 1024;
/// Rows of a block of the forward kernel.
const FORWARD_ROWS: usize = 8;

/// `z = resid + dropout(inp)`, `out = (z - mean) rstd weight + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// (T, C) f16
    pub out: DeviceTensor,
    /// (T, C) f16; may be `inp`.
    pub z: DeviceTensor,
    /// (T, 2) f32 mean and reciprocal standard deviation.
    pub stats: DeviceTensor,
    /// (T, C) f16
    pub inp: DeviceTensor,
    /// (T, C) f16
    pub resid: DeviceTensor,
    /// (C) f16 or f32, or (G, C).
    pub weight: DeviceTensor,
    /// (C) f16 or f32, or (G, C).
    pub bias: DeviceTensor,
    /// Added to the variance.
    pub eps: f32,
    /// On `inp`, in training.
    pub dropout: Option<Dropout>,
}

/// The gradients of [`Forward`].
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// (T, C) f16 `=`; may be `dout`.
    pub dz: DeviceTensor,
    /// (T, C) f16 `=`, where there is dropout.
    pub dinp: Option<DeviceTensor>,
    /// (G, C) f32 `+=`
    pub dweight: Option<DeviceTensor>,
    /// (G, C) f32 `+=`
    pub dbias: Option<DeviceTensor>,
    /// ([`max_chunks`](crate::cuda::step_params::StepBuffer::max_chunks), 2 C) f32 scratch, where
    /// weight or bias is trainable.
    pub partials: Option<DeviceTensor>,
    /// (T, C) f16
    pub dout: DeviceTensor,
    /// (T, C) f16 as the forward left it.
    pub z: DeviceTensor,
    /// (T, 2) f32 as the forward left it.
    pub stats: DeviceTensor,
    /// (C) f16 or f32, or (G, C).
    pub weight: DeviceTensor,
    /// As the forward's.
    pub dropout: Option<Dropout>,
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("layer_norm_forward");
    let (rows, c, ld) = (cx.step.rows(Rows::Tokens), op.inp.cols, op.inp.ld);
    let tensors = [
        ("out", op.out),
        ("z", op.z),
        ("inp", op.inp),
        ("resid", op.resid),
    ];
    for (name, t) in tensors {
        check.rows(name, &t, (rows, c), ld)?;
    }
    check.f32("stats", &op.stats, (0, rows, 2))?;
    width(check, c)?;
    param(check, cx, "weight", &op.weight, c)?;
    param(check, cx, "bias", &op.bias, c)?;
    let half = |t: &DeviceTensor| i32::from(t.dtype == Dtype::F16);
    let [threshold, scale, site] = dropout(op.dropout);
    let launch = Launch {
        file: "layer_norm",
        kernel: "layer_norm_forward_f16",
        grid: [rows.div_ceil(FORWARD_ROWS), 1, 1],
        block: [256, 1, 1],
    };
    let args = [
        op.out.into(),
        op.z.into(),
        op.stats.into(),
        op.inp.into(),
        op.resid.into(),
        op.weight.into(),
        op.bias.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        int(c),
        int(ld),
        Arg::I32(half(&op.weight) | half(&op.bias) << 1),
        Arg::I64(op.weight.stride()),
        Arg::I64(op.bias.stride()),
        Arg::F32(op.eps),
        threshold,
        scale,
        site,
    ];
    launch.run(cx, &args)
}

/// Launches the backward kernel and, where weight or bias is trainable, the sum of its partials.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    check_backward(cx, op)?;
    let (c, ld) = (op.z.cols, op.z.ld);
    let [threshold, scale, site] = dropout(op.dropout);
    let launch = Launch {
        file: "layer_norm",
        kernel: match op.partials {
            Some(_) => "layer_norm_backward_f16",
            None => "layer_norm_backward_frozen_f16",
        },
        grid: [cx.step.max_chunks(), 1, 1],
        block: [256, 1, 1],
    };
    let mut args = vec![op.dz.into(), ptr(op.dinp)];
    args.extend(op.partials.map(Arg::from));
    args.extend([
        op.dout.into(),
        op.z.into(),
        op.stats.into(),
        op.weight.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        int(c),
        int(ld),
        Arg::I32((op.weight.dtype == Dtype::F16).into()),
        Arg::I64(op.weight.stride()),
        threshold,
        scale,
        site,
    ]);
    launch.run(cx, &args)?;
    op.partials
        .map_or(Ok(()), |partials| sum_partials(cx, op, partials, c))
}

/// All that [`backward`] checks before it launches.
pub(super) fn check_backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("layer_norm_backward");
    let (rows, c, ld) = (cx.step.rows(Rows::Tokens), op.z.cols, op.z.ld);
    let tensors = [
        ("dz", Some(op.dz)),
        ("dinp", op.dinp),
        ("dout", Some(op.dout)),
        ("z", Some(op.z)),
    ];
    for (name, t) in tensors.iter().filter_map(|(name, t)| Some((name, (*t)?))) {
        check.rows(name, &t, (rows, c), ld)?;
    }
    check.f32("stats", &op.stats, (0, rows, 2))?;
    width(check, c)?;
    param(check, cx, "weight", &op.weight, c)?;
    let trainable = op.dweight.is_some() || op.dbias.is_some();
    check.that(trainable == op.partials.is_some(), || {
        format!(
            "partials are {:?}, gradients wanted: {trainable}",
            op.partials
        )
    })?;
    let (members, chunks) = (cx.step.bucket().members, cx.step.max_chunks());
    for (name, t, shape) in [
        ("partials", op.partials, (0, chunks, 2 * c)),
        ("dweight", op.dweight, (members, 1, c)),
        ("dbias", op.dbias, (members, 1, c)),
    ] {
        t.map_or(Ok(()), |t| check.f32(name, &t, shape))?;
    }
    Ok(())
}

fn sum_partials(cx: Context<'_>, op: &Backward, partials: DeviceTensor, c: usize) -> Result<()> {
    let launch = Launch {
        file: "layer_norm",
        kernel: "layer_norm_backward_params_f32",
        grid: [c.div_ceil(32), cx.step.bucket().members, 1],
        block: [32, 8, 1],
    };
    let args = [
        ptr(op.dweight),
        ptr(op.dbias),
        partials.into(),
        Arg::Ptr(cx.step.params()),
        int(c),
    ];
    launch.run(cx, &args)
}

pub(super) fn width(check: Check, c: usize) -> Result<()> {
    check.that((1..=MAX_C).contains(&c), || {
        format!("C is {c}, expected 1 to {MAX_C}")
    })
}

/// (C) or (G, C), f16 or f32.
pub(super) fn param(
    check: Check,
    cx: Context<'_>,
    name: &str,
    t: &DeviceTensor,
    c: usize,
) -> Result<()> {
    let members = cx.step.bucket().members;
    let shape = t.rows == 1 && t.cols == c && (t.members == 0 || t.members == members);
    let dtype = t.dtype == Dtype::F32 || t.dtype == Dtype::F16;
    check.that(shape && dtype, || {
        format!("{name} is {t:?}, expected (C) or (G, C) = ({members}, {c}), F16 or F32")
    })?;
    check.place(name, t.ptr)
}
