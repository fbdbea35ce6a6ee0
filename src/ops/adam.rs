//! The ends of a step: gradients are zeroed, measured and spent.
//!
//! Adam (Kingma and Ba, 2015) as `torch.optim.Adam` computes it: the weight decay is added to the
//! gradient, the bias corrections are applied to the step and to the denominator apart. Everything
//! is per member; a member whose gradient is not finite is left as it is.

use rayon::prelude::*;

use super::Node;
use super::fast::vector;
use super::real::Real;
use crate::exec::Adam;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::{Dim, Graph, Role, ValueId};

/// Elements of a task and of a partial sum.
const CHUNK: usize = 1 << 14;

/// Sets every gradient to zero. The first node of a step.
#[derive(Clone, Debug)]
pub struct ZeroGrads;

impl Node for ZeroGrads {
    fn reads(&self) -> Vec<ValueId> {
        vec![]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let grads: Vec<ValueId> = mem.graph.with_role(Role::Grad).collect();
        let values: Vec<ValueId> = mem.graph.with_role(Role::Trainable).collect();
        for (grad, value) in grads.into_iter().zip(values) {
            let len = mem.get(value).len();
            mem.set(grad, vec![F::zero(); len]);
        }
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        mem.state
            .grads
            .par_chunks_mut(CHUNK)
            .for_each(|x| x.fill(0.0));
    }
}

/// `norm[g] = |gradient of member g| / loss scale`, over all its trainable tensors.
#[derive(Clone, Debug)]
pub struct GradNorm {
    /// (G, 1); not finite where the gradient is not.
    pub norm: ValueId,
}

impl GradNorm {
    /// Adds the op; returns the norms.
    pub fn push(g: &mut Graph, name: &str) -> ValueId {
        let norm = g.value(name, vec![Dim::Members, Dim::N(1)], Role::Output);
        g.nodes.push(GradNorm { norm }.into());
        norm
    }
}

impl Node for GradNorm {
    fn reads(&self) -> Vec<ValueId> {
        vec![]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.norm]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let members = mem.batch.members.len();
        let mut sums = vec![F::zero(); members];
        for id in mem.graph.with_role(Role::Grad) {
            let grad = mem.get(id);
            for (g, part) in grad.chunks(grad.len() / members).enumerate() {
                sums[g] += part.iter().map(|x| *x * *x).sum::<F>();
            }
        }
        let scale = |g: usize| F::of(mem.steps[g].loss_scale.into());
        let norms = sums
            .iter()
            .enumerate()
            .map(|(g, s)| s.sqrt() / scale(g))
            .collect();
        mem.set(self.norm, norms);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let members = mem.batch.members.len();
        let mut norms = vec![0f32; members];
        for (g, norm) in norms.iter_mut().enumerate() {
            let mut sum = 0f64;
            for t in 0..mem.state.tensors.len() {
                let grad = &mem.state.grads[mem.state.range(t, g)];
                let parts: Vec<f64> = grad
                    .par_chunks(CHUNK)
                    .map(|part| {
                        part.iter()
                            .map(|x| f64::from(*x) * f64::from(*x))
                            .sum::<f64>()
                    })
                    .collect();
                sum += parts.iter().sum::<f64>();
            }
            *norm = sum.sqrt() as f32 / mem.steps[g].loss_scale;
        }
        let (_, mut w) = mem.bind(&[], &[Some(self.norm)]);
        w[0][..members].copy_from_slice(&norms);
    }
}

/// One step of Adam on every trainable tensor.
#[derive(Clone, Debug)]
pub struct AdamStep {
    /// (G, 1) as [`GradNorm`] left it.
    pub norm: ValueId,
}

/// What a member's step multiplies by, in f64 as PyTorch computes them.
struct Factors {
    grad: f64,
    /// The learning rate is divided by it.
    correction: f64,
    root: f64,
}

fn factors(adam: &Adam, steps: u32, norm: f32, loss_scale: f32) -> Factors {
    let correction = |beta: f64| 1.0 - beta.powi(steps as i32);
    let clip = (adam.clip_norm / (f64::from(norm) + 1e-6)).min(1.0);
    Factors {
        grad: clip / f64::from(loss_scale),
        correction: correction(adam.beta1),
        root: correction(adam.beta2).sqrt(),
    }
}

impl Node for AdamStep {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.norm]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let norms = mem.get(self.norm);
        let values: Vec<ValueId> = mem.graph.with_role(Role::Trainable).collect();
        let grads: Vec<ValueId> = mem.graph.with_role(Role::Grad).collect();
        let members = mem.batch.members.len();
        let steps = mem.steps;
        for g in (0..members).filter(|&g| steps[g].active && norms[g].is_finite()) {
            mem.state.adam_steps[g] += 1;
            let a = mem.steps[g].adam;
            let norm = norms[g].f64() as f32;
            let f = factors(&a, mem.state.adam_steps[g], norm, mem.steps[g].loss_scale);
            let (b1, b2) = (F::of(a.beta1), F::of(a.beta2));
            for (id, grad) in values.iter().zip(&grads) {
                let (mut value, grad) = (mem.get(*id), mem.get(*grad));
                let len = value.len() / members;
                let step = a.lr_of(&mem.graph.get(*id).name) / f.correction;
                for i in g * len..(g + 1) * len {
                    let d = grad[i] * F::of(f.grad) + F::of(a.weight_decay) * value[i];
                    let m = &mut mem.state.m[id.idx()][i];
                    *m = b1 * *m + (F::of(1.0 - a.beta1)) * d;
                    let v = &mut mem.state.v[id.idx()][i];
                    *v = b2 * *v + (F::of(1.0 - a.beta2)) * d * d;
                    let root = v.sqrt() / F::of(f.root) + F::of(a.eps);
                    value[i] -= F::of(step) * *m / root;
                }
                mem.set(*id, value);
            }
        }
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let members = mem.batch.members.len();
        let (r, _) = mem.bind(&[Some(self.norm)], &[]);
        let norms = r[0][..members].to_vec();
        let steps = mem.steps;
        let moving = |(g, n): &(usize, &f32)| steps[*g].active && n.is_finite();
        for (g, norm) in norms.iter().enumerate().filter(moving) {
            mem.state.adam_steps[g] += 1;
            let a = mem.steps[g].adam;
            let f = factors(&a, mem.state.adam_steps[g], *norm, mem.steps[g].loss_scale);
            for t in 0..mem.state.tensors.len() {
                let range = mem.state.range(t, g);
                let s = &mut *mem.state;
                let step = (a.lr_of(&s.tensors[t].name) / f.correction) as f32;
                let grads = s.grads[range.clone()].par_chunks(CHUNK);
                let m = s.m[range.clone()].par_chunks_mut(CHUNK);
                let v = s.v[range.clone()].par_chunks_mut(CHUNK);
                let values = s.values[range].par_chunks_mut(CHUNK);
                values
                    .zip(grads)
                    .zip(m)
                    .zip(v)
                    .for_each(|(((x, d), m), v)| {
                        vector(
                            #[inline(always)]
                            || update((x, d, m, v), step, &a, &f),
                        );
                    });
            }
        }
    }
}

#[inline(always)]
fn update(
    (x, d, m, v): (&mut [f32], &[f32], &mut [f32], &mut [f32]),
    step: f32,
    a: &Adam,
    f: &Factors,
) {
    let (grad, root) = (f.grad as f32, f.root as f32);
    // 1 - beta in f64, as PyTorch has it: in f32 it would be off by 1e-5 of itself.
    let (c1, c2) = ((1.0 - a.beta1) as f32, (1.0 - a.beta2) as f32);
    let (beta2, eps, decay) = (a.beta2 as f32, a.eps as f32, a.weight_decay as f32);
    for (((x, d), m), v) in x.iter_mut().zip(d).zip(m).zip(v) {
        let d = decay.mul_add(*x, d * grad);
        *m = c1.mul_add(d - *m, *m);
        *v = (c2 * d).mul_add(d, beta2 * *v);
        *x -= step * *m / (v.sqrt() / root + eps);
    }
}
