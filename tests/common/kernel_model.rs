//! A tiny model that the kernels take, and its executor on a device.

use std::sync::Arc;

use crosstune::cuda::device::Device;
use crosstune::error::Result;
use crosstune::exec::cuda::CudaExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, Frozen, LossWeights, MemberStep};
use crosstune::tensor::Dtype;
use crosstune::train::program::TrainProgram;
use crosstune::weights::config::TextConfig;
use crosstune::weights::view::TensorView;

use super::tiny::{self, MemberData};

/// Two layers that the kernels take: heads of 8.
pub fn config() -> TextConfig {
    TextConfig {
        hidden: 24,
        heads: 3,
        ffn: 41,
        ..tiny::config()
    }
}

/// An executor of `program` with random weights.
pub fn executor(device: &Device, program: &TrainProgram, state: &TrainState) -> CudaExecutor {
    let frozen: Arc<Frozen> = tiny::frozen(&program.graph);
    let source = |name: &str| source(&frozen, name);
    let mut exec = CudaExecutor::new(device, &source, program.graph.clone(), state).expect("bound");
    exec.load(state).expect("loaded");
    exec
}

/// A frozen value as a checkpoint has it.
pub fn source<'a>(frozen: &'a Frozen, name: &str) -> Result<TensorView<'a>> {
    let values = frozen.get(name).expect("a frozen value");
    Ok(TensorView {
        dtype: Dtype::F32,
        shape: &[],
        bytes: bytemuck::cast_slice(values),
    })
}

/// A member's texts and images.
pub fn data(c: &TextConfig, seed: u64, items: usize, longest: usize) -> MemberData {
    MemberData::new(seed, (items, true), longest, (c.vocab, c.embed_dim))
}

/// Its step, with every term of the objective.
pub fn member(seed: u64, step: u32) -> MemberStep {
    MemberStep {
        seed,
        step,
        loss_scale: 256.0,
        weights: LossWeights {
            image_anchor: 1.0,
            mse: 0.5,
            partner_anchor: 0.25,
            image_partner: 0.125,
            stop_partner: false,
        },
        ..MemberStep::default()
    }
}
