//! The gradient of the exact GELU; the forward is fused into `linear`.

use rayon::prelude::*;

use super::Node;
use super::fast::{gelu_grad, vector};
use super::real::{Real, gelu};
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::ValueId;

/// `dinp = dout * gelu'(inp)`, element by element (Hendrycks and Gimpel, 2016).
#[derive(Clone, Debug)]
pub struct GeluGrad {
    /// What went into the GELU.
    pub inp: ValueId,
    /// Gradient of what came out.
    pub dout: ValueId,
    /// Gradient of `inp`; may take the place of `dout`.
    pub dinp: ValueId,
}

impl Node for GeluGrad {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.inp, self.dout]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.dinp]
    }

    fn inplace(&self) -> Vec<(ValueId, ValueId)> {
        vec![(self.dinp, self.dout)]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (x, dy) = (mem.get(self.inp), mem.get(self.dout));
        mem.set(
            self.dinp,
            x.iter().zip(&dy).map(|(x, d)| *d * gelu(*x).1).collect(),
        );
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        // True rows only: what lies past them is not written, and may be anything.
        let len = mem.batch.tokens() * mem.channels(self.inp);
        mem.carry(self.dinp, self.dout);
        let (r, mut w) = mem.bind(&[Some(self.inp)], &[Some(self.dinp)]);
        let (x, d) = (&r[0][..len], &mut w[0][..len]);
        d.par_chunks_mut(1 << 13)
            .zip(x.par_chunks(1 << 13))
            .for_each(|(d, x)| {
                vector(
                    #[inline(always)]
                    || d.iter_mut().zip(x).for_each(|(d, x)| *d *= gelu_grad(*x)),
                );
            });
    }
}
