//! Launches of `kernels/phm.cu`.

use super::{Check, Context, DeviceTensor, Launch, int, ptr};
use crate::cuda::{Arg, Result};
use crate::text::pack::Rows;

/// The widest rows that the kernels keep in shared memory, padding included.
pub const MAX_C: usize = 1024;
/// The most blocks of a row.
pub const MAX_N: usize = 16;
/// Rows of a block of the kernels that give rows.
const ROWS: usize = 8;
/// Numbers of a block of the one that adds rows up, and rows that it takes side by side.
const SUMS: usize = 32;

/// Parameters of each member, as they are trained.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// (G, n n, n) f32
    pub rule: DeviceTensor,
    /// (G, n, K / n) f32
    pub left: DeviceTensor,
    /// (G, n, OC / n) f32
    pub right: DeviceTensor,
    /// (G, 1, OC) f32
    pub bias: DeviceTensor,
}

/// `u[a, i] = inp[a] . left[i]`, `s[b, i] = sum over a of rule[i, a, b] u[a, i]`,
/// `out[b] = bias[b] + sum over i of s[b, i] right[i]`.
///
/// n is at most [`MAX_N`], K and OC are multiples of n and at most [`MAX_C`]. The few numbers of `u`
/// and `s` are f32: the gradient of the rule is a product of two of them.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// (T, K) f16
    pub inp: DeviceTensor,
    /// Of a copy for each member.
    pub weights: Weights,
    /// (T, n n) f32 `=`
    pub u: DeviceTensor,
    /// (T, n n) f32 `=`
    pub s: DeviceTensor,
    /// (T, OC) f16 `=`
    pub out: DeviceTensor,
}

/// `ds[b, i] = dout[b] . right[i]`, `du[a, i] = sum over b of rule[i, a, b] ds[b, i]`,
/// `dinp[a] = resid[a] + sum over i of du[a, i] left[i]`, and the sums over a member's tokens of
/// [`PhmGrad`](crate::ops::phm::grad::PhmGrad).
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// (T, K) f16
    pub inp: DeviceTensor,
    /// As the forward's.
    pub weights: Weights,
    /// (T, n n) f32 as the forward left it.
    pub u: DeviceTensor,
    /// (T, n n) f32 as the forward left it.
    pub s: DeviceTensor,
    /// (T, OC) f16
    pub dout: DeviceTensor,
    /// (T, K) f16 what other consumers of the input left.
    pub resid: Option<DeviceTensor>,
    /// (T, n n) f32 `=`
    pub ds: DeviceTensor,
    /// (T, n n) f32 `=`
    pub du: DeviceTensor,
    /// (T, K) f16 `=`, if it is wanted; may be `resid`.
    pub dinp: Option<DeviceTensor>,
    /// Of rule, left, right and bias, shaped as they are, f32 `+=`.
    pub dweights: [Option<DeviceTensor>; 4],
}

/// What a layer's shapes come from.
struct Dims {
    n: usize,
    k: usize,
    oc: usize,
    ld_inp: usize,
    ld_out: usize,
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("phm_forward");
    let dims = Dims::check(check, cx, &op.weights, &op.inp, ("out", &op.out))?;
    dims.factors(check, cx, &[("u", op.u), ("s", op.s)])?;
    let w = &op.weights;
    let mut args = vec![
        op.out.into(),
        op.u.into(),
        op.s.into(),
        op.inp.into(),
        w.rule.into(),
        w.left.into(),
        w.right.into(),
        w.bias.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
    ];
    args.extend(dims.args());
    rows_launch(cx, "phm_forward_f16").run(cx, &args)
}

/// Launches the kernel that goes back through each row and, where a parameter's gradient is wanted,
/// the one that adds rows up.
///
/// # Errors
/// If a tensor is not as its field says, before anything is launched, or if a launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let dims = check_backward(cx, op)?;
    let w = &op.weights;
    let mut args = vec![
        ptr(op.dinp),
        op.ds.into(),
        op.du.into(),
        op.dout.into(),
        ptr(op.resid),
        w.rule.into(),
        w.left.into(),
        w.right.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
    ];
    args.extend(dims.args());
    rows_launch(cx, "phm_backward_f16").run(cx, &args)?;
    if op.dweights.iter().all(Option::is_none) {
        return Ok(());
    }
    add_rows(cx, op, &dims)
}

fn add_rows(cx: Context<'_>, op: &Backward, dims: &Dims) -> Result<()> {
    let longest = dims.n.pow(3).max(dims.k).max(dims.oc);
    let launch = Launch {
        file: "phm",
        kernel: "phm_backward_params_f32",
        grid: [longest.div_ceil(SUMS), 4, cx.step.bucket().members],
        block: [SUMS as u32, SUMS as u32, 1],
    };
    let mut args = op.dweights.map(ptr).to_vec();
    args.extend([
        op.inp.into(),
        op.dout.into(),
        op.u.into(),
        op.s.into(),
        op.ds.into(),
        op.du.into(),
        Arg::Ptr(cx.step.params()),
    ]);
    args.extend(dims.args());
    launch.run(cx, &args)
}

fn check_backward(cx: Context<'_>, op: &Backward) -> Result<Dims> {
    let check = Check("phm_backward");
    let dims = Dims::check(check, cx, &op.weights, &op.inp, ("dout", &op.dout))?;
    let factors = [("u", op.u), ("s", op.s), ("ds", op.ds), ("du", op.du)];
    dims.factors(check, cx, &factors)?;
    let rows = (cx.step.rows(Rows::Tokens), dims.k);
    for (name, t) in [("resid", op.resid), ("dinp", op.dinp)] {
        t.map_or(Ok(()), |t| check.rows(name, &t, rows, dims.ld_inp))?;
    }
    for ((name, weight), grad) in op.weights.named().into_iter().zip(op.dweights) {
        let shape = (weight.members, weight.rows, weight.cols);
        let name = format!("gradient of {name}");
        grad.map_or(Ok(()), |t| check.f32(&name, &t, shape))?;
    }
    Ok(dims)
}

impl Weights {
    fn named(&self) -> [(&'static str, DeviceTensor); 4] {
        [
            ("rule", self.rule),
            ("left", self.left),
            ("right", self.right),
            ("bias", self.bias),
        ]
    }
}

impl Dims {
    /// Those of the layer from `inp` to `out`, or to the gradient of `out`.
    fn check(
        check: Check,
        cx: Context<'_>,
        weights: &Weights,
        inp: &DeviceTensor,
        (out_name, out): (&str, &DeviceTensor),
    ) -> Result<Dims> {
        let (n, k, oc) = (weights.rule.cols, inp.cols, out.cols);
        check.that((1..=MAX_N).contains(&n), || {
            format!("rule has n = {n}, expected 1 to {MAX_N}")
        })?;
        for (name, t) in [("inp", inp), (out_name, out)] {
            let fits = t.cols > 0 && t.cols.is_multiple_of(n) && t.ld <= MAX_C;
            check.that(fits, || {
                format!(
                    "{name} has {} columns {} apart, expected a multiple of n = {n} up to {MAX_C}",
                    t.cols, t.ld
                )
            })?;
            check.rows(name, t, (cx.step.rows(Rows::Tokens), t.cols), t.ld)?;
        }
        let shapes = [(n * n, n), (n, k / n), (n, oc / n), (1, oc)];
        for ((name, t), (rows, cols)) in weights.named().into_iter().zip(shapes) {
            check.f32(name, &t, (cx.step.bucket().members, rows, cols))?;
        }
        Ok(Dims {
            n,
            k,
            oc,
            ld_inp: inp.ld,
            ld_out: out.ld,
        })
    }

    fn factors(
        &self,
        check: Check,
        cx: Context<'_>,
        tensors: &[(&str, DeviceTensor)],
    ) -> Result<()> {
        let shape = (0, cx.step.rows(Rows::Tokens), self.n * self.n);
        tensors
            .iter()
            .try_for_each(|(name, t)| check.f32(name, t, shape))
    }

    fn args(&self) -> [Arg; 5] {
        [self.n, self.k, self.oc, self.ld_inp, self.ld_out].map(int)
    }
}

fn rows_launch(cx: Context<'_>, kernel: &'static str) -> Launch {
    Launch {
        file: "phm",
        kernel,
        grid: [cx.step.rows(Rows::Tokens).div_ceil(ROWS), 1, 1],
        block: [256, 1, 1],
    }
}
