//! A device for tests: the virtual machine behind a driver that counts, and fails when told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crosstune::cuda::device::Device;
use crosstune::cuda::vm::VmDriver;
use crosstune::cuda::{
    Arg, DeviceMemory, DevicePtr, Driver, DriverError, EventId, Geometry, GraphId, KernelFile,
    KernelId, Result,
};
use crosstune::graph::plan::Reuse;

/// A virtual machine that counts, and fails when told to.
pub struct Counting {
    vm: VmDriver,
    counts: Arc<Counts>,
}

/// What was counted, and when to fail.
pub struct Counts {
    /// Launches so far.
    pub launches: AtomicUsize,
    /// The launch at which the device is lost.
    pub lost_at: AtomicUsize,
    /// The launch that panics.
    pub panic_at: AtomicUsize,
    /// The most bytes of an arena.
    pub room: AtomicUsize,
    /// Captured lists that were not given back.
    pub graphs: AtomicUsize,
    /// Captured lists that there will be no room for.
    pub no_graphs: AtomicUsize,
    /// Events that were not given back.
    pub events: AtomicUsize,
    /// Allocations that were given back.
    pub frees: AtomicUsize,
}

impl Counting {
    /// A device, and its counts.
    pub fn open(vm: VmDriver, reuse: Reuse) -> (Device, Arc<Counts>) {
        let counts = Arc::new(Counts {
            launches: AtomicUsize::new(0),
            lost_at: AtomicUsize::new(usize::MAX),
            panic_at: AtomicUsize::new(usize::MAX),
            room: AtomicUsize::new(usize::MAX),
            graphs: AtomicUsize::new(0),
            no_graphs: AtomicUsize::new(0),
            events: AtomicUsize::new(0),
            frees: AtomicUsize::new(0),
        });
        let counting = Counting {
            vm,
            counts: counts.clone(),
        };
        (Device::new(Box::new(counting), reuse), counts)
    }
}

impl Driver for Counting {
    fn name(&self) -> String {
        self.vm.name()
    }
    fn memory(&self) -> Result<DeviceMemory> {
        self.vm.memory()
    }
    fn alloc(&self, bytes: usize, label: &str) -> Result<DevicePtr> {
        if label == "activations" && bytes > self.counts.room.load(Ordering::Relaxed) {
            return Err(DriverError::OutOfMemory {
                device: self.name(),
                bytes,
                label: label.into(),
            });
        }
        self.vm.alloc(bytes, label)
    }
    fn free(&self, ptr: DevicePtr) -> Result<()> {
        counted(self.vm.free(ptr), &self.counts.frees)
    }
    fn copy_in(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        self.vm.copy_in(to, from)
    }
    fn copy_out(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.vm.copy_out(from, to)
    }
    fn fill(&self, ptr: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        self.vm.fill(ptr, value, bytes)
    }
    fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.vm.copy(to, from, bytes)
    }
    fn forget(&self, ptr: DevicePtr, bytes: usize) -> Result<()> {
        self.vm.forget(ptr, bytes)
    }
    fn kernel(&self, file: &KernelFile, name: &str) -> Result<KernelId> {
        self.vm.kernel(file, name)
    }
    fn launch(&self, kernel: KernelId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        let n = self.counts.launches.fetch_add(1, Ordering::Relaxed);
        if n == self.counts.lost_at.load(Ordering::Relaxed) {
            return Err(DriverError::Failed {
                call: "launch".into(),
                reason: "the device was lost".into(),
            });
        }
        let panics = n == self.counts.panic_at.load(Ordering::Relaxed);
        assert!(!panics, "launch {n} panics, as it was told to");
        self.vm.launch(kernel, geometry, args)
    }
    fn record(&self) -> Result<EventId> {
        counted(self.vm.record(), &self.counts.events)
    }
    fn drop_event(&self, event: EventId) -> Result<()> {
        let dropped = self.vm.drop_event(event);
        let n = dropped.is_ok().into();
        self.counts.events.fetch_sub(n, Ordering::Relaxed);
        dropped
    }
    fn record_again(&self, event: EventId) -> Result<()> {
        self.vm.record_again(event)
    }
    fn elapsed_ms(&self, from: EventId, to: EventId) -> Result<f32> {
        self.vm.elapsed_ms(from, to)
    }
    fn begin_capture(&self) -> Result<()> {
        self.vm.begin_capture()
    }
    fn end_capture(&self) -> Result<GraphId> {
        let graph = self.vm.end_capture();
        let left = self.counts.no_graphs.load(Ordering::Relaxed);
        if left > 0 {
            self.counts.no_graphs.store(left - 1, Ordering::Relaxed);
            self.vm.drop_graph(graph?)?;
            return Err(DriverError::NoRoomToCapture {
                device: self.name(),
            });
        }
        counted(graph, &self.counts.graphs)
    }
    fn drop_graph(&self, graph: GraphId) -> Result<()> {
        let dropped = self.vm.drop_graph(graph);
        self.counts
            .graphs
            .fetch_sub(dropped.is_ok().into(), Ordering::Relaxed);
        dropped
    }
    fn replay(&self, graph: GraphId) -> Result<()> {
        self.vm.replay(graph)
    }
    fn synchronize(&self) -> Result<()> {
        self.vm.synchronize()
    }
}

/// One more, if it was done.
fn counted<T>(done: Result<T>, count: &AtomicUsize) -> Result<T> {
    count.fetch_add(done.is_ok().into(), Ordering::Relaxed);
    done
}
