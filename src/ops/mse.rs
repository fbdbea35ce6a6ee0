//! Mean squared error between anchors and partners, on features that are not normalised.

use super::Node;
use super::real::Real;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::text::pack::MemberRows;

/// For each member, `loss = mean over rows and channels of (anchor - partner)^2`; 0 without
/// partners.
#[derive(Clone, Debug)]
pub struct Mse {
    /// (S, E)
    pub text: ValueId,
    /// (G, 1)
    pub loss: ValueId,
}

impl Mse {
    /// Adds the op; returns its loss.
    pub fn push(g: &mut Graph, name: &str, text: ValueId) -> ValueId {
        let loss = g.value(name, vec![Dim::Members, Dim::N(1)], Role::Output);
        g.nodes.push(Mse { text, loss }.into());
        loss
    }
}

/// Elements of a member's anchors and of its partners.
fn pair(m: &MemberRows, e: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let (p, n) = (m.partners(), m.partners().len());
    (
        m.seqs.start * e..(m.seqs.start + n) * e,
        p.start * e..p.end * e,
    )
}

impl Node for Mse {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.text]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.loss]
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let dtext = bw.like(self.text);
        bw.push(MseGrad {
            text: self.text,
            dtext,
        });
        bw.contribute(self.text, dtext);
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (x, e) = (mem.get(self.text), mem.channels(self.text));
        let loss = mem.batch.members.iter().map(|m| {
            let (a, p) = pair(m, e);
            let n = F::of(a.len().max(1) as f64);
            x[a].iter()
                .zip(&x[p])
                .map(|(a, p)| (*a - *p) * (*a - *p))
                .sum::<F>()
                / n
        });
        mem.set(self.loss, loss.collect());
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let e = mem.channels(self.text);
        let batch = mem.batch;
        let (r, mut w) = mem.bind(&[Some(self.text)], &[Some(self.loss)]);
        for (m, loss) in batch.members.iter().zip(&mut *w[0]) {
            let (a, p) = pair(m, e);
            let n = a.len().max(1) as f64;
            let square = |(a, p): (&f32, &f32)| f64::from((a - p) * (a - p));
            *loss = (r[0][a].iter().zip(&r[0][p]).map(square).sum::<f64>() / n) as f32;
        }
    }
}

/// `danchor = w 2 (anchor - partner) / (rows E)`, `dpartner = -danchor`, w the member's weight.
#[derive(Clone, Debug)]
pub struct MseGrad {
    /// (S, E)
    pub text: ValueId,
    /// (S, E) `=`
    pub dtext: ValueId,
}

impl Node for MseGrad {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.text]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.dtext]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (x, e) = (mem.get(self.text), mem.channels(self.text));
        let mut d = vec![F::zero(); mem.batch.seqs() * e];
        for (m, step) in mem.batch.members.iter().zip(mem.steps) {
            if step.weights.mse == 0.0 {
                continue;
            }
            let (a, p) = pair(m, e);
            let w = F::of((step.weights.mse * step.loss_scale * 2.0).into());
            let n = F::of(a.len().max(1) as f64);
            for (i, j) in a.zip(p) {
                let term = w * (x[i] - x[j]) / n;
                d[i] += term;
                if !step.weights.stop_partner {
                    d[j] -= term;
                }
            }
        }
        mem.set(self.dtext, d);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let e = mem.channels(self.text);
        let (batch, steps) = (mem.batch, mem.steps);
        let (r, mut w) = mem.bind(&[Some(self.text)], &[Some(self.dtext)]);
        w[0][..batch.seqs() * e].fill(0.0);
        for (m, step) in batch
            .members
            .iter()
            .zip(steps)
            .filter(|(_, s)| s.weights.mse != 0.0)
        {
            let (a, p) = pair(m, e);
            let scale = step.weights.mse * step.loss_scale * 2.0 / a.len().max(1) as f32;
            for (i, j) in a.zip(p) {
                let term = scale * (r[0][i] - r[0][j]);
                w[0][i] += term;
                if !step.weights.stop_partner {
                    w[0][j] -= term;
                }
            }
        }
    }
}
