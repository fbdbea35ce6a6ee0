//! Arithmetic, comparisons, moves.

use half::{bf16, f16};

use super::{Block, Double, Warp, Word, sticky};
use crate::fault::{Checked, FaultKind, trouble};
use crate::ir::{Alu, Alu64, Bool, Cmp, Inst, Op, Part, Round, Row, Ty};

#[inline(always)]
fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

#[inline(always)]
fn h(x: u32) -> f32 {
    f16::from_bits(x as u16).to_f32()
}

#[inline(always)]
fn to_h(x: f32) -> u32 {
    f16::from_f32(x).to_bits().into()
}

#[inline(always)]
fn b(x: u32) -> f32 {
    bf16::from_bits(x as u16).to_f32()
}

#[inline(always)]
fn to_b(x: f32) -> u32 {
    bf16::from_f32(x).to_bits().into()
}

/// A product and a sum rounded once.
#[inline(always)]
fn h_fma(x: u32, y: u32, z: u32) -> u32 {
    to_h(sticky::single(sticky::fma(
        h(x).into(),
        h(y).into(),
        h(z).into(),
    )))
}

#[inline(always)]
fn b_fma(x: u32, y: u32, z: u32) -> u32 {
    to_b(sticky::single(sticky::fma(
        b(x).into(),
        b(y).into(),
        b(z).into(),
    )))
}

/// Both halves of a pair.
#[inline(always)]
fn pair(x: u32, y: u32, z: u32, op: impl Fn(u32, u32, u32) -> u32) -> u32 {
    op(x & 0xFFFF, y & 0xFFFF, z & 0xFFFF) & 0xFFFF | op(x >> 16, y >> 16, z >> 16) << 16
}

/// The smaller number; the other one if one is NaN, as `min.f32`.
#[inline(always)]
fn fmin(x: f32, y: f32) -> f32 {
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
fn dmin(x: f64, y: f64) -> f64 {
    if x.is_nan() {
        y
    } else if y.is_nan() || x.total_cmp(&y).is_lt() {
        x
    } else {
        y
    }
}

#[inline(always)]
fn fmax(x: f32, y: f32) -> f32 {
    -fmin(-x, -y)
}

/// `fma` rounded in one direction.
fn directed_fma(x: f32, y: f32, z: f32, round: Round) -> f32 {
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
fn prmt(x: u32, y: u32, selector: u32) -> u32 {
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

#[inline(always)]
fn bfe(x: u32, pos: u32, len: u32, signed: bool) -> u32 {
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
fn funnel(lo: u32, hi: u32, shift: u32, left: bool) -> u32 {
    let both = u64::from(hi) << 32 | u64::from(lo);
    if left {
        (both << shift >> 32) as u32
    } else {
        (both >> shift) as u32
    }
}

impl Warp {
    /// Runs an instruction that neither branches nor waits.
    #[inline(always)]
    pub(super) fn execute(&mut self, inst: &Inst, m: u32, block: &mut Block<'_>) -> Checked<()> {
        match &inst.op {
            Op::Alu { f, d, a, b, c } => self.alu(*f, *d, [*a, *b, *c], m)?,
            Op::Alu64 { f, d, a, b, c } => self.alu64(*f, *d, [*a, *b, *c], m)?,
            Op::Mov { d, a } => {
                let value = self.words[*a as usize];
                self.put(*d, m, &value);
            }
            Op::Mov64 { d, a } => {
                let value = self.doubles[*a as usize];
                self.put64(*d, m, &value);
            }
            Op::Wide { signed, d, a, b, c } => self.wide(*signed, *d, [*a, *b, *c], m),
            Op::Setp {
                ty,
                cmp,
                d,
                other,
                a,
                b,
                with,
            } => {
                let mut p = self.compare(*ty, *cmp, *a, *b);
                let mut q = !p;
                if let Some((f, with, negated)) = with {
                    let w = self.pred(*with, *negated);
                    (p, q) = (logic(*f, p, w), logic(*f, q, w));
                }
                self.put_pred(*d, m, p);
                self.put_pred(*other, m, q);
            }
            Op::Selp {
                wide,
                d,
                a,
                b,
                p,
                np,
            } => {
                let p = self.pred(*p, *np);
                if *wide {
                    let (x, y) = (self.doubles[*a as usize], self.doubles[*b as usize]);
                    self.put64(
                        *d,
                        m,
                        &std::array::from_fn(|i| if p >> i & 1 == 1 { x[i] } else { y[i] }),
                    );
                } else {
                    let (x, y) = (self.words[*a as usize], self.words[*b as usize]);
                    self.put(
                        *d,
                        m,
                        &std::array::from_fn(|i| if p >> i & 1 == 1 { x[i] } else { y[i] }),
                    );
                }
            }
            Op::Ld {
                space,
                bytes,
                signed,
                parts,
                addr,
            } => {
                self.load(*space, *bytes, *signed, parts, addr, m, block)?;
            }
            Op::St {
                space,
                bytes,
                parts,
                addr,
            } => self.store(*space, *bytes, parts, addr, m, block)?,
            Op::Cvt {
                to,
                from,
                round,
                integral,
                sat,
                d,
                a,
            } => {
                self.cvt((*to, *from), (*round, *integral, *sat), *d, *a, m);
            }
            Op::CvtPair {
                bf16,
                relu,
                d,
                hi,
                lo,
            } => self.cvt_pair(*bf16, *relu, *d, (*hi, *lo), m),
            Op::Mma { shape, d, a, b, c } => self.mma(*shape, [d, a, b, c], m, block)?,
            Op::LdMatrix {
                num,
                trans,
                parts,
                addr,
            } => {
                self.ldmatrix(*num, *trans, parts, addr, m, block)?;
            }
            Op::StMatrix {
                num,
                trans,
                parts,
                addr,
            } => {
                self.stmatrix(*num, *trans, parts, addr, m, block)?;
            }
            Op::CpAsync {
                bytes,
                dst,
                src,
                size,
            } => {
                self.cp_async(*bytes, dst, src, *size, m, block)?;
            }
            Op::CpCommit => self.commit(m),
            Op::CpWait { pending } => self.wait(*pending, m, block)?,
            Op::Shfl {
                mode,
                d,
                p,
                a,
                b,
                c,
                mask,
            } => {
                self.shfl(*mode, (*d, *p), [*a, *b, *c, *mask], m)?;
            }
            Op::Nop => {}
            other => self.execute_rare(other, m, block)?,
        }
        Ok(())
    }

    /// Kept out of the hot loop.
    #[inline(never)]
    fn execute_rare(&mut self, op: &Op, m: u32, block: &mut Block<'_>) -> Checked<()> {
        match op {
            Op::Bfi { d, a, b, pos, len } => {
                let [x, y, p, l] = [a, b, pos, len].map(|r| self.words[*r as usize]);
                let value = std::array::from_fn(|i| {
                    let (pos, len) = (p[i] & 0xFF, l[i] & 0xFF);
                    if pos > 31 || len == 0 {
                        return y[i];
                    }
                    let ones = if len >= 32 { u32::MAX } else { (1 << len) - 1 } << pos;
                    y[i] & !ones | x[i] << pos & ones
                });
                self.put(*d, m, &value);
            }
            Op::Lop3 { d, a, b, c, table } => {
                let [x, y, z] = [a, b, c].map(|r| self.words[*r as usize]);
                let value = std::array::from_fn(|i| {
                    (0..8).filter(|t| table >> t & 1 == 1).fold(0, |out, t| {
                        let side = |v: u32, bit: u32| if t >> bit & 1 == 1 { v } else { !v };
                        out | side(x[i], 2) & side(y[i], 1) & side(z[i], 0)
                    })
                });
                self.put(*d, m, &value);
            }
            Op::Shift64 {
                left,
                signed,
                d,
                a,
                b,
            } => {
                let (x, s) = (self.doubles[*a as usize], self.words[*b as usize]);
                let value = std::array::from_fn(|i| {
                    let n = s[i].min(64);
                    match (left, signed) {
                        (true, _) => x[i].checked_shl(n).unwrap_or(0),
                        (false, false) => x[i].checked_shr(n).unwrap_or(0),
                        (false, true) => ((x[i] as i64) >> n.min(63)) as u64,
                    }
                });
                self.put64(*d, m, &value);
            }
            Op::Wide16 { signed, d, a, b, c } => {
                let [x, y, z] = [a, b, c].map(|r| self.words[*r as usize]);
                let value = std::array::from_fn(|i| {
                    let product = if *signed {
                        (i32::from(x[i] as i16) * i32::from(y[i] as i16)) as u32
                    } else {
                        (x[i] & 0xFFFF) * (y[i] & 0xFFFF)
                    };
                    product.wrapping_add(z[i])
                });
                self.put(*d, m, &value);
            }
            Op::Count64 { clz, d, a } => {
                let x = self.doubles[*a as usize];
                let value = std::array::from_fn(|i| {
                    if *clz {
                        x[i].leading_zeros()
                    } else {
                        x[i].count_ones()
                    }
                });
                self.put(*d, m, &value);
            }
            Op::Pack { d, wide, parts } => self.pack(*d, *wide, parts, m),
            Op::Unpack { a, wide, parts } => self.unpack(*a, *wide, parts, m),
            Op::Set {
                ty,
                cmp,
                d,
                a,
                b,
                one,
            } => {
                let p = self.compare(*ty, *cmp, *a, *b);
                let value = std::array::from_fn(|i| if p >> i & 1 == 1 { *one } else { 0 });
                self.put(*d, m, &value);
            }
            Op::PredLogic { f, d, a, na, b, nb } => {
                let value = logic(*f, self.pred(*a, *na), self.pred(*b, *nb));
                self.put_pred(*d, m, value);
            }
            Op::PredNot { d, a } => self.put_pred(*d, m, !self.preds[*a as usize]),
            Op::PredMov { d, a } => self.put_pred(*d, m, self.preds[*a as usize]),
            Op::PredConst { d, value } => self.put_pred(*d, m, if *value { u32::MAX } else { 0 }),
            Op::Trap => return trouble(FaultKind::Trap, super::first(m), "the kernel trapped"),
            Op::Atom {
                space,
                f,
                ty,
                d,
                addr,
                a,
                b,
            } => {
                self.atom(*space, (*f, *ty), *d, addr, (*a, *b), m, block)?;
            }
            Op::Cvta {
                to,
                space,
                wide_d,
                wide_a,
                d,
                a,
            } => {
                self.cvta(*to, *space, (*wide_d, *d), (*wide_a, *a), m);
            }
            Op::BarWarp { mask } => self.bar_warp(*mask, m)?,
            Op::Vote { f, d, a, na, mask } => self.vote(*f, *d, (*a, *na), *mask, m)?,
            Op::Match {
                all,
                wide,
                d,
                p,
                a,
                mask,
            } => {
                self.match_lanes(*all, *wide, (*d, *p), *a, *mask, m)?;
            }
            Op::Redux {
                f,
                signed,
                d,
                a,
                mask,
            } => self.redux(*f, *signed, *d, *a, *mask, m)?,
            Op::ActiveMask { d } => self.put(*d, m, &[m; 32]),
            // The others are taken by `execute` and by the loop.
            _ => {}
        }
        Ok(())
    }

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
    fn wide(&mut self, signed: bool, d: Row, [a, b, c]: [Row; 3], m: u32) {
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
    fn alu(&mut self, op: Alu, d: Row, r: [Row; 3], m: u32) -> Checked<()> {
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
            Alu::BfindU => lanes!(|x, _, _| 31u32.wrapping_sub(x.leading_zeros())),
            Alu::BfindS => lanes!(|x, _, _| {
                let x = if (x as i32) < 0 { !x } else { x };
                31u32.wrapping_sub(x.leading_zeros())
            }),
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
    fn alu64(&mut self, op: Alu64, d: Row, r: [Row; 3], m: u32) -> Checked<()> {
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

    #[inline(always)]
    fn compare(&self, ty: Ty, cmp: Cmp, a: Row, b: Row) -> u32 {
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
            Ty::Bf16 => floats(cmp, |i| (self::b(x[i]), self::b(y[i]))),
            Ty::S16 => ordered(cmp, |i| (x[i] as i16, y[i] as i16)),
            Ty::U16 => ordered(cmp, |i| (x[i] as u16, y[i] as u16)),
            Ty::S8 => ordered(cmp, |i| (x[i] as i8, y[i] as i8)),
            Ty::U8 => ordered(cmp, |i| (x[i] as u8, y[i] as u8)),
            _ => ordered(cmp, |i| (x[i], y[i])),
        }
    }

    fn pack(&mut self, d: Row, wide: bool, parts: &[Part], m: u32) {
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

    fn unpack(&mut self, a: Row, wide: bool, parts: &[Part], m: u32) {
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

fn logic(f: Bool, x: u32, y: u32) -> u32 {
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
