//! Arithmetic on registers: the operation by name and type, the operands by its width.

use super::names::{alu, boolean, flushes, last_ty};
use super::operands::{Decoder, operand};
use super::{Alu64, Carry, Count, NONE, Op, Ty};
use crate::ptx::Operand;

type Result<T> = std::result::Result<T, String>;

impl Decoder {
    pub(super) fn arithmetic(&mut self, m: &[&str], o: &[Operand]) -> Result<Op> {
        let t = last_ty(m)?;
        if matches!(t, Ty::Pred) || self.is_pred(&o[0]) {
            let d = self.pred(&o[0])?.0;
            let (a, na) = self.pred_or_constant(&o[1])?;
            let (f, b) = match m[0] {
                // The one operation with a constant that is true.
                "not" => (boolean("xor")?, &Operand::Int(1)),
                name => (boolean(name)?, o.get(2).ok_or("no second operand")?),
            };
            let (b, nb) = self.pred_or_constant(b)?;
            return Ok(Op::PredLogic { f, d, a, na, b, nb });
        }
        if m.contains(&"cc") || m[0] == "addc" || m[0] == "subc" || m[0] == "madc" {
            return self.carry(m, o, t);
        }
        if m.contains(&"sat") || m.contains(&"relu") {
            return Err("saturation is known in conversions only".into());
        }
        let (signed, wide_result) = (t.is_signed(), m.contains(&"wide"));
        if wide_result {
            let c = o.get(3);
            return Ok(if t.bits() == 16 {
                Op::Wide16 {
                    signed,
                    d: self.word(&o[0])?,
                    a: self.word(&o[1])?,
                    b: self.word(operand(o, 2)?)?,
                    c: c.map_or(Ok(NONE), |c| self.word(c))?,
                }
            } else {
                Op::Wide {
                    signed,
                    d: self.double(&o[0])?,
                    a: self.word(&o[1])?,
                    b: self.word(operand(o, 2)?)?,
                    c: c.map_or(Ok(NONE), |c| self.double(c))?,
                }
            });
        }
        if t.is_double() {
            return self.arithmetic64(m, o, t);
        }
        let f = alu(m, t).ok_or_else(|| format!("not known for {t:?}"))?;
        arity(m[0], o)?;
        let row = |d: &mut Decoder, i: usize| o.get(i).map_or(Ok(NONE), |x| d.word(x));
        // All of 64 bits was taken above.
        let d = self.word(&o[0])?;
        let [a, b, c] = [row(self, 1)?, row(self, 2)?, row(self, 3)?];
        Ok(if flushes(m)? {
            Op::AluFlushed { f, d, a, b, c }
        } else {
            Op::Alu { f, d, a, b, c }
        })
    }

    /// Sums with the carry flag: `add`, `sub`, `mad` that set it (`.cc`) or take it in (`addc`).
    fn carry(&mut self, m: &[&str], o: &[Operand], t: Ty) -> Result<Op> {
        if t.is_float() || t.bits() < 32 || m.contains(&"wide") {
            return Err(format!("carries are not known for {t:?}"));
        }
        let name = m[0].strip_suffix('c').unwrap_or(m[0]);
        let f = match (name, m.contains(&"hi")) {
            ("add", _) => Carry::Add,
            ("sub", _) => Carry::Sub,
            ("mad", false) => Carry::Mad,
            ("mad", true) if t.is_signed() => Carry::MadHiS,
            ("mad", true) => Carry::MadHiU,
            _ => return Err("carries are not known".into()),
        };
        arity(name, o)?;
        let wide = t.is_double();
        Ok(Op::Carry {
            f,
            wide,
            takes: name != m[0],
            sets: m.contains(&"cc"),
            d: self.any(&o[0], wide)?,
            a: self.any(&o[1], wide)?,
            b: self.any(&o[2], wide)?,
            c: o.get(3).map_or(Ok(NONE), |c| self.any(c, wide))?,
        })
    }

    fn arithmetic64(&mut self, m: &[&str], o: &[Operand], t: Ty) -> Result<Op> {
        let signed = t.is_signed();
        if matches!(m[0], "shl" | "shr") {
            return Ok(Op::Shift64 {
                left: m[0] == "shl",
                signed,
                d: self.double(&o[0])?,
                a: self.double(&o[1])?,
                b: self.word(operand(o, 2)?)?,
            });
        }
        if matches!(m[0], "clz" | "popc" | "bfind") {
            arity(m[0], o)?;
            return Ok(Op::Count64 {
                f: match m[0] {
                    "clz" => Count::Clz,
                    "popc" => Count::Popc,
                    _ => Count::Bfind {
                        signed,
                        amount: m.contains(&"shiftamt"),
                    },
                },
                d: self.word(&o[0])?,
                a: self.double(&o[1])?,
            });
        }
        let pick = |u, s| if signed { s } else { u };
        let f = match (m[0], t) {
            ("add", Ty::F64) => Alu64::DAdd,
            ("sub", Ty::F64) => Alu64::DSub,
            ("mul", Ty::F64) => Alu64::DMul,
            ("fma" | "mad", Ty::F64) => Alu64::DFma,
            ("div", Ty::F64) => Alu64::DDiv,
            ("min", Ty::F64) => Alu64::DMin,
            ("max", Ty::F64) => Alu64::DMax,
            ("neg", Ty::F64) => Alu64::DNeg,
            ("abs", Ty::F64) => Alu64::DAbs,
            ("sqrt", Ty::F64) => Alu64::DSqrt,
            ("rcp", Ty::F64) => Alu64::DRcp,
            ("add", _) => Alu64::Add,
            ("sub", _) => Alu64::Sub,
            ("mul", _) if m.contains(&"hi") => pick(Alu64::MulHiU, Alu64::MulHiS),
            ("mul", _) => Alu64::Mul,
            ("mad", _) if !m.contains(&"hi") => Alu64::Mad,
            ("div", _) => pick(Alu64::DivU, Alu64::DivS),
            ("rem", _) => pick(Alu64::RemU, Alu64::RemS),
            ("min", _) => pick(Alu64::MinU, Alu64::MinS),
            ("max", _) => pick(Alu64::MaxU, Alu64::MaxS),
            ("neg", _) => Alu64::NegS,
            ("abs", _) => Alu64::AbsS,
            ("and", _) => Alu64::And,
            ("or", _) => Alu64::Or,
            ("xor", _) => Alu64::Xor,
            ("not", _) => Alu64::Not,
            _ => return Err(format!("not known for {t:?}")),
        };
        arity(m[0], o)?;
        let row = |d: &mut Decoder, i: usize| o.get(i).map_or(Ok(NONE), |x| d.double(x));
        Ok(Op::Alu64 {
            f,
            d: self.double(&o[0])?,
            a: row(self, 1)?,
            b: row(self, 2)?,
            c: row(self, 3)?,
        })
    }
}

/// Arithmetic has as many operands as its name says.
fn arity(name: &str, o: &[Operand]) -> Result<()> {
    let n = match name {
        "mad" | "fma" | "shf" | "bfe" | "prmt" => 4,
        "neg" | "abs" | "not" | "sqrt" | "rcp" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos"
        | "tanh" | "brev" | "clz" | "popc" | "bfind" => 2,
        _ => 3,
    };
    if o.len() == n {
        Ok(())
    } else {
        Err(format!("{} operands where {n} are needed", o.len()))
    }
}
