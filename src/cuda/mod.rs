//! What runs CUDA kernels: a GPU through cudarc, or the PTX virtual machine on a CPU.
//!
//! Everything above this module (launch wrappers, the executor, tests) sees only [`Driver`], so all
//! of it but [`gpu`] itself is tested where there is no GPU.

pub mod check;
pub mod device;
pub mod embedded;
pub mod gpu;
pub mod installed;
pub mod nvtx;
pub mod ops;
pub mod report;
pub mod sass;
pub mod step_params;
pub mod vm;

use crate::error::Error;

/// What a device could not do.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is no such device here.
    #[error("{0}")]
    NoDevice(String),
    /// The device has no room left.
    #[error("{device}: no room for {bytes} bytes more ({label})")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// What was asked for.
        bytes: usize,
        /// What it was for.
        label: String,
    },
    /// The device has no room for a captured list of launches; they can be launched one by one.
    #[error("{device}: no room for a captured list of launches")]
    NoRoomToCapture {
        /// The device's name.
        device: String,
    },
    /// A call that the device refused, or a kernel that failed in it.
    #[error("{call}: {reason}")]
    Failed {
        /// The driver call or the kernel.
        call: String,
        /// The device's own words; the virtual machine's name the kernel, source line and thread.
        reason: String,
    },
}

impl From<DriverError> for Error {
    /// Who asks for a device that is not there has made a mistake; the rest fails while running.
    fn from(error: DriverError) -> Error {
        match error {
            DriverError::NoDevice(why) => Error::Input(why),
            other => Error::Device(other.to_string()),
        }
    }
}

/// What a driver says of a graph that it does not have.
const NO_GRAPH: &str = "a graph of another driver, or one that was given back";

/// What a driver says of an event that it does not have.
const NO_EVENT: &str = "an event of another driver, or one that was given back";

/// A result of a driver call.
pub type Result<T> = std::result::Result<T, DriverError>;

/// An address on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No address: what a kernel gets for an absent optional argument.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// One compiled `kernels/*.cu` file.
#[derive(Clone, Copy, Debug)]
pub struct KernelFile {
    /// The file's stem.
    pub name: &'static str,
    /// Machine code for the architectures of build.rs, and PTX for later ones.
    pub fatbin: &'static [u8],
    /// What the virtual machine runs: PTX for compute_80.
    pub ptx: &'static str,
    /// What ptxas said: registers, spills and shared memory of each kernel.
    pub ptxas: &'static str,
    /// Opcodes of each kernel's machine code, as [`sass::to_text`] writes them; empty where the build
    /// found no disassembler.
    pub sass: &'static str,
}

/// A kernel of a loaded file. Valid for the driver that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId(pub usize);

/// A point in the order of launches. Valid for the driver that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(pub usize);

/// A captured list of launches. Valid for the driver that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub usize);

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What nobody has taken.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// Launch geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A kernel argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// A pointer to device memory.
    Ptr(DevicePtr),
    /// `int`
    I32(i32),
    /// `unsigned int`
    U32(u32),
    /// `long long`
    I64(i64),
    /// `unsigned long long`
    U64(u64),
    /// `float`
    F32(f32),
    /// A struct by value, or an array in one: each field at a multiple of its alignment.
    Struct(Vec<Arg>),
}

impl Arg {
    /// `n` structs of the same fields, the given ones first, then such as are all zero.
    pub fn array(mut entries: Vec<Arg>, n: usize) -> Arg {
        let blank = entries.first().map(Arg::blank);
        entries.extend(
            blank
                .into_iter()
                .cycle()
                .take(n.saturating_sub(entries.len())),
        );
        Arg::Struct(entries)
    }

    fn blank(&self) -> Arg {
        match self {
            Arg::Ptr(_) => Arg::Ptr(DevicePtr::NULL),
            Arg::I32(_) => Arg::I32(0),
            Arg::U32(_) => Arg::U32(0),
            Arg::I64(_) => Arg::I64(0),
            Arg::U64(_) => Arg::U64(0),
            Arg::F32(_) => Arg::F32(0.0),
            Arg::Struct(fields) => Arg::Struct(fields.iter().map(Arg::blank).collect()),
        }
    }

    /// What its place is a multiple of.
    fn align(&self) -> usize {
        match self {
            Arg::I32(_) | Arg::U32(_) | Arg::F32(_) => 4,
            Arg::Ptr(_) | Arg::I64(_) | Arg::U64(_) => 8,
            Arg::Struct(fields) => fields.iter().map(Arg::align).max().unwrap_or(1),
        }
    }

    /// As it lies in the kernel's argument space.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Arg::Ptr(p) => p.0.to_le_bytes().into(),
            Arg::I32(x) => x.to_le_bytes().into(),
            Arg::U32(x) => x.to_le_bytes().into(),
            Arg::I64(x) => x.to_le_bytes().into(),
            Arg::U64(x) => x.to_le_bytes().into(),
            Arg::F32(x) => x.to_le_bytes().into(),
            Arg::Struct(fields) => {
                let mut out: Vec<u8> = vec![];
                for field in fields {
                    out.resize(out.len().next_multiple_of(field.align()), 0);
                    out.extend(field.bytes());
                }
                out.resize(out.len().next_multiple_of(self.align()), 0);
                out
            }
        }
    }
}

/// A device with one queue of work. Calls return before the work is done, except
/// [`copy_out`](Driver::copy_out) and [`synchronize`](Driver::synchronize), so a failure of a kernel
/// may show at a later call.
pub trait Driver {
    /// For messages: a card's name, or the virtual machine's.
    fn name(&self) -> String;

    /// What there is of its memory.
    ///
    /// # Errors
    /// A failed call; not while capturing.
    fn memory(&self) -> Result<DeviceMemory>;

    /// Memory that nobody has written, at a multiple of 256 bytes; `label` names it in messages.
    ///
    /// # Errors
    /// Out of memory; not while capturing.
    fn alloc(&self, bytes: usize, label: &str) -> Result<DevicePtr>;

    /// Gives memory back.
    ///
    /// # Errors
    /// If `ptr` is not the start of a live allocation; not while capturing.
    fn free(&self, ptr: DevicePtr) -> Result<()>;

    /// Copies into the device.
    ///
    /// # Errors
    /// Outside an allocation; not while capturing.
    fn copy_in(&self, to: DevicePtr, from: &[u8]) -> Result<()>;

    /// Waits for all work, then copies out of the device.
    ///
    /// # Errors
    /// Outside an allocation, or a kernel before it failed; not while capturing.
    fn copy_out(&self, from: DevicePtr, to: &mut [u8]) -> Result<()>;

    /// Sets every byte. May be captured.
    ///
    /// # Errors
    /// Outside an allocation.
    fn fill(&self, ptr: DevicePtr, value: u8, bytes: usize) -> Result<()>;

    /// Copies from one place of the device to another that it does not overlap. May be captured.
    ///
    /// # Errors
    /// Outside an allocation.
    fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()>;

    /// Tells that what lies there is dead: the virtual machine takes a later read of it for a fault.
    /// Does nothing on a GPU. May be captured.
    ///
    /// # Errors
    /// Outside an allocation.
    fn forget(&self, ptr: DevicePtr, bytes: usize) -> Result<()>;

    /// A kernel of a file, loaded at first use.
    ///
    /// # Errors
    /// If the file has no such kernel or none for this device.
    fn kernel(&self, file: &KernelFile, name: &str) -> Result<KernelId>;

    /// Launches a kernel. May be captured.
    ///
    /// # Errors
    /// A geometry or arguments that the device refuses; the virtual machine runs the kernel here
    /// and tells of its faults.
    fn launch(&self, kernel: KernelId, geometry: Geometry, args: &[Arg]) -> Result<()>;

    /// Marks this point of the queue.
    ///
    /// # Errors
    /// A failed call; not while capturing.
    fn record(&self) -> Result<EventId>;

    /// Moves a mark to this point of the queue.
    ///
    /// # Errors
    /// As [`Driver::record`]; a mark of another driver, or one that was given back.
    fn record_again(&self, event: EventId) -> Result<()>;

    /// Gives a mark back.
    ///
    /// # Errors
    /// As [`Driver::record_again`].
    fn drop_event(&self, event: EventId) -> Result<()>;

    /// Milliseconds of device time between two marks; waits for the later one.
    ///
    /// # Errors
    /// A failed call; not while capturing.
    fn elapsed_ms(&self, from: EventId, to: EventId) -> Result<f32>;

    /// From here on launches and fills are noted, not run.
    ///
    /// # Errors
    /// If a capture is under way.
    fn begin_capture(&self) -> Result<()>;

    /// Ends the capture.
    ///
    /// # Errors
    /// If none is under way, or a call that can't be captured was made in it;
    /// [`DriverError::NoRoomToCapture`].
    fn end_capture(&self) -> Result<GraphId>;

    /// Runs a captured list. The memory it names must still be allocated.
    ///
    /// # Errors
    /// As for the launches in it; [`DriverError::NoRoomToCapture`] at its first run, which places it.
    fn replay(&self, graph: GraphId) -> Result<()>;

    /// Gives a captured list back, once the work under way is done.
    ///
    /// # Errors
    /// If it is not this driver's, or was given back; not while capturing.
    fn drop_graph(&self, graph: GraphId) -> Result<()>;

    /// Waits for all work.
    ///
    /// # Errors
    /// If a kernel failed.
    fn synchronize(&self) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_lies_as_a_compiler_lays_it() {
        let entry = Arg::Struct(vec![Arg::I32(1), Arg::Ptr(DevicePtr(2)), Arg::F32(1.0)]);
        let bytes = Arg::array(vec![entry], 2).bytes();
        let mut want = vec![1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        want.extend([0, 0, 0x80, 0x3F, 0, 0, 0, 0]);
        want.resize(48, 0);
        assert_eq!(bytes, want);
    }
}
