//! What a trained member leaves: its adapters, saved and measured.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Outcome, Trainer};
use crate::adapter::file::AdapterFile;
use crate::error::Result;
use crate::eval::retrieval::Recall;
use crate::train::languages::LanguageData;

/// Recall of a member's adapters on the test items of its languages.
#[derive(Clone, Debug)]
pub struct Kept {
    /// After the last step.
    pub last: Vec<Recall>,
    /// With the values of the best evaluation; none where nothing was evaluated.
    pub best: Option<Vec<Recall>>,
}

impl Trainer<'_> {
    /// Saves a member's adapters in a folder of its own, which exists, and measures them in the member's
    /// languages. Their files name these and the model.
    ///
    /// # Errors
    /// A file that can't be written; a feature that is not finite.
    pub fn keep(
        &mut self,
        member: usize,
        outcome: &Outcome,
        (folder, model): (&Path, &str),
        languages: &[&LanguageData],
    ) -> Result<Kept> {
        let names: Vec<&str> = languages.iter().map(|l| l.language.as_str()).collect();
        let origin = BTreeMap::from([
            ("language".to_string(), names.join(",")),
            ("model".to_string(), model.to_string()),
        ]);
        let save = |file: &AdapterFile, name: &str| {
            let mut file = file.clone();
            file.origin.extend(origin.clone());
            file.save(&folder.join(name))
        };
        save(&outcome.last, "adapter_last.safetensors")?;
        if let Some((best, ..)) = &outcome.best {
            save(best, "adapter_best.safetensors")?;
        }
        let last = self.tested(member, &outcome.last, languages)?;
        let best = match &outcome.best {
            Some((.., step)) if *step == self.total_steps(member) => Some(last.clone()),
            Some((best, ..)) => Some(self.tested(member, best, languages)?),
            None => None,
        };
        Ok(Kept { last, best })
    }

    fn tested(
        &mut self,
        member: usize,
        adapter: &AdapterFile,
        languages: &[&LanguageData],
    ) -> Result<Vec<Recall>> {
        let role = self.members[member].config.strategy.anchor();
        let all = languages.iter();
        all.map(|l| self.measure(adapter, &l.test, role)).collect()
    }
}
