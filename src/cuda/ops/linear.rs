//! Launches of `kernels/linear.cu` and, for the low-rank branches, of `kernels/lora.cu`.

use super::{Check, Context, DeviceTensor, Launch, dropout, gelu, int, ptr, rows_arg};
use crate::cuda::{Arg, Result};
use crate::ops::gelu::Gelu;
use crate::ops::philox::Dropout;
use crate::text::pack::Rows;

/// Layers side by side that a launch serves.
pub const MAX_PARTS: usize = 3;
/// Rows of a block that projects onto a branch.
const PROJECT_ROWS: usize = 16;
/// Columns of a block of a branch's parameter gradient.
const PARAM_COLS: usize = 32;
/// From this many rows of the bucket on, large tiles fill a GPU.
const LARGE_FROM: usize = 1024;

/// A low-rank branch.
#[derive(Clone, Copy, Debug)]
pub struct Lora {
    /// (rows, R) f16 `=` `drop(inp) A^T`, kept for the gradient.
    pub u: DeviceTensor,
    /// (G, R padded to 8, C) f16, zero in the padding.
    pub lora_a: DeviceTensor,
    /// (G, OC, R) f16
    pub lora_b: DeviceTensor,
    /// What the branch is multiplied by.
    pub scale: f32,
    /// On what the branch reads; the rows are then tokens.
    pub dropout: Option<Dropout>,
}

/// One of the layers side by side.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// (OC, C), or (G, OC, C) f16. OC is a multiple of 8 but for the last part.
    pub weight: DeviceTensor,
    /// The same shape: what rounding to f16 took from `weight`, which is then read twice.
    pub low: Option<DeviceTensor>,
    /// (1, OC), or (G, 1, OC) f16
    pub bias: Option<DeviceTensor>,
    /// The branch beside it.
    pub lora: Option<Lora>,
}

/// For each part `out_p = inp W_p^T + bias_p + scale u_p B_p^T`; `act = gelu(out)`.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, sum of OC) f16 `=`; may be columns of something wider.
    pub out: DeviceTensor,
    /// Which GELU, and (rows, sum of OC) f16 `=`.
    pub act: Option<(Gelu, DeviceTensor)>,
    /// (rows, C) f16
    pub inp: DeviceTensor,
    /// One to [`MAX_PARTS`] layers.
    pub parts: &'a [Part],
    /// By [`Tile::of`]; all give the same bits.
    pub tile: Tile,
}

/// What [`lora_backward`] gives for a branch.
#[derive(Clone, Copy, Debug)]
pub struct BranchGrad {
    /// (rows, R) f16 `=` `scale dout_p B`
    pub v: DeviceTensor,
    /// (G, R, C) f32 `+=` `v^T drop(inp)`
    pub dlora_a: Option<DeviceTensor>,
    /// (G, OC, R) f32 `+=` `scale dout_p^T u`
    pub dlora_b: Option<DeviceTensor>,
}

/// The gradients of the branches' tables, and what [`input_backward`] needs of the branches.
#[derive(Clone, Copy, Debug)]
pub struct LoraBackward<'a> {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, sum of OC) f16
    pub dout: DeviceTensor,
    /// (rows, C) f16
    pub inp: DeviceTensor,
    /// The forward's.
    pub parts: &'a [Part],
    /// One a part; present where the part has a branch.
    pub branches: &'a [Option<BranchGrad>],
}

/// `dinp = resid + sum over parts of dout_p W_p + drop(v_p A_p)`, with the forward's masks.
#[derive(Clone, Copy, Debug)]
pub struct InputBackward<'a> {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, C) f16 `=`
    pub dinp: DeviceTensor,
    /// (rows, sum of OC) f16
    pub dout: DeviceTensor,
    /// (rows, C) f16; may be `dinp`.
    pub resid: Option<DeviceTensor>,
    /// The forward's.
    pub parts: &'a [Part],
    /// One a part, as [`lora_backward`] left it; present where the part has a branch.
    pub v: &'a [Option<DeviceTensor>],
    /// By [`Tile::of`]; all give the same bits. Where a branch has dropout, tiles are small.
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

    fn side(self) -> usize {
        match self {
            Tile::Small => 64,
            Tile::Large => 128,
        }
    }

    /// With weights of members' own no tile has rows of two: each member's last may be short.
    fn launch(
        self,
        cx: Context<'_>,
        kernels: [&'static str; 2],
        (rows, tiles, own): (usize, usize, bool),
    ) -> Launch {
        let (kernel, threads) = match self {
            Tile::Small => (kernels[0], 128),
            Tile::Large => (kernels[1], 256),
        };
        let row_tiles = match own {
            true => rows / self.side() + cx.step.bucket().members,
            false => rows.div_ceil(self.side()),
        };
        Launch {
            file: "linear",
            kernel,
            grid: [tiles, row_tiles, 1],
            block: [threads, 1, 1],
        }
    }
}

/// Launches the projection onto the branches, if there are any, and the product.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn forward(cx: Context<'_>, op: &Forward<'_>) -> Result<()> {
    let check = Check("linear_forward");
    let (rows, c, width) = (cx.step.rows(op.rows), op.inp.cols, op.out.cols);
    check.rows("inp", &op.inp, (rows, c), op.inp.ld)?;
    check.rows("out", &op.out, (rows, width), op.out.ld)?;
    if let Some((_, act)) = &op.act {
        check.rows("act", act, (rows, width), op.out.ld)?;
    }
    let cols = columns(check, cx, op.rows, op.parts, (c, width))?;
    let loras = || op.parts.iter().filter_map(|p| p.lora);
    let onto = loras().map(|l| projection(&l.u, &op.inp, &l.lora_a, 1.0, l.dropout));
    project(cx, op.rows, "lora_project_f16", onto.collect(), loras())?;
    let parts = op.parts.iter().zip(&cols).map(|(p, col)| {
        let branch = p.lora.map(|l| (l.u, l.lora_b, l.scale, None));
        part(p, *col, branch)
    });
    let kernels = ["linear_forward_small_f16", "linear_forward_f16"];
    let tiles = |p: &Part| p.weight.rows.div_ceil(op.tile.side());
    let (tiles, own) = (op.parts.iter().map(tiles).sum(), own_weights(op.parts));
    let args = [
        op.out.into(),
        ptr(op.act.map(|(_, act)| act)),
        op.inp.into(),
        Arg::array(parts.collect(), MAX_PARTS),
        Arg::Ptr(cx.step.params()),
        rows_arg(op.rows),
        int(c),
        int(op.inp.ld),
        int(op.out.ld),
        int(own.into()),
        gelu::kind(op.act.map_or(Gelu::Exact, |(kind, _)| kind)),
    ];
    let launch = op.tile.launch(cx, kernels, (rows, tiles, own));
    launch.run(cx, &args)
}

/// Launches all `v`, then all gradients of tables.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn lora_backward(cx: Context<'_>, op: &LoraBackward<'_>) -> Result<()> {
    let check = Check("linear_lora_backward");
    let (rows, c) = (cx.step.rows(op.rows), op.inp.cols);
    let members = cx.step.bucket().members;
    check.rows("inp", &op.inp, (rows, c), op.inp.ld)?;
    check.rows("dout", &op.dout, (rows, op.dout.cols), op.dout.ld)?;
    let cols = columns(check, cx, op.rows, op.parts, (c, op.dout.cols))?;
    let have: Vec<bool> = op.branches.iter().map(Option::is_some).collect();
    branches_match(check, op.parts, &have)?;
    let (mut loras, mut onto, mut sums) = (vec![], vec![], vec![]);
    for ((p, col), grad) in op.parts.iter().zip(&cols).zip(op.branches) {
        let (Some(lora), Some(grad)) = (p.lora, grad) else {
            continue;
        };
        let (oc, r) = (p.weight.rows, lora.u.cols);
        check.rows("v", &grad.v, (rows, r), lora.u.ld)?;
        let dout = DeviceTensor {
            ptr: op.dout.ptr.offset(col * size_of::<half::f16>()),
            cols: oc,
            ..op.dout
        };
        loras.push(lora);
        onto.push(projection(&grad.v, &dout, &lora.lora_b, lora.scale, None));
        if let Some(dlora_a) = &grad.dlora_a {
            check.f32("dlora_a", dlora_a, (members, r, c))?;
            let (x, coeff) = (&op.inp, &grad.v);
            sums.push((c, sum(dlora_a, x, coeff, false, (1.0, lora.dropout))));
        }
        if let Some(dlora_b) = &grad.dlora_b {
            check.f32("dlora_b", dlora_b, (members, oc, r))?;
            let (x, coeff) = (&dout, &lora.u);
            sums.push((oc, sum(dlora_b, x, coeff, true, (lora.scale, None))));
        }
    }
    let kernel = "lora_project_backward_f16";
    project(cx, op.rows, kernel, onto, loras.iter().copied())?;
    add_sums(cx, op.rows, sums, &loras)
}

/// Launches the product.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn input_backward(cx: Context<'_>, op: &InputBackward<'_>) -> Result<()> {
    let check = Check("linear_input_backward");
    let (rows, c, width) = (cx.step.rows(op.rows), op.dinp.cols, op.dout.cols);
    check.rows("dinp", &op.dinp, (rows, c), op.dinp.ld)?;
    check.rows("dout", &op.dout, (rows, width), op.dout.ld)?;
    if let Some(resid) = &op.resid {
        check.rows("resid", resid, (rows, c), op.dinp.ld)?;
    }
    let cols = columns(check, cx, op.rows, op.parts, (c, width))?;
    let have: Vec<bool> = op.v.iter().map(Option::is_some).collect();
    branches_match(check, op.parts, &have)?;
    let mut parts = vec![];
    for ((p, col), v) in op.parts.iter().zip(&cols).zip(op.v) {
        let branch = p.lora.zip(*v);
        if let Some((lora, v)) = &branch {
            check.rows("v", v, (rows, lora.u.cols), lora.u.ld)?;
        }
        let branch = branch.map(|(l, v)| (v, l.lora_a, 1.0, l.dropout));
        parts.push(part(p, *col, branch));
    }
    let drops = op
        .parts
        .iter()
        .any(|p| p.lora.is_some_and(|l| l.dropout.is_some()));
    let tile = if drops { Tile::Small } else { op.tile };
    let (tiles, own) = (c.div_ceil(tile.side()), own_weights(op.parts));
    let kernels = ["linear_backward_small_f16", "linear_backward_f16"];
    let args = [
        op.dinp.into(),
        op.dout.into(),
        ptr(op.resid),
        Arg::array(parts, MAX_PARTS),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        rows_arg(op.rows),
        int(op.parts.len()),
        int(c),
        int(op.dinp.ld),
        int(op.dout.ld),
        int(own.into()),
    ];
    tile.launch(cx, kernels, (rows, tiles, own)).run(cx, &args)
}

/// `struct Part` of linear.cu; a branch is coefficients, table, scale and dropout.
fn part(
    p: &Part,
    col: usize,
    branch: Option<(DeviceTensor, DeviceTensor, f32, Option<Dropout>)>,
) -> Arg {
    let (coeff, table) = (branch.map(|b| b.0), branch.map(|b| b.1));
    let mut fields = vec![
        p.weight.into(),
        ptr(p.low),
        ptr(p.bias),
        ptr(coeff),
        ptr(table),
        Arg::I64(p.weight.stride()),
        Arg::I64(p.bias.map_or(0, |b| b.stride())),
        int(p.weight.rows),
        int(col),
        int(p.weight.ld),
        int(coeff.map_or(0, |t| t.ld)),
        int(table.map_or(0, |t| t.ld)),
        Arg::F32(branch.map_or(0.0, |b| b.2)),
    ];
    fields.extend(dropout(branch.and_then(|b| b.3)));
    Arg::Struct(fields)
}

/// `struct Projection` of lora.cu.
fn projection(
    out: &DeviceTensor,
    inp: &DeviceTensor,
    table: &DeviceTensor,
    scale: f32,
    drop: Option<Dropout>,
) -> Arg {
    let mut fields = vec![
        (*out).into(),
        (*inp).into(),
        (*table).into(),
        int(inp.cols),
        int(out.ld),
        int(inp.ld),
        int(table.ld),
        Arg::F32(scale),
    ];
    fields.extend(dropout(drop));
    Arg::Struct(fields)
}

/// Launches the projections, one for each branch.
fn project(
    cx: Context<'_>,
    rows: Rows,
    kernel: &'static str,
    onto: Vec<Arg>,
    loras: impl Iterator<Item = Lora>,
) -> Result<()> {
    if onto.is_empty() {
        return Ok(());
    }
    let chunks = loras.map(|l| l.u.ld / 8).sum();
    let launch = Launch {
        file: "lora",
        kernel,
        grid: [cx.step.rows(rows).div_ceil(PROJECT_ROWS), chunks, 1],
        block: [128, 1, 1],
    };
    let args = [
        Arg::array(onto, MAX_PARTS),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        rows_arg(rows),
    ];
    launch.run(cx, &args)
}

/// `struct Sum` of lora.cu.
fn sum(
    grad: &DeviceTensor,
    x: &DeviceTensor,
    coeff: &DeviceTensor,
    r_first: bool,
    (scale, drop): (f32, Option<Dropout>),
) -> Arg {
    let mut fields = vec![
        (*grad).into(),
        (*x).into(),
        (*coeff).into(),
        int(x.cols),
        int(coeff.cols),
        int(x.ld),
        int(r_first.into()),
        Arg::F32(scale),
    ];
    fields.extend(dropout(drop));
    Arg::Struct(fields)
}

/// Launches the sums over rows, each with its columns.
fn add_sums(cx: Context<'_>, rows: Rows, sums: Vec<(usize, Arg)>, loras: &[Lora]) -> Result<()> {
    if sums.is_empty() {
        return Ok(());
    }
    let tiles = sums.iter().map(|(cols, _)| cols.div_ceil(PARAM_COLS)).sum();
    let chunks = loras.iter().map(|l| l.u.ld / 8).max().unwrap_or(0);
    let launch = Launch {
        file: "lora",
        kernel: "lora_backward_params_f16",
        grid: [tiles, chunks, cx.step.bucket().members],
        block: [256, 1, 1],
    };
    let args = [
        Arg::array(sums.into_iter().map(|(_, s)| s).collect(), 2 * MAX_PARTS),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        rows_arg(rows),
    ];
    launch.run(cx, &args)
}

fn own_weights(parts: &[Part]) -> bool {
    parts.iter().any(|p| p.weight.members > 0)
}

/// Checks the parts and that they fill `width` columns; gives each one's first.
fn columns(
    check: Check,
    cx: Context<'_>,
    rows: Rows,
    parts: &[Part],
    (c, width): (usize, usize),
) -> Result<Vec<usize>> {
    check.that((1..=MAX_PARTS).contains(&parts.len()), || {
        format!("{} parts, expected 1 to {MAX_PARTS}", parts.len())
    })?;
    let (mut cols, mut next) = (vec![], 0usize);
    for p in parts {
        check.that(next.is_multiple_of(8), || {
            format!("a part begins at column {next}, expected a multiple of 8")
        })?;
        check_part(check, cx, rows, p, c)?;
        cols.push(next);
        next += p.weight.rows;
    }
    check.that(next == width, || {
        format!("the parts have {next} columns, expected {width}")
    })?;
    Ok(cols)
}

fn check_part(check: Check, cx: Context<'_>, rows: Rows, p: &Part, c: usize) -> Result<()> {
    let (n, members, oc) = (cx.step.rows(rows), cx.step.bucket().members, p.weight.rows);
    let shared_or_own = |name, t: &DeviceTensor, shape| {
        check.that(t.members == 0 || t.members == members, || {
            format!(
                "{name} is of {} members, expected 0 or {members}",
                t.members
            )
        })?;
        check.rows(name, &DeviceTensor { members: 0, ..*t }, shape, t.ld)
    };
    shared_or_own("weight", &p.weight, (oc, c))?;
    if let Some(low) = &p.low {
        check.rows(
            "low",
            &DeviceTensor { members: 0, ..*low },
            (oc, c),
            p.weight.ld,
        )?;
        check.that(low.members == p.weight.members, || {
            format!(
                "low is of {} members, expected {}",
                low.members, p.weight.members
            )
        })?;
    }
    if let Some(bias) = &p.bias {
        shared_or_own("bias", bias, (1, oc))?;
    }
    let Some(lora) = &p.lora else { return Ok(()) };
    let r = lora.u.cols;
    let padded = r.next_multiple_of(8);
    check.rows("u", &lora.u, (n, r), padded)?;
    check.table("lora_a", &lora.lora_a, (members, padded, c))?;
    check.table("lora_b", &lora.lora_b, (members, oc, r))?;
    check.that(
        lora.dropout.is_none() || matches!(rows, Rows::Tokens),
        || format!("a branch with dropout on {rows:?}, expected Tokens"),
    )
}

fn branches_match(check: Check, parts: &[Part], have: &[bool]) -> Result<()> {
    let want: Vec<bool> = parts.iter().map(|p| p.lora.is_some()).collect();
    check.that(have == want, || {
        format!("gradients of branches {have:?}, expected {want:?}")
    })
}
