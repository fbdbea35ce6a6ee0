//! Matrix products on the CPU: `C (M, N) = sum over segments of A (M, K) B (K, N)`.
//!
//! A row of `C` is summed over K in one order: within each segment, blocks of `KC` terms from k = 0
//! on, each block one fused multiply-add a term, then added to the sum of those before (which keeps
//! more digits than one long chain). Neither M, the row's place, the tile's place nor the number of
//! threads changes that; edge tiles run the same micro-kernel into scratch. This is what gives a
//! member the same bits in company as alone.
//!
//! `B` is packed on the fly into panels of [`NR`] columns, so a memory-mapped weight is read where
//! it lies, in either direction, and no copy of it is kept. `A` is read in place when its columns
//! are contiguous (activations), else packed by row group (the transposed operand of a weight
//! gradient). The layout is that of Goto and van de Geijn, "Anatomy of high-performance matrix
//! multiplication" (2008).

mod micro;
mod pack;

use std::cell::RefCell;

use rayon::prelude::*;

use super::fast::vector;
use micro::micro;
use pack::{RowGroup, a_panel, pack_b};

/// Rows of a register tile.
pub const MR: usize = 6;
/// Columns of a register tile: two AVX2 vectors.
pub const NR: usize = 16;
/// Terms of a product that one pass adds to a tile: a panel of `KC * NR` stays in the L1 cache.
const KC: usize = 256;
/// Elements of a panel between what is read and what is asked for: sixteen cache lines.
const AHEAD: usize = 16 * NR;
/// Panels that one task packs: `KC * NR * PANELS` stays in the L2 cache.
const PANELS: usize = 16;
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
    let col_tasks = n.div_ceil(RUN);
    let row_tasks = row_split(m, col_tasks);
    let rows_per = m.div_ceil(row_tasks).next_multiple_of(MR);
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
            PACK.with_borrow_mut(|pack| run_block(shared, block, segments, start, pack, &finish));
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

fn run_block<F>(
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
        for row in (block.row..block.row + block.rows).step_by(MR) {
            let rows = MR.min(block.row + block.rows - row);
            let a = a_panel(a_pack, seg.a, row, rows, k0, kc);
            for (p, col) in (block.col..block.col + block.cols).step_by(NR).enumerate() {
                let cols = NR.min(block.col + block.cols - col);
                let panel = &b_pack[p * KC * NR..p * KC * NR + kc * NR];
                tile(c, (row, rows), (col, cols), &a, panel, kc, from);
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

/// Adds `kc` terms to a tile of the destination.
fn tile(
    c: Shared,
    (row, rows): (usize, usize),
    (col, cols): (usize, usize),
    a: &RowGroup<'_>,
    panel: &[f32],
    kc: usize,
    from: Start,
) {
    let mut acc = [[0f32; NR]; MR];
    if rows == MR && cols == NR {
        micro(c_row_ptr(c, row, col), c.ld, a, panel, kc, from);
        return;
    }
    if from == Start::Accumulate {
        for (i, dst) in acc.iter_mut().enumerate().take(rows) {
            dst[..cols].copy_from_slice(c_row(c, row + i, col, cols));
        }
    }
    micro(acc.as_mut_ptr().cast(), NR, a, panel, kc, from);
    for (i, src) in acc.iter().enumerate().take(rows) {
        c_row(c, row + i, col, cols).copy_from_slice(&src[..cols]);
    }
}

#[allow(unsafe_code)]
fn c_row_ptr(c: Shared, row: usize, col: usize) -> *mut f32 {
    // SAFETY: inside the destination, as in `c_row`.
    unsafe { c.ptr.add(row * c.ld + col) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(n: usize, seed: u64) -> Vec<f32> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn naive(m: usize, n: usize, k: usize, a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
        let mut c = vec![0f64; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k)
                    .map(|l| {
                        f64::from(a.data[i * a.rs + l * a.cs])
                            * f64::from(b.data[l * b.rs + j * b.cs])
                    })
                    .sum();
            }
        }
        c
    }

    #[test]
    fn agrees_with_plain_loops_in_every_layout() {
        for (m, n, k) in [
            (1, 1, 1),
            (7, 17, 3),
            (6, 16, 256),
            (13, 131, 517),
            (97, 48, 64),
        ] {
            let (a, b) = (fill(m * k, 1), fill(k * n, 2));
            for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                let am = if ta {
                    Mat::rows(&a, m).t()
                } else {
                    Mat::rows(&a, k)
                };
                let bm = if tb {
                    Mat::rows(&b, k).t()
                } else {
                    Mat::rows(&b, n)
                };
                let mut c = vec![f32::NAN; m * n];
                let seg = [Segment { a: am, b: bm, k }];
                gemm(
                    Dest {
                        data: &mut c,
                        ld: n,
                    },
                    None,
                    (m, n),
                    &seg,
                    Start::Zero,
                    |_, _, _, _| {},
                );
                for (got, want) in c.iter().zip(naive(m, n, k, am, bm)) {
                    assert!(
                        (f64::from(*got) - want).abs() <= 1e-5 * (k as f64).sqrt(),
                        "{m} {n} {k}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_company() {
        let (n, k) = (37, 700);
        let (a, b) = (fill(50 * k, 3), fill(k * n, 4));
        let seg = |row: usize| Segment {
            a: Mat::rows(&a[row * k..], k),
            b: Mat::rows(&b, k).t(),
            k,
        };
        let mut all = vec![0f32; 50 * n];
        gemm(
            Dest {
                data: &mut all,
                ld: n,
            },
            None,
            (50, n),
            &[seg(0)],
            Start::Zero,
            |_, _, _, _| {},
        );
        for row in [0, 5, 6, 29, 49] {
            let mut one = vec![0f32; n];
            gemm_serial(
                Dest {
                    data: &mut one,
                    ld: n,
                },
                (1, n),
                &[seg(row)],
                Start::Zero,
            );
            assert_eq!(one, all[row * n..(row + 1) * n]);
        }
    }

    #[test]
    fn finish_sees_every_element_once() {
        let (m, n, k) = (11, 150, 300);
        let (a, b) = (fill(m * k, 5), fill(k * n, 6));
        let seg = [Segment {
            a: Mat::rows(&a, k),
            b: Mat::rows(&b, n),
            k,
        }];
        let mut c = vec![0f32; m * n];
        let mut plain = c.clone();
        gemm(
            Dest {
                data: &mut plain,
                ld: n,
            },
            None,
            (m, n),
            &seg,
            Start::Zero,
            |_, _, _, _| {},
        );
        let mut twice = vec![0f32; m * n];
        let second = Some(Dest {
            data: &mut twice,
            ld: n,
        });
        gemm(
            Dest {
                data: &mut c,
                ld: n,
            },
            second,
            (m, n),
            &seg,
            Start::Zero,
            |_, _, run, other| {
                for (x, y) in run.iter_mut().zip(other) {
                    *x += 1.0;
                    *y += 2.0 * *x;
                }
            },
        );
        for (i, y) in plain.iter().enumerate() {
            assert_eq!((c[i], twice[i]), (y + 1.0, 2.0 * (y + 1.0)));
        }
    }
}
