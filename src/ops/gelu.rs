//! GELUs of towers, which are fused into `linear`, and their gradient.

use rayon::prelude::*;

use super::Node;
use super::fast::{gelu, gelu_grad, quick_gelu, quick_gelu_grad, vector};
use super::real::{self, Real};
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::ValueId;

/// Which GELU (Hendrycks and Gimpel, 2016).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Gelu {
    /// `x Phi(x)`, with erf: BERT's, XLM-R's, OpenCLIP's.
    Exact,
    /// `x sigmoid(1.702 x)`: OpenAI's CLIP.
    Quick,
}

impl Gelu {
    /// Value and derivative.
    pub fn reference<F: Real>(self, x: F) -> (F, F) {
        match self {
            Gelu::Exact => real::gelu(x),
            Gelu::Quick => real::quick_gelu(x),
        }
    }

    /// `out = gelu(inp)`, element by element.
    #[inline(always)]
    pub fn apply(self, out: &mut [f32], inp: &[f32]) {
        let pairs = out.iter_mut().zip(inp);
        match self {
            Gelu::Exact => pairs.for_each(|(y, x)| *y = gelu(*x)),
            Gelu::Quick => pairs.for_each(|(y, x)| *y = quick_gelu(*x)),
        }
    }

    /// `d *= gelu'(inp)`, element by element.
    #[inline(always)]
    fn apply_grad(self, d: &mut [f32], inp: &[f32]) {
        let pairs = d.iter_mut().zip(inp);
        match self {
            Gelu::Exact => pairs.for_each(|(d, x)| *d *= gelu_grad(*x)),
            Gelu::Quick => pairs.for_each(|(d, x)| *d *= quick_gelu_grad(*x)),
        }
    }
}

/// `dinp = dout * gelu'(inp)`, element by element.
#[derive(Clone, Debug)]
pub struct GeluGrad {
    /// Which function.
    pub kind: Gelu,
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
            x.iter()
                .zip(&dy)
                .map(|(x, d)| *d * self.kind.reference(*x).1)
                .collect(),
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
                    || self.kind.apply_grad(d, x),
                );
            });
    }
}
