//! What instructions do.

use super::{
    Alu, Alu64, Atomic, Bool, Carry, Cmp, Count, Mma, Round, Row, Shuffle, Space, Ty, Vote,
};

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
    /// The same on f32, subnormal inputs and results made zero.
    AluFlushed {
        f: Alu,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// Integers of 32 or 64 bits with the carry flag.
    Carry {
        f: Carry,
        wide: bool,
        takes: bool,
        sets: bool,
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
        f: Count,
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
        flush: bool,
    },
    /// `set`: all ones (integer) or 1.0 where the comparison holds.
    Set {
        ty: Ty,
        cmp: Cmp,
        d: Row,
        a: Row,
        b: Row,
        one: u32,
        flush: bool,
    },
    PredLogic {
        f: Bool,
        d: Row,
        a: Row,
        na: bool,
        b: Row,
        nb: bool,
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
        /// Of f32 inputs and results.
        flush: bool,
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
