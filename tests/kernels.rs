//! CUDA kernels against plain f64 loops on the same f16 numbers, in the PTX virtual machine, or on
//! a GPU with `CROSSTUNE_TEST_DEVICE=cuda:0`.
#![cfg(feature = "cuda")]

#[path = "kernels/activation.rs"]
mod activation;
#[path = "kernels/adam.rs"]
mod adam;
#[path = "kernels/add.rs"]
mod add;
#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/contrastive.rs"]
mod contrastive;
#[path = "kernels/embedding.rs"]
mod embedding;
#[path = "kernels/gelu.rs"]
mod gelu;
#[path = "kernels/l2_norm.rs"]
mod l2_norm;
#[path = "kernels/layer_norm.rs"]
mod layer_norm;
#[path = "kernels/limits.rs"]
mod limits;
#[path = "kernels/linear.rs"]
mod linear;
#[path = "kernels/linear_case.rs"]
mod linear_case;
#[path = "kernels/linear_weight.rs"]
mod linear_weight;
#[path = "kernels/mse.rs"]
mod mse;
#[path = "kernels/phm.rs"]
mod phm;
#[path = "kernels/planted.rs"]
mod planted;
#[path = "kernels/pool.rs"]
mod pool;
#[path = "kernels/report.rs"]
mod report;
#[path = "kernels/rig.rs"]
mod rig;
#[path = "kernels/vision_embedding.rs"]
mod vision_embedding;
#[path = "kernels/world.rs"]
mod world;
#[path = "kernels/worse.rs"]
mod worse;

/// Limits of an output against the reference in f64, member by member.
pub struct Limit {
    name: &'static str,
    /// |got - want| / (level + |want|), level the larger of 0.01 and the root mean square.
    error: f64,
    /// Squared error over squared level.
    nmse: f64,
}

/// Name, error (measured), NMSE (measured): in the virtual machine, all shapes of these tests. f16
/// rounds to 4.9e-4 of a number.
#[rustfmt::skip]
pub const LIMITS: &[Limit] = &[
    Limit { name: "layer_norm.z",         error: 2e-3, nmse: 3e-7  }, // 4.0e-4, 5.9e-8
    Limit { name: "layer_norm.stats",     error: 2e-3, nmse: 2e-7  }, // 4.2e-4, 3.2e-8
    Limit { name: "layer_norm.out",       error: 2e-3, nmse: 7e-7  }, // 3.8e-4, 1.6e-7
    Limit { name: "layer_norm.dz",        error: 8e-3, nmse: 5e-7  }, // 1.8e-3, 1.2e-7
    Limit { name: "layer_norm.dinp",      error: 8e-3, nmse: 4e-7  }, // 1.9e-3, 8.5e-8
    Limit { name: "layer_norm.dweight",   error: 4e-3, nmse: 4e-7  }, // 8.3e-4, 8.6e-8
    Limit { name: "layer_norm.dbias",     error: 2e-7, nmse: 2e-15 }, // 4.5e-8, 3.8e-16
    Limit { name: "linear.u",        error: 2e-3, nmse: 3e-7  }, // 3.4e-4, 6.6e-8
    Limit { name: "linear.out",      error: 2e-3, nmse: 4e-7  }, // 6.3e-4, 8.9e-8
    Limit { name: "linear.act",      error: 2e-3, nmse: 3e-7  }, // 6.6e-4, 6.7e-8
    Limit { name: "linear.v",        error: 2e-3, nmse: 3e-7  }, // 3.2e-4, 1.7e-7
    Limit { name: "linear.dinp",     error: 2e-3, nmse: 3e-7  }, // 5.9e-4, 7.9e-8
    Limit { name: "linear.dlora_a",  error: 4e-3, nmse: 2e-7  }, // 9.0e-4, 1.6e-7
    Limit { name: "linear.dlora_b",  error: 4e-3, nmse: 8e-6  }, // 8.1e-4, 1.8e-6
    Limit { name: "attention.out",        error: 2e-3, nmse: 2e-7  }, // 5.9e-4, 5.3e-8
    Limit { name: "attention.lse",        error: 1e-6, nmse: 3e-13 }, // 3.0e-7, 6.5e-14
    Limit { name: "attention.dqkv",       error: 1e-2, nmse: 4e-7  }, // 2.3e-3, 9.8e-8
    Limit { name: "gelu.dinp",            error: 2e-3, nmse: 3e-7  }, // 4.0e-4, 6.6e-8
    Limit { name: "linear_weight.dweight",error: 4e-6, nmse: 3e-13 }, // 8.7e-7, 6.6e-14
    Limit { name: "linear_weight.dbias",  error: 2e-7, nmse: 1e-15 }, // 4.2e-8, 2.8e-16
    Limit { name: "adam.norm",            error: 1e-7, nmse: 2e-14 }, // 3.5e-8, 4.9e-15
    Limit { name: "adam.n",               error: 0.0,  nmse: 0.0   }, // exact
    Limit { name: "adam.values",          error: 7e-7, nmse: 3e-15 }, // 1.4e-7, 7.6e-16
    Limit { name: "adam.m",               error: 2e-7, nmse: 3e-15 }, // 4.2e-8, 6.8e-16
    Limit { name: "adam.v",               error: 3e-7, nmse: 8e-15 }, // 7.7e-8, 1.6e-15
    Limit { name: "adam.halves",          error: 1e-3, nmse: 2e-7  }, // 2.8e-4, 4.2e-8
    Limit { name: "adam.split",           error: 6e-7, nmse: 1e-14 }, // 1.2e-7, 2.5e-15
    Limit { name: "embedding.out",        error: 2e-3, nmse: 8e-7  }, // 4.0e-4, 1.6e-7
    Limit { name: "embedding.sum",        error: 2e-3, nmse: 3e-7  }, // 3.6e-4, 5.6e-8
    Limit { name: "embedding.dz",         error: 2e-3, nmse: 4e-7  }, // 7.4e-4, 9.6e-8
    Limit { name: "embedding.dword",      error: 4e-3, nmse: 3e-7  }, // 1.3e-3, 6.5e-8
    Limit { name: "embedding.dposition",  error: 8e-3, nmse: 2e-7  }, // 2.0e-3, 5.5e-8
    Limit { name: "embedding.dtoken_type",error: 3e-3, nmse: 6e-7  }, // 7.0e-4, 1.2e-7
    Limit { name: "embedding.dprompt",    error: 3e-3, nmse: 4e-7  }, // 8.0e-4, 9.1e-8
    Limit { name: "embedding.dweight",    error: 3e-3, nmse: 7e-7  }, // 7.6e-4, 1.4e-7
    Limit { name: "embedding.dbias",      error: 2e-3, nmse: 1e-6  }, // 5.1e-4, 2.9e-7
    Limit { name: "phm.u",                error: 1e-6, nmse: 3e-14 }, // 2.3e-7, 5.6e-15
    Limit { name: "phm.s",                error: 1e-6, nmse: 4e-14 }, // 3.1e-7, 7.8e-15
    Limit { name: "phm.out",              error: 2e-3, nmse: 2e-7  }, // 3.7e-4, 4.8e-8
    Limit { name: "phm.ds",               error: 7e-7, nmse: 3e-14 }, // 1.7e-7, 5.6e-15
    Limit { name: "phm.du",               error: 1e-6, nmse: 3e-14 }, // 2.8e-7, 6.9e-15
    Limit { name: "phm.dinp",             error: 2e-3, nmse: 3e-7  }, // 3.9e-4, 6.0e-8
    Limit { name: "phm.drule",            error: 2e-6, nmse: 2e-13 }, // 5.3e-7, 3.4e-14
    Limit { name: "phm.dleft",            error: 2e-6, nmse: 2e-13 }, // 4.1e-7, 3.5e-14
    Limit { name: "phm.dright",           error: 2e-6, nmse: 2e-13 }, // 3.9e-7, 2.8e-14
    Limit { name: "phm.dbias",            error: 2e-7, nmse: 3e-15 }, // 4.3e-8, 6.5e-16
    Limit { name: "activation.out",       error: 1e-3, nmse: 1e-7  }, // 2.8e-4, 2.9e-8
    Limit { name: "activation.dinp",      error: 1e-3, nmse: 2e-7  }, // 3.4e-4, 4.2e-8
    Limit { name: "add.out",              error: 1e-3, nmse: 2e-7  }, // 3.6e-4, 5.5e-8
    Limit { name: "vision_embedding.out", error: 2e-3, nmse: 3e-7  }, // 3.6e-4, 5.0e-8
    Limit { name: "pool.out",             error: 1e-3, nmse: 2e-7  }, // 3.8e-4, 4.9e-8
    Limit { name: "pool.dinp",            error: 1e-3, nmse: 1e-7  }, // 2.9e-4, 3.9e-8
    Limit { name: "l2_norm.out",          error: 4e-6, nmse: 2e-12 }, // 9.4e-7, 3.2e-13
    Limit { name: "l2_norm.norm",         error: 1e-7, nmse: 8e-15 }, // 3.2e-8, 1.6e-15
    Limit { name: "l2_norm.dinp",         error: 2e-3, nmse: 2e-7  }, // 4.8e-4, 5.2e-8
    Limit { name: "mse.loss",             error: 2e-7, nmse: 3e-14 }, // 4.4e-8, 7.6e-15
    Limit { name: "mse.dtext",            error: 1e-3, nmse: 2e-7  }, // 3.6e-4, 4.6e-8
    Limit { name: "contrastive.loss",     error: 2e-5, nmse: 3e-10 }, // 3.9e-6, 6.2e-11
    Limit { name: "contrastive.lse",      error: 2e-6, nmse: 4e-13 }, // 2.7e-7, 1.1e-13
    Limit { name: "contrastive.dtext",    error: 1e-3, nmse: 1e-7  }, // 4.5e-4, 5.2e-8
    Limit { name: "contrastive.dimage",   error: 1e-3, nmse: 1e-7  }, // 4.0e-4, 5.5e-8
];
