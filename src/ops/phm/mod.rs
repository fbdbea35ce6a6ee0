//! Parameterised hypercomplex multiplication (PHM): a linear layer of few parameters, on packed
//! tokens.
//!
//! `out = inp H + b` with `H = sum over i of kron(rule[i], left[i] right[i])`, of rank one: Karimi
//! Mahabadi et al., "Compacter: efficient low-rank hypercomplex adapter layers" (2021). A row of
//! `inp` is n blocks of K / n elements, a row of `out` n blocks of OC / n; block `a` goes to block
//! `b` by `sum over i of rule[i, a, b] left[i] right[i]`. So `H` is never made:
//! `u[a, i] = inp[a] . left[i]`, then `s[b, i] = sum over a of rule[i, a, b] u[a, i]`, then
//! `out[b] = sum over i of s[b, i] right[i]`, which costs n (K + OC + n^2) multiplications a token
//! instead of K OC.

pub mod grad;

use rayon::prelude::*;

use super::fast::vector;
use super::gemm::{Dest, Mat, Segment, Start, gemm};
use super::linear::row_groups;
use super::real::Real;
use super::{Node, member_slice, product_flops};
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Bucket, Dim, Graph, Role, ValueId};
use crate::text::pack::Rows;
use grad::PhmGrad;

/// Tokens of a task that mixes.
const BLOCK: usize = 64;

/// The parameters; each has a leading G when it is trainable.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// (n, n, n)
    pub rule: ValueId,
    /// (n, K / n, 1)
    pub left: ValueId,
    /// (n, 1, OC / n)
    pub right: ValueId,
    /// (OC)
    pub bias: ValueId,
}

impl Weights {
    fn ids(&self) -> [ValueId; 4] {
        [self.rule, self.left, self.right, self.bias]
    }
}

/// The forward op.
#[derive(Clone, Debug)]
pub struct Phm {
    /// (T, K)
    pub inp: ValueId,
    /// The parameters.
    pub weights: Weights,
    /// (T, n n) `u[a, i]`, kept for the gradient.
    pub u: ValueId,
    /// (T, n n) `s[b, i]`, kept for the gradient.
    pub s: ValueId,
    /// (T, OC) `=`
    pub out: ValueId,
}

impl Phm {
    /// Adds the op; returns its result. K and OC must be multiples of n.
    pub fn push(g: &mut Graph, name: &str, inp: ValueId, weights: Weights) -> ValueId {
        let rows = g.get(inp).shape[0];
        let (n, oc) = (g.channels(weights.rule), g.channels(weights.bias));
        let mut temp =
            |name: String, width: usize| g.value(name, vec![rows, Dim::N(width)], Role::Temp);
        let u = temp(format!("{name}.u"), n * n);
        let s = temp(format!("{name}.s"), n * n);
        let out = temp(name.into(), oc);
        let op = Phm {
            inp,
            weights,
            u,
            s,
            out,
        };
        g.nodes.push(op.into());
        out
    }
}

impl Node for Phm {
    fn reads(&self) -> Vec<ValueId> {
        let mut ids = vec![self.inp];
        ids.extend(self.weights.ids());
        ids
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.u, self.s, self.out]
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let Some(dout) = bw.grad_of(self.out) else {
            return;
        };
        let wanted = bw.needs(self.inp);
        let resid = bw.grad_of(self.inp).filter(|_| wanted);
        let dinp = wanted.then(|| bw.like(self.inp));
        let (ds, du) = (bw.like(self.s), bw.like(self.u));
        let dweights = self.weights.ids().map(|id| bw.param_grad(id));
        bw.push(PhmGrad {
            forward: self.clone(),
            dout,
            resid,
            ds,
            du,
            dinp,
            dweights,
        });
        if let Some(dinp) = dinp {
            bw.set(self.inp, dinp);
        }
    }

    fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
        let (rows, n) = (
            graph.rows(self.out, bucket),
            graph.channels(self.weights.rule),
        );
        let (k, oc) = (graph.channels(self.inp), graph.channels(self.out));
        product_flops(rows, n, k + oc + n * n)
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let x = mem.get(self.inp);
        let (k, oc) = (mem.channels(self.inp), mem.channels(self.out));
        let tokens = mem.batch.tokens();
        let n = mem.channels(self.weights.rule);
        let mut out = vec![F::zero(); tokens * oc];
        let (mut u, mut s) = (
            vec![F::zero(); tokens * n * n],
            vec![F::zero(); tokens * n * n],
        );
        for g in 0..mem.batch.members.len() {
            let member = Member::new(mem, &self.weights, g);
            let h = member.product();
            for t in mem.batch.member_rows(Rows::Tokens, g) {
                let x = &x[t * k..][..k];
                for o in 0..oc {
                    let sum = (0..k).map(|j| x[j] * h[j * oc + o]).sum::<F>();
                    out[t * oc + o] = sum + member.bias[o];
                }
                member.factors(
                    x,
                    &mut u[t * n * n..][..n * n],
                    &mut s[t * n * n..][..n * n],
                );
            }
        }
        mem.set(self.u, u);
        mem.set(self.s, s);
        mem.set(self.out, out);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let batch = mem.batch;
        let n = mem.channels(self.weights.rule);
        let (kn, ocn) = (mem.channels(self.inp) / n, mem.channels(self.out) / n);
        let per = self.weights.ids().map(|id| mem.per_member(id));
        let [rule, left, right, bias] = self.weights.ids().map(Some);
        let (r, mut w) = mem.bind(
            &[Some(self.inp), rule, left, right, bias],
            &[Some(self.u), Some(self.s), Some(self.out)],
        );
        let [u, s, out] = &mut w[..] else { return };
        for (rows, g) in row_groups(batch, Rows::Tokens, true) {
            if rows.is_empty() {
                continue;
            }
            let blocks = rows.start * n..rows.end * n;
            let rule = member_slice(r[1], per[0], g, n * n * n);
            let left = Mat::rows(member_slice(r[2], per[1], g, n * kn), kn).t();
            let right = Mat::rows(member_slice(r[3], per[2], g, n * ocn), ocn);
            let bias = member_slice(r[4], per[3], g, n * ocn);
            let x = Mat::rows(&r[0][blocks.start * kn..], kn);
            let u = &mut u[blocks.start * n..blocks.end * n];
            let s = &mut s[blocks.start * n..blocks.end * n];
            product(u, (x, left), (blocks.len(), n, kn), |_, _, _| {});
            mix(s, u, &by_block(rule, n, false), n);
            let out = &mut out[blocks.start * ocn..blocks.end * ocn];
            product(
                out,
                (Mat::rows(s, n), right),
                (blocks.len(), ocn, n),
                #[inline(always)]
                |block, col, run| {
                    let b = &bias[block % n * ocn + col..][..run.len()];
                    run.iter_mut().zip(b).for_each(|(y, b)| *y += b);
                },
            );
        }
    }
}

/// `out (m, cols) = a b`, then `finish(row, col, run)` on every run of columns.
fn product(
    out: &mut [f32],
    (a, b): (Mat<'_>, Mat<'_>),
    (m, cols, k): (usize, usize, usize),
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let dest = Dest {
        data: out,
        ld: cols,
    };
    gemm(
        dest,
        None,
        (m, cols),
        &[Segment { a, b, k }],
        Start::Zero,
        #[inline(always)]
        |row, col, run, _| finish(row, col, run),
    );
}

/// `rule[i, a, b]` of one member at `[a, b, i]`, at `[b, a, i]` if `back`: as [`mix`] reads it.
fn by_block(rule: &[f32], n: usize, back: bool) -> Vec<f32> {
    let mut out = vec![0f32; n * n * n];
    for (i, slice) in rule.chunks_exact(n * n).enumerate() {
        for (a, row) in slice.chunks_exact(n).enumerate() {
            for (b, x) in row.iter().enumerate() {
                let at = if back { b * n + a } else { a * n + b };
                out[at * n + i] = *x;
            }
        }
    }
    out
}

/// `out[b, i] = sum over a of table[a, b, i] inp[a, i]` of every token.
fn mix(out: &mut [f32], inp: &[f32], table: &[f32], n: usize) {
    let len = BLOCK * n * n;
    let tasks = out.par_chunks_mut(len).zip(inp.par_chunks(len));
    tasks.for_each(|(out, inp)| {
        vector(
            #[inline(always)]
            || {
                let tokens = out.chunks_exact_mut(n * n).zip(inp.chunks_exact(n * n));
                for (y, x) in tokens {
                    y.fill(0.0);
                    for (x, table) in x.chunks_exact(n).zip(table.chunks_exact(n * n)) {
                        for (y, table) in y.chunks_exact_mut(n).zip(table.chunks_exact(n)) {
                            let terms = y.iter_mut().zip(table).zip(x);
                            terms.for_each(|((y, r), x)| *y = r.mul_add(*x, *y));
                        }
                    }
                }
            },
        );
    });
}

/// One member's parameters in the reference.
struct Member<F> {
    n: usize,
    rule: Vec<F>,
    left: Vec<F>,
    right: Vec<F>,
    bias: Vec<F>,
}

impl<F: Real> Member<F> {
    fn new(mem: &RefMem<'_, F>, weights: &Weights, g: usize) -> Member<F> {
        let [rule, left, right, bias] = weights.ids().map(|id| {
            let all = mem.get(id);
            let copies = if mem.per_member(id) {
                mem.batch.members.len()
            } else {
                1
            };
            let len = all.len() / copies;
            member_slice(&all, mem.per_member(id), g, len).to_vec()
        });
        let n = mem.channels(weights.rule);
        Member {
            n,
            rule,
            left,
            right,
            bias,
        }
    }

    /// `rule[i, a, b]`
    fn rule(&self, i: usize, a: usize, b: usize) -> F {
        self.rule[(i * self.n + a) * self.n + b]
    }

    /// K / n and OC / n.
    fn widths(&self) -> (usize, usize) {
        (self.left.len() / self.n, self.right.len() / self.n)
    }

    /// H (K, OC), term by term.
    fn product(&self) -> Vec<F> {
        let (n, (kn, ocn)) = (self.n, self.widths());
        let mut h = vec![F::zero(); n * kn * n * ocn];
        for i in 0..n {
            for a in 0..n {
                for b in 0..n {
                    for p in 0..kn {
                        for q in 0..ocn {
                            let term = self.left[i * kn + p] * self.right[i * ocn + q];
                            h[(a * kn + p) * n * ocn + b * ocn + q] += self.rule(i, a, b) * term;
                        }
                    }
                }
            }
        }
        h
    }

    /// `u` and `s` of a token.
    fn factors(&self, x: &[F], u: &mut [F], s: &mut [F]) {
        let (n, (kn, _)) = (self.n, self.widths());
        for a in 0..n {
            for i in 0..n {
                u[a * n + i] = (0..kn).map(|p| x[a * kn + p] * self.left[i * kn + p]).sum();
            }
        }
        for b in 0..n {
            for i in 0..n {
                s[b * n + i] = (0..n).map(|a| self.rule(i, a, b) * u[a * n + i]).sum();
            }
        }
    }
}
