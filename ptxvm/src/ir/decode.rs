//! From resolved text to [`Op`]s: picks the operation and gives every operand a row.

use super::cfg::reconvergence;
use super::names::{atomic, boolean, cmp, flushes, last_ty, modifier, space, ty};
use super::operands::Decoder;
use super::{Inst, Kernel, Mma, NONE, Op, Part, Round, Row, Shuffle, Ty, Vote};
use crate::ptx::{Entry, Instr, Module, Operand, ParseError, RegClass};

type Result<T> = std::result::Result<T, String>;

/// Rows of a class that [`Row`] can tell apart.
const MOST_ROWS: usize = 1 << 16;

/// Decodes a kernel of a module.
///
/// # Errors
/// Names the PTX line of an instruction that this machine does not know.
pub fn decode(module: &Module, entry: &Entry) -> std::result::Result<Kernel, ParseError> {
    let mut d = Decoder::new(module, entry);
    let mut code = Vec::with_capacity(entry.body.len());
    for instr in &entry.body {
        let bad = |reason: String| ParseError {
            line: instr.ptx_line,
            reason: format!("{}: {reason}", instr.op.join(".")),
        };
        let op = d.instruction(instr).map_err(bad)?;
        if d.words.count.max(d.doubles.count).max(d.preds) > MOST_ROWS {
            return Err(bad(format!(
                "more than {MOST_ROWS} registers and constants"
            )));
        }
        let guard = instr.guard.map(|(r, n)| Ok((d.reg(r, RegClass::Pred)?, n)));
        code.push(Inst {
            op,
            guard: guard.transpose().map_err(bad)?,
            loc: instr.loc,
            inlined_at: instr.inlined_at,
        });
    }
    let reconverge = reconvergence(&code);
    Ok(Kernel {
        name: entry.name.clone(),
        code,
        reconverge,
        words: d.words,
        doubles: d.doubles,
        preds: d.preds,
        specials: d.specials,
        params: d.params,
        shared_bytes: d.shared_bytes,
        local_bytes: d.local_bytes,
        global_rows: d.global_rows,
    })
}

impl Decoder {
    fn instruction(&mut self, i: &Instr) -> Result<Op> {
        let m: Vec<&str> = i.op.iter().map(String::as_str).collect();
        let o = &i.operands;
        let base = m[0];
        let need = |n: usize| {
            if o.len() >= n {
                Ok(())
            } else {
                Err(format!("{} operands where {n} are needed", o.len()))
            }
        };
        match base {
            "ret" | "exit" => Ok(Op::Exit),
            "trap" | "brkpt" => Ok(Op::Trap),
            "bra" => match o.first() {
                Some(Operand::Target(t)) => Ok(Op::Bra { target: *t }),
                other => Err(format!("{other:?} is no label")),
            },
            "bar" | "barrier" if m.contains(&"warp") => Ok(Op::BarWarp {
                mask: self.word(o.first().ok_or("no mask")?)?,
            }),
            "bar" | "barrier" => {
                if !m.contains(&"sync") || o.len() > 1 {
                    return Err("only whole-block bar.sync is known".into());
                }
                Ok(Op::Bar {
                    id: match o.first() {
                        Some(id) => self.word(id)?,
                        None => self.constant(0),
                    },
                })
            }
            "membar" | "fence" | "nanosleep" | "prefetch" | "prefetchu" | "discard"
            | "griddepcontrol" => Ok(Op::Nop),
            "mov" => {
                need(2)?;
                self.mov(&m, o)
            }
            "ld" | "ldu" => {
                need(2)?;
                self.load_store(&m, &o[0], &o[1], true)
            }
            "st" => {
                need(2)?;
                self.load_store(&m, &o[1], &o[0], false)
            }
            "cvta" => {
                need(2)?;
                let (wide_d, wide_a) = (self.is_wide(&o[0]), self.is_wide(&o[1]));
                Ok(Op::Cvta {
                    to: m.contains(&"to"),
                    space: space(&m),
                    wide_d,
                    wide_a,
                    d: self.any(&o[0], wide_d)?,
                    a: self.any(&o[1], wide_a)?,
                })
            }
            "setp" => {
                need(3)?;
                self.setp(&m, o)
            }
            "set" => {
                need(3)?;
                let types: Vec<Ty> = m.iter().filter_map(|s| ty(s)).collect();
                let [to, from] = types[..] else {
                    return Err("needs two types".into());
                };
                let wide = from.is_double();
                Ok(Op::Set {
                    ty: from,
                    cmp: cmp(modifier(&m, 1), from)?,
                    d: self.word(&o[0])?,
                    a: self.any(&o[1], wide)?,
                    b: self.any(&o[2], wide)?,
                    one: match to {
                        Ty::F32 => 1f32.to_bits(),
                        Ty::F16 => 0x3C00,
                        Ty::F16x2 => return Err("pairs are not known".into()),
                        _ => u32::MAX,
                    },
                    flush: flushes(&m)?,
                })
            }
            "selp" => {
                need(4)?;
                let wide = last_ty(&m)?.is_double();
                let (p, np) = self.pred(&o[3])?;
                Ok(Op::Selp {
                    wide,
                    d: self.any(&o[0], wide)?,
                    a: self.any(&o[1], wide)?,
                    b: self.any(&o[2], wide)?,
                    p,
                    np,
                })
            }
            "cvt" => {
                need(2)?;
                self.cvt(&m, o)
            }
            "shfl" => {
                need(5)?;
                let (d, p) = self.with_pred(&o[0])?;
                Ok(Op::Shfl {
                    mode: match modifier(&m, 2) {
                        "up" => Shuffle::Up,
                        "down" => Shuffle::Down,
                        "bfly" => Shuffle::Bfly,
                        "idx" => Shuffle::Idx,
                        other => return Err(format!("mode {other}")),
                    },
                    d,
                    p,
                    a: self.word(&o[1])?,
                    b: self.word(&o[2])?,
                    c: self.word(&o[3])?,
                    mask: self.word(&o[4])?,
                })
            }
            "vote" => {
                need(3)?;
                let (a, na) = self.pred(&o[1])?;
                let f = match modifier(&m, 2) {
                    "all" => Vote::All,
                    "any" => Vote::Any,
                    "uni" => Vote::Uni,
                    "ballot" => Vote::Ballot,
                    other => return Err(format!("mode {other}")),
                };
                Ok(Op::Vote {
                    f,
                    d: if f == Vote::Ballot {
                        self.word(&o[0])?
                    } else {
                        self.pred(&o[0])?.0
                    },
                    a,
                    na,
                    mask: self.word(&o[2])?,
                })
            }
            "match" => {
                need(3)?;
                let wide = last_ty(&m)?.is_double();
                let (d, p) = self.with_pred(&o[0])?;
                Ok(Op::Match {
                    all: modifier(&m, 1) == "all",
                    wide,
                    d,
                    p,
                    a: self.any(&o[1], wide)?,
                    mask: self.word(&o[2])?,
                })
            }
            "redux" => {
                need(3)?;
                Ok(Op::Redux {
                    f: atomic(modifier(&m, 2))?,
                    signed: last_ty(&m)?.is_signed(),
                    d: self.word(&o[0])?,
                    a: self.word(&o[1])?,
                    mask: self.word(&o[2])?,
                })
            }
            "activemask" => Ok(Op::ActiveMask {
                d: self.word(o.first().ok_or("no result")?)?,
            }),
            "atom" => {
                need(3)?;
                self.atom(&m, Some(&o[0]), &o[1], &o[2..])
            }
            "red" => {
                need(2)?;
                self.atom(&m, None, &o[0], &o[1..])
            }
            "ldmatrix" | "stmatrix" => {
                need(2)?;
                let (regs, addr) = if base == "ldmatrix" {
                    (&o[0], &o[1])
                } else {
                    (&o[1], &o[0])
                };
                let parts = self.vector(regs)?;
                let (num, trans, addr) = (parts.len(), m.contains(&"trans"), self.addr(addr)?);
                if !matches!(num, 1 | 2 | 4) {
                    return Err(format!("{num} matrices"));
                }
                Ok(if base == "ldmatrix" {
                    Op::LdMatrix {
                        num,
                        trans,
                        parts,
                        addr,
                    }
                } else {
                    Op::StMatrix {
                        num,
                        trans,
                        parts,
                        addr,
                    }
                })
            }
            "mma" => {
                need(4)?;
                self.mma(&m, o)
            }
            "cp" => self.cp_async(&m, o),
            "lop3" => {
                need(5)?;
                let Operand::Int(table) = o[4] else {
                    return Err("the table is no number".into());
                };
                Ok(Op::Lop3 {
                    d: self.word(&o[0])?,
                    a: self.word(&o[1])?,
                    b: self.word(&o[2])?,
                    c: self.word(&o[3])?,
                    table: table as u8,
                })
            }
            "bfi" => {
                need(5)?;
                if last_ty(&m)?.is_double() {
                    return Err("64 bits are not known".into());
                }
                Ok(Op::Bfi {
                    d: self.word(&o[0])?,
                    a: self.word(&o[1])?,
                    b: self.word(&o[2])?,
                    pos: self.word(&o[3])?,
                    len: self.word(&o[4])?,
                })
            }
            _ => {
                need(2)?;
                self.arithmetic(&m, o)
            }
        }
    }

    fn with_pred(&mut self, o: &Operand) -> Result<(Row, Row)> {
        match o {
            Operand::Pair(d, p) => Ok((self.word(d)?, self.pred(p)?.0)),
            d => Ok((self.word(d)?, NONE)),
        }
    }

    fn vector(&mut self, o: &Operand) -> Result<Vec<Row>> {
        match o {
            Operand::Vector(parts) => parts.iter().map(|p| self.word(p)).collect(),
            one => Ok(vec![self.word(one)?]),
        }
    }

    fn mov(&mut self, m: &[&str], o: &[Operand]) -> Result<Op> {
        let t = last_ty(m)?;
        if t == Ty::Pred {
            let d = self.pred(&o[0])?.0;
            return Ok(match &o[1] {
                Operand::Int(n) => Op::PredConst { d, value: *n != 0 },
                a => Op::PredMov {
                    d,
                    a: self.pred(a)?.0,
                },
            });
        }
        let wide = t.is_double();
        for o in o {
            if let Operand::Vector(parts) = o
                && !matches!((parts.len(), t.bits()), (2 | 4, 32 | 64))
            {
                return Err(format!("{} parts of {t:?}", parts.len()));
            }
        }
        Ok(match (&o[0], &o[1]) {
            (d, Operand::Vector(parts)) => Op::Pack {
                d: self.any(d, wide)?,
                wide,
                parts: parts.iter().map(|p| self.part(p)).collect::<Result<_>>()?,
            },
            (Operand::Vector(parts), a) => Op::Unpack {
                a: self.any(a, wide)?,
                wide,
                parts: parts.iter().map(|p| self.part(p)).collect::<Result<_>>()?,
            },
            (d, a) if wide => Op::Mov64 {
                d: self.double(d)?,
                a: self.double(a)?,
            },
            (d, a) => Op::Mov {
                d: self.word(d)?,
                a: self.word(a)?,
            },
        })
    }

    fn load_store(&mut self, m: &[&str], value: &Operand, at: &Operand, load: bool) -> Result<Op> {
        let t = last_ty(m)?;
        let parts = match value {
            Operand::Vector(parts) => parts.iter().map(|p| self.part(p)).collect::<Result<_>>()?,
            one if t.is_double() || self.is_wide(one) => vec![Part {
                row: self.double(one)?,
                wide: true,
            }],
            one => vec![Part {
                row: self.word(one)?,
                wide: false,
            }],
        };
        let parts: Vec<Part> = parts;
        let total = t.bits() as usize / 8 * parts.len();
        if !matches!(total, 1 | 2 | 4 | 8 | 16) {
            return Err(format!("{} parts of {t:?}", parts.len()));
        }
        let (space, bytes, addr) = (space(m), (t.bits() / 8) as u8, self.addr(at)?);
        Ok(if load {
            Op::Ld {
                space,
                bytes,
                signed: t.is_signed(),
                parts,
                addr,
            }
        } else {
            Op::St {
                space,
                bytes,
                parts,
                addr,
            }
        })
    }

    fn setp(&mut self, m: &[&str], o: &[Operand]) -> Result<Op> {
        let t = last_ty(m)?;
        if matches!(t, Ty::F16x2 | Ty::Bf16x2) {
            return Err("pairs are not known".into());
        }
        let (d, other) = match &o[0] {
            Operand::Pair(d, q) => (self.pred(d)?.0, self.pred(q)?.0),
            d => (self.pred(d)?.0, NONE),
        };
        let wide = t.is_double();
        let with = match (modifier(m, 2), o.get(3)) {
            ("and" | "or" | "xor", Some(p)) => {
                let (p, n) = self.pred(p)?;
                Some((boolean(modifier(m, 2))?, p, n))
            }
            _ => None,
        };
        Ok(Op::Setp {
            ty: t,
            cmp: cmp(modifier(m, 1), t)?,
            d,
            other,
            a: self.any(&o[1], wide)?,
            b: self.any(&o[2], wide)?,
            with,
            flush: flushes(m)?,
        })
    }

    fn cvt(&mut self, m: &[&str], o: &[Operand]) -> Result<Op> {
        let types: Vec<Ty> = m.iter().filter_map(|s| ty(s)).collect();
        let [to, from] = types[..] else {
            return Err("needs two types".into());
        };
        if let (Ty::F16x2 | Ty::Bf16x2, Ty::F32) = (to, from) {
            if o.len() != 3 || !m.contains(&"rn") || m.contains(&"ftz") {
                return Err("pairs are rounded to nearest and not flushed".into());
            }
            return Ok(Op::CvtPair {
                bf16: to == Ty::Bf16x2,
                relu: m.contains(&"relu"),
                d: self.word(&o[0])?,
                hi: self.word(&o[1])?,
                lo: self.word(&o[2])?,
            });
        }
        let has = |s: &str| m.contains(&s);
        let round = if has("rz") || has("rzi") {
            Round::Zero
        } else if has("rm") || has("rmi") {
            Round::Down
        } else if has("rp") || has("rpi") {
            Round::Up
        } else {
            Round::Nearest
        };
        Ok(Op::Cvt {
            to,
            from,
            round,
            integral: ["rni", "rzi", "rmi", "rpi"].iter().any(|s| has(s)),
            sat: has("sat"),
            flush: flushes(m)?,
            d: self.any(&o[0], to.is_double())?,
            a: if self.is_wide(&o[1]) != from.is_double() && !from.is_double() {
                return Err("a 64-bit register read as less".into());
            } else {
                self.any(&o[1], from.is_double())?
            },
        })
    }

    fn atom(
        &mut self,
        m: &[&str],
        d: Option<&Operand>,
        at: &Operand,
        rest: &[Operand],
    ) -> Result<Op> {
        let t = last_ty(m)?;
        let wide = t.is_double();
        let f = m
            .iter()
            .find_map(|s| atomic(s).ok())
            .ok_or("an operation that is not known")?;
        if t.bits() < 32 || matches!(t, Ty::F16x2 | Ty::Bf16x2) {
            return Err("halves are not known".into());
        }
        let value = rest.first().ok_or("no value")?;
        Ok(Op::Atom {
            space: space(m),
            f,
            ty: t,
            d: d.map(|d| self.any(d, wide)).transpose()?,
            addr: self.addr(at)?,
            a: self.any(value, wide)?,
            b: match rest.get(1) {
                Some(b) => self.any(b, wide)?,
                None => NONE,
            },
        })
    }

    fn mma(&mut self, m: &[&str], o: &[Operand]) -> Result<Op> {
        let types: Vec<Ty> = m.iter().filter_map(|s| ty(s)).collect();
        let k = match m.iter().find(|s| s.starts_with("m16n8k")) {
            Some(&"m16n8k16") => 16,
            Some(&"m16n8k8") => 8,
            _ => return Err("only m16n8k16 and m16n8k8 are known".into()),
        };
        let shape = match types[..] {
            [Ty::F32, Ty::F16, Ty::F16, Ty::F32] => Mma {
                k,
                bf16: false,
                half_acc: false,
            },
            [Ty::F32, Ty::Bf16, Ty::Bf16, Ty::F32] => Mma {
                k,
                bf16: true,
                half_acc: false,
            },
            [Ty::F16, Ty::F16, Ty::F16, Ty::F16] => Mma {
                k,
                bf16: false,
                half_acc: true,
            },
            _ => return Err("only f16 and bf16 products are known".into()),
        };
        if !(m.contains(&"row") && m.contains(&"col")) {
            return Err("only row by column is known".into());
        }
        let (d, a, b, c) = (
            self.vector(&o[0])?,
            self.vector(&o[1])?,
            self.vector(&o[2])?,
            self.vector(&o[3])?,
        );
        let acc = if shape.half_acc { 2 } else { 4 };
        if (d.len(), a.len(), b.len(), c.len()) != (acc, k / 4, k / 8, acc) {
            return Err("a wrong number of registers".into());
        }
        Ok(Op::Mma { shape, d, a, b, c })
    }

    fn cp_async(&mut self, m: &[&str], o: &[Operand]) -> Result<Op> {
        if m.get(1) != Some(&"async") || m.contains(&"bulk") || m.contains(&"mbarrier") {
            return Err("only cp.async of sm_80 is known".into());
        }
        match m.get(2) {
            Some(&"commit_group") => return Ok(Op::CpCommit),
            Some(&"wait_all") => return Ok(Op::CpWait { pending: None }),
            Some(&"wait_group") => {
                return match o.first() {
                    Some(Operand::Int(n)) => Ok(Op::CpWait {
                        pending: Some(*n as u32),
                    }),
                    other => Err(format!("{other:?} is no number of groups")),
                };
            }
            _ => {}
        }
        let [dst, src, Operand::Int(bytes), rest @ ..] = o else {
            return Err("needs two addresses and a size".into());
        };
        if !matches!(bytes, 4 | 8 | 16) {
            return Err(format!("a copy of {bytes} bytes"));
        }
        Ok(Op::CpAsync {
            bytes: *bytes as u8,
            dst: self.addr(dst)?,
            src: self.addr(src)?,
            size: match rest {
                [size, ..] => Some(self.word(size)?),
                [] => None,
            },
        })
    }
}
