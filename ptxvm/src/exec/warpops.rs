//! Instructions in which lanes meet: shuffles, votes, matches, reductions, `bar.warp.sync`.

use super::{Double, Warp, Word, first};
use crate::fault::{Checked, FaultKind, trouble};
use crate::ir::{Atomic, Row, Shuffle, Vote};

impl Warp {
    /// The lanes that take part: all that the mask names must be here.
    #[inline(always)]
    fn meet(&self, mask: Row, m: u32) -> Checked<u32> {
        let wanted = self.words[mask as usize][first(m)];
        // Lanes that never existed (the tail of a block) and those that returned are forgiven when
        // the mask is the usual -1: nvcc writes it for whole warps.
        let wanted = if wanted == u32::MAX {
            self.live
        } else {
            wanted
        };
        if wanted & !m != 0 {
            return trouble(
                FaultKind::MissingLanes,
                first(m),
                format!("the mask names lanes {wanted:#010x}, but {m:#010x} are here"),
            );
        }
        if m & !wanted != 0 {
            return trouble(
                FaultKind::MissingLanes,
                first(m & !wanted),
                format!(
                    "lane {} is not in the mask {wanted:#010x}",
                    first(m & !wanted)
                ),
            );
        }
        Ok(wanted)
    }

    #[inline(always)]
    pub(super) fn shfl(
        &mut self,
        mode: Shuffle,
        (d, p): (Row, Row),
        [a, b, c, mask]: [Row; 4],
        m: u32,
    ) -> Checked<()> {
        self.meet(mask, m)?;
        let [x, by, clamp] = [a, b, c].map(|r| &self.words[r as usize]);
        let (sources, ok) = match mode {
            Shuffle::Up => sources(by, clamp, |lane, offset, _, high| {
                let fits = lane as i32 - offset as i32 >= high as i32;
                (lane.wrapping_sub(offset), fits)
            }),
            Shuffle::Down => sources(by, clamp, |lane, offset, _, high| {
                (lane + offset, lane + offset <= high)
            }),
            Shuffle::Bfly => sources(by, clamp, |lane, offset, _, high| {
                (lane ^ offset, lane ^ offset <= high)
            }),
            Shuffle::Idx => sources(by, clamp, |lane, offset, segment, high| {
                let source = lane & segment | offset & !segment;
                (source, source <= high)
            }),
        };
        let (mut value, mut valid, mut absent): (Word, u32, u32) = ([0; 32], 0, 0);
        for i in 0..32 {
            value[i] = x[sources[i] as usize & 31];
            valid |= ok[i] << i;
            absent |= (!m >> sources[i] & 1) << i;
        }
        if absent & m != 0 {
            let lane = first(absent & m);
            return trouble(
                FaultKind::MissingLanes,
                lane,
                format!("reads lane {}, which is not here", sources[lane]),
            );
        }
        self.put(d, m, &value);
        self.put_pred(p, m, valid);
        Ok(())
    }

    pub(super) fn bar_warp(&mut self, mask: Row, m: u32) -> Checked<()> {
        self.meet(mask, m)?;
        self.sync = self.sync.wrapping_add(1);
        Ok(())
    }

    pub(super) fn vote(
        &mut self,
        f: Vote,
        d: Row,
        (a, na): (Row, bool),
        mask: Row,
        m: u32,
    ) -> Checked<()> {
        self.meet(mask, m)?;
        let yes = self.pred(a, na) & m;
        let all = |b: bool| if b { u32::MAX } else { 0 };
        match f {
            Vote::Ballot => self.put(d, m, &[yes; 32]),
            Vote::All => self.put_pred(d, m, all(yes == m)),
            Vote::Any => self.put_pred(d, m, all(yes != 0)),
            Vote::Uni => self.put_pred(d, m, all(yes == m || yes == 0)),
        }
        Ok(())
    }

    pub(super) fn match_lanes(
        &mut self,
        all: bool,
        wide: bool,
        (d, p): (Row, Row),
        a: Row,
        mask: Row,
        m: u32,
    ) -> Checked<()> {
        self.meet(mask, m)?;
        let x: Double = if wide {
            self.doubles[a as usize]
        } else {
            self.words[a as usize].map(u64::from)
        };
        let same = |i: usize| {
            (0..32).fold(0u32, |out, j| {
                out | u32::from(m >> j & 1 == 1 && x[i] == x[j]) << j
            })
        };
        if all {
            let agree = same(first(m)) == m;
            self.put(d, m, &[if agree { m } else { 0 }; 32]);
            self.put_pred(p, m, if agree { u32::MAX } else { 0 });
        } else {
            self.put(d, m, &std::array::from_fn(same));
        }
        Ok(())
    }

    pub(super) fn redux(
        &mut self,
        f: Atomic,
        signed: bool,
        d: Row,
        a: Row,
        mask: Row,
        m: u32,
    ) -> Checked<()> {
        self.meet(mask, m)?;
        let x = self.words[a as usize];
        let value = (0..32)
            .filter(|i| m >> i & 1 == 1)
            .map(|i| x[i])
            .reduce(|s, v| match f {
                Atomic::Add => s.wrapping_add(v),
                Atomic::And => s & v,
                Atomic::Or => s | v,
                Atomic::Xor => s ^ v,
                Atomic::Min if signed => (s as i32).min(v as i32) as u32,
                Atomic::Max if signed => (s as i32).max(v as i32) as u32,
                Atomic::Min => s.min(v),
                _ => s.max(v),
            })
            .unwrap_or(0);
        self.put(d, m, &[value; 32]);
        Ok(())
    }
}

/// The lane that each lane of a shuffle reads, and 1 where that is the one asked for: outside its
/// segment a lane reads itself. `at` is given the lane, its operand, the bits that tell segments
/// apart and the last lane that may be read (for `up`, the first).
#[inline(always)]
fn sources(
    by: &Word,
    clamp: &Word,
    at: impl Fn(u32, u32, u32, u32) -> (u32, bool),
) -> (Word, Word) {
    let (mut sources, mut inside) = ([0; 32], [0; 32]);
    for i in 0..32 {
        let lane = i as u32;
        let (segment, limit) = (clamp[i] >> 8 & 31, clamp[i] & 31);
        let high = lane & segment | limit & !segment;
        let (source, ok) = at(lane, by[i] & 31, segment, high);
        sources[i] = if ok { source & 31 } else { lane };
        inside[i] = u32::from(ok);
    }
    (sources, inside)
}
