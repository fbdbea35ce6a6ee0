//! Arithmetic and moves of whole rows.

use super::scalar::*;
use super::{Double, Warp, Word};
use crate::fault::Checked;
use crate::ir::{Alu, Alu64, COPIES, Carry, Part, Round, Row};

impl Warp {
    #[inline(always)]
    fn map(&mut self, d: Row, [a, b, c]: [Row; 3], m: u32, op: impl Fn(u32, u32, u32) -> u32) {
        let (x, y, z) = (
            &self.words[a as usize],
            &self.words[b as usize],
            &self.words[c as usize],
        );
        let mut value: Word = [0; 32];
        for i in 0..32 {
            value[i] = op(x[i], y[i], z[i]);
        }
        self.put(d, m, &value);
    }

    #[inline(always)]
    fn map64(&mut self, d: Row, [a, b, c]: [Row; 3], m: u32, op: impl Fn(u64, u64, u64) -> u64) {
        let (x, y, z) = (
            &self.doubles[a as usize],
            &self.doubles[b as usize],
            &self.doubles[c as usize],
        );
        let mut value: Double = [0; 32];
        for i in 0..32 {
            value[i] = op(x[i], y[i], z[i]);
        }
        self.put64(d, m, &value);
    }

    #[inline(always)]
    pub(super) fn wide(&mut self, signed: bool, d: Row, [a, b, c]: [Row; 3], m: u32) {
        let (x, y, z) = (
            &self.words[a as usize],
            &self.words[b as usize],
            &self.doubles[c as usize],
        );
        let mut value: Double = [0; 32];
        for i in 0..32 {
            let product = if signed {
                (i64::from(x[i] as i32) * i64::from(y[i] as i32)) as u64
            } else {
                u64::from(x[i]) * u64::from(y[i])
            };
            value[i] = product.wrapping_add(z[i]);
        }
        self.put64(d, m, &value);
    }

    #[inline(always)]
    pub(super) fn alu(&mut self, op: Alu, d: Row, r: [Row; 3], m: u32) -> Checked<()> {
        macro_rules! lanes {
            (|$x:pat_param, $y:pat_param, $z:pat_param| $e:expr) => {
                self.map(
                    d,
                    r,
                    m,
                    #[inline(always)]
                    |$x, $y, $z| $e,
                )
            };
        }
        match op {
            Alu::Add => lanes!(|x, y, _| x.wrapping_add(y)),
            Alu::Sub => lanes!(|x, y, _| x.wrapping_sub(y)),
            Alu::Mul => lanes!(|x, y, _| x.wrapping_mul(y)),
            Alu::Mad => lanes!(|x, y, z| x.wrapping_mul(y).wrapping_add(z)),
            Alu::And => lanes!(|x, y, _| x & y),
            Alu::Or => lanes!(|x, y, _| x | y),
            Alu::Xor => lanes!(|x, y, _| x ^ y),
            Alu::Not => lanes!(|x, _, _| !x),
            Alu::Shl => lanes!(|x, y, _| if y > 31 { 0 } else { x << (y & 31) }),
            Alu::ShrU => lanes!(|x, y, _| if y > 31 { 0 } else { x >> (y & 31) }),
            Alu::ShrS => lanes!(|x, y, _| ((x as i32) >> y.min(31)) as u32),
            Alu::MinU => lanes!(|x, y, _| x.min(y)),
            Alu::MaxU => lanes!(|x, y, _| x.max(y)),
            Alu::MinS => lanes!(|x, y, _| (x as i32).min(y as i32) as u32),
            Alu::MaxS => lanes!(|x, y, _| (x as i32).max(y as i32) as u32),
            Alu::FAdd => lanes!(|x, y, _| (f(x) + f(y)).to_bits()),
            Alu::FSub => lanes!(|x, y, _| (f(x) - f(y)).to_bits()),
            Alu::FMul => lanes!(|x, y, _| (f(x) * f(y)).to_bits()),
            Alu::FFma => lanes!(|x, y, z| f(x).mul_add(f(y), f(z)).to_bits()),
            Alu::FNeg => lanes!(|x, _, _| x ^ 0x8000_0000),
            Alu::FAbs => lanes!(|x, _, _| x & 0x7FFF_FFFF),
            Alu::FMin => lanes!(|x, y, _| fmin(f(x), f(y)).to_bits()),
            Alu::FMax => lanes!(|x, y, _| fmax(f(x), f(y)).to_bits()),
            Alu::FDiv => lanes!(|x, y, _| (f(x) / f(y)).to_bits()),
            Alu::FSqrt => lanes!(|x, _, _| f(x).sqrt().to_bits()),
            Alu::FRcp => lanes!(|x, _, _| (1.0 / f(x)).to_bits()),
            Alu::FRsqrt => lanes!(|x, _, _| (1.0 / f(x).sqrt()).to_bits()),
            _ => self.alu_rare(op, d, r, m)?,
        }
        Ok(())
    }

    #[inline(never)]
    fn alu_rare(&mut self, op: Alu, d: Row, r: [Row; 3], m: u32) -> Checked<()> {
        macro_rules! lanes {
            (|$x:pat_param, $y:pat_param, $z:pat_param| $e:expr) => {
                self.map(d, r, m, |$x, $y, $z| $e)
            };
        }
        let w16 = 0xFFFFu32;
        match op {
            Alu::MulHiU => lanes!(|x, y, _| ((u64::from(x) * u64::from(y)) >> 32) as u32),
            Alu::MulHiS => {
                lanes!(|x, y, _| ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32)
            }
            Alu::MadHiU => {
                lanes!(|x, y, z| (((u64::from(x) * u64::from(y)) >> 32) as u32).wrapping_add(z));
            }
            Alu::MadHiS => lanes!(|x, y, z| {
                (((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32).wrapping_add(z)
            }),
            // A GPU gives all ones on division by zero, and does not stop.
            Alu::DivU => lanes!(|x, y, _| x.checked_div(y).unwrap_or(u32::MAX)),
            Alu::RemU => lanes!(|x, y, _| x.checked_rem(y).unwrap_or(x)),
            Alu::DivS => lanes!(|x, y, _| if y == 0 {
                u32::MAX
            } else {
                (x as i32).wrapping_div(y as i32) as u32
            }),
            Alu::RemS => lanes!(|x, y, _| if y == 0 {
                x
            } else {
                (x as i32).wrapping_rem(y as i32) as u32
            }),
            Alu::NegS => lanes!(|x, _, _| x.wrapping_neg()),
            Alu::AbsS => lanes!(|x, _, _| (x as i32).wrapping_abs() as u32),
            Alu::ShfLWrap => lanes!(|x, y, z| funnel(x, y, z & 31, true)),
            Alu::ShfRWrap => lanes!(|x, y, z| funnel(x, y, z & 31, false)),
            Alu::ShfLClamp => lanes!(|x, y, z| funnel(x, y, z.min(32), true)),
            Alu::ShfRClamp => lanes!(|x, y, z| funnel(x, y, z.min(32), false)),
            Alu::BfeU => lanes!(|x, y, z| bfe(x, y, z, false)),
            Alu::BfeS => lanes!(|x, y, z| bfe(x, y, z, true)),
            Alu::BfindU => lanes!(|x, _, _| bfind(x.into(), 31, false, false)),
            Alu::BfindS => lanes!(|x, _, _| bfind(x.into(), 31, true, false)),
            Alu::ShiftAmtU => lanes!(|x, _, _| bfind(x.into(), 31, false, true)),
            Alu::ShiftAmtS => lanes!(|x, _, _| bfind(x.into(), 31, true, true)),
            Alu::Brev => lanes!(|x, _, _| x.reverse_bits()),
            Alu::Clz => lanes!(|x, _, _| x.leading_zeros()),
            Alu::Popc => lanes!(|x, _, _| x.count_ones()),
            Alu::Prmt => lanes!(|x, y, z| prmt(x, y, z)),
            Alu::Add16 => lanes!(|x, y, _| x.wrapping_add(y) & w16),
            Alu::Sub16 => lanes!(|x, y, _| x.wrapping_sub(y) & w16),
            Alu::Mul16 => lanes!(|x, y, _| x.wrapping_mul(y) & w16),
            Alu::Mad16 => lanes!(|x, y, z| x.wrapping_mul(y).wrapping_add(z) & w16),
            Alu::Shl16 => lanes!(|x, y, _| if y > 15 { 0 } else { x << y & w16 }),
            Alu::ShrU16 => lanes!(|x, y, _| if y > 15 { 0 } else { (x & w16) >> y }),
            Alu::ShrS16 => lanes!(|x, y, _| (i32::from(x as i16) >> y.min(15)) as u32 & w16),
            Alu::Not16 => lanes!(|x, _, _| !x & w16),
            Alu::Neg16 => lanes!(|x, _, _| x.wrapping_neg() & w16),
            Alu::Abs16 => lanes!(|x, _, _| u32::from((x as i16).wrapping_abs() as u16)),
            Alu::MinS16 => lanes!(|x, y, _| u32::from((x as i16).min(y as i16) as u16)),
            Alu::MaxS16 => lanes!(|x, y, _| u32::from((x as i16).max(y as i16) as u16)),
            Alu::DivU16 => lanes!(|x, y, _| (x & w16).checked_div(y & w16).unwrap_or(w16)),
            Alu::RemU16 => lanes!(|x, y, _| (x & w16).checked_rem(y & w16).unwrap_or(x & w16)),
            Alu::FFmaRm => lanes!(|x, y, z| directed_fma(f(x), f(y), f(z), Round::Down).to_bits()),
            Alu::FFmaRp => lanes!(|x, y, z| directed_fma(f(x), f(y), f(z), Round::Up).to_bits()),
            Alu::FFmaRz => lanes!(|x, y, z| directed_fma(f(x), f(y), f(z), Round::Zero).to_bits()),
            Alu::FMinNan => lanes!(|x, y, _| if f(x).is_nan() || f(y).is_nan() {
                0x7FFF_FFFF
            } else {
                fmin(f(x), f(y)).to_bits()
            }),
            Alu::FMaxNan => lanes!(|x, y, _| if f(x).is_nan() || f(y).is_nan() {
                0x7FFF_FFFF
            } else {
                fmax(f(x), f(y)).to_bits()
            }),
            Alu::FEx2 => lanes!(|x, _, _| f(x).exp2().to_bits()),
            Alu::FLg2 => lanes!(|x, _, _| f(x).log2().to_bits()),
            Alu::FSin => lanes!(|x, _, _| f(x).sin().to_bits()),
            Alu::FCos => lanes!(|x, _, _| f(x).cos().to_bits()),
            Alu::FTanh => lanes!(|x, _, _| f(x).tanh().to_bits()),
            Alu::FCopysign => lanes!(|x, y, _| x & 0x8000_0000 | y & 0x7FFF_FFFF),
            Alu::HAdd => lanes!(|x, y, _| to_h(h(x) + h(y))),
            Alu::HSub => lanes!(|x, y, _| to_h(h(x) - h(y))),
            Alu::HMul => lanes!(|x, y, _| to_h(h(x) * h(y))),
            Alu::HFma => lanes!(|x, y, z| h_fma(x, y, z)),
            Alu::HNeg => lanes!(|x, _, _| x ^ 0x8000),
            Alu::HAbs => lanes!(|x, _, _| x & 0x7FFF),
            Alu::HMin => lanes!(|x, y, _| to_h(fmin(h(x), h(y)))),
            Alu::HMax => lanes!(|x, y, _| to_h(fmax(h(x), h(y)))),
            Alu::HAdd2 => lanes!(|x, y, z| pair(x, y, z, |x, y, _| to_h(h(x) + h(y)))),
            Alu::HSub2 => lanes!(|x, y, z| pair(x, y, z, |x, y, _| to_h(h(x) - h(y)))),
            Alu::HMul2 => lanes!(|x, y, z| pair(x, y, z, |x, y, _| to_h(h(x) * h(y)))),
            Alu::HFma2 => lanes!(|x, y, z| pair(x, y, z, h_fma)),
            Alu::HNeg2 => lanes!(|x, _, _| x ^ 0x8000_8000),
            Alu::HAbs2 => lanes!(|x, _, _| x & 0x7FFF_7FFF),
            Alu::HMin2 => lanes!(|x, y, z| pair(x, y, z, |x, y, _| to_h(fmin(h(x), h(y))))),
            Alu::HMax2 => lanes!(|x, y, z| pair(x, y, z, |x, y, _| to_h(fmax(h(x), h(y))))),
            Alu::BFma => lanes!(|x, y, z| b_fma(x, y, z)),
            Alu::BFma2 => lanes!(|x, y, z| pair(x, y, z, b_fma)),
            Alu::BAdd2 => lanes!(|x, y, z| pair(x, y, z, |x, y, _| to_b(b(x) + b(y)))),
            Alu::BMul2 => lanes!(|x, y, z| pair(x, y, z, |x, y, _| to_b(b(x) * b(y)))),
            other => unreachable!("{other:?} is taken by `alu`"),
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn alu64(&mut self, op: Alu64, d: Row, r: [Row; 3], m: u32) -> Checked<()> {
        macro_rules! lanes {
            (|$x:pat_param, $y:pat_param, $z:pat_param| $e:expr) => {
                self.map64(
                    d,
                    r,
                    m,
                    #[inline(always)]
                    |$x, $y, $z| $e,
                )
            };
        }
        let f = f64::from_bits;
        match op {
            Alu64::Add => lanes!(|x, y, _| x.wrapping_add(y)),
            Alu64::Sub => lanes!(|x, y, _| x.wrapping_sub(y)),
            Alu64::Mul => lanes!(|x, y, _| x.wrapping_mul(y)),
            Alu64::Mad => lanes!(|x, y, z| x.wrapping_mul(y).wrapping_add(z)),
            Alu64::And => lanes!(|x, y, _| x & y),
            Alu64::Or => lanes!(|x, y, _| x | y),
            Alu64::Xor => lanes!(|x, y, _| x ^ y),
            Alu64::Not => lanes!(|x, _, _| !x),
            Alu64::MulHiU => lanes!(|x, y, _| ((u128::from(x) * u128::from(y)) >> 64) as u64),
            Alu64::MulHiS => {
                lanes!(|x, y, _| ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64);
            }
            Alu64::DivU => lanes!(|x, y, _| x.checked_div(y).unwrap_or(u64::MAX)),
            Alu64::RemU => lanes!(|x, y, _| x.checked_rem(y).unwrap_or(x)),
            Alu64::DivS => lanes!(|x, y, _| if y == 0 {
                u64::MAX
            } else {
                (x as i64).wrapping_div(y as i64) as u64
            }),
            Alu64::RemS => lanes!(|x, y, _| if y == 0 {
                x
            } else {
                (x as i64).wrapping_rem(y as i64) as u64
            }),
            Alu64::MinU => lanes!(|x, y, _| x.min(y)),
            Alu64::MaxU => lanes!(|x, y, _| x.max(y)),
            Alu64::MinS => lanes!(|x, y, _| (x as i64).min(y as i64) as u64),
            Alu64::MaxS => lanes!(|x, y, _| (x as i64).max(y as i64) as u64),
            Alu64::NegS => lanes!(|x, _, _| x.wrapping_neg()),
            Alu64::AbsS => lanes!(|x, _, _| (x as i64).wrapping_abs() as u64),
            Alu64::DAdd => lanes!(|x, y, _| (f(x) + f(y)).to_bits()),
            Alu64::DSub => lanes!(|x, y, _| (f(x) - f(y)).to_bits()),
            Alu64::DMul => lanes!(|x, y, _| (f(x) * f(y)).to_bits()),
            Alu64::DFma => lanes!(|x, y, z| f(x).mul_add(f(y), f(z)).to_bits()),
            Alu64::DDiv => lanes!(|x, y, _| (f(x) / f(y)).to_bits()),
            Alu64::DMin => lanes!(|x, y, _| dmin(f(x), f(y)).to_bits()),
            Alu64::DMax => lanes!(|x, y, _| (-dmin(-f(x), -f(y))).to_bits()),
            Alu64::DNeg => lanes!(|x, _, _| (-f(x)).to_bits()),
            Alu64::DAbs => lanes!(|x, _, _| f(x).abs().to_bits()),
            Alu64::DSqrt => lanes!(|x, _, _| f(x).sqrt().to_bits()),
            Alu64::DRcp => lanes!(|x, _, _| (1.0 / f(x)).to_bits()),
        }
        Ok(())
    }

    pub(super) fn pack(&mut self, d: Row, wide: bool, parts: &[Part], m: u32) {
        let bits = if wide { 64 } else { 32 } / parts.len() as u32;
        let ones = if bits == 64 {
            u64::MAX
        } else {
            (1 << bits) - 1
        };
        let value: Double = std::array::from_fn(|i| {
            parts.iter().rev().fold(0u64, |out, p| {
                out.checked_shl(bits).unwrap_or(0) | self.part(p, i) & ones
            })
        });
        if wide {
            self.put64(d, m, &value);
        } else {
            self.put(d, m, &value.map(|v| v as u32));
        }
    }

    pub(super) fn unpack(&mut self, a: Row, wide: bool, parts: &[Part], m: u32) {
        let bits = if wide { 64 } else { 32 } / parts.len() as u32;
        let source: Double = if wide {
            self.doubles[a as usize]
        } else {
            self.words[a as usize].map(u64::from)
        };
        let ones = if bits == 64 {
            u64::MAX
        } else {
            (1 << bits) - 1
        };
        for (k, p) in parts.iter().enumerate() {
            let value = source.map(|s| s >> (bits * k as u32) & ones);
            self.set_part(p, m, &value);
        }
    }

    /// Rows to read f32 inputs from: the same, or copies in which subnormal numbers are zero.
    #[inline(always)]
    pub(super) fn inputs<const N: usize>(&mut self, flush: bool, rows: [Row; N]) -> [Row; N] {
        if !flush {
            return rows;
        }
        std::array::from_fn(|i| {
            self.words[COPIES[i] as usize] = self.words[rows[i] as usize].map(flushed);
            COPIES[i]
        })
    }

    /// Makes subnormal results zero.
    pub(super) fn flush_result(&mut self, d: Row, m: u32) {
        let value = self.words[d as usize].map(flushed);
        self.put(d, m, &value);
    }

    /// A sum of 32 or 64 bits that takes in the carry flag or sets it.
    pub(super) fn carries(
        &mut self,
        f: Carry,
        wide: bool,
        (takes, sets): (bool, bool),
        d: Row,
        rows: [Row; 3],
        m: u32,
    ) {
        let bits = if wide { 64 } else { 32 };
        let (mut value, mut out): (Double, u32) = ([0; 32], 0);
        for i in 0..32 {
            let [x, y, z] = rows.map(|row| self.part(&Part { row, wide }, i));
            let carry = takes && self.carry >> i & 1 == 1;
            let (v, c) = carried(f, bits, [x, y, z], carry);
            value[i] = v;
            out |= u32::from(c) << i;
        }
        self.set_part(&Part { row: d, wide }, m, &value);
        if sets {
            self.carry = self.carry & !m | out & m;
        }
    }

    /// A lane of a part, zero-extended.
    #[inline(always)]
    pub(super) fn part(&self, p: &Part, lane: usize) -> u64 {
        if p.wide {
            self.doubles[p.row as usize][lane]
        } else {
            self.words[p.row as usize][lane].into()
        }
    }

    #[inline(always)]
    pub(super) fn set_part(&mut self, p: &Part, m: u32, value: &Double) {
        if p.row == crate::ir::NONE {
            return;
        }
        if p.wide {
            self.put64(p.row, m, value);
        } else {
            let mut narrow = [0; 32];
            for i in 0..32 {
                narrow[i] = value[i] as u32;
            }
            self.put(p.row, m, &narrow);
        }
    }
}
