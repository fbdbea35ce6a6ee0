//! What instructions do, and the choices that tell them apart.

use super::Row;

/// Types of PTX that arithmetic, conversions and comparisons tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Ty {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
    Pred,
}

impl Ty {
    /// Whether its values lie in 64-bit rows.
    pub fn is_double(self) -> bool {
        matches!(self, Ty::U64 | Ty::S64 | Ty::F64)
    }

    /// Bits of a value.
    pub fn bits(self) -> u32 {
        match self {
            Ty::U8 | Ty::S8 => 8,
            Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 16,
            Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2 => 32,
            Ty::U64 | Ty::S64 | Ty::F64 => 64,
            Ty::Pred => 1,
        }
    }

    /// Whether integer operations extend the sign.
    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 | Ty::F32 | Ty::F64
        )
    }
}

/// Operations on rows of up to 32 bits; 16-bit ones keep the upper half zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Alu {
    Add,
    Sub,
    Mul,
    MulHiU,
    MulHiS,
    Mad,
    MadHiU,
    MadHiS,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    NegS,
    AbsS,
    And,
    Or,
    Xor,
    Not,
    Shl,
    ShrU,
    ShrS,
    ShfLWrap,
    ShfRWrap,
    ShfLClamp,
    ShfRClamp,
    BfeU,
    BfeS,
    BfindU,
    BfindS,
    Brev,
    Clz,
    Popc,
    Prmt,
    Add16,
    Sub16,
    Mul16,
    Mad16,
    Shl16,
    ShrU16,
    ShrS16,
    Not16,
    Neg16,
    MinS16,
    MaxS16,
    Abs16,
    DivU16,
    RemU16,
    FAdd,
    FSub,
    FMul,
    FFma,
    FFmaRm,
    FFmaRp,
    FFmaRz,
    FDiv,
    FMin,
    FMax,
    FMinNan,
    FMaxNan,
    FNeg,
    FAbs,
    FSqrt,
    FRcp,
    FRsqrt,
    FEx2,
    FLg2,
    FSin,
    FCos,
    FTanh,
    FCopysign,
    HAdd,
    HSub,
    HMul,
    HFma,
    HNeg,
    HAbs,
    HMin,
    HMax,
    HAdd2,
    HSub2,
    HMul2,
    HFma2,
    HNeg2,
    HAbs2,
    HMin2,
    HMax2,
    BFma2,
    BFma,
    BAdd2,
    BMul2,
}

/// Operations on rows of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Alu64 {
    Add,
    Sub,
    Mul,
    MulHiU,
    MulHiS,
    Mad,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    NegS,
    AbsS,
    And,
    Or,
    Xor,
    Not,
    DAdd,
    DSub,
    DMul,
    DFma,
    DDiv,
    DMin,
    DMax,
    DNeg,
    DAbs,
    DSqrt,
    DRcp,
}

/// Comparisons; the ones with `u` hold on NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// How predicates combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Bool {
    And,
    Or,
    Xor,
}

/// Rounding of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// Where memory instructions look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Space {
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

/// An address: a row (32 or 64 bits) and an offset.
#[derive(Clone, Copy, Debug)]
pub struct Addr {
    /// Row of the base.
    pub row: Row,
    /// Whether it is a 64-bit row.
    pub wide: bool,
    /// Bytes added.
    pub offset: i64,
}

/// Part of a vector that is loaded, stored, packed or unpacked.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its row; [`NONE`] drops a loaded value.
    pub row: Row,
    /// Whether it is a 64-bit row.
    pub wide: bool,
}

/// Read-modify-write operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// Shuffle modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// Votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// Shapes of `mma.sync`, all with f32 or f16 accumulation, row by column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mma {
    /// 8 or 16.
    pub k: usize,
    /// Operands are bf16 rather than f16.
    pub bf16: bool,
    /// The accumulator is f16.
    pub half_acc: bool,
}

/// What an instruction does. Rows named `d` are written.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Alu {
        f: Alu,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Bfi {
        d: Row,
        a: Row,
        b: Row,
        pos: Row,
        len: Row,
    },
    Lop3 {
        d: Row,
        a: Row,
        b: Row,
        c: Row,
        table: u8,
    },
    Alu64 {
        f: Alu64,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// `b` is a 32-bit row.
    Shift64 {
        left: bool,
        signed: bool,
        d: Row,
        a: Row,
        b: Row,
    },
    /// 32 x 32 bits to 64, and `c` (64 bits) added.
    Wide {
        signed: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// 16 x 16 bits to 32, and `c` added.
    Wide16 {
        signed: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// Count of a 64-bit row into a 32-bit one.
    Count64 {
        clz: bool,
        d: Row,
        a: Row,
    },
    Mov {
        d: Row,
        a: Row,
    },
    Mov64 {
        d: Row,
        a: Row,
    },
    /// Parts, low first, into one register of 32 (`wide` false) or 64 bits.
    Pack {
        d: Row,
        wide: bool,
        parts: Vec<Part>,
    },
    Unpack {
        a: Row,
        wide: bool,
        parts: Vec<Part>,
    },
    Setp {
        ty: Ty,
        cmp: Cmp,
        d: Row,
        other: Row,
        a: Row,
        b: Row,
        with: Option<(Bool, Row, bool)>,
    },
    /// `set`: all ones (integer) or 1.0 where the comparison holds.
    Set {
        ty: Ty,
        cmp: Cmp,
        d: Row,
        a: Row,
        b: Row,
        one: u32,
    },
    PredLogic {
        f: Bool,
        d: Row,
        a: Row,
        na: bool,
        b: Row,
        nb: bool,
    },
    PredNot {
        d: Row,
        a: Row,
    },
    PredMov {
        d: Row,
        a: Row,
    },
    PredConst {
        d: Row,
        value: bool,
    },
    Selp {
        wide: bool,
        d: Row,
        a: Row,
        b: Row,
        p: Row,
        np: bool,
    },
    Cvt {
        to: Ty,
        from: Ty,
        round: Round,
        integral: bool,
        sat: bool,
        d: Row,
        a: Row,
    },
    /// Two f32 to one pair of halves, `hi` above.
    CvtPair {
        bf16: bool,
        relu: bool,
        d: Row,
        hi: Row,
        lo: Row,
    },
    Bra {
        target: usize,
    },
    Exit,
    Bar {
        id: Row,
    },
    BarWarp {
        mask: Row,
    },
    /// Fences: this machine is sequentially consistent.
    Nop,
    Trap,
    Ld {
        space: Space,
        bytes: u8,
        signed: bool,
        parts: Vec<Part>,
        addr: Addr,
    },
    St {
        space: Space,
        bytes: u8,
        parts: Vec<Part>,
        addr: Addr,
    },
    Atom {
        space: Space,
        f: Atomic,
        ty: Ty,
        d: Option<Row>,
        addr: Addr,
        a: Row,
        b: Row,
    },
    /// Between generic addresses and those of a space.
    Cvta {
        to: bool,
        space: Space,
        wide_d: bool,
        wide_a: bool,
        d: Row,
        a: Row,
    },
    Shfl {
        mode: Shuffle,
        d: Row,
        p: Row,
        a: Row,
        b: Row,
        c: Row,
        mask: Row,
    },
    Vote {
        f: Vote,
        d: Row,
        a: Row,
        na: bool,
        mask: Row,
    },
    Match {
        all: bool,
        wide: bool,
        d: Row,
        p: Row,
        a: Row,
        mask: Row,
    },
    Redux {
        f: Atomic,
        signed: bool,
        d: Row,
        a: Row,
        mask: Row,
    },
    ActiveMask {
        d: Row,
    },
    LdMatrix {
        num: usize,
        trans: bool,
        parts: Vec<Row>,
        addr: Addr,
    },
    StMatrix {
        num: usize,
        trans: bool,
        parts: Vec<Row>,
        addr: Addr,
    },
    Mma {
        shape: Mma,
        d: Vec<Row>,
        a: Vec<Row>,
        b: Vec<Row>,
        c: Vec<Row>,
    },
    CpAsync {
        bytes: u8,
        dst: Addr,
        src: Addr,
        size: Option<Row>,
    },
    CpCommit,
    /// Waits until at most so many groups are under way; `None` for every copy, grouped or not.
    CpWait {
        pending: Option<u32>,
    },
}
