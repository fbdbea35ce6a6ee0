//! Operands as the micro-kernel reads them: rows of A, panels of B.

#[cfg(target_arch = "x86_64")]
use super::micro::has_avx2;
use super::{KC, MR, Mat, NR};
use crate::ops::fast::vector;

/// A group of rows of A.
pub(super) struct RowGroup<'a> {
    pub data: &'a [f32],
    /// Of each row's first term in `data`; there may be fewer rows, and the rest means nothing.
    pub offsets: [usize; MR],
    /// From one term of a row to the next.
    pub step: usize,
}

pub(super) fn a_panel<'a>(
    pack: &'a mut [f32],
    a: Mat<'a>,
    row: usize,
    rows: usize,
    k0: usize,
    kc: usize,
) -> RowGroup<'a> {
    if a.cs == 1 {
        return RowGroup {
            data: a.data,
            offsets: std::array::from_fn(|i| (row + i) * a.rs + k0),
            step: 1,
        };
    }
    for (k, dst) in pack.chunks_exact_mut(MR).take(kc).enumerate() {
        let start = row * a.rs + (k0 + k) * a.cs;
        match a.data.get(start..start + MR) {
            // As many whatever `rows` is: a copy of a fixed length is quick.
            Some(run) if a.rs == 1 => dst.copy_from_slice(run),
            _ => {
                for (i, d) in dst.iter_mut().enumerate().take(rows) {
                    *d = a.data[start + i * a.rs];
                }
            }
        }
    }
    RowGroup {
        data: pack,
        offsets: std::array::from_fn(|i| i),
        step: MR,
    }
}

/// Packs `kc` rows of `cols` columns of B into panels of [`NR`] columns, zero past the end.
pub(super) fn pack_b(pack: &mut [f32], b: Mat<'_>, k0: usize, kc: usize, col: usize, cols: usize) {
    vector(
        #[inline(always)]
        || {
            for (p, j) in (0..cols).step_by(NR).enumerate() {
                let panel = &mut pack[p * KC * NR..p * KC * NR + kc * NR];
                let width = NR.min(cols - j);
                if width < NR {
                    panel.fill(0.0);
                }
                if b.cs == 1 {
                    for (k, dst) in panel.chunks_exact_mut(NR).enumerate() {
                        let at = (k0 + k) * b.rs + col + j;
                        copy_run(dst, &b.data[at..at + width]);
                    }
                } else {
                    transpose_panel(panel, b, k0, kc, col + j, width);
                }
            }
        },
    );
}

#[inline(always)]
fn copy_run(dst: &mut [f32], src: &[f32]) {
    if let (Ok(d), Ok(s)) = (
        <&mut [f32; NR]>::try_from(&mut *dst),
        <&[f32; NR]>::try_from(src),
    ) {
        *d = *s;
    } else {
        dst[..src.len()].copy_from_slice(src);
    }
}

/// Columns of B are rows of a weight in memory: 8 x 8 blocks are transposed in registers.
#[inline(always)]
fn transpose_panel(panel: &mut [f32], b: Mat<'_>, k0: usize, kc: usize, col: usize, width: usize) {
    let columns: [&[f32]; NR] = std::array::from_fn(|i| {
        let start = (col + i.min(width - 1)) * b.cs + k0;
        &b.data[start..start + kc]
    });
    let whole = kc / 8 * 8;
    let blocks = width / 8 * 8;
    for (k, rows) in panel[..whole * NR].chunks_exact_mut(8 * NR).enumerate() {
        // The next panel's columns lie far from these: no hardware looks ahead there.
        if k % 2 == 0 {
            for column in columns {
                prefetch(column.as_ptr().wrapping_add(NR * b.cs + 8 * k));
            }
        }
        for first in (0..blocks).step_by(8) {
            let block = std::array::from_fn(|i| &columns[first + i][8 * k..8 * k + 8]);
            transpose8(block, &mut rows[first..]);
        }
    }
    for (i, column) in columns.iter().enumerate().take(width) {
        for k in if i < blocks { whole } else { 0 }..kc {
            panel[k * NR + i] = column[k];
        }
    }
}

/// Asks for a cache line; any address will do.
#[inline(always)]
fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    // SAFETY: a prefetch of an address that is not mapped does nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
}

/// Writes eight rows of eight as the columns of rows of [`NR`].
#[inline(always)]
fn transpose8(rows: [&[f32]; 8], out: &mut [f32]) {
    assert!(rows.iter().all(|r| r.len() == 8) && out.len() >= 7 * NR + 8);
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        #[allow(unsafe_code)]
        // SAFETY: the features were detected, and the lengths were checked above.
        unsafe {
            transpose8_avx2(rows.map(<[f32]>::as_ptr), out.as_mut_ptr())
        };
        return;
    }
    for (j, row) in rows.iter().enumerate() {
        for (i, x) in row.iter().enumerate() {
            out[i * NR + j] = *x;
        }
    }
}

/// Pairs, fours and halves are interleaved: left to itself the compiler moves single elements.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
#[allow(unsafe_code)]
/// # Safety
/// Every row covers 8 elements, `out` covers 8 at each of 8 strides of [`NR`].
unsafe fn transpose8_avx2(rows: [*const f32; 8], out: *mut f32) {
    use std::arch::x86_64::*;
    // SAFETY: as the function's own.
    unsafe {
        // Lane l of `x[i]` becomes elements i + 4 of row l's halves.
        let x: [__m256; 8] = std::array::from_fn(|i| {
            let (near, far) = (rows[i % 4].add(i / 4 * 4), rows[i % 4 + 4].add(i / 4 * 4));
            _mm256_insertf128_ps::<1>(
                _mm256_castps128_ps256(_mm_loadu_ps(near)),
                _mm_loadu_ps(far),
            )
        });
        for half in [0, 4] {
            let [a, b, c, d] = [x[half], x[half + 1], x[half + 2], x[half + 3]];
            let (ab0, ab1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd0, cd1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let columns = [
                _mm256_shuffle_ps::<0x44>(ab0, cd0),
                _mm256_shuffle_ps::<0xEE>(ab0, cd0),
                _mm256_shuffle_ps::<0x44>(ab1, cd1),
                _mm256_shuffle_ps::<0xEE>(ab1, cd1),
            ];
            for (i, column) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(out.add((half + i) * NR), column);
            }
        }
    }
}
