//! A block's shared memory, with a record of who touched what since the last barrier.
//!
//! Each half-word remembers its last writer and its readers as stamps: barrier epoch, warp-sync
//! count and thread. Two accesses conflict if one writes, the epochs are the same, the threads are
//! not, and no `__syncwarp` of their warp lies between. Epochs only grow, so nothing is cleared
//! between blocks.
//!
//! Most accesses meet nothing of the present epoch: that is seen for the whole access at once, and
//! only the others are looked at word by word.

use super::byte_mask;
use crate::fault::{Checked, FaultKind, trouble};

/// Reader field: several threads of one warp (its number in the low bits).
const WARP: u16 = 0x8000;
/// Reader field: threads of several warps.
const MANY: u16 = 0xFFFF;

/// Who accesses, and when, in one word: barriers passed (32 bits; 0 is never now), `__syncwarp`s
/// that the warp passed (16), thread in its block (16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Stamp(u64);

#[derive(Debug, Default)]
pub(crate) struct Shared {
    words: Vec<u32>,
    /// Bytes written, a bit each, and above them bytes that a `cp.async` will write.
    state: Vec<u8>,
    /// By half-word.
    writes: Vec<Stamp>,
    reads: Vec<Stamp>,
    /// By word; empty until the launch's first atomic.
    atomics: Vec<Stamp>,
    bytes: u64,
    check: bool,
}

impl Stamp {
    #[inline(always)]
    pub fn new(epoch: u32, sync: u16, thread: u16) -> Stamp {
        Stamp(u64::from(epoch) << 32 | u64::from(sync) << 16 | u64::from(thread))
    }

    #[inline(always)]
    fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    fn sync(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    fn thread(self) -> u16 {
        self.0 as u16
    }

    /// The warp of its thread or threads, unless those are [`MANY`].
    #[inline(always)]
    fn warp(self) -> u16 {
        if self.thread() & WARP != 0 {
            self.thread() & !WARP
        } else {
            self.thread() / 32
        }
    }

    #[inline(always)]
    fn conflicts(self, now: Stamp) -> bool {
        if self.epoch() != now.epoch() || self.thread() == now.thread() {
            return false;
        }
        self.thread() == MANY || self.warp() != now.warp() || self.sync() == now.sync()
    }

    /// Its thread or threads in words.
    fn who(self) -> String {
        match self.thread() {
            MANY => "threads of other warps".into(),
            t if t & WARP != 0 => format!("warp {}", t & !WARP),
            t => format!("thread {t}"),
        }
    }

    /// The readers of a place, once `now` reads it too.
    #[inline(always)]
    fn joined(self, now: Stamp) -> Stamp {
        if self.epoch() != now.epoch() || self.thread() == now.thread() {
            now
        } else if self.thread() == MANY {
            self
        } else if self.warp() != now.warp() {
            Stamp(now.0 | u64::from(MANY))
        } else if self.sync() == now.sync() {
            Stamp::new(now.epoch(), now.sync(), WARP | now.warp())
        } else {
            now
        }
    }
}

/// Whether none of the stamps is of this epoch.
#[inline(always)]
fn quiet(stamps: &[Stamp], now: Stamp) -> bool {
    !stamps
        .iter()
        .fold(false, |met, s| met | (s.epoch() == now.epoch()))
}

impl Shared {
    /// Memory for the blocks of another launch; their epochs must be later than those before.
    pub fn prepare(&mut self, bytes: usize, check: bool) {
        let n = bytes.div_ceil(4);
        let halves = if check { 2 * n } else { 0 };
        self.words.resize(n, 0);
        self.state.resize(n, 0);
        self.writes.resize(halves, Stamp::default());
        self.reads.resize(halves, Stamp::default());
        self.atomics.clear();
        self.bytes = bytes as u64;
        self.check = check;
    }

    /// Another block begins.
    pub fn reset(&mut self) {
        self.state.fill(0);
        self.words.fill(0xFFFF_FFFF);
    }

    /// Epochs begin again.
    pub fn forget_stamps(&mut self) {
        self.writes.clear();
        self.reads.clear();
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
        if self.state[word] >> 4 & mask != 0 {
            return trouble(
                FaultKind::AsyncNotWaited,
                lane,
                format!("byte {at} of shared memory awaits a cp.async"),
            );
        }
        Ok(())
    }

    #[inline(always)]
    fn written(&self, word: usize, mask: u8, at: u64, lane: usize) -> Checked<()> {
        if self.state[word] & mask != mask {
            return trouble(
                FaultKind::Uninitialised,
                lane,
                format!("byte {at} of shared memory"),
            );
        }
        Ok(())
    }

    #[inline(always)]
    fn put(&mut self, at: u64, bytes: u64, value: &[u32; 4]) {
        for (word, v) in self.words[words(at, bytes)].iter_mut().zip(value) {
            *word = *v;
        }
    }

    /// Whether all words of an access hold what was written, and await nothing.
    #[inline(always)]
    fn whole(&self, at: u64, bytes: u64) -> bool {
        let mask = byte_mask(at, bytes);
        let state = &self.state[words(at, bytes)];
        !state
            .iter()
            .fold(false, |bad, s| bad | (s & (mask | mask << 4) != mask))
    }

    /// Who updated the words of an access, where anybody updates words.
    #[inline(always)]
    fn updates(&self, at: u64, bytes: u64) -> &[Stamp] {
        self.atomics.get(words(at, bytes)).unwrap_or_default()
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
        if self.check {
            let calm =
                quiet(&self.writes[halves(at, bytes)], now) && quiet(self.updates(at, bytes), now);
            if !(calm && self.whole(at, bytes)) {
                self.check_read(at, bytes, lane, now)?;
            }
            let readers = &mut self.reads[halves(at, bytes)];
            let first = readers[0];
            if readers.iter().fold(true, |same, r| same & (*r == first)) {
                readers.fill(first.joined(now));
            } else {
                for r in readers {
                    *r = r.joined(now);
                }
            }
        }
        for (o, word) in out.iter_mut().zip(&self.words[words(at, bytes)]) {
            *o = *word;
        }
        if bytes < 4 {
            out[0] = out[0] >> (8 * (at & 3)) & if bytes == 1 { 0xFF } else { 0xFFFF };
        }
        Ok(())
    }

    /// What is wrong with a read, if anything.
    #[inline(never)]
    fn check_read(&self, at: u64, bytes: u64, lane: usize, now: Stamp) -> Checked<()> {
        let mask = byte_mask(at, bytes);
        for word in words(at, bytes) {
            let at = at.max(4 * word as u64);
            self.settled(word, mask, at, lane)?;
            self.written(word, mask, at, lane)?;
            for half in covered(word, mask) {
                let writer = self.writes[half];
                if writer.conflicts(now) {
                    return trouble(
                        FaultKind::Race,
                        lane,
                        format!(
                            "reads byte {} of shared memory that thread {} wrote with no barrier \
                             between",
                            2 * half,
                            writer.thread()
                        ),
                    );
                }
            }
            self.check_updates(word, lane, now, "reads")?;
        }
        Ok(())
    }

    /// Whether nobody else updates a word that is read or written.
    fn check_updates(&self, word: usize, lane: usize, now: Stamp, does: &str) -> Checked<()> {
        match self.atomics.get(word) {
            Some(updaters) if updaters.conflicts(now) => trouble(
                FaultKind::Race,
                lane,
                format!(
                    "{does} byte {} of shared memory that {} updated atomically with no barrier \
                     between",
                    4 * word,
                    updaters.who()
                ),
            ),
            _ => Ok(()),
        }
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
        let mut new = *value;
        if bytes < 4 {
            let (shift, ones) = (8 * (at & 3), if bytes == 1 { 0xFF } else { 0xFFFF });
            new[0] = self.words[(at / 4) as usize] & !(ones << shift) | (value[0] & ones) << shift;
        }
        if self.check {
            self.check_write(at, bytes, Some(&new), lane, now)?;
        }
        self.put(at, bytes, &new);
        for state in &mut self.state[words(at, bytes)] {
            *state |= mask;
        }
        Ok(())
    }

    /// Looks whether a write of these words may be, and notes it; without words they come later.
    #[inline(always)]
    fn check_write(
        &mut self,
        at: u64,
        bytes: u64,
        new: Option<&[u32; 4]>,
        lane: usize,
        now: Stamp,
    ) -> Checked<()> {
        let place = halves(at, bytes);
        let calm = quiet(&self.writes[place.clone()], now)
            && quiet(&self.reads[place.clone()], now)
            && quiet(self.updates(at, bytes), now);
        let pending = self.state[words(at, bytes)]
            .iter()
            .fold(0, |pending, s| pending | s >> 4);
        if !calm || pending != 0 {
            self.check_busy_write(at, bytes, new, lane, now)?;
        }
        self.writes[place].fill(now);
        Ok(())
    }

    /// What is wrong with a write, if anything.
    #[inline(never)]
    fn check_busy_write(
        &self,
        at: u64,
        bytes: u64,
        new: Option<&[u32; 4]>,
        lane: usize,
        now: Stamp,
    ) -> Checked<()> {
        let mask = byte_mask(at, bytes);
        for (i, word) in words(at, bytes).enumerate() {
            let mut same = false;
            if let Some(new) = new {
                self.settled(word, mask, at.max(4 * word as u64), lane)?;
                // Lanes that write the same value into a place agree, whoever comes last.
                same = self.words[word] == new[i] && self.state[word] & mask == mask;
            }
            for half in covered(word, mask) {
                let (writer, readers) = (self.writes[half], self.reads[half]);
                let (other, did) = if writer.conflicts(now) && !same {
                    (writer, "wrote")
                } else if readers.conflicts(now) {
                    (readers, "read")
                } else {
                    continue;
                };
                return trouble(
                    FaultKind::Race,
                    lane,
                    format!(
                        "writes byte {} of shared memory that {} {did} with no barrier between",
                        2 * half,
                        other.who()
                    ),
                );
            }
            self.check_updates(word, lane, now, "writes")?;
        }
        Ok(())
    }

    /// Reads for an atomic. Atomics may meet each other, but no other access.
    pub fn read_atomic(
        &mut self,
        at: u64,
        bytes: u64,
        out: &mut [u32; 4],
        lane: usize,
        now: Stamp,
    ) -> Checked<()> {
        self.bounds(at, bytes, lane)?;
        for (i, word) in words(at, bytes).enumerate() {
            self.settled(word, 15, at, lane)?;
            self.written(word, 15, at, lane)?;
            out[i] = self.words[word];
            if self.check {
                self.note_update(word, lane, now)?;
            }
        }
        Ok(())
    }

    fn note_update(&mut self, word: usize, lane: usize, now: Stamp) -> Checked<()> {
        for half in [2 * word, 2 * word + 1] {
            for (other, did) in [(self.writes[half], "wrote"), (self.reads[half], "read")] {
                if other.conflicts(now) {
                    return trouble(
                        FaultKind::Race,
                        lane,
                        format!(
                            "updates byte {} of shared memory atomically that {} {did} with no \
                             barrier between",
                            2 * half,
                            other.who()
                        ),
                    );
                }
            }
        }
        self.atomics.resize(self.words.len(), Stamp::default());
        self.atomics[word] = self.atomics[word].joined(now);
        Ok(())
    }

    /// Writes for an atomic, after [`read_atomic`](Self::read_atomic).
    pub fn write_atomic(&mut self, at: u64, bytes: u64, value: &[u32; 4]) {
        self.put(at, bytes, value);
    }

    /// A `cp.async` begins: from now on until its wait nobody may touch the bytes.
    #[inline(always)]
    pub fn begin_async(&mut self, at: u64, bytes: u64, lane: usize, now: Stamp) -> Checked<()> {
        self.bounds(at, bytes, lane)?;
        if self.check {
            self.check_write(at, bytes, None, lane, now)?;
        }
        for state in &mut self.state[words(at, bytes)] {
            *state |= 15 << 4;
        }
        Ok(())
    }

    /// A `cp.async` was waited for: its bytes are the thread's own write.
    #[inline(always)]
    pub fn end_async(&mut self, at: u64, bytes: u64, value: &[u32; 4], now: Stamp) {
        self.put(at, bytes, value);
        self.state[words(at, bytes)].fill(15);
        if self.check {
            self.writes[halves(at, bytes)].fill(now);
        }
    }
}

/// Words of an aligned access.
#[inline(always)]
fn words(at: u64, bytes: u64) -> std::ops::Range<usize> {
    let from = (at / 4) as usize;
    from..from + (bytes as usize / 4).max(1)
}

/// Half-words of an aligned access.
#[inline(always)]
fn halves(at: u64, bytes: u64) -> std::ops::Range<usize> {
    let from = (at / 2) as usize;
    from..from + (bytes as usize / 2).max(1)
}

/// Half-words of a word that a byte mask covers.
fn covered(word: usize, mask: u8) -> std::ops::Range<usize> {
    let from = 2 * word + usize::from(mask & 3 == 0);
    let to = 2 * word + if mask & 12 == 0 { 1 } else { 2 };
    from..to
}
