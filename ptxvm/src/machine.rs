//! The machine: memory, loaded programs, launches.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use thiserror::Error;

use crate::counters::{Counters, Counts};
use crate::exec::{Block, Setup, Stop, Warp};
use crate::fault::{Fault, FaultKind, Trouble};
use crate::ir::{Kernel, decode};
use crate::mem::global::Global;
use crate::mem::shared::Shared;
use crate::ptx::{Loc, Module, ParseError};

/// How the machine runs kernels.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blocks that run at the same time. One gives the same bits every time, whatever the kernel.
    pub threads: usize,
    /// Runs blocks and warps in an order drawn from this seed.
    pub order_seed: Option<u64>,
    /// Looks for races and uninitialised reads in shared memory. Costs up to half the time.
    pub check_shared: bool,
    /// Instructions that a warp may run between barriers before it counts as stuck.
    pub fuel: u64,
    /// Shared bytes that a block may have; 227 KiB as on sm_90, 163 on sm_80.
    pub max_shared_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            threads: 1,
            order_seed: None,
            check_shared: true,
            fuel: 1 << 28,
            max_shared_bytes: 163 << 10,
        }
    }
}

/// Geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Launch {
    /// Without dynamic shared memory.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Launch {
        Launch {
            grid,
            block,
            shared_bytes: 0,
        }
    }
}

/// A host-side access outside every allocation.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct MemoryError(String);

/// A loaded PTX file.
#[derive(Debug)]
pub struct Program {
    kernels: Vec<Kernel>,
    files: Vec<(u32, String)>,
    globals: Vec<u64>,
}

impl Program {
    /// Names of its kernels, in the order of the file.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|k| k.name.as_str())
    }

    /// Bytes of each argument of a kernel.
    pub fn arguments(&self, kernel: &str) -> Option<Vec<usize>> {
        let k = self.kernels.iter().find(|k| k.name == kernel)?;
        Some(k.params.iter().map(|p| p.1).collect())
    }

    /// A place of a kernel's source in words: `layer_norm.cu:41`.
    pub fn place(&self, loc: Loc) -> (String, u32) {
        let file = self.files.iter().find(|f| f.0 == loc.file);
        (file.map_or("(no line)".into(), |f| f.1.clone()), loc.line)
    }
}

/// A device: global memory, and what runs kernels on it.
#[derive(Debug)]
pub struct Machine {
    global: Global,
    options: Options,
    /// Of the launch before.
    workers: Vec<Worker>,
}

impl Machine {
    /// A machine without memory in use.
    pub fn new(options: Options) -> Machine {
        Machine {
            global: Global::default(),
            options,
            workers: vec![],
        }
    }

    /// Loads a PTX file: parses, checks that every instruction is known, makes its variables.
    ///
    /// # Errors
    /// Names the PTX line of what it does not know.
    pub fn load(&mut self, ptx: &str) -> Result<Program, ParseError> {
        let module = Module::parse(ptx)?;
        let kernels = module
            .entries
            .iter()
            .map(|e| decode(&module, e))
            .collect::<Result<Vec<_>, _>>()?;
        let globals = module.globals.iter().map(|v| {
            let address = self.global.alloc(v.size, &v.name);
            let mut bytes = v.init.clone().unwrap_or_default();
            bytes.resize(v.size, 0);
            // A fresh allocation of just this size.
            let copied = self.global.copy_in(address, &bytes);
            debug_assert!(copied.is_ok());
            address
        });
        Ok(Program {
            globals: globals.collect(),
            kernels,
            files: module.files.into_iter().collect(),
        })
    }

    /// Memory that nobody has written, at a multiple of 256; `label` names it in faults.
    pub fn alloc(&mut self, bytes: usize, label: &str) -> u64 {
        self.global.alloc(bytes, label)
    }

    /// Gives memory back.
    ///
    /// # Errors
    /// If `address` does not begin an allocation.
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        if self.global.free(address) {
            Ok(())
        } else {
            Err(MemoryError(format!("{address:#x} begins no allocation")))
        }
    }

    /// Bytes allocated.
    pub fn allocated_bytes(&self) -> u64 {
        self.global.bytes()
    }

    /// Copies into the machine.
    ///
    /// # Errors
    /// Outside an allocation.
    pub fn copy_in(&mut self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.global.copy_in(address, from).map_err(MemoryError)
    }

    /// Copies out of the machine; bytes that nobody wrote are 0xFF.
    ///
    /// # Errors
    /// Outside an allocation.
    pub fn copy_out(&self, address: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        self.global.copy_out(address, to).map_err(MemoryError)
    }

    /// Makes bytes unwritten again, so that a later read of them is a fault.
    ///
    /// # Errors
    /// Outside an allocation.
    pub fn forget(&mut self, address: u64, bytes: usize) -> Result<(), MemoryError> {
        self.global.forget(address, bytes).map_err(MemoryError)
    }

    /// Runs a kernel to its end. `args` are the bytes of each argument.
    ///
    /// # Errors
    /// The first fault, in the order of blocks; memory keeps what was written until then.
    pub fn launch(
        &mut self,
        program: &Program,
        kernel: &str,
        launch: Launch,
        args: &[&[u8]],
    ) -> Result<Counters, Box<Fault>> {
        let refuse = |detail: String| {
            Box::new(Fault {
                kind: FaultKind::Launch,
                kernel: kernel.into(),
                file: String::new(),
                line: 0,
                inlined_at: None,
                block: [0; 3],
                thread: [0; 3],
                detail,
            })
        };
        let Some(k) = program.kernels.iter().find(|k| k.name == kernel) else {
            return Err(refuse("the program has no such kernel".into()));
        };
        let params = pack_arguments(k, args).map_err(refuse)?;
        let threads: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
        let blocks: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
        let shared_bytes = k.shared_bytes + launch.shared_bytes as usize;
        if threads == 0 || threads > 1024 || blocks == 0 {
            return Err(refuse(format!(
                "grid {:?} of blocks {:?}: a block has 1 to 1,024 threads, a grid a block or more",
                launch.grid, launch.block
            )));
        }
        if shared_bytes > self.options.max_shared_bytes {
            return Err(refuse(format!(
                "{shared_bytes} bytes of shared memory, {} are there",
                self.options.max_shared_bytes
            )));
        }
        let mut turns = vec![];
        order(blocks as usize, self.options.order_seed, &mut turns);
        let mut workers = std::mem::take(&mut self.workers);
        workers.resize_with(self.options.threads.clamp(1, turns.len()), Worker::default);
        let run = Run {
            machine: self,
            program,
            kernel: k,
            launch,
            params,
            shared_bytes,
        };
        let done = run.blocks(&turns, &mut workers);
        let mut counts = vec![Counts::default(); k.code.len()];
        for worker in &workers {
            counts
                .iter_mut()
                .zip(&worker.counts)
                .for_each(|(all, c)| *all += *c);
        }
        self.workers = workers;
        done.map(|()| Counters::by_line(&k.code, &counts))
    }
}

fn pack_arguments(k: &Kernel, args: &[&[u8]]) -> Result<Vec<u8>, String> {
    if args.len() != k.params.len() {
        return Err(format!(
            "takes {} arguments, got {}",
            k.params.len(),
            args.len()
        ));
    }
    let end = k.params.last().map_or(0, |p| p.0 + p.1);
    let mut params = vec![0; end];
    for (i, ((at, size), arg)) in k.params.iter().zip(args).enumerate() {
        if arg.len() != *size {
            return Err(format!("argument {i} has {size} bytes, got {}", arg.len()));
        }
        params[*at..at + size].copy_from_slice(arg);
    }
    Ok(params)
}

/// 0..n, or a permutation drawn from a seed.
fn order(n: usize, seed: Option<u64>, out: &mut Vec<usize>) {
    out.clear();
    out.extend(0..n);
    if let Some(mut state) = seed {
        for i in (1..n).rev() {
            out.swap(i, (next(&mut state) % (i as u64 + 1)) as usize);
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// A launch under way.
struct Run<'a> {
    machine: &'a Machine,
    program: &'a Program,
    kernel: &'a Kernel,
    launch: Launch,
    params: Vec<u8>,
    shared_bytes: usize,
}

/// What a thread of the host keeps from block to block and from launch to launch.
#[derive(Debug, Default)]
struct Worker {
    warps: Vec<Warp>,
    shared: Shared,
    counts: Vec<Counts>,
    hints: Vec<u32>,
    /// Barriers passed since the machine began.
    epoch: u32,
    /// The order in which warps run.
    turns: Vec<usize>,
}

impl Run<'_> {
    /// Geometry as the threads of a block see it.
    fn setup(&self, index: u32) -> Setup {
        let [gx, gy, _] = self.launch.grid;
        Setup {
            block: [index % gx, index / gx % gy, index / (gx * gy)],
            grid: self.launch.grid,
            threads: self.launch.block,
            dynamic_shared: self.launch.shared_bytes,
        }
    }

    /// Makes a worker ready for this launch.
    fn prepare(&self, worker: &mut Worker) {
        let (kernel, setup) = (self.kernel, self.setup(0));
        let threads: u32 = self.launch.block.iter().product();
        let n_warps = threads.div_ceil(32) as usize;
        worker.warps.resize_with(n_warps, Warp::default);
        for (w, warp) in worker.warps.iter_mut().enumerate() {
            warp.prepare(kernel, w, &self.program.globals, &setup);
        }
        // Long before epochs could begin again of themselves.
        if worker.epoch > u32::MAX / 2 {
            worker.shared.forget_stamps();
            worker.epoch = 0;
        }
        let check = self.machine.options.check_shared;
        worker.shared.prepare(self.shared_bytes, check);
        worker.counts.clear();
        worker.counts.resize(kernel.code.len(), Counts::default());
        worker.hints.clear();
        worker.hints.resize(kernel.code.len(), 0);
    }

    /// Runs the blocks in this order, shared out among the workers.
    fn blocks(&self, turns: &[usize], workers: &mut [Worker]) -> Result<(), Box<Fault>> {
        if let [worker] = workers {
            self.prepare(worker);
            for index in turns {
                self.block(*index, worker)?;
            }
            return Ok(());
        }
        let (taken, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        // The fault of the earliest block, whichever thread finds its own first.
        let first: Mutex<Option<(usize, Box<Fault>)>> = Mutex::new(None);
        let work = |worker: &mut Worker| {
            self.prepare(worker);
            while !stop.load(Ordering::Relaxed) {
                let turn = taken.fetch_add(1, Ordering::Relaxed);
                let Some(index) = turns.get(turn) else { break };
                if let Err(fault) = self.block(*index, worker) {
                    stop.store(true, Ordering::Relaxed);
                    let mut slot = first.lock().unwrap_or_else(|e| e.into_inner());
                    if slot.as_ref().is_none_or(|(t, _)| turn < *t) {
                        *slot = Some((turn, fault));
                    }
                }
            }
        };
        // A panic of one of them goes on here.
        std::thread::scope(|scope| {
            for worker in &mut *workers {
                scope.spawn(|| work(worker));
            }
        });
        match first.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some((_, fault)) => Err(fault),
            None => Ok(()),
        }
    }

    fn block(&self, index: usize, worker: &mut Worker) -> Result<(), Box<Fault>> {
        let setup = self.setup(index as u32);
        for warp in &mut worker.warps {
            warp.begin(self.kernel, &setup);
        }
        worker.shared.reset();
        let seed = self.machine.options.order_seed;
        let mut state = seed.map(|s| s ^ u64::from(index as u32));
        loop {
            worker.epoch += 1;
            if self.round(worker, state.as_mut().map(next), &setup)? {
                return Ok(());
            }
        }
    }

    /// Runs every warp up to a barrier or its end; says whether all have ended.
    fn round(
        &self,
        worker: &mut Worker,
        seed: Option<u64>,
        setup: &Setup,
    ) -> Result<bool, Box<Fault>> {
        order(worker.warps.len(), seed, &mut worker.turns);
        let mut block = Block {
            kernel: self.kernel,
            global: &self.machine.global,
            shared: &mut worker.shared,
            params: &self.params,
            counts: &mut worker.counts,
            hints: &mut worker.hints,
            epoch: worker.epoch,
            fuel: self.machine.options.fuel,
        };
        let mut ended = None;
        // The first warp at a barrier, and the first at another one.
        let (mut waits, mut elsewhere) = (None, None);
        for w in worker.turns.iter().copied() {
            match worker.warps[w].run(&mut block) {
                Ok(Stop::Done) => ended = ended.or(Some(w)),
                Ok(Stop::Barrier(id)) => match waits {
                    None => waits = Some((w, id)),
                    Some((_, first)) if first != id => elsewhere = elsewhere.or(Some((w, id))),
                    Some(_) => {}
                },
                Err(t) => return Err(self.fault(*t, &worker.warps[w], setup)),
            }
        }
        let Some((w, id)) = waits else {
            return Ok(true);
        };
        let (kind, what) = if let Some(other) = ended {
            let what = format!("warp {w} waits at this barrier, and warp {other} has ended");
            (FaultKind::MissingBarrier, what)
        } else if let Some((other, oid)) = elsewhere {
            let what = format!("warp {w} waits at barrier {id}, warp {other} at barrier {oid}");
            (FaultKind::Deadlock, what)
        } else {
            return Ok(false);
        };
        Err(self.fault(Trouble::new(kind, 0, what), &worker.warps[w], setup))
    }

    fn fault(&self, t: Trouble, warp: &Warp, setup: &Setup) -> Box<Fault> {
        let inst = self.kernel.code.get(warp.pc);
        let (file, line) = self.program.place(inst.map_or(Loc::default(), |i| i.loc));
        let [x, y, _] = setup.threads;
        let thread = (32 * warp.index + t.lane) as u32;
        Box::new(Fault {
            kind: t.kind,
            kernel: self.kernel.name.clone(),
            file,
            line,
            inlined_at: inst
                .and_then(|i| i.inlined_at)
                .map(|l| self.program.place(l)),
            block: setup.block,
            thread: [thread % x, thread / x % y, thread / (x * y)],
            detail: t.detail,
        })
    }
}
