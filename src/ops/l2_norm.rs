//! Unit rows: `out = inp / |inp|`, without an epsilon, as CLIP has it.

use rayon::prelude::*;

use super::Node;
use super::fast::{dot, vector};
use super::real::Real;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::text::pack::Rows;

/// The forward op. A row of zeros gives NaN, which the loss then reports.
#[derive(Clone, Debug)]
pub struct L2Norm {
    /// (rows, E)
    pub inp: ValueId,
    /// What the rows are.
    pub rows: Rows,
    /// (rows, E)
    pub out: ValueId,
    /// (rows, 1) length of each row.
    pub norm: ValueId,
}

impl L2Norm {
    /// Adds the op; returns its result.
    pub fn push(g: &mut Graph, name: &str, inp: ValueId, rows: Rows) -> ValueId {
        let shape = g.get(inp).shape.clone();
        let norm = g.value(
            format!("{name}.norm"),
            vec![shape[0], Dim::N(1)],
            Role::Temp,
        );
        let out = g.value(name, shape, Role::Temp);
        g.nodes.push(
            L2Norm {
                inp,
                rows,
                out,
                norm,
            }
            .into(),
        );
        out
    }
}

impl Node for L2Norm {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.inp]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.out, self.norm]
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let Some(dout) = bw.grad_of(self.out) else {
            return;
        };
        let dinp = bw.like(self.inp);
        let (rows, out, norm) = (self.rows, self.out, self.norm);
        bw.push(L2NormGrad {
            dout,
            rows,
            out,
            norm,
            dinp,
        });
        bw.contribute(self.inp, dinp);
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (inp, c) = (mem.get(self.inp), mem.channels(self.inp));
        let rows = mem.batch.rows(self.rows);
        let norm: Vec<F> = inp
            .chunks(c)
            .take(rows)
            .map(|row| row.iter().map(|x| *x * *x).sum::<F>().sqrt())
            .collect();
        let out = (0..rows * c).map(|i| inp[i] / norm[i / c]).collect();
        mem.set(self.out, out);
        mem.set(self.norm, norm);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.inp);
        let rows = mem.batch.rows(self.rows);
        let (r, mut w) = mem.bind(&[Some(self.inp)], &[Some(self.out), Some(self.norm)]);
        let [out, norm] = &mut w[..] else { return };
        let out = out[..rows * c].par_chunks_mut(c).zip(norm.par_iter_mut());
        out.enumerate().for_each(|(i, (row, norm))| {
            let x = &r[0][i * c..][..c];
            vector(
                #[inline(always)]
                || {
                    *norm = dot(x, x).sqrt();
                    row.iter_mut().zip(x).for_each(|(y, x)| *y = x / *norm);
                },
            );
        });
    }
}

/// `dinp = (dout - out (out . dout)) / norm`.
#[derive(Clone, Debug)]
pub struct L2NormGrad {
    /// (rows, E)
    pub dout: ValueId,
    /// What the rows are.
    pub rows: Rows,
    /// (rows, E) as the forward left it.
    pub out: ValueId,
    /// (rows, 1) as the forward left it.
    pub norm: ValueId,
    /// (rows, E) `=`
    pub dinp: ValueId,
}

impl Node for L2NormGrad {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.dout, self.out, self.norm]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.dinp]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (dout, out, norm) = (mem.get(self.dout), mem.get(self.out), mem.get(self.norm));
        let c = mem.channels(self.out);
        let mut dinp = vec![F::zero(); mem.batch.rows(self.rows) * c];
        for (i, row) in dinp.chunks_mut(c).enumerate() {
            let along = (0..c).map(|j| out[i * c + j] * dout[i * c + j]).sum::<F>();
            for j in 0..c {
                row[j] = (dout[i * c + j] - out[i * c + j] * along) / norm[i];
            }
        }
        mem.set(self.dinp, dinp);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.out);
        let rows = mem.batch.rows(self.rows);
        let reads = [Some(self.dout), Some(self.out), Some(self.norm)];
        let (r, mut w) = mem.bind(&reads, &[Some(self.dinp)]);
        w[0][..rows * c]
            .par_chunks_mut(c)
            .enumerate()
            .for_each(|(i, row)| {
                let (d, y) = (&r[0][i * c..][..c], &r[1][i * c..][..c]);
                vector(
                    #[inline(always)]
                    || {
                        let (along, inv) = (dot(d, y), 1.0 / r[2][i]);
                        for j in 0..c {
                            row[j] = (d[j] - y[j] * along) * inv;
                        }
                    },
                );
            });
    }
}
