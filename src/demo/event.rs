//! What a demo tells its caller while it runs.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::captions::Language;
use crate::error::{Error, Result};
use crate::eval::retrieval::Recall;
use crate::train::objective::Strategy;
use crate::train::trainer::{Event, StepReport};

/// The parts of a demo, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Pictures, captions, tokenizer and a random model.
    World,
    /// A small vision tower learns to see; from then on pictures' features are its own.
    Vision,
    /// The model learns English from captions and pictures.
    English,
    /// It learns the other languages from its own English, some of them badly.
    Distillation,
    /// Recall of each language before adaptation.
    ZeroShot,
    /// Low-rank adapters for each language, and recall again.
    Adaptation,
}

/// One event.
#[derive(Clone, Debug)]
pub enum DemoEvent {
    /// The folder holds a finished model of the same seed and recipe: the first four phases are
    /// left out.
    Cached {
        /// The demo's folder.
        folder: PathBuf,
    },
    /// A phase began.
    Began(Phase),
    /// A training step. In [`Phase::Adaptation`] `step.member` counts [`DemoEvent::Recall`]'s
    /// languages and strategies, and one step trains all of them.
    Step {
        /// The phase.
        phase: Phase,
        /// The trainer's report.
        step: StepReport,
    },
    /// Recall of a language on the test items.
    Recall {
        /// The language.
        language: Language,
        /// What it was adapted with; none for the model as it is.
        strategy: Option<Strategy>,
        /// On captions that people of the demo's world wrote.
        recall: Recall,
    },
    /// A phase ended.
    Ended(Phase, f64),
}

/// Passes events on; one that is answered with a break ends the demo.
pub(super) struct Teller<'a> {
    pub(super) on_event: &'a mut dyn FnMut(&DemoEvent) -> ControlFlow<()>,
}

impl Teller<'_> {
    pub(super) fn tell(&mut self, event: DemoEvent) -> Result<()> {
        match (self.on_event)(&event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }

    /// Runs a phase between its two events; gives its seconds too.
    pub(super) fn phase<T>(
        &mut self,
        phase: Phase,
        body: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(T, f64)> {
        self.tell(DemoEvent::Began(phase))?;
        let start = Instant::now();
        let done = body(self)?;
        let seconds = start.elapsed().as_secs_f64();
        self.tell(DemoEvent::Ended(phase, seconds))?;
        Ok((done, seconds))
    }

    /// A trainer's event as one of the demo's.
    pub(super) fn pass(&mut self, phase: Phase, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Step(step) => (self.on_event)(&DemoEvent::Step { phase, step: *step }),
            _ => ControlFlow::Continue(()),
        }
    }
}
