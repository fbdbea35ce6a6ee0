//! Each instruction to the function that runs it.

use super::compare::logic;
use super::scalar::bfind;
use super::{Block, Warp};
use crate::fault::{Checked, FaultKind, trouble};
use crate::ir::{Count, Inst, Op, Ty};

impl Warp {
    /// Runs an instruction that neither branches nor waits.
    #[inline(always)]
    pub(super) fn execute(&mut self, inst: &Inst, m: u32, block: &mut Block<'_>) -> Checked<()> {
        match &inst.op {
            Op::Alu { f, d, a, b, c } => self.alu(*f, *d, [*a, *b, *c], m)?,
            Op::Alu64 { f, d, a, b, c } => self.alu64(*f, *d, [*a, *b, *c], m)?,
            Op::Mov { d, a } => {
                let value = self.words[*a as usize];
                self.put(*d, m, &value);
            }
            Op::Mov64 { d, a } => {
                let value = self.doubles[*a as usize];
                self.put64(*d, m, &value);
            }
            Op::Wide { signed, d, a, b, c } => self.wide(*signed, *d, [*a, *b, *c], m),
            Op::Setp {
                ty,
                cmp,
                d,
                other,
                a,
                b,
                with,
                flush,
            } => {
                let [a, b] = self.inputs(*flush && *ty == Ty::F32, [*a, *b]);
                let mut p = self.compare(*ty, *cmp, a, b);
                let mut q = !p;
                if let Some((f, with, negated)) = with {
                    let w = self.pred(*with, *negated);
                    (p, q) = (logic(*f, p, w), logic(*f, q, w));
                }
                self.put_pred(*d, m, p);
                self.put_pred(*other, m, q);
            }
            Op::Selp {
                wide,
                d,
                a,
                b,
                p,
                np,
            } => {
                let p = self.pred(*p, *np);
                if *wide {
                    let (x, y) = (self.doubles[*a as usize], self.doubles[*b as usize]);
                    self.put64(
                        *d,
                        m,
                        &std::array::from_fn(|i| if p >> i & 1 == 1 { x[i] } else { y[i] }),
                    );
                } else {
                    let (x, y) = (self.words[*a as usize], self.words[*b as usize]);
                    self.put(
                        *d,
                        m,
                        &std::array::from_fn(|i| if p >> i & 1 == 1 { x[i] } else { y[i] }),
                    );
                }
            }
            Op::Ld {
                space,
                bytes,
                signed,
                parts,
                addr,
            } => {
                self.load(*space, *bytes, *signed, parts, addr, m, block)?;
            }
            Op::St {
                space,
                bytes,
                parts,
                addr,
            } => self.store(*space, *bytes, parts, addr, m, block)?,
            Op::Cvt {
                to,
                from,
                round,
                integral,
                sat,
                flush,
                d,
                a,
            } => {
                let [a] = self.inputs(*flush && *from == Ty::F32, [*a]);
                self.cvt((*to, *from), (*round, *integral, *sat), *d, a, m);
                if *flush && *to == Ty::F32 {
                    self.flush_result(*d, m);
                }
            }
            Op::CvtPair {
                bf16,
                relu,
                d,
                hi,
                lo,
            } => self.cvt_pair(*bf16, *relu, *d, (*hi, *lo), m),
            Op::Mma { shape, d, a, b, c } => self.mma(*shape, [d, a, b, c], m, block)?,
            Op::LdMatrix {
                num,
                trans,
                parts,
                addr,
            } => {
                self.ldmatrix(*num, *trans, parts, addr, m, block)?;
            }
            Op::StMatrix {
                num,
                trans,
                parts,
                addr,
            } => {
                self.stmatrix(*num, *trans, parts, addr, m, block)?;
            }
            Op::CpAsync {
                bytes,
                dst,
                src,
                size,
            } => {
                self.cp_async(*bytes, dst, src, *size, m, block)?;
            }
            Op::CpCommit => self.commit(m),
            Op::CpWait { pending } => self.wait(*pending, m, block)?,
            Op::Shfl {
                mode,
                d,
                p,
                a,
                b,
                c,
                mask,
            } => {
                self.shfl(*mode, (*d, *p), [*a, *b, *c, *mask], m)?;
            }
            Op::Nop => {}
            other => self.execute_rare(other, m, block)?,
        }
        Ok(())
    }

    /// Kept out of the hot loop.
    #[inline(never)]
    fn execute_rare(&mut self, op: &Op, m: u32, block: &mut Block<'_>) -> Checked<()> {
        match op {
            Op::AluFlushed { f, d, a, b, c } => {
                let inputs = self.inputs(true, [*a, *b, *c]);
                self.alu(*f, *d, inputs, m)?;
                self.flush_result(*d, m);
            }
            Op::Carry {
                f,
                wide,
                takes,
                sets,
                d,
                a,
                b,
                c,
            } => {
                self.carries(*f, *wide, (*takes, *sets), *d, [*a, *b, *c], m);
            }
            Op::Bfi { d, a, b, pos, len } => {
                let [x, y, p, l] = [a, b, pos, len].map(|r| self.words[*r as usize]);
                let value = std::array::from_fn(|i| {
                    let (pos, len) = (p[i] & 0xFF, l[i] & 0xFF);
                    if pos > 31 || len == 0 {
                        return y[i];
                    }
                    let ones = if len >= 32 { u32::MAX } else { (1 << len) - 1 } << pos;
                    y[i] & !ones | x[i] << pos & ones
                });
                self.put(*d, m, &value);
            }
            Op::Lop3 { d, a, b, c, table } => {
                let [x, y, z] = [a, b, c].map(|r| self.words[*r as usize]);
                let value = std::array::from_fn(|i| {
                    (0..8).filter(|t| table >> t & 1 == 1).fold(0, |out, t| {
                        let side = |v: u32, bit: u32| if t >> bit & 1 == 1 { v } else { !v };
                        out | side(x[i], 2) & side(y[i], 1) & side(z[i], 0)
                    })
                });
                self.put(*d, m, &value);
            }
            Op::Shift64 {
                left,
                signed,
                d,
                a,
                b,
            } => {
                let (x, s) = (self.doubles[*a as usize], self.words[*b as usize]);
                let value = std::array::from_fn(|i| {
                    let n = s[i].min(64);
                    match (left, signed) {
                        (true, _) => x[i].checked_shl(n).unwrap_or(0),
                        (false, false) => x[i].checked_shr(n).unwrap_or(0),
                        (false, true) => ((x[i] as i64) >> n.min(63)) as u64,
                    }
                });
                self.put64(*d, m, &value);
            }
            Op::Wide16 { signed, d, a, b, c } => {
                let [x, y, z] = [a, b, c].map(|r| self.words[*r as usize]);
                let value = std::array::from_fn(|i| {
                    let product = if *signed {
                        (i32::from(x[i] as i16) * i32::from(y[i] as i16)) as u32
                    } else {
                        (x[i] & 0xFFFF) * (y[i] & 0xFFFF)
                    };
                    product.wrapping_add(z[i])
                });
                self.put(*d, m, &value);
            }
            Op::Count64 { f, d, a } => {
                let x = self.doubles[*a as usize];
                let value = std::array::from_fn(|i| match *f {
                    Count::Clz => x[i].leading_zeros(),
                    Count::Popc => x[i].count_ones(),
                    Count::Bfind { signed, amount } => bfind(x[i], 63, signed, amount),
                });
                self.put(*d, m, &value);
            }
            Op::Pack { d, wide, parts } => self.pack(*d, *wide, parts, m),
            Op::Unpack { a, wide, parts } => self.unpack(*a, *wide, parts, m),
            Op::Set {
                ty,
                cmp,
                d,
                a,
                b,
                one,
                flush,
            } => {
                let [a, b] = self.inputs(*flush && *ty == Ty::F32, [*a, *b]);
                let p = self.compare(*ty, *cmp, a, b);
                let value = std::array::from_fn(|i| if p >> i & 1 == 1 { *one } else { 0 });
                self.put(*d, m, &value);
            }
            Op::PredLogic { f, d, a, na, b, nb } => {
                let value = logic(*f, self.pred(*a, *na), self.pred(*b, *nb));
                self.put_pred(*d, m, value);
            }
            Op::PredMov { d, a } => self.put_pred(*d, m, self.preds[*a as usize]),
            Op::PredConst { d, value } => self.put_pred(*d, m, if *value { u32::MAX } else { 0 }),
            Op::Trap => return trouble(FaultKind::Trap, super::first(m), "the kernel trapped"),
            Op::Atom {
                space,
                f,
                ty,
                d,
                addr,
                a,
                b,
            } => {
                self.atom(*space, (*f, *ty), *d, addr, (*a, *b), m, block)?;
            }
            Op::Cvta {
                to,
                space,
                wide_d,
                wide_a,
                d,
                a,
            } => {
                self.cvta(*to, *space, (*wide_d, *d), (*wide_a, *a), m);
            }
            Op::BarWarp { mask } => self.bar_warp(*mask, m)?,
            Op::Vote { f, d, a, na, mask } => self.vote(*f, *d, (*a, *na), *mask, m)?,
            Op::Match {
                all,
                wide,
                d,
                p,
                a,
                mask,
            } => {
                self.match_lanes(*all, *wide, (*d, *p), *a, *mask, m)?;
            }
            Op::Redux {
                f,
                signed,
                d,
                a,
                mask,
            } => self.redux(*f, *signed, *d, *a, *mask, m)?,
            Op::ActiveMask { d } => self.put(*d, m, &[m; 32]),
            // The others are taken by `execute` and by the loop.
            _ => {}
        }
        Ok(())
    }
}
