//! Named tensors on disk: memory-mapped reading of safetensors and PyTorch files, safe writing, and
//! what the tensors of a published text model say about it.

pub mod zip;
