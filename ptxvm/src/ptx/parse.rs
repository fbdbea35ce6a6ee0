//! Statements of PTX, with registers, scopes and labels resolved.

use std::collections::HashMap;

use super::lex::{Spanned, Token};
use super::{Entry, Instr, Loc, Module, Operand, ParseError, RegClass, Var};

type Result<T> = std::result::Result<T, ParseError>;

/// Bytes of a variable: more than kernels declare.
const MOST_BYTES: usize = 1 << 28;
/// Brackets within brackets of an operand.
const DEEPEST: usize = 8;

pub(super) struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    /// Brackets around the operand that is read.
    depth: usize,
}

/// Names between a pair of braces: inline assembly brings its own.
#[derive(Default)]
struct Scope {
    /// Single registers.
    regs: HashMap<String, u32>,
    /// `%r<90>` declares %r0 to %r89: prefix, first number, count.
    ranges: Vec<(String, u32, u32)>,
    labels: HashMap<String, usize>,
    /// Branches to labels not seen yet: instruction, operand, name, line.
    pending: Vec<(usize, usize, String, u32)>,
}

struct Function {
    entry: Entry,
    /// The innermost braces, and those around them.
    scope: Scope,
    outer: Vec<Scope>,
    /// The last brace was closed.
    ended: bool,
    loc: Loc,
    inlined_at: Option<Loc>,
}

impl Parser {
    pub(super) fn new(tokens: Vec<Spanned>) -> Parser {
        Parser {
            tokens,
            at: 0,
            depth: 0,
        }
    }

    pub(super) fn module(mut self) -> Result<Module> {
        let mut module = Module::default();
        while let Some(token) = self.peek().cloned() {
            let Token::Name(name) = token else {
                return self.fail(format!("expected a directive, found {token:?}"));
            };
            match name.as_str() {
                ".version" => {
                    // Lexed as a number and a name: `9` `.0`.
                    self.skip(3);
                }
                ".address_size" => self.skip(2),
                ".target" => {
                    self.skip(2);
                    while self.punct(',') {
                        self.skip(1);
                    }
                }
                ".file" => self.file(&mut module)?,
                ".section" => self.section()?,
                ".visible" | ".extern" | ".weak" | ".common" => self.skip(1),
                ".global" | ".const" => {
                    let var = self.variable()?;
                    module.globals.push(var);
                }
                ".shared" => {
                    let var = self.variable()?;
                    module.shared.push(var);
                }
                ".entry" => {
                    let entry = self.entry()?;
                    module.entries.push(entry);
                }
                ".func" => {
                    self.skip(1);
                    self.function_declaration()?;
                }
                _ => return self.fail(format!("directive {name} is not known")),
            }
        }
        Ok(module)
    }

    fn entry(&mut self) -> Result<Entry> {
        self.skip(1);
        let name = self.name()?;
        let mut params = Vec::new();
        if self.punct('(') {
            while !self.punct(')') {
                params.push(self.variable()?);
                self.punct(',');
            }
        }
        while let Some(Token::Name(n)) = self.peek() {
            // .maxntid 128, 1, 1 and the like say nothing about results.
            if !n.starts_with('.') {
                break;
            }
            self.skip(1);
            while !matches!(
                self.peek(),
                Some(Token::Name(_)) | Some(Token::Punct('{')) | None
            ) {
                self.skip(1);
            }
        }
        self.expect('{')?;
        let mut f = Function {
            entry: Entry {
                name,
                params,
                shared: vec![],
                local: vec![],
                regs: vec![],
                body: vec![],
            },
            scope: Scope::default(),
            outer: vec![],
            ended: false,
            loc: Loc::default(),
            inlined_at: None,
        };
        while !f.ended {
            self.statement(&mut f)?;
        }
        Ok(f.entry)
    }

    fn statement(&mut self, f: &mut Function) -> Result<()> {
        if self.punct('{') {
            f.outer.push(std::mem::take(&mut f.scope));
            return Ok(());
        }
        if self.punct('}') {
            return self.close(f);
        }
        if self.punct(';') {
            return Ok(());
        }
        if let (Some(Token::Name(label)), Some(Token::Punct(':'))) =
            (self.peek().cloned(), self.peek_at(1).cloned())
        {
            self.skip(2);
            let here = f.entry.body.len();
            f.scope.labels.insert(label, here);
            return Ok(());
        }
        let name = match self.peek() {
            Some(Token::Name(n)) => n.clone(),
            Some(Token::Punct('@')) => String::new(),
            other => return self.fail(format!("expected a statement, found {other:?}")),
        };
        match name.as_str() {
            ".reg" => self.registers(f),
            ".shared" => {
                let var = self.variable()?;
                f.entry.shared.push(var);
                Ok(())
            }
            ".local" => {
                let var = self.variable()?;
                f.entry.local.push(var);
                Ok(())
            }
            ".loc" => self.loc(f),
            ".pragma" => {
                self.skip(2);
                self.expect(';')
            }
            _ if name.starts_with('.') => self.fail(format!("directive {name} is not known here")),
            _ => self.instruction(f),
        }
    }

    /// Leaves a scope: branches to its labels are resolved, others wait for the scope around.
    fn close(&mut self, f: &mut Function) -> Result<()> {
        f.ended = f.outer.is_empty();
        let around = f.outer.pop().unwrap_or_default();
        let done = std::mem::replace(&mut f.scope, around);
        for (instr, operand, name, line) in done.pending {
            if let Some(target) = done.labels.get(&name) {
                f.entry.body[instr].operands[operand] = Operand::Target(*target);
            } else if !f.ended {
                f.scope.pending.push((instr, operand, name, line));
            } else {
                return Err(ParseError {
                    line,
                    reason: format!("no label {name}"),
                });
            }
        }
        Ok(())
    }

    fn registers(&mut self, f: &mut Function) -> Result<()> {
        self.skip(1);
        let ty = self.name()?;
        let class = match ty.as_str() {
            ".pred" => RegClass::Pred,
            ".b64" | ".u64" | ".s64" | ".f64" => RegClass::Double,
            ".b8" | ".u8" | ".s8" | ".b16" | ".u16" | ".s16" | ".f16" | ".b32" | ".u32"
            | ".s32" | ".f32" | ".f16x2" => RegClass::Word,
            _ => return self.fail(format!("registers of type {ty} are not known")),
        };
        loop {
            let name = self.name()?;
            let first = f.entry.regs.len() as u32;
            if self.punct('<') {
                let count = self.int()?;
                self.expect('>')?;
                // Rows have numbers of 16 bits; nvcc stays far below.
                let Some(count) = u32::try_from(count).ok().filter(|c| *c <= 1 << 16) else {
                    return self.fail(format!("{count} registers"));
                };
                f.scope.ranges.push((name, first, count));
                let regs = &mut f.entry.regs;
                regs.resize(regs.len() + count as usize, class);
            } else {
                f.scope.regs.insert(name, first);
                f.entry.regs.push(class);
            }
            if !self.punct(',') {
                break;
            }
        }
        self.expect(';')
    }

    /// `.loc 1 23 5`, or `.loc 1 40 7, function_name $L__info_string0, inlined_at 1 23 5`.
    fn loc(&mut self, f: &mut Function) -> Result<()> {
        self.skip(1);
        f.loc = self.place()?;
        f.inlined_at = None;
        while self.punct(',') {
            let what = self.name()?;
            if what == "inlined_at" {
                f.inlined_at = Some(self.place()?);
            } else {
                self.name()?;
                // `$L__info_string0+12`
                if self.punct('+') {
                    self.skip(1);
                }
            }
        }
        Ok(())
    }

    fn place(&mut self) -> Result<Loc> {
        let (file, line) = (self.int()? as u32, self.int()? as u32);
        self.int()?;
        Ok(Loc { file, line })
    }

    fn instruction(&mut self, f: &mut Function) -> Result<()> {
        let ptx_line = self.line();
        let guard = if self.punct('@') {
            let negated = self.punct('!');
            let name = self.name()?;
            match find_reg(f, &name) {
                Some(r) => Some((r, negated)),
                None => return self.fail(format!("no predicate {name}")),
            }
        } else {
            None
        };
        let op: Vec<String> = self.name()?.split('.').map(String::from).collect();
        if op[0] == "call" {
            return self.fail("call: functions are not run, printf is one".into());
        }
        let mut operands = Vec::new();
        while !self.punct(';') {
            let operand = self.operand(f, operands.len())?;
            operands.push(operand);
            if !self.punct(',') && self.peek() != Some(&Token::Punct(';')) {
                return self.fail(format!("after an operand of {}", op.join(".")));
            }
        }
        let (loc, inlined_at) = (f.loc, f.inlined_at);
        f.entry.body.push(Instr {
            guard,
            op,
            operands,
            loc,
            inlined_at,
            ptx_line,
        });
        Ok(())
    }

    fn operand(&mut self, f: &mut Function, index: usize) -> Result<Operand> {
        if self.depth == DEEPEST {
            return self.fail("an operand within too many brackets".into());
        }
        self.depth += 1;
        let operand = self.operand_here(f, index);
        self.depth -= 1;
        operand
    }

    fn operand_here(&mut self, f: &mut Function, index: usize) -> Result<Operand> {
        if self.punct('{') {
            let mut parts = Vec::new();
            while !self.punct('}') {
                let part = self.operand(f, index)?;
                parts.push(part);
                self.punct(',');
            }
            return Ok(Operand::Vector(parts));
        }
        if self.punct('[') {
            let base = self.operand(f, index)?;
            let offset = if self.punct('+') {
                let negative = self.punct('-');
                let n = self.int()? as i64;
                if negative { n.wrapping_neg() } else { n }
            } else {
                0
            };
            self.expect(']')?;
            return Ok(match base {
                Operand::Int(n) => {
                    Operand::Memory(Box::new(Operand::Int(0)), (n as i64).wrapping_add(offset))
                }
                base => Operand::Memory(Box::new(base), offset),
            });
        }
        if self.punct('!') {
            return match self.operand(f, index)? {
                Operand::Reg(r) => Ok(Operand::NotReg(r)),
                other => self.fail(format!("{other:?} cannot be negated")),
            };
        }
        if self.punct('-') {
            return Ok(Operand::Int((self.int()? as i64).wrapping_neg() as u64));
        }
        let operand = match self.next() {
            Some(Token::Int(n)) => Operand::Int(n),
            Some(Token::F32(bits)) => Operand::F32(bits),
            Some(Token::F64(bits)) => Operand::F64(bits),
            Some(Token::Name(name)) => self.named(f, name, index),
            other => return self.fail(format!("expected an operand, found {other:?}")),
        };
        if self.punct('|') {
            let second = self.operand(f, index)?;
            return Ok(Operand::Pair(Box::new(operand), Box::new(second)));
        }
        Ok(operand)
    }

    fn named(&mut self, f: &mut Function, name: String, index: usize) -> Operand {
        if name == "_" {
            return Operand::Sink;
        }
        if let Some(r) = find_reg(f, &name) {
            return Operand::Reg(r);
        }
        if name.starts_with('%') {
            return Operand::Special(name);
        }
        if name.starts_with("$L") || self.after_branch() {
            let (instr, line) = (f.entry.body.len(), self.line());
            f.scope.pending.push((instr, index, name, line));
            return Operand::Sink;
        }
        Operand::Symbol(name)
    }

    /// Labels of inline assembly have any name; they are what `bra` takes.
    fn after_branch(&self) -> bool {
        self.at >= 2
            && matches!(&self.tokens[self.at - 2].0, Token::Name(n) if n == "bra" || n == "bra.uni")
    }

    fn variable(&mut self) -> Result<Var> {
        let (mut align, mut element) = (1usize, 1usize);
        let name = loop {
            match self.next() {
                Some(Token::Name(n)) if n == ".align" => align = self.int()? as usize,
                Some(Token::Name(n)) if n == ".ptr" => {}
                Some(Token::Name(n)) if n.starts_with('.') => {
                    if let Some(bytes) = type_bytes(&n[1..]) {
                        element = bytes;
                        align = align.max(bytes);
                    }
                }
                Some(Token::Name(n)) => break n,
                other => return self.fail(format!("expected a variable, found {other:?}")),
            }
        };
        let mut count = 1usize;
        while self.punct('[') {
            count = match self.peek() {
                Some(Token::Int(_)) => count.saturating_mul(self.int()? as usize),
                _ => 0,
            };
            self.expect(']')?;
        }
        if !align.is_power_of_two() || align > 1 << 16 {
            return self.fail(format!("{name} is aligned to {align} bytes"));
        }
        let Some(size) = element.checked_mul(count).filter(|s| *s <= MOST_BYTES) else {
            return self.fail(format!("{name} is too large"));
        };
        let mut init = None;
        if self.punct('=') {
            init = Some(self.initialiser(element)?);
        }
        self.punct(';');
        Ok(Var {
            name,
            align,
            size,
            init,
        })
    }

    fn initialiser(&mut self, element: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut value = |p: &mut Parser| -> Result<()> {
            let negative = p.punct('-');
            let bits = match p.next() {
                Some(Token::Int(n)) => n,
                Some(Token::F32(n)) => n.into(),
                Some(Token::F64(n)) => n,
                other => return p.fail(format!("an initialiser of {other:?} is not known")),
            };
            let bits = if negative { bits.wrapping_neg() } else { bits };
            out.extend_from_slice(&bits.to_le_bytes()[..element]);
            Ok(())
        };
        if self.punct('{') {
            while !self.punct('}') {
                value(self)?;
                self.punct(',');
            }
        } else {
            value(self)?;
        }
        Ok(out)
    }

    fn file(&mut self, module: &mut Module) -> Result<()> {
        self.skip(1);
        let number = self.int()? as u32;
        let Some(Token::Text(path)) = self.next() else {
            return self.fail("a .file without a path".into());
        };
        module.files.insert(number, path);
        while self.punct(',') {
            self.int()?;
        }
        Ok(())
    }

    /// Debug information: names of inlined functions.
    fn section(&mut self) -> Result<()> {
        while !self.punct('{') {
            if self.next().is_none() {
                return self.fail("a section without an end".into());
            }
        }
        while !self.punct('}') {
            if self.next().is_none() {
                return self.fail("a section without an end".into());
            }
        }
        Ok(())
    }

    /// A declared function (printf, an assertion) is harmless until it is called.
    fn function_declaration(&mut self) -> Result<()> {
        let mut depth = 0;
        loop {
            match self.next() {
                Some(Token::Punct('(')) => depth += 1,
                Some(Token::Punct(')')) => depth -= 1,
                Some(Token::Punct(';')) if depth == 0 => return Ok(()),
                Some(Token::Punct('{')) => {
                    return self.fail(
                        "functions are not run: mark device functions __forceinline__".into(),
                    );
                }
                Some(_) => {}
                None => return self.fail("a function without an end".into()),
            }
        }
    }

    fn peek(&self) -> Option<&Token> {
        self.peek_at(0)
    }

    fn peek_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|t| &t.0)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    fn skip(&mut self, n: usize) {
        self.at += n;
    }

    fn punct(&mut self, c: char) -> bool {
        let found = self.peek() == Some(&Token::Punct(c));
        if found {
            self.at += 1;
        }
        found
    }

    fn expect(&mut self, c: char) -> Result<()> {
        if self.punct(c) {
            return Ok(());
        }
        let found = self.peek().cloned();
        self.fail(format!("expected {c}, found {found:?}"))
    }

    fn name(&mut self) -> Result<String> {
        match self.next() {
            Some(Token::Name(n)) => Ok(n),
            other => self.fail(format!("expected a name, found {other:?}")),
        }
    }

    fn int(&mut self) -> Result<u64> {
        match self.next() {
            Some(Token::Int(n)) => Ok(n),
            other => self.fail(format!("expected an integer, found {other:?}")),
        }
    }

    fn line(&self) -> u32 {
        self.tokens
            .get(self.at)
            .or(self.tokens.last())
            .map_or(0, |t| t.1)
    }

    fn fail<T>(&self, reason: String) -> Result<T> {
        Err(ParseError {
            line: self.line(),
            reason,
        })
    }
}

fn find_reg(f: &Function, name: &str) -> Option<u32> {
    let mut scopes = std::iter::once(&f.scope).chain(f.outer.iter().rev());
    scopes.find_map(|s| {
        s.regs.get(name).copied().or_else(|| {
            s.ranges.iter().find_map(|(prefix, first, count)| {
                let number: u32 = name.strip_prefix(prefix.as_str())?.parse().ok()?;
                (number < *count).then_some(first + number)
            })
        })
    })
}

fn type_bytes(name: &str) -> Option<usize> {
    Some(match name {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" => 2,
        "b32" | "u32" | "s32" | "f32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}
