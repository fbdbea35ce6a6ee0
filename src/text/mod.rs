//! Texts: tokens and packing.

pub mod pack;
pub mod tokenizer;
