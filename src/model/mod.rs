//! Models: plain functions that push nodes.

pub mod clip_text;
pub mod text;
pub mod vision;
