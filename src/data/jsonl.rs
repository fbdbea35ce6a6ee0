//! A user's own data: one JSON object a line.
//!
//! ```json
//! {"image": "1.jpg", "captions": {"de": "ein Hund", "en": ["a dog", "the dog"]},
//!  "translated_from_en": {"de": "ein Hund"}, "translated_to_en": {"de": "a dog"}}
//! ```
//! (on one line). The value of a language is a string or a list of strings, of which the first
//! counts. `split` may name the item's split: `train`, `validation` (or `val`) or `test`. Other
//! fields are ignored, and so are blank lines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::captions::{read_bytes, strip_ascii};
use super::protocol::Table;
use super::{Needs, Role, Split, spellings};
use crate::bad_input;
use crate::error::{Error, Result};

/// Where the items of a JSONL data set are; any file may be gzipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonlFiles {
    /// All in one file; by their field `split`, or cut by the protocol when none has it.
    One(PathBuf),
    /// A file a split.
    Three {
        /// Training items.
        train: PathBuf,
        /// Validation items.
        validation: PathBuf,
        /// Test items.
        test: PathBuf,
    },
}

#[derive(Deserialize)]
struct Record {
    image: String,
    captions: Texts,
    #[serde(default)]
    translated_from_en: Texts,
    #[serde(default)]
    translated_to_en: Texts,
    split: Option<String>,
}

type Texts = BTreeMap<String, Captions>;

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string or a list of strings as a language's caption"
)]
enum Captions {
    One(String),
    Many(Vec<String>),
}

impl Captions {
    fn first(&self) -> Option<&str> {
        match self {
            Captions::One(text) => Some(text),
            Captions::Many(texts) => texts.first().map(String::as_str),
        }
    }
}

/// A record and where it stands, its line counted from 1.
struct Row<'a> {
    path: &'a Path,
    line: usize,
    record: Record,
}

/// The data set's splits, with the texts of `needs`.
pub(super) fn read(files: &JsonlFiles, language: &str, needs: &Needs) -> Result<Table> {
    let parts = match files {
        JsonlFiles::Three {
            train,
            validation,
            test,
        } => [rows(train)?, rows(validation)?, rows(test)?],
        JsonlFiles::One(path) => {
            let rows = rows(path)?;
            if rows.iter().all(|row| row.record.split.is_none()) {
                return Ok(Table::Whole(table(&rows, language, &needs.union())?));
            }
            by_split(path, rows)?
        }
    };
    let [train, validation, test] = parts;
    Ok(Table::Parts(Box::new([
        table(&train, language, needs.train)?,
        table(&validation, language, needs.eval)?,
        table(&test, language, needs.eval)?,
    ])))
}

/// One split by name: `train`, `validation`, `test`, or `all` of one file.
pub(super) fn read_split(
    files: &JsonlFiles,
    split: &str,
    language: &str,
    needs: &[Role],
) -> Result<Split> {
    let index = split_index(split);
    match (files, index) {
        (JsonlFiles::One(path), _) if split == "all" => table(&rows(path)?, language, needs),
        (JsonlFiles::One(path), Some(index)) => {
            let rows = rows(path)?;
            if rows.iter().all(|row| row.record.split.is_none()) {
                return Err(bad_input!(
                    "{}: no line has a field `split`, so there is no split `{split}`; choose `all`",
                    path.display()
                ));
            }
            table(&by_split(path, rows)?[index], language, needs)
        }
        (
            JsonlFiles::Three {
                train,
                validation,
                test,
            },
            Some(index),
        ) => table(&rows([train, validation, test][index])?, language, needs),
        _ => Err(bad_input!(
            "split: expected train, validation or test (or `all` of a single file), found `{split}`"
        )),
    }
}

/// Every language that captions are in.
pub(super) fn languages(files: &JsonlFiles) -> Result<Vec<String>> {
    let path = match files {
        JsonlFiles::One(path) => path,
        JsonlFiles::Three { train, .. } => train,
    };
    let mut found: Vec<String> = rows(path)?
        .into_iter()
        .flat_map(|row| row.record.captions.into_keys())
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

fn rows(path: &Path) -> Result<Vec<Row<'_>>> {
    let bytes = read_bytes(path)?;
    let mut found = Vec::new();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let record: Record = serde_json::from_slice(line).map_err(|e| {
            let why = e.to_string();
            // Every document is a line of its own: serde_json's `line 1` would mislead.
            let why = why.split(" at line ").next().unwrap_or_default();
            bad_input!(
                "{}: line {}, column {}: {why}; expected {{\"image\": NAME, \"captions\": \
                 {{LANGUAGE: TEXT}}}}",
                path.display(),
                i + 1,
                e.column()
            )
        })?;
        found.push(Row {
            path,
            line: i + 1,
            record,
        });
    }
    match found.is_empty() {
        true => Err(bad_input!(
            "{}: the file is empty; expected an object a line",
            path.display()
        )),
        false => Ok(found),
    }
}

fn split_index(name: &str) -> Option<usize> {
    match name {
        "train" => Some(0),
        "validation" | "val" => Some(1),
        "test" => Some(2),
        _ => None,
    }
}

fn by_split<'a>(path: &Path, rows: Vec<Row<'a>>) -> Result<[Vec<Row<'a>>; 3]> {
    let mut parts = [const { Vec::new() }; 3];
    for row in rows {
        let found = row.record.split.as_deref();
        let Some(index) = found.and_then(split_index) else {
            return Err(bad_input!(
                "{}: line {}: field `split`: expected train, validation (or val) or test, found {}",
                path.display(),
                row.line,
                found.map_or("none, though other lines have it".to_owned(), |s| format!(
                    "`{s}`"
                ))
            ));
        };
        parts[index].push(row);
    }
    for (part, name) in parts.iter().zip(["train", "validation", "test"]) {
        if part.is_empty() {
            return Err(bad_input!(
                "{}: field `split`: expected train, validation and test, found no line of {name}",
                path.display()
            ));
        }
    }
    Ok(parts)
}

fn table(rows: &[Row], language: &str, needs: &[Role]) -> Result<Split> {
    let mut images = Vec::with_capacity(rows.len());
    for row in rows {
        let name = strip_ascii(&row.record.image);
        if name.is_empty() {
            return Err(row.fault("field `image`: expected a file name, found an empty string"));
        }
        images.push(name.to_owned());
    }
    let mut read = Split::new(images);
    read.items = rows.iter().map(|row| row.line as u32 - 1).collect();
    for &role in needs {
        let texts = rows
            .iter()
            .map(|row| row.text(role, language))
            .collect::<Result<_>>()?;
        read.texts[role.index()] = Some(texts);
    }
    Ok(read)
}

impl Row<'_> {
    fn text(&self, role: Role, language: &str) -> Result<String> {
        let (field, texts, language) = match role {
            Role::English => ("captions", &self.record.captions, "en"),
            _ if language == "en" => ("captions", &self.record.captions, "en"),
            Role::Target => ("captions", &self.record.captions, language),
            Role::FromEnglish => (
                "translated_from_en",
                &self.record.translated_from_en,
                language,
            ),
            Role::ToEnglish => ("translated_to_en", &self.record.translated_to_en, language),
        };
        let Some(captions) = spellings(language)
            .iter()
            .find_map(|l| texts.get(l.as_str()))
        else {
            let has: Vec<&str> = texts.keys().map(String::as_str).collect();
            return Err(self.fault(&format!(
                "field `{field}`: expected a text in `{language}`, found {}",
                if has.is_empty() {
                    "none".to_owned()
                } else {
                    has.join(", ")
                }
            )));
        };
        match captions.first().map(strip_ascii) {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(self.fault(&format!(
                "field `{field}`: the text in `{language}` is empty"
            ))),
        }
    }

    fn fault(&self, what: &str) -> Error {
        bad_input!(
            "{}: line {}: {what}; complete the line, or drop it",
            self.path.display(),
            self.line
        )
    }
}
