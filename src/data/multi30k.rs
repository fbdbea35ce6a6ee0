//! Multi30K in the lay-out of github.com/multi30k/dataset.
//!
//! `data/task1/raw/SPLIT.LANG.gz` holds one caption an image and its translations,
//! `data/task2/raw/SPLIT.K.LANG.gz` five independent ones; `image_splits` holds the names.

use std::path::{Path, PathBuf};

use super::captions::{middles, plain_or_gz, read_lines};
use super::translations::Translations;
use super::{Role, Split, Warning, check_count, spellings};
use crate::bad_input;
use crate::error::Result;
use crate::image::list::without_id;

/// Which of Multi30K's two sets of captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Task 1: an English caption an image, and its human translations.
    Translation,
    /// Task 2: five captions an image in English and German, written apart.
    Description {
        /// Which of the five, from 1; the paper takes 1.
        caption: u8,
    },
}

impl Task {
    /// Task 1 or 2; `caption` counts for task 2 only.
    ///
    /// # Errors
    /// When `task` is not 1 or 2 or `caption` is not 1 to 5.
    pub fn new(task: u8, caption: u8) -> Result<Task> {
        match (task, caption) {
            (1, _) => Ok(Task::Translation),
            (2, 1..=5) => Ok(Task::Description { caption }),
            (2, _) => Err(bad_input!(
                "caption: expected 1 to 5 for Multi30K's task 2, found {caption}"
            )),
            _ => Err(bad_input!(
                "task: expected 1 or 2 for Multi30K, found {task}"
            )),
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Task::Translation => "data/task1",
            Task::Description { .. } => "data/task2",
        }
    }
}

/// A checkout of Multi30K, and where its translations are.
pub(super) struct Multi30k<'a> {
    folder: PathBuf,
    task: Task,
    translations: Option<&'a Path>,
}

impl<'a> Multi30k<'a> {
    /// Finds the repository at `root`, or below it when `root` is a folder above.
    pub(super) fn open(root: &Path, task: Task, translations: Option<&'a Path>) -> Result<Self> {
        let below = [
            root.to_path_buf(),
            root.join("dataset"),
            root.join("multi30k/dataset"),
        ];
        let folder = below
            .iter()
            .map(|r| r.join(task.folder()))
            .find(|f| f.join("raw").is_dir());
        match folder {
            Some(folder) => Ok(Multi30k {
                folder,
                task,
                translations,
            }),
            None => Err(bad_input!(
                "{}: holds no {}/raw (nor do dataset or multi30k/dataset below it); expected a \
                 clone of https://github.com/multi30k/dataset",
                root.display(),
                task.folder()
            )),
        }
    }

    /// The published names of the training, validation and test split.
    pub(super) fn splits(&self) -> [&'static str; 3] {
        match self.task {
            Task::Translation => ["train", "val", "test_2016_flickr"],
            Task::Description { .. } => ["train", "val", "test_2016"],
        }
    }

    /// The languages of the training split.
    pub(super) fn languages(&self) -> Result<Vec<String>> {
        middles(&self.folder.join("raw"), &self.prefix("train"), "")
    }

    /// A split whole, with the texts of `needs`.
    pub(super) fn read(
        &self,
        split: &str,
        language: &str,
        needs: &[Role],
        warnings: &mut Vec<Warning>,
    ) -> Result<Split> {
        let split = match split {
            "validation" => "val",
            "test_2016_flickr" => self.splits()[2],
            other => other,
        };
        let (list, images) = self.images(split)?;
        let mut read = Split::new(images);
        for &role in needs {
            let (path, texts) = match role {
                _ if language == "en" => self.captions(split, "en")?,
                Role::Target => self.captions(split, language)?,
                Role::English => self.captions(split, "en")?,
                Role::FromEnglish | Role::ToEnglish => {
                    let prefix = self.prefix(split);
                    Translations::open(self.translations, "Multi30K")?.read(
                        role,
                        (&prefix, ""),
                        language,
                        warnings,
                    )?
                }
            };
            check_count(&path, texts.len(), &list, read.len())?;
            read.texts[role.index()] = Some(texts);
        }
        Ok(read)
    }

    /// What stands before the language in a caption file's name.
    fn prefix(&self, split: &str) -> String {
        match self.task {
            Task::Translation => format!("{split}."),
            Task::Description { caption } => format!("{split}.{caption}."),
        }
    }

    fn images(&self, split: &str) -> Result<(PathBuf, Vec<String>)> {
        let folder = self.folder.join("image_splits");
        let suffix = match self.task {
            Task::Translation => ".txt",
            Task::Description { .. } => "_images.txt",
        };
        let Some(path) = plain_or_gz(&folder, &format!("{split}{suffix}")) else {
            return Err(bad_input!(
                "{}: no split `{split}`, expected one of {}",
                folder.display(),
                middles(&folder, "", suffix)?.join(", ")
            ));
        };
        let names = read_lines(&path)?
            .iter()
            .map(|name| without_id(name).to_owned())
            .collect();
        Ok((path, names))
    }

    fn captions(&self, split: &str, language: &str) -> Result<(PathBuf, Vec<String>)> {
        let folder = self.folder.join("raw");
        let prefix = self.prefix(split);
        let path = spellings(language)
            .into_iter()
            .find_map(|language| plain_or_gz(&folder, &format!("{prefix}{language}")));
        let Some(path) = path else {
            let has = middles(&folder, &prefix, "")?;
            return Err(bad_input!(
                "{}: split `{split}` has no captions in `{language}`, it has {}; choose one of \
                 these, or another split",
                folder.display(),
                if has.is_empty() {
                    "none at all".to_owned()
                } else {
                    has.join(", ")
                }
            ));
        };
        let lines = read_lines(&path)?;
        Ok((path, lines))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_numbers_are_checked() {
        assert_eq!(Task::new(2, 3).unwrap(), Task::Description { caption: 3 });
        assert_eq!(Task::new(1, 9).unwrap(), Task::Translation);
        assert!(Task::new(3, 1).unwrap_err().to_string().contains("found 3"));
        assert!(Task::new(2, 6).unwrap_err().to_string().contains("found 6"));
    }
}
