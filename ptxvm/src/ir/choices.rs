//! The choices that tell instructions of one kind apart.

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

/// What is counted in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Zeros before the highest one.
    Clz,
    /// Ones.
    Popc,
    /// Where the highest bit is that is not the sign.
    Bfind {
        /// Whether there is a sign.
        signed: bool,
        /// Counted from the top.
        amount: bool,
    },
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
    ShiftAmtU,
    ShiftAmtS,
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

/// Sums that set or take in the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Carry {
    Add,
    /// The flag is a borrow.
    Sub,
    Mad,
    MadHiU,
    MadHiS,
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
