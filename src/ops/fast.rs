//! Vectorised helpers of the CPU ops: loops that compile to AVX2 inside `pulp::Arch::dispatch`,
//! and functions that such loops may call.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Lanes of the fixed order in which a row is summed, whatever the vector width.
pub const LANES: usize = 16;

/// Runs a closure compiled for the best instruction set of this machine. What it calls must be
/// `#[inline(always)]`.
#[inline(always)]
pub fn vector<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

#[inline(always)]
fn fold(acc: [f32; LANES]) -> f32 {
    let mut a = acc;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] += a[i + width];
        }
        width /= 2;
    }
    a[0]
}

/// Sum of `f(x)`.
#[inline(always)]
pub fn sum_map(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [0f32; LANES];
    let mut it = x.chunks_exact(LANES);
    for run in &mut it {
        for (a, v) in acc.iter_mut().zip(run) {
            *a += f(*v);
        }
    }
    for (a, v) in acc.iter_mut().zip(it.remainder()) {
        *a += f(*v);
    }
    fold(acc)
}

/// Dot product.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    sum_zip(x, y, |sum, x, y| x.mul_add(y, sum))
}

/// A sum over pairs: `f` adds one to it.
#[inline(always)]
pub fn sum_zip(x: &[f32], y: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut acc = [0f32; LANES];
    let mut xs = x.chunks_exact(LANES);
    let mut ys = y.chunks_exact(LANES);
    for (u, v) in (&mut xs).zip(&mut ys) {
        for ((a, u), v) in acc.iter_mut().zip(u).zip(v) {
            *a = f(*a, *u, *v);
        }
    }
    for ((a, u), v) in acc.iter_mut().zip(xs.remainder()).zip(ys.remainder()) {
        *a = f(*a, *u, *v);
    }
    fold(acc)
}

/// Halves as f32, eight at a time where the machine can (`half` does four a call).
///
/// # Panics
/// If the lengths differ.
pub fn widen(out: &mut [f32], halves: &[f16]) {
    assert_eq!(out.len(), halves.len(), "widen: lengths differ");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("f16c") {
        #[allow(unsafe_code)]
        // SAFETY: the feature was detected; F16C implies AVX.
        unsafe {
            widen_f16c(out, halves)
        };
        return;
    }
    halves.convert_to_f32_slice(out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
fn widen_f16c(out: &mut [f32], halves: &[f16]) {
    let (outs, rest) = out.as_chunks_mut::<8>();
    let (eights, last) = halves.as_chunks::<8>();
    for (out, eight) in outs.iter_mut().zip(eights) {
        *out = bytemuck::cast(std::arch::x86_64::_mm256_cvtph_ps(bytemuck::cast(*eight)));
    }
    last.convert_to_f32_slice(rest);
}

/// `y += a x`.
#[inline(always)]
pub fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = a.mul_add(*x, *y);
    }
}

/// e^x within 2 ulp; 0 below -87.3, clamped above 88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    // ln 2 in two parts, so that r keeps its low bits.
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.0 / 5040.0;
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = r.mul_add(p, c);
    }
    // The low bits of `shifted` are n in two's complement.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { p * scale }
}

/// The error function within 1.4e-7, and e^(-x^2), which it needs anyway and whose caller wants it
/// for the derivative.
///
/// An odd polynomial up to 1, above it `1 - t P(t) e^(-x^2)` with `t = 1 / (1 + 0.35 |x|)`, the form
/// of Abramowitz and Stegun 7.1.26. Both minimax fits (5.8e-10 and 2.8e-10); one form alone would
/// lose digits at one end.
#[allow(clippy::approx_constant)] // fitted: 2 / sqrt(pi) itself would be one bit away
#[inline(always)]
fn erf_and_gauss(x: f32) -> (f32, f32) {
    let square = x * x;
    let gauss = exp(-square);
    let mut near = 7.647_027e-5f32;
    for c in [
        -7.942_329_4e-4,
        5.179_746_5e-3,
        -2.684_859e-2,
        0.112_834_3,
        -0.376_126_05,
        std::f32::consts::FRAC_2_SQRT_PI,
    ] {
        near = square.mul_add(near, c);
    }
    let t = 1.0 / 0.35f32.mul_add(x.abs(), 1.0);
    let mut far = 0.570_158_54f32;
    for c in [-0.391_539_22, 0.510_185_8, 0.103_044_95, 0.208_452_34] {
        far = t.mul_add(far, c);
    }
    let far = (-far * t).mul_add(gauss, 1.0).copysign(x);
    (if x.abs() < 1.0 { near * x } else { far }, gauss)
}

/// `x Phi(x)`, the exact (erf) GELU.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let (erf, _) = erf_and_gauss(x * std::f32::consts::FRAC_1_SQRT_2);
    0.5 * x * (1.0 + erf)
}

/// Derivative of [`gelu`].
#[inline(always)]
pub fn gelu_grad(x: f32) -> f32 {
    let (erf, gauss) = erf_and_gauss(x * std::f32::consts::FRAC_1_SQRT_2);
    let density = gauss * 0.398_942_3;
    x.mul_add(density, 0.5 * (1.0 + erf))
}

/// The slope of the sigmoid in the quick form of GELU.
const QUICK_SLOPE: f32 = 1.702;

/// The quick form of GELU, `x sigmoid(1.702 x)`.
#[inline(always)]
pub fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-QUICK_SLOPE * x))
}

/// Derivative of [`quick_gelu`].
#[inline(always)]
pub fn quick_gelu_grad(x: f32) -> f32 {
    // Beyond 50 it is 0 or 1, and powers of x would only meet infinities.
    let x = x.clamp(-50.0, 50.0);
    let e = exp(-QUICK_SLOPE * x);
    let sigmoid = 1.0 / (1.0 + e);
    sigmoid * (QUICK_SLOPE * x).mul_add(e * sigmoid, 1.0)
}

/// 2 sqrt(2 / pi): the tanh form of GELU is `x sigmoid(TANH_SLOPE (x + TANH_CUBIC x^3))`.
const TANH_SLOPE: f32 = 1.595_769;
const TANH_CUBIC: f32 = 0.044_715;

/// The tanh form of GELU.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    let odd = x * (x * x).mul_add(TANH_CUBIC, 1.0);
    x / (1.0 + exp(-TANH_SLOPE * odd))
}

/// Derivative of [`gelu_tanh`].
#[inline(always)]
pub fn gelu_tanh_grad(x: f32) -> f32 {
    // Beyond 10 it is 0 or 1 within 1e-30, and powers of x would only meet rounding.
    let x = x.clamp(-10.0, 10.0);
    let square = x * x;
    let e = exp(-TANH_SLOPE * x * square.mul_add(TANH_CUBIC, 1.0));
    let sigmoid = 1.0 / (1.0 + e);
    let slope = TANH_SLOPE * square.mul_add(3.0 * TANH_CUBIC, 1.0);
    sigmoid * (x * slope).mul_add(e * sigmoid, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_gelu_are_close_to_the_library() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 4e-7, "exp({x})");
            let phi = 0.5 * (1.0 + libm::erf(f64::from(x) / 2f64.sqrt()));
            let density = (-0.5 * f64::from(x) * f64::from(x)).exp() / std::f64::consts::TAU.sqrt();
            assert!(
                (f64::from(gelu(x)) - f64::from(x) * phi).abs() < 1e-6,
                "gelu({x})"
            );
            let want = phi + f64::from(x) * density;
            assert!((f64::from(gelu_grad(x)) - want).abs() < 4e-7, "gelu'({x})");
            let (value, slope) = crate::ops::real::gelu_tanh(f64::from(x));
            assert!(
                (f64::from(gelu_tanh(x)) - value).abs() < 1e-6,
                "gelu_tanh({x})"
            );
            let (value, quick_slope) = crate::ops::real::quick_gelu(f64::from(x));
            let got = (f64::from(quick_gelu(x)), f64::from(quick_gelu_grad(x)));
            assert!((got.0 - value).abs() < 1e-6, "quick_gelu({x})");
            assert!((got.1 - quick_slope).abs() < 1e-6, "quick_gelu'({x})");
            let got = f64::from(gelu_tanh_grad(x));
            assert!((got - slope).abs() < 1e-6, "gelu_tanh'({x})");
        }
        assert_eq!(exp(-1000.0), 0.0);
        assert!(gelu_tanh_grad(-1e30).abs() < 1e-30 && gelu_tanh_grad(1e30) == 1.0);
        assert!(gelu_tanh(f32::NAN).is_nan() && gelu_tanh_grad(f32::NAN).is_nan());
        assert!(exp(f32::NAN).is_nan() && gelu(f32::NAN).is_nan());
        assert!(gelu(f32::INFINITY) > 1e30);
    }

    #[test]
    fn every_half_is_widened_as_half_does() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for n in [0, 1, 7, 8, 65_533, 65_536] {
            let mut wide = vec![0.5; n];
            widen(&mut wide, &halves[..n]);
            for (wide, half) in wide.iter().zip(&halves) {
                let want = half.to_f32();
                assert!(*wide == want || wide.is_nan() && want.is_nan(), "{half:?}");
            }
        }
    }

    #[test]
    fn sums_do_not_depend_on_where_they_run() {
        let x: Vec<f32> = (0..1037).map(|i| (i as f32).sin()).collect();
        let wide = vector(|| sum_map(&x, |v| v));
        assert_eq!(wide, sum_map(&x, |v| v));
        assert!((vector(|| dot(&x, &x)) - x.iter().map(|v| v * v).sum::<f32>()).abs() < 1e-3);
    }
}
