//! One row of each text's tokens: their mean (M-CLIP's masked mean pooling, special tokens counted), the
//! first (a vision tower's class token) or the last (the end of CLIP's texts).

use std::ops::Range;

use rayon::prelude::*;

use super::Node;
use super::fast::{axpy, vector};
use super::real::Real;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Dim, Graph, Role, ValueId};

/// What is made of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first.
    First,
    /// The last.
    Last,
}

impl Pooling {
    /// The tokens that count, of a text's.
    fn tokens(self, segment: Range<usize>) -> Range<usize> {
        match self {
            Pooling::Mean => segment,
            Pooling::First => segment.start..segment.start + 1,
            Pooling::Last => segment.end - 1..segment.end,
        }
    }
}

/// `out[s] = mean of inp[t]` over those tokens t of text s that count.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Which tokens count.
    pub pooling: Pooling,
    /// (T, C)
    pub inp: ValueId,
    /// (S, C)
    pub out: ValueId,
}

impl Pool {
    /// Adds the op; returns its result.
    pub fn push(g: &mut Graph, name: &str, pooling: Pooling, inp: ValueId) -> ValueId {
        let c = g.channels(inp);
        let out = g.value(name, vec![Dim::Seqs, Dim::N(c)], Role::Temp);
        g.nodes.push(Pool { pooling, inp, out }.into());
        out
    }
}

impl Node for Pool {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.inp]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.out]
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let Some(dout) = bw.grad_of(self.out) else {
            return;
        };
        let dinp = bw.like(self.inp);
        let pooling = self.pooling;
        bw.push(PoolGrad {
            pooling,
            dout,
            dinp,
        });
        bw.contribute(self.inp, dinp);
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (inp, c) = (mem.get(self.inp), mem.channels(self.inp));
        let mut out = vec![F::zero(); mem.batch.seqs() * c];
        for s in 0..mem.batch.seqs() {
            let range = self.pooling.tokens(mem.batch.segment(s));
            let n = F::of(range.len() as f64);
            for j in 0..c {
                out[s * c + j] = range.clone().map(|t| inp[t * c + j]).sum::<F>() / n;
            }
        }
        mem.set(self.out, out);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.inp);
        let batch = mem.batch;
        let (r, mut w) = mem.bind(&[Some(self.inp)], &[Some(self.out)]);
        let out = &mut w[0][..batch.seqs() * c];
        out.par_chunks_mut(c).enumerate().for_each(|(s, out)| {
            let range = self.pooling.tokens(batch.segment(s));
            let inv = 1.0 / range.len() as f32;
            vector(
                #[inline(always)]
                || {
                    out.fill(0.0);
                    for t in range {
                        axpy(out, 1.0, &r[0][t * c..][..c]);
                    }
                    out.iter_mut().for_each(|x| *x *= inv);
                },
            );
        });
    }
}

/// `dinp[t] = dout[s] / tokens of s that count`, 0 for one that does not.
#[derive(Clone, Debug)]
pub struct PoolGrad {
    /// As the forward's.
    pub pooling: Pooling,
    /// (S, C)
    pub dout: ValueId,
    /// (T, C) `=`
    pub dinp: ValueId,
}

impl Node for PoolGrad {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.dout]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.dinp]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (dout, c) = (mem.get(self.dout), mem.channels(self.dout));
        let mut dinp = vec![F::zero(); mem.batch.tokens() * c];
        for s in 0..mem.batch.seqs() {
            let range = self.pooling.tokens(mem.batch.segment(s));
            let n = F::of(range.len() as f64);
            for t in range {
                for j in 0..c {
                    dinp[t * c + j] = dout[s * c + j] / n;
                }
            }
        }
        mem.set(self.dinp, dinp);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.dout);
        let batch = mem.batch;
        let (r, mut w) = mem.bind(&[Some(self.dout)], &[Some(self.dinp)]);
        let dinp = &mut w[0][..batch.tokens() * c];
        dinp.par_chunks_mut(c).enumerate().for_each(|(t, row)| {
            let s = batch.token_seq[t] as usize;
            let range = self.pooling.tokens(batch.segment(s));
            if !range.contains(&t) {
                return row.fill(0.0);
            }
            let inv = 1.0 / range.len() as f32;
            row.iter_mut()
                .zip(&r[0][s * c..][..c])
                .for_each(|(x, d)| *x = d * inv);
        });
    }
}
