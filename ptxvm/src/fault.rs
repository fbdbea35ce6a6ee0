//! What went wrong in a kernel, and where.

use std::fmt;

/// A kernel broke a rule. Nothing after it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which rule.
    pub kind: FaultKind,
    /// The kernel's symbol.
    pub kernel: String,
    /// Source file, or the PTX where nvcc wrote no line.
    pub file: String,
    /// Line in it.
    pub line: u32,
    /// Where the innermost function was inlined: file and line.
    pub inlined_at: Option<(String, u32)>,
    /// Block in the grid.
    pub block: [u32; 3],
    /// Thread in its block.
    pub thread: [u32; 3],
    /// Addresses, buffers, the other thread of a race.
    pub detail: String,
}

/// The rules that are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An address outside every allocation, or past the end of shared or local memory.
    OutOfBounds,
    /// A read of memory that nobody wrote.
    Uninitialised,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// Two threads, one of them writing, with no barrier between.
    Race,
    /// A barrier that only some lanes of a warp reached.
    DivergentBarrier,
    /// A barrier that some warps never reach.
    MissingBarrier,
    /// A warp-wide instruction whose mask names lanes that are not there.
    MissingLanes,
    /// Shared memory touched while a `cp.async` into it is under way.
    AsyncNotWaited,
    /// No warp can go on, or one went on for too long.
    Deadlock,
    /// `trap`, as a failed assertion makes it.
    Trap,
    /// A launch that no device takes.
    Launch,
}

impl FaultKind {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            FaultKind::OutOfBounds => "out of bounds",
            FaultKind::Uninitialised => "uninitialised read",
            FaultKind::Misaligned => "misaligned access",
            FaultKind::Race => "race in shared memory",
            FaultKind::DivergentBarrier => "divergent barrier",
            FaultKind::MissingBarrier => "missing barrier",
            FaultKind::MissingLanes => "missing lanes",
            FaultKind::AsyncNotWaited => "cp.async not waited for",
            FaultKind::Deadlock => "deadlock",
            FaultKind::Trap => "trap",
            FaultKind::Launch => "bad launch",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kernel, self.kind.words())?;
        if self.kind != FaultKind::Launch {
            write!(f, " at {}:{}", self.file, self.line)?;
            if let Some((file, line)) = &self.inlined_at {
                write!(f, " (inlined at {file}:{line})")?;
            }
            let ([bx, by, bz], [x, y, z]) = (self.block, self.thread);
            write!(f, ", block ({bx}, {by}, {bz}) thread ({x}, {y}, {z})")?;
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for Fault {}

/// A fault before its place is known: the kind, the lane and the detail.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub kind: FaultKind,
    pub lane: usize,
    pub detail: String,
}

impl Trouble {
    #[cold]
    pub fn new(kind: FaultKind, lane: usize, detail: impl Into<String>) -> Trouble {
        Trouble {
            kind,
            lane,
            detail: detail.into(),
        }
    }
}

/// Boxed, so that the common path carries one word.
pub(crate) type Checked<T> = Result<T, Box<Trouble>>;

/// Shorthand for a boxed [`Trouble`].
#[cold]
pub(crate) fn trouble<T>(kind: FaultKind, lane: usize, detail: impl Into<String>) -> Checked<T> {
    Err(Box::new(Trouble::new(kind, lane, detail)))
}
