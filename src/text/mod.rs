//! From captions to token ids.

pub mod tokenizer;
