//! One warp: 32 lanes in lock step, with a stack of masks for divergence.

mod alu;
mod compare;
mod convert;
mod execute;
mod memory;
mod scalar;
mod sticky;
mod tensor;
mod warpops;

use std::array;

use crate::counters::Counts;
use crate::fault::{Checked, FaultKind, trouble};
use crate::ir::{Addr, END, Inst, Kernel, MaskKind, NONE, Op, Row, Special};
use crate::mem::global::Global;
use crate::mem::local::Local;
use crate::mem::shared::{Shared, Stamp};

/// 32 lanes of up to 32 bits.
pub(crate) type Word = [u32; 32];
/// 32 lanes of 64 bits.
pub(crate) type Double = [u64; 32];

/// Why a warp stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Every lane has returned.
    Done,
    /// At a barrier of the block, by number.
    Barrier(u32),
}

/// What a block shares, and what the machine lends it.
pub(crate) struct Block<'a> {
    pub kernel: &'a Kernel,
    pub global: &'a Global,
    pub shared: &'a mut Shared,
    pub params: &'a [u8],
    pub counts: &'a mut [Counts],
    /// Last allocation by instruction.
    pub hints: &'a mut [u32],
    /// Barriers the block has passed, since the machine began.
    pub epoch: u32,
    /// Instructions a warp may run between barriers.
    pub fuel: u64,
}

/// A path of the warp: some lanes at one instruction, until they meet the others.
#[derive(Clone, Copy, Debug)]
struct Path {
    pc: usize,
    mask: u32,
    /// Where this path ends and the one below goes on.
    join: usize,
}

/// A `cp.async` that is under way.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    lane: usize,
    group: u32,
    at: u64,
    src: u64,
    bytes: u64,
    /// Bytes that are read; the others become zero.
    size: u64,
}

/// The state of a warp.
#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub index: usize,
    words: Vec<Word>,
    doubles: Vec<Double>,
    preds: Vec<u32>,
    /// The carry flag of each lane.
    carry: u32,
    local: Local,
    paths: Vec<Path>,
    /// Lanes that exist.
    born: u32,
    /// Lanes that have not returned.
    live: u32,
    /// `__syncwarp`s passed.
    sync: u16,
    copies: Vec<Transfer>,
    /// Groups each lane has closed.
    groups: [u32; 32],
    /// The instruction it stands at.
    pub pc: usize,
}

/// Where a warp's registers begin.
pub(crate) struct Setup {
    pub block: [u32; 3],
    pub grid: [u32; 3],
    pub threads: [u32; 3],
    pub dynamic_shared: u32,
}

impl Warp {
    /// Registers of zero and constants, for a launch; [`begin`](Self::begin) must follow.
    pub fn prepare(&mut self, kernel: &Kernel, index: usize, globals: &[u64], setup: &Setup) {
        self.index = index;
        reset(&mut self.words, kernel.words.count, [0; 32]);
        reset(&mut self.doubles, kernel.doubles.count, [0; 32]);
        reset(&mut self.preds, kernel.preds, 0);
        self.local.prepare(kernel.local_bytes);
        // Nothing writes these rows, so they hold for every block.
        for (row, value) in &kernel.words.constants {
            self.words[*row as usize] = [*value; 32];
        }
        for (row, value) in &kernel.doubles.constants {
            self.doubles[*row as usize] = [*value; 32];
        }
        for (row, global) in &kernel.global_rows {
            self.doubles[*row as usize] = [globals[*global]; 32];
        }
        for (special, row) in &kernel.specials {
            self.words[*row as usize] = array::from_fn(|lane| self.special(*special, lane, setup));
        }
    }

    /// Stands at the first instruction of a block. Registers keep what the block before left: to
    /// read one before writing it is undefined in PTX.
    pub fn begin(&mut self, kernel: &Kernel, setup: &Setup) {
        let total = setup.threads.iter().product::<u32>() as usize;
        let lanes = (total - 32 * self.index).min(32);
        self.born = if lanes == 32 {
            u32::MAX
        } else {
            (1 << lanes) - 1
        };
        self.live = self.born;
        self.local.reset();
        self.paths.clear();
        self.paths.push(Path {
            pc: 0,
            mask: self.born,
            join: END,
        });
        self.sync = 0;
        self.carry = 0;
        self.copies.clear();
        self.groups = [0; 32];
        self.pc = 0;
        for (special, row) in &kernel.specials {
            if let Special::Ctaid(axis) = special {
                self.words[*row as usize] = [setup.block[*axis]; 32];
            }
        }
    }

    fn special(&self, special: Special, lane: usize, s: &Setup) -> u32 {
        let [x, y, _] = s.threads;
        let thread = (32 * self.index + lane) as u32;
        let bit = 1u32 << lane;
        match special {
            Special::Tid(0) => thread % x,
            Special::Tid(1) => thread / x % y,
            Special::Tid(_) => thread / (x * y),
            Special::Ntid(a) => s.threads[a],
            Special::Ctaid(a) => s.block[a],
            Special::Nctaid(a) => s.grid[a],
            Special::Lane => lane as u32,
            Special::Warp => self.index as u32,
            Special::Nwarp => s.threads.iter().product::<u32>().div_ceil(32),
            Special::LaneMask(MaskKind::Lt) => bit - 1,
            Special::LaneMask(MaskKind::Le) => bit | (bit - 1),
            Special::LaneMask(MaskKind::Eq) => bit,
            Special::LaneMask(MaskKind::Ge) => !(bit - 1),
            Special::LaneMask(MaskKind::Gt) => !(bit | (bit - 1)),
            Special::DynamicShared => s.dynamic_shared,
        }
    }

    /// Runs until every lane has returned or all stand at a barrier.
    pub fn run(&mut self, block: &mut Block<'_>) -> Checked<Stop> {
        pulp::Arch::new().dispatch(Dispatch { warp: self, block })
    }

    #[inline(always)]
    fn run_here(&mut self, block: &mut Block<'_>) -> Checked<Stop> {
        let kernel = block.kernel;
        for _ in 0..block.fuel {
            let Some(top) = self.paths.last().copied() else {
                return Ok(Stop::Done);
            };
            if top.pc == top.join || top.mask == 0 {
                self.paths.pop();
                continue;
            }
            let Some(inst) = kernel.code.get(top.pc) else {
                // Falling off the end is a return.
                self.leave(top.mask);
                continue;
            };
            self.pc = top.pc;
            let active = top.mask & self.guard(inst);
            let counts = &mut block.counts[top.pc];
            counts.instructions += 1;
            counts.lanes += u64::from(active.count_ones());
            match inst.op {
                Op::Bra { target } => self.branch(kernel, top, active, target),
                Op::Exit => {
                    self.advance();
                    self.leave(active);
                }
                Op::Bar { id } => {
                    self.advance();
                    if active == 0 {
                        continue;
                    }
                    if active != self.born {
                        return trouble(
                            FaultKind::DivergentBarrier,
                            first(active),
                            format!(
                                "lanes {active:#010x} of {:#010x} arrive; the others took another \
                                 branch or have returned",
                                self.born
                            ),
                        );
                    }
                    counts.barriers += 1;
                    return Ok(Stop::Barrier(self.words[id as usize][first(active)]));
                }
                _ => {
                    self.advance();
                    if active != 0 {
                        self.execute(inst, active, block)?;
                    }
                }
            }
        }
        trouble(
            FaultKind::Deadlock,
            0,
            format!("{} instructions without a barrier or an end", block.fuel),
        )
    }

    #[inline(always)]
    fn guard(&self, inst: &Inst) -> u32 {
        match inst.guard {
            None => u32::MAX,
            Some((p, false)) => self.preds[p as usize],
            Some((p, true)) => !self.preds[p as usize],
        }
    }

    #[inline(always)]
    fn advance(&mut self) {
        if let Some(top) = self.paths.last_mut() {
            top.pc += 1;
        }
    }

    fn branch(&mut self, kernel: &Kernel, top: Path, taken: u32, target: usize) {
        let fell = top.mask & !taken;
        let Some(path) = self.paths.last_mut() else {
            return;
        };
        if fell == 0 {
            path.pc = target;
        } else if taken == 0 {
            path.pc += 1;
        } else {
            let join = kernel.reconverge[top.pc];
            // The path waits where the two meet, unless it ends there itself.
            if join == top.join {
                self.paths.pop();
            } else {
                path.pc = join;
            }
            for (pc, mask) in [(top.pc + 1, fell), (target, taken)] {
                if pc != join {
                    self.paths.push(Path { pc, mask, join });
                }
            }
        }
    }

    fn leave(&mut self, lanes: u32) {
        self.live &= !lanes;
        for p in &mut self.paths {
            p.mask &= !lanes;
        }
        self.paths.retain(|p| p.mask != 0);
    }

    /// The stamp of an access by a lane.
    #[inline(always)]
    fn stamp(&self, block: &Block<'_>, lane: usize) -> Stamp {
        Stamp::new(block.epoch, self.sync, (32 * self.index + lane) as u16)
    }

    #[inline(always)]
    fn addresses(&self, a: &Addr) -> [u64; 32] {
        let mut out = [0; 32];
        if a.wide {
            let row = &self.doubles[a.row as usize];
            for i in 0..32 {
                out[i] = row[i].wrapping_add(a.offset as u64);
            }
        } else {
            let row = &self.words[a.row as usize];
            for i in 0..32 {
                out[i] = u64::from(row[i].wrapping_add(a.offset as u32));
            }
        }
        out
    }

    /// Writes a row in the active lanes.
    #[inline(always)]
    fn put(&mut self, d: Row, active: u32, value: &Word) {
        let row = &mut self.words[d as usize];
        if active == u32::MAX {
            *row = *value;
        } else {
            for i in 0..32 {
                let keep = (active >> i & 1).wrapping_sub(1);
                row[i] = row[i] & keep | value[i] & !keep;
            }
        }
    }

    #[inline(always)]
    fn put64(&mut self, d: Row, active: u32, value: &Double) {
        let row = &mut self.doubles[d as usize];
        if active == u32::MAX {
            *row = *value;
        } else {
            for i in 0..32 {
                let keep = u64::from(active >> i & 1).wrapping_sub(1);
                row[i] = row[i] & keep | value[i] & !keep;
            }
        }
    }

    #[inline(always)]
    fn put_pred(&mut self, d: Row, active: u32, value: u32) {
        if d != NONE {
            let p = &mut self.preds[d as usize];
            *p = *p & !active | value & active;
        }
    }

    #[inline(always)]
    fn pred(&self, p: Row, negated: bool) -> u32 {
        let value = self.preds[p as usize];
        if negated { !value } else { value }
    }
}

/// [`Warp::run_here`], compiled for the best instruction set of this machine.
struct Dispatch<'w, 'b, 'c> {
    warp: &'w mut Warp,
    block: &'b mut Block<'c>,
}

impl pulp::WithSimd for Dispatch<'_, '_, '_> {
    type Output = Checked<Stop>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Checked<Stop> {
        self.warp.run_here(self.block)
    }
}

/// So many of one value, where there may be others.
fn reset<T: Clone>(rows: &mut Vec<T>, count: usize, value: T) {
    rows.clear();
    rows.resize(count, value);
}

/// The lowest lane of a mask.
pub(crate) fn first(mask: u32) -> usize {
    mask.trailing_zeros() as usize & 31
}
