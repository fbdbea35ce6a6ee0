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
    let check = Check("activation_forward");
    let tensors = [("out", op.out), ("inp", op.inp)];
    launch(cx, check, "activation_forward_f16", op.kind, &tensors)
}

/// Launches the backward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("activation_backward");
    let tensors = [("dinp", op.dinp), ("dout", op.dout), ("inp", op.inp)];
    launch(cx, check, "activation_backward_f16", op.kind, &tensors)
}

/// Tensors are a kernel's first arguments, all shaped like the last one.
fn launch(
    cx: Context<'_>,
    check: Check,
    kernel: &'static str,
    kind: Kind,
    tensors: &[(&str, DeviceTensor)],
) -> Result<()> {
    let (rows, inp) = (cx.step.rows(Rows::Tokens), tensors[tensors.len() - 1].1);
    for (name, t) in tensors {
        check.rows(name, t, (rows, inp.cols), inp.ld)?;
    }
    let mut args: Vec<Arg> = tensors.iter().map(|(_, t)| (*t).into()).collect();
    let kind = match kind {
        Kind::GeluTanh => 0,
        Kind::Relu => 1,
    };
    args.extend([Arg::Ptr(cx.step.params()), Arg::I32(kind), int(inp.ld)]);
    let launch = Launch {
        file: "activation",
        kernel,
        grid: [(rows * inp.ld).div_ceil(BLOCK), 1, 1],
        block: [256, 1, 1],
    };
    launch.run(cx, &args)
}
