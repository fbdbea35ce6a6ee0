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
            let half = |r: usize, c: usize| rows[r][c / 2] >> (16 * (c % 2)) & 0xFFFF;
            let value = std::array::from_fn(|lane| {
                let (r, c) = (lane / 4, 2 * (lane % 4));
                if trans {
                    half(c, r) | half(c + 1, r) << 16
                } else {
                    rows[r][c / 2]
                }
            });
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
        let mut lhs = [[0f32; 16]; 16];
        for (i, r) in a.iter().enumerate() {
            // Registers go down eight rows, then right eight columns.
            let (row0, col0) = (8 * (i % 2), 8 * (i / 2));
            let pairs = unpack(&self.words[*r as usize], s.bf16);
            for lane in 0..32 {
                let (r, c) = (row0 + lane / 4, col0 + 2 * (lane % 4));
                lhs[r][c] = pairs[2 * lane];
                lhs[r][c + 1] = pairs[2 * lane + 1];
            }
        }
        let mut rhs = [[0f32; 8]; 16];
        for (i, r) in b.iter().enumerate() {
            let pairs = unpack(&self.words[*r as usize], s.bf16);
            for lane in 0..32 {
                let (r, c) = (8 * i + 2 * (lane % 4), lane / 4);
                rhs[r][c] = pairs[2 * lane];
                rhs[r + 1][c] = pairs[2 * lane + 1];
            }
        }
        let mut acc = [[0f32; 8]; 16];
        if s.half_acc {
            for (i, r) in c.iter().enumerate() {
                let pairs = unpack(&self.words[*r as usize], false);
                for lane in 0..32 {
                    let (r, c) = (8 * i + lane / 4, 2 * (lane % 4));
                    acc[r][c] = pairs[2 * lane];
                    acc[r][c + 1] = pairs[2 * lane + 1];
                }
            }
        } else {
            for (i, r) in c.iter().enumerate() {
                let x = &self.words[*r as usize];
                for lane in 0..32 {
                    acc[8 * (i / 2) + lane / 4][2 * (lane % 4) + i % 2] = f32::from_bits(x[lane]);
                }
            }
        }
        for (row, x) in acc.iter_mut().zip(&lhs) {
            for (x, y) in x[..k].iter().zip(&rhs) {
                for j in 0..8 {
                    row[j] = x.mul_add(y[j], row[j]);
                }
            }
        }
        for (i, r) in d.iter().enumerate() {
            let value = if s.half_acc {
                std::array::from_fn(|lane| {
                    let (r, c) = (8 * i + lane / 4, 2 * (lane % 4));
                    let h = |x: f32| u32::from(f16::from_f32(x).to_bits());
                    h(acc[r][c]) | h(acc[r][c + 1]) << 16
                })
            } else {
                std::array::from_fn(|lane| {
                    acc[8 * (i / 2) + lane / 4][2 * (lane % 4) + i % 2].to_bits()
                })
            };
            self.put(*r, m, &value);
        }
        Ok(())
    }
}

/// The 64 halves of a row, as f32.
#[inline(always)]
fn unpack(row: &[u32; 32], bf16: bool) -> [f32; 64] {
    let mut out = [0f32; 64];
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
        halves.convert_to_f32_slice(&mut out);
    }
    out
}
