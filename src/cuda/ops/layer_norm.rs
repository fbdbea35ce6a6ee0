//! Launches of `kernels/layer_norm.cu`.

use super::{Check, Context, DeviceTensor, Launch, dropout, int, ptr, rows_arg};
use crate::cuda::step_params::CHUNK;
use crate::cuda::{Arg, Result};
use crate::ops::philox::Dropout;
use crate::tensor::Dtype;
use crate::text::pack::Rows;

/// The widest row that the gradient's kernels keep in registers.
pub const MAX_C: usize = 1024;
/// The widest row that the forward kernels do.
pub const MAX_FORWARD_C: usize = 1536;
/// Rows of a block of the forward kernel.
const FORWARD_ROWS: usize = 8;

/// `z = resid + dropout(inp)`, or z is inp; `out = (z - mean) rstd weight + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// What the rows are; with dropout, tokens.
    pub rows: Rows,
    /// (rows, C) f16 `=`
    pub out: DeviceTensor,
    /// (rows, C) f16 `=`; may be `inp`, and is not written where there is no residual.
    pub z: DeviceTensor,
    /// (rows, 2) f32 `=` mean and reciprocal standard deviation.
    pub stats: DeviceTensor,
    /// (rows, C) f16
    pub inp: DeviceTensor,
    /// (rows, C) f16, if anything went around `inp`; what is normed is `inp` otherwise, without
    /// dropout.
    pub resid: Option<DeviceTensor>,
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
    /// As the forward's.
    pub rows: Rows,
    /// (rows, C) f16 `=`; may be `dout`.
    pub dz: DeviceTensor,
    /// (rows, C) f16 `=`, where there is dropout.
    pub dinp: Option<DeviceTensor>,
    /// (G, C) f32 `+=`
    pub dweight: Option<DeviceTensor>,
    /// (G, C) f32 `+=`
    pub dbias: Option<DeviceTensor>,
    /// ([`max_chunks`](crate::cuda::step_params::StepBuffer::max_chunks), 2 C) f32 scratch, where
    /// weight or bias is trainable.
    pub partials: Option<DeviceTensor>,
    /// (rows, C) f16
    pub dout: DeviceTensor,
    /// (rows, C) f16 as the forward left it.
    pub z: DeviceTensor,
    /// (rows, 2) f32 as the forward left it.
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
    let (rows, c, ld) = (cx.step.rows(op.rows), op.inp.cols, op.inp.ld);
    let tensors = [
        ("out", Some(op.out)),
        ("z", Some(op.z)),
        ("inp", Some(op.inp)),
        ("resid", op.resid),
    ];
    for (name, t) in tensors.iter().filter_map(|(name, t)| Some((name, (*t)?))) {
        check.rows(name, &t, (rows, c), ld)?;
    }
    check.f32("stats", &op.stats, (0, rows, 2))?;
    check.that((1..=MAX_FORWARD_C).contains(&c), || {
        format!("C is {c}, expected 1 to {MAX_FORWARD_C}")
    })?;
    drops_tokens(check, op.rows, op.dropout)?;
    check.that(
        op.resid.is_some() || op.dropout.is_none() && op.z == op.inp,
        || "without a residual z is not inp, or there is dropout".into(),
    )?;
    param(check, cx, "weight", &op.weight, c)?;
    param(check, cx, "bias", &op.bias, c)?;
    let half = |t: &DeviceTensor| i32::from(t.dtype == Dtype::F16);
    let [threshold, scale, site] = dropout(op.dropout);
    let launch = Launch {
        file: "layer_norm",
        kernel: match c > MAX_C {
            true => "layer_norm_forward_wide_f16",
            false => "layer_norm_forward_f16",
        },
        grid: [rows.div_ceil(FORWARD_ROWS), 1, 1],
        block: [256, 1, 1],
    };
    let args = [
        op.out.into(),
        op.z.into(),
        op.stats.into(),
        op.inp.into(),
        ptr(op.resid),
        op.weight.into(),
        op.bias.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        Arg::Ptr(cx.step.seqs()),
        rows_arg(op.rows),
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
        grid: match op.rows {
            Rows::Tokens => [cx.step.max_chunks(), 1, 1],
            rows => {
                let members = cx.step.bucket().members;
                [cx.step.rows(rows).div_ceil(CHUNK), members, 1]
            }
        },
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
        rows_arg(op.rows),
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
    let (rows, c, ld) = (cx.step.rows(op.rows), op.z.cols, op.z.ld);
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
    drops_tokens(check, op.rows, op.dropout)?;
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
        rows_arg(op.rows),
        int(c),
    ];
    launch.run(cx, &args)
}

/// Random numbers of dropout have tokens' names.
fn drops_tokens(check: Check, rows: Rows, dropout: Option<Dropout>) -> Result<()> {
    check.that(rows == Rows::Tokens || dropout.is_none(), || {
        format!("rows are {rows:?} and dropped, expected tokens")
    })
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
