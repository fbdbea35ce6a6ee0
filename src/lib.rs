//! crosstune adapts a frozen multilingual CLIP (M-CLIP) to a language by training a fraction of a
//! percent of new parameters with an image-text contrastive loss and a translation alignment loss.
//!
//! ARCHITECTURE.md is the map; the modules below stand in the order in which data moves.

pub mod adapter;
pub mod adapter_set;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod data;
pub mod demo;
pub mod device;
pub mod engine;
pub mod error;
pub mod eval;
pub mod exec;
pub mod graph;
pub mod html;
pub mod image;
pub mod model;
pub mod ops;
pub mod profile;
pub mod rng;
pub mod search;
pub mod sweep;
pub mod tensor;
pub mod text;
pub mod train;
pub mod weights;
