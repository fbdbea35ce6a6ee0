//! Gradients of [`super::Linear`]: of its input, of its weights, of its low-rank branches.

use std::ops::Range;

use rayon::prelude::*;

use super::{Branch, Columns, Lora, Part, columns, dropped, project, row_groups};
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::{Bucket, Graph, ValueId};
use crate::ops::fast::{axpy, vector};
use crate::ops::gemm::{Dest, Mat, RUN, Segment, Start, gemm};
use crate::ops::layer_norm::token_key;
use crate::ops::philox::Dropout;
use crate::ops::real::Real;
use crate::ops::{Node, member_slice, product_flops};
use crate::text::pack::Rows;

/// Columns of a task over a sum of rows.
const COLUMNS: usize = 128;

/// `dinp = resid + sum over parts of dout_p W_p + drop(v_p A_p)`, with the forward's masks.
#[derive(Clone, Debug)]
pub struct InputGrad {
    /// (rows, sum of OC)
    pub dout: ValueId,
    /// What the rows are.
    pub rows: Rows,
    /// The layers of the forward.
    pub parts: Vec<Part>,
    /// (rows, R) of each part, as [`LoraGrad`] left it.
    pub branches: Vec<Option<ValueId>>,
    /// (rows, K) what other consumers of the input left.
    pub resid: Option<ValueId>,
    /// (rows, K) `=`
    pub dinp: ValueId,
}

impl Node for InputGrad {
    fn reads(&self) -> Vec<ValueId> {
        let mut ids = vec![self.dout];
        ids.extend(self.parts.iter().map(|p| p.weight));
        ids.extend(self.parts.iter().filter_map(|p| p.lora.map(|l| l.lora_a)));
        ids.extend(self.branches.iter().flatten());
        ids.extend(self.resid);
        ids
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.dinp]
    }

    fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
        let (rows, k) = (graph.rows(self.dinp, bucket), graph.channels(self.dinp));
        let branches = self.branches.iter().flatten();
        let terms = graph.channels(self.dout) + branches.map(|v| graph.channels(*v)).sum::<usize>();
        product_flops(rows, k, terms)
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let k = mem.channels(self.dinp);
        let (dout, width) = (mem.get(self.dout), mem.channels(self.dout));
        let rows = mem.batch.rows(self.rows);
        let mut dinp = self
            .resid
            .map_or(vec![F::zero(); rows * k], |id| mem.get(id));
        dinp.truncate(rows * k);
        let cols = columns(mem.graph, &self.parts);
        for ((p, at), branch) in self.parts.iter().zip(&cols).zip(&self.branches) {
            let weight = mem.get(p.weight);
            for t in 0..rows {
                let g = mem.batch.member_of(self.rows, t);
                let w = member_slice(&weight, mem.per_member(p.weight), g, at.len * k);
                for o in 0..at.len {
                    let d = dout[t * width + at.start + o];
                    for i in 0..k {
                        dinp[t * k + i] += d * w[o * k + i];
                    }
                }
            }
            if let (Some(v), Some(lora)) = (branch, &p.lora) {
                let (v, a) = (mem.get(*v), mem.get(lora.lora_a));
                let r = mem.channels(lora.lora_b);
                let mut term = vec![F::zero(); rows * k];
                for t in 0..rows {
                    let a = &a[mem.batch.member_of(self.rows, t) * r * k..];
                    for i in 0..r {
                        for j in 0..k {
                            term[t * k + j] += v[t * r + i] * a[i * k + j];
                        }
                    }
                }
                let term = dropped::reference(mem, &term, k, lora.dropout);
                dinp.iter_mut().zip(term).for_each(|(d, t)| *d += t);
            }
        }
        mem.set(self.dinp, dinp);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let (k, width) = (mem.channels(self.dinp), mem.channels(self.dout));
        let (batch, steps) = (mem.batch, mem.steps);
        let n = self.parts.len();
        let cols = columns(mem.graph, &self.parts);
        let per_member = self.parts.iter().any(|p| mem.per_member(p.weight));
        let per: Vec<bool> = self
            .parts
            .iter()
            .map(|p| mem.per_member(p.weight))
            .collect();
        let ranks: Vec<usize> = self
            .parts
            .iter()
            .map(|p| p.lora.map_or(0, |l| mem.channels(l.lora_b)))
            .collect();
        let mut reads = vec![Some(self.dout), self.resid];
        reads.extend(self.parts.iter().map(|p| Some(p.weight)));
        reads.extend(self.parts.iter().map(|p| p.lora.map(|l| l.lora_a)));
        reads.extend(&self.branches);
        let (r, mut w) = mem.bind(&reads, &[Some(self.dinp)]);
        let (dout, resid) = (r[0], r[1]);
        let (weights, rest) = r[2..].split_at(n);
        let (tables, coeffs) = rest.split_at(n);
        let drops = self.parts.iter().map(|p| p.lora.and_then(|l| l.dropout));
        let branches: Vec<(Branch, &[f32], Option<Dropout>)> = (0..n)
            .zip(drops)
            .filter(|(i, _)| ranks[*i] > 0)
            .map(|(i, drop)| (Branch::direct(tables[i], ranks[i], k), coeffs[i], drop))
            .collect();
        for (rows, g) in row_groups(batch, self.rows, per_member) {
            if rows.is_empty() {
                continue;
            }
            let segments: Vec<Segment<'_>> = (0..n)
                .map(|i| {
                    let a = Mat::rows(&dout[rows.start * width + cols[i].start..], width);
                    let weight = member_slice(weights[i], per[i], g, cols[i].len * k);
                    Segment {
                        a,
                        b: Mat::rows(weight, k),
                        k: cols[i].len,
                    }
                })
                .collect();
            let dest = Dest {
                data: &mut w[0][rows.start * k..],
                ld: k,
            };
            gemm(
                dest,
                None,
                (rows.len(), k),
                &segments,
                Start::Zero,
                #[inline(always)]
                |row, col, run, _| {
                    let row = rows.start + row;
                    if !branches.is_empty() {
                        let g = batch.member_of(self.rows, row);
                        for (b, coeff, drop) in &branches {
                            let Some(drop) = drop else {
                                b.add(run, coeff, (row, col), g);
                                continue;
                            };
                            let mut term = [0f32; RUN];
                            let term = &mut term[..run.len()];
                            b.add(term, coeff, (row, col), g);
                            drop.apply_from(&token_key(batch, steps, drop.site, row), col, term);
                            axpy(run, 1.0, term);
                        }
                    }
                    if !resid.is_empty() {
                        axpy(run, 1.0, &resid[row * k + col..][..run.len()]);
                    }
                },
            );
        }
    }
}

/// `dW (OC, K) += dout_p^T inp`, `db += column sums of dout_p`, for one part.
#[derive(Clone, Debug)]
pub struct WeightGrad {
    /// (rows, K)
    pub inp: ValueId,
    /// What the rows are.
    pub rows: Rows,
    /// The layers of the forward.
    pub parts: Vec<Part>,
    /// The one this is for.
    pub part: usize,
    /// (rows, sum of OC)
    pub dout: ValueId,
    /// (G, OC, K) `+=`
    pub dweight: Option<ValueId>,
    /// (G, OC) `+=`
    pub dbias: Option<ValueId>,
}

impl Node for WeightGrad {
    fn reads(&self) -> Vec<ValueId> {
        // A bias alone does not need the input, which may have died.
        let inp = self.dweight.map(|_| self.inp);
        inp.into_iter().chain([self.dout]).collect()
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![]
    }

    fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
        let (rows, k) = (graph.rows(self.dout, bucket), graph.channels(self.inp));
        let len = columns(graph, &self.parts)[self.part].len;
        self.dweight.map_or(0.0, |_| product_flops(rows, len, k))
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (x, k) = (mem.get(self.inp), mem.channels(self.inp));
        let (dout, width) = (mem.get(self.dout), mem.channels(self.dout));
        let Columns { start, len } = columns(mem.graph, &self.parts).swap_remove(self.part);
        let members = mem.batch.members.len();
        let mut dw = vec![F::zero(); members * len * k];
        let mut db = vec![F::zero(); members * len];
        for t in 0..mem.batch.rows(self.rows) {
            let g = mem.batch.member_of(self.rows, t);
            for o in 0..len {
                let d = dout[t * width + start + o];
                db[g * len + o] += d;
                for i in 0..k {
                    dw[(g * len + o) * k + i] += d * x[t * k + i];
                }
            }
        }
        if let Some(id) = self.dweight {
            mem.accumulate(id, &dw);
        }
        if let Some(id) = self.dbias {
            mem.accumulate(id, &db);
        }
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let (k, width) = (mem.channels(self.inp), mem.channels(self.dout));
        let batch = mem.batch;
        let Columns { start, len } = columns(mem.graph, &self.parts).swap_remove(self.part);
        let inp = self.dweight.map(|_| self.inp);
        let (r, mut w) = mem.bind(&[inp, Some(self.dout)], &[self.dweight, self.dbias]);
        let (inp, dout) = (r[0], r[1]);
        let [dweight, dbias] = &mut w[..] else { return };
        for (rows, g) in row_groups(batch, self.rows, true) {
            if rows.is_empty() {
                continue;
            }
            if self.dweight.is_some() {
                let a = Mat::rows(&dout[rows.start * width + start..], width).t();
                let b = Mat::rows(&inp[rows.start * k..], k);
                let segment = [Segment {
                    a,
                    b,
                    k: rows.len(),
                }];
                let dest = Dest {
                    data: &mut dweight[g * len * k..],
                    ld: k,
                };
                gemm(
                    dest,
                    None,
                    (len, k),
                    &segment,
                    Start::Accumulate,
                    |_, _, _, _| {},
                );
            }
            if self.dbias.is_some() {
                let sums = &mut dbias[g * len..][..len];
                column_sums(sums, &dout[start..], width, rows);
            }
        }
    }
}

/// `sums += column sums of rows` of `width` elements, in row order.
pub(crate) fn column_sums(sums: &mut [f32], data: &[f32], width: usize, rows: Range<usize>) {
    sums.par_chunks_mut(COLUMNS)
        .enumerate()
        .for_each(|(i, sum)| {
            vector(
                #[inline(always)]
                || {
                    for t in rows.clone() {
                        axpy(sum, 1.0, &data[t * width + i * COLUMNS..][..sum.len()]);
                    }
                },
            );
        });
}

/// `v = scale dout_p B`, `dA += v^T drop(inp)`, `dB += scale dout_p^T u`, for each part with a branch.
#[derive(Clone, Debug)]
pub struct LoraGrad {
    /// (rows, K)
    pub inp: ValueId,
    /// What the rows are.
    pub rows: Rows,
    /// The layers of the forward.
    pub parts: Vec<Part>,
    /// (rows, sum of OC)
    pub dout: ValueId,
    /// One a part; present where the part has a branch.
    pub branches: Vec<Option<BranchGrad>>,
}

/// What [`LoraGrad`] gives for a branch.
#[derive(Clone, Copy, Debug)]
pub struct BranchGrad {
    /// (rows, R) `=`, for [`InputGrad`].
    pub v: ValueId,
    /// (G, R, K) `+=`
    pub dlora_a: Option<ValueId>,
    /// (G, OC, R) `+=`
    pub dlora_b: Option<ValueId>,
}

impl LoraGrad {
    /// The branches: where their parts' columns lie, what they are, what they give.
    fn each(&self, graph: &Graph) -> Vec<(Columns, Lora, BranchGrad)> {
        columns(graph, &self.parts)
            .into_iter()
            .zip(self.parts.iter().zip(&self.branches))
            .filter_map(|(at, (p, grad))| Some((at, p.lora?, (*grad)?)))
            .collect()
    }
}

impl Node for LoraGrad {
    fn reads(&self) -> Vec<ValueId> {
        let loras = self.parts.iter().filter_map(|p| p.lora);
        let mut ids = vec![self.inp, self.dout];
        ids.extend(loras.flat_map(|l| [l.u, l.lora_b]));
        ids
    }

    fn writes(&self) -> Vec<ValueId> {
        self.branches.iter().flatten().map(|b| b.v).collect()
    }

    fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
        let (rows, k) = (graph.rows(self.dout, bucket), graph.channels(self.inp));
        let branch = |(at, _, grad): &(Columns, Lora, BranchGrad)| {
            let rank = graph.channels(grad.v);
            let v = product_flops(rows, rank, at.len);
            let da = grad.dlora_a.map_or(0.0, |_| product_flops(rows, rank, k));
            let db = grad.dlora_b.map_or(0.0, |_| v);
            v + da + db
        };
        self.each(graph).iter().map(branch).sum()
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        for (at, lora, grad) in self.each(mem.graph) {
            branch_reference(self, mem, &at, &lora, &grad);
        }
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        for (at, lora, grad) in self.each(mem.graph) {
            branch_cpu(self, mem, &at, &lora, &grad);
        }
    }
}

fn branch_reference<F: Real>(
    op: &LoraGrad,
    mem: &mut RefMem<'_, F>,
    &Columns { start, len }: &Columns,
    lora: &Lora,
    grad: &BranchGrad,
) {
    let (x, k) = (mem.get(op.inp), mem.channels(op.inp));
    let (dout, width) = (mem.get(op.dout), mem.channels(op.dout));
    let (u, b) = (mem.get(lora.u), mem.get(lora.lora_b));
    let r = mem.channels(lora.lora_b);
    let (rows, members) = (mem.batch.rows(op.rows), mem.batch.members.len());
    let x = dropped::reference(mem, &x, k, lora.dropout);
    let scale = F::of(lora.scale.into());
    let mut v = vec![F::zero(); rows * r];
    let (mut da, mut db) = (
        vec![F::zero(); members * r * k],
        vec![F::zero(); members * len * r],
    );
    for t in 0..rows {
        let g = mem.batch.member_of(op.rows, t);
        for i in 0..r {
            for o in 0..len {
                let d = dout[t * width + start + o] * scale;
                v[t * r + i] += d * b[(g * len + o) * r + i];
                db[(g * len + o) * r + i] += d * u[t * r + i];
            }
            for j in 0..k {
                da[(g * r + i) * k + j] += v[t * r + i] * x[t * k + j];
            }
        }
    }
    mem.set(grad.v, v);
    if let Some(id) = grad.dlora_a {
        mem.accumulate(id, &da);
    }
    if let Some(id) = grad.dlora_b {
        mem.accumulate(id, &db);
    }
}

fn branch_cpu(
    op: &LoraGrad,
    mem: &mut CpuMem<'_>,
    &Columns { start, len }: &Columns,
    lora: &Lora,
    grad: &BranchGrad,
) {
    let (k, width) = (mem.channels(op.inp), mem.channels(op.dout));
    let (batch, steps) = (mem.batch, mem.steps);
    let rank = mem.channels(lora.lora_b);
    let reads = [op.inp, op.dout, lora.u, lora.lora_b].map(Some);
    let (r, mut w) = mem.bind(&reads, &[Some(grad.v), grad.dlora_a, grad.dlora_b]);
    let (inp, dout, u) = (r[0], r[1], r[2]);
    let [v, da, db] = &mut w[..] else { return };
    let mut sums = vec![0f32; if db.is_empty() { 0 } else { rank * len }];
    for (rows, g) in row_groups(batch, op.rows, true) {
        if rows.is_empty() {
            continue;
        }
        let table = Mat::rows(&r[3][g * len * rank..], rank);
        project(
            &mut v[rows.start * rank..],
            (&dout[rows.start * width + start..], width),
            table,
            (rows.len(), rank, len),
            lora.scale,
        );
        if !da.is_empty() {
            let dest = &mut da[g * rank * k..][..rank * k];
            let drop = lora.dropout;
            dropped::chunks((inp, k), rows.clone(), (batch, steps), drop, |rows, x| {
                let x = Mat::rows(x, k);
                row_sums(dest, (v, rank), x, (rows, k), Start::Accumulate);
            });
        }
        if !db.is_empty() {
            let x = Mat::rows(&dout[rows.start * width + start..], width);
            row_sums(&mut sums, (u, rank), x, (rows, len), Start::Zero);
            let dest = &mut db[g * rank * len..][..rank * len];
            for (i, line) in sums.chunks_exact(len).enumerate() {
                for (d, s) in dest[i..].iter_mut().step_by(rank).zip(line) {
                    *d += lora.scale * s;
                }
            }
        }
    }
}

/// `sums (R, width) (+)= coeff^T x` over a member's rows, in row order.
fn row_sums(
    sums: &mut [f32],
    (coeff, rank): (&[f32], usize),
    x: Mat<'_>,
    (rows, width): (Range<usize>, usize),
    start: Start,
) {
    let segment = Segment {
        a: Mat::rows(&coeff[rows.start * rank..], rank).t(),
        b: x,
        k: rows.len(),
    };
    let dest = Dest {
        data: sums,
        ld: width,
    };
    gemm(
        dest,
        None,
        (rank, width),
        &[segment],
        start,
        |_, _, _, _| {},
    );
}
