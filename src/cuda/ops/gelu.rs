//! The launch of `kernels/gelu.cu`.

use super::{Check, Context, DeviceTensor, Launch, int};
use crate::cuda::{Arg, Result};
use crate::ops::gelu::Gelu;
use crate::text::pack::Rows;

/// Numbers of a block.
const BLOCK: usize = 2048;

/// `dinp = dout gelu'(inp)`.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// Which GELU.
    pub kind: Gelu,
    /// (T, C) f16 `=`; may be `dout`.
    pub dinp: DeviceTensor,
    /// (T, C) f16
    pub dout: DeviceTensor,
    /// (T, C) f16, what went into the GELU.
    pub inp: DeviceTensor,
}

/// Launches the kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("gelu_backward");
    let (rows, c, ld) = (cx.step.rows(Rows::Tokens), op.inp.cols, op.inp.ld);
    for (name, t) in [("dinp", op.dinp), ("dout", op.dout), ("inp", op.inp)] {
        check.rows(name, &t, (rows, c), ld)?;
    }
    let launch = Launch {
        file: "gelu",
        kernel: "gelu_backward_f16",
        grid: [(rows * ld).div_ceil(BLOCK), 1, 1],
        block: [256, 1, 1],
    };
    let args = [
        op.dinp.into(),
        op.dout.into(),
        op.inp.into(),
        Arg::Ptr(cx.step.params()),
        kind(op.kind),
        int(ld),
    ];
    launch.run(cx, &args)
}

/// `enum Gelu` of gelu.cuh.
pub(super) fn kind(gelu: Gelu) -> Arg {
    Arg::I32(match gelu {
        Gelu::Exact => 0,
        Gelu::Quick => 1,
    })
}
