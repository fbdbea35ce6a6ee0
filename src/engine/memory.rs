//! How much memory training may take where an engine computes.

use crate::device::DeviceChoice;

/// Memory where an engine computes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingMemory {
    /// Where that is.
    pub device: DeviceChoice,
    /// What the user allows.
    pub wanted: Option<u64>,
    /// What is free there; on a CPU all of this machine's.
    pub free: u64,
    /// What the model's weights will take of it: nothing on a CPU, which maps their file.
    pub weights: u64,
}

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// Something that is sized by it.
    Planned,
    /// Something that was sized before, maybe by another process that found more.
    Begun,
}

impl TrainingMemory {
    /// Bytes that training may take beside the model's weights: what the user allows, or of this
    /// machine's half for what is planned and all for what was begun. On a device nine tenths of what
    /// the weights leave, or all of it, are the limit: the driver needs some for kernels and captured
    /// steps.
    pub fn bytes(&self, share: Share) -> u64 {
        match (self.wanted, self.device) {
            (Some(wanted), DeviceChoice::Cpu) => wanted,
            (wanted, _) => self.most(share).min(wanted.unwrap_or(u64::MAX)),
        }
    }

    /// Whether the user's word is the limit.
    pub fn is_wanted(&self, share: Share) -> bool {
        self.wanted == Some(self.bytes(share))
    }

    /// In words, where [`TrainingMemory::bytes`] come from.
    pub fn source(&self, share: Share) -> String {
        let free = gib(self.free);
        match (self.device, share) {
            _ if self.is_wanted(share) => "--memory".into(),
            (DeviceChoice::Cpu, Share::Planned) => format!("half of this machine's {free}"),
            (DeviceChoice::Cpu, Share::Begun) => "all of this machine's".into(),
            (device, share) => {
                let tenth = match share {
                    Share::Planned => ", a tenth of the rest is left to the driver",
                    Share::Begun => "",
                };
                let weights = gib(self.weights);
                format!("{device} has {free} free, the model takes {weights}{tenth}")
            }
        }
    }

    fn most(&self, share: Share) -> u64 {
        let left = self.free.saturating_sub(self.weights);
        match (self.device, share) {
            (_, Share::Begun) => left,
            (DeviceChoice::Cpu, Share::Planned) => left / 2,
            (_, Share::Planned) => left / 10 * 9,
        }
    }
}

/// Bytes for messages.
pub fn gib(bytes: u64) -> String {
    format!("{:.3} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(device: DeviceChoice, wanted: Option<u64>) -> TrainingMemory {
        TrainingMemory {
            device,
            wanted: wanted.map(|gib| gib << 30),
            free: 100 << 30,
            weights: if device == DeviceChoice::Cpu {
                0
            } else {
                20 << 30
            },
        }
    }

    #[test]
    fn a_device_has_what_it_has_and_a_cpu_what_is_allowed() {
        use Share::{Begun, Planned};
        let gpu = DeviceChoice::Cuda(1);
        for (device, wanted, share, gib, source) in [
            (
                gpu,
                None,
                Planned,
                72,
                "cuda:1 has 100.000 GiB free, the model takes 20.000 GiB, a",
            ),
            (
                gpu,
                None,
                Begun,
                80,
                "cuda:1 has 100.000 GiB free, the model takes 20.000 GiB",
            ),
            (gpu, Some(90), Begun, 80, "cuda:1 has"),
            (gpu, Some(7), Planned, 7, "--memory"),
            (gpu, Some(7), Begun, 7, "--memory"),
            (
                DeviceChoice::Cpu,
                None,
                Planned,
                50,
                "half of this machine's 100.000 GiB",
            ),
            (DeviceChoice::Cpu, None, Begun, 100, "all of this machine's"),
            (DeviceChoice::Cpu, Some(200), Planned, 200, "--memory"),
        ] {
            let memory = memory(device, wanted);
            let case = format!("{memory:?} {share:?}");
            let bytes = memory.bytes(share);
            // A tenth is rounded down.
            assert!(bytes.abs_diff(gib << 30) < 10, "{case}: {bytes}");
            let said = memory.source(share);
            assert!(said.starts_with(source), "{case}: {said}");
            assert_eq!(memory.is_wanted(share), source == "--memory", "{case}");
        }
        let full = TrainingMemory {
            weights: 101 << 30,
            ..memory(gpu, Some(7))
        };
        assert_eq!((full.bytes(Planned), full.bytes(Begun)), (0, 0));
    }
}
