//! Measures: recall of cross-modal retrieval, and how far languages stand from English.

pub mod disparity;
pub mod retrieval;
mod similarity;
