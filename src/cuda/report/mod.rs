//! What each kernel costs, told without a GPU: ptxas's figures and the opcodes of its machine code
//! by architecture, and what the virtual machine counts while a fixed workload runs.
//!
//! The same binary gives the same report everywhere; a reader compares two builds by [`changes`].

pub mod changes;
pub mod table;
pub mod time;
pub mod workload;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::thread;

use ptxvm::Counts;
use serde::{Deserialize, Serialize};

use super::KernelFile;
use super::embedded::{DISASSEMBLER, FILES, NVCC_RELEASE};
use super::sass::{Access, Opcodes, global_access, is_tensor};
use super::vm::{VmDriver, VmOptions};
use crate::error;

/// All that is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The kernels' compiler.
    pub nvcc: String,
    /// What read their machine code at build time, if anything did.
    pub disassembler: Option<String>,
    /// By kernel and architecture.
    pub code: Vec<Code>,
    /// By kernel and case of the workload.
    pub work: Vec<Work>,
}

/// A kernel's machine code for one architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Code {
    /// Stem of its file.
    pub file: String,
    /// Its symbol.
    pub kernel: String,
    /// Such as sm_80.
    pub architecture: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// A thread's stack.
    pub stack_bytes: u32,
    /// What a thread stores and loads because registers ran out.
    pub spill_bytes: u32,
    /// Its instructions; none where nothing read them at build time.
    pub sass: Option<Sass>,
}

/// Accesses by bits a thread.
pub type Widths = BTreeMap<u32, u32>;

/// Instructions of a kernel, as they stand in its machine code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sass {
    /// All of them.
    pub instructions: u32,
    /// Those that multiply matrices.
    pub tensor: u32,
    /// Loads of global memory.
    pub loads: Widths,
    /// Stores to global memory.
    pub stores: Widths,
    /// Copies of global to shared memory (`cp.async`).
    pub copies: Widths,
    /// Atomic operations on global memory.
    pub atomics: Widths,
}

/// What a kernel did in one case of the workload, all its launches together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Stem of its file.
    pub file: String,
    /// Its symbol.
    pub kernel: String,
    /// The case.
    pub case: String,
    /// How often it was launched.
    pub launches: u64,
    /// What it did.
    #[serde(flatten)]
    pub counted: Counted,
    /// By source line; not in files.
    #[serde(skip)]
    pub lines: Vec<Line>,
}

/// A source line's part.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Line {
    /// As the compiler was given it: `kernels/add.cu`.
    pub file: String,
    /// From 1; 0 where the compiler gave none.
    pub line: u32,
    /// What it did.
    pub counted: Counted,
}

/// Counts of the virtual machine; see [`ptxvm::Counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Instructions that a warp issued.
    pub instructions: u64,
    /// Floating-point operations of matrix instructions.
    pub matrix_flops: u64,
    /// Bytes that lanes read from global memory.
    pub read_bytes: u64,
    /// Bytes that lanes wrote to global memory.
    pub written_bytes: u64,
    /// Sectors of 32 bytes that the bytes of each request fill.
    pub sectors_needed: u64,
    /// Sectors that each request touched.
    pub sectors_moved: u64,
    /// Of these, sectors that requests of 16 bytes a lane touched.
    pub vector_sectors_moved: u64,
    /// Requests of a warp to shared memory.
    pub shared_requests: u64,
    /// Passes that these took beyond the least.
    pub bank_conflicts: u64,
}

impl From<Counts> for Counted {
    fn from(c: Counts) -> Counted {
        Counted {
            instructions: c.instructions,
            matrix_flops: c.matrix_flops,
            read_bytes: c.global_read_bytes,
            written_bytes: c.global_write_bytes,
            sectors_needed: c.sectors_needed,
            sectors_moved: c.sectors_moved,
            vector_sectors_moved: c.vector_sectors_moved,
            shared_requests: c.shared_requests,
            bank_conflicts: c.bank_conflicts,
        }
    }
}

impl Counted {
    /// Sectors moved for each one needed; 1 where none was.
    pub fn sector_ratio(&self) -> f64 {
        match self.sectors_needed {
            0 => 1.0,
            needed => self.sectors_moved as f64 / needed as f64,
        }
    }

    /// The share of all sectors that requests of 16 bytes a lane touched; 1 where there were none.
    pub fn vector_share(&self) -> f64 {
        match self.sectors_moved {
            0 => 1.0,
            moved => self.vector_sectors_moved as f64 / moved as f64,
        }
    }

    /// Bank conflicts of a shared request.
    pub fn conflict_ratio(&self) -> f64 {
        self.bank_conflicts as f64 / self.shared_requests.max(1) as f64
    }
}

impl Report {
    /// Reads what the build said and runs the workload: seconds.
    ///
    /// # Errors
    /// If a kernel is at fault.
    pub fn make() -> error::Result<Report> {
        let run = |case: workload::Case| case.run(&VmDriver::new(VmOptions::default()));
        // Each case has a machine of its own.
        let work = thread::scope(|scope| {
            let cases = workload::cases().into_iter();
            let running: Vec<_> = cases.map(|case| scope.spawn(move || run(case))).collect();
            let ended = running.into_iter().map(|case| match case.join() {
                Ok(work) => work,
                Err(panic) => resume_unwind(panic),
            });
            ended.collect::<error::Result<Vec<_>>>()
        })?;
        Ok(Report::new(work.into_iter().flatten().collect()))
    }

    /// With what was counted.
    pub fn new(mut work: Vec<Work>) -> Report {
        work.sort_by(|a, b| (&a.file, &a.kernel).cmp(&(&b.file, &b.kernel)));
        Report {
            nvcc: NVCC_RELEASE.into(),
            disassembler: DISASSEMBLER.map(Into::into),
            code: FILES.iter().flat_map(code).collect(),
            work,
        }
    }

    /// Keeps the file of that stem, or the kernels whose names hold `name`. False if there are none.
    pub fn keep(&mut self, name: &str) -> bool {
        let is_file = self.code.iter().any(|c| c.file == name);
        let keeps = |file: &str, kernel: &str| match is_file {
            true => file == name,
            false => kernel.contains(name),
        };
        self.code.retain(|c| keeps(&c.file, &c.kernel));
        self.work.retain(|w| keeps(&w.file, &w.kernel));
        !self.code.is_empty()
    }

    /// As JSON, a row a line: such files are compared line by line.
    ///
    /// # Errors
    /// Of the writer of JSON.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let string = |text: &str| serde_json::Value::from(text).to_string();
        let disassembler = self.disassembler.as_deref().map_or("null".into(), string);
        let (code, work) = (rows(&self.code)?, rows(&self.work)?);
        Ok(format!(
            "{{\"nvcc\":{},\"disassembler\":{disassembler},\n\"code\":[\n{code}\n],\n\"work\":[\n{work}\n]}}",
            string(&self.nvcc)
        ))
    }

    /// What a kernel did in all cases together, by source line.
    pub fn lines(&self, kernel: &str) -> Vec<Line> {
        let mut lines: BTreeMap<(&str, u32), Counted> = BTreeMap::new();
        for w in self.work.iter().filter(|w| w.kernel == kernel) {
            for l in &w.lines {
                *lines.entry((&l.file, l.line)).or_default() += l.counted;
            }
        }
        let line = |((file, line), counted): ((&str, u32), Counted)| Line {
            file: file.into(),
            line,
            counted,
        };
        lines.into_iter().map(line).collect()
    }
}

impl std::ops::AddAssign for Counted {
    fn add_assign(&mut self, o: Counted) {
        self.instructions += o.instructions;
        self.matrix_flops += o.matrix_flops;
        self.read_bytes += o.read_bytes;
        self.written_bytes += o.written_bytes;
        self.sectors_needed += o.sectors_needed;
        self.sectors_moved += o.sectors_moved;
        self.vector_sectors_moved += o.vector_sectors_moved;
        self.shared_requests += o.shared_requests;
        self.bank_conflicts += o.bank_conflicts;
    }
}

fn rows(rows: &[impl Serialize]) -> serde_json::Result<String> {
    let rows: Vec<String> = rows
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    Ok(rows.join(",\n"))
}

/// The machine code of a file's kernels, sorted by kernel and architecture.
pub fn code(file: &KernelFile) -> Vec<Code> {
    let opcodes = file.opcodes();
    let mut all: Vec<Code> = file
        .resources()
        .into_iter()
        .map(|r| {
            let own = |o: &&Opcodes| o.kernel == r.kernel && o.architecture == r.architecture;
            Code {
                file: file.name.into(),
                registers: r.registers,
                shared_bytes: r.shared_bytes,
                stack_bytes: r.stack_bytes,
                spill_bytes: r.spill_store_bytes + r.spill_load_bytes,
                sass: opcodes.iter().find(own).map(Sass::of),
                kernel: r.kernel,
                architecture: r.architecture,
            }
        })
        .collect();
    all.sort_by(|a, b| (&a.kernel, &a.architecture).cmp(&(&b.kernel, &b.architecture)));
    all
}

impl Sass {
    fn of(opcodes: &Opcodes) -> Sass {
        let mut out = Sass::default();
        for (opcode, n) in &opcodes.counts {
            out.instructions += n;
            out.tensor += if is_tensor(opcode) { *n } else { 0 };
            if let Some((access, bits)) = global_access(opcode) {
                let widths = match access {
                    Access::Load => &mut out.loads,
                    Access::Store => &mut out.stores,
                    Access::Copy => &mut out.copies,
                    Access::Atomic => &mut out.atomics,
                };
                *widths.entry(bits).or_default() += n;
            }
        }
        out
    }
}
