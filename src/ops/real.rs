//! Arithmetic of the reference ops: f32 and f64 through one trait.

use num_traits::{Float, NumAssign};

/// f32 or f64.
pub trait Real:
    Float + NumAssign + Send + Sync + std::fmt::Debug + std::iter::Sum + 'static
{
    /// The nearest number.
    fn of(x: f64) -> Self;
    /// As f64.
    fn f64(self) -> f64;
    /// The error function.
    fn erf(self) -> Self;
}

impl Real for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }
    fn f64(self) -> f64 {
        f64::from(self)
    }
    fn erf(self) -> f32 {
        libm::erff(self)
    }
}

impl Real for f64 {
    fn of(x: f64) -> f64 {
        x
    }
    fn f64(self) -> f64 {
        self
    }
    fn erf(self) -> f64 {
        libm::erf(self)
    }
}

/// The tanh form of GELU and its derivative.
pub fn gelu_tanh<F: Real>(x: F) -> (F, F) {
    let root = F::of((2.0 / std::f64::consts::PI).sqrt());
    let (cubic, half, one) = (F::of(0.044_715), F::of(0.5), F::one());
    let t = (root * (x + cubic * x * x * x)).tanh();
    let slope = root * (one + F::of(3.0) * cubic * x * x);
    let value = half * x * (one + t);
    (value, half * (one + t) + half * x * (one - t * t) * slope)
}

/// The exact GELU and its derivative.
pub fn gelu<F: Real>(x: F) -> (F, F) {
    let phi = F::of(0.5) * (F::one() + (x * F::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
    let density = (F::of(-0.5) * x * x).exp() * F::of(1.0 / std::f64::consts::TAU.sqrt());
    (x * phi, phi + x * density)
}

/// The quick form of GELU and its derivative: `x sigmoid(1.702 x)`.
pub fn quick_gelu<F: Real>(x: F) -> (F, F) {
    let slope = F::of(1.702);
    let sigmoid = F::one() / (F::one() + (-slope * x).exp());
    (
        x * sigmoid,
        sigmoid + x * slope * sigmoid * (F::one() - sigmoid),
    )
}
