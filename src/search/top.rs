//! The rows with the highest cosine to each query.
//!
//! Products in f32 choose: for few queries a dot product a row, else [`gemm_serial`] over blocks of
//! rows that stay in a cache. They choose `SPARE` rows more than are asked for; sums in f64 then
//! give the scores and the order. So neither the company of other queries nor the number of threads
//! changes a byte, as long as no more than `SPARE` rows beyond the last one lie within an f32's
//! rounding of it; rows that are equal always stand by their index.

use std::cmp::Ordering;
use std::ops::Range;

use rayon::prelude::*;

use super::mapped::{Mapped, block_rows};
use crate::bad_input;
use crate::data::feature_file::length;
use crate::error::Result;
use crate::ops::fast::{dot, vector};
use crate::ops::gemm::{Dest, Mat, RUN, Segment, Start, gemm_serial};

/// Rows kept beyond those asked for until f64 decides.
const SPARE: usize = 16;
/// From so many queries on a product is faster than dot products: it pads them to sixteen.
const MANY: usize = 8;
/// Bytes of rows of a block: for dot products they stay in the L1 cache, for a product in L2.
const FEW_BYTES: usize = 16 << 10;
const MANY_BYTES: usize = 512 << 10;
/// Tasks a thread: the last ones even out what other programs take.
const TASKS: usize = 4;

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Row of the file.
    pub row: usize,
    /// Its cosine to the query.
    pub score: f32,
}

impl Hit {
    /// Higher scores first, then lower rows.
    fn order(&self, other: &Hit) -> Ordering {
        let by_score = other.score.total_cmp(&self.score);
        by_score.then(self.row.cmp(&other.row))
    }
}

/// The `k` rows nearest to each query, best first, or all where there are fewer; equal scores stand
/// by row. Runs on the threads of the pool that it is called in.
///
/// # Shapes
/// queries (Q, E), not normalised.
///
/// # Errors
/// [`Error::Input`](crate::error::Error::Input) for another width, k = 0, and a query without
/// direction, which it names by its number from 0.
pub fn top(among: &Mapped, queries: &[f32], k: usize) -> Result<Vec<Vec<Hit>>> {
    let dim = among.dim();
    if k == 0 {
        return Err(bad_input!("top: found 0, expected at least 1"));
    }
    if !queries.len().is_multiple_of(dim) {
        return Err(bad_input!(
            "search: queries have {} values, expected (Q, {dim})",
            queries.len()
        ));
    }
    let mut unit = Vec::with_capacity(queries.len());
    for (q, query) in queries.chunks_exact(dim).enumerate() {
        let length = length(query).map_err(|why| bad_input!("search: query {q} {why}"))?;
        unit.extend(query.iter().map(|&x| (f64::from(x) / length) as f32));
    }
    let chosen = choose(among, &unit, k.saturating_add(SPARE));
    let decided = chosen.into_par_iter().zip(queries.par_chunks(dim));
    Ok(decided
        .map(|(hits, query)| decide(among, query, hits, k))
        .collect())
}

/// Scores in f64, the best `k` of them in order.
fn decide(among: &Mapped, query: &[f32], mut hits: Vec<Hit>, k: usize) -> Vec<Hit> {
    let sum = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    let mut scratch = Vec::new();
    let square = sum(query, query);
    for hit in &mut hits {
        let row = among.file().block(hit.row..hit.row + 1, &mut scratch);
        hit.score = (sum(query, row) / (square * sum(row, row)).sqrt()) as f32;
    }
    hits.sort_unstable_by(Hit::order);
    hits.truncate(k);
    hits
}

/// The best rows of one query so far.
struct Best {
    keep: usize,
    /// At most twice as many as are kept.
    hits: Vec<Hit>,
    /// What a later row must exceed.
    bar: f32,
}

impl Best {
    fn new(keep: usize) -> Best {
        Best {
            keep,
            hits: Vec::new(),
            bar: f32::NEG_INFINITY,
        }
    }

    /// Rows come in ascending order, so one that equals the bar stands behind those that are kept.
    #[inline(always)]
    fn see(&mut self, row: usize, score: f32) {
        if score > self.bar {
            self.add(row, score);
        }
    }

    #[cold]
    fn add(&mut self, row: usize, score: f32) {
        self.hits.push(Hit { row, score });
        if self.hits.len() >= self.keep.saturating_mul(2) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.hits.len() > self.keep {
            self.hits.select_nth_unstable_by(self.keep - 1, Hit::order);
            self.hits.truncate(self.keep);
            self.bar = self.hits[self.keep - 1].score;
        }
    }

    fn join(mut self, other: Best) -> Best {
        self.hits.extend(other.hits);
        self.cut();
        self
    }
}

/// The `keep` best rows of each query by f32 scores, in no order.
fn choose(among: &Mapped, unit: &[f32], keep: usize) -> Vec<Vec<Hit>> {
    let (dim, rows) = (among.dim(), among.rows());
    let n_queries = unit.len() / dim;
    let bytes = if n_queries < MANY {
        FEW_BYTES
    } else {
        MANY_BYTES
    };
    let block = block_rows(bytes, dim);
    let tasks = TASKS * rayon::current_num_threads();
    let share = rows.div_ceil(tasks).next_multiple_of(block);
    let parts = (0..rows.div_ceil(share)).into_par_iter();
    let parts: Vec<Vec<Best>> = parts
        .map(|part| {
            let mut best: Vec<Best> = (0..n_queries).map(|_| Best::new(keep)).collect();
            let range = part * share..rows.min((part + 1) * share);
            scan(among, unit, range, block, &mut best);
            best
        })
        .collect();
    let joined = parts.into_iter().reduce(|all, more| {
        let pairs = all.into_iter().zip(more);
        pairs.map(|(a, b)| a.join(b)).collect()
    });
    let joined = joined.unwrap_or_default().into_iter();
    joined.map(|best| best.hits).collect()
}

/// Looks at some rows, a block at a time.
fn scan(among: &Mapped, unit: &[f32], rows: Range<usize>, block: usize, best: &mut [Best]) {
    let dim = among.dim();
    let (mut scratch, mut scores) = (Vec::new(), Vec::new());
    for start in rows.clone().step_by(block) {
        let here = start..rows.end.min(start + block);
        let values = among.file().block(here.clone(), &mut scratch);
        for (group, best) in unit.chunks(RUN * dim).zip(best.chunks_mut(RUN)) {
            scores.resize(here.len() * best.len(), 0.0);
            products(&mut scores, values, group, dim);
            look(&mut scores, &among.inv_norms()[here.clone()], start, best);
        }
    }
}

/// `scores (rows, queries)`: dot products of rows and queries.
fn products(scores: &mut [f32], rows: &[f32], queries: &[f32], dim: usize) {
    let n = queries.len() / dim;
    if n >= MANY {
        let dest = Dest {
            data: scores,
            ld: n,
        };
        let segment = Segment {
            a: Mat::rows(rows, dim),
            b: Mat::rows(queries, dim).t(),
            k: dim,
        };
        gemm_serial(dest, (rows.len() / dim, n), &[segment], Start::Zero);
        return;
    }
    vector(
        #[inline(always)]
        || {
            for (scores, row) in scores.chunks_exact_mut(n).zip(rows.chunks_exact(dim)) {
                for (score, query) in scores.iter_mut().zip(queries.chunks_exact(dim)) {
                    *score = dot(row, query);
                }
            }
        },
    );
}

/// Makes cosines of products, and keeps the best.
fn look(scores: &mut [f32], inv_norms: &[f32], first: usize, best: &mut [Best]) {
    let n = best.len();
    for (i, (scores, inv)) in scores.chunks_exact_mut(n).zip(inv_norms).enumerate() {
        for (score, best) in scores.iter().zip(best.iter_mut()) {
            best.see(first + i, score * inv);
        }
    }
}
