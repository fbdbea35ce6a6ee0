//! Launches of `kernels/pool.cu`.

use super::{Check, Context, DeviceTensor, Launch, int};
use crate::cuda::{Arg, Result};
use crate::ops::pool::Pooling;
use crate::text::pack::Rows;

/// Columns of a block.
const COLS: usize = 1024;

/// `out[s] = mean of inp over those tokens of text s that count`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// Which tokens count.
    pub pooling: Pooling,
    /// (S, C) f16 `=`
    pub out: DeviceTensor,
    /// (T, C) f16
    pub inp: DeviceTensor,
}

/// `dinp[t] = dout[s] / tokens of s that count`, 0 for one that does not.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// As the forward's.
    pub pooling: Pooling,
    /// (T, C) f16 `=`
    pub dinp: DeviceTensor,
    /// (S, C) f16
    pub dout: DeviceTensor,
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("pool_forward");
    let (c, ld) = (op.inp.cols, op.inp.ld);
    check.rows("inp", &op.inp, (cx.step.rows(Rows::Tokens), c), ld)?;
    check.rows("out", &op.out, (cx.step.rows(Rows::Seqs), c), ld)?;
    let args = [
        op.out.into(),
        op.inp.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.seqs()),
        kind(op.pooling),
        int(ld),
    ];
    launch("pool_forward_f16", cx.step.rows(Rows::Seqs), ld).run(cx, &args)
}

/// Launches the backward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("pool_backward");
    let (c, ld) = (op.dout.cols, op.dout.ld);
    check.rows("dinp", &op.dinp, (cx.step.rows(Rows::Tokens), c), ld)?;
    check.rows("dout", &op.dout, (cx.step.rows(Rows::Seqs), c), ld)?;
    let args = [
        op.dinp.into(),
        op.dout.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.seqs()),
        Arg::Ptr(cx.step.tokens()),
        kind(op.pooling),
        int(ld),
    ];
    launch("pool_backward_f16", cx.step.rows(Rows::Tokens), ld).run(cx, &args)
}

/// `enum Pooling` of pool.cu.
fn kind(pooling: Pooling) -> Arg {
    Arg::I32(match pooling {
        Pooling::Mean => 0,
        Pooling::First => 1,
        Pooling::Last => 2,
    })
}

fn launch(kernel: &'static str, rows: usize, ld: usize) -> Launch {
    Launch {
        file: "pool",
        kernel,
        grid: [rows, ld.div_ceil(COLS), 1],
        block: [128, 1, 1],
    }
}
