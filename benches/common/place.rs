//! Where benches run: the CPU, or the device that `CROSSTUNE_TEST_DEVICE` names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crosstune::exec::Executor;
use crosstune::exec::Frozen;
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::state::TrainState;
use crosstune::graph::Graph;
use crosstune::graph::cost::Numbers;
use crosstune::profile::ceiling::{self, Ceilings};
use crosstune::profile::report::Place as Described;

#[cfg(feature = "cuda")]
pub use on_device::OnDevice;

/// Threads on a CPU.
pub const THREADS: usize = 2;

/// Where a bench runs.
pub enum Place {
    Cpu,
    #[cfg(feature = "cuda")]
    Device(Box<OnDevice>),
}

/// Whether this is a run of all benches once, on tiny shapes, to see that they work: criterion's
/// test mode, and every run in the virtual machine.
pub fn once() -> bool {
    !std::env::args().any(|a| a == "--bench") || asked().as_deref() == Some("vm")
}

fn asked() -> Option<String> {
    std::env::var("CROSSTUNE_TEST_DEVICE").ok()
}

/// A pool of threads.
pub fn threads(n: usize) -> Arc<rayon::ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(n);
    Arc::new(builder.build().expect("threads"))
}

impl Place {
    /// The place of this run, anew: weights of one rig are not another's.
    pub fn open() -> Place {
        match asked() {
            None => Place::Cpu,
            #[cfg(feature = "cuda")]
            Some(name) => Place::Device(Box::new(OnDevice::open(&name))),
            #[cfg(not(feature = "cuda"))]
            Some(name) => panic!("CROSSTUNE_TEST_DEVICE is {name}, but feature cuda is off"),
        }
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Place::Cpu => "CPU".into(),
            #[cfg(feature = "cuda")]
            Place::Device(device) => device.name(),
        }
    }

    /// As a profile names it.
    pub fn describe(&self, threads: usize) -> Described {
        Described {
            device: self.name(),
            threads,
            virtual_machine: asked().as_deref() == Some("vm"),
        }
    }

    /// What it can at most.
    pub fn ceilings(&self, n_threads: usize) -> Ceilings {
        match self {
            Place::Cpu => ceiling::of_pool(&threads(n_threads)),
            #[cfg(feature = "cuda")]
            Place::Device(device) => ceiling::of_device(device).expect("ceilings"),
        }
    }

    pub fn numbers(&self) -> Numbers {
        match self {
            Place::Cpu => Numbers::F32,
            #[cfg(feature = "cuda")]
            Place::Device(_) => Numbers::F16,
        }
    }

    pub fn is_device(&self) -> bool {
        !matches!(self, Place::Cpu)
    }

    /// Sets of inputs that take turns.
    pub fn sets(&self) -> usize {
        if self.is_device() && !once() { 3 } else { 1 }
    }

    /// A device gives gradients a place only where an optimiser spends them, and they begin as
    /// nothing.
    pub fn complete(&self, graph: &mut Graph) {
        #[cfg(feature = "cuda")]
        if self.is_device() {
            on_device::complete(graph);
        }
        #[cfg(not(feature = "cuda"))]
        let _ = graph;
    }

    pub fn executor(
        &self,
        graph: &Arc<Graph>,
        frozen: &Frozen,
        state: &TrainState,
        pool: Arc<rayon::ThreadPool>,
    ) -> Box<dyn Executor + Send> {
        match self {
            Place::Cpu => {
                let frozen = Arc::new(frozen.clone());
                Box::new(CpuExecutor::new(graph.clone(), frozen, state, pool))
            }
            #[cfg(feature = "cuda")]
            Place::Device(device) => Box::new(device.executor(graph, frozen, state)),
        }
    }

    /// Seconds of `run`: on a GPU the device's by events around it, its L2 flushed before; elsewhere the
    /// clock's.
    pub fn time(&self, run: impl FnOnce()) -> Duration {
        self.flush();
        match self {
            #[cfg(feature = "cuda")]
            Place::Device(device) if !device.is_virtual() => {
                device.timed(run).expect("the device's time").1
            }
            _ => {
                let start = Instant::now();
                run();
                start.elapsed()
            }
        }
    }

    /// Makes sure that a GPU's L2 holds nothing of the bench.
    pub fn flush(&self) {
        #[cfg(feature = "cuda")]
        if let Place::Device(device) = self {
            device.flush();
        }
    }
}

#[cfg(feature = "cuda")]
mod on_device {
    use std::cell::Cell;
    use std::ops::Deref;
    use std::sync::Arc;

    use crosstune::cuda::device::Device;
    use crosstune::cuda::gpu::GpuDriver;
    use crosstune::cuda::{DevicePtr, Driver};
    use crosstune::device::{DeviceChoice, VmArena};
    use crosstune::exec::Frozen;
    use crosstune::exec::cuda::CudaExecutor;
    use crosstune::exec::state::TrainState;
    use crosstune::graph::{Graph, Role};
    use crosstune::ops::Op;
    use crosstune::ops::adam::{AdamStep, GradNorm, ZeroGrads};
    use crosstune::tensor::Dtype;
    use crosstune::weights::view::TensorView;

    /// More than the L2 cache of any GPU.
    const FLUSH: usize = 256 << 20;

    /// A device, and on a GPU memory to flush its L2 with.
    pub struct OnDevice {
        device: Device,
        flush: Option<(GpuDriver, DevicePtr)>,
        flushes: Cell<u8>,
    }

    impl Deref for OnDevice {
        type Target = Device;

        fn deref(&self) -> &Device {
            &self.device
        }
    }

    impl OnDevice {
        pub fn open(name: &str) -> OnDevice {
            let choice: DeviceChoice = name.parse().expect("CROSSTUNE_TEST_DEVICE");
            let (device, flush) = match choice {
                DeviceChoice::Vm(_) => (Device::vm(VmArena::Packed), None),
                DeviceChoice::Cuda(index) => {
                    let driver = GpuDriver::open(index).expect("the GPU");
                    let memory = driver.alloc(FLUSH, "flush").expect("room");
                    let device = Device::gpu(index).expect("the GPU");
                    (device, Some((driver, memory)))
                }
                other => panic!("CROSSTUNE_TEST_DEVICE is {other}, expected cuda:N or vm"),
            };
            OnDevice {
                device,
                flush,
                flushes: Cell::new(0),
            }
        }

        pub fn executor(
            &self,
            graph: &Arc<Graph>,
            frozen: &Frozen,
            state: &TrainState,
        ) -> CudaExecutor {
            let source = |name: &str| {
                let values = frozen.get(name).expect("a frozen value");
                Ok(TensorView {
                    dtype: Dtype::F32,
                    shape: &[],
                    bytes: bytemuck::cast_slice(values),
                })
            };
            CudaExecutor::new(&self.device, &source, graph.clone(), state).expect("bound")
        }

        pub fn flush(&self) {
            if let Some((driver, memory)) = &self.flush {
                // Another value each time: nothing may find that it is there already.
                self.flushes.set(self.flushes.get().wrapping_add(1));
                let filled = driver.fill(*memory, self.flushes.get(), FLUSH);
                filled.and_then(|()| driver.synchronize()).expect("flushed");
            }
        }
    }

    pub fn complete(graph: &mut Graph) {
        if graph.with_role(Role::Grad).next().is_some() {
            graph.nodes.push(ZeroGrads.into());
        }
        let spent = graph.nodes.iter().any(|op| matches!(op, Op::AdamStep(_)));
        if !spent && graph.with_role(Role::Trainable).next().is_some() {
            let norm = GradNorm::push(graph, "norm");
            graph.nodes.push(AdamStep { norm }.into());
        }
    }
}
