//! The demo itself: a world, a small multilingual model, what it knows of each language, and what a
//! few trained parameters add.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::adapt::{adapt, read, samples, zero_shot};
use super::event::{DemoEvent, Phase, Teller};
use super::html::write_html;
use super::model::write_json;
use super::pretrain::prepare;
use super::recipe::Recipe;
use super::report::DemoReport;
use crate::error::Result;

/// How to run the demo.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The demo's own folder: new, empty, or of an earlier demo.
    pub folder: PathBuf,
    /// Decides the world, the model and every random number.
    pub seed: u64,
    /// Threads; all cores where not set. The numbers do not depend on it.
    pub threads: Option<usize>,
    /// Sizes and lengths.
    pub recipe: Recipe,
}

impl DemoOptions {
    /// The full demo with seed 1 in a folder.
    pub fn new(folder: impl Into<PathBuf>) -> DemoOptions {
        DemoOptions {
            folder: folder.into(),
            seed: 1,
            threads: None,
            recipe: Recipe::full(),
        }
    }
}

/// Runs the demo. Its folder then holds `model/`, `vision/`, `world.jsonl`,
/// `features.safetensors`, `pictures/`, `cache/`, `adapters/`, `report.json` and `report.html`; both
/// towers are kept for the next run, and made again if the seed or the recipe is another one or an earlier run was cut short.
///
/// # Errors
/// [`Error::Cancelled`](crate::error::Error::Cancelled) when the callback breaks; a folder that
/// holds something else; files that can't be read or written.
pub fn run(
    options: &DemoOptions,
    on_event: &mut dyn FnMut(&DemoEvent) -> ControlFlow<()>,
) -> Result<DemoReport> {
    let teller = &mut Teller { on_event };
    let (engine, stamp, cached) = prepare(options, teller)?;
    let folder = &options.folder;
    let ((data, before), seconds) = teller.phase(Phase::ZeroShot, |teller| {
        let data = read(&engine, folder)?;
        let before = zero_shot(&engine, &data, teller)?;
        Ok((data, before))
    })?;
    let (adapted, adapting) = teller.phase(Phase::Adaptation, |teller| {
        let recipe = (&options.recipe, options.seed);
        adapt(
            &engine,
            (&data, &before),
            recipe,
            &folder.join("adapters"),
            teller,
        )
    })?;
    let seconds = [
        stamp.seconds[0],
        stamp.seconds[1],
        stamp.seconds[2],
        stamp.seconds[3],
        seconds,
        adapting,
    ];
    let report = DemoReport::new(
        options,
        &stamp,
        (&before, &adapted),
        (seconds, engine.threads(), cached),
    );
    write_json(&folder.join("report.json"), &report)?;
    write_html(folder, &report, &samples(&data))?;
    Ok(report)
}
