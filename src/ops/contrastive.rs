//! CLIP's symmetric contrastive loss, per member (Radford et al., 2021).
//!
//! On unit rows `itc(a, b) = (CE(100 a b^T) + CE(100 b a^T)) / 2` with the diagonal as target. Logits
//! are made in blocks of rows and dropped; only the log-sum-exp of each row and column is kept, and
//! what rounding took from it: near 100 an f32 is good to 4e-6, of which a trained pair's
//! `1 - exp(l - lse)` of 1e-5 would be made.

use rayon::prelude::*;

use super::Node;
use super::fast::{exp, sum_map, vector};
use super::gemm::{Dest, Mat, Segment, Start, gemm};
use super::real::Real;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::exec::{LossWeights, MemberStep};
use crate::graph::backward::Backward;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::text::pack::MemberRows;

/// The fixed logit scale of CLIP's trained temperature.
pub const LOGIT_SCALE: f32 = 100.0;

/// Rows of a block of logits.
const BLOCK: usize = 64;

/// Which rows meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Images and anchors.
    ImageAnchor,
    /// Partners and anchors.
    PartnerAnchor,
    /// Images and partners.
    ImagePartner,
}

impl Pair {
    /// First rows of `a` and `b` and their number; 0 where a member has no partners.
    fn rows(self, m: &MemberRows) -> (usize, usize, usize) {
        let (anchor, partner, image) = (m.seqs.start, m.partners().start, m.items.start);
        match self {
            Pair::ImageAnchor => (image, anchor, m.items.len()),
            Pair::PartnerAnchor => (partner, anchor, m.partners().len()),
            Pair::ImagePartner => (image, partner, m.partners().len()),
        }
    }

    pub(crate) fn weight(self, w: &LossWeights) -> f32 {
        match self {
            Pair::ImageAnchor => w.image_anchor,
            Pair::PartnerAnchor => w.partner_anchor,
            Pair::ImagePartner => w.image_partner,
        }
    }

    /// Whether `a` is a text, and whether `a` and `b` take a gradient.
    pub(crate) fn flow(self, w: &LossWeights) -> (bool, bool, bool) {
        match self {
            Pair::ImageAnchor => (false, false, true),
            Pair::PartnerAnchor => (true, !w.stop_partner, true),
            Pair::ImagePartner => (false, false, !w.stop_partner),
        }
    }
}

/// The forward op. A member whose weight for it is 0 is not computed and reports 0.
#[derive(Clone, Debug)]
pub struct Contrastive {
    /// Which rows meet.
    pub pair: Pair,
    /// (N, E) unit rows.
    pub image: ValueId,
    /// (S, E) unit rows.
    pub text: ValueId,
    /// (G, 1)
    pub loss: ValueId,
    /// (N, 2) log-sum-exp of each row and of each column.
    pub lse: ValueId,
    /// (N, 2) What rounding took from it.
    pub low: ValueId,
}

impl Contrastive {
    /// Adds the op; returns its loss.
    pub fn push(g: &mut Graph, name: &str, pair: Pair, image: ValueId, text: ValueId) -> ValueId {
        let loss = g.value(name, vec![Dim::Members, Dim::N(1)], Role::Output);
        let pairs = || vec![Dim::Items, Dim::N(2)];
        let lse = g.value(format!("{name}.lse"), pairs(), Role::Temp);
        let low = g.value(format!("{name}.low"), pairs(), Role::Temp);
        g.nodes.push(
            Contrastive {
                pair,
                image,
                text,
                loss,
                lse,
                low,
            }
            .into(),
        );
        loss
    }
}

impl Node for Contrastive {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.image, self.text]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.loss, self.lse, self.low]
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn grad(&self, bw: &mut Backward<'_>) {
        let dtext = bw.like(self.text);
        bw.push(ContrastiveGrad {
            pair: self.pair,
            image: self.image,
            text: self.text,
            lse: self.lse,
            low: self.low,
            dtext,
        });
        bw.contribute(self.text, dtext);
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (image, text, e) = (
            mem.get(self.image),
            mem.get(self.text),
            mem.channels(self.text),
        );
        let mut losses = vec![F::zero(); mem.batch.members.len()];
        let mut lse = vec![F::zero(); mem.batch.items() * 2];
        let mut low = lse.clone();
        for (g, (m, step)) in mem.batch.members.iter().zip(mem.steps).enumerate() {
            let (a0, b0, n) = self.pair.rows(m);
            if self.pair.weight(&step.weights) == 0.0 || n == 0 {
                continue;
            }
            let a = if self.pair.flow(&step.weights).0 {
                &text
            } else {
                &image
            };
            let logits = reference_logits((&a[a0 * e..], &text[b0 * e..]), n, e);
            let at = |i: usize, j: usize| logits[i * n + j];
            let log_sum = |v: Vec<F>| {
                let max = v.iter().copied().fold(F::neg_infinity(), F::max);
                rounded_sum(max, v.iter().map(|x| (*x - max).exp()).sum::<F>().ln())
            };
            for i in 0..n {
                let row = log_sum((0..n).map(|j| at(i, j)).collect());
                let col = log_sum((0..n).map(|j| at(j, i)).collect());
                for (side, (sum, rest)) in [row, col].into_iter().enumerate() {
                    lse[(m.items.start + i) * 2 + side] = sum;
                    low[(m.items.start + i) * 2 + side] = rest;
                    losses[g] += ((sum - at(i, i)) + rest) / F::of(2.0 * n as f64);
                }
            }
        }
        mem.set(self.loss, losses);
        mem.set(self.lse, lse);
        mem.set(self.low, low);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let e = mem.channels(self.text);
        let (batch, steps) = (mem.batch, mem.steps);
        let reads = [Some(self.image), Some(self.text)];
        let writes = [Some(self.loss), Some(self.lse), Some(self.low)];
        let (r, mut w) = mem.bind(&reads, &writes);
        let [loss, lse, low] = &mut w[..] else { return };
        let mut rest = (&mut lse[..], &mut low[..]);
        let mut work = Vec::new();
        for ((m, step), loss) in batch.members.iter().zip(steps).zip(loss.iter_mut()) {
            let (lse, lses) = rest.0.split_at_mut(m.items.len() * 2);
            let (low, lows) = rest.1.split_at_mut(m.items.len() * 2);
            rest = (lses, lows);
            work.push((m, step, loss, (lse, low)));
        }
        work.into_par_iter()
            .for_each(|(m, step, loss, (lse, low))| {
                *loss = match operands(self.pair, m, step, (r[0], r[1]), e) {
                    Some((a, b, n)) => forward((lse, low), a, b, n, e),
                    None => {
                        lse.fill(0.0);
                        low.fill(0.0);
                        0.0
                    }
                };
            });
    }
}

/// `a` and `b` of a member, (n, E) each; none where its weight is 0 or it has no such rows.
fn operands<'a>(
    pair: Pair,
    m: &MemberRows,
    step: &MemberStep,
    (image, text): (&'a [f32], &'a [f32]),
    e: usize,
) -> Option<(&'a [f32], &'a [f32], usize)> {
    let (a0, b0, n) = pair.rows(m);
    let a = if pair.flow(&step.weights).0 {
        text
    } else {
        image
    };
    let used = pair.weight(&step.weights) != 0.0 && n > 0;
    used.then(|| (&a[a0 * e..][..n * e], &text[b0 * e..][..n * e], n))
}

/// `a + b` as rounded, and what rounding took from it (Knuth's two-sum).
#[inline(always)]
fn rounded_sum<F: Real>(a: F, b: F) -> (F, F) {
    let sum = a + b;
    let back = sum - a;
    (sum, (a - (sum - back)) + (b - back))
}

fn reference_logits<F: Real>((a, b): (&[F], &[F]), n: usize, e: usize) -> Vec<F> {
    let scale = F::of(LOGIT_SCALE.into());
    (0..n * n)
        .map(|ij| {
            let (i, j) = (ij / n, ij % n);
            (0..e).map(|k| a[i * e + k] * b[j * e + k]).sum::<F>() * scale
        })
        .collect()
}

/// Logits of rows `i0 .. i0 + rows` against all columns.
fn block_logits(
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    (i0, rows, n, e): (usize, usize, usize, usize),
) {
    let seg = Segment {
        a: Mat::rows(&a[i0 * e..], e),
        b: Mat::rows(b, e).t(),
        k: e,
    };
    let dest = Dest { data: out, ld: n };
    gemm(
        dest,
        None,
        (rows, n),
        &[seg],
        Start::Zero,
        #[inline(always)]
        |_, _, run, _| {
            run.iter_mut().for_each(|x| *x *= LOGIT_SCALE);
        },
    );
}

fn forward((lse, low): (&mut [f32], &mut [f32]), a: &[f32], b: &[f32], n: usize, e: usize) -> f32 {
    let mut logits = vec![0f32; BLOCK.min(n) * n];
    // Running maximum and sum of each column.
    let mut max = vec![f32::NEG_INFINITY; n];
    let mut sum = vec![0f32; n];
    let mut diagonal = vec![0f32; n];
    for i0 in (0..n).step_by(BLOCK) {
        let rows = BLOCK.min(n - i0);
        block_logits(&mut logits, a, b, (i0, rows, n, e));
        for (i, row) in logits.chunks_exact(n).take(rows).enumerate() {
            vector(
                #[inline(always)]
                || {
                    let top = row
                        .iter()
                        .fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
                    let own = 2 * (i0 + i);
                    let sum_of_row = sum_map(row, |x| exp(x - top));
                    (lse[own], low[own]) = rounded_sum(top, sum_of_row.ln());
                    diagonal[i0 + i] = row[i0 + i];
                    for ((x, max), sum) in row.iter().zip(&mut max).zip(&mut sum) {
                        let new = if *x > *max { *x } else { *max };
                        *sum = *sum * exp(*max - new) + exp(*x - new);
                        *max = new;
                    }
                },
            );
        }
    }
    let mut loss = 0f64;
    for i in 0..n {
        (lse[2 * i + 1], low[2 * i + 1]) = rounded_sum(max[i], sum[i].ln());
        for side in [2 * i, 2 * i + 1] {
            loss += f64::from((lse[side] - diagonal[i]) + low[side]);
        }
    }
    (loss / (2.0 * n as f64)) as f32
}

/// `dlogits = w / (2n) (softmax over rows + softmax over columns - 2 I)`; `db = 100 dlogits^T a`,
/// `da = 100 dlogits b`.
#[derive(Clone, Debug)]
pub struct ContrastiveGrad {
    /// Which rows meet.
    pub pair: Pair,
    /// (N, E)
    pub image: ValueId,
    /// (S, E)
    pub text: ValueId,
    /// (N, 2) as the forward left it.
    pub lse: ValueId,
    /// (N, 2) as the forward left it.
    pub low: ValueId,
    /// (S, E) `=`
    pub dtext: ValueId,
}

impl Node for ContrastiveGrad {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.image, self.text, self.lse, self.low]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.dtext]
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (image, text, e) = (
            mem.get(self.image),
            mem.get(self.text),
            mem.channels(self.text),
        );
        let (lse, low) = (mem.get(self.lse), mem.get(self.low));
        let mut dtext = vec![F::zero(); mem.batch.seqs() * e];
        for (m, step) in mem.batch.members.iter().zip(mem.steps) {
            let (a0, b0, n) = self.pair.rows(m);
            let weight = self.pair.weight(&step.weights);
            if weight == 0.0 || n == 0 {
                continue;
            }
            let (a_is_text, da, db) = self.pair.flow(&step.weights);
            let a = if a_is_text { &text } else { &image };
            let logits = reference_logits((&a[a0 * e..], &text[b0 * e..]), n, e);
            let scale = f64::from(weight * step.loss_scale * LOGIT_SCALE) / (2.0 * n as f64);
            let share = |l: F, i: usize, side: usize| {
                let at = (m.items.start + i) * 2 + side;
                ((l - lse[at]) - low[at]).exp()
            };
            for i in 0..n {
                for j in 0..n {
                    let l = logits[i * n + j];
                    let target = F::of(if i == j { 1.0 } else { 0.0 });
                    let (row, col) = (share(l, i, 0) - target, share(l, j, 1) - target);
                    let d = F::of(scale) * (row + col);
                    for k in 0..e {
                        if db {
                            dtext[(b0 + j) * e + k] += d * a[(a0 + i) * e + k];
                        }
                        if da {
                            dtext[(a0 + i) * e + k] += d * text[(b0 + j) * e + k];
                        }
                    }
                }
            }
        }
        mem.set(self.dtext, dtext);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let e = mem.channels(self.text);
        let (batch, steps, pair) = (mem.batch, mem.steps, self.pair);
        let reads = self.reads();
        let reads: Vec<_> = reads.into_iter().map(Some).collect();
        let (r, mut w) = mem.bind(&reads, &[Some(self.dtext)]);
        let mut rest = &mut w[0][..batch.seqs() * e];
        let mut work = Vec::new();
        for (m, step) in batch.members.iter().zip(steps) {
            let (head, tail) = rest.split_at_mut(m.seqs.len() * e);
            rest = tail;
            work.push((m, step, head));
        }
        work.into_par_iter().for_each(|(m, step, dtext)| {
            dtext.fill(0.0);
            let Some((a, b, n)) = operands(pair, m, step, (r[0], r[1]), e) else {
                return;
            };
            let first = m.items.start * 2;
            let (lse, low) = (&r[2][first..], &r[3][first..]);
            let scale =
                pair.weight(&step.weights) * step.loss_scale * LOGIT_SCALE / (2.0 * n as f32);
            let (_, da, db) = pair.flow(&step.weights);
            let (a0, b0, _) = pair.rows(m);
            let mut d = vec![0f32; BLOCK.min(n) * n];
            for i0 in (0..n).step_by(BLOCK) {
                let rows = BLOCK.min(n - i0);
                block_logits(&mut d, a, b, (i0, rows, n, e));
                for (i, row) in d.chunks_exact_mut(n).take(rows).enumerate() {
                    dlogits(row, (lse, low), i0 + i, scale);
                }
                if db {
                    let seg = Segment {
                        a: Mat::rows(&d, n).t(),
                        b: Mat::rows(&a[i0 * e..], e),
                        k: rows,
                    };
                    let dest = Dest {
                        data: &mut dtext[(b0 - m.seqs.start) * e..],
                        ld: e,
                    };
                    gemm(
                        dest,
                        None,
                        (n, e),
                        &[seg],
                        Start::Accumulate,
                        |_, _, _, _| {},
                    );
                }
                if da {
                    let seg = Segment {
                        a: Mat::rows(&d, n),
                        b: Mat::rows(b, e),
                        k: n,
                    };
                    let first = (a0 - m.seqs.start + i0) * e;
                    let dest = Dest {
                        data: &mut dtext[first..],
                        ld: e,
                    };
                    gemm(
                        dest,
                        None,
                        (rows, e),
                        &[seg],
                        Start::Accumulate,
                        |_, _, _, _| {},
                    );
                }
            }
        });
    }
}

/// Turns a row of logits into its gradient.
fn dlogits(row: &mut [f32], (lse, low): (&[f32], &[f32]), i: usize, scale: f32) {
    let share = |x: f32, at: usize| exp((x - lse[at]) - low[at]);
    let (row_share, col_share) = (share(row[i], 2 * i), share(row[i], 2 * i + 1));
    let (own, own_low) = (lse[2 * i], low[2 * i]);
    vector(
        #[inline(always)]
        || {
            let cols = lse.chunks_exact(2).zip(low.chunks_exact(2));
            for (x, (col, col_low)) in row.iter_mut().zip(cols) {
                *x = scale * (exp((*x - own) - own_low) + exp((*x - col[1]) - col_low[1]));
            }
        },
    );
    // Each less its target first: their sum, near 2, has no digits left for what is left of it.
    row[i] = scale * ((row_share - 1.0) + (col_share - 1.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair that is learnt: logits of 89 and 78, so that loss and gradient are e^-11, where a
    /// log-sum-exp of 89 is good to 4e-6.
    #[test]
    fn a_learnt_pair_keeps_its_digits() {
        let (a, b) = ([1.0, 0.0, 0.0, 1.0], [0.89, 0.78, 0.78, 0.89]);
        let (mut lse, mut low) = ([0f32; 4], [0f32; 4]);
        let loss = forward((&mut lse, &mut low), &a, &b, 2, 2);
        let mut row = [89.0, 78.0];
        dlogits(&mut row, (&lse, &low), 0, 0.5);
        let want = (-11f64).exp().ln_1p();
        for (name, got) in [("loss", loss), ("own", -row[0]), ("other", row[1])] {
            let error = (f64::from(got) / want - 1.0).abs();
            assert!(error < 1e-2, "{name} is {got:e}, want {want:e}");
        }
    }
}
