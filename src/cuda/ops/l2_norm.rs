//! Launches of `kernels/l2_norm.cu`.

use super::{Check, Context, DeviceTensor, Launch, int, rows_arg};
use crate::cuda::{Arg, Result};
use crate::text::pack::Rows;

/// Rows of a block.
const ROWS: usize = 4;

/// `out = inp / |inp|`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, E) f16 `=`
    pub out: DeviceTensor,
    /// (rows, 1) f32 `=` lengths.
    pub norm: DeviceTensor,
    /// (rows, E) f16
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
    /// (rows, E) f16 as the forward left it.
    pub out: DeviceTensor,
    /// (rows, 1) f32 as the forward left it.
    pub norm: DeviceTensor,
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("l2_norm_forward");
    let (rows, e, ld) = (cx.step.rows(op.rows), op.inp.cols, op.inp.ld);
    check.rows("out", &op.out, (rows, e), ld)?;
    check.rows("inp", &op.inp, (rows, e), ld)?;
    check.f32("norm", &op.norm, (0, rows, 1))?;
    let args = [
        op.out.into(),
        op.norm.into(),
        op.inp.into(),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(e),
        int(ld),
    ];
    launch("l2_norm_forward_f16", rows).run(cx, &args)
}

/// Launches the backward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("l2_norm_backward");
    let (rows, e, ld) = (cx.step.rows(op.rows), op.out.cols, op.out.ld);
    for (name, t) in [("dinp", op.dinp), ("dout", op.dout), ("out", op.out)] {
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
