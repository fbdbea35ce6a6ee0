//! The micro-kernels: a register tile of C, by what the machine has.
//!
//! Each is compiled for every number of rows, so that none is computed to be thrown away. An element
//! of a tile is one chain of fused multiply-adds over k whatever the width of the vectors, so the
//! kernels for AVX2 and AVX-512 give the same bits.

use super::pack::RowGroup;
use super::{AHEAD, KC, MR, NR, Start};

/// What a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Right, and slow.
    Portable,
    Avx2,
    Avx512,
}

impl Isa {
    /// Of this machine.
    pub(super) fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            return match std::arch::is_x86_feature_detected!("avx512f") {
                true => Isa::Avx512,
                false => Isa::Avx2,
            };
        }
        Isa::Portable
    }

    /// Rows of a tile: with its panels they fill the registers.
    pub(super) fn rows(self) -> usize {
        match self {
            Isa::Avx512 => MR,
            Isa::Avx2 | Isa::Portable => 6,
        }
    }

    /// Columns of the next tile of so many that are left.
    pub(super) fn cols(self, left: usize) -> usize {
        let panels = match (self, left.div_ceil(NR)) {
            // Three and one would leave one with too few independent sums.
            (Isa::Avx512, 4) => 2,
            (Isa::Avx512, panels) => panels.min(3),
            _ => 1,
        };
        left.min(panels * NR)
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// Where a tile lies: its rows and columns are at most those of its [`Isa`].
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Its first element.
    pub c: *mut f32,
    /// Row stride.
    pub ld: usize,
    pub rows: usize,
    pub cols: usize,
}

/// Makes a number a constant of an expression: a match, with an arm for each that it may be.
#[cfg(target_arch = "x86_64")]
macro_rules! constant {
    ($value:expr, [$($n:literal)*], $name:ident => $body:expr) => {
        match $value {
            $($n => {
                const $name: usize = $n;
                $body
            })*
            n => unreachable!("gemm: no kernel for {n}"),
        }
    };
}

/// Adds `kc` terms to a tile. `panels` begins with the tile's first; they are `KC * NR` apart.
///
/// # Safety
/// `isa` is no better than what was detected, and the tile's elements exist and are the caller's.
#[allow(unsafe_code)]
pub(super) unsafe fn micro(
    isa: Isa,
    tile: Tile,
    a: &RowGroup<'_>,
    panels: &[f32],
    kc: usize,
    from: Start,
) {
    let read = a.offsets[..tile.rows].iter().max();
    let read = read.map_or(0, |o| o + (kc - 1) * a.step);
    let last_panel = (tile.cols - 1) / NR * KC * NR;
    assert!(
        read < a.data.len() && last_panel + kc * NR <= panels.len(),
        "gemm: operands too short for a tile"
    );
    // SAFETY: the features were detected, the reads were checked above, the tile is the caller's.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                let (width, panels) = (tile.cols.div_ceil(NR), panels.as_ptr());
                constant!(tile.rows, [1 2 3 4 5 6 7 8 9], R => constant!(width, [1 2 3], P => {
                    tile_avx512::<R, P>(tile, a, panels, kc, from);
                }));
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => constant!(tile.rows, [1 2 3 4 5 6], R => {
                tile_avx2::<R>(tile, a, panels.as_ptr(), kc, from);
            }),
            _ => tile_portable(tile, a, panels, kc, from),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code)]
/// # Safety
/// `R` rows of `kc` terms, `P` panels, and the tile, of `R` rows and at most `P * NR` columns, exist.
unsafe fn tile_avx512<const R: usize, const P: usize>(
    tile: Tile,
    a: &RowGroup<'_>,
    panels: *const f32,
    kc: usize,
    from: Start,
) {
    use std::arch::x86_64::*;
    // SAFETY: as the function's own.
    unsafe {
        let rows: [*const f32; R] = std::array::from_fn(|i| a.data.as_ptr().add(a.offsets[i]));
        let mut acc = [[_mm512_setzero_ps(); P]; R];
        let (mut at, mut b) = (0, panels);
        for _ in 0..kc {
            let b_now: [__m512; P] = std::array::from_fn(|p| {
                let b = b.add(p * KC * NR);
                // The panel comes from the L2 cache; past its end lies the next one.
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD).cast());
                _mm512_loadu_ps(b)
            });
            for (acc, row) in acc.iter_mut().zip(rows) {
                let x = _mm512_set1_ps(*row.add(at));
                for (acc, b) in acc.iter_mut().zip(b_now) {
                    *acc = _mm512_fmadd_ps(x, b, *acc);
                }
            }
            at += a.step;
            b = b.add(NR);
        }
        for (i, acc) in acc.iter().enumerate() {
            for (p, acc) in acc.iter().enumerate() {
                let width = NR.min(tile.cols - p * NR);
                let mask = __mmask16::MAX >> (NR - width);
                let at = tile.c.add(i * tile.ld + p * NR);
                let sum = match from {
                    Start::Zero => *acc,
                    Start::Accumulate => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), *acc),
                };
                _mm512_mask_storeu_ps(at, mask, sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code)]
/// # Safety
/// `R` rows of `kc` terms, a panel, and the tile, of `R` rows and at most `NR` columns, exist.
unsafe fn tile_avx2<const R: usize>(
    tile: Tile,
    a: &RowGroup<'_>,
    panel: *const f32,
    kc: usize,
    from: Start,
) {
    use std::arch::x86_64::*;
    // SAFETY: as the function's own.
    unsafe {
        let rows: [*const f32; R] = std::array::from_fn(|i| a.data.as_ptr().add(a.offsets[i]));
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        let (mut at, mut b) = (0, panel);
        for _ in 0..kc {
            // As above.
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD).cast());
            let b_now = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
            for (acc, row) in acc.iter_mut().zip(rows) {
                let x = _mm256_broadcast_ss(&*row.add(at));
                for (acc, b) in acc.iter_mut().zip(b_now) {
                    *acc = _mm256_fmadd_ps(x, b, *acc);
                }
            }
            at += a.step;
            b = b.add(NR);
        }
        for (i, acc) in acc.iter().enumerate() {
            let row = tile.c.add(i * tile.ld);
            if tile.cols < NR {
                let mut sums = [0f32; NR];
                _mm256_storeu_ps(sums.as_mut_ptr(), acc[0]);
                _mm256_storeu_ps(sums.as_mut_ptr().add(8), acc[1]);
                write(std::slice::from_raw_parts_mut(row, tile.cols), &sums, from);
                continue;
            }
            for (half, acc) in acc.iter().enumerate() {
                let at = row.add(8 * half);
                let sum = match from {
                    Start::Zero => *acc,
                    Start::Accumulate => _mm256_add_ps(_mm256_loadu_ps(at), *acc),
                };
                _mm256_storeu_ps(at, sum);
            }
        }
    }
}

/// # Safety
/// The tile exists.
#[allow(unsafe_code)]
unsafe fn tile_portable(tile: Tile, a: &RowGroup<'_>, panel: &[f32], kc: usize, from: Start) {
    for i in 0..tile.rows {
        // SAFETY: as the function's own.
        let row = unsafe { std::slice::from_raw_parts_mut(tile.c.add(i * tile.ld), tile.cols) };
        let mut acc = [0f32; NR];
        for k in 0..kc {
            let x = a.data[a.offsets[i] + k * a.step];
            for (t, b) in acc.iter_mut().zip(&panel[k * NR..]) {
                *t += x * b;
            }
        }
        write(row, &acc, from);
    }
}

/// The sums of a row's columns, as many as there are.
fn write(row: &mut [f32], sums: &[f32; NR], from: Start) {
    for (o, t) in row.iter_mut().zip(sums) {
        *o = if from == Start::Accumulate {
            *o + t
        } else {
            *t
        };
    }
}
