//! Where a command computes.

use crosstune::device::DeviceChoice;
use crosstune::engine::{Engine, EngineOptions};
use crosstune::error::Result;
use crosstune::weights::hub;
use serde::{Deserialize, Serialize};

/// Options of where to compute. None changes a result but the device, which rounds in its own way.
#[derive(clap::Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct ComputeArgs {
    /// Threads [default: all cores]. Results do not depend on it.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Where to compute: auto, cpu, cuda:N, or vm (vm:spread: no memory used twice), the GPU's
    /// kernels in a virtual machine [default: auto, the first GPU that can be used, or else the CPU].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
}

impl ComputeArgs {
    /// Opens a model there.
    ///
    /// # Arguments
    /// * `model` - A folder, or a name in the local Hugging Face cache.
    ///
    /// # Errors
    /// If it can't be read or the device can't be used.
    pub fn open(&self, model: &str) -> Result<Engine> {
        Engine::open(&hub::resolve(model)?, self.options())
    }

    /// The same for what is opened in another way.
    pub fn options(&self) -> EngineOptions {
        EngineOptions {
            threads: self.threads,
            device: self.device.unwrap_or(DeviceChoice::Auto),
        }
    }
}
