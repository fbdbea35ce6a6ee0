//! Texts: tokens and packing.

pub mod clip_bpe;
pub mod pack;
pub mod pieces;
pub mod tokenizer;
