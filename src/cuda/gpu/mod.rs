//! An NVIDIA GPU, through the CUDA driver API.
//!
//! Only this module and [`super::installed`] call the driver. Handles are made here, never leave,
//! and live as long as the [`GpuDriver`] that made them; what a caller may get wrong (addresses,
//! argument counts, a file that is no fat binary) is checked before the driver reads it.
#![allow(unsafe_code)]

mod kernels;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ptr;

use cudarc::driver::result::{self, DriverError as CudaError};
use cudarc::driver::sys::{self, CUresult};

use self::kernels::{Kernel, Module};
use super::Result;
use super::installed::{Gpu, installed, reason};
use super::{
    Arg, DeviceMemory, DevicePtr, Driver, DriverError, EventId, Geometry, GraphId, KernelFile,
    KernelId, NO_EVENT, NO_GRAPH,
};

/// Copies in up to this size do not wait for the queue.
const STAGING_BYTES: usize = 4 << 20;

/// One GPU and one queue on it.
pub struct GpuDriver {
    gpu: Gpu,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Dynamic shared memory that a block can be given at most.
    max_shared_bytes: u32,
    staging: Staging,
    /// Start and length of every live allocation.
    live: RefCell<BTreeMap<u64, usize>>,
    /// By the address of the file's code.
    modules: RefCell<HashMap<*const u8, Module>>,
    kernels: RefCell<Vec<Kernel>>,
    /// None where it was given back, as in `graphs`.
    events: RefCell<Vec<Option<sys::CUevent>>>,
    graphs: RefCell<Vec<Option<sys::CUgraphExec>>>,
    capture: Cell<Capture>,
}

/// Pinned memory that copies in go through, so that the caller's slice is free at once.
struct Staging {
    start: *mut u8,
    used: Cell<usize>,
}

// SAFETY: the driver API ties handles to a context, not to a thread, and every call binds the
// context to its thread first; a `GpuDriver` is not `Sync`, so one thread at a time calls it. The
// pinned memory and the code that modules are named by are plain memory.
unsafe impl Send for GpuDriver {}

#[derive(Clone, Copy, PartialEq)]
enum Capture {
    Idle,
    UnderWay,
    /// This call failed, or can't be captured.
    Spoiled(&'static str),
}

impl GpuDriver {
    /// Opens the GPU of that index.
    ///
    /// # Errors
    /// [`DriverError::NoDevice`] if there is no driver, no such GPU, or one of them is too old.
    pub fn open(index: usize) -> Result<GpuDriver> {
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED;
        let with_index = |e| match e {
            DriverError::NoDevice(why) if !why.starts_with("cuda:") => {
                DriverError::NoDevice(format!("cuda:{index}: {why}"))
            }
            other => other,
        };
        let machine = installed().map_err(with_index)?;
        let gpu = machine.usable(index)?.clone();
        let device = result::device::get(index as i32).map_err(failed("cuDeviceGet"))?;
        // SAFETY: `device` came from `device::get` on the line above.
        let shared = unsafe { result::device::get_attribute(device, SHARED) };
        // SAFETY: as above; dropping the driver releases it once.
        let context = unsafe { result::primary_ctx::retain(device) };
        let mut driver = GpuDriver {
            gpu,
            device,
            context: context.map_err(failed("cuDevicePrimaryCtxRetain"))?,
            stream: ptr::null_mut(),
            max_shared_bytes: shared.map_err(failed("cuDeviceGetAttribute"))?.max(0) as u32,
            staging: Staging {
                start: ptr::null_mut(),
                used: Cell::new(0),
            },
            live: RefCell::default(),
            modules: RefCell::default(),
            kernels: RefCell::default(),
            events: RefCell::default(),
            graphs: RefCell::default(),
            capture: Cell::new(Capture::Idle),
        };
        driver.bind()?;
        driver.stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("cuStreamCreate"))?;
        // SAFETY: nothing is read from it before `stage` has written it.
        driver.staging.start = unsafe { result::malloc_host(STAGING_BYTES, 0) }
            .map_err(failed("cuMemHostAlloc"))?
            .cast();
        Ok(driver)
    }

    /// The card.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Makes this GPU's context the thread's: another driver may have been used since.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until `self` is dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    /// For calls that a graph can't hold.
    fn bind_outside_capture(&self, call: &'static str) -> Result<()> {
        if self.capture.get() != Capture::Idle {
            self.capture.set(Capture::Spoiled(call));
            return Err(refused(call, "not while capturing"));
        }
        self.bind()
    }

    /// For calls that a graph can hold: a capture in which one failed is no good.
    fn noted<T>(&self, call: &'static str, result: Result<T>) -> Result<T> {
        if result.is_err() && self.capture.get() != Capture::Idle {
            self.capture.set(Capture::Spoiled(call));
        }
        result
    }

    /// That `bytes` from `ptr` on lie in one live allocation.
    fn check_range(&self, call: &str, ptr: DevicePtr, bytes: usize) -> Result<()> {
        let live = self.live.borrow();
        let inside = live
            .range(..=ptr.0)
            .next_back()
            .is_some_and(|(start, len)| {
                let end = ((ptr.0 - start) as usize).checked_add(bytes);
                end.is_some_and(|end| end <= *len)
            });
        if inside {
            return Ok(());
        }
        let why = format!("{bytes} bytes at {:#x} lie in no allocation", ptr.0);
        Err(refused(call, why))
    }

    fn wait(&self, call: &str) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed(call))?;
        self.staging.used.set(0);
        Ok(())
    }

    /// Copies at most STAGING_BYTES to pinned memory that the queue has done with.
    fn stage(&self, from: &[u8]) -> Result<&[u8]> {
        assert!(from.len() <= STAGING_BYTES);
        if self.staging.used.get() + from.len() > STAGING_BYTES {
            self.wait("copy_in")?;
        }
        let used = self.staging.used.get();
        self.staging.used.set(used + from.len());
        // SAFETY: used + from.len() <= STAGING_BYTES, the length of the pinned block, which lives
        // as long as `self`; no copy under way reads beyond `used`, and pinned memory is never
        // part of a caller's slice, since no address of it leaves this module.
        unsafe {
            let at = self.staging.start.add(used);
            ptr::copy_nonoverlapping(from.as_ptr(), at, from.len());
            Ok(std::slice::from_raw_parts(at, from.len()))
        }
    }

    fn fill_now(&self, ptr: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        self.check_range("fill", ptr, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range lies in a live allocation.
        unsafe { result::memset_d8_async(ptr.0, value, bytes, self.stream) }.map_err(failed("fill"))
    }

    fn copy_now(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.bind()?;
        self.check_range("copy", to, bytes)?;
        self.check_range("copy", from, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges lie in live allocations.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream) }
            .map_err(failed("copy"))
    }

    fn event(&self, call: &str, id: EventId) -> Result<sys::CUevent> {
        let event = self.events.borrow().get(id.0).copied().flatten();
        event.ok_or_else(|| refused(call, NO_EVENT))
    }

    /// For errors of calls that make a captured list, or place it, as its first launch does.
    fn no_capture(&self, call: &str, e: CudaError) -> DriverError {
        match e.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => DriverError::NoRoomToCapture {
                device: self.name(),
            },
            _ => failed(call)(e),
        }
    }
}

impl Driver for GpuDriver {
    fn name(&self) -> String {
        format!("{} (cuda:{})", self.gpu.name, self.gpu.index)
    }

    fn memory(&self) -> Result<DeviceMemory> {
        self.bind_outside_capture("memory")?;
        let (free, total) = result::mem_get_info().map_err(failed("memory"))?;
        Ok(DeviceMemory {
            free: free as u64,
            total: total as u64,
        })
    }

    fn alloc(&self, bytes: usize, label: &str) -> Result<DevicePtr> {
        self.bind_outside_capture("alloc")?;
        // SAFETY: typed as bytes of no value yet. The driver gives nothing for nought.
        let start = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|e| match e.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => DriverError::OutOfMemory {
                device: self.name(),
                bytes,
                label: label.into(),
            },
            _ => failed(format!("alloc of {bytes} bytes for {label}"))(e),
        })?;
        assert!(start.is_multiple_of(256), "the driver aligns to 256 bytes");
        self.live.borrow_mut().insert(start, bytes);
        Ok(DevicePtr(start))
    }

    fn free(&self, ptr: DevicePtr) -> Result<()> {
        self.bind_outside_capture("free")?;
        if self.live.borrow_mut().remove(&ptr.0).is_none() {
            let why = format!("{:#x} is not the start of a live allocation", ptr.0);
            return Err(refused("free", why));
        }
        // SAFETY: allocated here and, being out of `live` now, freed once; the driver waits for
        // work that uses it.
        unsafe { result::memory_free(ptr.0) }.map_err(failed("free"))
    }

    fn copy_in(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        self.bind_outside_capture("copy_in")?;
        self.check_range("copy_in", to, from.len())?;
        let staged = from.len() <= STAGING_BYTES;
        let from = if staged { self.stage(from)? } else { from };
        // SAFETY: the range lies in a live allocation. `from` stays as it is until the copy is
        // done: `stage` writes no pinned memory that is in use, and a longer slice is waited for.
        unsafe { result::memcpy_htod_async(to.0, from, self.stream) }.map_err(failed("copy_in"))?;
        if staged { Ok(()) } else { self.wait("copy_in") }
    }

    fn copy_out(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.bind_outside_capture("copy_out")?;
        self.check_range("copy_out", from, to.len())?;
        // SAFETY: the range lies in a live allocation, and `to` is borrowed until the copy is done.
        unsafe { result::memcpy_dtoh_async(to, from.0, self.stream) }
            .map_err(failed("copy_out"))?;
        self.wait("copy_out")
    }

    fn fill(&self, ptr: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        self.noted("fill", self.fill_now(ptr, value, bytes))
    }

    fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.noted("copy", self.copy_now(to, from, bytes))
    }

    fn forget(&self, _: DevicePtr, _: usize) -> Result<()> {
        Ok(())
    }

    fn kernel(&self, file: &KernelFile, name: &str) -> Result<KernelId> {
        self.kernel_of(file, name)
    }

    fn launch(&self, kernel: KernelId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        self.noted("launch", self.launch_now(kernel, geometry, args))
    }

    fn record(&self) -> Result<EventId> {
        self.bind_outside_capture("record")?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(failed("cuEventCreate"))?;
        let mut events = self.events.borrow_mut();
        events.push(Some(event));
        // SAFETY: event and stream live as long as `self`.
        unsafe { result::event::record(event, self.stream) }.map_err(failed("record"))?;
        Ok(EventId(events.len() - 1))
    }

    fn record_again(&self, event: EventId) -> Result<()> {
        self.bind_outside_capture("record")?;
        let event = self.event("record", event)?;
        // SAFETY: event and stream live as long as `self`.
        unsafe { result::event::record(event, self.stream) }.map_err(failed("record"))
    }

    fn drop_event(&self, event: EventId) -> Result<()> {
        self.bind_outside_capture("drop_event")?;
        let taken = self
            .events
            .borrow_mut()
            .get_mut(event.0)
            .and_then(Option::take);
        let event = taken.ok_or_else(|| refused("drop_event", NO_EVENT))?;
        // SAFETY: made by `record` and, being out of `events` now, destroyed once; the driver keeps it
        // until work that records it is done.
        unsafe { result::event::destroy(event) }.map_err(failed("drop_event"))
    }

    fn elapsed_ms(&self, from: EventId, to: EventId) -> Result<f32> {
        self.bind_outside_capture("elapsed_ms")?;
        let event = |id| self.event("elapsed_ms", id);
        let (from, to) = (event(from)?, event(to)?);
        // SAFETY: both events were recorded on the stream and live as long as `self`.
        unsafe {
            result::event::synchronize(from)
                .and_then(|()| result::event::synchronize(to))
                .and_then(|()| result::event::elapsed(from, to))
        }
        .map_err(failed("elapsed_ms"))
    }

    fn begin_capture(&self) -> Result<()> {
        if self.capture.get() != Capture::Idle {
            return Err(refused("begin_capture", "a capture is under way"));
        }
        self.bind()?;
        // Relaxed, since kernels may be loaded in it; calls that do not belong are refused above.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::begin_capture(self.stream, mode) }
            .map_err(failed("begin_capture"))?;
        self.capture.set(Capture::UnderWay);
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let capture = self.capture.replace(Capture::Idle);
        if capture == Capture::Idle {
            return Err(refused("end_capture", "no capture is under way"));
        }
        self.bind()?;
        // SAFETY: the stream lives as long as `self`, and is capturing.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        let exec = match (capture, graph) {
            (Capture::Spoiled(call), _) => {
                let why = format!("{call} failed in it, or can't be captured");
                Err(refused("end_capture", why))
            }
            // SAFETY: a graph that is not null is whole.
            (_, Ok(graph)) if !graph.is_null() => unsafe {
                result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0))
                    .map_err(|e| self.no_capture("end_capture", e))
            },
            (_, Ok(_)) => Err(refused("end_capture", "the driver gave no graph")),
            (_, Err(e)) => Err(self.no_capture("end_capture", e)),
        };
        if let Ok(graph) = graph
            && !graph.is_null()
        {
            // SAFETY: what was instantiated from it does not need it.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        let mut graphs = self.graphs.borrow_mut();
        graphs.push(Some(exec?));
        Ok(GraphId(graphs.len() - 1))
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        self.bind_outside_capture("replay")?;
        let exec = self.graphs.borrow().get(graph.0).copied().flatten();
        let exec = exec.ok_or_else(|| refused("replay", NO_GRAPH))?;
        // SAFETY: the graph was not given back, and the stream lives as long as `self`.
        unsafe { result::graph::launch(exec, self.stream) }
            .map_err(|e| self.no_capture("replay", e))
    }

    fn drop_graph(&self, graph: GraphId) -> Result<()> {
        self.bind_outside_capture("drop_graph")?;
        let mut graphs = self.graphs.borrow_mut();
        let exec = graphs.get_mut(graph.0).and_then(Option::take);
        let exec = exec.ok_or_else(|| refused("drop_graph", NO_GRAPH))?;
        // A launch of it may be under way; a wait that fails leaves nothing running.
        let waited = self.wait("drop_graph");
        // SAFETY: made by `end_capture` and, being out of `graphs` now, destroyed once.
        let destroyed = unsafe { result::graph::exec_destroy(exec) };
        waited.and(destroyed.map_err(failed("drop_graph")))
    }

    fn synchronize(&self) -> Result<()> {
        self.bind_outside_capture("synchronize")?;
        self.wait("synchronize")
    }
}

impl Drop for GpuDriver {
    fn drop(&mut self) {
        // A failure here has no one to tell: it is the echo of one that a call returned.
        let _ = self.bind();
        // SAFETY: every handle was made by `self`, is in one of these lists once, and is not used
        // again; the stream is waited for first.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
            }
            for graph in self.graphs.get_mut().drain(..).flatten() {
                let _ = result::graph::exec_destroy(graph);
            }
            for event in self.events.get_mut().drain(..).flatten() {
                let _ = result::event::destroy(event);
            }
            for (_, module) in self.modules.get_mut().drain() {
                let _ = result::module::unload(module.handle);
            }
            for start in self.live.get_mut().keys() {
                let _ = result::memory_free(*start);
            }
            if !self.staging.start.is_null() {
                let _ = result::free_host(self.staging.start.cast());
            }
            if !self.stream.is_null() {
                let _ = result::stream::destroy(self.stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// For `map_err` on a call of the driver.
fn failed(call: impl Into<String>) -> impl FnOnce(CudaError) -> DriverError {
    move |e| refused(call, reason(e))
}

fn refused(call: impl Into<String>, why: impl Into<String>) -> DriverError {
    DriverError::Failed {
        call: call.into(),
        reason: why.into(),
    }
}
