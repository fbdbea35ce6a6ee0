//! Launches of `kernels/mse.cu`.

use super::{Check, Context, DeviceTensor, Launch, int};
use crate::cuda::{Arg, Result};
use crate::text::pack::Rows;

/// Columns of a block of the gradient.
const COLS: usize = 1024;

/// For each member, the mean of `(anchor - partner)^2`; 0 without partners.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// (G, 1) f32 `=`
    pub loss: DeviceTensor,
    /// (S, E) f16
    pub text: DeviceTensor,
}

/// The gradient of [`Forward`], times the member's weight and loss scale.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// (S, E) f16 `=`, zero where no gradient flows.
    pub dtext: DeviceTensor,
    /// (S, E) f16
    pub text: DeviceTensor,
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("mse_forward");
    let (seqs, members) = (cx.step.rows(Rows::Seqs), cx.step.bucket().members);
    check.rows("text", &op.text, (seqs, op.text.cols), op.text.ld)?;
    check.f32("loss", &op.loss, (members, 1, 1))?;
    let launch = Launch {
        file: "mse",
        kernel: "mse_forward_f32",
        grid: [members, 1, 1],
        block: [256, 1, 1],
    };
    let args = [
        op.loss.into(),
        op.text.into(),
        Arg::Ptr(cx.step.params()),
        int(op.text.cols),
        int(op.text.ld),
    ];
    launch.run(cx, &args)
}

/// Launches the backward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("mse_backward");
    let (seqs, e, ld) = (cx.step.rows(Rows::Seqs), op.text.cols, op.text.ld);
    check.rows("text", &op.text, (seqs, e), ld)?;
    check.rows("dtext", &op.dtext, (seqs, e), ld)?;
    let launch = Launch {
        file: "mse",
        kernel: "mse_backward_f16",
        grid: [seqs, ld.div_ceil(COLS), 1],
        block: [128, 1, 1],
    };
    let args = [
        op.dtext.into(),
        op.text.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.seqs()),
        int(e),
        int(ld),
    ];
    launch.run(cx, &args)
}
