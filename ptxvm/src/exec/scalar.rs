//! Arithmetic of one lane, bit by bit as PTX defines it.

use half::{bf16, f16};

use super::sticky;
use crate::ir::{Carry, Round};

#[inline(always)]
pub(super) fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

#[inline(always)]
pub(super) fn h(x: u32) -> f32 {
    f16::from_bits(x as u16).to_f32()
}

#[inline(always)]
pub(super) fn to_h(x: f32) -> u32 {
    f16::from_f32(x).to_bits().into()
}

#[inline(always)]
pub(super) fn b(x: u32) -> f32 {
    bf16::from_bits(x as u16).to_f32()
}

#[inline(always)]
pub(super) fn to_b(x: f32) -> u32 {
    bf16::from_f32(x).to_bits().into()
}

/// A product and a sum rounded once.
#[inline(always)]
pub(super) fn h_fma(x: u32, y: u32, z: u32) -> u32 {
    to_h(sticky::single(sticky::fma(
        h(x).into(),
        h(y).into(),
        h(z).into(),
    )))
}

#[inline(always)]
pub(super) fn b_fma(x: u32, y: u32, z: u32) -> u32 {
    to_b(sticky::single(sticky::fma(
        b(x).into(),
        b(y).into(),
        b(z).into(),
    )))
}

/// Both halves of a pair.
#[inline(always)]
pub(super) fn pair(x: u32, y: u32, z: u32, op: impl Fn(u32, u32, u32) -> u32) -> u32 {
    op(x & 0xFFFF, y & 0xFFFF, z & 0xFFFF) & 0xFFFF | op(x >> 16, y >> 16, z >> 16) << 16
}

/// A subnormal f32 becomes zero of its sign.
#[inline(always)]
pub(super) fn flushed(x: u32) -> u32 {
    if x & 0x7F80_0000 == 0 {
        x & 0x8000_0000
    } else {
        x
    }
}

/// A sum of so many bits with a carry, and the carry or borrow out of it.
pub(super) fn carried(f: Carry, bits: u32, [x, y, z]: [u64; 3], carry: bool) -> (u64, bool) {
    let ones = u64::MAX >> (64 - bits);
    let wide = |x: u64| u128::from(x & ones);
    let signed = |x: u64| i128::from((x << (64 - bits)) as i64 >> (64 - bits));
    let high = |product: u128| (product >> bits) as u64;
    let (left, right) = match f {
        Carry::Add => (x, y),
        Carry::Sub => {
            let (from, take) = (wide(x), wide(y) + u128::from(carry));
            return (from.wrapping_sub(take) as u64 & ones, from < take);
        }
        Carry::Mad => (x.wrapping_mul(y), z),
        Carry::MadHiU => (high(wide(x) * wide(y)), z),
        Carry::MadHiS => (high((signed(x) * signed(y)) as u128), z),
    };
    let sum = wide(left) + wide(right) + u128::from(carry);
    (sum as u64 & ones, sum >> bits != 0)
}

/// The smaller number; the other one if one is NaN, as `min.f32`.
#[inline(always)]
pub(super) fn fmin(x: f32, y: f32) -> f32 {
    if x.is_nan() {
        y
    } else if y.is_nan() {
        x
    } else if x == y {
        // -0 is below +0.
        if x.is_sign_negative() { x } else { y }
    } else if x < y {
        x
    } else {
        y
    }
}

/// [`fmin`] of f64.
#[inline(always)]
pub(super) fn dmin(x: f64, y: f64) -> f64 {
    if x.is_nan() {
        y
    } else if y.is_nan() || x.total_cmp(&y).is_lt() {
        x
    } else {
        y
    }
}

#[inline(always)]
pub(super) fn fmax(x: f32, y: f32) -> f32 {
    -fmin(-x, -y)
}

/// `fma` rounded in one direction.
pub(super) fn directed_fma(x: f32, y: f32, z: f32, round: Round) -> f32 {
    let (x, y, z) = (f64::from(x), f64::from(y), f64::from(z));
    let sum = sticky::fma(x, y, z);
    // Opposite numbers add up to -0 rounding down, to +0 otherwise.
    let opposite = (x * y).is_sign_negative() != z.is_sign_negative();
    if sum == 0.0 && opposite && round == Round::Down {
        return -0.0;
    }
    super::convert::directed(sum, round)
}

#[inline(always)]
pub(super) fn prmt(x: u32, y: u32, selector: u32) -> u32 {
    let bytes = u64::from(y) << 32 | u64::from(x);
    (0..4).fold(0, |out, i| {
        let s = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (s & 7))) as u8;
        let byte = if s & 8 != 0 {
            ((byte as i8) >> 7) as u8
        } else {
            byte
        };
        out | u32::from(byte) << (8 * i)
    })
}

/// The place of the highest bit of 0..=top that is not the sign, or how far it is below `top`; all
/// ones where there is none.
pub(super) fn bfind(x: u64, top: u32, signed: bool, amount: bool) -> u32 {
    let negative = signed && x >> top == 1;
    let x = if negative {
        !x & u64::MAX >> (63 - top)
    } else {
        x
    };
    match x.checked_ilog2() {
        Some(place) if amount => top - place,
        Some(place) => place,
        None => u32::MAX,
    }
}

#[inline(always)]
pub(super) fn bfe(x: u32, pos: u32, len: u32, signed: bool) -> u32 {
    let (pos, len) = (pos & 0xFF, len & 0xFF);
    if len == 0 {
        return 0;
    }
    let end = (pos + len - 1).min(31);
    let sign = if signed && x >> end & 1 == 1 {
        u32::MAX
    } else {
        0
    };
    let low = if pos > 31 { sign } else { x >> pos };
    let keep = if len >= 32 { u32::MAX } else { (1 << len) - 1 };
    let width = 32u32.saturating_sub(pos).min(len);
    let present = if width >= 32 {
        u32::MAX
    } else {
        (1u32 << width) - 1
    };
    low & keep & present | sign & !(present & keep)
}

#[inline(always)]
pub(super) fn funnel(lo: u32, hi: u32, shift: u32, left: bool) -> u32 {
    let both = u64::from(hi) << 32 | u64::from(lo);
    if left {
        (both << shift >> 32) as u32
    } else {
        (both >> shift) as u32
    }
}
