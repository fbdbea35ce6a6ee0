//! Named tensors on disk: memory-mapped reading of safetensors and PyTorch files, safe writing of both, and
//! what the tensors of a published text model say about it.

pub mod checkpoint;
mod clip_text;
pub mod config;
pub mod convert;
pub mod hub;
pub mod inspect;
pub mod pickle;
mod pickle_machine;
mod pickle_values;
pub mod pickle_write;
mod preset;
pub mod published;
pub mod safetensors;
pub mod stored;
pub mod text_model;
pub mod view;
pub mod vision;
pub mod write;
pub mod zip;
mod zip_write;
