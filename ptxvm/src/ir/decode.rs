//! From resolved text to [`Op`]s: picks the operation and gives every operand a row.

use std::collections::HashMap;

use super::cfg::reconvergence;
use super::{
    Addr, Alu, Alu64, Atomic, Bool, Cmp, Inst, Kernel, MaskKind, Mma, NONE, Op, Part, Round, Row,
    Rows, SINK, Shuffle, Space, Special, Ty, Vote,
};
use crate::ptx::{Entry, Instr, Module, Operand, ParseError, RegClass, Var};

type Result<T> = std::result::Result<T, String>;

/// Rows of a class that [`Row`] can tell apart.
const MOST_ROWS: usize = 1 << 16;

/// A modifier of an opcode, or nothing.
fn modifier<'a>(m: &[&'a str], i: usize) -> &'a str {
    m.get(i).copied().unwrap_or_default()
}

/// An operand that must be there.
fn operand(o: &[Operand], i: usize) -> Result<&Operand> {
    o.get(i)
        .ok_or_else(|| format!("operand {} is missing", i + 1))
}

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

struct Decoder {
    rows: Vec<Row>,
    classes: Vec<RegClass>,
    words: Rows<u32>,
    doubles: Rows<u64>,
    preds: usize,
    specials: Vec<(Special, Row)>,
    word_constants: HashMap<u32, Row>,
    double_constants: HashMap<u64, Row>,
    symbols: HashMap<String, (Space, u64)>,
    global_index: HashMap<String, usize>,
    global_rows: Vec<(Row, usize)>,
    params: Vec<(usize, usize)>,
    shared_bytes: usize,
    local_bytes: usize,
}

/// Places variables one after another; returns the end.
fn lay_out(vars: &[Var], space: Space, symbols: &mut HashMap<String, (Space, u64)>) -> usize {
    let mut end = 0usize;
    for v in vars {
        let at = end.next_multiple_of(v.align.max(1));
        symbols.insert(v.name.clone(), (space, at as u64));
        end = at + v.size;
    }
    end
}

impl Decoder {
    fn new(module: &Module, entry: &Entry) -> Decoder {
        let mut symbols = HashMap::new();
        let mut params = Vec::new();
        let mut end = 0usize;
        for p in &entry.params {
            let at = end.next_multiple_of(p.align.max(1));
            symbols.insert(p.name.clone(), (Space::Param, at as u64));
            params.push((at, p.size));
            end = at + p.size;
        }
        // Dynamic arrays have no size: they come last, where the static ones end.
        let mut shared: Vec<Var> = module.shared.iter().chain(&entry.shared).cloned().collect();
        shared.sort_by_key(|v| v.size == 0);
        let shared_bytes = lay_out(&shared, Space::Shared, &mut symbols);
        let local_bytes = lay_out(&entry.local, Space::Local, &mut symbols);
        let mut d = Decoder {
            rows: vec![],
            classes: entry.regs.clone(),
            // The first rows of each class are `NONE` and `SINK`.
            words: Rows {
                count: 2,
                constants: vec![],
            },
            doubles: Rows {
                count: 2,
                constants: vec![],
            },
            preds: 1,
            specials: vec![],
            word_constants: HashMap::new(),
            double_constants: HashMap::new(),
            symbols,
            global_index: module
                .globals
                .iter()
                .enumerate()
                .map(|(i, v)| (v.name.clone(), i))
                .collect(),
            global_rows: vec![],
            params,
            shared_bytes,
            local_bytes,
        };
        for class in &entry.regs {
            let row = match class {
                RegClass::Word => d.new_word(),
                RegClass::Double => d.new_double(),
                RegClass::Pred => {
                    d.preds += 1;
                    (d.preds - 1) as Row
                }
            };
            d.rows.push(row);
        }
        d
    }

    fn new_word(&mut self) -> Row {
        self.words.count += 1;
        (self.words.count - 1) as Row
    }

    fn new_double(&mut self) -> Row {
        self.doubles.count += 1;
        (self.doubles.count - 1) as Row
    }

    fn constant(&mut self, value: u32) -> Row {
        if let Some(row) = self.word_constants.get(&value) {
            return *row;
        }
        let row = self.new_word();
        self.words.constants.push((row, value));
        self.word_constants.insert(value, row);
        row
    }

    fn constant64(&mut self, value: u64) -> Row {
        if let Some(row) = self.double_constants.get(&value) {
            return *row;
        }
        let row = self.new_double();
        self.doubles.constants.push((row, value));
        self.double_constants.insert(value, row);
        row
    }

    fn special(&mut self, name: &str) -> Result<Row> {
        let axis = |s: &str| match s {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        let (base, part) = name.split_once('.').unwrap_or((name, ""));
        let special = match (base, axis(part)) {
            ("%tid", Some(a)) => Special::Tid(a),
            ("%ntid", Some(a)) => Special::Ntid(a),
            ("%ctaid", Some(a)) => Special::Ctaid(a),
            ("%nctaid", Some(a)) => Special::Nctaid(a),
            ("%laneid", _) => Special::Lane,
            ("%warpid", _) => Special::Warp,
            ("%nwarpid", _) => Special::Nwarp,
            ("%lanemask_lt", _) => Special::LaneMask(MaskKind::Lt),
            ("%lanemask_le", _) => Special::LaneMask(MaskKind::Le),
            ("%lanemask_eq", _) => Special::LaneMask(MaskKind::Eq),
            ("%lanemask_ge", _) => Special::LaneMask(MaskKind::Ge),
            ("%lanemask_gt", _) => Special::LaneMask(MaskKind::Gt),
            ("%dynamic_smem_size", _) => Special::DynamicShared,
            _ => return Err(format!("register {name} is not known")),
        };
        if let Some((_, row)) = self.specials.iter().find(|(s, _)| *s == special) {
            return Ok(*row);
        }
        let row = self.new_word();
        self.specials.push((special, row));
        Ok(row)
    }

    /// A register's row, its class checked.
    fn reg(&self, r: u32, class: RegClass) -> Result<Row> {
        if self.classes[r as usize] == class {
            Ok(self.rows[r as usize])
        } else {
            Err(format!(
                "a {:?} register where a {class:?} is needed",
                self.classes[r as usize]
            ))
        }
    }

    fn word(&mut self, o: &Operand) -> Result<Row> {
        match o {
            Operand::Reg(r) => self.reg(*r, RegClass::Word),
            Operand::Int(n) => Ok(self.constant(*n as u32)),
            Operand::F32(bits) => Ok(self.constant(*bits)),
            Operand::Special(name) => self.special(name),
            Operand::Symbol(name) => {
                let (space, at) = self.symbol(name)?;
                match space {
                    Space::Global => Err(format!("{name}'s address has 64 bits")),
                    _ => Ok(self.constant(at as u32)),
                }
            }
            Operand::Sink => Ok(SINK),
            other => Err(format!("{other:?} is no 32-bit operand")),
        }
    }

    fn symbol(&self, name: &str) -> Result<(Space, u64)> {
        if self.global_index.contains_key(name) {
            return Ok((Space::Global, 0));
        }
        self.symbols
            .get(name)
            .copied()
            .ok_or_else(|| format!("{name} is not declared"))
    }

    fn double(&mut self, o: &Operand) -> Result<Row> {
        match o {
            Operand::Reg(r) => self.reg(*r, RegClass::Double),
            Operand::Int(n) | Operand::F64(n) => Ok(self.constant64(*n)),
            Operand::Symbol(name) => {
                if let Some(i) = self.global_index.get(name).copied() {
                    if let Some((row, _)) = self.global_rows.iter().find(|(_, g)| *g == i) {
                        return Ok(*row);
                    }
                    let row = self.new_double();
                    self.global_rows.push((row, i));
                    return Ok(row);
                }
                let (_, at) = self.symbol(name)?;
                Ok(self.constant64(at))
            }
            Operand::Sink => Ok(SINK),
            other => Err(format!("{other:?} is no 64-bit operand")),
        }
    }

    fn any(&mut self, o: &Operand, wide: bool) -> Result<Row> {
        if wide { self.double(o) } else { self.word(o) }
    }

    fn pred(&mut self, o: &Operand) -> Result<(Row, bool)> {
        match o {
            Operand::Reg(r) => Ok((self.reg(*r, RegClass::Pred)?, false)),
            Operand::NotReg(r) => Ok((self.reg(*r, RegClass::Pred)?, true)),
            Operand::Sink => Ok((NONE, false)),
            other => Err(format!("{other:?} is no predicate")),
        }
    }

    fn is_pred(&self, o: &Operand) -> bool {
        matches!(o, Operand::Reg(r) | Operand::NotReg(r) if self.classes[*r as usize] == RegClass::Pred)
    }

    fn is_wide(&self, o: &Operand) -> bool {
        match o {
            Operand::Reg(r) => self.classes[*r as usize] == RegClass::Double,
            Operand::Symbol(_) => true,
            _ => false,
        }
    }

    fn addr(&mut self, o: &Operand) -> Result<Addr> {
        let Operand::Memory(base, offset) = o else {
            return Err(format!("{o:?} is no address"));
        };
        let wide = self.is_wide(base);
        Ok(Addr {
            row: self.any(base, wide)?,
            wide,
            offset: *offset,
        })
    }

    fn part(&mut self, o: &Operand) -> Result<Part> {
        let wide = self.is_wide(o);
        Ok(Part {
            row: self.any(o, wide)?,
            wide,
        })
    }

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
        })
    }

    fn cvt(&mut self, m: &[&str], o: &[Operand]) -> Result<Op> {
        let types: Vec<Ty> = m.iter().filter_map(|s| ty(s)).collect();
        let [to, from] = types[..] else {
            return Err("needs two types".into());
        };
        if let (Ty::F16x2 | Ty::Bf16x2, Ty::F32) = (to, from) {
            if o.len() != 3 || !m.contains(&"rn") {
                return Err("only rounding to nearest is known for pairs".into());
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

    fn arithmetic(&mut self, m: &[&str], o: &[Operand]) -> Result<Op> {
        let t = last_ty(m)?;
        if matches!(t, Ty::Pred) || self.is_pred(&o[0]) {
            let d = self.pred(&o[0])?.0;
            let (a, na) = self.pred(&o[1])?;
            if m[0] == "not" {
                return Ok(Op::PredNot { d, a });
            }
            let (b, nb) = self.pred(o.get(2).ok_or("no second operand")?)?;
            return Ok(Op::PredLogic {
                f: boolean(m[0])?,
                d,
                a,
                na,
                b,
                nb,
            });
        }
        if m.contains(&"cc") || m[0] == "addc" || m[0] == "subc" || m[0] == "madc" {
            return Err("carries are not known".into());
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
        // bfind and popc of 64 bits were taken above; everything else reads words.
        Ok(Op::Alu {
            f,
            d: self.word(&o[0])?,
            a: row(self, 1)?,
            b: row(self, 2)?,
            c: row(self, 3)?,
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
        if matches!(m[0], "clz" | "popc") {
            return Ok(Op::Count64 {
                clz: m[0] == "clz",
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

fn alu(m: &[&str], t: Ty) -> Option<Alu> {
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
        ("bfind", _) if !m.contains(&"shiftamt") => pick(Alu::BfindU, Alu::BfindS),
        ("brev", _) => Alu::Brev,
        ("clz", _) => Alu::Clz,
        ("popc", _) => Alu::Popc,
        ("prmt", _) if m.len() == 2 => Alu::Prmt,
        _ => return None,
    })
}

fn ty(name: &str) -> Option<Ty> {
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

fn last_ty(m: &[&str]) -> Result<Ty> {
    m.iter()
        .rev()
        .find_map(|s| ty(s))
        .ok_or_else(|| "no type".into())
}

fn space(m: &[&str]) -> Space {
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

fn boolean(name: &str) -> Result<Bool> {
    match name {
        "and" => Ok(Bool::And),
        "or" => Ok(Bool::Or),
        "xor" => Ok(Bool::Xor),
        _ => Err(format!("{name} of predicates")),
    }
}

fn atomic(name: &str) -> Result<Atomic> {
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

fn cmp(name: &str, t: Ty) -> Result<Cmp> {
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
