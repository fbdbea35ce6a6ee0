//! `--device`: where a command computes.

use std::str::FromStr;

/// What a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU that can be used, or else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that index.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let index = text.strip_prefix("cuda:").map(str::parse);
        match (text, index) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            (_, Some(Ok(index))) => Ok(Device::Cuda(index)),
            _ => Err("expected auto, cpu or cuda:N, such as cuda:0".into()),
        }
    }
}
