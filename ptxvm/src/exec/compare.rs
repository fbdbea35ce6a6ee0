//! Comparisons: a bit for each lane.

use super::Warp;
use super::scalar::{b as bfloat, f, h};
use crate::ir::{Bool, Cmp, Row, Ty};

impl Warp {
    #[inline(always)]
    pub(super) fn compare(&self, ty: Ty, cmp: Cmp, a: Row, b: Row) -> u32 {
        if ty.is_double() {
            let (x, y) = (&self.doubles[a as usize], &self.doubles[b as usize]);
            return match ty {
                Ty::U64 => ordered(cmp, |i| (x[i], y[i])),
                Ty::S64 => ordered(cmp, |i| (x[i] as i64, y[i] as i64)),
                _ => floats(cmp, |i| (f64::from_bits(x[i]), f64::from_bits(y[i]))),
            };
        }
        let (x, y) = (&self.words[a as usize], &self.words[b as usize]);
        match ty {
            Ty::S32 => ordered(cmp, |i| (x[i] as i32, y[i] as i32)),
            Ty::F32 => floats(cmp, |i| (f(x[i]), f(y[i]))),
            Ty::F16 => floats(cmp, |i| (h(x[i]), h(y[i]))),
            Ty::Bf16 => floats(cmp, |i| (bfloat(x[i]), bfloat(y[i]))),
            Ty::S16 => ordered(cmp, |i| (x[i] as i16, y[i] as i16)),
            Ty::U16 => ordered(cmp, |i| (x[i] as u16, y[i] as u16)),
            Ty::S8 => ordered(cmp, |i| (x[i] as i8, y[i] as i8)),
            Ty::U8 => ordered(cmp, |i| (x[i] as u8, y[i] as u8)),
            _ => ordered(cmp, |i| (x[i], y[i])),
        }
    }
}

pub(super) fn logic(f: Bool, x: u32, y: u32) -> u32 {
    match f {
        Bool::And => x & y,
        Bool::Or => x | y,
        Bool::Xor => x ^ y,
    }
}

#[inline(always)]
fn bits(test: impl Fn(usize) -> bool) -> u32 {
    let mut out = 0;
    for i in 0..32 {
        out |= u32::from(test(i)) << i;
    }
    out
}

#[inline(always)]
fn ordered<T: Ord>(cmp: Cmp, at: impl Fn(usize) -> (T, T)) -> u32 {
    let test = |g: fn(&T, &T) -> bool| {
        bits(|i| {
            let (x, y) = at(i);
            g(&x, &y)
        })
    };
    match cmp {
        Cmp::Eq | Cmp::Equ => test(|x, y| x == y),
        Cmp::Ne | Cmp::Neu => test(|x, y| x != y),
        Cmp::Lt | Cmp::Ltu => test(|x, y| x < y),
        Cmp::Le | Cmp::Leu => test(|x, y| x <= y),
        Cmp::Gt | Cmp::Gtu => test(|x, y| x > y),
        Cmp::Ge | Cmp::Geu => test(|x, y| x >= y),
        Cmp::Num => u32::MAX,
        Cmp::Nan => 0,
    }
}

#[inline(always)]
fn floats<T: PartialOrd + Copy>(cmp: Cmp, at: impl Fn(usize) -> (T, T)) -> u32 {
    let test = |g: fn(T, T) -> bool| {
        bits(|i| {
            let (x, y) = at(i);
            g(x, y)
        })
    };
    // What is NaN does not equal itself.
    #[allow(clippy::eq_op)]
    let nan = bits(|i| {
        let (x, y) = at(i);
        x != x || y != y
    });
    match cmp {
        Cmp::Eq => test(|x, y| x == y),
        Cmp::Ne => test(|x, y| x != y) & !nan,
        Cmp::Lt => test(|x, y| x < y),
        Cmp::Le => test(|x, y| x <= y),
        Cmp::Gt => test(|x, y| x > y),
        Cmp::Ge => test(|x, y| x >= y),
        Cmp::Equ => test(|x, y| x == y) | nan,
        Cmp::Neu => test(|x, y| x != y) | nan,
        Cmp::Ltu => test(|x, y| x < y) | nan,
        Cmp::Leu => test(|x, y| x <= y) | nan,
        Cmp::Gtu => test(|x, y| x > y) | nan,
        Cmp::Geu => test(|x, y| x >= y) | nan,
        Cmp::Num => !nan,
        Cmp::Nan => nan,
    }
}
