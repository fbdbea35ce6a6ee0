//! Launches of `kernels/contrastive.cu`.

use super::{Check, Context, DeviceTensor, Launch, int, l2_norm, ptr};
use crate::cuda::{Arg, Result};
use crate::ops::contrastive::Pair;
use crate::text::pack::Rows;

/// Columns of a block of the gradient.
const COLS: usize = 256;

/// Losses of the members and the log-sum-exp of every row and column.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// Which rows meet.
    pub pair: Pair,
    /// (G, 1) f32
    pub loss: DeviceTensor,
    /// (N, 2) f32
    pub lse: DeviceTensor,
    /// (N, 2) f32 what rounding took from `lse`.
    pub low: DeviceTensor,
    /// (N, 2) f32 scratch: the terms of the losses.
    pub terms: DeviceTensor,
    /// (N, E) f16 in [`l2_norm::unit`] rows.
    pub image: DeviceTensor,
    /// (S, E) f16 in [`l2_norm::unit`] rows.
    pub text: DeviceTensor,
}

/// The gradients of [`Forward`], times the member's weight and loss scale.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// Which rows meet.
    pub pair: Pair,
    /// (S, E) f16 `=`, zero where no gradient flows.
    pub dtext: DeviceTensor,
    /// (N, E) f16 `=`, where the images' gradient is wanted.
    pub dimage: Option<DeviceTensor>,
    /// (N, E) f16, the forward's.
    pub image: DeviceTensor,
    /// (S, E) f16, the forward's.
    pub text: DeviceTensor,
    /// (N, 2) f32 as the forward left it.
    pub lse: DeviceTensor,
    /// (N, 2) f32 as the forward left it.
    pub low: DeviceTensor,
}

/// Launches the forward kernels.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("contrastive_forward");
    let (e, ld) = features(check, cx, &op.image, &op.text)?;
    let (items, members) = (cx.step.rows(Rows::Items), cx.step.bucket().members);
    check.f32("loss", &op.loss, (members, 1, 1))?;
    check.f32("lse", &op.lse, (0, items, 2))?;
    check.f32("low", &op.low, (0, items, 2))?;
    check.f32("terms", &op.terms, (0, items, 2))?;
    let launch = Launch {
        file: "contrastive",
        kernel: "contrastive_forward_f16",
        grid: [cx.step.max_item_tiles(), 2, 1],
        block: [256, 1, 1],
    };
    let args = [
        op.lse.into(),
        op.low.into(),
        op.terms.into(),
        op.image.into(),
        op.text.into(),
        Arg::Ptr(cx.step.params()),
        pair_arg(op.pair),
        int(e),
        int(ld),
    ];
    launch.run(cx, &args)?;
    let sum = Launch {
        file: "contrastive",
        kernel: "contrastive_loss_f32",
        grid: [members, 1, 1],
        block: [128, 1, 1],
    };
    let args = [op.loss.into(), op.terms.into(), Arg::Ptr(cx.step.params())];
    sum.run(cx, &args)
}

/// Launches the backward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("contrastive_backward");
    let (e, ld) = features(check, cx, &op.image, &op.text)?;
    check.rows("dtext", &op.dtext, (cx.step.rows(Rows::Seqs), e), ld)?;
    let items = cx.step.rows(Rows::Items);
    if let Some(dimage) = &op.dimage {
        check.rows("dimage", dimage, (items, e), ld)?;
    }
    check.f32("lse", &op.lse, (0, items, 2))?;
    check.f32("low", &op.low, (0, items, 2))?;
    let targets = if op.dimage.is_some() { 3 } else { 2 };
    let launch = Launch {
        file: "contrastive",
        kernel: "contrastive_backward_f16",
        grid: [cx.step.max_item_tiles(), e.div_ceil(COLS), targets],
        block: [256, 1, 1],
    };
    let args = [
        op.dtext.into(),
        ptr(op.dimage),
        op.image.into(),
        op.text.into(),
        op.lse.into(),
        op.low.into(),
        Arg::Ptr(cx.step.params()),
        pair_arg(op.pair),
        int(e),
        int(ld),
    ];
    launch.run(cx, &args)
}

/// E and the stride of rows of E halves.
fn features(
    check: Check,
    cx: Context<'_>,
    image: &DeviceTensor,
    text: &DeviceTensor,
) -> Result<(usize, usize)> {
    let (e, ld) = (text.cols, l2_norm::unit(text.ptr, 0, text.cols).ld);
    check.rows("image", image, (cx.step.rows(Rows::Items), e), ld)?;
    check.rows("text", text, (cx.step.rows(Rows::Seqs), e), ld)?;
    Ok((e, ld / 2))
}

fn pair_arg(pair: Pair) -> Arg {
    Arg::I32(match pair {
        Pair::ImageAnchor => 0,
        Pair::PartnerAnchor => 1,
        Pair::ImagePartner => 2,
    })
}
