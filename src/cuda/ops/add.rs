//! The launch of `kernels/add.cu`.

use super::{Check, Context, DeviceTensor, Launch, int, rows_arg};
use crate::cuda::{Arg, Result};
use crate::text::pack::Rows;

/// Numbers of a block.
const BLOCK: usize = 2048;

/// `out = a + b`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, C) f16 `=`; may be `a` or `b`.
    pub out: DeviceTensor,
    /// (rows, C) f16
    pub a: DeviceTensor,
    /// (rows, C) f16
    pub b: DeviceTensor,
}

/// Launches the kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("add_forward");
    let (rows, c, ld) = (cx.step.rows(op.rows), op.a.cols, op.a.ld);
    for (name, t) in [("out", op.out), ("a", op.a), ("b", op.b)] {
        check.rows(name, &t, (rows, c), ld)?;
    }
    let launch = Launch {
        file: "add",
        kernel: "add_forward_f16",
        grid: [(rows * ld).div_ceil(BLOCK), 1, 1],
        block: [256, 1, 1],
    };
    let args = [
        op.out.into(),
        op.a.into(),
        op.b.into(),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(ld),
    ];
    launch.run(cx, &args)
}
