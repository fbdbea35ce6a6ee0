//! `out = a + b`: an adapter on a layer's output, and the gradient of a value with two consumers.

use rayon::prelude::*;

use super::Node;
use super::fast::vector;
use super::real::Real;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Bucket, Graph, Role, ValueId};

/// `out = a + b`, all of one shape.
#[derive(Clone, Debug)]
pub struct Add {
    /// First term.
    pub a: ValueId,
    /// Second term.
    pub b: ValueId,
    /// The sum; may take the place of `a`.
    pub out: ValueId,
}

impl Add {
    /// Adds the op; returns the sum.
    pub fn push(g: &mut Graph, name: &str, (a, b): (ValueId, ValueId)) -> ValueId {
        let shape = g.get(a).shape.clone();
        let out = g.value(name, shape, Role::Temp);
        g.nodes.push(Add { a, b, out }.into());
        out
    }
}

impl Node for Add {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.a, self.b]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.out]
    }

    fn inplace(&self) -> Vec<(ValueId, ValueId)> {
        if self.a == self.b {
            vec![]
        } else {
            vec![(self.out, self.a)]
        }
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let Some(dout) = bw.grad_of(self.out) else {
            return;
        };
        for term in [self.a, self.b] {
            if bw.needs(term) {
                bw.contribute(term, dout);
            }
        }
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (a, b) = (mem.get(self.a), mem.get(self.b));
        let batch = mem.batch;
        let true_rows = Bucket {
            tokens: batch.tokens(),
            seqs: batch.seqs(),
            items: batch.items(),
            members: batch.members.len(),
        };
        let len = mem.graph.get(self.out).elements(&true_rows);
        let sums = a.iter().zip(&b).map(|(x, y)| *x + *y);
        mem.set(self.out, sums.take(len).collect());
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        mem.carry(self.out, self.a);
        let (r, mut w) = mem.bind(&[Some(self.b)], &[Some(self.out)]);
        w[0].par_chunks_mut(1 << 14)
            .zip(r[0].par_chunks(1 << 14))
            .for_each(|(y, x)| {
                vector(
                    #[inline(always)]
                    || y.iter_mut().zip(x).for_each(|(y, x)| *y += x),
                );
            });
    }
}
