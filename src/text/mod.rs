//! Texts: tokens and packing.

pub mod pack;
pub mod pieces;
pub mod tokenizer;
