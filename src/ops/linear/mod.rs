//! Linear layers with bias, GELU and LoRA, several side by side.
//!
//! For each part `p`: `out[:, p] = inp W_p^T + b_p + scale (inp A_p^T) B_p^T`; with `act`, also
//! `act = gelu(out)`, exact or quick. Query, key and value are three parts of one op, so the input is read once.
//! LoRA: Hu et al., "LoRA: low-rank adaptation of large language models" (2021); with dropout, the
//! branch alone reads `drop(inp)`, which is never stored but made again where it is read.

mod dropped;
pub mod grad;

use super::gelu::Gelu;
use super::gemm::{Dest, Mat, Segment, Start, gemm};
use super::philox::Dropout;
use super::real::Real;
use super::{Node, member_slice, product_flops};
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Bucket, Dim, Graph, Role, ValueId};
use crate::text::pack::{Batch, Rows};
use grad::{BranchGrad, InputGrad, LoraGrad, WeightGrad};

/// A low-rank branch beside a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Lora {
    /// (G, R, K)
    pub lora_a: ValueId,
    /// (G, OC, R)
    pub lora_b: ValueId,
    /// What the branch is multiplied by.
    pub scale: f32,
    /// (rows, R) `drop(inp) A^T`, kept for the gradient.
    pub u: ValueId,
    /// On what the branch reads, in training; the rows are then tokens.
    pub dropout: Option<Dropout>,
}

/// One linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// (OC, K), or (G, OC, K) when trainable.
    pub weight: ValueId,
    /// (OC), or (G, OC) when trainable.
    pub bias: Option<ValueId>,
    /// The branch beside it.
    pub lora: Option<Lora>,
}

/// The forward op.
#[derive(Clone, Debug)]
pub struct Linear {
    /// (rows, K)
    pub inp: ValueId,
    /// What the rows are.
    pub rows: Rows,
    /// The layers, side by side in `out`.
    pub parts: Vec<Part>,
    /// (rows, sum of OC); what goes into the GELU, if there is one.
    pub out: ValueId,
    /// (rows, sum of OC) `gelu(out)`, and which GELU.
    pub act: Option<(Gelu, ValueId)>,
}

/// A linear layer as a model builder names it.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// (OC, K) or (G, OC, K).
    pub weight: ValueId,
    /// (OC) or (G, OC).
    pub bias: Option<ValueId>,
    /// The branch beside it.
    pub lora: Option<LoraLayer>,
}

/// A low-rank branch as a model builder names it.
#[derive(Clone, Copy, Debug)]
pub struct LoraLayer {
    /// (G, R, K)
    pub lora_a: ValueId,
    /// (G, OC, R)
    pub lora_b: ValueId,
    /// What the branch is multiplied by.
    pub scale: f32,
    /// On what the branch reads; the rows must be tokens.
    pub dropout: Option<Dropout>,
}

impl Linear {
    /// Adds the op; returns its result, the activated one with `act`.
    ///
    /// # Panics
    /// If a branch has dropout and the rows are not tokens: a mistake of a model builder.
    pub fn push(
        g: &mut Graph,
        name: &str,
        (inp, rows): (ValueId, Rows),
        layers: &[Layer],
        act: Option<Gelu>,
    ) -> ValueId {
        let row_dim = g.get(inp).shape[0];
        let mut parts = Vec::new();
        let mut width = 0;
        for (i, l) in layers.iter().enumerate() {
            let shape = &g.get(l.weight).shape;
            width += match shape[shape.len() - 2] {
                Dim::N(n) => n,
                other => unreachable!("output channels are fixed, not {other:?}"),
            };
            let lora = l.lora.map(|l| {
                assert!(l.dropout.is_none() || rows == Rows::Tokens, "{name}");
                let r = g.channels(l.lora_b);
                let u = g.value(
                    format!("{name}.lora{i}.u"),
                    vec![row_dim, Dim::N(r)],
                    Role::Temp,
                );
                Lora {
                    lora_a: l.lora_a,
                    lora_b: l.lora_b,
                    scale: l.scale,
                    u,
                    dropout: l.dropout,
                }
            });
            parts.push(Part {
                weight: l.weight,
                bias: l.bias,
                lora,
            });
        }
        let shape = vec![row_dim, Dim::N(width)];
        let out = g.value(name, shape.clone(), Role::Temp);
        let act = act.map(|kind| (kind, g.value(format!("{name}.gelu"), shape, Role::Temp)));
        g.nodes.push(
            Linear {
                inp,
                rows,
                parts,
                out,
                act,
            }
            .into(),
        );
        act.map_or(out, |(_, act)| act)
    }
}

/// Where a part's columns lie.
pub(crate) struct Columns {
    pub start: usize,
    pub len: usize,
}

/// Columns of each part in the output.
pub(crate) fn columns(graph: &Graph, parts: &[Part]) -> Vec<Columns> {
    let mut start = 0;
    parts
        .iter()
        .map(|p| {
            let shape = &graph.get(p.weight).shape;
            let len = match shape[shape.len() - 2] {
                Dim::N(n) => n,
                _ => 0,
            };
            start += len;
            Columns {
                start: start - len,
                len,
            }
        })
        .collect()
}

impl Node for Linear {
    fn reads(&self) -> Vec<ValueId> {
        let mut ids = vec![self.inp];
        for p in &self.parts {
            ids.push(p.weight);
            ids.extend(p.bias);
            ids.extend(p.lora.iter().flat_map(|l| [l.lora_a, l.lora_b]));
        }
        ids
    }

    fn writes(&self) -> Vec<ValueId> {
        let mut ids = vec![self.out];
        ids.extend(self.act.map(|(_, act)| act));
        ids.extend(self.parts.iter().filter_map(|p| p.lora.map(|l| l.u)));
        ids
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let dout = match self.act {
            Some((kind, act)) => {
                let Some(dout) = bw.grad_of(act) else { return };
                let dinp = bw.like(self.out);
                bw.push(super::gelu::GeluGrad {
                    kind,
                    inp: self.out,
                    dout,
                    dinp,
                });
                dinp
            }
            None => match bw.grad_of(self.out) {
                Some(dout) => dout,
                None => return,
            },
        };
        let mut branch = |lora: &Lora| BranchGrad {
            v: bw.like(lora.u),
            dlora_a: bw.param_grad(lora.lora_a),
            dlora_b: bw.param_grad(lora.lora_b),
        };
        let branches: Vec<Option<BranchGrad>> = self
            .parts
            .iter()
            .map(|p| p.lora.as_ref().map(&mut branch))
            .collect();
        if branches.iter().any(Option::is_some) {
            let (inp, rows, parts) = (self.inp, self.rows, self.parts.clone());
            bw.push(LoraGrad {
                inp,
                rows,
                parts,
                dout,
                branches: branches.clone(),
            });
        }
        for (i, p) in self.parts.iter().enumerate() {
            let (dweight, dbias) = (
                bw.param_grad(p.weight),
                p.bias.and_then(|b| bw.param_grad(b)),
            );
            if dweight.is_some() || dbias.is_some() {
                let (inp, rows, parts) = (self.inp, self.rows, self.parts.clone());
                bw.push(WeightGrad {
                    inp,
                    rows,
                    parts,
                    part: i,
                    dout,
                    dweight,
                    dbias,
                });
            }
        }
        if bw.needs(self.inp) {
            let resid = bw.grad_of(self.inp);
            let dinp = bw.like(self.inp);
            let (rows, parts) = (self.rows, self.parts.clone());
            let branches = branches.iter().map(|b| b.map(|b| b.v)).collect();
            bw.push(InputGrad {
                dout,
                rows,
                parts,
                branches,
                resid,
                dinp,
            });
            bw.set(self.inp, dinp);
        }
    }

    fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
        let (rows, k) = (graph.rows(self.out, bucket), graph.channels(self.inp));
        let cols = columns(graph, &self.parts);
        let part = |(p, at): (&Part, &Columns)| {
            let rank = p.lora.map_or(0, |l| graph.channels(l.lora_b));
            product_flops(rows, at.len, k) + product_flops(rows, rank, k + at.len)
        };
        self.parts.iter().zip(&cols).map(part).sum()
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let x = mem.get(self.inp);
        let k = mem.channels(self.inp);
        let rows = mem.batch.rows(self.rows);
        let cols = columns(mem.graph, &self.parts);
        let width = mem.channels(self.out);
        let mut out = vec![F::zero(); rows * width];
        for (p, at) in self.parts.iter().zip(&cols) {
            let weight = mem.get(p.weight);
            let bias = p.bias.map(|b| mem.get(b));
            for t in 0..rows {
                let g = mem.batch.member_of(self.rows, t);
                let w = member_slice(&weight, mem.per_member(p.weight), g, at.len * k);
                for o in 0..at.len {
                    let mut sum = (0..k).map(|i| x[t * k + i] * w[o * k + i]).sum::<F>();
                    if let (Some(b), Some(id)) = (&bias, p.bias) {
                        sum += member_slice(b, mem.per_member(id), g, at.len)[o];
                    }
                    out[t * width + at.start + o] = sum;
                }
            }
            if let Some(l) = &p.lora {
                let (a, b) = (mem.get(l.lora_a), mem.get(l.lora_b));
                let r = mem.channels(l.lora_b);
                let mut u = vec![F::zero(); rows * r];
                let x = dropped::reference(mem, &x, k, l.dropout);
                for t in 0..rows {
                    let g = mem.batch.member_of(self.rows, t);
                    let (a, b) = (&a[g * r * k..][..r * k], &b[g * at.len * r..][..at.len * r]);
                    for i in 0..r {
                        u[t * r + i] = (0..k).map(|j| x[t * k + j] * a[i * k + j]).sum();
                    }
                    for o in 0..at.len {
                        let term = (0..r).map(|i| u[t * r + i] * b[o * r + i]).sum::<F>();
                        out[t * width + at.start + o] += F::of(l.scale.into()) * term;
                    }
                }
                mem.set(l.u, u);
            }
        }
        if let Some((kind, act)) = self.act {
            mem.set(act, out.iter().map(|x| kind.reference(*x).0).collect());
        }
        mem.set(self.out, out);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let (k, width) = (mem.channels(self.inp), mem.channels(self.out));
        let batch = mem.batch;
        let cols = columns(mem.graph, &self.parts);
        let (kind, act_id) = self.act.unzip();
        for (p, at) in self.parts.iter().zip(&cols) {
            let branch = p.lora.map(|l| forward_branch(mem, self, &l, at.len));
            let per_weight = mem.per_member(p.weight);
            let per_bias = p.bias.is_some_and(|b| mem.per_member(b));
            let u_id = p.lora.map(|l| l.u);
            let reads = [Some(self.inp), Some(p.weight), p.bias, u_id];
            let (r, mut w) = mem.bind(&reads, &[Some(self.out), act_id]);
            let (inp, weight, bias, u) = (r[0], r[1], r[2], r[3]);
            let [out, act] = &mut w[..] else { return };
            for (rows, g) in row_groups(batch, self.rows, per_weight) {
                if rows.is_empty() {
                    continue;
                }
                let weight = member_slice(weight, per_weight, g, at.len * k);
                let a = Mat::rows(&inp[rows.start * k..], k);
                let segment = [Segment {
                    a,
                    b: Mat::rows(weight, k).t(),
                    k,
                }];
                let first = rows.start * width + at.start;
                let dest = Dest {
                    data: &mut out[first..],
                    ld: width,
                };
                let second = kind.map(|_| Dest {
                    data: &mut act[first..],
                    ld: width,
                });
                gemm(
                    dest,
                    second,
                    (rows.len(), at.len),
                    &segment,
                    Start::Zero,
                    #[inline(always)]
                    |row, col, run, act| {
                        let row = rows.start + row;
                        let g = match per_bias || branch.is_some() {
                            true => batch.member_of(self.rows, row),
                            false => 0,
                        };
                        if !bias.is_empty() {
                            let b = &member_slice(bias, per_bias, g, at.len)[col..][..run.len()];
                            run.iter_mut().zip(b).for_each(|(x, b)| *x += b);
                        }
                        if let Some(b) = &branch {
                            b.add(run, u, (row, col), g);
                        }
                        if let Some(kind) = kind {
                            kind.apply(act, run);
                        }
                    },
                );
            }
        }
    }
}

/// The rows that share a weight: all of them, or one member's.
pub(crate) fn row_groups(
    batch: &Batch,
    rows: Rows,
    per_member: bool,
) -> Vec<(std::ops::Range<usize>, usize)> {
    if per_member {
        (0..batch.members.len())
            .map(|g| (batch.member_rows(rows, g), g))
            .collect()
    } else {
        vec![(0..batch.rows(rows), 0)]
    }
}

/// What a branch adds to each row: `sum over r of coefficient[row, r] * table[g, r, :]`.
pub(crate) struct Branch {
    table: Vec<f32>,
    rank: usize,
    width: usize,
    scale: f32,
}

impl Branch {
    /// Adds the branch to a run of columns of a row.
    #[inline(always)]
    pub(crate) fn add(&self, run: &mut [f32], coeff: &[f32], (row, col): (usize, usize), g: usize) {
        for (i, c) in coeff[row * self.rank..][..self.rank].iter().enumerate() {
            let line = &self.table[(g * self.rank + i) * self.width + col..][..run.len()];
            super::fast::axpy(run, c * self.scale, line);
        }
    }

    /// A table (G, R, width) as it lies in memory.
    pub(crate) fn direct(table: &[f32], rank: usize, width: usize) -> Branch {
        Branch {
            table: table.to_vec(),
            rank,
            width,
            scale: 1.0,
        }
    }

    /// The transpose of (G, width, R).
    pub(crate) fn transposed(table: &[f32], rank: usize, width: usize, scale: f32) -> Branch {
        let mut out = vec![0f32; table.len()];
        for (src, dst) in table.chunks(rank * width).zip(out.chunks_mut(rank * width)) {
            for o in 0..width {
                for i in 0..rank {
                    dst[i * width + o] = src[o * rank + i];
                }
            }
        }
        Branch {
            table: out,
            rank,
            width,
            scale,
        }
    }
}

/// `out (rows, R) = scale inp table`, row by row; `table` is (width, R).
pub(crate) fn project(
    out: &mut [f32],
    (inp, ld): (&[f32], usize),
    table: Mat<'_>,
    (rows, rank, width): (usize, usize, usize),
    scale: f32,
) {
    let segment = Segment {
        a: Mat::rows(inp, ld),
        b: table,
        k: width,
    };
    let dest = Dest {
        data: out,
        ld: rank,
    };
    gemm(
        dest,
        None,
        (rows, rank),
        &[segment],
        Start::Zero,
        #[inline(always)]
        |_, _, run, _| run.iter_mut().for_each(|x| *x *= scale),
    );
}

/// Computes `u = drop(inp) A^T` and returns what the branch adds.
fn forward_branch(mem: &mut CpuMem<'_>, op: &Linear, lora: &Lora, width: usize) -> Branch {
    let k = mem.channels(op.inp);
    let rank = mem.channels(lora.lora_b);
    let (batch, steps) = (mem.batch, mem.steps);
    let (r, mut w) = mem.bind(
        &[Some(op.inp), Some(lora.lora_a), Some(lora.lora_b)],
        &[Some(lora.u)],
    );
    let (inp, lora_a) = (r[0], r[1]);
    for (rows, g) in row_groups(batch, op.rows, true) {
        let table = Mat::rows(&lora_a[g * rank * k..], k).t();
        dropped::chunks((inp, k), rows, (batch, steps), lora.dropout, |rows, x| {
            let u = &mut w[0][rows.start * rank..];
            project(u, (x, k), table, (rows.len(), rank, k), 1.0);
        });
    }
    Branch::transposed(r[2], rank, width, lora.scale)
}
