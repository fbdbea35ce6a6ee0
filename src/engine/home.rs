//! Where an engine computes, and how much memory there is for training.

use super::memory::TrainingMemory;
use super::{ENCODE_TOKENS, Engine};
use crate::adapter::Adapter;
#[cfg(not(feature = "cuda"))]
use crate::bad_input;
#[cfg(feature = "cuda")]
use crate::cuda::{device::Device, installed::installed};
use crate::device::{DeviceChoice, host_memory};
use crate::error::Result;
#[cfg(feature = "cuda")]
use crate::exec::cuda::{memory::Room, planned_bytes};
use crate::graph::plan::{Plan, Reuse};
use crate::graph::{Bucket, Graph, Role};
use crate::train::cost::Load;
use crate::train::program::EncodeProgram;

/// Where an engine computes.
pub(super) enum Home {
    /// Its pool of threads.
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(Device),
}

impl Home {
    /// Opens a device; says which one it is.
    ///
    /// # Errors
    /// If there is none of that name here.
    #[cfg(feature = "cuda")]
    pub(super) fn open(choice: DeviceChoice) -> Result<(Home, DeviceChoice)> {
        let choice = match choice {
            // Why there is none is said by `crosstune doctor`.
            DeviceChoice::Auto => first_usable().map_or(DeviceChoice::Cpu, DeviceChoice::Cuda),
            other => other,
        };
        let home = match choice {
            DeviceChoice::Cpu | DeviceChoice::Auto => Home::Cpu,
            DeviceChoice::Cuda(index) => Home::Cuda(Device::gpu(index)?),
            DeviceChoice::Vm(arena) => Home::Cuda(Device::vm(arena)),
        };
        Ok((home, choice))
    }

    /// Opens a device; says which one it is.
    ///
    /// # Errors
    /// If it is not the CPU.
    #[cfg(not(feature = "cuda"))]
    pub(super) fn open(choice: DeviceChoice) -> Result<(Home, DeviceChoice)> {
        match choice {
            DeviceChoice::Cpu | DeviceChoice::Auto => Ok((Home::Cpu, DeviceChoice::Cpu)),
            DeviceChoice::Cuda(_) | DeviceChoice::Vm(_) => Err(bad_input!(
                "device: found {choice}, but this binary has no CUDA kernels; build it with \
                 `cargo build --release --features cuda`, or use --device cpu"
            )),
        }
    }
}

/// The first GPU that this binary can run on.
#[cfg(feature = "cuda")]
fn first_usable() -> Option<usize> {
    let machine = installed().ok()?;
    let mut gpus = machine.gpus.iter().map(|g| g.index);
    gpus.find(|i| machine.usable(*i).is_ok())
}

impl Engine {
    /// What memory there is for training, where the user allows `wanted` bytes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn training_memory(&self, wanted: Option<u64>) -> Result<TrainingMemory> {
        let (free, weights) = match &self.home {
            Home::Cpu => (host_memory(), 0),
            #[cfg(feature = "cuda")]
            Home::Cuda(device) => {
                let model = &self.model;
                let tower = EncodeProgram::new(&model.config, model.head, &Adapter::default());
                (device.memory()?.free, device.missing_bytes(&tower.graph))
            }
        };
        Ok(TrainingMemory {
            device: self.device(),
            wanted,
            free,
            weights,
        })
    }

    /// Bytes that training takes here, beside the model's weights: values, gradients and moments of
    /// `members`, the arena of the largest of `passes` over `graph`, and what evaluates a member.
    pub fn training_bytes(
        &self,
        (graph, adapter): (&Graph, &Adapter),
        members: usize,
        passes: &[Load],
    ) -> u64 {
        let encode = EncodeProgram::new(&self.model.config, self.model.head, adapter);
        let largest = [self.largest_encoding(adapter)];
        self.program_bytes(graph, members, passes) + self.program_bytes(&encode.graph, 1, &largest)
    }

    fn program_bytes(&self, graph: &Graph, members: usize, passes: &[Load]) -> u64 {
        match &self.home {
            Home::Cpu => {
                let bucket = |l: &Load| Bucket::holding(l.tokens, l.seqs, l.items, members);
                let arena = |l: &Load| Plan::new(graph, bucket(l), Reuse::Packed).arena_len;
                let arena = passes.iter().map(arena).max().unwrap_or(0);
                let members = extents(&NOTHING, members);
                let trainable = graph.with_role(Role::Trainable);
                let values: usize = trainable.map(|id| graph.get(id).elements(&members)).sum();
                4 * (arena + 4 * values) as u64
            }
            #[cfg(feature = "cuda")]
            Home::Cuda(device) => {
                let room = |l: &Load| Room::around(extents(l, members), l.longest);
                let rooms: Vec<Room> = passes.iter().map(room).collect();
                planned_bytes(graph, members, (&rooms, device.reuse()))
            }
        }
    }

    /// The most that a pass of an evaluation holds. No text is shorter than its two special tokens.
    fn largest_encoding(&self, adapter: &Adapter) -> Load {
        let config = &self.model.config;
        let longest = config.max_tokens() + adapter.layout(config).prompt;
        let tokens = ENCODE_TOKENS.max(longest);
        Load {
            tokens,
            seqs: tokens / 2,
            items: 0,
            shortest: 2,
            longest,
        }
    }
}

/// A pass of nothing.
const NOTHING: Load = Load {
    tokens: 0,
    seqs: 0,
    items: 0,
    shortest: 0,
    longest: 0,
};

fn extents(pass: &Load, members: usize) -> Bucket {
    Bucket {
        tokens: pass.tokens,
        seqs: pass.seqs,
        items: pass.items,
        members,
    }
}
