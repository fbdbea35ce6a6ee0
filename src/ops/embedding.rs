//! Word, position and token type embeddings, layer norm and dropout in one.
//!
//! `out = dropout(LN(word[id] + position[p] + type[t]))`; in the slots of a soft prompt (Lester et
//! al., "The power of scale for parameter-efficient prompt tuning", 2021) a trained vector stands in
//! place of `word[id]`. The gradient, which full training and prompts want, gathers again. CLIP's text
//! tower has no token types, and goes on with the sum as well: the norm is its first block's.

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
use crate::text::pack::{Batch, Rows};

const CHUNK: usize = 32;

/// Places in [`Tables::ids`].
const WORD: usize = 0;
const POSITION: usize = 1;
const TYPE: usize = 2;
const WEIGHT: usize = 3;
const BIAS: usize = 4;
const PROMPT: usize = 5;

/// The tables and the layer norm of an embedding. Each has a leading G when trainable.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// (V, C)
    pub word: ValueId,
    /// (P, C)
    pub position: ValueId,
    /// (token types, C), if there are such.
    pub token_type: Option<ValueId>,
    /// (C)
    pub weight: ValueId,
    /// (C)
    pub bias: ValueId,
    /// Vectors of a soft prompt (k, C), if there is one: k is the batch's.
    pub prompt: Option<ValueId>,
}

impl Tables {
    /// Word, position, token type, weight, bias, prompt: the order of all that is kept a table.
    fn ids(&self) -> [Option<ValueId>; 6] {
        [
            Some(self.word),
            Some(self.position),
            self.token_type,
            Some(self.weight),
            Some(self.bias),
            self.prompt,
        ]
    }

    /// Fails unless the batch has a slot for each vector of the prompt.
    fn check_prompt(&self, graph: &Graph, batch: &Batch) {
        let len = |id| {
            let shape = &graph.get(id).shape;
            shape[shape.len() - 2]
        };
        let k = self.prompt.map_or(Dim::N(0), len);
        assert_eq!(k, Dim::N(batch.prompt), "vectors and slots of the prompt");
    }
}

/// The row of a table that a token reads, if it reads one.
#[inline(always)]
fn row_of(batch: &Batch, table: usize, t: usize) -> Option<usize> {
    match table {
        WORD if batch.slot(t).is_some() => None,
        WORD => Some(batch.ids[t] as usize),
        POSITION => Some(batch.positions[t] as usize),
        TYPE => Some(batch.types[t] as usize),
        PROMPT => batch.slot(t),
        _ => Some(0),
    }
}

/// The tables in memory.
struct Gather<'a> {
    /// In the order of [`Tables::ids`]; empty where there is none.
    data: &'a [&'a [f32]],
    per_member: [bool; 6],
    batch: &'a Batch,
    /// C.
    channels: usize,
}

impl Gather<'_> {
    /// A member's copy of a table.
    fn table(&self, i: usize, member: usize) -> &[f32] {
        let per = self.per_member[i];
        let copies = if per { self.batch.members.len() } else { 1 };
        member_slice(self.data[i], per, member, self.data[i].len() / copies)
    }

    /// Writes the sum of a token's rows.
    #[inline(always)]
    fn sum(&self, t: usize, member: usize, out: &mut [f32]) {
        let row = |i: usize, at: usize| &self.table(i, member)[at * self.channels..];
        let word = match self.batch.slot(t) {
            Some(slot) => row(PROMPT, slot),
            None => row(WORD, self.batch.ids[t] as usize),
        };
        let pos = row(POSITION, self.batch.positions[t] as usize);
        if self.data[TYPE].is_empty() {
            let rows = out.iter_mut().zip(word).zip(pos);
            return rows.for_each(|((out, word), pos)| *out = word + pos);
        }
        let kind = row(TYPE, self.batch.types[t] as usize);
        for (((out, word), kind), pos) in out.iter_mut().zip(word).zip(kind).zip(pos) {
            *out = word + kind + pos;
        }
    }
}

/// The forward op.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Tables and layer norm.
    pub tables: Tables,
    /// (T, C)
    pub out: ValueId,
    /// (T, C) the sum of the rows, where it is read on.
    pub sum: Option<ValueId>,
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
        Embedding::push_any(g, name, tables, None, (eps, dropout))
    }

    /// Adds the op; returns the sum of a token's rows, which may be read on, and its norm.
    pub fn push_sum(g: &mut Graph, name: &str, tables: Tables, eps: f32) -> (ValueId, ValueId) {
        let c = g.channels(tables.word);
        let sum = g.value(
            format!("{name}.sum"),
            vec![Dim::Tokens, Dim::N(c)],
            Role::Temp,
        );
        let out = Embedding::push_any(g, name, tables, Some(sum), (eps, None));
        (sum, out)
    }

    fn push_any(
        g: &mut Graph,
        name: &str,
        tables: Tables,
        sum: Option<ValueId>,
        (eps, dropout): (f32, Option<Dropout>),
    ) -> ValueId {
        let c = g.channels(tables.word);
        let out = g.value(name, vec![Dim::Tokens, Dim::N(c)], Role::Temp);
        g.nodes.push(
            Embedding {
                tables,
                out,
                sum,
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
        self.tables.ids().into_iter().flatten().collect()
    }

    fn writes(&self) -> Vec<ValueId> {
        self.sum.into_iter().chain([self.out]).collect()
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let Some(dout) = bw.grad_of(self.out) else {
            return;
        };
        let dsum = self.sum.and_then(|sum| bw.grad_of(sum));
        let grads = self.tables.ids().map(|id| bw.param_grad(id?));
        let (tables, eps, dropout) = (self.tables, self.eps, self.dropout);
        bw.push(EmbeddingGrad {
            tables,
            dout,
            dsum,
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
        let mut sums = Vec::with_capacity(rows * c);
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
            sums.extend(x);
        }
        if let Some(sum) = self.sum {
            mem.set(sum, sums);
        }
        mem.set(self.out, out);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.out);
        let (batch, steps, eps) = (mem.batch, mem.steps, self.eps);
        self.tables.check_prompt(mem.graph, batch);
        let per_member = self
            .tables
            .ids()
            .map(|id| id.is_some_and(|id| mem.per_member(id)));
        let chunks = batch.chunks(Rows::Tokens, CHUNK);
        let (r, mut w) = mem.bind(&self.tables.ids(), &[Some(self.out), self.sum]);
        let gather = Gather {
            data: &r,
            per_member,
            batch,
            channels: c,
        };
        let [out, sum] = &mut w[..] else { return };
        let out = split_rows(out, &chunks, c);
        let mut sum: Vec<&mut [f32]> = match self.sum {
            Some(_) => split_rows(sum, &chunks, c),
            None => chunks.iter().map(|_| Default::default()).collect(),
        };
        let work = chunks.par_iter().zip(out).zip(&mut sum);
        work.for_each(|((k, out), sum)| {
            let (weight, bias) = (gather.table(WEIGHT, k.member), gather.table(BIAS, k.member));
            vector(
                #[inline(always)]
                || {
                    for (i, (row, t)) in out.chunks_exact_mut(c).zip(k.start..k.end).enumerate() {
                        gather.sum(t, k.member, row);
                        if !sum.is_empty() {
                            sum[i * c..][..c].copy_from_slice(row);
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

/// The sum of a token's rows, its mean and reciprocal standard deviation.
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
    tables.check_prompt(mem.graph, b);
    let rows = [
        Some(match (tables.prompt, b.slot(t)) {
            (Some(prompt), Some(slot)) => (prompt, slot as u32),
            _ => (tables.word, b.ids[t]),
        }),
        tables.token_type.map(|kind| (kind, b.types[t])),
        Some((tables.position, b.positions[t])),
    ];
    for (id, row) in rows.into_iter().flatten() {
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
    /// (T, C) the gradient of the sum, where it was read on.
    pub dsum: Option<ValueId>,
    /// `+=`, in the order word, position, token type, weight, bias, prompt.
    pub grads: [Option<ValueId>; 6],
    /// As the forward's.
    pub eps: f32,
    /// As the forward's.
    pub dropout: Option<Dropout>,
}

impl Node for EmbeddingGrad {
    fn reads(&self) -> Vec<ValueId> {
        let tables = self.tables.ids().into_iter().flatten();
        tables.chain([self.dout]).chain(self.dsum).collect()
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let c = mem.channels(self.dout);
        let dout = mem.get(self.dout);
        let dsum = self.dsum.map(|id| mem.get(id));
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
            for (i, sum) in sums.iter_mut().enumerate() {
                let (Some(sum), Some(row)) = (sum, row_of(mem.batch, i, t)) else {
                    continue;
                };
                let at = g * (sum.len() / members) + row * c;
                for j in 0..c {
                    sum[at + j] += match i {
                        WEIGHT => d[j] * xhat[j],
                        BIAS => d[j],
                        _ => {
                            let more = dsum.as_ref().map_or(F::zero(), |d| d[t * c + j]);
                            rstd * (d[j] * w[j] - s1 - xhat[j] * s2) + more
                        }
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
        let per_member = self
            .tables
            .ids()
            .map(|id| id.is_some_and(|id| mem.per_member(id)));
        let chunks = batch.chunks(Rows::Tokens, CHUNK);
        let mut reads = self.tables.ids().to_vec();
        reads.extend([Some(self.dout), self.dsum]);
        let (r, mut w) = mem.bind(&reads, &self.grads);
        let gather = Gather {
            data: &r,
            per_member,
            batch,
            channels: c,
        };
        let more = r[7];
        // (T, C) gradients of the sums, and a partial sum of the layer norm's a chunk.
        let mut dsum = r[6][..batch.tokens() * c].to_vec();
        let mut parts = vec![0f32; chunks.len() * 2 * c];
        let rows = split_rows(&mut dsum, &chunks, c);
        chunks
            .par_iter()
            .zip(rows)
            .zip(parts.par_chunks_mut(2 * c))
            .for_each(|((k, d), part)| {
                let (dw, db) = part.split_at_mut(c);
                let weight = gather.table(WEIGHT, k.member);
                let mut x = vec![0f32; c];
                vector(
                    #[inline(always)]
                    || {
                        for (d, t) in d.chunks_exact_mut(c).zip(k.start..k.end) {
                            gather.sum(t, k.member, &mut x);
                            let (mean, rstd) = row_stats(&x, self.eps);
                            if let Some(drop) = &self.dropout {
                                drop.apply(&token_key(batch, steps, drop.site, t), d);
                            }
                            for j in 0..c {
                                dw[j] = d[j].mul_add((x[j] - mean) * rstd, dw[j]);
                                db[j] += d[j];
                            }
                            row_grad(d, &x, weight, mean, rstd);
                            if !more.is_empty() {
                                let more = &more[t * c..][..c];
                                d.iter_mut().zip(more).for_each(|(d, m)| *d += m);
                            }
                        }
                    },
                );
            });
        for (k, part) in chunks.iter().zip(parts.chunks(2 * c)) {
            for (i, term) in [(WEIGHT, &part[..c]), (BIAS, &part[c..])] {
                if !w[i].is_empty() {
                    w[i][k.member * c..][..c]
                        .iter_mut()
                        .zip(term)
                        .for_each(|(s, t)| *s += t);
                }
            }
        }
        for i in [WORD, POSITION, TYPE, PROMPT] {
            let len = w[i].len() / members;
            for (g, grad) in w[i].chunks_mut(len.max(1)).enumerate() {
                let tokens = batch.members[g].tokens.clone();
                let owned = tokens.filter_map(|t| Some((row_of(batch, i, t)?, t)));
                scatter(grad, &dsum, owned.collect(), c);
            }
        }
    }
}

/// Adds each token's row to the row of the table that owns it: `owned` are pairs of owner and token.
/// An owner's tokens are added in order.
fn scatter(grad: &mut [f32], rows: &[f32], mut owned: Vec<(usize, usize)>, c: usize) {
    owned.sort_unstable();
    let mut owners = Vec::new();
    let (mut rest, mut next) = (grad, 0);
    for run in owned.chunk_by(|a, b| a.0 == b.0) {
        let id = run[0].0;
        let (head, tail) = rest.split_at_mut((id + 1 - next) * c);
        owners.push((&mut head[(id - next) * c..], run));
        (rest, next) = (tail, id + 1);
    }
    owners.into_par_iter().for_each(|(row, run)| {
        run.iter().for_each(|&(_, t)| {
            vector(
                #[inline(always)]
                || axpy(row, 1.0, &rows[t * c..][..c]),
            )
        });
    });
}
