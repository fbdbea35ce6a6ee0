//! Models: plain functions that push nodes.

pub mod clip_text;
mod pre_norm;
pub mod text;
pub mod vision;
