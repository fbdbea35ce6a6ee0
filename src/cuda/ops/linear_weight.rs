//! Launches of `kernels/linear_weight.cu`.

use super::{Check, Context, DeviceTensor, Launch, int, rows_arg};
use crate::cuda::{Arg, Result};
use crate::text::pack::Rows;

/// Rows and columns of a block of the weight's gradient.
const TILE: usize = 64;
/// Columns of a block of the bias's gradient.
const BIAS_COLS: usize = 32;

/// `dweight += dout^T inp`, `dbias += column sums of dout`, over each member's rows.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// What the rows are.
    pub rows: Rows,
    /// (G, OC, C) f32 `+=`
    pub dweight: Option<DeviceTensor>,
    /// (G, OC) f32 `+=`
    pub dbias: Option<DeviceTensor>,
    /// (rows, OC) f16; may be columns of something wider.
    pub dout: DeviceTensor,
    /// (rows, C) f16
    pub inp: DeviceTensor,
}

/// Launches a kernel for each gradient that is wanted.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("linear_backward_weight");
    let (rows, members) = (cx.step.rows(op.rows), cx.step.bucket().members);
    let (c, oc) = (op.inp.cols, op.dout.cols);
    check.rows("inp", &op.inp, (rows, c), op.inp.ld)?;
    check.rows("dout", &op.dout, (rows, oc), op.dout.ld)?;
    // Both before the first launch: gradients add up, and a call that fails must add nothing.
    if let Some(dweight) = &op.dweight {
        check.f32("dweight", dweight, (members, oc, c))?;
    }
    if let Some(dbias) = &op.dbias {
        check.f32("dbias", dbias, (members, 1, oc))?;
    }
    if let Some(dweight) = &op.dweight {
        let launch = Launch {
            file: "linear_weight",
            kernel: "linear_backward_weight_f32",
            grid: [c.div_ceil(TILE), oc.div_ceil(TILE), members],
            block: [128, 1, 1],
        };
        let args = [
            (*dweight).into(),
            op.dout.into(),
            op.inp.into(),
            Arg::Ptr(cx.step.params()),
            rows_arg(op.rows),
            int(c),
            int(oc),
            int(op.inp.ld),
            int(op.dout.ld),
        ];
        launch.run(cx, &args)?;
    }
    let Some(dbias) = &op.dbias else {
        return Ok(());
    };
    let launch = Launch {
        file: "linear_weight",
        kernel: "linear_backward_bias_f32",
        grid: [oc.div_ceil(BIAS_COLS), members, 1],
        block: [32, 1, 1],
    };
    let args = [
        (*dbias).into(),
        op.dout.into(),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(oc),
        int(op.dout.ld),
    ];
    launch.run(cx, &args)
}
