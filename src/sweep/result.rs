//! What a sweep leaves: a file a member, and one of the model as it was.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bad_input;
use crate::data::Role;
use crate::error::{Error, Result};
use crate::eval::retrieval::Recall;
use crate::train::config::{MemberConfig, Shared};
use crate::weights::write::write_atomic;

/// What a member reached. Its file says that it is finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberResult {
    /// Its folder.
    pub name: String,
    /// The row of the table that it competes in.
    pub row: String,
    /// What it could share with others.
    pub shared: Shared,
    /// What it had of its own.
    pub config: MemberConfig,
    /// Steps of the whole run.
    pub steps: usize,
    /// Trainable parameters.
    pub parameters: usize,
    /// Validation score of its best evaluation, averaged over its languages.
    pub score: Option<f64>,
    /// Steps done then; the last of equals.
    pub best_step: Option<usize>,
    /// On the test items of each language that it was trained for.
    pub languages: Vec<Tested>,
    /// Steps whose update was left out because the gradient was not finite.
    pub skipped: u32,
    /// Why it was given up, if it was: nothing of it was tested then.
    pub failed: Option<String>,
    /// What finished it, as `--device` names it: a sweep may go on elsewhere than where it was begun.
    #[serde(default)]
    pub device: String,
    /// Its share of the time that its group took in the process that finished it, evaluations and
    /// test included.
    pub seconds: f64,
}

/// A member in one of its languages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// The language.
    pub language: String,
    /// After the last step.
    pub last: Option<Recall>,
    /// With the values of the best evaluation.
    pub best: Option<Recall>,
}

impl MemberResult {
    /// What it reached in a language, if it was trained for it.
    pub fn of(&self, language: &str) -> Option<&Tested> {
        self.languages.iter().find(|t| t.language == language)
    }
}

/// Recall of the model as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZeroShot {
    /// Names model and data: a sweep goes on with its own only.
    pub inputs: String,
    /// Of English, where the data set has it.
    pub english: Option<Recall>,
    /// Of each language, with each kind of text that its members retrieve with.
    pub rows: Vec<ZeroShotRow>,
}

/// Recall of one language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZeroShotRow {
    /// The language.
    pub language: String,
    /// [`Role::name`] of its texts: `target` or `translated_to_en`.
    pub texts: String,
    /// On the test items.
    pub recall: Recall,
}

impl ZeroShot {
    /// Of a language, if it was measured.
    pub fn of(&self, language: &str, texts: Role) -> Option<&Recall> {
        let is = |r: &&ZeroShotRow| r.language == language && r.texts == texts.name();
        self.rows.iter().find(is).map(|r| &r.recall)
    }
}

/// Reads a JSON file of a sweep; `None` where there is none.
///
/// # Errors
/// If it can't be read or is not what a sweep writes.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::read(path)(e)),
    };
    serde_json::from_str(&text).map(Some).map_err(|e| {
        bad_input!(
            "{}: is not what a sweep writes: {e}; remove it, and what it stands for is done again",
            path.display()
        )
    })
}

/// Writes a JSON file, whole or not at all.
///
/// # Errors
/// If it can't be written.
pub fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Run(format!("{}: {e}", path.display())))?;
    write_atomic(path, |f| writeln!(f, "{text}"))
}
