//! Where a model computes: what a user asks for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A device as a user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU that can be used, or else the CPU.
    Auto,
    /// This machine's cores.
    #[default]
    Cpu,
    /// The GPU of that index.
    Cuda(usize),
    /// The PTX virtual machine: the GPU's kernels on one core, each access checked. For tests of
    /// the kernels, thousands of times slower than a GPU.
    Vm(VmArena),
}

/// How the virtual machine lays out activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmArena {
    /// As on a GPU: space is reused as soon as its value has died.
    #[default]
    Packed,
    /// Every value has an allocation of its own: a kernel that strays is found at once.
    Spread,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let index = text.strip_prefix("cuda:").map(str::parse);
        match (text, index) {
            ("auto", _) => Ok(DeviceChoice::Auto),
            ("cpu", _) => Ok(DeviceChoice::Cpu),
            ("vm" | "vm:packed", _) => Ok(DeviceChoice::Vm(VmArena::Packed)),
            ("vm:spread", _) => Ok(DeviceChoice::Vm(VmArena::Spread)),
            (_, Some(Ok(index))) => Ok(DeviceChoice::Cuda(index)),
            _ => Err("expected auto, cpu, cuda:N such as cuda:0, vm or vm:spread".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceChoice::Vm(VmArena::Packed) => f.write_str("vm"),
            DeviceChoice::Vm(VmArena::Spread) => f.write_str("vm:spread"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<DeviceChoice, String> {
        text.parse()
            .map_err(|e| format!("device: found `{text}`, {e}"))
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

/// All of this machine's memory in bytes, where the system tells it as Linux does.
pub fn host_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The same, or what is taken for it where the system does not tell.
pub(crate) fn host_memory() -> u64 {
    host_memory_bytes().unwrap_or(8 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_round() {
        for name in ["auto", "cpu", "cuda:0", "cuda:17", "vm", "vm:spread"] {
            let choice: DeviceChoice = name.parse().expect(name);
            assert_eq!(choice.to_string(), name);
        }
        for name in ["", "gpu", "cuda", "cuda:", "cuda:-1", "vm:", "VM"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }
}
