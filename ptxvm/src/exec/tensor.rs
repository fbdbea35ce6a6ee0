//! `ldmatrix`, `stmatrix`, `mma.sync`: fragments as the PTX manual lays them out.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{Block, Warp, first};
use crate::counters::conflicts;
use crate::fault::{Checked, FaultKind, trouble};
use crate::ir::{Addr, Mma, Row};

impl Warp {
    /// Tensor instructions need every lane.
    #[inline(always)]
    fn whole(&self, m: u32) -> Checked<()> {
        if m == u32::MAX {
            return Ok(());
        }
        trouble(
            FaultKind::MissingLanes,
            first(!m),
            format!("only lanes {m:#010x} take part in a matrix instruction"),
        )
    }

    /// Counts a matrix access: each 8 x 8 matrix is one pass of eight 16-byte rows.
    fn count_matrix(&self, addrs: &[u64; 32], num: usize, block: &mut Block<'_>) {
        let c = &mut block.counts[self.pc];
        c.shared_requests += 1;
        c.bank_conflicts += conflicts(
            addrs,
            if num == 4 {
                u32::MAX
            } else {
                (1 << (8 * num)) - 1
            },
            16,
        );
    }

    #[inline(always)]
    pub(super) fn ldmatrix(
        &mut self,
        num: usize,
        trans: bool,
        parts: &[Row],
        addr: &Addr,
        m: u32,
        block: &mut Block<'_>,
    ) -> Checked<()> {
        self.whole(m)?;
        let addrs = self.shared_addresses(addr);
        self.count_matrix(&addrs, num, block);
        for (k, d) in parts.iter().enumerate() {
            let mut rows = [[0u32; 4]; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let lane = 8 * k + r;
                let now = self.stamp(block, lane);
                block.shared.read(addrs[lane], 16, row, lane, now)?;
            }
            let mut value = [0u32; 32];
            for r in 0..8 {
                for c in 0..4 {
                    // A lane holds two neighbours of a row, transposed two of a column.
                    value[4 * r + c] = if trans {
                        let half = |row: usize| rows[row][r / 2] >> (16 * (r % 2)) & 0xFFFF;
                        half(2 * c) | half(2 * c + 1) << 16
                    } else {
                        rows[r][c]
                    };
                }
            }
            self.put(*d, m, &value);
        }
        Ok(())
    }

    pub(super) fn stmatrix(
        &mut self,
        num: usize,
        trans: bool,
        parts: &[Row],
        addr: &Addr,
        m: u32,
        block: &mut Block<'_>,
    ) -> Checked<()> {
        self.whole(m)?;
        let addrs = self.shared_addresses(addr);
        self.count_matrix(&addrs, num, block);
        for (k, s) in parts.iter().enumerate() {
            let x = self.words[*s as usize];
            // Element (r, c) lies in lane 4 r + c / 2, transposed in lane 4 c + r / 2.
            let half = |r: usize, c: usize| {
                let (r, c) = if trans { (c, r) } else { (r, c) };
                x[4 * r + c / 2] >> (16 * (c % 2)) & 0xFFFF
            };
            for r in 0..8 {
                let lane = 8 * k + r;
                let row = std::array::from_fn(|w| half(r, 2 * w) | half(r, 2 * w + 1) << 16);
                let now = self.stamp(block, lane);
                block.shared.write(addrs[lane], 16, &row, lane, now)?;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn shared_addresses(&self, addr: &Addr) -> [u64; 32] {
        self.addresses(addr).map(|a| {
            if a >= crate::mem::SHARED_WINDOW {
                a - crate::mem::SHARED_WINDOW
            } else {
                a
            }
        })
    }

    /// `D (16, 8) = A (16, k) B (k, 8) + C`: products are exact, sums are f32 in the order of k.
    /// A GPU sums groups of products in another order, so the last bits differ.
    #[inline(always)]
    pub(super) fn mma(
        &mut self,
        s: Mma,
        [d, a, b, c]: [&[Row]; 4],
        m: u32,
        block: &mut Block<'_>,
    ) -> Checked<()> {
        self.whole(m)?;
        let k = s.k;
        block.counts[self.pc].matrix_flops += 2 * 16 * 8 * k as u64;
        // Eight numbers of four lanes stand side by side in a row of A, a column of B, a row of an
        // f16 accumulator.
        let mut lhs = [[0f32; 16]; 16];
        for (i, r) in a.iter().enumerate() {
            // Registers go down eight rows, then right eight columns.
            let (row0, col0) = (8 * (i % 2), 8 * (i / 2 % 2));
            let eights = unpack(&self.words[*r as usize], s.bf16);
            for g in 0..8 {
                lhs[row0 + g][col0..col0 + 8].copy_from_slice(&eights[g]);
            }
        }
        let mut rhs = [[0f32; 8]; 16];
        for (i, r) in b.iter().enumerate() {
            let eights = unpack(&self.words[*r as usize], s.bf16);
            let rows = &mut rhs[8 * (i % 2)..8 * (i % 2) + 8];
            for (x, row) in rows.iter_mut().enumerate() {
                for g in 0..8 {
                    row[g] = eights[g][x];
                }
            }
        }
        let mut acc = [[0f32; 8]; 16];
        if let ([upper, lower], true) = (c, s.half_acc) {
            for (r, rows) in [(upper, 0), (lower, 8)] {
                let eights = unpack(&self.words[*r as usize], false);
                acc[rows..rows + 8].copy_from_slice(&eights);
            }
        } else if let [c0, c1, c2, c3] = c {
            for (even, odd, rows) in [(c0, c1, 0), (c2, c3, 8)] {
                let (even, odd) = (&self.words[*even as usize], &self.words[*odd as usize]);
                for g in 0..8 {
                    for t in 0..4 {
                        acc[rows + g][2 * t] = f32::from_bits(even[4 * g + t]);
                        acc[rows + g][2 * t + 1] = f32::from_bits(odd[4 * g + t]);
                    }
                }
            }
        }
        if k == 16 {
            multiply::<16>(&mut acc, &lhs, &rhs);
        } else {
            multiply::<8>(&mut acc, &lhs, &rhs);
        }
        for (i, r) in d.iter().enumerate() {
            let mut value = [0u32; 32];
            for g in 0..8 {
                for t in 0..4 {
                    value[4 * g + t] = if s.half_acc {
                        let row = &acc[8 * (i % 2) + g];
                        let h = |x: f32| u32::from(f16::from_f32(x).to_bits());
                        h(row[2 * t]) | h(row[2 * t + 1]) << 16
                    } else {
                        acc[8 * (i / 2 % 2) + g][2 * t + i % 2].to_bits()
                    };
                }
            }
            self.put(*r, m, &value);
        }
        Ok(())
    }
}

/// Four rows at a time, so that their sums hide each other's latency.
#[inline(always)]
fn multiply<const K: usize>(acc: &mut [[f32; 8]; 16], lhs: &[[f32; 16]; 16], rhs: &[[f32; 8]; 16]) {
    for r in [0, 4, 8, 12] {
        let mut sums = [acc[r], acc[r + 1], acc[r + 2], acc[r + 3]];
        for k in 0..K {
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = lhs[r + i][k];
                for j in 0..8 {
                    sum[j] = x.mul_add(rhs[k][j], sum[j]);
                }
            }
        }
        acc[r..r + 4].copy_from_slice(&sums);
    }
}

/// The 64 halves of a row, as f32: eight of each four lanes.
#[inline(always)]
fn unpack(row: &[u32; 32], bf16: bool) -> [[f32; 8]; 8] {
    let mut eights = [[0f32; 8]; 8];
    let out = eights.as_flattened_mut();
    if bf16 {
        for (i, x) in row.iter().enumerate() {
            out[2 * i] = f32::from_bits(x << 16);
            out[2 * i + 1] = f32::from_bits(x & 0xFFFF_0000);
        }
    } else {
        let mut halves = [f16::ZERO; 64];
        for (i, x) in row.iter().enumerate() {
            halves[2 * i] = f16::from_bits(*x as u16);
            halves[2 * i + 1] = f16::from_bits((x >> 16) as u16);
        }
        halves.convert_to_f32_slice(out);
    }
    eights
}
