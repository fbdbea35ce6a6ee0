//! Operands to rows: registers by class, a row for each constant, special register and variable.

use std::collections::HashMap;

use super::{Addr, COPIES, MaskKind, NONE, Part, Row, Rows, SINK, Space, Special};
use crate::ptx::{Entry, Module, Operand, RegClass, Var};

type Result<T> = std::result::Result<T, String>;

/// An operand that must be there.
pub(super) fn operand(o: &[Operand], i: usize) -> Result<&Operand> {
    o.get(i)
        .ok_or_else(|| format!("operand {} is missing", i + 1))
}

/// Rows given out so far, and what the kernel's names stand for.
pub(super) struct Decoder {
    pub(super) rows: Vec<Row>,
    pub(super) classes: Vec<RegClass>,
    pub(super) words: Rows<u32>,
    pub(super) doubles: Rows<u64>,
    pub(super) preds: usize,
    pub(super) specials: Vec<(Special, Row)>,
    pub(super) word_constants: HashMap<u32, Row>,
    pub(super) double_constants: HashMap<u64, Row>,
    pub(super) symbols: HashMap<String, (Space, u64)>,
    pub(super) global_index: HashMap<String, usize>,
    pub(super) global_rows: Vec<(Row, usize)>,
    pub(super) params: Vec<(usize, usize)>,
    pub(super) shared_bytes: usize,
    pub(super) local_bytes: usize,
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
    pub(super) fn new(module: &Module, entry: &Entry) -> Decoder {
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
            // The first rows of each class are `NONE` and `SINK`, of words also `COPIES`.
            words: Rows {
                count: 2 + COPIES.len(),
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

    pub(super) fn constant(&mut self, value: u32) -> Row {
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
    pub(super) fn reg(&self, r: u32, class: RegClass) -> Result<Row> {
        if self.classes[r as usize] == class {
            Ok(self.rows[r as usize])
        } else {
            Err(format!(
                "a {:?} register where a {class:?} is needed",
                self.classes[r as usize]
            ))
        }
    }

    pub(super) fn word(&mut self, o: &Operand) -> Result<Row> {
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

    pub(super) fn double(&mut self, o: &Operand) -> Result<Row> {
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

    pub(super) fn any(&mut self, o: &Operand, wide: bool) -> Result<Row> {
        if wide { self.double(o) } else { self.word(o) }
    }

    pub(super) fn pred(&mut self, o: &Operand) -> Result<(Row, bool)> {
        match o {
            Operand::Reg(r) => Ok((self.reg(*r, RegClass::Pred)?, false)),
            Operand::NotReg(r) => Ok((self.reg(*r, RegClass::Pred)?, true)),
            Operand::Sink => Ok((NONE, false)),
            other => Err(format!("{other:?} is no predicate")),
        }
    }

    /// A predicate that is read: nvcc writes -1 for true, and what is absent reads as zero.
    pub(super) fn pred_or_constant(&mut self, o: &Operand) -> Result<(Row, bool)> {
        match o {
            Operand::Int(n) => Ok((NONE, *n != 0)),
            other => self.pred(other),
        }
    }

    pub(super) fn is_pred(&self, o: &Operand) -> bool {
        matches!(o, Operand::Reg(r) | Operand::NotReg(r) if self.classes[*r as usize] == RegClass::Pred)
    }

    pub(super) fn is_wide(&self, o: &Operand) -> bool {
        match o {
            Operand::Reg(r) => self.classes[*r as usize] == RegClass::Double,
            Operand::Symbol(_) => true,
            _ => false,
        }
    }

    pub(super) fn addr(&mut self, o: &Operand) -> Result<Addr> {
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

    pub(super) fn part(&mut self, o: &Operand) -> Result<Part> {
        let wide = self.is_wide(o);
        Ok(Part {
            row: self.any(o, wide)?,
            wide,
        })
    }
}
