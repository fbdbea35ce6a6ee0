//! Word, position and token type embeddings, layer norm and dropout in one.
//!
//! `out = dropout(LN(word[id] + position[p] + type[t]))`. Nothing is saved: the gradient, which only
//! full training wants, gathers again.

use rayon::prelude::*;

use super::fast::{axpy, vector};
use super::layer_norm::{row_grad, row_stats, token_key};
use super::philox::Dropout;
use super::real::Real;
use super::{Node, member_slice, split_rows};
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::text::pack::Rows;

const CHUNK: usize = 32;

/// The tables and the layer norm of an embedding. Each has a leading G when trainable.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// (V, C)
    pub word: ValueId,
    /// (P, C)
    pub position: ValueId,
    /// (token types, C)
    pub token_type: ValueId,
    /// (C)
    pub weight: ValueId,
    /// (C)
    pub bias: ValueId,
}

impl Tables {
    fn ids(&self) -> [ValueId; 5] {
        [
            self.word,
            self.position,
            self.token_type,
            self.weight,
            self.bias,
        ]
    }
}

/// The forward op.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Tables and layer norm.
    pub tables: Tables,
    /// (T, C)
    pub out: ValueId,
    /// Added to the variance.
    pub eps: f32,
    /// On the result, in training.
    pub dropout: Option<Dropout>,
}

impl Embedding {
    /// Adds the op; returns its result.
    pub fn push(
        g: &mut Graph,
        name: &str,
        tables: Tables,
        eps: f32,
        dropout: Option<Dropout>,
    ) -> ValueId {
        let c = g.channels(tables.word);
        let out = g.value(name, vec![Dim::Tokens, Dim::N(c)], Role::Temp);
        g.nodes.push(
            Embedding {
                tables,
                out,
                eps,
                dropout,
            }
            .into(),
        );
        out
    }
}

impl Node for Embedding {
    fn reads(&self) -> Vec<ValueId> {
        self.tables.ids().to_vec()
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.out]
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let Some(dout) = bw.grad_of(self.out) else {
            return;
        };
        let grads = self.tables.ids().map(|id| bw.param_grad(id));
        let (tables, eps, dropout) = (self.tables, self.eps, self.dropout);
        bw.push(EmbeddingGrad {
            tables,
            dout,
            grads,
            eps,
            dropout,
        });
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let c = mem.channels(self.out);
        let rows = mem.batch.tokens();
        let (weight, bias) = (mem.get(self.tables.weight), mem.get(self.tables.bias));
        let mut out = vec![F::zero(); rows * c];
        for t in 0..rows {
            let g = mem.batch.member_of(Rows::Tokens, t);
            let w = member_slice(&weight, mem.per_member(self.tables.weight), g, c);
            let b = member_slice(&bias, mem.per_member(self.tables.bias), g, c);
            let (x, mean, rstd) = reference_row(&self.tables, mem, t, self.eps);
            for j in 0..c {
                let keep = match &self.dropout {
                    Some(d) => F::of(
                        d.factor(&token_key(mem.batch, mem.steps, d.site, t), j)
                            .into(),
                    ),
                    None => F::one(),
                };
                out[t * c + j] = ((x[j] - mean) * rstd * w[j] + b[j]) * keep;
            }
        }
        mem.set(self.out, out);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.out);
        let (batch, steps, eps) = (mem.batch, mem.steps, self.eps);
        let per = self.tables.ids().map(|id| mem.per_member(id));
        let chunks = batch.chunks(Rows::Tokens, CHUNK);
        let (r, mut w) = mem.bind(&self.tables.ids().map(Some), &[Some(self.out)]);
        let sizes: [usize; 5] =
            std::array::from_fn(|i| r[i].len() / if per[i] { batch.members.len() } else { 1 });
        let out = split_rows(w[0], &chunks, c);
        chunks.par_iter().zip(out).for_each(|(k, out)| {
            let table = |i: usize| member_slice(r[i], per[i], k.member, sizes[i]);
            let (weight, bias) = (table(3), table(4));
            vector(
                #[inline(always)]
                || {
                    for (row, t) in out.chunks_exact_mut(c).zip(k.start..k.end) {
                        let at = |i: usize, id: u32| &table(i)[id as usize * c..][..c];
                        let word = at(0, batch.ids[t]);
                        let pos = at(1, batch.positions[t]);
                        let kind = at(2, batch.types[t]);
                        for j in 0..c {
                            row[j] = word[j] + kind[j] + pos[j];
                        }
                        let (mean, rstd) = row_stats(row, eps);
                        for j in 0..c {
                            row[j] = ((row[j] - mean) * rstd).mul_add(weight[j], bias[j]);
                        }
                        if let Some(d) = &self.dropout {
                            d.apply(&token_key(batch, steps, d.site, t), row);
                        }
                    }
                },
            );
        });
    }
}

/// The sum of a token's three rows, its mean and reciprocal standard deviation.
fn reference_row<F: Real>(
    tables: &Tables,
    mem: &RefMem<'_, F>,
    t: usize,
    eps: f32,
) -> (Vec<F>, F, F) {
    let c = mem.channels(tables.word);
    let g = mem.batch.member_of(Rows::Tokens, t);
    let members = mem.batch.members.len();
    let b = mem.batch;
    let mut x = vec![F::zero(); c];
    let rows = [
        (tables.word, b.ids[t]),
        (tables.token_type, b.types[t]),
        (tables.position, b.positions[t]),
    ];
    for (id, row) in rows {
        let table = mem.get(id);
        let per = mem.per_member(id);
        let table = member_slice(&table, per, g, table.len() / if per { members } else { 1 });
        for j in 0..c {
            x[j] += table[row as usize * c + j];
        }
    }
    let n = F::of(c as f64);
    let mean = x.iter().copied().sum::<F>() / n;
    let var = x.iter().map(|v| (*v - mean) * (*v - mean)).sum::<F>() / n;
    (x, mean, F::one() / (var + F::of(eps.into())).sqrt())
}

/// The gradient op. A table's row has one owner, which adds its tokens in order.
#[derive(Clone, Debug)]
pub struct EmbeddingGrad {
    /// Tables and layer norm of the forward.
    pub tables: Tables,
    /// (T, C)
    pub dout: ValueId,
    /// `+=`, in the order word, position, token type, weight, bias.
    pub grads: [Option<ValueId>; 5],
    /// As the forward's.
    pub eps: f32,
    /// As the forward's.
    pub dropout: Option<Dropout>,
}

impl Node for EmbeddingGrad {
    fn reads(&self) -> Vec<ValueId> {
        let mut ids = self.tables.ids().to_vec();
        ids.push(self.dout);
        ids
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let c = mem.channels(self.dout);
        let dout = mem.get(self.dout);
        let weight = mem.get(self.tables.weight);
        let mut sums = self
            .grads
            .map(|id| id.map(|id| vec![F::zero(); mem.get(id).len()]));
        let members = mem.batch.members.len();
        for t in 0..mem.batch.tokens() {
            let g = mem.batch.member_of(Rows::Tokens, t);
            let w = member_slice(&weight, mem.per_member(self.tables.weight), g, c);
            let (x, mean, rstd) = reference_row(&self.tables, mem, t, self.eps);
            let keep = |j: usize| match &self.dropout {
                Some(d) => F::of(
                    d.factor(&token_key(mem.batch, mem.steps, d.site, t), j)
                        .into(),
                ),
                None => F::one(),
            };
            let d: Vec<F> = (0..c).map(|j| dout[t * c + j] * keep(j)).collect();
            let xhat: Vec<F> = x.iter().map(|v| (*v - mean) * rstd).collect();
            let n = F::of(c as f64);
            let s1 = (0..c).map(|j| d[j] * w[j]).sum::<F>() / n;
            let s2 = (0..c).map(|j| d[j] * w[j] * xhat[j]).sum::<F>() / n;
            let b = mem.batch;
            let rows = [b.ids[t], b.positions[t], b.types[t], 0, 0];
            for (i, sum) in sums.iter_mut().enumerate() {
                let Some(sum) = sum else { continue };
                let at = g * (sum.len() / members) + rows[i] as usize * c;
                for j in 0..c {
                    sum[at + j] += match i {
                        3 => d[j] * xhat[j],
                        4 => d[j],
                        _ => rstd * (d[j] * w[j] - s1 - xhat[j] * s2),
                    };
                }
            }
        }
        for (id, sum) in self.grads.iter().zip(&sums) {
            if let (Some(id), Some(sum)) = (id, sum) {
                mem.accumulate(*id, sum);
            }
        }
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.dout);
        let (batch, steps) = (mem.batch, mem.steps);
        let members = batch.members.len();
        let per = self.tables.ids().map(|id| mem.per_member(id));
        let chunks = batch.chunks(Rows::Tokens, CHUNK);
        let mut reads = self.tables.ids().map(Some).to_vec();
        reads.push(Some(self.dout));
        let (r, mut w) = mem.bind(&reads, &self.grads);
        let table = |i: usize, g: usize| {
            member_slice(
                r[i],
                per[i],
                g,
                r[i].len() / if per[i] { members } else { 1 },
            )
        };
        // (T, C) gradients of the sums, and a partial sum of the layer norm's a chunk.
        let mut dsum = r[5][..batch.tokens() * c].to_vec();
        let mut parts = vec![0f32; chunks.len() * 2 * c];
        let rows = split_rows(&mut dsum, &chunks, c);
        chunks
            .par_iter()
            .zip(rows)
            .zip(parts.par_chunks_mut(2 * c))
            .for_each(|((k, d), part)| {
                let (dw, db) = part.split_at_mut(c);
                let weight = table(3, k.member);
                let mut x = vec![0f32; c];
                vector(
                    #[inline(always)]
                    || {
                        for (d, t) in d.chunks_exact_mut(c).zip(k.start..k.end) {
                            let at =
                                |i: usize, id: u32| &table(i, k.member)[id as usize * c..][..c];
                            let word = at(0, batch.ids[t]);
                            let pos = at(1, batch.positions[t]);
                            let kind = at(2, batch.types[t]);
                            for j in 0..c {
                                x[j] = word[j] + kind[j] + pos[j];
                            }
                            let (mean, rstd) = row_stats(&x, self.eps);
                            if let Some(drop) = &self.dropout {
                                drop.apply(&token_key(batch, steps, drop.site, t), d);
                            }
                            for j in 0..c {
                                dw[j] = d[j].mul_add((x[j] - mean) * rstd, dw[j]);
                                db[j] += d[j];
                            }
                            row_grad(d, &x, weight, mean, rstd);
                        }
                    },
                );
            });
        for (k, part) in chunks.iter().zip(parts.chunks(2 * c)) {
            for (i, term) in [(3, &part[..c]), (4, &part[c..])] {
                if !w[i].is_empty() {
                    w[i][k.member * c..][..c]
                        .iter_mut()
                        .zip(term)
                        .for_each(|(s, t)| *s += t);
                }
            }
        }
        let ids = [&batch.ids, &batch.positions, &batch.types];
        for (grad, ids) in w.iter_mut().zip(ids).filter(|(g, _)| !g.is_empty()) {
            let len = grad.len() / members;
            for (g, grad) in grad.chunks_mut(len).enumerate() {
                scatter(grad, &dsum, ids, batch.members[g].tokens.clone(), c);
            }
        }
    }
}

/// Adds each token's row to the row that its id owns; tokens of one id in order.
fn scatter(grad: &mut [f32], rows: &[f32], ids: &[u32], tokens: std::ops::Range<usize>, c: usize) {
    let mut order: Vec<usize> = tokens.collect();
    order.sort_by_key(|&t| ids[t]);
    let mut owners: Vec<(&mut [f32], &[usize])> = Vec::new();
    let (mut rest, mut next) = (grad, 0);
    for run in order.chunk_by(|a, b| ids[*a] == ids[*b]) {
        let id = ids[run[0]] as usize;
        let (head, tail) = rest.split_at_mut((id + 1 - next) * c);
        owners.push((&mut head[(id - next) * c..], run));
        (rest, next) = (tail, id + 1);
    }
    owners.into_par_iter().for_each(|(row, run)| {
        run.iter().for_each(|&t| {
            vector(
                #[inline(always)]
                || axpy(row, 1.0, &rows[t * c..][..c]),
            )
        });
    });
}
