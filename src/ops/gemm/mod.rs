//! Matrix products on the CPU: `C (M, N) = sum over segments of A (M, K) B (K, N)`.
//!
//! A row of `C` is summed over K in one order: within each segment, blocks of `KC` terms from k = 0
//! on, each block one fused multiply-add a term, then added to the sum of those before (which keeps
//! more digits than one long chain). Neither M, the row's place, the tile's place nor the number of
//! threads changes that, nor does the width of the machine's vectors from AVX2 on. This is what gives
//! a member the same bits in company as alone.
//!
//! `B` is packed on the fly into panels of `NR` columns, so a memory-mapped weight is read where
//! it lies, in either direction, and no copy of it is kept. `A` is read in place when its columns
//! are contiguous (activations), else packed by row group (the transposed operand of a weight
//! gradient). The layout is that of Goto and van de Geijn, "Anatomy of high-performance matrix
//! multiplication" (2008).

mod micro;
mod pack;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use rayon::prelude::*;

use super::fast::vector;
use micro::{Isa, Tile, micro};
use pack::{a_panel, pack_b};

/// Rows of a register tile, at most.
const MR: usize = 9;
/// Columns of a panel of B: a vector of AVX-512, or two of AVX2.
const NR: usize = 16;
/// Terms of a product that one pass adds to a tile.
const KC: usize = 256;
/// Elements of a panel between what is read and what is asked for: sixteen cache lines.
const AHEAD: usize = 16 * NR;
/// Panels that one task packs: `KC * NR * PANELS` (384 KiB) stay in the L2 cache.
const PANELS: usize = 24;
/// The longest run of columns that a product finishes at once; each begins at a multiple of it.
pub const RUN: usize = NR * PANELS;

/// A strided view of a matrix.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// Elements; element (i, j) is at `i * rs + j * cs`.
    pub data: &'a [f32],
    /// Row stride.
    pub rs: usize,
    /// Column stride.
    pub cs: usize,
}

impl<'a> Mat<'a> {
    /// Rows of `ld` elements, `data` beginning at the first element.
    pub fn rows(data: &'a [f32], ld: usize) -> Mat<'a> {
        Mat {
            data,
            rs: ld,
            cs: 1,
        }
    }

    /// The transpose.
    pub fn t(self) -> Mat<'a> {
        Mat {
            data: self.data,
            rs: self.cs,
            cs: self.rs,
        }
    }

    fn check(&self, rows: usize, cols: usize) {
        let last = (rows.max(1) - 1) * self.rs + (cols.max(1) - 1) * self.cs;
        assert!(
            rows == 0 || cols == 0 || last < self.data.len(),
            "gemm: operand too short"
        );
    }
}

/// One term of a product that is summed over several pairs of operands.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// (M, k)
    pub a: Mat<'a>,
    /// (k, N)
    pub b: Mat<'a>,
    /// Terms.
    pub k: usize,
}

/// What a tile starts from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Zero: `C =`.
    Zero,
    /// The former content: `C +=`.
    Accumulate,
}

/// Where a product goes: rows of `ld` elements.
pub struct Dest<'a> {
    /// Beginning at element (0, 0).
    pub data: &'a mut [f32],
    /// Row stride.
    pub ld: usize,
}

/// A raw view of the destination that tasks share; each task writes its own columns or rows.
#[derive(Clone, Copy)]
struct Shared {
    ptr: *mut f32,
    ld: usize,
    second: Option<*mut f32>,
    second_ld: usize,
}
#[allow(unsafe_code)]
// SAFETY: tasks write disjoint tiles (see `gemm`), and the borrow of the destination outlives them.
unsafe impl Send for Shared {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Sync for Shared {}

thread_local! {
    /// Packing space of a worker: kept, since a fresh one of this size costs page faults.
    static PACK: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `c (m, n) = sum of segments`, in parallel. `finish(row, col, values, second)` is called once for
/// every finished run of columns of a row, inside [`vector`]; `second` is the same run of a second
/// destination, empty without one.
///
/// # Panics
/// If an operand or a destination is shorter than its extents say.
pub fn gemm<F>(
    c: Dest<'_>,
    second: Option<Dest<'_>>,
    (m, n): (usize, usize),
    segments: &[Segment<'_>],
    start: Start,
    finish: F,
) where
    F: Fn(usize, usize, &mut [f32], &mut [f32]) + Sync,
{
    if m == 0 || n == 0 {
        return;
    }
    let shared = checked(c, second, (m, n), segments);
    let isa = Isa::detect();
    let col_tasks = n.div_ceil(RUN);
    let row_tasks = row_split(m, col_tasks);
    let rows_per = m.div_ceil(row_tasks).next_multiple_of(isa.rows());
    (0..col_tasks * row_tasks).into_par_iter().for_each(|task| {
        let col = (task % col_tasks) * RUN;
        let row = (task / col_tasks) * rows_per;
        if row < m {
            let rows = rows_per.min(m - row);
            let cols = (RUN).min(n - col);
            let block = Block {
                row,
                rows,
                col,
                cols,
            };
            PACK.with_borrow_mut(|pack| {
                run_block(isa, shared, block, segments, start, pack, &finish);
            });
        }
    });
}

/// The same on the calling thread: for products too small to share out.
pub fn gemm_serial(c: Dest<'_>, (m, n): (usize, usize), segments: &[Segment<'_>], start: Start) {
    if m == 0 || n == 0 {
        return;
    }
    let shared = checked(c, None, (m, n), segments);
    for col in (0..n).step_by(RUN) {
        let block = Block {
            row: 0,
            rows: m,
            col,
            cols: (RUN).min(n - col),
        };
        PACK.with_borrow_mut(|pack| {
            run_block(
                Isa::detect(),
                shared,
                block,
                segments,
                start,
                pack,
                &|_, _, _: &mut _, _: &mut _| {},
            );
        });
    }
}

fn checked(
    c: Dest<'_>,
    second: Option<Dest<'_>>,
    (m, n): (usize, usize),
    segments: &[Segment<'_>],
) -> Shared {
    assert!(
        (m - 1) * c.ld + n <= c.data.len(),
        "gemm: destination too short"
    );
    for s in segments {
        s.a.check(m, s.k);
        s.b.check(s.k, n);
        assert!(
            s.b.cs == 1 || s.b.rs == 1,
            "gemm: B has no contiguous direction"
        );
    }
    let (second, second_ld) = second.map_or((None, 0), |d| {
        assert!(
            (m - 1) * d.ld + n <= d.data.len(),
            "gemm: second destination too short"
        );
        (Some(d.data.as_mut_ptr()), d.ld)
    });
    Shared {
        ptr: c.data.as_mut_ptr(),
        ld: c.ld,
        second,
        second_ld,
    }
}

/// More tasks where there are fewer column blocks than threads could use; every row block packs B
/// again, so only then. Bits do not depend on it.
fn row_split(m: usize, col_tasks: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        return 1;
    }
    let wanted = (threads * 3).div_ceil(col_tasks);
    wanted.min(m.div_ceil(64)).max(1)
}

#[derive(Clone, Copy)]
struct Block {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

/// `isa` is one that this machine has.
fn run_block<F>(
    isa: Isa,
    c: Shared,
    block: Block,
    segments: &[Segment<'_>],
    start: Start,
    pack: &mut Vec<f32>,
    finish: &F,
) where
    F: Fn(usize, usize, &mut [f32], &mut [f32]) + Sync,
{
    pack.resize(KC * RUN + KC * MR, 0.0);
    let (b_pack, a_pack) = pack.split_at_mut(KC * RUN);
    let chunks: Vec<(usize, usize, usize)> = segments
        .iter()
        .enumerate()
        .flat_map(|(s, seg)| {
            (0..seg.k)
                .step_by(KC)
                .map(move |k0| (s, k0, KC.min(seg.k - k0)))
        })
        .collect();
    for (i, &(s, k0, kc)) in chunks.iter().enumerate() {
        let seg = &segments[s];
        pack_b(b_pack, seg.b, k0, kc, block.col, block.cols);
        let from = if i == 0 { start } else { Start::Accumulate };
        let last = i + 1 == chunks.len();
        for row in (block.row..block.row + block.rows).step_by(isa.rows()) {
            let rows = isa.rows().min(block.row + block.rows - row);
            let a = a_panel(a_pack, seg.a, row, rows, k0, kc);
            let mut col = 0;
            while col < block.cols {
                let cols = isa.cols(block.cols - col);
                let panels = &b_pack[col * KC..];
                #[allow(unsafe_code)]
                // SAFETY: `isa` is one that this machine has; `gemm` checked that the rows and columns of
                // the block exist, and no two tasks share a (row, column) pair.
                unsafe {
                    let tile = Tile {
                        c: c.ptr.add(row * c.ld + block.col + col),
                        ld: c.ld,
                        rows,
                        cols,
                    };
                    micro(isa, tile, &a, panels, kc, from);
                }
                col += cols;
            }
            if last {
                finish_rows(c, (row, rows), (block.col, block.cols), finish);
            }
        }
    }
    if chunks.is_empty() {
        for row in block.row..block.row + block.rows {
            if start == Start::Zero {
                c_row(c, row, block.col, block.cols).fill(0.0);
            }
            finish_rows(c, (row, 1), (block.col, block.cols), finish);
        }
    }
}

fn finish_rows<F: Fn(usize, usize, &mut [f32], &mut [f32])>(
    c: Shared,
    (row, rows): (usize, usize),
    (col, cols): (usize, usize),
    finish: &F,
) {
    vector(
        #[inline(always)]
        || {
            for r in row..row + rows {
                let second = match c.second {
                    Some(ptr) => c_row(
                        Shared {
                            ptr,
                            ld: c.second_ld,
                            ..c
                        },
                        r,
                        col,
                        cols,
                    ),
                    None => &mut [],
                };
                finish(r, col, c_row(c, r, col, cols), second);
            }
        },
    );
}

/// `cols` elements of row `row` of the destination.
#[allow(unsafe_code)]
fn c_row<'a>(c: Shared, row: usize, col: usize, cols: usize) -> &'a mut [f32] {
    // SAFETY: `gemm` checked that (m - 1) * ld + n elements exist, row < m and col + cols <= n, and
    // no two tasks share a (row, column) pair.
    unsafe { std::slice::from_raw_parts_mut(c.ptr.add(row * c.ld + col), cols) }
}
