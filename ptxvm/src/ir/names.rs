//! Words of opcodes: operations, types, spaces, comparisons by their names in PTX.

use super::{Alu, Atomic, Bool, Cmp, Space, Ty};

type Result<T> = std::result::Result<T, String>;

/// A modifier of an opcode, or nothing.
pub(super) fn modifier<'a>(m: &[&'a str], i: usize) -> &'a str {
    m.get(i).copied().unwrap_or_default()
}

pub(super) fn alu(m: &[&str], t: Ty) -> Option<Alu> {
    let hi = m.contains(&"hi");
    let s = t.is_signed();
    let pick = |u, i| if s { i } else { u };
    Some(match (m[0], t) {
        ("add" | "sub" | "mul" | "div" | "sqrt" | "rcp", Ty::F32)
            if ["rz", "rm", "rp"].iter().any(|r| m.contains(r)) =>
        {
            return None;
        }
        ("add", Ty::F32) => Alu::FAdd,
        ("sub", Ty::F32) => Alu::FSub,
        ("mul", Ty::F32) => Alu::FMul,
        ("fma" | "mad", Ty::F32) if m.contains(&"rm") => Alu::FFmaRm,
        ("fma" | "mad", Ty::F32) if m.contains(&"rp") => Alu::FFmaRp,
        ("fma" | "mad", Ty::F32) if m.contains(&"rz") => Alu::FFmaRz,
        ("fma" | "mad", Ty::F32) => Alu::FFma,
        ("div", Ty::F32) => Alu::FDiv,
        ("min", Ty::F32) if m.contains(&"NaN") => Alu::FMinNan,
        ("max", Ty::F32) if m.contains(&"NaN") => Alu::FMaxNan,
        ("min", Ty::F32) => Alu::FMin,
        ("max", Ty::F32) => Alu::FMax,
        ("neg", Ty::F32) => Alu::FNeg,
        ("abs", Ty::F32) => Alu::FAbs,
        ("sqrt", Ty::F32) => Alu::FSqrt,
        ("rcp", Ty::F32) => Alu::FRcp,
        ("rsqrt", Ty::F32) => Alu::FRsqrt,
        ("ex2", Ty::F32) => Alu::FEx2,
        ("lg2", Ty::F32) => Alu::FLg2,
        ("sin", Ty::F32) => Alu::FSin,
        ("cos", Ty::F32) => Alu::FCos,
        ("tanh", Ty::F32) => Alu::FTanh,
        ("copysign", Ty::F32) => Alu::FCopysign,
        ("add", Ty::F16) => Alu::HAdd,
        ("sub", Ty::F16) => Alu::HSub,
        ("mul", Ty::F16) => Alu::HMul,
        ("fma", Ty::F16) => Alu::HFma,
        ("neg", Ty::F16) => Alu::HNeg,
        ("abs", Ty::F16) => Alu::HAbs,
        ("min", Ty::F16) => Alu::HMin,
        ("max", Ty::F16) => Alu::HMax,
        ("add", Ty::F16x2) => Alu::HAdd2,
        ("sub", Ty::F16x2) => Alu::HSub2,
        ("mul", Ty::F16x2) => Alu::HMul2,
        ("fma", Ty::F16x2) => Alu::HFma2,
        ("neg", Ty::F16x2) => Alu::HNeg2,
        ("abs", Ty::F16x2) => Alu::HAbs2,
        ("min", Ty::F16x2) => Alu::HMin2,
        ("max", Ty::F16x2) => Alu::HMax2,
        ("fma", Ty::Bf16x2) => Alu::BFma2,
        ("add", Ty::Bf16x2) => Alu::BAdd2,
        ("mul", Ty::Bf16x2) => Alu::BMul2,
        ("fma", Ty::Bf16) => Alu::BFma,
        (_, t) if t.is_float() => return None,
        ("and", _) => Alu::And,
        ("or", _) => Alu::Or,
        ("xor", _) => Alu::Xor,
        ("add", _) if t.bits() == 16 => Alu::Add16,
        ("sub", _) if t.bits() == 16 => Alu::Sub16,
        ("mul", _) if t.bits() == 16 && !hi => Alu::Mul16,
        ("mad", _) if t.bits() == 16 && !hi => Alu::Mad16,
        ("shl", _) if t.bits() == 16 => Alu::Shl16,
        ("shr", _) if t.bits() == 16 => pick(Alu::ShrU16, Alu::ShrS16),
        ("not", _) if t.bits() == 16 => Alu::Not16,
        ("neg", _) if t.bits() == 16 => Alu::Neg16,
        ("abs", _) if t.bits() == 16 => Alu::Abs16,
        ("min", _) if t.bits() == 16 => pick(Alu::MinU, Alu::MinS16),
        ("max", _) if t.bits() == 16 => pick(Alu::MaxU, Alu::MaxS16),
        ("div", Ty::U16) => Alu::DivU16,
        ("rem", Ty::U16) => Alu::RemU16,
        (_, t) if t.bits() < 32 => return None,
        ("add", _) => Alu::Add,
        ("sub", _) => Alu::Sub,
        ("mul", _) if hi => pick(Alu::MulHiU, Alu::MulHiS),
        ("mul", _) => Alu::Mul,
        ("mad", _) if hi => pick(Alu::MadHiU, Alu::MadHiS),
        ("mad", _) => Alu::Mad,
        ("div", _) => pick(Alu::DivU, Alu::DivS),
        ("rem", _) => pick(Alu::RemU, Alu::RemS),
        ("min", _) => pick(Alu::MinU, Alu::MinS),
        ("max", _) => pick(Alu::MaxU, Alu::MaxS),
        ("neg", _) => Alu::NegS,
        ("abs", _) => Alu::AbsS,
        ("not", _) => Alu::Not,
        ("shl", _) => Alu::Shl,
        ("shr", _) => pick(Alu::ShrU, Alu::ShrS),
        ("shf", _) => match (modifier(m, 1), modifier(m, 2)) {
            ("l", "wrap") => Alu::ShfLWrap,
            ("r", "wrap") => Alu::ShfRWrap,
            ("l", _) => Alu::ShfLClamp,
            _ => Alu::ShfRClamp,
        },
        ("bfe", _) => pick(Alu::BfeU, Alu::BfeS),
        ("bfind", _) if m.contains(&"shiftamt") => pick(Alu::ShiftAmtU, Alu::ShiftAmtS),
        ("bfind", _) => pick(Alu::BfindU, Alu::BfindS),
        ("brev", _) => Alu::Brev,
        ("clz", _) => Alu::Clz,
        ("popc", _) => Alu::Popc,
        ("prmt", _) if m.len() == 2 => Alu::Prmt,
        _ => return None,
    })
}

pub(super) fn ty(name: &str) -> Option<Ty> {
    Some(match name {
        "b8" | "u8" => Ty::U8,
        "s8" => Ty::S8,
        "b16" | "u16" => Ty::U16,
        "s16" => Ty::S16,
        "b32" | "u32" => Ty::U32,
        "s32" => Ty::S32,
        "b64" | "u64" => Ty::U64,
        "s64" => Ty::S64,
        "f16" => Ty::F16,
        "bf16" => Ty::Bf16,
        "f16x2" => Ty::F16x2,
        "bf16x2" => Ty::Bf16x2,
        "f32" => Ty::F32,
        "f64" => Ty::F64,
        "pred" => Ty::Pred,
        _ => return None,
    })
}

pub(super) fn last_ty(m: &[&str]) -> Result<Ty> {
    m.iter()
        .rev()
        .find_map(|s| ty(s))
        .ok_or_else(|| "no type".into())
}

/// Whether subnormal inputs and results become zero of their sign.
pub(super) fn flushes(m: &[&str]) -> Result<bool> {
    match (m.contains(&"ftz"), m.contains(&"f32")) {
        (false, _) => Ok(false),
        (true, true) => Ok(true),
        (true, false) => Err("subnormal numbers are flushed in f32 only".into()),
    }
}

pub(super) fn space(m: &[&str]) -> Space {
    m.iter()
        .find_map(|s| {
            Some(match s.split("::").next()? {
                "global" | "const" => Space::Global,
                "shared" => Space::Shared,
                "local" => Space::Local,
                "param" => Space::Param,
                _ => return None,
            })
        })
        .unwrap_or(Space::Generic)
}

pub(super) fn boolean(name: &str) -> Result<Bool> {
    match name {
        "and" => Ok(Bool::And),
        "or" => Ok(Bool::Or),
        "xor" => Ok(Bool::Xor),
        _ => Err(format!("{name} of predicates")),
    }
}

pub(super) fn atomic(name: &str) -> Result<Atomic> {
    Ok(match name {
        "add" => Atomic::Add,
        "min" => Atomic::Min,
        "max" => Atomic::Max,
        "and" => Atomic::And,
        "or" => Atomic::Or,
        "xor" => Atomic::Xor,
        "exch" => Atomic::Exch,
        "cas" => Atomic::Cas,
        "inc" => Atomic::Inc,
        "dec" => Atomic::Dec,
        _ => return Err(format!("{name} is not known")),
    })
}

pub(super) fn cmp(name: &str, t: Ty) -> Result<Cmp> {
    Ok(match name {
        "eq" => Cmp::Eq,
        "ne" => Cmp::Ne,
        // On unsigned integers lo, ls, hi and hs are other names.
        "lt" | "lo" => Cmp::Lt,
        "le" | "ls" => Cmp::Le,
        "gt" | "hi" => Cmp::Gt,
        "ge" | "hs" => Cmp::Ge,
        "equ" if t.is_float() => Cmp::Equ,
        "neu" if t.is_float() => Cmp::Neu,
        "ltu" if t.is_float() => Cmp::Ltu,
        "leu" if t.is_float() => Cmp::Leu,
        "gtu" if t.is_float() => Cmp::Gtu,
        "geu" if t.is_float() => Cmp::Geu,
        "num" => Cmp::Num,
        "nan" => Cmp::Nan,
        _ => return Err(format!("comparison {name}")),
    })
}
