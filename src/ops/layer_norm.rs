//! Residual, dropout and layer norm in one.
//!
//! `z = resid + dropout(inp)`, or z = inp where there is no residual, `out = (z - mean) * rstd * weight + bias` with the mean and the
//! biased variance of each row (Ba, Kiros and Hinton, 2016). Post-LN transformers go on with `out`;
//! pre-LN ones with z as well, which is their residual stream.

use rayon::prelude::*;

use super::fast::{sum_map, sum_zip, vector};
use super::philox::{Dropout, RowKey};
use super::real::Real;
use super::{Node, member_slice, split_rows};
use crate::exec::MemberStep;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::text::pack::{Batch, Rows};

/// Rows of a task and of a partial sum of the parameter gradients.
const CHUNK: usize = 32;

/// The forward op.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, C) what a sub-layer gave.
    pub inp: ValueId,
    /// (rows, C) what went around it, if anything did.
    pub resid: Option<ValueId>,
    /// (C), or (G, C) when trainable.
    pub weight: ValueId,
    /// (C), or (G, C) when trainable.
    pub bias: ValueId,
    /// (rows, C) the sum, kept for the gradient; may take the place of `inp`, and is `inp` where
    /// there is no residual.
    pub z: ValueId,
    /// (rows, 2) mean and reciprocal standard deviation of each row.
    pub stats: ValueId,
    /// (rows, C) the result.
    pub out: ValueId,
    /// Added to the variance.
    pub eps: f32,
    /// On `inp`, in training.
    pub dropout: Option<Dropout>,
}

impl LayerNorm {
    /// Adds the op; returns its result.
    pub fn push(
        g: &mut Graph,
        name: &str,
        (inp, resid): (ValueId, ValueId),
        params: (ValueId, ValueId),
        eps: f32,
        dropout: Option<Dropout>,
    ) -> ValueId {
        LayerNorm::push_any(g, name, (inp, Some(resid)), params, (eps, dropout)).1
    }

    /// Adds the op without a residual; returns its result.
    pub fn push_alone(
        g: &mut Graph,
        name: &str,
        inp: ValueId,
        params: (ValueId, ValueId),
        eps: f32,
    ) -> ValueId {
        LayerNorm::push_any(g, name, (inp, None), params, (eps, None)).1
    }

    /// Adds the op; returns the sum, which may be read on, and its norm.
    pub fn push_sum(
        g: &mut Graph,
        name: &str,
        (inp, resid): (ValueId, ValueId),
        params: (ValueId, ValueId),
        eps: f32,
    ) -> (ValueId, ValueId) {
        LayerNorm::push_any(g, name, (inp, Some(resid)), params, (eps, None))
    }

    fn push_any(
        g: &mut Graph,
        name: &str,
        (inp, resid): (ValueId, Option<ValueId>),
        (weight, bias): (ValueId, ValueId),
        (eps, dropout): (f32, Option<Dropout>),
    ) -> (ValueId, ValueId) {
        let shape = g.get(inp).shape.clone();
        let rows = match shape[0] {
            Dim::Seqs => Rows::Seqs,
            _ => Rows::Tokens,
        };
        let z = match resid {
            Some(_) => g.value(format!("{name}.z"), shape.clone(), Role::Temp),
            None => inp,
        };
        let stats = g.value(
            format!("{name}.stats"),
            vec![shape[0], Dim::N(2)],
            Role::Temp,
        );
        let out = g.value(name, shape, Role::Temp);
        let op = LayerNorm {
            rows,
            inp,
            resid,
            weight,
            bias,
            z,
            stats,
            out,
            eps,
            dropout,
        };
        g.nodes.push(op.into());
        (z, out)
    }
}

/// The row of random numbers of a packed token at a dropout site.
pub(crate) fn token_key(batch: &Batch, steps: &[MemberStep], site: u32, token: usize) -> RowKey {
    let seq = batch.token_seq[token] as usize;
    let step = &steps[batch.seq_member[seq] as usize];
    let (role, item) = (batch.roles[seq], batch.seq_items[seq]);
    RowKey::new(step.seed, step.step, site, role, item, batch.places[token])
}

impl LayerNorm {
    /// The gradients of the input and of the residual go where they are needed.
    fn contribute(
        &self,
        bw: &mut Backward<'_>,
        resid: ValueId,
        (dinp, dresid): (ValueId, ValueId),
    ) {
        if bw.needs(self.inp) {
            bw.contribute(self.inp, dinp);
        }
        if bw.needs(resid) {
            bw.contribute(resid, dresid);
        }
    }
}

impl Node for LayerNorm {
    fn reads(&self) -> Vec<ValueId> {
        let resid = self.resid.into_iter();
        [self.inp, self.weight, self.bias]
            .into_iter()
            .chain(resid)
            .collect()
    }

    fn writes(&self) -> Vec<ValueId> {
        let sum = self.resid.map(|_| self.z).into_iter();
        sum.chain([self.stats, self.out]).collect()
    }

    fn inplace(&self) -> Vec<(ValueId, ValueId)> {
        match self.resid {
            Some(resid) if resid != self.inp => vec![(self.z, self.inp)],
            _ => vec![],
        }
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        // Where no loss reads the norm, the sum alone may have been read on.
        let Some(dout) = bw.grad_of(self.out) else {
            let reached = bw.grad_of(self.z);
            if let (Some(dz), Some(resid)) = (reached, self.resid) {
                self.contribute(bw, resid, (dz, dz));
            }
            return;
        };
        let dz = bw.like(self.z);
        let dinp = self.dropout.map(|_| bw.like(self.inp));
        let (dweight, dbias) = (bw.param_grad(self.weight), bw.param_grad(self.bias));
        bw.push(LayerNormGrad {
            rows: self.rows,
            dout,
            z: self.z,
            stats: self.stats,
            weight: self.weight,
            dz,
            dinp,
            dweight,
            dbias,
            dropout: self.dropout,
        });
        // What reads the sum itself has left a gradient; without a residual the sum is the input.
        bw.contribute(self.z, dz);
        if let (Some(resid), Some(dz)) = (self.resid, bw.grad_of(self.z)) {
            self.contribute(bw, resid, (dinp.unwrap_or(dz), dz));
        }
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let inp = mem.get(self.inp);
        let resid = self.resid.map(|id| mem.get(id));
        let (weight, bias) = (mem.get(self.weight), mem.get(self.bias));
        let c = mem.channels(self.inp);
        let rows = mem.batch.rows(self.rows);
        let (mut z, mut out) = (vec![F::zero(); rows * c], vec![F::zero(); rows * c]);
        let mut stats = vec![F::zero(); rows * 2];
        for t in 0..rows {
            let g = mem.batch.member_of(self.rows, t);
            let w = member_slice(&weight, mem.per_member(self.weight), g, c);
            let b = member_slice(&bias, mem.per_member(self.bias), g, c);
            for j in 0..c {
                let keep = match &self.dropout {
                    Some(d) => F::of(
                        d.factor(&token_key(mem.batch, mem.steps, d.site, t), j)
                            .into(),
                    ),
                    None => F::one(),
                };
                let around = resid.as_ref().map_or(F::zero(), |r| r[t * c + j]);
                z[t * c + j] = around + keep * inp[t * c + j];
            }
            let row = &z[t * c..(t + 1) * c];
            let n = F::of(c as f64);
            let mean = row.iter().copied().sum::<F>() / n;
            let var = row.iter().map(|x| (*x - mean) * (*x - mean)).sum::<F>() / n;
            let rstd = F::one() / (var + F::of(self.eps.into())).sqrt();
            for j in 0..c {
                out[t * c + j] = (row[j] - mean) * rstd * w[j] + b[j];
            }
            stats[2 * t] = mean;
            stats[2 * t + 1] = rstd;
        }
        if self.resid.is_some() {
            mem.set(self.z, z);
        }
        mem.set(self.stats, stats);
        mem.set(self.out, out);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.inp);
        let (batch, steps) = (mem.batch, mem.steps);
        let (weights, biases) = (mem.per_member(self.weight), mem.per_member(self.bias));
        let chunks = batch.chunks(self.rows, CHUNK);
        let sum = self.resid.map(|_| self.z);
        if let Some(z) = sum {
            mem.carry(z, self.inp);
        }
        let inp = if sum.is_none() { Some(self.inp) } else { None };
        let (r, mut w) = mem.bind(
            &[inp, self.resid, Some(self.weight), Some(self.bias)],
            &[sum, Some(self.stats), Some(self.out)],
        );
        let (inp, resid, weight, bias) = (r[0], r[1], r[2], r[3]);
        let [z, stats, out] = &mut w[..] else { return };
        let mut z: Vec<Option<&mut [f32]>> = match sum {
            Some(_) => split_rows(z, &chunks, c).into_iter().map(Some).collect(),
            None => chunks.iter().map(|_| None).collect(),
        };
        let stats = split_rows(stats, &chunks, 2);
        let out = split_rows(out, &chunks, c);
        chunks
            .par_iter()
            .zip(&mut z)
            .zip(stats)
            .zip(out)
            .for_each(|(((k, z), stats), out)| {
                let w = member_slice(weight, weights, k.member, c);
                let b = member_slice(bias, biases, k.member, c);
                vector(
                    #[inline(always)]
                    || {
                        for (i, t) in (k.start..k.end).enumerate() {
                            let out = &mut out[i * c..][..c];
                            let z = match z {
                                Some(z) => {
                                    let z = &mut z[i * c..][..c];
                                    if let Some(d) = &self.dropout {
                                        d.apply(&token_key(batch, steps, d.site, t), z);
                                    }
                                    z.iter_mut()
                                        .zip(&resid[t * c..][..c])
                                        .for_each(|(z, r)| *z += r);
                                    &*z
                                }
                                None => &inp[t * c..][..c],
                            };
                            let (mean, rstd) = row_stats(z, self.eps);
                            for j in 0..c {
                                out[j] = ((z[j] - mean) * rstd).mul_add(w[j], b[j]);
                            }
                            stats[2 * i] = mean;
                            stats[2 * i + 1] = rstd;
                        }
                    },
                );
            });
    }
}

/// Mean and reciprocal standard deviation of a row, in two passes.
#[inline(always)]
pub(crate) fn row_stats(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum_map(row, |x| x) / n;
    let var = sum_map(row, |x| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

/// The gradient op.
#[derive(Clone, Debug)]
pub struct LayerNormGrad {
    /// What the rows are.
    pub rows: Rows,
    /// (rows, C)
    pub dout: ValueId,
    /// (rows, C) as the forward left it.
    pub z: ValueId,
    /// (rows, 2) as the forward left it.
    pub stats: ValueId,
    /// (C) or (G, C)
    pub weight: ValueId,
    /// (rows, C) `=` gradient of the sum, and of the input where there is no dropout.
    pub dz: ValueId,
    /// (rows, C) `=` gradient of the input, where there is dropout.
    pub dinp: Option<ValueId>,
    /// (G, C) `+=`
    pub dweight: Option<ValueId>,
    /// (G, C) `+=`
    pub dbias: Option<ValueId>,
    /// As the forward's.
    pub dropout: Option<Dropout>,
}

impl Node for LayerNormGrad {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.dout, self.z, self.stats, self.weight]
    }

    fn writes(&self) -> Vec<ValueId> {
        [Some(self.dz), self.dinp].into_iter().flatten().collect()
    }

    fn inplace(&self) -> Vec<(ValueId, ValueId)> {
        vec![(self.dz, self.dout)]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (dout, z, stats) = (mem.get(self.dout), mem.get(self.z), mem.get(self.stats));
        let weight = mem.get(self.weight);
        let c = mem.channels(self.z);
        let (rows, members) = (mem.batch.rows(self.rows), mem.batch.members.len());
        let (mut dz, mut dinp) = (vec![F::zero(); rows * c], vec![F::zero(); rows * c]);
        let (mut dw, mut db) = (vec![F::zero(); members * c], vec![F::zero(); members * c]);
        for t in 0..rows {
            let g = mem.batch.member_of(self.rows, t);
            let w = member_slice(&weight, mem.per_member(self.weight), g, c);
            let (mean, rstd) = (stats[2 * t], stats[2 * t + 1]);
            let xhat = |j: usize| (z[t * c + j] - mean) * rstd;
            let d = |j: usize| dout[t * c + j] * w[j];
            let n = F::of(c as f64);
            let s1 = (0..c).map(d).sum::<F>() / n;
            let s2 = (0..c).map(|j| d(j) * xhat(j)).sum::<F>() / n;
            for j in 0..c {
                let dx = rstd * (d(j) - s1 - xhat(j) * s2);
                dz[t * c + j] = dx;
                let keep = match &self.dropout {
                    Some(d) => F::of(
                        d.factor(&token_key(mem.batch, mem.steps, d.site, t), j)
                            .into(),
                    ),
                    None => F::one(),
                };
                dinp[t * c + j] = dx * keep;
                dw[g * c + j] += dout[t * c + j] * xhat(j);
                db[g * c + j] += dout[t * c + j];
            }
        }
        mem.set(self.dz, dz);
        if let Some(id) = self.dinp {
            mem.set(id, dinp);
        }
        if let Some(id) = self.dweight {
            mem.accumulate(id, &dw);
        }
        if let Some(id) = self.dbias {
            mem.accumulate(id, &db);
        }
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.z);
        let (batch, steps) = (mem.batch, mem.steps);
        let weights = mem.per_member(self.weight);
        let chunks = batch.chunks(self.rows, CHUNK);
        let params = self.dweight.is_some() || self.dbias.is_some();
        let mut sums = vec![0f32; if params { chunks.len() * 2 * c } else { 0 }];
        mem.carry(self.dz, self.dout);
        let (r, mut w) = mem.bind(
            &[Some(self.z), Some(self.stats), Some(self.weight)],
            &[Some(self.dz), self.dinp, self.dweight, self.dbias],
        );
        let (z, stats, weight) = (r[0], r[1], r[2]);
        let [dz, dinp, dweight, dbias] = &mut w[..] else {
            return;
        };
        let dz = split_rows(dz, &chunks, c);
        let mut dinp: Vec<Option<&mut [f32]>> = match self.dinp {
            Some(_) => split_rows(dinp, &chunks, c).into_iter().map(Some).collect(),
            None => chunks.iter().map(|_| None).collect(),
        };
        let mut parts: Vec<&mut [f32]> = match params {
            true => sums.chunks_mut(2 * c).collect(),
            false => chunks.iter().map(|_| Default::default()).collect(),
        };
        let work = chunks.par_iter().zip(dz).zip(&mut dinp).zip(&mut parts);
        work.for_each(|(((k, dz), dinp), part)| {
            let w = member_slice(weight, weights, k.member, c);
            vector(
                #[inline(always)]
                || {
                    for (i, t) in (k.start..k.end).enumerate() {
                        let (d, z) = (&mut dz[i * c..][..c], &z[t * c..][..c]);
                        let (mean, rstd) = (stats[2 * t], stats[2 * t + 1]);
                        if params {
                            let (dw, db) = part.split_at_mut(c);
                            for j in 0..c {
                                dw[j] = d[j].mul_add((z[j] - mean) * rstd, dw[j]);
                                db[j] += d[j];
                            }
                        }
                        row_grad(d, z, w, mean, rstd);
                        if let (Some(drop), Some(dinp)) = (&self.dropout, &mut *dinp) {
                            let row = &mut dinp[i * c..][..c];
                            row.copy_from_slice(d);
                            drop.apply(&token_key(batch, steps, drop.site, t), row);
                        }
                    }
                },
            );
        });
        for (k, part) in chunks.iter().zip(&parts).filter(|_| params) {
            let (dw, db) = part.split_at(c);
            for (sum, term) in [(&mut *dweight, dw), (&mut *dbias, db)] {
                if !sum.is_empty() {
                    sum[k.member * c..][..c]
                        .iter_mut()
                        .zip(term)
                        .for_each(|(s, t)| *s += t);
                }
            }
        }
    }
}

/// Turns the gradient of a row's result into the gradient of its input, in place.
#[inline(always)]
pub(crate) fn row_grad(d: &mut [f32], z: &[f32], w: &[f32], mean: f32, rstd: f32) {
    let n = d.len() as f32;
    d.iter_mut().zip(w).for_each(|(d, w)| *d *= w);
    let s1 = sum_map(d, |x| x) / n;
    let s2 = sum_zip(d, z, |sum, d, z| d.mul_add((z - mean) * rstd, sum)) / n;
    for (d, z) in d.iter_mut().zip(z) {
        *d = rstd * (*d - s1 - (z - mean) * rstd * s2);
    }
}
