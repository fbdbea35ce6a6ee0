//! Rounding twice as if once: the first step leaves an odd last digit where something was lost
//! (round to odd; Boldo and Melquiond, 2008), so the second one still sees which way to go.

/// `x * y + z` for values of at most 24 digits, to be rounded on to fewer digits.
#[inline(always)]
pub(super) fn fma(x: f64, y: f64, z: f64) -> f64 {
    // The product is exact: 48 digits.
    let p = x * y;
    let sum = p + z;
    // Knuth's two-sum: what the sum lost, exactly.
    let t = sum - p;
    let lost = (p - (sum - t)) + (z - t);
    if lost == 0.0 || !sum.is_finite() || sum.to_bits() & 1 == 1 {
        return sum;
    }
    if (lost > 0.0) == (sum > 0.0) {
        f64::from_bits(sum.to_bits() + 1)
    } else {
        f64::from_bits(sum.to_bits() - 1)
    }
}

/// f64 to f32, to be rounded on to a half or a bfloat.
#[inline(always)]
pub(super) fn single(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || x.is_nan() || near.to_bits() & 1 == 1 {
        return near;
    }
    if back.abs() > x.abs() {
        f32::from_bits(near.to_bits() - 1)
    } else {
        f32::from_bits(near.to_bits() + 1)
    }
}

/// An integer as f64, to be rounded on.
pub(super) fn integer(x: i128) -> f64 {
    let size = x.unsigned_abs();
    let drop = (u128::BITS - size.leading_zeros()).saturating_sub(53);
    let kept = size >> drop | u128::from(size & ((1 << drop) - 1) != 0);
    let y = (kept << drop) as f64;
    if x < 0 { -y } else { y }
}
