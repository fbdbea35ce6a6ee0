//! The PTX virtual machine as a [`Driver`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use ptxvm::{Counters, Launch, Loc, Machine, Program};

use super::{
    Arg, DeviceMemory, DevicePtr, Driver, DriverError, EventId, Geometry, GraphId, KernelFile,
    KernelId, NO_EVENT, NO_GRAPH, Result,
};
use crate::device::host_memory;

pub use ptxvm::Options as VmOptions;

/// Runs kernels in the virtual machine. Launches run at once, so every fault shows at its launch.
/// Clones are the same machine: one may be given away, and the other read the counters.
#[derive(Clone)]
pub struct VmDriver {
    state: Arc<Mutex<State>>,
}

struct State {
    machine: Machine,
    /// Bytes that may be allocated.
    memory_bytes: u64,
    /// PTX that stands in for an embedded file's.
    replaced: HashMap<String, String>,
    programs: HashMap<&'static str, usize>,
    loaded: Vec<Program>,
    /// Program and symbol of each kernel.
    kernels: Vec<(usize, String)>,
    /// None where it was given back, as in `graphs`.
    events: Vec<Option<Instant>>,
    graphs: Vec<Option<Arc<[Work]>>>,
    capture: Option<Vec<Work>>,
    /// By kernel.
    counters: BTreeMap<String, Counters>,
}

/// What a capture notes.
enum Work {
    Launch(KernelId, Geometry, Vec<Arg>),
    Fill(DevicePtr, u8, usize),
    Copy(DevicePtr, DevicePtr, usize),
    Forget(DevicePtr, usize),
}

impl VmDriver {
    /// A machine without memory in use. It has half of this computer's.
    pub fn new(options: VmOptions) -> VmDriver {
        VmDriver {
            state: Arc::new(Mutex::new(State {
                machine: Machine::new(options),
                memory_bytes: host_memory() / 2,
                replaced: HashMap::new(),
                programs: HashMap::new(),
                loaded: vec![],
                kernels: vec![],
                events: vec![],
                graphs: vec![],
                capture: None,
                counters: BTreeMap::new(),
            })),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in the machine leaves memory as it was at some instruction.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The same with that much memory.
    pub fn with_memory(self, bytes: u64) -> VmDriver {
        self.state().memory_bytes = bytes;
        self
    }

    /// By kernel, what all its launches since the last call counted.
    pub fn take_counters(&self) -> BTreeMap<String, Counters> {
        std::mem::take(&mut self.state().counters)
    }

    /// The file and line that a kernel's counters name.
    pub fn place(&self, kernel: &str, loc: Loc) -> (String, u32) {
        let state = self.state();
        let known = state.kernels.iter().find(|(_, name)| name == kernel);
        known.map_or_else(
            || (String::new(), 0),
            |(program, _)| state.loaded[*program].place(loc),
        )
    }

    /// Runs this PTX wherever a kernel of the file `name` is asked for: an edited kernel is tried
    /// without a build. Only before the file's first use.
    pub fn replace(&self, name: &str, ptx: String) {
        self.state().replaced.insert(name.into(), ptx);
    }
}

fn failed(call: &str, reason: &dyn std::fmt::Display) -> DriverError {
    DriverError::Failed {
        call: call.into(),
        reason: reason.to_string(),
    }
}

impl State {
    fn memory(&self) -> DeviceMemory {
        DeviceMemory {
            free: self
                .memory_bytes
                .saturating_sub(self.machine.allocated_bytes()),
            total: self.memory_bytes,
        }
    }

    fn not_capturing(&self, call: &str) -> Result<()> {
        match self.capture {
            None => Ok(()),
            Some(_) => Err(failed(call, &"not while capturing")),
        }
    }

    fn run(&mut self, work: &Work) -> Result<()> {
        match work {
            Work::Fill(ptr, value, bytes) => self
                .machine
                .copy_in(ptr.0, &vec![*value; *bytes])
                .map_err(|e| failed("fill", &e)),
            Work::Copy(to, from, bytes) => {
                let mut held = vec![0; *bytes];
                let copied = self.machine.copy_out(from.0, &mut held);
                copied
                    .and_then(|()| self.machine.copy_in(to.0, &held))
                    .map_err(|e| failed("copy", &e))
            }
            Work::Forget(ptr, bytes) => self
                .machine
                .forget(ptr.0, *bytes)
                .map_err(|e| failed("forget", &e)),
            Work::Launch(kernel, geometry, args) => {
                let Some((program, name)) = self.kernels.get(kernel.0) else {
                    return Err(failed("launch", &"a kernel of another driver"));
                };
                let bytes: Vec<Vec<u8>> = args.iter().map(Arg::bytes).collect();
                let bytes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                let launch = Launch {
                    grid: geometry.grid,
                    block: geometry.block,
                    shared_bytes: geometry.shared_bytes,
                };
                let counters = self
                    .machine
                    .launch(&self.loaded[*program], name, launch, &bytes)
                    .map_err(|fault| failed(name, &fault))?;
                *self.counters.entry(name.clone()).or_default() += &counters;
                Ok(())
            }
        }
    }

    fn submit(&mut self, work: Work) -> Result<()> {
        if let Some(list) = &mut self.capture {
            list.push(work);
            return Ok(());
        }
        self.run(&work)
    }
}

impl Driver for VmDriver {
    fn name(&self) -> String {
        "PTX virtual machine".into()
    }

    fn memory(&self) -> Result<DeviceMemory> {
        let state = self.state();
        state.not_capturing("memory")?;
        Ok(state.memory())
    }

    fn alloc(&self, bytes: usize, label: &str) -> Result<DevicePtr> {
        let mut state = self.state();
        state.not_capturing("alloc")?;
        if bytes as u64 > state.memory().free {
            return Err(DriverError::OutOfMemory {
                device: self.name(),
                bytes,
                label: label.into(),
            });
        }
        Ok(DevicePtr(state.machine.alloc(bytes, label)))
    }

    fn free(&self, ptr: DevicePtr) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("free")?;
        state.machine.free(ptr.0).map_err(|e| failed("free", &e))
    }

    fn copy_in(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("copy in")?;
        state
            .machine
            .copy_in(to.0, from)
            .map_err(|e| failed("copy in", &e))
    }

    fn copy_out(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        let state = self.state();
        state.not_capturing("copy out")?;
        state
            .machine
            .copy_out(from.0, to)
            .map_err(|e| failed("copy out", &e))
    }

    fn fill(&self, ptr: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        self.state().submit(Work::Fill(ptr, value, bytes))
    }

    fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.state().submit(Work::Copy(to, from, bytes))
    }

    fn forget(&self, ptr: DevicePtr, bytes: usize) -> Result<()> {
        self.state().submit(Work::Forget(ptr, bytes))
    }

    fn kernel(&self, file: &KernelFile, name: &str) -> Result<KernelId> {
        let mut state = self.state();
        let program = match state.programs.get(file.name) {
            Some(i) => *i,
            None => {
                let replaced = state.replaced.get(file.name).cloned();
                let program = state
                    .machine
                    .load(replaced.as_deref().unwrap_or(file.ptx))
                    .map_err(|e| failed(&format!("load of {}", file.name), &e))?;
                state.loaded.push(program);
                let i = state.loaded.len() - 1;
                state.programs.insert(file.name, i);
                i
            }
        };
        if !state.loaded[program].kernels().any(|k| k == name) {
            return Err(failed("kernel", &format!("{} has no {name}", file.name)));
        }
        let known = state
            .kernels
            .iter()
            .position(|(p, k)| *p == program && k == name);
        Ok(KernelId(known.unwrap_or_else(|| {
            state.kernels.push((program, name.into()));
            state.kernels.len() - 1
        })))
    }

    fn launch(&self, kernel: KernelId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        self.state()
            .submit(Work::Launch(kernel, geometry, args.to_vec()))
    }

    fn record(&self) -> Result<EventId> {
        let mut state = self.state();
        state.not_capturing("record")?;
        state.events.push(Some(Instant::now()));
        Ok(EventId(state.events.len() - 1))
    }

    fn record_again(&self, event: EventId) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("record")?;
        let at = state.events.get_mut(event.0).and_then(Option::as_mut);
        *at.ok_or_else(|| failed("record", &NO_EVENT))? = Instant::now();
        Ok(())
    }

    fn drop_event(&self, event: EventId) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("drop of an event")?;
        let at = state.events.get_mut(event.0).and_then(Option::take);
        at.map(drop)
            .ok_or_else(|| failed("drop of an event", &NO_EVENT))
    }

    fn elapsed_ms(&self, from: EventId, to: EventId) -> Result<f32> {
        let state = self.state();
        let at = |event: EventId| state.events.get(event.0).copied().flatten();
        match (at(from), at(to)) {
            (Some(a), Some(b)) => Ok(b.saturating_duration_since(a).as_secs_f32() * 1e3),
            _ => Err(failed("elapsed", &NO_EVENT)),
        }
    }

    fn begin_capture(&self) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("begin of a capture")?;
        state.capture = Some(vec![]);
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let mut state = self.state();
        match state.capture.take() {
            Some(list) => {
                state.graphs.push(Some(list.into()));
                Ok(GraphId(state.graphs.len() - 1))
            }
            None => Err(failed("end of a capture", &"none is under way")),
        }
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("replay")?;
        let Some(list) = state.graphs.get(graph.0).cloned().flatten() else {
            return Err(failed("replay", &NO_GRAPH));
        };
        list.iter().try_for_each(|work| state.run(work))
    }

    fn drop_graph(&self, graph: GraphId) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("drop of a graph")?;
        let list = state.graphs.get_mut(graph.0).and_then(Option::take);
        list.map(drop)
            .ok_or_else(|| failed("drop of a graph", &NO_GRAPH))
    }

    fn synchronize(&self) -> Result<()> {
        self.state().not_capturing("synchronize")
    }
}
