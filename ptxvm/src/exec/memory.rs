//! Loads, stores, atomics, asynchronous copies.

use super::{Block, Double, Transfer, Warp, first};
use crate::counters::{Counts, conflicts, is_run, sectors};
use crate::fault::{Checked, FaultKind, trouble};
use crate::ir::{Addr, Atomic, Part, Row, Space, Ty};
use crate::mem::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW};

/// What a lane loaded or stores.
type Cell = [u32; 4];

impl Warp {
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn load(
        &mut self,
        space: Space,
        bytes: u8,
        signed: bool,
        parts: &[Part],
        addr: &Addr,
        m: u32,
        block: &mut Block<'_>,
    ) -> Checked<()> {
        let addrs = self.addresses(addr);
        let total = u64::from(bytes) * parts.len() as u64;
        let mut cells = [[0u32; 4]; 32];
        let (space, addrs) = self.resolve(space, addrs, m)?;
        match space {
            Space::Global => self.load_global(&addrs, total, m, block, &mut cells)?,
            Space::Shared => {
                self.count_shared(&addrs, total, m, block);
                for lane in lanes(m) {
                    let now = self.stamp(block, lane);
                    block
                        .shared
                        .read(addrs[lane], total, &mut cells[lane], lane, now)?;
                }
            }
            Space::Local => {
                for lane in lanes(m) {
                    match self.local.read(lane, addrs[lane], total, &mut cells[lane]) {
                        Ok(true) => {}
                        Ok(false) => {
                            return trouble(
                                FaultKind::Uninitialised,
                                lane,
                                format!("byte {} of the thread's own memory", addrs[lane]),
                            );
                        }
                        Err((kind, what)) => return trouble(kind, lane, what),
                    }
                }
            }
            Space::Param | Space::Generic => {
                // Mostly all lanes read one argument.
                let alike = is_run(&addrs, m, 0);
                for lane in lanes(if alike { m & m.wrapping_neg() } else { m }) {
                    cells[lane] = argument(block.params, addrs[lane], total, lane)?;
                }
                if alike {
                    cells = [cells[first(m)]; 32];
                }
            }
        }
        self.scatter(bytes, signed, parts, m, &cells);
        Ok(())
    }

    #[inline(always)]
    fn load_global(
        &mut self,
        addrs: &Double,
        total: u64,
        m: u32,
        block: &mut Block<'_>,
        cells: &mut [Cell; 32],
    ) -> Checked<()> {
        let pc = self.pc;
        let hint = &mut block.hints[pc];
        let run = is_run(addrs, m, total);
        // Lanes side by side in one allocation are checked once.
        let whole = run && addrs[first(m)].is_multiple_of(total);
        let span = total * u64::from(m.count_ones());
        let found = if whole {
            block.global.find(addrs[first(m)], span, hint)
        } else {
            None
        };
        for lane in lanes(m) {
            let (a, at) = match found {
                Some(a) => (a, addrs[lane] - a.base),
                None => block.global.checked(addrs[lane], total, lane, hint)?,
            };
            if !a.read(at, total, &mut cells[lane]) {
                return trouble(
                    FaultKind::Uninitialised,
                    lane,
                    format!("{total} bytes at {}", block.global.describe(addrs[lane])),
                );
            }
        }
        let c = self.count_global(addrs, total, m, run, block);
        c.global_read_bytes += total * u64::from(m.count_ones());
        Ok(())
    }

    /// Moves loaded cells into registers.
    #[inline(always)]
    fn scatter(&mut self, bytes: u8, signed: bool, parts: &[Part], m: u32, cells: &[Cell; 32]) {
        for (k, p) in parts.iter().enumerate() {
            let value: Double = match bytes {
                8 => std::array::from_fn(|i| {
                    u64::from(cells[i][2 * k + 1]) << 32 | u64::from(cells[i][2 * k])
                }),
                4 if !p.wide => {
                    let row: [u32; 32] = std::array::from_fn(|i| cells[i][k]);
                    if p.row != crate::ir::NONE {
                        self.put(p.row, m, &row);
                    }
                    continue;
                }
                4 => std::array::from_fn(|i| cells[i][k].into()),
                2 => std::array::from_fn(|i| u64::from(cells[i][k / 2] >> (16 * (k % 2)) & 0xFFFF)),
                _ => std::array::from_fn(|i| u64::from(cells[i][k / 4] >> (8 * (k % 4)) & 0xFF)),
            };
            let value = if signed && bytes < 8 {
                let shift = 64 - 8 * u32::from(bytes);
                let narrow = if p.wide { u64::MAX } else { 0xFFFF_FFFF };
                value.map(|v| ((v << shift) as i64 >> shift) as u64 & narrow)
            } else {
                value
            };
            self.set_part(p, m, &value);
        }
    }

    #[inline(always)]
    fn gather(&self, bytes: u8, parts: &[Part], lane: usize) -> Cell {
        let mut cell = [0u32; 4];
        for (k, p) in parts.iter().enumerate() {
            let v = self.part(p, lane);
            match bytes {
                8 => {
                    cell[2 * k] = v as u32;
                    cell[2 * k + 1] = (v >> 32) as u32;
                }
                4 => cell[k] = v as u32,
                2 => cell[k / 2] |= (v as u32 & 0xFFFF) << (16 * (k % 2)),
                _ => cell[k / 4] |= (v as u32 & 0xFF) << (8 * (k % 4)),
            }
        }
        cell
    }

    #[inline(always)]
    pub(super) fn store(
        &mut self,
        space: Space,
        bytes: u8,
        parts: &[Part],
        addr: &Addr,
        m: u32,
        block: &mut Block<'_>,
    ) -> Checked<()> {
        let addrs = self.addresses(addr);
        let total = u64::from(bytes) * parts.len() as u64;
        let (space, addrs) = self.resolve(space, addrs, m)?;
        match space {
            Space::Global => {
                let pc = self.pc;
                for lane in lanes(m) {
                    let cell = self.gather(bytes, parts, lane);
                    let (a, at) =
                        block
                            .global
                            .checked(addrs[lane], total, lane, &mut block.hints[pc])?;
                    a.write(at, total, &cell);
                }
                let c = self.count_global(&addrs, total, m, is_run(&addrs, m, total), block);
                c.global_write_bytes += total * u64::from(m.count_ones());
            }
            Space::Shared => {
                self.count_shared(&addrs, total, m, block);
                for lane in lanes(m) {
                    let cell = self.gather(bytes, parts, lane);
                    let now = self.stamp(block, lane);
                    block.shared.write(addrs[lane], total, &cell, lane, now)?;
                }
            }
            Space::Local => {
                for lane in lanes(m) {
                    let cell = self.gather(bytes, parts, lane);
                    if let Err((kind, what)) = self.local.write(lane, addrs[lane], total, &cell) {
                        return trouble(kind, lane, what);
                    }
                }
            }
            Space::Param | Space::Generic => {
                return trouble(FaultKind::OutOfBounds, first(m), "arguments are read only");
            }
        }
        Ok(())
    }

    /// Generic addresses name a space by their window; all lanes must mean the same one.
    #[inline(always)]
    pub(super) fn resolve(&self, space: Space, addrs: Double, m: u32) -> Checked<(Space, Double)> {
        if space != Space::Generic {
            return Ok((space, addrs));
        }
        let of = |a: u64| {
            if a.wrapping_sub(SHARED_WINDOW) < WINDOW {
                (Space::Shared, SHARED_WINDOW)
            } else if a.wrapping_sub(LOCAL_WINDOW) < WINDOW {
                (Space::Local, LOCAL_WINDOW)
            } else {
                (Space::Global, 0)
            }
        };
        let (space, base) = of(addrs[first(m)]);
        for lane in lanes(m) {
            if of(addrs[lane]).0 != space {
                return trouble(
                    FaultKind::OutOfBounds,
                    lane,
                    "lanes of one access name different memories",
                );
            }
        }
        Ok((space, addrs.map(|a| a.wrapping_sub(base))))
    }

    /// Counts a request to global memory, whose lanes lie side by side in a `run`; its bytes are the
    /// caller's to count.
    #[inline(always)]
    fn count_global<'b>(
        &self,
        addrs: &Double,
        bytes: u64,
        m: u32,
        run: bool,
        block: &'b mut Block<'_>,
    ) -> &'b mut Counts {
        let (moved, needed) = sectors(addrs, m, bytes, run);
        let c = &mut block.counts[self.pc];
        c.global_requests += 1;
        c.sectors_moved += moved;
        if bytes == 16 {
            c.vector_sectors_moved += moved;
        }
        c.sectors_needed += needed;
        c
    }

    #[inline(always)]
    fn count_shared(&self, addrs: &Double, bytes: u64, m: u32, block: &mut Block<'_>) {
        let c = &mut block.counts[self.pc];
        c.shared_requests += 1;
        c.bank_conflicts += conflicts(addrs, m, bytes);
    }

    pub(super) fn cvta(&mut self, to: bool, space: Space, d: (bool, Row), a: (bool, Row), m: u32) {
        let base = match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            _ => 0,
        };
        let source: Double = if a.0 {
            self.doubles[a.1 as usize]
        } else {
            self.words[a.1 as usize].map(u64::from)
        };
        let value = source.map(|x| {
            if to {
                x.wrapping_sub(base)
            } else {
                x.wrapping_add(base)
            }
        });
        if d.0 {
            self.put64(d.1, m, &value);
        } else {
            self.put(d.1, m, &value.map(|v| v as u32));
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn atom(
        &mut self,
        space: Space,
        (f, ty): (Atomic, Ty),
        d: Option<Row>,
        addr: &Addr,
        (a, b): (Row, Row),
        m: u32,
        block: &mut Block<'_>,
    ) -> Checked<()> {
        let (space, addrs) = self.resolve(space, self.addresses(addr), m)?;
        let wide = ty.is_double();
        let bytes = u64::from(ty.bits() / 8);
        let mut old: Double = [0; 32];
        for lane in lanes(m) {
            let (x, y) = if wide {
                (
                    self.doubles[a as usize][lane],
                    self.doubles[b as usize][lane],
                )
            } else {
                (
                    self.words[a as usize][lane].into(),
                    self.words[b as usize][lane].into(),
                )
            };
            old[lane] = match space {
                Space::Global => {
                    let (mem, at) = block.global.checked(
                        addrs[lane],
                        bytes,
                        lane,
                        &mut block.hints[self.pc],
                    )?;
                    let (value, whole) = if wide {
                        // Two words: exact where blocks run one after another.
                        let mut cell = [0; 4];
                        let whole = mem.read(at, 8, &mut cell);
                        let value = u64::from(cell[1]) << 32 | u64::from(cell[0]);
                        let new = combine(f, ty, value, x, y);
                        mem.write(at, 8, &[new as u32, (new >> 32) as u32, 0, 0]);
                        (value, whole)
                    } else {
                        let (value, whole) =
                            mem.update(at, |v| combine(f, ty, v.into(), x, y) as u32);
                        (value.into(), whole)
                    };
                    if !whole {
                        return trouble(
                            FaultKind::Uninitialised,
                            lane,
                            format!("{bytes} bytes at {}", block.global.describe(addrs[lane])),
                        );
                    }
                    value
                }
                Space::Shared => {
                    let mut cell = [0; 4];
                    let now = self.stamp(block, lane);
                    block
                        .shared
                        .read_atomic(addrs[lane], bytes, &mut cell, lane, now)?;
                    let value = u64::from(cell[1]) << 32 | u64::from(cell[0]);
                    let new = combine(f, ty, value, x, y);
                    block.shared.write_atomic(
                        addrs[lane],
                        bytes,
                        &[new as u32, (new >> 32) as u32, 0, 0],
                    );
                    value
                }
                _ => {
                    return trouble(
                        FaultKind::OutOfBounds,
                        lane,
                        "an atomic outside global and shared memory",
                    );
                }
            };
        }
        if space == Space::Global {
            let c = self.count_global(&addrs, bytes, m, is_run(&addrs, m, bytes), block);
            c.global_read_bytes += bytes * u64::from(m.count_ones());
            c.global_write_bytes += bytes * u64::from(m.count_ones());
        }
        if let Some(d) = d {
            if wide {
                self.put64(d, m, &old);
            } else {
                self.put(d, m, &old.map(|v| v as u32));
            }
        }
        Ok(())
    }

    pub(super) fn cp_async(
        &mut self,
        bytes: u8,
        dst: &Addr,
        src: &Addr,
        size: Option<Row>,
        m: u32,
        block: &mut Block<'_>,
    ) -> Checked<()> {
        let (to, from) = (self.addresses(dst), self.addresses(src));
        let (space, from) = self.resolve(Space::Generic, from, m)?;
        if space != Space::Global {
            return trouble(
                FaultKind::OutOfBounds,
                first(m),
                "cp.async reads global memory only",
            );
        }
        let bytes = u64::from(bytes);
        let mut touched = 0u32;
        for lane in lanes(m) {
            let size = size
                .map_or(bytes, |r| u64::from(self.words[r as usize][lane]))
                .min(bytes);
            let now = self.stamp(block, lane);
            block.shared.begin_async(to[lane], bytes, lane, now)?;
            if size > 0 {
                touched |= 1 << lane;
                if !from[lane].is_multiple_of(bytes) {
                    return trouble(
                        FaultKind::Misaligned,
                        lane,
                        format!(
                            "cp.async of {bytes} bytes from {}",
                            block.global.describe(from[lane])
                        ),
                    );
                }
                if block
                    .global
                    .find(from[lane], size, &mut block.hints[self.pc])
                    .is_none()
                {
                    return trouble(
                        FaultKind::OutOfBounds,
                        lane,
                        format!(
                            "cp.async of {size} bytes from {}",
                            block.global.describe(from[lane])
                        ),
                    );
                }
            }
            self.copies.push(Transfer {
                lane,
                group: self.groups[lane],
                at: to[lane],
                src: from[lane],
                bytes,
                size,
            });
        }
        self.count_shared(&to, bytes, m, block);
        if touched != 0 {
            let c = self.count_global(&from, bytes, touched, is_run(&from, touched, bytes), block);
            c.global_read_bytes += bytes * u64::from(touched.count_ones());
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, m: u32) {
        for lane in lanes(m) {
            self.groups[lane] += 1;
        }
    }

    /// Does the copies now, not when they were asked for: whoever forgets to wait reads nothing.
    pub(super) fn wait(
        &mut self,
        pending: Option<u32>,
        m: u32,
        block: &mut Block<'_>,
    ) -> Checked<()> {
        let mut left = 0;
        for i in 0..self.copies.len() {
            let c = self.copies[i];
            // A copy whose group was never closed belongs to no group that could be waited for.
            let due = m >> c.lane & 1 == 1
                && pending.is_none_or(|n| c.group.saturating_add(n) < self.groups[c.lane]);
            if !due {
                self.copies[left] = c;
                left += 1;
                continue;
            }
            let now = self.stamp(block, c.lane);
            let mut value = [0u32; 4];
            if c.size > 0 {
                let Some(a) = block.global.find(c.src, c.size, &mut block.hints[self.pc]) else {
                    return trouble(FaultKind::OutOfBounds, c.lane, "cp.async from freed memory");
                };
                let at = c.src - a.base;
                let mut whole = true;
                if c.size == c.bytes {
                    whole = a.read(at, c.size, &mut value);
                } else {
                    for i in 0..c.size {
                        let mut byte = [0; 4];
                        whole &= a.read(at + i, 1, &mut byte);
                        value[(i / 4) as usize] |= byte[0] << (8 * (i % 4));
                    }
                }
                if !whole {
                    return trouble(
                        FaultKind::Uninitialised,
                        c.lane,
                        format!(
                            "cp.async of {} bytes from {}",
                            c.size,
                            block.global.describe(c.src)
                        ),
                    );
                }
            }
            block.shared.end_async(c.at, c.bytes, &value, now);
        }
        self.copies.truncate(left);
        Ok(())
    }
}

fn lanes(m: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| m >> l & 1 == 1)
}

/// Bytes of the kernel's arguments.
fn argument(params: &[u8], at: u64, bytes: u64, lane: usize) -> Checked<Cell> {
    let end = at.saturating_add(bytes) as usize;
    let Some(source) = params.get(at as usize..end) else {
        return trouble(
            FaultKind::OutOfBounds,
            lane,
            format!("byte {at} of the kernel's arguments"),
        );
    };
    let mut cell = [0; 4];
    for (i, b) in source.iter().enumerate() {
        cell[i / 4] |= u32::from(*b) << (8 * (i % 4));
    }
    Ok(cell)
}

fn combine(f: Atomic, ty: Ty, old: u64, x: u64, y: u64) -> u64 {
    let (fa, fb) = (f32::from_bits(old as u32), f32::from_bits(x as u32));
    match (f, ty) {
        (Atomic::Add, Ty::F32) => (fa + fb).to_bits().into(),
        (Atomic::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
        (Atomic::Add, _) => old.wrapping_add(x),
        (Atomic::Min, Ty::S32) => (old as i32).min(x as i32) as u32 as u64,
        (Atomic::Max, Ty::S32) => (old as i32).max(x as i32) as u32 as u64,
        (Atomic::Min, Ty::S64) => (old as i64).min(x as i64) as u64,
        (Atomic::Max, Ty::S64) => (old as i64).max(x as i64) as u64,
        (Atomic::Min, _) => old.min(x),
        (Atomic::Max, _) => old.max(x),
        (Atomic::And, _) => old & x,
        (Atomic::Or, _) => old | x,
        (Atomic::Xor, _) => old ^ x,
        (Atomic::Exch, _) => x,
        (Atomic::Cas, _) => {
            if old == x {
                y
            } else {
                old
            }
        }
        (Atomic::Inc, _) => {
            if old >= x {
                0
            } else {
                old + 1
            }
        }
        (Atomic::Dec, _) => {
            if old == 0 || old > x {
                x
            } else {
                old - 1
            }
        }
    }
}
