//! A thread's own memory, for all lanes of a warp.

use super::byte_mask;
use crate::fault::FaultKind;

#[derive(Debug, Default)]
pub(crate) struct Local {
    words: Vec<u32>,
    init: Vec<u8>,
    bytes: u64,
}

impl Local {
    /// Memory of so many bytes for each lane; [`reset`](Self::reset) must follow.
    pub fn prepare(&mut self, bytes: usize) {
        let n = bytes.div_ceil(4) * 32;
        self.words.resize(n, 0);
        self.init.resize(n, 0);
        self.bytes = bytes as u64;
    }

    /// Another block begins.
    pub fn reset(&mut self) {
        self.words.fill(0xFFFF_FFFF);
        self.init.fill(0);
    }

    /// Words of the access, or what is wrong with it.
    pub fn read(
        &self,
        lane: usize,
        at: u64,
        bytes: u64,
        out: &mut [u32; 4],
    ) -> Result<bool, (FaultKind, String)> {
        self.bounds(at, bytes)?;
        let mask = byte_mask(at, bytes);
        let mut whole = true;
        for i in 0..(bytes / 4).max(1) {
            let index = ((at / 4 + i) * 32) as usize + lane;
            out[i as usize] = self.words[index];
            whole &= self.init[index] & mask == mask;
        }
        if bytes < 4 {
            out[0] = out[0] >> (8 * (at & 3)) & if bytes == 1 { 0xFF } else { 0xFFFF };
        }
        Ok(whole)
    }

    pub fn write(
        &mut self,
        lane: usize,
        at: u64,
        bytes: u64,
        value: &[u32; 4],
    ) -> Result<(), (FaultKind, String)> {
        self.bounds(at, bytes)?;
        for i in 0..(bytes / 4).max(1) {
            let index = ((at / 4 + i) * 32) as usize + lane;
            if bytes < 4 {
                let (shift, ones) = (8 * (at & 3), if bytes == 1 { 0xFF } else { 0xFFFF });
                let w = &mut self.words[index];
                *w = *w & !(ones << shift) | (value[0] & ones) << shift;
            } else {
                self.words[index] = value[i as usize];
            }
            self.init[index] |= byte_mask(at, bytes);
        }
        Ok(())
    }

    fn bounds(&self, at: u64, bytes: u64) -> Result<(), (FaultKind, String)> {
        if !at.is_multiple_of(bytes) {
            let what = format!("{bytes} bytes at byte {at} of the thread's own memory");
            return Err((FaultKind::Misaligned, what));
        }
        if at.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let what = format!(
                "{bytes} bytes at byte {at} of the thread's own memory ({} bytes)",
                self.bytes
            );
            return Err((FaultKind::OutOfBounds, what));
        }
        Ok(())
    }
}
