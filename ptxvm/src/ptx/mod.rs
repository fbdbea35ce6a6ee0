//! PTX text as a tree: what nvcc writes, names resolved, nothing interpreted.

mod lex;
mod parse;

use std::collections::HashMap;

use thiserror::Error;

/// Why a text is not PTX that this machine knows.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("PTX line {line}: {reason}")]
pub struct ParseError {
    /// Of the PTX text, from 1.
    pub line: u32,
    /// What was found, and what was expected.
    pub reason: String,
}

/// A place in the source that the PTX was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Loc {
    /// Number of the file as `.loc` gives it; 0 where nvcc gave no line.
    pub file: u32,
    /// From 1.
    pub line: u32,
}

/// A parsed file.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// Source files by the number that `.loc` uses.
    pub files: HashMap<u32, String>,
    /// Global and constant variables.
    pub globals: Vec<Var>,
    /// Shared variables declared outside functions (dynamic shared memory among them).
    pub shared: Vec<Var>,
    /// Kernels.
    pub entries: Vec<Entry>,
}

/// A variable in memory.
#[derive(Clone, Debug)]
pub struct Var {
    /// Its name.
    pub name: String,
    /// Bytes its address is a multiple of.
    pub align: usize,
    /// Bytes; 0 for `extern` shared arrays.
    pub size: usize,
    /// Initial bytes, shorter than `size` where the rest is zero; `None` for no initialiser.
    pub init: Option<Vec<u8>>,
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its symbol.
    pub name: String,
    /// Its arguments.
    pub params: Vec<Var>,
    /// Static shared memory.
    pub shared: Vec<Var>,
    /// Memory of each thread.
    pub local: Vec<Var>,
    /// Registers by number.
    pub regs: Vec<RegClass>,
    /// Instructions in order.
    pub body: Vec<Instr>,
}

/// Where a register's value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegClass {
    /// Up to 32 bits.
    Word,
    /// 64 bits.
    Double,
    /// One bit a lane.
    Pred,
}

/// An instruction, its names resolved.
#[derive(Clone, Debug)]
pub struct Instr {
    /// Register and whether it is negated.
    pub guard: Option<(u32, bool)>,
    /// The opcode and its modifiers: `ld`, `global`, `nc`, `v4`, `u32`.
    pub op: Vec<String>,
    /// In the order of the text.
    pub operands: Vec<Operand>,
    /// The innermost source line.
    pub loc: Loc,
    /// The line that the innermost function was inlined at.
    pub inlined_at: Option<Loc>,
    /// In the PTX text.
    pub ptx_line: u32,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register by number.
    Reg(u32),
    /// A negated predicate.
    NotReg(u32),
    /// `%tid.x` and the like.
    Special(String),
    /// A variable's name: its address.
    Symbol(String),
    /// An instruction's index: a branch target.
    Target(usize),
    /// An integer, two's complement.
    Int(u64),
    /// `0f...`
    F32(u32),
    /// `0d...`
    F64(u64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base + offset]`
    Memory(Box<Operand>, i64),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
    /// `_`: a result nobody wants.
    Sink,
}

impl Module {
    /// Reads a PTX file.
    ///
    /// # Errors
    /// Names the line of what it can't read.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        parse::Parser::new(lex::lex(text)?).module()
    }
}
