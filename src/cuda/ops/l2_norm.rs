//! Launches of `kernels/l2_norm.cu`.

use super::{Check, Context, DeviceTensor, Launch, int, rows_arg};
use crate::cuda::{Arg, DevicePtr, Result};
use crate::tensor::Dtype;
use crate::text::pack::Rows;

/// Rows of a block.
const ROWS: usize = 4;

/// `out = inp / |inp|`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, E) f16 `=`, in [`unit()`] rows.
    pub out: DeviceTensor,
    /// (rows, 1) f32 `=` lengths.
    pub norm: DeviceTensor,
    /// (rows, E) f16 or f32
    pub inp: DeviceTensor,
}

/// `dinp = (dout - out (out . dout)) / norm`.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, E) f16 `=`; may be `dout`.
    pub dinp: DeviceTensor,
    /// (rows, E) f16
    pub dout: DeviceTensor,
    /// (rows, E) f16 in [`unit()`] rows, as the forward left them.
    pub out: DeviceTensor,
    /// (rows, 1) f32 as the forward left it.
    pub norm: DeviceTensor,
}

/// Unit rows (rows, E) f16, each with as many numbers behind it, padding included: what rounding to f16
/// took. Logits are 100 times products of unit rows, where f16 alone would be off by hundredths.
pub fn unit(ptr: DevicePtr, rows: usize, e: usize) -> DeviceTensor {
    let t = DeviceTensor::f16(ptr, rows, e);
    DeviceTensor { ld: 2 * t.ld, ..t }
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("l2_norm_forward");
    let (rows, e, ld) = (cx.step.rows(op.rows), op.inp.cols, op.out.ld / 2);
    let is_half = op.inp.dtype == Dtype::F16;
    check.rows("out", &op.out, (rows, e), unit(op.out.ptr, rows, e).ld)?;
    match is_half {
        true => check.rows("inp", &op.inp, (rows, e), ld)?,
        false => check.f32("inp", &op.inp, (0, rows, e))?,
    }
    check.f32("norm", &op.norm, (0, rows, 1))?;
    let args = [
        op.out.into(),
        op.norm.into(),
        op.inp.into(),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(e),
        int(ld),
        int(is_half.into()),
    ];
    launch("l2_norm_forward_f16", rows).run(cx, &args)
}

/// Launches the backward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("l2_norm_backward");
    let (rows, e, ld) = (cx.step.rows(op.rows), op.out.cols, op.out.ld / 2);
    check.rows("out", &op.out, (rows, e), unit(op.out.ptr, rows, e).ld)?;
    for (name, t) in [("dinp", op.dinp), ("dout", op.dout)] {
        check.rows(name, &t, (rows, e), ld)?;
    }
    check.f32("norm", &op.norm, (0, rows, 1))?;
    let args = [
        op.dinp.into(),
        op.dout.into(),
        op.out.into(),
        op.norm.into(),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(e),
        int(ld),
    ];
    launch("l2_norm_backward_f16", rows).run(cx, &args)
}

fn launch(kernel: &'static str, rows: usize) -> Launch {
    Launch {
        file: "l2_norm",
        kernel,
        grid: [rows.div_ceil(ROWS), 1, 1],
        block: [128, 1, 1],
    }
}
