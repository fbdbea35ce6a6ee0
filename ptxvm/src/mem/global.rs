//! Global memory: allocations with red zones between and a note of which bytes were written.
//!
//! Words are atomic, so blocks may run on several threads without `unsafe`; relaxed accesses cost
//! what plain ones do.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use super::{GLOBAL_BASE, byte_mask};
use crate::fault::{Checked, FaultKind, trouble};

/// Bytes between allocations that belong to nobody.
const RED_ZONE: u64 = 4096;

/// A live allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub base: u64,
    pub bytes: u64,
    pub label: String,
    words: Box<[AtomicU32]>,
    /// A bit for each byte of a word: written.
    init: Box<[AtomicU8]>,
}

/// All allocations, by address.
#[derive(Debug, Default)]
pub(crate) struct Global {
    live: Vec<Allocation>,
    next: u64,
}

impl Allocation {
    fn new(base: u64, bytes: u64, label: String) -> Allocation {
        let n = bytes.div_ceil(4) as usize;
        Allocation {
            base,
            bytes,
            label,
            words: (0..n).map(|_| AtomicU32::new(0xFFFF_FFFF)).collect(),
            init: (0..n).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// Reads up to four words of an aligned access.
    #[inline(always)]
    pub fn read(&self, at: u64, bytes: u64, out: &mut [u32; 4]) -> bool {
        let (word, mask) = ((at / 4) as usize, byte_mask(at, bytes));
        if bytes < 4 {
            let value = self.words[word].load(Relaxed) >> (8 * (at & 3));
            out[0] = if bytes == 1 {
                value & 0xFF
            } else {
                value & 0xFFFF
            };
            return self.init[word].load(Relaxed) & mask == mask;
        }
        let n = (bytes / 4) as usize;
        let mut init = mask;
        for i in 0..n {
            out[i] = self.words[word + i].load(Relaxed);
            init &= self.init[word + i].load(Relaxed);
        }
        init == 15
    }

    #[inline(always)]
    pub fn write(&self, at: u64, bytes: u64, value: &[u32; 4]) {
        let word = (at / 4) as usize;
        if bytes < 4 {
            let mask = byte_mask(at, bytes);
            let (shift, ones) = (8 * (at & 3), if bytes == 1 { 0xFF } else { 0xFFFF });
            let put = |old: u32| Some(old & !(ones << shift) | (value[0] & ones) << shift);
            let _ = self.words[word].fetch_update(Relaxed, Relaxed, put);
            self.init[word].fetch_or(mask, Relaxed);
            return;
        }
        for i in 0..(bytes / 4) as usize {
            self.words[word + i].store(value[i], Relaxed);
            self.init[word + i].store(15, Relaxed);
        }
    }

    /// One atomic update of a word; returns what was there.
    pub fn update(&self, at: u64, f: impl Fn(u32) -> u32) -> (u32, bool) {
        let word = (at / 4) as usize;
        let whole = self.init[word].load(Relaxed) == 15;
        let old = self.words[word]
            .fetch_update(Relaxed, Relaxed, |x| Some(f(x)))
            .unwrap_or_else(|x| x);
        (old, whole)
    }

    fn byte(&self, at: u64) -> u8 {
        (self.words[(at / 4) as usize].load(Relaxed) >> (8 * (at & 3))) as u8
    }
}

impl Global {
    /// A new allocation of bytes that nobody has written.
    pub fn alloc(&mut self, bytes: usize, label: &str) -> u64 {
        let base = self.next.max(GLOBAL_BASE);
        self.next = (base + bytes as u64 + RED_ZONE).next_multiple_of(256);
        self.live
            .push(Allocation::new(base, bytes as u64, label.into()));
        base
    }

    pub fn free(&mut self, base: u64) -> bool {
        match self.live.binary_search_by_key(&base, |a| a.base) {
            Ok(i) => {
                self.live.remove(i);
                true
            }
            Err(_) => false,
        }
    }

    pub fn bytes(&self) -> u64 {
        self.live.iter().map(|a| a.bytes).sum()
    }

    /// The allocation that holds `bytes` at `addr`; `hint` remembers the last one.
    #[inline(always)]
    pub fn find(&self, addr: u64, bytes: u64, hint: &mut u32) -> Option<&Allocation> {
        if let Some(a) = self.live.get(*hint as usize) {
            let at = addr.wrapping_sub(a.base);
            if at < a.bytes && at + bytes <= a.bytes {
                return Some(a);
            }
        }
        let i = self
            .live
            .partition_point(|a| a.base <= addr)
            .checked_sub(1)?;
        let a = &self.live[i];
        *hint = i as u32;
        (addr - a.base + bytes <= a.bytes).then_some(a)
    }

    /// [`find`](Self::find) with the checks of an access by a lane.
    #[inline(always)]
    pub fn checked(
        &self,
        addr: u64,
        bytes: u64,
        lane: usize,
        hint: &mut u32,
    ) -> Checked<(&Allocation, u64)> {
        if !addr.is_multiple_of(bytes) {
            return trouble(
                FaultKind::Misaligned,
                lane,
                format!("{bytes} bytes at {}", self.describe(addr)),
            );
        }
        match self.find(addr, bytes, hint) {
            Some(a) => Ok((a, addr - a.base)),
            None => trouble(
                FaultKind::OutOfBounds,
                lane,
                format!("{bytes} bytes at {}", self.describe(addr)),
            ),
        }
    }

    /// An address in words: the buffer around it, or the nearest one.
    pub fn describe(&self, addr: u64) -> String {
        let i = self.live.partition_point(|a| a.base <= addr);
        let below = i.checked_sub(1).map(|i| &self.live[i]);
        // Bytes past the one below, and before the one above.
        let past = below.map_or(u64::MAX, |a| (addr - a.base).saturating_sub(a.bytes));
        let before = self.live.get(i).map_or(u64::MAX, |a| a.base - addr);
        match (below, self.live.get(i)) {
            (Some(a), _) if past <= before && past < RED_ZONE => {
                format!("byte {} of {} ({} bytes)", addr - a.base, a.label, a.bytes)
            }
            (_, Some(a)) if before < RED_ZONE => {
                format!("{before} bytes before {} ({} bytes)", a.label, a.bytes)
            }
            _ => format!("{addr:#x}, near no buffer"),
        }
    }

    /// Host side: writes bytes.
    pub fn copy_in(&self, addr: u64, from: &[u8]) -> Result<(), String> {
        let (a, at) = self.range(addr, from.len())?;
        let mut i = 0;
        while i < from.len() {
            let pos = at + i as u64;
            if pos.is_multiple_of(4)
                && let Some(chunk) = from[i..].first_chunk::<4>()
            {
                a.write(pos, 4, &[u32::from_le_bytes(*chunk), 0, 0, 0]);
                i += 4;
            } else {
                a.write(pos, 1, &[from[i].into(), 0, 0, 0]);
                i += 1;
            }
        }
        Ok(())
    }

    /// Host side: reads bytes; those that nobody wrote are 0xFF.
    pub fn copy_out(&self, addr: u64, to: &mut [u8]) -> Result<(), String> {
        let (a, at) = self.range(addr, to.len())?;
        for (i, b) in to.iter_mut().enumerate() {
            *b = a.byte(at + i as u64);
        }
        Ok(())
    }

    /// Host side: forgets that bytes were written, as if freshly allocated.
    pub fn forget(&self, addr: u64, bytes: usize) -> Result<(), String> {
        let (a, at) = self.range(addr, bytes)?;
        for pos in at..at + bytes as u64 {
            a.write(pos, 1, &[0xFF, 0, 0, 0]);
            a.init[(pos / 4) as usize].fetch_and(!byte_mask(pos, 1), Relaxed);
        }
        Ok(())
    }

    fn range(&self, addr: u64, bytes: usize) -> Result<(&Allocation, u64), String> {
        let i = self.live.partition_point(|a| a.base <= addr);
        i.checked_sub(1)
            .map(|i| &self.live[i])
            .filter(|a| addr - a.base + bytes as u64 <= a.bytes)
            .map(|a| (a, addr - a.base))
            .ok_or_else(|| format!("{bytes} bytes at {}", self.describe(addr)))
    }
}
