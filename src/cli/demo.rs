//! `crosstune demo`.

use anyhow::Result;

use super::Output;

/// Options of the demo.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {}

/// Runs the command.
pub fn run(_: Args, _: Output) -> Result<()> {
    Ok(())
}
