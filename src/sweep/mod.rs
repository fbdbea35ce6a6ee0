//! Sweeps: a grid of runs becomes members that share steps, and ends with a table.
//!
//! [`grid`] multiplies lists out, [`crate::train::languages`] reads each language once, [`pack`] puts
//! members that may share a step into groups that fit in memory, [`run`] trains one group after the
//! other and goes on where it was stopped, [`table`] lays out what they reached as the paper does.

pub mod grid;
pub mod pack;
pub mod presets;
pub mod result;
pub mod run;
pub mod table;

use std::path::PathBuf;

use crate::train::config::{MemberConfig, Shared};

/// A member of a sweep: what it is called, and every setting of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Its folder's name, of its settings: `ko-routine1-lr1e-4-ratio0.3-seed1`.
    pub name: String,
    /// The row of the table that it competes in: its strategy, and its method where there are
    /// several.
    pub row: String,
    /// The language that it is trained for; with several, jointly.
    pub languages: Vec<String>,
    /// What it may share with others.
    pub shared: Shared,
    /// What it has of its own.
    pub config: MemberConfig,
    /// An adapter that it begins with.
    pub init: Option<PathBuf>,
}
