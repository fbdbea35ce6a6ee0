//! Data sets: captions in a language, their English counterparts and translations, and the images
//! they describe, cut into training, validation and test by the paper's protocol.
//!
//! Three sources are read: Multi30K and XTD10 as they are published, and a user's own JSONL. Line
//! i of every file of a split belongs to image i; what looks wrong but does not stop a run comes
//! back as [`Warning`]s.

pub mod batches;
pub mod captions;
pub mod feature_file;
pub mod features;
mod jsonl;
mod multi30k;
mod protocol;
#[cfg(test)]
mod tests;
mod translations;
mod warnings;
mod xtd10;

use std::path::{Path, PathBuf};

pub use jsonl::JsonlFiles;
pub use multi30k::Task;
pub use protocol::{Protocol, Shots};
pub use warnings::Warning;

use crate::bad_input;
use crate::error::Result;
use multi30k::Multi30k;
use protocol::Table;
use xtd10::Xtd10;

/// Which text of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The human caption in the target language.
    Target,
    /// The human caption in English.
    English,
    /// The English caption, translated to the target language by machine.
    FromEnglish,
    /// The target caption, translated to English by machine.
    ToEnglish,
}

impl Role {
    /// All four, in the order of [`Role::index`].
    pub const ALL: [Role; 4] = [
        Role::Target,
        Role::English,
        Role::FromEnglish,
        Role::ToEnglish,
    ];

    /// 0 to 3, the place in [`Split::texts`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The name in messages, files and folders.
    pub fn name(self) -> &'static str {
        match self {
            Role::Target => "target",
            Role::English => "en",
            Role::FromEnglish => "translated_from_en",
            Role::ToEnglish => "translated_to_en",
        }
    }
}

/// Items of one language: images and the texts that belong to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Where each item stands in its source: its line, from 0.
    pub items: Vec<u32>,
    /// File names of the images.
    pub images: Vec<String>,
    /// Texts by [`Role::index`], as long as `images`; `None` where they were not asked for.
    pub texts: [Option<Vec<String>>; 4],
}

impl Split {
    /// A split without texts whose items stand in lines 0, 1, ...
    pub fn new(images: Vec<String>) -> Self {
        Split {
            items: (0..images.len() as u32).collect(),
            images,
            texts: Default::default(),
        }
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether it has no item.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// The texts of a role, if they were asked for.
    pub fn text(&self, role: Role) -> Option<&[String]> {
        self.texts[role.index()].as_deref()
    }

    /// The items at `indices`, in that order. Indices must be below [`Split::len`].
    fn pick(&self, indices: &[usize]) -> Split {
        let strings = |from: &Vec<String>| indices.iter().map(|&i| from[i].clone()).collect();
        Split {
            items: indices.iter().map(|&i| self.items[i]).collect(),
            images: strings(&self.images),
            texts: std::array::from_fn(|role| self.texts[role].as_ref().map(strings)),
        }
    }

    /// The split with the texts of `roles` alone.
    fn keep(mut self, roles: &[Role]) -> Split {
        for role in Role::ALL {
            if !roles.contains(&role) {
                self.texts[role.index()] = None;
            }
        }
        self
    }
}

/// Which texts to read.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// Of the training split: those that the objective compares.
    pub train: &'a [Role],
    /// Of the validation and the test split: the one that is retrieved.
    pub eval: &'a [Role],
}

impl Needs<'_> {
    fn union(&self) -> Vec<Role> {
        let needed = |role: &Role| self.train.contains(role) || self.eval.contains(role);
        Role::ALL.into_iter().filter(needed).collect()
    }
}

/// Where a data set is and of what kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// github.com/multi30k/dataset.
    Multi30k {
        /// The repository, or a folder above it.
        root: PathBuf,
        /// Which captions.
        task: Task,
        /// The PECTVLM repository, or the folder that holds `translated_from_en`.
        translations: Option<PathBuf>,
    },
    /// github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10, or PECTVLM's flat folder.
    Xtd10 {
        /// The repository, or a folder above it.
        root: PathBuf,
        /// The PECTVLM repository, or the folder that holds `translated_from_en`.
        translations: Option<PathBuf>,
    },
    /// The user's own, one JSON object a line:
    /// `{"image": "1.jpg", "captions": {"de": "ein Hund", "en": ["a dog", "the dog"]}}`, with
    /// `translated_from_en` and `translated_to_en` shaped as `captions` where a strategy needs
    /// them, and `split` (`train`, `validation` or `test`) if one file holds all. Of a list the
    /// first caption counts; other fields are ignored.
    Jsonl(JsonlFiles),
}

impl Source {
    /// The name of the data set in messages.
    pub fn label(&self) -> String {
        match self {
            Source::Multi30k { .. } => "Multi30K".to_owned(),
            Source::Xtd10 { .. } => "XTD10".to_owned(),
            Source::Jsonl(JsonlFiles::One(path)) => path.display().to_string(),
            Source::Jsonl(JsonlFiles::Three { train, .. }) => train.display().to_string(),
        }
    }
}

/// A data set in one language, cut by the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// To train on, in the order of the permutation; empty for zero-shot.
    pub train: Split,
    /// To choose by.
    pub validation: Split,
    /// To report.
    pub test: Split,
    /// What looks wrong.
    pub warnings: Vec<Warning>,
}

/// Reads a language of a data set and cuts it into training, validation and test.
///
/// For English as the target every role holds the human English captions. The language code `ja`
/// stands for `jp` and the other way round.
///
/// # Errors
/// Files that are missing, malformed or of differing lengths, a language that the data set lacks,
/// and more shots than it has items; each names the file, what was expected and what was found.
pub fn load(source: &Source, language: &str, protocol: &Protocol, needs: Needs) -> Result<Loaded> {
    let mut warnings = Vec::new();
    let zero = protocol.shots == Shots::Zero;
    let needs = Needs {
        train: if zero { &[] } else { needs.train },
        eval: needs.eval,
    };
    let table = match source {
        Source::Multi30k {
            root,
            task,
            translations,
        } => {
            let files = Multi30k::open(root, *task, translations.as_deref())?;
            let [train, validation, test] = files.splits();
            Table::Parts(Box::new([
                files.read(train, language, needs.train, &mut warnings)?,
                files.read(validation, language, needs.eval, &mut warnings)?,
                files.read(test, language, needs.eval, &mut warnings)?,
            ]))
        }
        Source::Xtd10 { root, translations } => {
            Table::Whole(Xtd10::open(root, translations.as_deref())?.read(
                language,
                &needs.union(),
                &mut warnings,
            )?)
        }
        Source::Jsonl(files) => jsonl::read(files, language, &needs)?,
    };
    let cut = protocol.divide(&source.label(), table)?;
    let loaded = Loaded {
        train: cut.train.keep(needs.train),
        validation: cut.validation.keep(needs.eval),
        test: cut.test.keep(needs.eval),
        warnings: Vec::new(),
    };
    warnings::check("train", &loaded.train, &mut warnings);
    warnings::check("validation", &loaded.validation, &mut warnings);
    warnings::check("test", &loaded.test, &mut warnings);
    Ok(Loaded { warnings, ..loaded })
}

/// Reads one split of a language whole, by its published name (`test_2017_mscoco`); XTD10 and a
/// JSONL file of its own have `all`.
///
/// # Errors
/// As [`load`], and for a split that the data set lacks.
pub fn load_split(
    source: &Source,
    split: &str,
    language: &str,
    needs: &[Role],
) -> Result<(Split, Vec<Warning>)> {
    let mut warnings = Vec::new();
    let read = match source {
        Source::Multi30k {
            root,
            task,
            translations,
        } => Multi30k::open(root, *task, translations.as_deref())?.read(
            split,
            language,
            needs,
            &mut warnings,
        )?,
        Source::Xtd10 { root, translations } if split == "all" => {
            Xtd10::open(root, translations.as_deref())?.read(language, needs, &mut warnings)?
        }
        Source::Xtd10 { .. } => {
            return Err(bad_input!(
                "split: XTD10 has one split, `all`; found `{split}`"
            ));
        }
        Source::Jsonl(files) => jsonl::read_split(files, split, language, needs)?,
    };
    warnings::check(split, &read, &mut warnings);
    Ok((read, warnings))
}

/// The languages that a data set has captions in, sorted; of Multi30K those of its training split.
///
/// # Errors
/// When the data set is not found or not readable.
pub fn languages(source: &Source) -> Result<Vec<String>> {
    match source {
        Source::Multi30k { root, task, .. } => Multi30k::open(root, *task, None)?.languages(),
        Source::Xtd10 { root, .. } => Xtd10::open(root, None)?.languages(),
        Source::Jsonl(files) => jsonl::languages(files),
    }
}

/// A language's code and its other spelling: XTD10 writes Japanese `jp`, others `ja`.
pub fn spellings(language: &str) -> Vec<String> {
    let other = match language {
        "ja" => Some("jp"),
        "jp" => Some("ja"),
        _ => None,
    };
    [Some(language), other]
        .into_iter()
        .flatten()
        .map(str::to_owned)
        .collect()
}

/// A caption file has as many lines as the list of images.
fn check_count(path: &Path, n_texts: usize, list: &Path, n_images: usize) -> Result<()> {
    if n_texts == n_images {
        return Ok(());
    }
    Err(bad_input!(
        "{} has {n_texts} lines, but {} names {n_images} images; line i of one belongs to line i \
         of the other, so fetch both again or find the lines that are missing",
        path.display(),
        list.display()
    ))
}
