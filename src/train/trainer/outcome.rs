//! Adapters into a run and out of it.

use std::collections::BTreeMap;

use super::{Outcome, Trainer};
use crate::adapter::file::AdapterFile;
use crate::error::Result;

impl Trainer<'_> {
    /// Begins a member with an adapter's values instead of fresh ones.
    ///
    /// # Errors
    /// If the adapter has other tensors.
    pub fn start_from(&mut self, member: usize, adapter: &AdapterFile) -> Result<()> {
        adapter.load_into(&mut self.state, member)
    }

    pub(super) fn outcome(&self, g: usize) -> Outcome {
        let origin = |step: usize| {
            let c = &self.members[g].config;
            BTreeMap::from([
                ("strategy".to_string(), c.strategy.to_string()),
                ("step".to_string(), step.to_string()),
                ("seed".to_string(), c.seed.to_string()),
            ])
        };
        let adapter = &self.shared.adapter;
        // One that ended before the others has its own last step.
        let end = self.step.min(self.total_steps(g));
        let last = AdapterFile::from_state(adapter, &self.state, g, origin(end));
        let best = self.progress[g].best.as_ref().map(|b| {
            let mut file = AdapterFile {
                origin: origin(b.step),
                ..last.clone()
            };
            let mut at = 0;
            for (_, _, values) in &mut file.tensors {
                let len = values.len();
                values.copy_from_slice(&b.values[at..at + len]);
                at += len;
            }
            (file, b.score, b.step)
        });
        Outcome {
            last,
            best,
            skipped: self.progress[g].skipped,
            failed: self.progress[g].failed.clone(),
        }
    }
}
