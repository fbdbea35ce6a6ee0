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
        self.sectors_needed += o.sectors_needed;
        self.shared_requests += o.shared_requests;
        self.bank_conflicts += o.bank_conflicts;
        self.barriers += o.barriers;
    }
}

/// What a launch counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of the whole launch.
    pub total: Counts,
    /// By source line (of the innermost function).
    pub lines: BTreeMap<Loc, Counts>,
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        self.total += other.total;
        for (loc, counts) in &other.lines {
            *self.lines.entry(*loc).or_default() += *counts;
        }
    }
}

impl Counters {
    pub(crate) fn by_line(code: &[crate::ir::Inst], counts: &[Counts]) -> Counters {
        let mut out = Counters::default();
        for (inst, c) in code.iter().zip(counts) {
            if c.instructions > 0 {
                out.total += *c;
                *out.lines.entry(inst.loc).or_default() += *c;
            }
        }
        out
    }
}

/// Distinct values of up to 32, in `scratch`.
#[inline]
fn distinct(values: impl Iterator<Item = u64>, scratch: &mut [u64; 32]) -> usize {
    let mut n = 0;
    for v in values {
        // Neighbouring lanes mostly touch the same or the next: look at the last ones first.
        if !scratch[..n].iter().rev().any(|s| *s == v) {
            scratch[n] = v;
            n += 1;
        }
    }
    n
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
    if run {
        let first = addrs[mask.trailing_zeros() as usize & 31];
        let total = u64::from(mask.count_ones()) * bytes;
        return (
            (first + total - 1) / 32 - first / 32 + 1,
            total.div_ceil(32),
        );
    }
    let first = addrs[mask.trailing_zeros() as usize & 31];
    let mut other = 0;
    for (lane, a) in addrs.iter().enumerate() {
        other |= (a ^ first) & u64::from(mask >> lane & 1).wrapping_neg();
    }
    if other == 0 {
        return (1, 1);
    }
    scattered(addrs, mask, bytes)
}

fn scattered(addrs: &[u64; 32], mask: u32, bytes: u64) -> (u64, u64) {
    let mut scratch = [0u64; 32];
    let active = |lane: &usize| mask >> lane & 1 == 1;
    let moved = distinct((0..32).filter(active).map(|l| addrs[l] / 32), &mut scratch);
    let unique = distinct((0..32).filter(active).map(|l| addrs[l]), &mut scratch);
    (moved as u64, (unique as u64 * bytes).div_ceil(32))
}

/// Passes of a shared request beyond the least its width needs: 32 banks of 4 bytes, 8-byte
/// accesses in two halves of the warp and 16-byte ones in four quarters.
pub(crate) fn conflicts(offsets: &[u64; 32], mask: u32, bytes: u64) -> u64 {
    // Side by side, or all at one place: no two words of a pass share a bank.
    if bytes >= 4 && (is_run(offsets, mask, bytes) || is_run(offsets, mask, 0)) {
        return 0;
    }
    let lanes_a_pass = (128 / bytes.max(4)).min(32) as usize;
    let mut extra = 0;
    for first in (0..32).step_by(lanes_a_pass) {
        let (mut words, mut n) = ([0u64; 32], 0usize);
        let mut load = [0u8; 32];
        for lane in first..first + lanes_a_pass {
            if (mask >> lane) & 1 == 0 {
                continue;
            }
            for w in 0..(bytes / 4).max(1) {
                let word = offsets[lane] / 4 + w;
                let bank = (word % 32) as usize;
                // Lanes that want the same word share it.
                if load[bank] == 0 || !words[..n].contains(&word) {
                    words[n] = word;
                    n += 1;
                    load[bank] += 1;
                }
            }
        }
        extra += u64::from(load.iter().max().copied().unwrap_or(0).saturating_sub(1));
    }
    extra
}
