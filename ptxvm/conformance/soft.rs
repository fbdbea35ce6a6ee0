//! Rounding to narrow floats by the definition: scale to units in the last place, round, scale back.

/// Rounding modes of PTX.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
}

/// An integer next to `x`.
pub fn integral(x: f64, mode: Mode) -> f64 {
    match mode {
        Mode::Nearest => {
            let (low, rest) = (x.floor(), x - x.floor());
            let up = rest > 0.5 || rest == 0.5 && low % 2.0 != 0.0;
            (if up { low + 1.0 } else { low }).copysign(x)
        }
        Mode::Zero => x.trunc(),
        Mode::Down => x.floor(),
        Mode::Up => x.ceil(),
    }
}

/// `x` with so many significant digits and exponents from `low` to `high`.
fn narrow(x: f64, digits: i32, low: i32, high: i32, mode: Mode) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7FF) as i32 - 1023).max(low);
    let unit = 2f64.powi(exponent - digits + 1);
    let y = integral(x / unit, mode) * unit;
    let most = 2f64.powi(high + 1) - 2f64.powi(high + 1 - digits);
    if y.abs() <= most {
        return y;
    }
    let stays = match mode {
        Mode::Nearest => false,
        Mode::Zero => true,
        Mode::Down => x > 0.0,
        Mode::Up => x < 0.0,
    };
    if stays { most } else { f64::INFINITY }.copysign(x)
}

/// Bits of the half next to `x`.
pub fn to_f16(x: f64, mode: Mode) -> u16 {
    let y = narrow(x, 11, -14, 15, mode);
    let sign = if y.is_sign_negative() { 0x8000 } else { 0 };
    let size = y.abs();
    sign | if y.is_nan() {
        0x7FFF
    } else if size.is_infinite() {
        0x7C00
    } else if size < 2f64.powi(-14) {
        (size * 2f64.powi(24)) as u16
    } else {
        let exponent = (size.to_bits() >> 52) as i32 - 1023;
        ((exponent + 15) as u16) << 10 | (size.to_bits() >> 42) as u16 & 0x3FF
    }
}

/// The value of a half.
pub fn f16_value(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3FF));
    let size = match exponent {
        31 if fraction > 0.0 => f64::NAN,
        31 => f64::INFINITY,
        0 => fraction * 2f64.powi(-24),
        e => (1.0 + fraction / 1024.0) * 2f64.powi(e - 15),
    };
    if bits & 0x8000 != 0 { -size } else { size }
}

/// Bits of the bfloat next to `x`.
pub fn to_bf16(x: f64, mode: Mode) -> u16 {
    if x.is_nan() {
        return 0x7FFF;
    }
    ((narrow(x, 8, -126, 127, mode) as f32).to_bits() >> 16) as u16
}

/// Bits of the single next to `x`.
pub fn to_f32(x: f64, mode: Mode) -> u32 {
    (narrow(x, 24, -126, 127, mode) as f32).to_bits()
}
