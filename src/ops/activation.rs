//! Activations of adapters, on packed tokens: the tanh form of GELU and ReLU.
//!
//! `out = f(inp)`, element by element. The exact GELU of the tower is fused into `linear`.

use rayon::prelude::*;

use super::Node;
use super::fast::{gelu_tanh, gelu_tanh_grad, vector};
use super::real::{self, Real};
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Graph, Role, ValueId};

/// Elements of a task.
const BLOCK: usize = 1 << 13;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel, 2016).
    GeluTanh,
    /// `max(x, 0)`, whose derivative at 0 is 0.
    Relu,
}

impl Kind {
    /// Value and derivative.
    fn reference<F: Real>(self, x: F) -> (F, F) {
        match self {
            Kind::GeluTanh => real::gelu_tanh(x),
            // Written so that NaN stays NaN.
            Kind::Relu if x <= F::zero() => (F::zero(), F::zero()),
            Kind::Relu => (x, F::one()),
        }
    }
}

/// The forward op.
#[derive(Clone, Debug)]
pub struct Activation {
    /// Which function.
    pub kind: Kind,
    /// (T, C)
    pub inp: ValueId,
    /// (T, C) `=`
    pub out: ValueId,
}

impl Activation {
    /// Adds the op; returns its result.
    pub fn push(g: &mut Graph, name: &str, kind: Kind, inp: ValueId) -> ValueId {
        let shape = g.get(inp).shape.clone();
        let out = g.value(name, shape, Role::Temp);
        g.nodes.push(Activation { kind, inp, out }.into());
        out
    }
}

impl Node for Activation {
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
        bw.push(ActivationGrad {
            kind: self.kind,
            inp: self.inp,
            dout,
            dinp,
        });
        bw.contribute(self.inp, dinp);
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let mut x = mem.get(self.inp);
        x.truncate(mem.batch.tokens() * mem.channels(self.inp));
        let out = x.iter().map(|x| self.kind.reference(*x).0).collect();
        mem.set(self.out, out);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let len = mem.batch.tokens() * mem.channels(self.inp);
        let (r, mut w) = mem.bind(&[Some(self.inp)], &[Some(self.out)]);
        let (x, y) = (&r[0][..len], &mut w[0][..len]);
        match self.kind {
            Kind::GeluTanh => each(y, x, |_, x| gelu_tanh(x)),
            Kind::Relu => each(y, x, |_, x| if x <= 0.0 { 0.0 } else { x }),
        }
    }
}

/// `dinp = dout * f'(inp)`.
#[derive(Clone, Debug)]
pub struct ActivationGrad {
    /// Which function.
    pub kind: Kind,
    /// (T, C) what went into it.
    pub inp: ValueId,
    /// (T, C)
    pub dout: ValueId,
    /// (T, C) `=`; may take the place of `dout`.
    pub dinp: ValueId,
}

impl Node for ActivationGrad {
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
        let len = mem.batch.tokens() * mem.channels(self.inp);
        let pairs = x.iter().zip(&dy).take(len);
        let dinp = pairs.map(|(x, d)| *d * self.kind.reference(*x).1).collect();
        mem.set(self.dinp, dinp);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        // True rows only: what lies past them is not written, and may be anything.
        let len = mem.batch.tokens() * mem.channels(self.inp);
        mem.carry(self.dinp, self.dout);
        let (r, mut w) = mem.bind(&[Some(self.inp)], &[Some(self.dinp)]);
        let (x, d) = (&r[0][..len], &mut w[0][..len]);
        match self.kind {
            Kind::GeluTanh => each(d, x, |d, x| d * gelu_tanh_grad(x)),
            // By a factor: what is not finite in `dout` must not be hidden.
            Kind::Relu => each(d, x, |d, x| d * if x <= 0.0 { 0.0 } else { 1.0 }),
        }
    }
}

/// `y = f(y, x)`, element by element, on all threads.
fn each(y: &mut [f32], x: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    y.par_chunks_mut(BLOCK)
        .zip(x.par_chunks(BLOCK))
        .for_each(|(y, x)| {
            vector(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*y, *x)),
            );
        });
}
