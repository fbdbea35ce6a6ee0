//! Texts: tokens and packing.

pub mod pack;
