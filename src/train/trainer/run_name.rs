//! The name of a run: a checkpoint goes on with its own run only.

use super::Member;
use crate::train::config::Shared;
use crate::train::examples::Examples;
use crate::weights::checkpoint::Checkpoint;

/// Names settings, model and data, so that a checkpoint goes on with its own run only.
pub(super) fn run_name(shared: &Shared, members: &[Member], weights: &Checkpoint) -> String {
    let mut name = serde_json::to_string(shared).unwrap_or_default();
    name.push_str(&format!("model {:016x}", weights_hash(weights)));
    for m in members {
        name.push_str(&serde_json::to_string(&m.config).unwrap_or_default());
        for l in &m.languages {
            let examples = [Some(&l.train), l.validation.as_ref()].into_iter();
            let hash = examples_hash(examples.flatten().map(AsRef::as_ref));
            name.push_str(&format!("{} items {hash:016x}", l.train.len()));
        }
    }
    name
}

/// Tells models apart. Of each weight the first bytes count: enough, without reading them.
pub fn weights_hash(weights: &Checkpoint) -> u64 {
    let mut hash = Fnv::default();
    for (tensor, view) in weights.tensors() {
        hash.add(tensor.as_bytes());
        hash.add(&view.bytes[..view.bytes.len().min(64)]);
    }
    hash.0
}

/// Tells data apart: every token and every image feature counts.
pub fn examples_hash<'a>(all: impl Iterator<Item = &'a Examples>) -> u64 {
    let mut hash = Fnv::default();
    for examples in all {
        for ids in examples.texts.iter().flatten() {
            hash.add(&(ids.len() as u32).to_le_bytes());
            hash.add(bytemuck::cast_slice(ids));
        }
        hash.add(bytemuck::cast_slice(&examples.images));
    }
    hash.0
}

/// The FNV-1a hash, 64 bits.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
}
