//! What a launch did, counted exactly: the same launch gives the same numbers every time.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use crate::ptx::Loc;

/// Counts of a launch, a source line or an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions that a warp issued.
    pub instructions: u64,
    /// Lanes that were active in them.
    pub lanes: u64,
    /// Floating-point operations of matrix instructions (a multiply and an add are two).
    pub matrix_flops: u64,
    /// Requests of a warp to global memory.
    pub global_requests: u64,
    /// Bytes that lanes read from global memory.
    pub global_read_bytes: u64,
    /// Bytes that lanes wrote to global memory.
    pub global_write_bytes: u64,
    /// Sectors of 32 bytes that the requests touched.
    pub sectors_moved: u64,
    /// Of these, sectors that requests of 16 bytes a lane touched.
    pub vector_sectors_moved: u64,
    /// Sectors that the same bytes would fill side by side.
    pub sectors_needed: u64,
    /// Requests of a warp to shared memory.
    pub shared_requests: u64,
    /// Passes beyond those that a request of its width takes: bank conflicts.
    pub bank_conflicts: u64,
    /// Barriers of the block that a warp reached.
    pub barriers: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, o: Counts) {
        self.instructions += o.instructions;
        self.lanes += o.lanes;
        self.matrix_flops += o.matrix_flops;
        self.global_requests += o.global_requests;
        self.global_read_bytes += o.global_read_bytes;
        self.global_write_bytes += o.global_write_bytes;
        self.sectors_moved += o.sectors_moved;
        self.vector_sectors_moved += o.vector_sectors_moved;
        self.sectors_needed += o.sectors_needed;
        self.shared_requests += o.shared_requests;
        self.bank_conflicts += o.bank_conflicts;
        self.barriers += o.barriers;
    }
}

/// What a launch counted, or several together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How many launches.
    pub launches: u64,
    /// Of the whole launch.
    pub total: Counts,
    /// By source line (of the innermost function).
    pub lines: BTreeMap<Loc, Counts>,
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        self.launches += other.launches;
        self.total += other.total;
        for (loc, counts) in &other.lines {
            *self.lines.entry(*loc).or_default() += *counts;
        }
    }
}

impl Counters {
    pub(crate) fn by_line(code: &[crate::ir::Inst], counts: &[Counts]) -> Counters {
        let mut out = Counters {
            launches: 1,
            ..Counters::default()
        };
        for (inst, c) in code.iter().zip(counts) {
            if c.instructions > 0 {
                out.total += *c;
                *out.lines.entry(inst.loc).or_default() += *c;
            }
        }
        out
    }
}

/// Whether the lanes of a request lie side by side.
#[inline(always)]
pub(crate) fn is_run(addrs: &[u64; 32], mask: u32, bytes: u64) -> bool {
    let mut apart = 0;
    if mask == u32::MAX {
        for lane in 1..32 {
            apart |= addrs[lane] ^ addrs[lane - 1].wrapping_add(bytes);
        }
        return apart == 0;
    }
    let mut next = addrs[mask.trailing_zeros() as usize & 31];
    for (lane, a) in addrs.iter().enumerate() {
        if mask >> lane & 1 == 1 {
            apart |= a ^ next;
            next = a.wrapping_add(bytes);
        }
    }
    apart == 0
}

/// Sectors moved and needed by one request of `bytes` a lane, at aligned addresses; `run` says
/// whether they lie side by side.
#[inline(always)]
pub(crate) fn sectors(addrs: &[u64; 32], mask: u32, bytes: u64, run: bool) -> (u64, u64) {
    let first = addrs[mask.trailing_zeros() as usize & 31];
    if run {
        let total = u64::from(mask.count_ones()) * bytes;
        return (
            (first + total - 1) / 32 - first / 32 + 1,
            total.div_ceil(32),
        );
    }
    // In order, so that neighbours tell what is distinct; idle lanes repeat one that is not.
    let mut sorted = *addrs;
    if mask != u32::MAX {
        let mut last = first;
        for lane in 0..32 {
            if mask >> lane & 1 == 1 {
                last = addrs[lane];
            }
            sorted[lane] = last;
        }
    }
    if (1..32).fold(false, |falls, i| falls | (sorted[i] < sorted[i - 1])) {
        sorted.sort_unstable();
    }
    let (mut moved, mut unique) = (1, 1);
    for i in 1..32 {
        moved += u64::from(sorted[i] / 32 != sorted[i - 1] / 32);
        unique += u64::from(sorted[i] != sorted[i - 1]);
    }
    (moved, (unique * bytes).div_ceil(32))
}

/// Passes of a shared request beyond the least its width needs: 32 banks of 4 bytes, 8-byte
/// accesses in two halves of the warp and 16-byte ones in four quarters. Aligned accesses of 8 and
/// 16 bytes take two and four neighbouring banks, so banks count in such slots.
#[inline(always)]
pub(crate) fn conflicts(offsets: &[u64; 32], mask: u32, bytes: u64) -> u64 {
    let shift = bytes.max(4).trailing_zeros();
    let lanes_a_pass = 128usize >> shift;
    let mut slots = [0u32; 32];
    for lane in 0..32 {
        let slot = offsets[lane] as u32 >> shift & (lanes_a_pass as u32 - 1);
        slots[lane] = (mask >> lane & 1) << slot;
    }
    let mut extra = 0;
    for first in (0..32).step_by(lanes_a_pass) {
        let pass = first..first + lanes_a_pass;
        let taken = slots[pass.clone()].iter().fold(0, |taken, s| taken | s);
        let lanes = mask >> first & (u32::MAX >> (32 - lanes_a_pass));
        // A slot for each lane: nobody waits.
        if taken.count_ones() < lanes.count_ones() {
            extra += rounds(&offsets[pass], lanes, shift) - 1;
        }
    }
    extra
}

/// Rounds that some lanes of a pass take: the most places that one slot is asked for.
#[inline(never)]
fn rounds(offsets: &[u64], lanes: u32, shift: u32) -> u64 {
    let (mut places, mut n) = ([0u64; 32], 0);
    let mut load = [0u8; 32];
    for (lane, offset) in offsets.iter().enumerate() {
        let place = offset >> shift;
        let slot = &mut load[place as usize & (offsets.len() - 1)];
        // Lanes that want the same place share it.
        if lanes >> lane & 1 == 1 && (*slot == 0 || !places[..n].contains(&place)) {
            places[n] = place;
            n += 1;
            *slot += 1;
        }
    }
    load.iter().max().copied().unwrap_or(0).into()
}
