//! A block's shared memory, with a record of who touched what since the last barrier.
//!
//! Each half-word remembers its last writer and its readers as stamps: barrier epoch, warp-sync
//! count and thread. Two accesses conflict if one writes, the epochs are the same, the threads are
//! not, and no `__syncwarp` of their warp lies between. Epochs only grow, so nothing is cleared
//! between blocks.

use super::byte_mask;
use crate::fault::{Checked, FaultKind, trouble};

/// Reader field: several threads of one warp (its number in the low bits).
const WARP: u16 = 0x8000;
/// Reader field: threads of several warps.
const MANY: u16 = 0xFFFF;

/// Who accesses, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Stamp {
    /// Barriers passed; 0 is never now.
    pub epoch: u32,
    /// `__syncwarp`s that the warp passed.
    pub sync: u16,
    /// Thread in its block.
    pub thread: u16,
}

#[derive(Clone, Copy, Default)]
struct Half {
    write: Stamp,
    read: Stamp,
}

pub(crate) struct Shared {
    words: Vec<u32>,
    /// Bytes written, a bit each.
    init: Vec<u8>,
    /// Bytes that a `cp.async` will write, a bit each.
    pending: Vec<u8>,
    halves: Vec<Half>,
    bytes: u64,
    check: bool,
}

impl Stamp {
    #[inline(always)]
    fn conflicts(self, now: Stamp) -> bool {
        if self.epoch != now.epoch || self.thread == now.thread {
            return false;
        }
        if self.thread == MANY {
            return true;
        }
        let warp = if self.thread & WARP != 0 {
            self.thread & !WARP
        } else {
            self.thread / 32
        };
        warp != now.thread / 32 || self.sync == now.sync
    }
}

impl Shared {
    pub fn new(bytes: usize, check: bool) -> Shared {
        let n = bytes.div_ceil(4);
        Shared {
            words: vec![0; n],
            init: vec![0; n],
            pending: vec![0; n],
            halves: vec![Half::default(); if check { 2 * n } else { 0 }],
            bytes: bytes as u64,
            check,
        }
    }

    /// Another block begins.
    pub fn reset(&mut self) {
        self.init.fill(0);
        self.pending.fill(0);
        self.words.fill(0xFFFF_FFFF);
    }

    #[inline(always)]
    fn bounds(&self, at: u64, bytes: u64, lane: usize) -> Checked<()> {
        if !at.is_multiple_of(bytes) {
            return trouble(
                FaultKind::Misaligned,
                lane,
                format!("{bytes} bytes at byte {at} of shared memory"),
            );
        }
        if at.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return trouble(
                FaultKind::OutOfBounds,
                lane,
                format!(
                    "{bytes} bytes at byte {at} of shared memory ({} bytes)",
                    self.bytes
                ),
            );
        }
        Ok(())
    }

    #[inline(always)]
    fn settled(&self, word: usize, mask: u8, at: u64, lane: usize) -> Checked<()> {
        if self.pending[word] & mask != 0 {
            return trouble(
                FaultKind::AsyncNotWaited,
                lane,
                format!("byte {at} of shared memory awaits a cp.async"),
            );
        }
        Ok(())
    }

    /// Reads an aligned access into up to four words.
    #[inline(always)]
    pub fn read(
        &mut self,
        at: u64,
        bytes: u64,
        out: &mut [u32; 4],
        lane: usize,
        now: Stamp,
    ) -> Checked<()> {
        self.bounds(at, bytes, lane)?;
        let mask = byte_mask(at, bytes);
        for i in 0..(bytes as usize / 4).max(1) {
            let word = (at / 4) as usize + i;
            out[i] = self.words[word];
            if self.check {
                self.settled(word, mask, at + 4 * i as u64, lane)?;
                if self.init[word] & mask != mask {
                    return trouble(
                        FaultKind::Uninitialised,
                        lane,
                        format!("byte {} of shared memory", at + 4 * i as u64),
                    );
                }
                for half in covered(word, mask) {
                    self.note_read(half, lane, now)?;
                }
            }
        }
        if bytes < 4 {
            out[0] = out[0] >> (8 * (at & 3)) & if bytes == 1 { 0xFF } else { 0xFFFF };
        }
        Ok(())
    }

    #[inline(always)]
    fn note_read(&mut self, half: usize, lane: usize, now: Stamp) -> Checked<()> {
        let h = &mut self.halves[half];
        if h.write.conflicts(now) {
            let other = h.write.thread;
            return trouble(
                FaultKind::Race,
                lane,
                format!(
                    "reads byte {} of shared memory that thread {other} wrote with no barrier between",
                    2 * half
                ),
            );
        }
        let r = h.read;
        h.read = if r.epoch != now.epoch || r.thread == now.thread {
            now
        } else if r.thread == MANY {
            r
        } else {
            let warp = if r.thread & WARP != 0 {
                r.thread & !WARP
            } else {
                r.thread / 32
            };
            if warp != now.thread / 32 {
                Stamp {
                    thread: MANY,
                    ..now
                }
            } else if r.sync == now.sync {
                Stamp {
                    thread: WARP | warp,
                    ..now
                }
            } else {
                now
            }
        };
        Ok(())
    }

    /// Writes an aligned access.
    #[inline(always)]
    pub fn write(
        &mut self,
        at: u64,
        bytes: u64,
        value: &[u32; 4],
        lane: usize,
        now: Stamp,
    ) -> Checked<()> {
        self.bounds(at, bytes, lane)?;
        let mask = byte_mask(at, bytes);
        for i in 0..(bytes as usize / 4).max(1) {
            let word = (at / 4) as usize + i;
            let old = self.words[word];
            let new = if bytes < 4 {
                let (shift, ones) = (8 * (at & 3), if bytes == 1 { 0xFF } else { 0xFFFF });
                old & !(ones << shift) | (value[0] & ones) << shift
            } else {
                value[i]
            };
            if self.check {
                self.settled(word, mask, at + 4 * i as u64, lane)?;
                // Lanes that write the same value into a place agree, whoever comes last.
                let same = old == new && self.init[word] & mask == mask;
                for half in covered(word, mask) {
                    self.note_write(half, lane, now, same)?;
                }
            }
            self.words[word] = new;
            self.init[word] |= mask;
        }
        Ok(())
    }

    #[inline(always)]
    fn note_write(&mut self, half: usize, lane: usize, now: Stamp, same: bool) -> Checked<()> {
        let h = &mut self.halves[half];
        let (other, did) = if h.write.conflicts(now) && !same {
            (h.write, "wrote")
        } else if h.read.conflicts(now) {
            (h.read, "read")
        } else {
            h.write = now;
            return Ok(());
        };
        let who = match other.thread {
            MANY => "threads of other warps".to_string(),
            t if t & WARP != 0 => format!("warp {}", t & !WARP),
            t => format!("thread {t}"),
        };
        trouble(
            FaultKind::Race,
            lane,
            format!(
                "writes byte {} of shared memory that {who} {did} with no barrier between",
                2 * half
            ),
        )
    }

    /// Reads for an atomic. Races between atomics and plain accesses are not looked for.
    pub fn read_atomic(&self, at: u64, bytes: u64, out: &mut [u32; 4], lane: usize) -> Checked<()> {
        self.bounds(at, bytes, lane)?;
        for i in 0..(bytes / 4) as usize {
            let word = (at / 4) as usize + i;
            self.settled(word, 15, at, lane)?;
            if self.init[word] != 15 {
                return trouble(
                    FaultKind::Uninitialised,
                    lane,
                    format!("byte {at} of shared memory"),
                );
            }
            out[i] = self.words[word];
        }
        Ok(())
    }

    /// Writes for an atomic, after [`read_atomic`](Self::read_atomic).
    pub fn write_atomic(&mut self, at: u64, bytes: u64, value: &[u32; 4]) {
        for i in 0..(bytes / 4) as usize {
            self.words[(at / 4) as usize + i] = value[i];
        }
    }

    /// A `cp.async` begins: from now on until its wait nobody may touch the bytes.
    pub fn begin_async(&mut self, at: u64, bytes: u64, lane: usize, now: Stamp) -> Checked<()> {
        self.bounds(at, bytes, lane)?;
        for word in (at / 4) as usize..((at + bytes) / 4) as usize {
            if self.check {
                for half in covered(word, 15) {
                    self.note_write(half, lane, now, false)?;
                }
            }
            self.pending[word] = 15;
        }
        Ok(())
    }

    /// A `cp.async` was waited for: its bytes are the thread's own write.
    pub fn end_async(&mut self, at: u64, value: &[u32], now: Stamp) {
        for (i, v) in value.iter().enumerate() {
            let word = (at / 4) as usize + i;
            self.words[word] = *v;
            self.pending[word] = 0;
            self.init[word] = 15;
            if self.check {
                for half in covered(word, 15) {
                    self.halves[half].write = now;
                }
            }
        }
    }
}

/// Half-words of a word that a byte mask covers.
#[inline(always)]
fn covered(word: usize, mask: u8) -> std::ops::Range<usize> {
    let from = 2 * word + usize::from(mask & 3 == 0);
    let to = 2 * word + if mask & 12 == 0 { 1 } else { 2 };
    from..to
}
