//! An opened device and the frozen weights on it, shared by everything that runs there.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use half::f16;

use super::gpu::GpuDriver;
use super::ops::DeviceTensor;
use super::vm::{VmDriver, VmOptions};
use super::{DeviceMemory, DevicePtr, Driver};
use crate::bad_input;
use crate::device::VmArena;
use crate::error::Result;
use crate::graph::plan::Reuse;
use crate::graph::{Dim, Graph, Role, Value};
use crate::weights::view::TensorView;

/// Numbers that are converted and copied at once.
const COPY: usize = 1 << 20;

/// Where the frozen values of a model lie, by their names. All that use one device take the same.
pub type Source<'a> = &'a dyn Fn(&str) -> Result<TensorView<'a>>;

/// A device that several executors use in turn.
#[derive(Clone)]
pub struct Device {
    opened: Arc<Mutex<Opened>>,
    reuse: Reuse,
    is_virtual: bool,
}

/// What one user at a time may use.
pub struct Opened {
    driver: Box<dyn Driver + Send>,
    /// By the name of their value: a model is on the device once, whatever runs it.
    weights: HashMap<String, DeviceTensor>,
}

impl Device {
    /// The GPU of that index.
    ///
    /// # Errors
    /// See [`GpuDriver::open`].
    pub fn gpu(index: usize) -> Result<Device> {
        let driver = GpuDriver::open(index)?;
        Ok(Device::new(Box::new(driver), Reuse::Packed))
    }

    /// A virtual machine.
    pub fn vm(arena: VmArena) -> Device {
        let driver = VmDriver::new(VmOptions::default());
        let reuse = match arena {
            VmArena::Packed => Reuse::Packed,
            VmArena::Spread => Reuse::Spread,
        };
        Device {
            is_virtual: true,
            ..Device::new(Box::new(driver), reuse)
        }
    }

    /// What runs on `driver`, its values laid out by `reuse`.
    pub fn new(driver: Box<dyn Driver + Send>, reuse: Reuse) -> Device {
        let opened = Opened {
            driver,
            weights: HashMap::new(),
        };
        Device {
            opened: Arc::new(Mutex::new(opened)),
            reuse,
            is_virtual: false,
        }
    }

    /// For messages: a card's name, or the virtual machine's.
    pub fn name(&self) -> String {
        self.lock().driver.name()
    }

    /// Whether it is a virtual machine of [`Device::vm`].
    pub fn is_virtual(&self) -> bool {
        self.is_virtual
    }

    /// What there is of its memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn memory(&self) -> Result<DeviceMemory> {
        Ok(self.lock().driver.memory()?)
    }

    /// Bytes that the frozen values of a graph take which are not there yet.
    pub fn missing_bytes(&self, graph: &Graph) -> u64 {
        let opened = self.lock();
        let frozen = graph.with_role(Role::Frozen).map(|id| graph.get(id));
        let missing = frozen.filter(|value| !opened.weights.contains_key(&value.name));
        missing
            .map(|value| f16_bytes(&unplaced(value)) as u64)
            .sum()
    }

    /// What `run` gives, and the device's time from its first launch to its last, by events around it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn timed<T>(&self, run: impl FnOnce() -> T) -> Result<(T, Duration)> {
        let from = self.lock().driver.record()?;
        let out = run();
        let opened = self.lock();
        let to = opened.driver.record()?;
        let ms = opened.driver.elapsed_ms(from, to)?;
        for event in [from, to] {
            opened.driver.drop_event(event)?;
        }
        Ok((out, Duration::from_secs_f64(f64::from(ms) / 1e3)))
    }

    /// How values are laid out.
    pub fn reuse(&self) -> Reuse {
        self.reuse
    }

    /// Waits for whoever uses it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Opened> {
        // What a panic left on the device is no one's: buffers are written before they are read.
        self.opened.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Opened {
    /// What launches kernels.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// A frozen value of a graph, f16 with rows padded to 8; copied from where it lies at first
    /// use.
    ///
    /// # Errors
    /// If it is nowhere, or holds a number that f16 can't; if the device has no room.
    pub fn weight(&mut self, source: Source<'_>, value: &Value) -> Result<DeviceTensor> {
        if let Some(t) = self.weights.get(&value.name) {
            return Ok(*t);
        }
        let view = source(&value.name)?;
        let shape = unplaced(value);
        let ptr = self.driver.alloc(f16_bytes(&shape), &value.name)?;
        let t = DeviceTensor { ptr, ..shape };
        if let Err(error) = copy_rows(self.driver(), &value.name, view, &t) {
            // The error that is told is the one that came first.
            let _ = self.driver.free(ptr);
            return Err(error);
        }
        self.weights.insert(value.name.clone(), t);
        Ok(t)
    }
}

impl Opened {
    /// The weights that are there.
    pub fn weight_names(&self) -> HashSet<String> {
        self.weights.keys().cloned().collect()
    }

    /// Gives back every weight but these, which nothing may use any more.
    ///
    /// # Errors
    /// The first call that failed; the others were made.
    pub fn keep_weights(&mut self, names: &HashSet<String>) -> super::Result<()> {
        let mut done = Ok(());
        let (driver, weights) = (&self.driver, &mut self.weights);
        weights.retain(|name, t| {
            let keep = names.contains(name);
            if !keep {
                done = std::mem::replace(&mut done, Ok(())).and(driver.free(t.ptr));
            }
            keep
        });
        done
    }
}

fn f16_bytes(t: &DeviceTensor) -> usize {
    t.len() * 2
}

/// A frozen value, whose extents are all fixed, without a place.
fn unplaced(value: &Value) -> DeviceTensor {
    let size = |d: &Dim| match d {
        Dim::N(n) => *n,
        _ => 1,
    };
    let (last, first) = value
        .shape
        .split_last()
        .map_or((1, &[][..]), |(l, f)| (size(l), f));
    DeviceTensor::f16(DevicePtr::NULL, first.iter().map(size).product(), last)
}

fn copy_rows(
    driver: &dyn Driver,
    name: &str,
    view: TensorView<'_>,
    to: &DeviceTensor,
) -> Result<()> {
    let row_bytes = to.cols * view.dtype.size();
    let at_once = (COPY / to.ld).max(1);
    for (i, bytes) in view.bytes.chunks(at_once * row_bytes).enumerate() {
        let values = TensorView { bytes, ..view }.to_f32();
        if let Some(x) = values
            .iter()
            .find(|x| x.is_finite() && x.abs() > f16::MAX.to_f32())
        {
            return Err(bad_input!(
                "{name} holds {x}, which f16 can't: this model runs on the CPU alone (--device cpu)"
            ));
        }
        let mut padded = vec![f16::ZERO; values.len() / to.cols * to.ld];
        for (row, values) in padded.chunks_mut(to.ld).zip(values.chunks(to.cols)) {
            row.iter_mut()
                .zip(values)
                .for_each(|(y, x)| *y = f16::from_f32(*x));
        }
        let at = to.ptr.offset(i * at_once * to.ld * 2);
        driver.copy_in(at, bytemuck::cast_slice(&padded))?;
    }
    Ok(())
}
