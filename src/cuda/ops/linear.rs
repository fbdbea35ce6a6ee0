//! Launches of `kernels/linear.cu`.

use super::{Check, Context, DeviceTensor, Launch, int, ptr, rows_arg};
use crate::cuda::{Arg, DevicePtr, Result};
use crate::text::pack::Rows;

/// Rows of a block that projects onto a branch.
const PROJECT_ROWS: usize = 16;
/// Columns of a block of a parameter gradient.
const PARAM_COLS: usize = 32;
/// From this many rows of the bucket on, large tiles fill a GPU.
const LARGE_FROM: usize = 1024;

/// A low-rank branch as the forward uses it.
#[derive(Clone, Copy, Debug)]
pub struct Lora {
    /// (rows, R) f16 `=` `inp A^T`, kept for the gradient.
    pub u: DeviceTensor,
    /// (G, R padded to 8, C) f16, zero in the padding.
    pub lora_a: DeviceTensor,
    /// (G, OC, R) f16
    pub lora_b: DeviceTensor,
    /// alpha / R.
    pub scale: f32,
}

/// `out = inp W^T + bias + scale u B^T`, `act = gelu(out)`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, OC) f16; may be columns of something wider.
    pub out: DeviceTensor,
    /// (rows, OC) f16
    pub act: Option<DeviceTensor>,
    /// (rows, C) f16
    pub inp: DeviceTensor,
    /// (OC, C) f16
    pub weight: DeviceTensor,
    /// (1, OC) f16
    pub bias: Option<DeviceTensor>,
    /// The branch.
    pub lora: Option<Lora>,
    /// By [`Tile::of`]; all give the same bits.
    pub tile: Tile,
}

/// A low-rank branch as the gradient uses it.
#[derive(Clone, Copy, Debug)]
pub struct LoraBackward {
    /// (G, R, C) f32 `+=`
    pub dlora_a: Option<DeviceTensor>,
    /// (G, OC, R) f32 `+=`
    pub dlora_b: Option<DeviceTensor>,
    /// (rows, R) f16 `=` `scale dout B`
    pub v: DeviceTensor,
    /// (rows, C) f16
    pub inp: DeviceTensor,
    /// As the forward left it and had it.
    pub lora: Lora,
}

/// `dinp = resid + dout W + v A`, and the gradients of A and B.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, C) f16 `=`; none below the lowest trainable tensor.
    pub dinp: Option<DeviceTensor>,
    /// (rows, OC) f16
    pub dout: DeviceTensor,
    /// (OC, C) f16
    pub weight: DeviceTensor,
    /// (rows, C) f16; may be `dinp`.
    pub resid: Option<DeviceTensor>,
    /// The branch.
    pub lora: Option<LoraBackward>,
    /// By [`Tile::of`]; all give the same bits.
    pub tile: Tile,
}

/// Rows and columns of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 64 by 64.
    Small,
    /// 128 by 128.
    Large,
}

impl Tile {
    /// The faster one for the rows of a bucket.
    pub fn of(rows: usize) -> Tile {
        if rows < LARGE_FROM {
            Tile::Small
        } else {
            Tile::Large
        }
    }

    fn launch(self, kernels: [&'static str; 2], rows: usize, cols: usize) -> Launch {
        let (kernel, side, threads) = match self {
            Tile::Small => (kernels[0], 64, 128),
            Tile::Large => (kernels[1], 128, 256),
        };
        Launch {
            file: "linear",
            kernel,
            grid: [cols.div_ceil(side), rows.div_ceil(side), 1],
            block: [threads, 1, 1],
        }
    }
}

/// Launches the projection onto the branch, if there is one, and the product.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("linear_forward");
    let (rows, c, oc) = (cx.step.rows(op.rows), op.weight.cols, op.weight.rows);
    check.rows("inp", &op.inp, (rows, c), op.inp.ld)?;
    check.rows("weight", &op.weight, (oc, c), op.weight.ld)?;
    check.rows("out", &op.out, (rows, oc), op.out.ld)?;
    if let Some(act) = &op.act {
        check.rows("act", act, (rows, oc), op.out.ld)?;
    }
    if let Some(bias) = &op.bias {
        check.rows("bias", bias, (1, oc), bias.ld)?;
    }
    if let Some(lora) = &op.lora {
        branch(check, cx, lora, (rows, c, oc))?;
        project(cx, op, lora)?;
    }
    let kernels = ["linear_forward_small_f16", "linear_forward_f16"];
    let args = [
        op.out.into(),
        ptr(op.act),
        op.inp.into(),
        op.weight.into(),
        ptr(op.bias),
        ptr(op.lora.map(|l| l.u)),
        ptr(op.lora.map(|l| l.lora_b)),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(c),
        int(oc),
        int(op.lora.map_or(0, |l| l.u.ld)),
        int(op.inp.ld),
        int(op.weight.ld),
        int(op.out.ld),
        Arg::F32(op.lora.map_or(0.0, |l| l.scale)),
    ];
    op.tile.launch(kernels, rows, oc).run(cx, &args)
}

fn project(cx: Context<'_>, op: &Forward, lora: &Lora) -> Result<()> {
    let launch = Launch {
        file: "linear",
        kernel: "linear_project_f16",
        grid: [lora.u.rows.div_ceil(PROJECT_ROWS), lora.u.ld / 8, 1],
        block: [128, 1, 1],
    };
    let args = [
        lora.u.into(),
        op.inp.into(),
        lora.lora_a.into(),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(op.inp.cols),
        int(lora.u.ld),
        int(op.inp.ld),
        int(lora.lora_a.ld),
    ];
    launch.run(cx, &args)
}

/// Launches `v` and the branch's gradients, if there is a branch, and the product, if it is wanted.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("linear_backward");
    let (rows, c, oc) = (cx.step.rows(op.rows), op.weight.cols, op.weight.rows);
    check.rows("dout", &op.dout, (rows, oc), op.dout.ld)?;
    check.rows("weight", &op.weight, (oc, c), op.weight.ld)?;
    if let Some(l) = &op.lora {
        branch(check, cx, &l.lora, (rows, c, oc))?;
        check.rows("v", &l.v, (rows, l.lora.u.cols), l.lora.u.ld)?;
        check.rows("inp", &l.inp, (rows, c), l.inp.ld)?;
        project_backward(cx, op, l)?;
        branch_grads(check, cx, op, l)?;
    }
    let Some(dinp) = &op.dinp else { return Ok(()) };
    check.rows("dinp", dinp, (rows, c), dinp.ld)?;
    if let Some(resid) = &op.resid {
        check.rows("resid", resid, (rows, c), dinp.ld)?;
    }
    let kernels = ["linear_backward_small_f16", "linear_backward_f16"];
    let args = [
        (*dinp).into(),
        op.dout.into(),
        op.weight.into(),
        ptr(op.resid),
        ptr(op.lora.map(|l| l.v)),
        ptr(op.lora.map(|l| l.lora.lora_a)),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(c),
        int(oc),
        int(op.lora.map_or(0, |l| l.v.ld)),
        int(dinp.ld),
        int(op.weight.ld),
        int(op.dout.ld),
        int(op.lora.map_or(0, |l| l.lora.lora_a.ld)),
    ];
    op.tile.launch(kernels, rows, c).run(cx, &args)
}

fn project_backward(cx: Context<'_>, op: &Backward, l: &LoraBackward) -> Result<()> {
    let launch = Launch {
        file: "linear",
        kernel: "linear_project_backward_f16",
        grid: [l.v.rows.div_ceil(PROJECT_ROWS), l.v.ld / 8, 1],
        block: [128, 1, 1],
    };
    let args = [
        l.v.into(),
        op.dout.into(),
        l.lora.lora_b.into(),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(op.dout.cols),
        int(l.v.ld),
        int(op.dout.ld),
        Arg::F32(l.lora.scale),
    ];
    launch.run(cx, &args)
}

fn branch_grads(check: Check, cx: Context<'_>, op: &Backward, l: &LoraBackward) -> Result<()> {
    let (members, r) = (cx.step.bucket().members, l.lora.u.cols);
    if let Some(dlora_a) = &l.dlora_a {
        check.f32("dlora_a", dlora_a, (members, r, l.inp.cols))?;
        branch_grad(
            cx,
            op.rows,
            dlora_a.ptr,
            (&l.inp, &l.v),
            (l.inp.cols, 1),
            1.0,
        )?;
    }
    if let Some(dlora_b) = &l.dlora_b {
        check.f32("dlora_b", dlora_b, (members, op.dout.cols, r))?;
        branch_grad(
            cx,
            op.rows,
            dlora_b.ptr,
            (&op.dout, &l.lora.u),
            (1, r),
            l.lora.scale,
        )?;
    }
    Ok(())
}

fn branch_grad(
    cx: Context<'_>,
    rows: Rows,
    grad: DevicePtr,
    (x, coeff): (&DeviceTensor, &DeviceTensor),
    (stride_r, stride_n): (usize, usize),
    scale: f32,
) -> Result<()> {
    let launch = Launch {
        file: "linear",
        kernel: "linear_backward_params_f16",
        grid: [
            x.cols.div_ceil(PARAM_COLS),
            coeff.ld / 8,
            cx.step.bucket().members,
        ],
        block: [256, 1, 1],
    };
    let args = [
        Arg::Ptr(grad),
        (*x).into(),
        (*coeff).into(),
        Arg::Ptr(cx.step.params()),
        rows_arg(rows),
        int(x.cols),
        int(coeff.cols),
        int(coeff.ld),
        int(x.ld),
        int(stride_r),
        int(stride_n),
        Arg::F32(scale),
    ];
    launch.run(cx, &args)
}

fn branch(
    check: Check,
    cx: Context<'_>,
    lora: &Lora,
    (rows, c, oc): (usize, usize, usize),
) -> Result<()> {
    let (members, r) = (cx.step.bucket().members, lora.u.cols);
    let padded = r.next_multiple_of(8);
    check.rows("u", &lora.u, (rows, r), padded)?;
    check.table("lora_a", &lora.lora_a, (members, padded, c))?;
    check.table("lora_b", &lora.lora_b, (members, oc, r))
}
