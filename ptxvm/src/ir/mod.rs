//! Decoded instructions: every operand is the number of a row of 32 lanes.
//!
//! Immediates and special registers are rows too, filled when a warp begins, so no instruction asks
//! what kind of operand it has.

mod arithmetic;
mod cfg;
mod choices;
mod decode;
mod names;
mod op;
mod operands;

use crate::ptx::Loc;

pub use choices::*;
pub use decode::decode;
pub use op::*;

/// Number of a row in its class.
pub type Row = u16;

/// A row that an absent operand names: it is read as zero and nobody reads what it gets.
pub const NONE: Row = 0;

/// A row for results that nobody wants.
pub const SINK: Row = 1;

/// Rows for copies of inputs that an instruction changes before it reads them.
pub const COPIES: [Row; 3] = [2, 3, 4];

/// No instruction: control flow joins only at the end.
pub const END: usize = usize::MAX;

/// A kernel, ready to run.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its symbol.
    pub name: String,
    /// Its instructions.
    pub code: Vec<Inst>,
    /// Where a divergent branch at an instruction joins again.
    pub reconverge: Vec<usize>,
    /// Rows of up to 32 bits, and what constant ones hold.
    pub words: Rows<u32>,
    /// Rows of 64 bits.
    pub doubles: Rows<u64>,
    /// Predicates.
    pub preds: usize,
    /// Special registers to fill, by row.
    pub specials: Vec<(Special, Row)>,
    /// Bytes of arguments, and the offset and size of each.
    pub params: Vec<(usize, usize)>,
    /// Static shared bytes; dynamic ones follow.
    pub shared_bytes: usize,
    /// Bytes of memory of each thread.
    pub local_bytes: usize,
    /// Addresses of global variables: row and index into the module's variables.
    pub global_rows: Vec<(Row, usize)>,
}

/// Rows of a class.
#[derive(Clone, Debug, Default)]
pub struct Rows<T> {
    /// How many.
    pub count: usize,
    /// Rows that hold the same value in every lane from the start.
    pub constants: Vec<(Row, T)>,
}

/// A guarded instruction.
#[derive(Clone, Debug)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// Predicate and whether it is negated.
    pub guard: Option<(Row, bool)>,
    /// Source line.
    pub loc: Loc,
    /// Where the innermost function was inlined.
    pub inlined_at: Option<Loc>,
}

/// Registers that the machine fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Thread in its block, by axis.
    Tid(usize),
    /// Threads of a block.
    Ntid(usize),
    /// Block in the grid.
    Ctaid(usize),
    /// Blocks of the grid.
    Nctaid(usize),
    /// Lane in the warp.
    Lane,
    /// Warp in the block.
    Warp,
    /// Warps of a block.
    Nwarp,
    /// Lanes below, up to, equal to, from, above this one.
    LaneMask(MaskKind),
    /// Dynamic shared bytes.
    DynamicShared,
}

/// Which lanes a lane mask names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MaskKind {
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
}
