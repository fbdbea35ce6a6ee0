//! `out = a + b`: where a value has two consumers.

use rayon::prelude::*;

use super::Node;
use super::fast::vector;
use super::real::Real;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::ValueId;

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

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (a, b) = (mem.get(self.a), mem.get(self.b));
        mem.set(self.out, a.iter().zip(&b).map(|(x, y)| *x + *y).collect());
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
