//! The micro-kernel: one register tile of C.

use super::pack::RowGroup;
use super::{AHEAD, MR, NR, Start};

/// The micro-kernel: a register tile of [`MR`] x [`NR`], one term at a time.
pub(super) fn micro(
    c: *mut f32,
    ld: usize,
    a: &RowGroup<'_>,
    panel: &[f32],
    kc: usize,
    from: Start,
) {
    let reach = a.offsets.iter().max().map_or(0, |o| o + (kc - 1) * a.step);
    assert!(
        reach < a.data.len() && panel.len() >= kc * NR,
        "gemm: operands too short for a tile"
    );
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        #[allow(unsafe_code)]
        // SAFETY: the features were detected, the reads were checked above, and `c` has MR rows of
        // NR elements at stride `ld` (a whole tile of the destination, or the edge scratch).
        unsafe {
            micro_avx2(c, ld, a, panel.as_ptr(), kc, from)
        };
        return;
    }
    micro_portable(c, ld, a, panel, kc, from);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code)]
/// # Safety
/// See the caller: every pointer covers a whole tile.
unsafe fn micro_avx2(
    c: *mut f32,
    ld: usize,
    a: &RowGroup<'_>,
    panel: *const f32,
    kc: usize,
    from: Start,
) {
    use std::arch::x86_64::*;
    // SAFETY: the caller checked that MR rows of kc terms, kc * NR panel elements and MR rows of NR
    // destination elements exist.
    unsafe {
        let base = a.data.as_ptr();
        let rows: [*const f32; MR] = std::array::from_fn(|i| base.add(a.offsets[i]));
        let mut acc = [[_mm256_setzero_ps(); 2]; MR];
        let step = a.step;
        let mut at = 0;
        let mut p = panel;
        for _ in 0..kc {
            // The panel comes from the L2 cache; past its end lies the next tile's.
            _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(AHEAD).cast());
            let b0 = _mm256_loadu_ps(p);
            let b1 = _mm256_loadu_ps(p.add(8));
            for i in 0..MR {
                let x = _mm256_broadcast_ss(&*rows[i].add(at));
                acc[i][0] = _mm256_fmadd_ps(x, b0, acc[i][0]);
                acc[i][1] = _mm256_fmadd_ps(x, b1, acc[i][1]);
            }
            at += step;
            p = p.add(NR);
        }
        for (i, t) in acc.iter().enumerate() {
            for (half, t) in t.iter().enumerate() {
                let at = c.add(i * ld + 8 * half);
                let sum = match from {
                    Start::Zero => *t,
                    Start::Accumulate => _mm256_add_ps(_mm256_loadu_ps(at), *t),
                };
                _mm256_storeu_ps(at, sum);
            }
        }
    }
}

/// Where there is no AVX2: right, and slow.
fn micro_portable(c: *mut f32, ld: usize, a: &RowGroup<'_>, panel: &[f32], kc: usize, from: Start) {
    for i in 0..MR {
        #[allow(unsafe_code)]
        // SAFETY: `c` has MR rows of NR elements at stride `ld`, as in `micro`.
        let out = unsafe { std::slice::from_raw_parts_mut(c.add(i * ld), NR) };
        let mut acc = [0f32; NR];
        for k in 0..kc {
            let x = a.data[a.offsets[i] + k * a.step];
            for (t, b) in acc.iter_mut().zip(&panel[k * NR..]) {
                *t += x * b;
            }
        }
        for (o, t) in out.iter_mut().zip(acc) {
            *o = if from == Start::Accumulate { *o + t } else { t };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}
