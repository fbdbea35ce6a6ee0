//! Self-attention within each text of a packed batch.
//!
//! For each text and head: `out = dropout(softmax(Q K^T / sqrt(HS))) V`, over all tokens of the text or
//! over those up to the query's own (CLIP's text tower). Scores live only while a
//! (text, head) is worked on; the gradient computes them again from the saved log-sum-exp. Texts
//! are short (10 to 40 tokens), so one task is one text with all its heads.

pub mod grad;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::fast::{exp, sum_map, vector};
use super::gemm::{Dest, Mat, Segment, Start, gemm_serial};
use super::philox::{Dropout, RowKey};
use super::real::Real;
use super::{Node, product_flops};
use crate::exec::MemberStep;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Bucket, Dim, Graph, Role, ValueId};
use crate::text::pack::Batch;
use grad::AttentionGrad;

/// Which tokens of its text a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    All,
    /// Those up to itself.
    Causal,
}

impl Mask {
    /// Of `len` tokens, how many the query at `place` sees.
    #[inline(always)]
    fn seen(self, place: usize, len: usize) -> usize {
        match self {
            Mask::All => len,
            Mask::Causal => place + 1,
        }
    }
}

/// The forward op.
#[derive(Clone, Debug)]
pub struct Attention {
    /// (T, 3C): query, key and value side by side.
    pub qkv: ValueId,
    /// (T, C)
    pub out: ValueId,
    /// (T, NH) log-sum-exp of each query's scores.
    pub lse: ValueId,
    /// NH; C is a multiple of it.
    pub heads: usize,
    /// Which tokens a query sees.
    pub mask: Mask,
    /// On the probabilities, in training.
    pub dropout: Option<Dropout>,
}

impl Attention {
    /// Adds the op; returns its result.
    pub fn push(
        g: &mut Graph,
        name: &str,
        qkv: ValueId,
        (heads, mask): (usize, Mask),
        dropout: Option<Dropout>,
    ) -> ValueId {
        let c = g.channels(qkv) / 3;
        let out = g.value(name, vec![Dim::Tokens, Dim::N(c)], Role::Temp);
        let lse = g.value(
            format!("{name}.lse"),
            vec![Dim::Tokens, Dim::N(heads)],
            Role::Temp,
        );
        g.nodes.push(
            Attention {
                qkv,
                out,
                lse,
                heads,
                mask,
                dropout,
            }
            .into(),
        );
        out
    }
}

/// Operations of a product of every token (T, C) with all tokens of its text.
fn square_flops(graph: &Graph, bucket: &Bucket, id: ValueId) -> f64 {
    let length = bucket.tokens as f64 / bucket.seqs.max(1) as f64;
    product_flops(bucket.tokens, graph.channels(id), 1) * length
}

/// The row of random numbers of a query.
fn query_key(
    batch: &Batch,
    steps: &[MemberStep],
    site: u32,
    seq: usize,
    head: usize,
    query: usize,
) -> RowKey {
    let step = &steps[batch.seq_member[seq] as usize];
    let place = (head as u32) << 16 | query as u32;
    RowKey::new(
        step.seed,
        step.step,
        site,
        batch.roles[seq],
        batch.seq_items[seq],
        place,
    )
}

/// One text of the packed qkv.
#[derive(Clone, Copy)]
struct View<'a> {
    qkv: &'a [f32],
    start: usize,
    len: usize,
    c: usize,
    hs: usize,
}

impl<'a> View<'a> {
    /// Queries (0), keys (1) or values (2) of a head: (len, HS).
    fn mat(&self, which: usize, head: usize) -> Mat<'a> {
        let at = self.start * 3 * self.c + which * self.c + head * self.hs;
        Mat::rows(&self.qkv[at..], 3 * self.c)
    }
}

thread_local! {
    /// Scores of one head, kept by a worker.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `scores = scale Q K^T`.
fn scores(s: &mut [f32], view: &View<'_>, head: usize) {
    let (n, scale) = (view.len, 1.0 / (view.hs as f32).sqrt());
    let seg = Segment {
        a: view.mat(0, head),
        b: view.mat(1, head).t(),
        k: view.hs,
    };
    gemm_serial(Dest { data: s, ld: n }, (n, n), &[seg], Start::Zero);
    vector(
        #[inline(always)]
        || s.iter_mut().for_each(|x| *x *= scale),
    );
}

/// Texts as tasks, each with its own rows of a (T, width) output.
fn split_texts<'a>(batch: &Batch, mut data: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
    let mut out = Vec::with_capacity(batch.seqs());
    for seq in 0..batch.seqs() {
        let (head, tail) = data.split_at_mut(batch.segment(seq).len() * width);
        out.push(head);
        data = tail;
    }
    out
}

impl Node for Attention {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.qkv]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.out, self.lse]
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let Some(dout) = bw.grad_of(self.out) else {
            return;
        };
        let dqkv = bw.like(self.qkv);
        let (heads, mask, dropout) = (self.heads, self.mask, self.dropout);
        let (qkv, lse) = (self.qkv, self.lse);
        bw.push(AttentionGrad {
            qkv,
            lse,
            dout,
            dqkv,
            heads,
            mask,
            dropout,
        });
        bw.contribute(self.qkv, dqkv);
    }

    fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
        // Scores and the weighted sum of values.
        2.0 * square_flops(graph, bucket, self.out)
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let qkv = mem.get(self.qkv);
        let c = mem.channels(self.out);
        let hs = c / self.heads;
        let b = mem.batch;
        let mut out = vec![F::zero(); b.tokens() * c];
        let mut lse = vec![F::zero(); b.tokens() * self.heads];
        for seq in 0..b.seqs() {
            for head in 0..self.heads {
                for i in b.segment(seq) {
                    let seen = seen(b, self.mask, seq, i);
                    let s = reference_scores(&qkv, seen.clone(), i, head, (c, hs));
                    let max = s.iter().copied().fold(F::neg_infinity(), F::max);
                    let sum = s.iter().map(|x| (*x - max).exp()).sum::<F>();
                    let log = max + sum.ln();
                    lse[i * self.heads + head] = log;
                    let place = i - b.segment(seq).start;
                    for (j, t) in seen.enumerate() {
                        let p = (s[j] - log).exp() * self.keep(mem, seq, head, place, j);
                        for d in 0..hs {
                            out[i * c + head * hs + d] +=
                                p * qkv[t * 3 * c + 2 * c + head * hs + d];
                        }
                    }
                }
            }
        }
        mem.set(self.out, out);
        mem.set(self.lse, lse);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.out);
        let (heads, hs) = (self.heads, c / self.heads);
        let (batch, steps) = (mem.batch, mem.steps);
        let (r, mut w) = mem.bind(&[Some(self.qkv)], &[Some(self.out), Some(self.lse)]);
        let qkv = r[0];
        let [out, lse] = &mut w[..] else { return };
        let out = split_texts(batch, out, c);
        let lse = split_texts(batch, lse, heads);
        out.into_par_iter()
            .zip(lse)
            .enumerate()
            .for_each(|(seq, (out, lse))| {
                let range = batch.segment(seq);
                let view = View {
                    qkv,
                    start: range.start,
                    len: range.len(),
                    c,
                    hs,
                };
                let n = view.len;
                SCORES.with_borrow_mut(|s| {
                    s.resize(n * n, 0.0);
                    for head in 0..heads {
                        scores(s, &view, head);
                        vector(
                            #[inline(always)]
                            || {
                                for (i, row) in s.chunks_exact_mut(n).enumerate() {
                                    let (row, unseen) = row.split_at_mut(self.mask.seen(i, n));
                                    unseen.fill(0.0);
                                    lse[i * heads + head] = softmax(row);
                                    if let Some(d) = &self.dropout {
                                        d.apply(
                                            &query_key(batch, steps, d.site, seq, head, i),
                                            row,
                                        );
                                    }
                                }
                            },
                        );
                        let seg = Segment {
                            a: Mat::rows(s, n),
                            b: view.mat(2, head),
                            k: n,
                        };
                        let dest = Dest {
                            data: &mut out[head * hs..],
                            ld: c,
                        };
                        gemm_serial(dest, (n, hs), &[seg], Start::Zero);
                    }
                });
            });
    }
}

impl Attention {
    fn keep<F: Real>(&self, mem: &RefMem<'_, F>, seq: usize, head: usize, i: usize, j: usize) -> F {
        keep(self.dropout, mem, seq, (head, i, j))
    }
}

fn keep<F: Real>(
    dropout: Option<Dropout>,
    mem: &RefMem<'_, F>,
    seq: usize,
    (head, query, key): (usize, usize, usize),
) -> F {
    dropout.map_or(F::one(), |d| {
        let row = query_key(mem.batch, mem.steps, d.site, seq, head, query);
        F::of(d.factor(&row, key).into())
    })
}

/// The tokens that token `i` of a text sees.
fn seen(batch: &Batch, mask: Mask, seq: usize, i: usize) -> Range<usize> {
    let segment = batch.segment(seq);
    let n = mask.seen(i - segment.start, segment.len());
    segment.start..segment.start + n
}

/// Scaled scores of query row `i` against the keys that it sees.
fn reference_scores<F: Real>(
    qkv: &[F],
    seen: Range<usize>,
    i: usize,
    head: usize,
    (c, hs): (usize, usize),
) -> Vec<F> {
    let scale = F::one() / F::of(hs as f64).sqrt();
    let q = &qkv[i * 3 * c + head * hs..][..hs];
    seen.map(|t| {
        let k = &qkv[t * 3 * c + c + head * hs..][..hs];
        q.iter().zip(k).map(|(a, b)| *a * *b).sum::<F>() * scale
    })
    .collect()
}

/// Turns a row of scores into probabilities; returns its log-sum-exp.
#[inline(always)]
fn softmax(row: &mut [f32]) -> f32 {
    let max = row
        .iter()
        .fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    row.iter_mut().for_each(|x| *x = exp(*x - max));
    let sum = sum_map(row, |x| x);
    let inv = 1.0 / sum;
    row.iter_mut().for_each(|x| *x *= inv);
    max + sum.ln()
}
