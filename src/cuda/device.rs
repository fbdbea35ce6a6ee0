//! An opened device and the frozen weights on it, shared by everything that runs there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use half::f16;

use super::gpu::GpuDriver;
use super::ops::DeviceTensor;
use super::vm::{VmDriver, VmOptions};
use super::{DevicePtr, Driver};
use crate::bad_input;
use crate::device::VmArena;
use crate::error::Result;
use crate::graph::plan::Reuse;
use crate::graph::{Dim, Value};
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
        let (rows, cols) = extents(value);
        let view = source(&value.name)?;
        let shape = DeviceTensor::f16(DevicePtr::NULL, rows, cols);
        let ptr = self.driver.alloc(shape.len() * 2, &value.name)?;
        let t = DeviceTensor { ptr, ..shape };
        copy_rows(self.driver(), &value.name, view, &t)?;
        self.weights.insert(value.name.clone(), t);
        Ok(t)
    }
}

/// Rows and columns of a frozen value, whose extents are all fixed.
fn extents(value: &Value) -> (usize, usize) {
    let size = |d: &Dim| match d {
        Dim::N(n) => *n,
        _ => 1,
    };
    let (last, first) = value
        .shape
        .split_last()
        .map_or((1, &[][..]), |(l, f)| (size(l), f));
    (first.iter().map(size).product(), last)
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
