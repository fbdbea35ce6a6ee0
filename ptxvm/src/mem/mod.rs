//! Memory that knows who wrote it.

pub(crate) mod global;
pub(crate) mod local;
pub(crate) mod shared;

/// Generic addresses: shared memory's window.
pub(crate) const SHARED_WINDOW: u64 = 0x1_0000_0000;
/// Generic addresses: the window of a thread's own memory.
pub(crate) const LOCAL_WINDOW: u64 = 0x2_0000_0000;
/// Bytes of a window.
pub(crate) const WINDOW: u64 = 0x1000_0000;
/// Where allocations begin.
pub(crate) const GLOBAL_BASE: u64 = 0x10_0000_0000;

/// Bits of a word's four bytes that an access of `bytes` at `offset` covers.
#[inline(always)]
pub(crate) fn byte_mask(offset: u64, bytes: u64) -> u8 {
    match bytes {
        1 => 1 << (offset & 3),
        2 => 3 << (offset & 3),
        _ => 15,
    }
}
