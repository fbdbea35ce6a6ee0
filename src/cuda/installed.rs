//! What of CUDA is installed on this machine. Asking makes no context on any GPU.
#![allow(unsafe_code)]

use cudarc::driver::{result, sys};

use super::{DriverError, Result, embedded};

/// The oldest driver whose calls [`super::gpu`] makes: cudarc panics where one is missing.
const OLDEST_DRIVER: (i32, i32) = (13, 0);
/// The oldest compute capability that the kernels run on.
const OLDEST_GPU: (i32, i32) = (8, 0);

/// A driver and its GPUs.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The newest CUDA that the driver supports: major, minor.
    pub version: (i32, i32),
    /// By index.
    pub gpus: Vec<Gpu>,
}

/// A GPU that the driver sees.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// As in `cuda:0`.
    pub index: usize,
    /// The card's name.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: usize,
    /// Major, minor.
    pub compute_capability: (i32, i32),
}

/// Loads the driver and asks what it sees.
///
/// # Errors
/// [`DriverError::NoDevice`] if there is no driver, or it sees no GPU.
pub fn installed() -> Result<Installed> {
    // SAFETY: opens and closes the driver's library; nothing of it is kept.
    if !unsafe { sys::is_culib_present() } {
        return Err(DriverError::NoDevice(
            "no CUDA driver on this machine (libcuda.so.1 was not found): install NVIDIA's driver \
             580 or later, or use the CPU"
                .into(),
        ));
    }
    let no_device = |what: &'static str| {
        move |e: result::DriverError| {
            DriverError::NoDevice(format!("the CUDA driver {what}: {}", reason(e)))
        }
    };
    result::init().map_err(no_device(
        "does not start (see nvidia-smi and CUDA_VISIBLE_DEVICES)",
    ))?;
    let mut version = 0;
    // SAFETY: writes the one int it is given.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(no_device("does not tell its version"))?;
    let count = result::device::get_count().map_err(no_device("counts no GPUs"))?;
    let gpus = (0..count)
        .map(|index| gpu(index).map_err(no_device("does not describe a GPU")))
        .collect::<Result<_>>()?;
    Ok(Installed {
        version: (version / 1000, version % 1000 / 10),
        gpus,
    })
}

impl Installed {
    /// The GPU of that index, if the kernels can run on it.
    ///
    /// # Errors
    /// [`DriverError::NoDevice`] if there is none, or it or the driver is too old.
    pub fn usable(&self, index: usize) -> Result<&Gpu> {
        let no_device = |reason: String| DriverError::NoDevice(format!("cuda:{index}: {reason}"));
        let gpu = self.gpus.get(index).ok_or_else(|| {
            no_device(match self.gpus.len() {
                0 => "the CUDA driver sees no GPU on this machine".into(),
                1 => "this machine has one GPU, cuda:0".into(),
                n => format!("this machine has {n} GPUs, cuda:0 to cuda:{}", n - 1),
            })
        })?;
        // A driver runs what compilers of its own major version made.
        let compiler = embedded::NVCC_RELEASE.split('.').next();
        let compiler = compiler.and_then(|n| n.parse().ok()).unwrap_or(0);
        let needed = OLDEST_DRIVER.max((compiler, 0));
        if self.version < needed {
            let ((major, minor), (needed, _)) = (self.version, needed);
            return Err(no_device(format!(
                "the driver supports CUDA {major}.{minor}, this binary needs {needed}.0; install a \
                 newer one (580 or later for CUDA 13)"
            )));
        }
        let (major, minor) = gpu.compute_capability;
        if gpu.compute_capability < OLDEST_GPU {
            return Err(no_device(format!(
                "{} has compute capability {major}.{minor}, expected {}.{} or higher",
                gpu.name, OLDEST_GPU.0, OLDEST_GPU.1
            )));
        }
        Ok(gpu)
    }
}

fn gpu(index: i32) -> std::result::Result<Gpu, result::DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(index)?;
    // SAFETY: `device` came from `device::get` on the line above.
    let (memory_bytes, major, minor) = unsafe {
        (
            result::device::total_mem(device)?,
            result::device::get_attribute(device, MAJOR)?,
            result::device::get_attribute(device, MINOR)?,
        )
    };
    Ok(Gpu {
        index: index as usize,
        name: result::device::get_name(device)?,
        memory_bytes,
        compute_capability: (major, minor),
    })
}

/// The driver's own words.
pub(super) fn reason(error: result::DriverError) -> String {
    let words = error.error_string().map(|s| s.to_string_lossy());
    let name = error.error_name().map(|s| s.to_string_lossy());
    match (words, name) {
        (Ok(words), Ok(name)) => format!("{words} ({name})"),
        _ => format!("{:?}", error.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(version: (i32, i32), capabilities: &[(i32, i32)]) -> Installed {
        let gpu = |(index, &compute_capability)| Gpu {
            index,
            name: "a card".into(),
            memory_bytes: 1 << 30,
            compute_capability,
        };
        Installed {
            version,
            gpus: capabilities.iter().enumerate().map(gpu).collect(),
        }
    }

    #[test]
    fn a_device_that_cannot_be_used_is_named_with_the_reason() {
        let why = |m: Installed, index| m.usable(index).expect_err("unusable").to_string();
        let none = why(machine((13, 0), &[]), 0);
        assert_eq!(none, "cuda:0: the CUDA driver sees no GPU on this machine");
        let far = why(machine((13, 0), &[(9, 0), (9, 0)]), 2);
        assert_eq!(far, "cuda:2: this machine has 2 GPUs, cuda:0 to cuda:1");
        let driver = why(machine((12, 4), &[(9, 0)]), 0);
        assert!(driver.contains("supports CUDA 12.4, this binary needs"));
        let old = why(machine((99, 0), &[(7, 5)]), 0);
        assert!(old.contains("a card has compute capability 7.5, expected 8.0"));
        assert!(machine((99, 0), &[(7, 5), (8, 0)]).usable(1).is_ok());
    }
}
