//! Runs CUDA kernels where there is no GPU: a virtual machine for the PTX that nvcc writes.
//!
//! It executes warps of 32 lanes in lock step, checks every access (bounds, alignment, memory that
//! nobody wrote, races in shared memory between barriers, divergent and missing barriers, missing
//! lanes of warp-wide instructions, `cp.async` read before its wait, deadlock) and counts what the
//! kernel did, exactly and repeatably: instructions, matrix FLOPs, sectors of global memory moved
//! and needed, bank conflicts, for the launch and for each source line.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let ptx = r"
//! .version 8.0
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 twice_param_0)
//! {
//!     .reg .b32 %r<3>;
//!     .reg .b64 %rd<4>;
//!     ld.param.u64 %rd1, [twice_param_0];
//!     cvta.to.global.u64 %rd2, %rd1;
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd3, %r1, 4;
//!     add.s64 %rd2, %rd2, %rd3;
//!     ld.global.u32 %r2, [%rd2];
//!     shl.b32 %r2, %r2, 1;
//!     st.global.u32 [%rd2], %r2;
//!     ret;
//! }";
//! let mut machine = ptxvm::Machine::new(ptxvm::Options::default());
//! let program = machine.load(ptx)?;
//! let numbers = machine.alloc(4 * 4, "numbers");
//! machine.copy_in(numbers, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])?;
//! let launch = ptxvm::Launch::new([1, 1, 1], [4, 1, 1]);
//! let counters = machine.launch(&program, "twice", launch, &[&numbers.to_le_bytes()])?;
//! let mut out = [0; 16];
//! machine.copy_out(numbers, &mut out)?;
//! assert_eq!(out, [2, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 8, 0, 0, 0]);
//! assert_eq!(counters.total.sectors_moved, 2); // one read, one written
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not do
//! No `.func` calls (mark device functions `__forceinline__`), no surfaces or textures, no clusters,
//! `wgmma` or bulk copies yet: an instruction it does not know is an error when the file is loaded,
//! with its line. So is `.ftz` of halves. Approximations (`ex2.approx`,
//! `rsqrt.approx`) are the CPU's, closer than a GPU's; matrix products add in the order of k.
//! Execution is sequentially consistent, so a missing memory fence is not found: permuting the
//! order of blocks and warps ([`Options::order_seed`]) is a cheap extra. It says nothing of time.
//! Where CUDA lets threads that have returned be absent from a barrier, this machine reports them.

// Lanes are indexed: several rows and a mask move together.
#![allow(clippy::needless_range_loop)]

mod counters;
mod exec;
mod fault;
mod ir;
mod machine;
mod mem;
mod ptx;

pub use counters::{Counters, Counts};
pub use fault::{Fault, FaultKind};
pub use machine::{Launch, Machine, MemoryError, Options, Program};
pub use ptx::{Loc, ParseError};
