//! What a low-rank branch with dropout reads: the layer's input with a part of it dropped.
//!
//! It is as large as the input and would have to live until the gradient. The mask has names (see
//! [`crate::ops::philox`]), so it is made again wherever it is needed, some rows at a time.

use std::ops::Range;

use rayon::prelude::*;

use crate::exec::MemberStep;
use crate::exec::reference::RefMem;
use crate::ops::fast::vector;
use crate::ops::layer_norm::token_key;
use crate::ops::philox::Dropout;
use crate::ops::real::Real;
use crate::text::pack::Batch;

/// Rows that are made at once. Chunks are counted from a member's first row: where rows are summed,
/// the order is the member's own.
const ROWS: usize = 256;

/// Calls `f` with a member's rows of `inp` (rows, K) as the branch reads them: all of them where they
/// lie, or chunk by chunk with dropout.
pub(super) fn chunks(
    (inp, k): (&[f32], usize),
    rows: Range<usize>,
    (batch, steps): (&Batch, &[MemberStep]),
    dropout: Option<Dropout>,
    mut f: impl FnMut(Range<usize>, &[f32]),
) {
    if rows.is_empty() {
        return;
    }
    let Some(drop) = dropout else {
        return f(rows.clone(), &inp[rows.start * k..rows.end * k]);
    };
    let mut space = vec![0f32; rows.len().min(ROWS) * k];
    for start in rows.clone().step_by(ROWS) {
        let chunk = start..rows.end.min(start + ROWS);
        let x = &mut space[..chunk.len() * k];
        x.par_chunks_exact_mut(k).enumerate().for_each(|(i, x)| {
            let t = start + i;
            vector(
                #[inline(always)]
                || {
                    x.copy_from_slice(&inp[t * k..][..k]);
                    drop.apply(&token_key(batch, steps, drop.site, t), x);
                },
            );
        });
        f(chunk, x);
    }
}

/// The plain version, for all rows.
pub(super) fn reference<F: Real>(
    mem: &RefMem<'_, F>,
    inp: &[F],
    k: usize,
    dropout: Option<Dropout>,
) -> Vec<F> {
    let mut x = inp.to_vec();
    let Some(drop) = dropout else { return x };
    for t in 0..mem.batch.tokens() {
        let key = token_key(mem.batch, mem.steps, drop.site, t);
        for i in 0..k {
            x[t * k + i] *= F::of(drop.factor(&key, i).into());
        }
    }
    x
}
