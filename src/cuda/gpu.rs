//! An NVIDIA GPU, through the CUDA driver API.
//!
//! Only this module and [`super::installed`] call the driver. Handles are made here, never leave,
//! and live as long as the [`GpuDriver`] that made them; what a caller may get wrong (addresses,
//! argument counts, a file that is no fat binary) is checked before the driver reads it.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::result::{self, DriverError as CudaError};
use cudarc::driver::sys::{self, CUresult};

use super::Result;
use super::installed::{Gpu, installed, reason};
use super::{
    Arg, DevicePtr, Driver, DriverError, EventId, Geometry, GraphId, KernelFile, KernelId,
};

/// Copies in up to this size do not wait for the queue.
const STAGING_BYTES: usize = 4 << 20;
/// The first word of a fat binary.
const FATBIN_MAGIC: u32 = 0xBA55_ED50;

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
    events: RefCell<Vec<sys::CUevent>>,
    graphs: RefCell<Vec<sys::CUgraphExec>>,
    capture: Cell<Capture>,
}

/// Pinned memory that copies in go through, so that the caller's slice is free at once.
struct Staging {
    start: *mut u8,
    used: Cell<usize>,
}

struct Module {
    handle: sys::CUmodule,
    kernels: HashMap<String, KernelId>,
}

#[derive(Clone)]
struct Kernel {
    name: String,
    function: sys::CUfunction,
    /// Bytes of each parameter.
    params: Vec<usize>,
    /// Dynamic shared memory that the driver lets a launch ask for by now.
    shared_bytes: u32,
}

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

    fn load(&self, file: &KernelFile) -> Result<sys::CUmodule> {
        let call = format!("loading kernels of {}", file.name);
        if !is_fatbin(file.fatbin) {
            return Err(refused(call, "not a whole fat binary"));
        }
        // The driver reads it as words.
        let mut image = vec![0u64; file.fatbin.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..file.fatbin.len()]
            .copy_from_slice(file.fatbin);
        // SAFETY: `is_fatbin` found the header, and that the image is as long as the header says;
        // the driver keeps no pointer to it.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(failed(call))
    }

    fn find(&self, module: sys::CUmodule, name: &str) -> Result<Kernel> {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC;
        let symbol = CString::new(name).map_err(|e| refused(name, e.to_string()))?;
        // SAFETY: modules are unloaded only when `self` is dropped.
        let function =
            unsafe { result::module::get_function(module, symbol) }.map_err(failed(name))?;
        // SAFETY: the function is part of that module. Loaded now, since a kernel's first launch
        // may be in a capture.
        unsafe { sys::cuFuncLoad(function) }
            .result()
            .map_err(failed(name))?;
        // SAFETY: as above.
        let shared = unsafe { result::function::get_function_attribute(function, DYNAMIC) };
        Ok(Kernel {
            name: name.into(),
            function,
            params: params(function).map_err(failed(name))?,
            shared_bytes: shared.map_err(failed(name))?.max(0) as u32,
        })
    }

    /// Lets a kernel have more dynamic shared memory than it had so far.
    fn allow_shared(&self, kernel: KernelId, bytes: u32) -> Result<()> {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC;
        let mut kernels = self.kernels.borrow_mut();
        let kernel = &mut kernels[kernel.0];
        if bytes <= kernel.shared_bytes {
            return Ok(());
        }
        // The driver takes an int: no larger number reaches it.
        let set = if bytes > self.max_shared_bytes {
            Err(CudaError(CUresult::CUDA_ERROR_INVALID_VALUE))
        } else {
            // SAFETY: the function's module is unloaded only when `self` is dropped.
            unsafe {
                result::function::set_function_attribute(kernel.function, DYNAMIC, bytes as i32)
            }
        };
        set.map_err(|e| {
            let why = format!(
                "{bytes} bytes of dynamic shared memory, {} allows a block {} of both kinds: {}",
                self.gpu.name,
                self.max_shared_bytes,
                reason(e)
            );
            refused(&kernel.name, why)
        })?;
        kernel.shared_bytes = bytes;
        Ok(())
    }

    fn check_args(&self, kernel: &Kernel, args: &[Arg]) -> Result<()> {
        if args.len() != kernel.params.len() {
            let (got, want) = (args.len(), kernel.params.len());
            let why = format!("{got} arguments, the kernel takes {want}");
            return Err(refused(&kernel.name, why));
        }
        for (i, (arg, want)) in args.iter().zip(&kernel.params).enumerate() {
            let (_, got) = word(arg);
            if got != *want {
                let why = format!("argument {i} has {got} bytes, the kernel takes {want}");
                return Err(refused(&kernel.name, why));
            }
            if let Arg::Ptr(ptr) = arg
                && *ptr != DevicePtr::NULL
            {
                self.check_range(&format!("{}: argument {i}", kernel.name), *ptr, 0)?;
            }
        }
        Ok(())
    }

    fn launch_now(&self, id: KernelId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        self.bind()?;
        let kernel = self.kernels.borrow().get(id.0).cloned();
        let kernel = kernel.ok_or_else(|| refused("launch", "a kernel of another driver"))?;
        self.check_args(&kernel, args)?;
        self.allow_shared(id, geometry.shared_bytes)?;
        let mut words: Vec<u64> = args.iter().map(|a| word(a).0).collect();
        let mut pointers: Vec<*mut c_void> =
            words.iter_mut().map(|w| ptr::from_mut(w).cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (geometry.grid, geometry.block);
        // SAFETY: the function's module is loaded. The driver reads one pointer a parameter, and
        // behind each as many bytes as `check_args` compared, before it returns. Kernels see device
        // addresses only: the arguments' allocations are live.
        unsafe {
            result::launch_kernel(
                kernel.function,
                (gx, gy, gz),
                (bx, by, bz),
                geometry.shared_bytes,
                self.stream,
                &mut pointers,
            )
        }
        .map_err(|e| {
            let why = format!(
                "grid {:?}, block {:?}, {} bytes of shared memory: {}",
                geometry.grid,
                geometry.block,
                geometry.shared_bytes,
                reason(e)
            );
            refused(&kernel.name, why)
        })
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

    fn event(&self, id: EventId) -> Result<sys::CUevent> {
        let event = self.events.borrow().get(id.0).copied();
        event.ok_or_else(|| refused("elapsed_ms", "an event of another driver"))
    }
}

impl Driver for GpuDriver {
    fn name(&self) -> String {
        format!("{} (cuda:{})", self.gpu.name, self.gpu.index)
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

    fn kernel(&self, file: &KernelFile, name: &str) -> Result<KernelId> {
        self.bind()?;
        let mut modules = self.modules.borrow_mut();
        let key = file.fatbin.as_ptr();
        if !modules.contains_key(&key) {
            let handle = self.load(file)?;
            let kernels = HashMap::new();
            modules.insert(key, Module { handle, kernels });
        }
        let module = modules.get_mut(&key).expect("inserted above");
        if let Some(id) = module.kernels.get(name) {
            return Ok(*id);
        }
        let kernel = self.find(module.handle, name)?;
        let mut kernels = self.kernels.borrow_mut();
        let id = KernelId(kernels.len());
        kernels.push(kernel);
        module.kernels.insert(name.into(), id);
        Ok(id)
    }

    fn launch(&self, kernel: KernelId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        self.noted("launch", self.launch_now(kernel, geometry, args))
    }

    fn record(&self) -> Result<EventId> {
        self.bind_outside_capture("record")?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(failed("cuEventCreate"))?;
        let mut events = self.events.borrow_mut();
        events.push(event);
        // SAFETY: event and stream live as long as `self`.
        unsafe { result::event::record(event, self.stream) }.map_err(failed("record"))?;
        Ok(EventId(events.len() - 1))
    }

    fn elapsed_ms(&self, from: EventId, to: EventId) -> Result<f32> {
        self.bind_outside_capture("elapsed_ms")?;
        let (from, to) = (self.event(from)?, self.event(to)?);
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
                    .map_err(failed("end_capture"))
            },
            (_, Ok(_)) => Err(refused("end_capture", "the driver gave no graph")),
            (_, Err(e)) => Err(failed("end_capture")(e)),
        };
        if let Ok(graph) = graph
            && !graph.is_null()
        {
            // SAFETY: what was instantiated from it does not need it.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        let mut graphs = self.graphs.borrow_mut();
        graphs.push(exec?);
        Ok(GraphId(graphs.len() - 1))
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        self.bind_outside_capture("replay")?;
        let exec = self.graphs.borrow().get(graph.0).copied();
        let exec = exec.ok_or_else(|| refused("replay", "a graph of another driver"))?;
        // SAFETY: graph and stream live as long as `self`.
        unsafe { result::graph::launch(exec, self.stream) }.map_err(failed("replay"))
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
            for graph in self.graphs.get_mut().drain(..) {
                let _ = result::graph::exec_destroy(graph);
            }
            for event in self.events.get_mut().drain(..) {
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

/// An argument's bytes in the low end of a word (every host of a GPU is little endian), and their
/// count.
fn word(arg: &Arg) -> (u64, usize) {
    match *arg {
        Arg::Ptr(p) => (p.0, 8),
        Arg::I32(x) => (u64::from(x.cast_unsigned()), 4),
        Arg::U32(x) => (u64::from(x), 4),
        Arg::I64(x) => (x.cast_unsigned(), 8),
        Arg::U64(x) => (x, 8),
        Arg::F32(x) => (u64::from(x.to_bits()), 4),
    }
}

/// Bytes of each parameter of a loaded function.
fn params(function: sys::CUfunction) -> std::result::Result<Vec<usize>, CudaError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the caller's function is loaded; the two words are written.
        let got = unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) };
        match got {
            CUresult::CUDA_SUCCESS => sizes.push(size),
            // There is no parameter of that index.
            CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            other => return Err(CudaError(other)),
        }
    }
}

/// Whether the bytes begin with the header of a fat binary and are as long as it says: magic (u32),
/// version (u16), header bytes (u16), bytes after the header (u64).
fn is_fatbin(bytes: &[u8]) -> bool {
    let Some((header, _)) = bytes.split_first_chunk::<16>() else {
        return false;
    };
    let field = |at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&header[at..at + len]);
        u64::from_le_bytes(word)
    };
    let end = field(6, 2).checked_add(field(8, 8));
    field(0, 4) == u64::from(FATBIN_MAGIC) && end.is_some_and(|end| end <= bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::embedded;

    #[test]
    fn arguments_fill_the_low_end_of_a_word() {
        assert_eq!(word(&Arg::I32(-1)), (0xFFFF_FFFF, 4));
        assert_eq!(word(&Arg::F32(1.0)), (0x3F80_0000, 4));
        assert_eq!(word(&Arg::I64(-2)), (u64::MAX - 1, 8));
        assert_eq!(word(&Arg::Ptr(DevicePtr(7))), (7, 8));
    }

    #[test]
    fn a_cut_fat_binary_is_told_from_a_whole_one() {
        assert!(!is_fatbin(b""));
        assert!(!is_fatbin(&[0; 64]));
        for file in embedded::FILES {
            assert!(is_fatbin(file.fatbin), "{}", file.name);
            let cut = &file.fatbin[..file.fatbin.len() - 8];
            assert!(!is_fatbin(cut), "{}", file.name);
        }
    }
}
