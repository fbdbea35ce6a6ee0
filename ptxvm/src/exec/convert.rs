//! `cvt`.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Double, Warp, Word, sticky};
use crate::ir::{Round, Row, Ty};

/// A value between the types: an integer or a float, wide enough for every type.
#[derive(Clone, Copy)]
enum Value {
    Int(i128),
    Float(f64),
}

impl Warp {
    #[inline(always)]
    pub(super) fn cvt(
        &mut self,
        (to, from): (Ty, Ty),
        (round, integral, sat): (Round, bool, bool),
        d: Row,
        a: Row,
        m: u32,
    ) {
        let plain = !integral && !sat && round == Round::Nearest;
        match (to, from) {
            (Ty::F32, Ty::F16) if plain => {
                let x = &self.words[a as usize];
                let (mut halves, mut out, mut bits) = ([f16::ZERO; 32], [0f32; 32], [0; 32]);
                for i in 0..32 {
                    halves[i] = f16::from_bits(x[i] as u16);
                }
                halves.convert_to_f32_slice(&mut out);
                for i in 0..32 {
                    bits[i] = out[i].to_bits();
                }
                self.put(d, m, &bits);
            }
            (Ty::F16, Ty::F32) if plain => {
                let x = self.floats(a);
                let (mut out, mut bits) = ([f16::ZERO; 32], [0; 32]);
                out.convert_from_f32_slice(&x);
                for i in 0..32 {
                    bits[i] = out[i].to_bits().into();
                }
                self.put(d, m, &bits);
            }
            (Ty::U64, Ty::U32) => {
                let (x, mut out) = (&self.words[a as usize], [0; 32]);
                for i in 0..32 {
                    out[i] = u64::from(x[i]);
                }
                self.put64(d, m, &out);
            }
            (Ty::S64 | Ty::U64, Ty::S32) if !sat => {
                let (x, mut out) = (&self.words[a as usize], [0; 32]);
                for i in 0..32 {
                    out[i] = i64::from(x[i] as i32) as u64;
                }
                self.put64(d, m, &out);
            }
            (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64) if !sat => {
                let (x, mut out) = (&self.doubles[a as usize], [0; 32]);
                for i in 0..32 {
                    out[i] = x[i] as u32;
                }
                self.put(d, m, &out);
            }
            (Ty::F32, Ty::S32) if plain => {
                let x = self.words[a as usize];
                self.put(d, m, &x.map(|v| (v as i32 as f32).to_bits()));
            }
            (Ty::F32, Ty::U32) if plain => {
                let x = self.words[a as usize];
                self.put(d, m, &x.map(|v| (v as f32).to_bits()));
            }
            _ => self.cvt_general((to, from), (round, integral, sat), d, a, m),
        }
    }

    #[inline(always)]
    fn floats(&self, row: Row) -> [f32; 32] {
        let (x, mut out) = (&self.words[row as usize], [0f32; 32]);
        for i in 0..32 {
            out[i] = f32::from_bits(x[i]);
        }
        out
    }

    #[inline(never)]
    fn cvt_general(
        &mut self,
        (to, from): (Ty, Ty),
        (round, integral, sat): (Round, bool, bool),
        d: Row,
        a: Row,
        m: u32,
    ) {
        let source: Double = if from.is_double() {
            self.doubles[a as usize]
        } else {
            self.words[a as usize].map(u64::from)
        };
        let value = source.map(|bits| {
            let value = match decode(from, bits) {
                Value::Float(x) if integral => Value::Float(to_integral(x, round)),
                v => v,
            };
            encode(to, value, round, sat)
        });
        if to.is_double() {
            self.put64(d, m, &value);
        } else {
            self.put(d, m, &value.map(|v| v as u32));
        }
    }

    #[inline(always)]
    pub(super) fn cvt_pair(&mut self, bf: bool, relu: bool, d: Row, (hi, lo): (Row, Row), m: u32) {
        let (mut h, mut l) = (self.floats(hi), self.floats(lo));
        if relu {
            for x in h.iter_mut().chain(&mut l) {
                *x = if *x <= 0.0 { 0.0 } else { *x };
            }
        }
        let mut out: Word = [0; 32];
        if bf {
            for i in 0..32 {
                out[i] = u32::from(bf16::from_f32(h[i]).to_bits()) << 16
                    | u32::from(bf16::from_f32(l[i]).to_bits());
            }
        } else {
            let (mut hh, mut ll) = ([f16::ZERO; 32], [f16::ZERO; 32]);
            hh.convert_from_f32_slice(&h);
            ll.convert_from_f32_slice(&l);
            for i in 0..32 {
                out[i] = u32::from(hh[i].to_bits()) << 16 | u32::from(ll[i].to_bits());
            }
        }
        self.put(d, m, &out);
    }
}

fn decode(ty: Ty, bits: u64) -> Value {
    match ty {
        Ty::U8 => Value::Int((bits as u8).into()),
        Ty::S8 => Value::Int((bits as i8).into()),
        Ty::U16 => Value::Int((bits as u16).into()),
        Ty::S16 => Value::Int((bits as i16).into()),
        Ty::U32 => Value::Int((bits as u32).into()),
        Ty::S32 => Value::Int((bits as i32).into()),
        Ty::U64 => Value::Int(bits.into()),
        Ty::S64 => Value::Int((bits as i64).into()),
        Ty::F16 => Value::Float(f16::from_bits(bits as u16).into()),
        Ty::Bf16 => Value::Float(bf16::from_bits(bits as u16).into()),
        Ty::F32 => Value::Float(f32::from_bits(bits as u32).into()),
        Ty::F64 => Value::Float(f64::from_bits(bits)),
        Ty::F16x2 | Ty::Bf16x2 | Ty::Pred => Value::Int(bits.into()),
    }
}

fn to_integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn encode(ty: Ty, value: Value, round: Round, sat: bool) -> u64 {
    if !ty.is_float() {
        let x = match value {
            // Out of range goes to the nearest end, NaN to zero, as on the device.
            Value::Float(x) => return float_to_int(ty, to_integral(x, round)),
            Value::Int(x) => x,
        };
        let (low, high) = range(ty);
        return if sat { x.clamp(low, high) } else { x } as u64 & ones(ty);
    }
    let x = match value {
        Value::Float(x) => x,
        Value::Int(x) => return int_to_float(ty, x, round),
    };
    let x = if sat {
        // NaN saturates to zero.
        if x > 0.0 { x.min(1.0) } else { 0.0 }
    } else {
        x
    };
    match ty {
        Ty::F64 => x.to_bits(),
        Ty::F32 => directed(x, round).to_bits().into(),
        Ty::F16 if round == Round::Nearest => f16::from_f32(sticky::single(x)).to_bits().into(),
        Ty::F16 => half_toward(x, round).to_bits().into(),
        _ => bf16::from_f32(sticky::single(x)).to_bits().into(),
    }
}

fn int_to_float(ty: Ty, x: i128, round: Round) -> u64 {
    match ty {
        Ty::F64 => (x as f64).to_bits(),
        Ty::F32 if round == Round::Nearest => (x as f32).to_bits().into(),
        _ => encode(ty, Value::Float(sticky::integer(x)), round, false),
    }
}

/// f64 to f32 in one direction.
pub(super) fn directed(x: f64, round: Round) -> f32 {
    let near = x as f32;
    let (over, under) = (f64::from(near) > x, f64::from(near) < x);
    match round {
        Round::Down if over => near.next_down(),
        Round::Up if under => near.next_up(),
        Round::Zero if over && x > 0.0 => near.next_down(),
        Round::Zero if under && x < 0.0 => near.next_up(),
        _ => near,
    }
}

/// f64 to f16 in one direction: a step in the ordering of the bits.
fn half_toward(x: f64, round: Round) -> f16 {
    let near = f16::from_f32(sticky::single(x));
    let (over, under) = (f64::from(near) > x, f64::from(near) < x);
    let step = |h: f16, up: bool| {
        let bits = h.to_bits();
        if bits & 0x7FFF == 0 {
            return f16::from_bits(if up { 1 } else { 0x8001 });
        }
        let grow = (bits & 0x8000 == 0) == up;
        f16::from_bits(if grow { bits + 1 } else { bits - 1 })
    };
    match round {
        Round::Down if over => step(near, false),
        Round::Up if under => step(near, true),
        Round::Zero if over && x > 0.0 => step(near, false),
        Round::Zero if under && x < 0.0 => step(near, true),
        _ => near,
    }
}

fn float_to_int(ty: Ty, x: f64) -> u64 {
    let (low, high) = range(ty);
    (x as i128).clamp(low, high) as u64 & ones(ty)
}

fn range(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.is_signed() {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// What a register of the type keeps: narrow signed values are extended to the register's width.
fn ones(ty: Ty) -> u64 {
    match ty {
        Ty::U8 => 0xFF,
        Ty::U16 | Ty::S16 | Ty::S8 => 0xFFFF,
        Ty::U32 | Ty::S32 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}
