//! What looks wrong in a data set but does not stop a run.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use super::{Role, Split};

/// Junk that the published files contain: failed crowd translations and place holders.
const JUNK: [&str; 4] = ["Could not translate", "?", "dfgdfg", "@@"];
/// Line numbers that a warning lists at most.
const MAX_LINES: usize = 5;

/// Something to tell the user; `Display` gives one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A translation file equals another language's, byte for byte.
    SameTranslation {
        /// The file of the language asked for.
        file: PathBuf,
        /// The other language's file.
        same_as: PathBuf,
    },
    /// Captions that are failed translations or hold no letter or digit.
    Junk {
        /// The split.
        split: String,
        /// Which texts.
        role: Role,
        /// Line numbers in the source file from 1, the first five.
        lines: Vec<usize>,
        /// How many there are.
        count: usize,
    },
    /// Captions that repeat an earlier one of the split.
    Duplicates {
        /// The split.
        split: String,
        /// Which texts.
        role: Role,
        /// How many captions repeat an earlier one.
        count: usize,
    },
    /// Items whose image an earlier item of the split has too.
    RepeatedImages {
        /// The split.
        split: String,
        /// How many items repeat an earlier image.
        count: usize,
    },
}

impl Warning {
    /// The split that it is about, by the name it was read under; `None` where it is about a file.
    pub fn split(&self) -> Option<&str> {
        match self {
            Warning::SameTranslation { .. } => None,
            Warning::Junk { split, .. }
            | Warning::Duplicates { split, .. }
            | Warning::RepeatedImages { split, .. } => Some(split),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::SameTranslation { file, same_as } => write!(
                f,
                "{} is byte for byte the same as {}: one of them holds the wrong language, and a \
                 run that uses it learns from that",
                file.display(),
                same_as.display()
            ),
            Warning::Junk {
                split,
                role,
                lines,
                count,
            } => {
                let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "{split}, {}: {count} caption{} not {} text (a failed translation or \
                     punctuation only): line{} {}{}",
                    role.name(),
                    if *count == 1 { " is" } else { "s are" },
                    if *count == 1 { "a" } else { "real" },
                    if *count == 1 { "" } else { "s" },
                    lines.join(", "),
                    if *count > lines.len() { ", ..." } else { "" }
                )
            }
            Warning::Duplicates { split, role, count } => write!(
                f,
                "{split}, {}: {count} caption{} an earlier one, so retrieval by it has two right \
                 answers and counts one",
                role.name(),
                if *count == 1 { " repeats" } else { "s repeat" }
            ),
            Warning::RepeatedImages { split, count } => write!(
                f,
                "{split}: {count} item{} the image of an earlier one, so retrieval of it has two \
                 right answers and counts one",
                if *count == 1 { " repeats" } else { "s repeat" }
            ),
        }
    }
}

/// Whether a caption is a known place holder or holds no letter or digit.
fn is_junk(caption: &str) -> bool {
    JUNK.contains(&caption) || !caption.chars().any(char::is_alphanumeric)
}

/// Checks every text of `split`, called `name` in the warnings.
pub(super) fn check(name: &str, split: &Split, warnings: &mut Vec<Warning>) {
    let count = repeats(&split.images);
    if count > 0 {
        warnings.push(Warning::RepeatedImages {
            split: name.to_owned(),
            count,
        });
    }
    for role in Role::ALL {
        let Some(texts) = &split.texts[role.index()] else {
            continue;
        };
        let mut lines: Vec<usize> = texts
            .iter()
            .zip(&split.items)
            .filter(|(text, _)| is_junk(text))
            .map(|(_, &item)| item as usize + 1)
            .collect();
        lines.sort_unstable();
        let count = lines.len();
        lines.truncate(MAX_LINES);
        if count > 0 {
            warnings.push(Warning::Junk {
                split: name.to_owned(),
                role,
                lines,
                count,
            });
        }
        let count = repeats(texts);
        if count > 0 {
            warnings.push(Warning::Duplicates {
                split: name.to_owned(),
                role,
                count,
            });
        }
    }
}

/// How many strings repeat an earlier one.
fn repeats(texts: &[String]) -> usize {
    let distinct: HashSet<&str> = texts.iter().map(String::as_str).collect();
    texts.len() - distinct.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junk_and_duplicates_are_counted() {
        let captions = [
            "?",
            "ein Hund",
            "Could not translate",
            "。。",
            "ein Hund",
            "@@",
            "dfgdfg",
            "!",
            "ö",
        ];
        let mut split = Split::new((0..9).map(|i| i.to_string()).collect());
        split.items = (10..19).rev().collect();
        split.texts[0] = Some(captions.map(String::from).to_vec());
        let mut warnings = Vec::new();
        check("test", &split, &mut warnings);
        let junk = Warning::Junk {
            split: "test".into(),
            role: Role::Target,
            lines: vec![12, 13, 14, 16, 17],
            count: 6,
        };
        let duplicates = Warning::Duplicates {
            split: "test".into(),
            role: Role::Target,
            count: 1,
        };
        assert_eq!(warnings, [junk, duplicates]);
        assert_eq!(
            warnings[0].to_string(),
            "test, target: 6 captions are not real text (a failed translation or punctuation \
             only): lines 12, 13, 14, 16, 17, ..."
        );
        assert!(
            warnings[1]
                .to_string()
                .starts_with("test, target: 1 caption repeats")
        );
        split.images[3] = "0".into();
        warnings.clear();
        check("test", &split, &mut warnings);
        assert_eq!(
            warnings[0],
            Warning::RepeatedImages {
                split: "test".into(),
                count: 1
            }
        );
        assert_eq!(warnings[0].split(), Some("test"));
    }
}
