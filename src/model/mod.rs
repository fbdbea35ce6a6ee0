//! Models: plain functions that push nodes.

pub mod text;
pub mod vision;
