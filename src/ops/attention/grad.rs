//! The gradient of attention: probabilities are made again from the saved log-sum-exp.

use rayon::prelude::*;

use super::super::fast::{exp, vector};
use super::super::gemm::{Dest, Mat, Segment, Start, gemm_serial};
use super::super::philox::Dropout;
use super::super::real::Real;
use super::{
    Mask, Node, SCORES, View, keep, query_key, reference_scores, scores, seen, split_texts,
    square_flops,
};
use crate::exec::MemberStep;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::{Bucket, Graph, ValueId};
use crate::text::pack::Batch;

/// The gradient op.
#[derive(Clone, Debug)]
pub struct AttentionGrad {
    /// (T, 3C)
    pub qkv: ValueId,
    /// (T, NH) as the forward left it.
    pub lse: ValueId,
    /// (T, C)
    pub dout: ValueId,
    /// (T, 3C) `=`
    pub dqkv: ValueId,
    /// NH
    pub heads: usize,
    /// As the forward's.
    pub mask: Mask,
    /// As the forward's.
    pub dropout: Option<Dropout>,
}

impl Node for AttentionGrad {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.qkv, self.lse, self.dout]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.dqkv]
    }

    fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
        // Scores again, and the gradients of probabilities, values, queries and keys.
        5.0 * square_flops(graph, bucket, self.dout)
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (qkv, dout, lse) = (mem.get(self.qkv), mem.get(self.dout), mem.get(self.lse));
        let c = mem.channels(self.dout);
        let hs = c / self.heads;
        let scale = F::one() / F::of(hs as f64).sqrt();
        let b = mem.batch;
        let mut dqkv = vec![F::zero(); b.tokens() * 3 * c];
        for seq in 0..b.seqs() {
            for head in 0..self.heads {
                for (place, i) in b.segment(seq).enumerate() {
                    let seen = seen(b, self.mask, seq, i);
                    let s = reference_scores(&qkv, seen.clone(), i, head, (c, hs));
                    let p: Vec<F> = s
                        .iter()
                        .map(|x| (*x - lse[i * self.heads + head]).exp())
                        .collect();
                    let at = |t: usize, which: usize| t * 3 * c + which * c + head * hs;
                    let dy = &dout[i * c + head * hs..][..hs];
                    let dp: Vec<F> = seen
                        .clone()
                        .enumerate()
                        .map(|(j, t)| {
                            let m = keep(self.dropout, mem, seq, (head, place, j));
                            for d in 0..hs {
                                dqkv[at(t, 2) + d] += p[j] * m * dy[d];
                            }
                            (0..hs).map(|d| dy[d] * qkv[at(t, 2) + d]).sum::<F>() * m
                        })
                        .collect();
                    let mean = p.iter().zip(&dp).map(|(p, d)| *p * *d).sum::<F>();
                    for (j, t) in seen.enumerate() {
                        let ds = p[j] * (dp[j] - mean) * scale;
                        for d in 0..hs {
                            dqkv[at(i, 0) + d] += ds * qkv[at(t, 1) + d];
                            dqkv[at(t, 1) + d] += ds * qkv[at(i, 0) + d];
                        }
                    }
                }
            }
        }
        mem.set(self.dqkv, dqkv);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.dout);
        let (batch, steps) = (mem.batch, mem.steps);
        let reads = [Some(self.qkv), Some(self.lse), Some(self.dout)];
        let (r, mut w) = mem.bind(&reads, &[Some(self.dqkv)]);
        let (qkv, lse, dout) = (r[0], r[1], r[2]);
        let dqkv = split_texts(batch, w[0], 3 * c);
        dqkv.into_par_iter().enumerate().for_each(|(seq, dqkv)| {
            let range = batch.segment(seq);
            let hs = c / self.heads;
            let view = View {
                qkv,
                start: range.start,
                len: range.len(),
                c,
                hs,
            };
            SCORES.with_borrow_mut(|space| {
                space.resize(2 * view.len * view.len, 0.0);
                for head in 0..self.heads {
                    self.head(space, &view, (dqkv, dout, lse), (batch, steps, seq), head);
                }
            });
        });
    }
}

impl AttentionGrad {
    /// One head of one text. `space` holds probabilities and their gradients, (len, len) each.
    fn head(
        &self,
        space: &mut [f32],
        view: &View<'_>,
        (dqkv, dout, lse): (&mut [f32], &[f32], &[f32]),
        (batch, steps, seq): (&Batch, &[MemberStep], usize),
        head: usize,
    ) {
        let (n, c, hs, heads) = (view.len, view.c, view.hs, self.heads);
        let (p, ds) = space.split_at_mut(n * n);
        let scale = 1.0 / (hs as f32).sqrt();
        scores(p, view, head);
        let dy = Mat::rows(&dout[view.start * c + head * hs..], c);
        let seg = Segment {
            a: dy,
            b: view.mat(2, head).t(),
            k: hs,
        };
        gemm_serial(Dest { data: ds, ld: n }, (n, n), &[seg], Start::Zero);
        vector(
            #[inline(always)]
            || {
                for (i, (p, d)) in p
                    .chunks_exact_mut(n)
                    .zip(ds.chunks_exact_mut(n))
                    .enumerate()
                {
                    let log = lse[(view.start + i) * heads + head];
                    // What a query does not see has no part in it, whatever its score.
                    let seen = self.mask.seen(i, n);
                    p[seen..].fill(0.0);
                    d[seen..].fill(0.0);
                    let (p, d) = (&mut p[..seen], &mut d[..seen]);
                    p.iter_mut().for_each(|x| *x = exp(*x - log));
                    let key = self
                        .dropout
                        .map(|x| query_key(batch, steps, x.site, seq, head, i));
                    if let (Some(drop), Some(key)) = (&self.dropout, &key) {
                        drop.apply(key, d);
                    }
                    let mut mean = 0.0;
                    for (p, d) in p.iter().zip(&*d) {
                        mean += p * d;
                    }
                    for (p, d) in p.iter().zip(&mut *d) {
                        *d = p * (*d - mean) * scale;
                    }
                    if let (Some(drop), Some(key)) = (&self.dropout, &key) {
                        drop.apply(key, p);
                    }
                }
            },
        );
        // dV = P^T dO, dQ = dS K, dK = dS^T Q
        let products = [
            (2, Mat::rows(p, n).t(), dy),
            (0, Mat::rows(ds, n), view.mat(1, head)),
            (1, Mat::rows(ds, n).t(), view.mat(0, head)),
        ];
        for (which, a, b) in products {
            let dest = Dest {
                data: &mut dqkv[which * c + head * hs..],
                ld: 3 * c,
            };
            gemm_serial(dest, (n, hs), &[Segment { a, b, k: n }], Start::Zero);
        }
    }
}
