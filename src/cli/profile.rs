//! What `--profile` prints and writes.

use std::path::Path;

use anyhow::Result;
use crosstune::engine::Engine;

use super::Output;

/// Writes the profile of a run into a folder and prints its table, if the run was profiled.
pub fn finish(engine: &Engine, folder: &Path, output: Output) -> Result<()> {
    let Some((report, profiler)) = engine.profile() else {
        return Ok(());
    };
    profiler.save(&report, folder)?;
    if !output.json && !output.quiet {
        print!("\n{}", report.table());
        println!(
            "\nwritten to {}: profile.txt, profile.json and trace.json (open it in \
             chrome://tracing or ui.perfetto.dev)",
            folder.display()
        );
    }
    Ok(())
}
