//! The gradient of [`super::Phm`]: of its input and of its parameters.

use rayon::prelude::*;

use super::{Member, Phm, by_block, mix, product};
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::{Bucket, Graph, ValueId};
use crate::ops::fast::{axpy, vector};
use crate::ops::gemm::{Dest, Mat, Segment, Start, gemm};
use crate::ops::linear::grad::column_sums;
use crate::ops::linear::row_groups;
use crate::ops::real::Real;
use crate::ops::{Node, member_slice, product_flops};
use crate::text::pack::Rows;

/// `ds[b, i] = dout[b] . right[i]`, `du[a, i] = sum over b of rule[i, a, b] ds[b, i]`,
/// `dinp[a] = resid[a] + sum over i of du[a, i] left[i]`; of a member's tokens,
/// `drule[i, a, b] += sum of u[a, i] ds[b, i]`, `dleft[i] += sum of du[a, i] inp[a]`,
/// `dright[i] += sum of s[b, i] dout[b]` and `dbias += sum of dout`.
#[derive(Clone, Debug)]
pub struct PhmGrad {
    /// What this is the gradient of.
    pub forward: Phm,
    /// (T, OC)
    pub dout: ValueId,
    /// (T, K) what other consumers of the input left.
    pub resid: Option<ValueId>,
    /// (T, n n) `=`
    pub ds: ValueId,
    /// (T, n n) `=`
    pub du: ValueId,
    /// (T, K) `=`, if it is wanted.
    pub dinp: Option<ValueId>,
    /// Of rule, left, right and bias, shaped as they are, `+=`.
    pub dweights: [Option<ValueId>; 4],
}

impl Node for PhmGrad {
    fn reads(&self) -> Vec<ValueId> {
        let f = &self.forward;
        let w = &f.weights;
        let mut ids = vec![f.inp, w.rule, w.left, w.right, f.u, f.s, self.dout];
        ids.extend(self.resid);
        ids
    }

    fn writes(&self) -> Vec<ValueId> {
        let mut ids = vec![self.ds, self.du];
        ids.extend(self.dinp);
        ids
    }

    fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
        let rows = graph.rows(self.dout, bucket);
        let n = graph.channels(self.forward.weights.rule);
        let (k, oc) = (graph.channels(self.forward.inp), graph.channels(self.dout));
        let [rule, left, right, _] = self.dweights.map(|d| usize::from(d.is_some()));
        let of_inputs = oc + n * n + k * usize::from(self.dinp.is_some());
        product_flops(rows, n, of_inputs + rule * n * n + left * k + right * oc)
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let f = &self.forward;
        let (x, k) = (mem.get(f.inp), mem.channels(f.inp));
        let (dout, oc) = (mem.get(self.dout), mem.channels(f.out));
        let n = mem.channels(f.weights.rule);
        let tokens = mem.batch.tokens();
        let mut dinp = self
            .resid
            .map_or(vec![F::zero(); tokens * k], |id| mem.get(id));
        dinp.truncate(tokens * k);
        let (mut ds, mut du) = (
            vec![F::zero(); tokens * n * n],
            vec![F::zero(); tokens * n * n],
        );
        let mut dweights = [const { Vec::new() }; 4];
        for g in 0..mem.batch.members.len() {
            let member = Member::new(mem, &f.weights, g);
            let h = member.product();
            let (mut dh, mut db) = (vec![F::zero(); k * oc], vec![F::zero(); oc]);
            for t in mem.batch.member_rows(Rows::Tokens, g) {
                let (x, d) = (&x[t * k..][..k], &dout[t * oc..][..oc]);
                for j in 0..k {
                    for o in 0..oc {
                        dinp[t * k + j] += d[o] * h[j * oc + o];
                        dh[j * oc + o] += x[j] * d[o];
                    }
                }
                db.iter_mut().zip(d).for_each(|(b, d)| *b += *d);
                let factors = t * n * n..(t + 1) * n * n;
                member.factor_gradients(d, &mut ds[factors.clone()], &mut du[factors]);
            }
            let [rule, left, right] = member.gradients(&dh);
            for (all, own) in dweights.iter_mut().zip([rule, left, right, db]) {
                all.extend(own);
            }
        }
        mem.set(self.ds, ds);
        mem.set(self.du, du);
        if let Some(id) = self.dinp {
            mem.set(id, dinp);
        }
        for (id, term) in self.dweights.iter().zip(&dweights) {
            if let Some(id) = id {
                mem.accumulate(*id, term);
            }
        }
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let (f, batch) = (&self.forward, mem.batch);
        let weights = &f.weights;
        let n = mem.channels(weights.rule);
        let (kn, ocn) = (mem.channels(f.inp) / n, mem.channels(f.out) / n);
        let per = weights.ids().map(|id| mem.per_member(id));
        let [rule, left, right, _] = weights.ids().map(Some);
        let reads = [
            Some(f.inp),
            Some(self.dout),
            self.resid,
            rule,
            left,
            right,
            Some(f.u),
            Some(f.s),
        ];
        let mut writes = vec![Some(self.ds), Some(self.du), self.dinp];
        writes.extend(self.dweights);
        let (r, mut w) = mem.bind(&reads, &writes);
        let [ds, du, dinp, drule, dleft, dright, dbias] = &mut w[..] else {
            return;
        };
        for (rows, g) in row_groups(batch, Rows::Tokens, true) {
            if rows.is_empty() {
                continue;
            }
            let blocks = rows.start * n..rows.end * n;
            let rule = member_slice(r[3], per[0], g, n * n * n);
            let left = Mat::rows(member_slice(r[4], per[1], g, n * kn), kn);
            let right = Mat::rows(member_slice(r[5], per[2], g, n * ocn), ocn).t();
            let x = Mat::rows(&r[0][blocks.start * kn..], kn);
            let d = Mat::rows(&r[1][blocks.start * ocn..], ocn);
            let factors = blocks.start * n..blocks.end * n;
            let (ds, du) = (&mut ds[factors.clone()], &mut du[factors.clone()]);
            product(ds, (d, right), (blocks.len(), n, ocn), |_, _, _| {});
            mix(du, ds, &by_block(rule, n, true), n);
            if self.dinp.is_some() {
                let resid = r[2].get(blocks.start * kn..).unwrap_or(&[]);
                let dinp = &mut dinp[blocks.start * kn..blocks.end * kn];
                product(
                    dinp,
                    (Mat::rows(du, n), left),
                    (blocks.len(), kn, n),
                    #[inline(always)]
                    |row, col, run| {
                        if !resid.is_empty() {
                            axpy(run, 1.0, &resid[row * kn + col..][..run.len()]);
                        }
                    },
                );
            }
            if !drule.is_empty() {
                let drule = &mut drule[g * n * n * n..][..n * n * n];
                rule_gradient(drule, (&r[6][factors.clone()], ds), n);
            }
            if !dleft.is_empty() {
                let dleft = &mut dleft[g * n * kn..][..n * kn];
                block_sums(dleft, (du, n), (x, kn), blocks.len());
            }
            if !dright.is_empty() {
                let dright = &mut dright[g * n * ocn..][..n * ocn];
                block_sums(dright, (&r[7][factors], n), (d, ocn), blocks.len());
            }
            if !dbias.is_empty() {
                let dbias = &mut dbias[g * n * ocn..][..n * ocn];
                column_sums(dbias, r[1], n * ocn, rows);
            }
        }
    }
}

/// `sums (n, width) += coeff^T x` over a member's blocks, in order.
fn block_sums(
    sums: &mut [f32],
    (coeff, n): (&[f32], usize),
    (x, width): (Mat<'_>, usize),
    blocks: usize,
) {
    let segment = Segment {
        a: Mat::rows(coeff, n).t(),
        b: x,
        k: blocks,
    };
    let dest = Dest {
        data: sums,
        ld: width,
    };
    gemm(
        dest,
        None,
        (n, width),
        &[segment],
        Start::Accumulate,
        |_, _, _, _| {},
    );
}

/// `drule[i, a, b] += sum over tokens of u[a, i] ds[b, i]`: each `a` a task, tokens in order.
fn rule_gradient(drule: &mut [f32], (u, ds): (&[f32], &[f32]), n: usize) {
    let mut sums = vec![0f32; n * n * n];
    sums.par_chunks_mut(n * n)
        .enumerate()
        .for_each(|(a, sums)| {
            vector(
                #[inline(always)]
                || {
                    for (u, ds) in u.chunks_exact(n * n).zip(ds.chunks_exact(n * n)) {
                        let u = &u[a * n..][..n];
                        for (sum, ds) in sums.chunks_exact_mut(n).zip(ds.chunks_exact(n)) {
                            let terms = sum.iter_mut().zip(u).zip(ds);
                            terms.for_each(|((sum, u), d)| *sum = u.mul_add(*d, *sum));
                        }
                    }
                },
            );
        });
    for (ab, line) in sums.chunks_exact(n).enumerate() {
        for (i, sum) in line.iter().enumerate() {
            drule[i * n * n + ab] += sum;
        }
    }
}

impl<F: Real> Member<F> {
    /// `ds` and `du` of a token.
    fn factor_gradients(&self, dout: &[F], ds: &mut [F], du: &mut [F]) {
        let (n, (_, ocn)) = (self.n, self.widths());
        for b in 0..n {
            for i in 0..n {
                ds[b * n + i] = (0..ocn)
                    .map(|q| dout[b * ocn + q] * self.right[i * ocn + q])
                    .sum();
            }
        }
        for a in 0..n {
            for i in 0..n {
                du[a * n + i] = (0..n).map(|b| self.rule(i, a, b) * ds[b * n + i]).sum();
            }
        }
    }

    /// Gradients of rule, left and right from that of H (K, OC), term by term.
    fn gradients(&self, dh: &[F]) -> [Vec<F>; 3] {
        let (n, (kn, ocn)) = (self.n, self.widths());
        let zeros = |like: &[F]| vec![F::zero(); like.len()];
        let mut out = [&self.rule, &self.left, &self.right].map(|w| zeros(w));
        for i in 0..n {
            for a in 0..n {
                for b in 0..n {
                    let rule = self.rule(i, a, b);
                    for p in 0..kn {
                        for q in 0..ocn {
                            let d = dh[(a * kn + p) * n * ocn + b * ocn + q];
                            let (l, r) = (self.left[i * kn + p], self.right[i * ocn + q]);
                            out[0][(i * n + a) * n + b] += d * l * r;
                            out[1][i * kn + p] += d * rule * r;
                            out[2][i * ocn + q] += d * rule * l;
                        }
                    }
                }
            }
        }
        out
    }
}
