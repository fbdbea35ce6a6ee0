//! Launches of `kernels/activation.cu`.

use super::{Check, Context, DeviceTensor, Launch, int};
use crate::cuda::{Arg, Result};
use crate::ops::activation::Kind;
use crate::text::pack::Rows;

/// Numbers of a block.
const BLOCK: usize = 2048;

/// `out = f(inp)`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// Which function.
    pub kind: Kind,
    /// (T, C) f16 `=`
    pub out: DeviceTensor,
    /// (T, C) f16
    pub inp: DeviceTensor,
}

/// `dinp = dout f'(inp)`.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// Which function.
    pub kind: Kind,
    /// (T, C) f16 `=`; may be `dout`.
    pub dinp: DeviceTensor,
    /// (T, C) f16
    pub dout: DeviceTensor,
    /// (T, C) f16, what went into it.
    pub inp: DeviceTensor,
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let tensors = [("out", op.out), ("inp", op.inp)];
    check("activation_forward", cx, &tensors)?;
    let args = [
        op.out.into(),
        op.inp.into(),
        Arg::Ptr(cx.step.params()),
        kind(op.kind),
        int(op.inp.ld),
    ];
    launch("activation_forward_f16", cx, op.inp.ld).run(cx, &args)
}

/// Launches the backward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let tensors = [("dinp", op.dinp), ("dout", op.dout), ("inp", op.inp)];
    check("activation_backward", cx, &tensors)?;
    let args = [
        op.dinp.into(),
        op.dout.into(),
        op.inp.into(),
        Arg::Ptr(cx.step.params()),
        kind(op.kind),
        int(op.inp.ld),
    ];
    launch("activation_backward_f16", cx, op.inp.ld).run(cx, &args)
}

/// All are (T, C) with the rows as far apart as the last one's.
fn check(op: &'static str, cx: Context<'_>, tensors: &[(&str, DeviceTensor)]) -> Result<()> {
    let rows = cx.step.rows(Rows::Tokens);
    let last = tensors.last().map(|(_, t)| (t.cols, t.ld));
    let Some((cols, ld)) = last else {
        return Ok(());
    };
    tensors
        .iter()
        .try_for_each(|(name, t)| Check(op).rows(name, t, (rows, cols), ld))
}

fn launch(kernel: &'static str, cx: Context<'_>, ld: usize) -> Launch {
    Launch {
        file: "activation",
        kernel,
        grid: [(cx.step.rows(Rows::Tokens) * ld).div_ceil(BLOCK), 1, 1],
        block: [256, 1, 1],
    }
}

fn kind(kind: Kind) -> Arg {
    Arg::I32(match kind {
        Kind::GeluTanh => 0,
        Kind::Relu => 1,
    })
}
