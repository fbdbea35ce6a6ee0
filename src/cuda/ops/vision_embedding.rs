//! The launch of `kernels/vision_embedding.cu`.

use super::{Check, Context, DeviceTensor, Launch, int};
use crate::cuda::{Arg, Result};
use crate::text::pack::{Batch, Rows};

/// Columns of a block.
const COLS: usize = 1024;

/// `out[t] = (class at place 0, else patches[t]) + position[place]`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// (T, C) f16 `=`; may be `patches`.
    pub out: DeviceTensor,
    /// (T, C) f16
    pub patches: DeviceTensor,
    /// (C) f16
    pub class: DeviceTensor,
    /// (P, C) f16: a row for each token of a picture ([`check_places`]).
    pub position: DeviceTensor,
}

/// Launches the kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("vision_embedding_forward");
    let (rows, c, ld) = (cx.step.rows(Rows::Tokens), op.patches.cols, op.patches.ld);
    check.rows("patches", &op.patches, (rows, c), ld)?;
    check.rows("out", &op.out, (rows, c), ld)?;
    check.rows("class", &op.class, (1, c), ld)?;
    check.rows("position", &op.position, (op.position.rows, c), ld)?;
    let args = [
        op.out.into(),
        op.patches.into(),
        op.class.into(),
        op.position.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        int(ld),
    ];
    let launch = Launch {
        file: "vision_embedding",
        kernel: "vision_embedding_forward_f16",
        grid: [rows, ld.div_ceil(COLS), 1],
        block: [128, 1, 1],
    };
    launch.run(cx, &args)
}

/// Fails unless `position` has a row for each token of a batch's pictures: the kernel reads where
/// tokens' places say.
///
/// # Errors
/// Names both numbers.
pub fn check_places(position: &DeviceTensor, batch: &Batch) -> Result<()> {
    Check("vision_embedding").that(batch.longest() <= position.rows, || {
        format!(
            "a picture has {} tokens, expected at most one for each of {} positions",
            batch.longest(),
            position.rows
        )
    })
}
