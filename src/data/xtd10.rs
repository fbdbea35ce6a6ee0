//! XTD10: 1000 images with a caption in each of eleven languages.
//!
//! Two lay-outs are read: the published repository
//! (github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10: `XTD10/`, `MIC/` and `STAIR/` hold
//! `test_1kcaptions_LANG.txt`) and PECTVLM's flat folder `all/` of `LANG.txt`. Both hold
//! `test_image_names.txt`. Japanese is `jp` in both; `ja` is understood.

use std::path::{Path, PathBuf};

use super::captions::{middles, plain_or_gz, read_lines};
use super::translations::Translations;
use super::{Role, Split, Warning, check_count, spellings};
use crate::bad_input;
use crate::error::{Error, Result};

/// The repository's name, which PECTVLM's folder of translations bears too.
const NAME: &str = "Cross-lingual-Test-Dataset-XTD10";
const IMAGE_NAMES: &str = "test_image_names.txt";

/// The data set's files.
pub(super) struct Xtd10<'a> {
    /// Folders that hold caption files.
    folders: Vec<PathBuf>,
    /// What stands before the language in a caption file's name.
    prefix: &'static str,
    images: PathBuf,
    translations: Option<&'a Path>,
}

impl<'a> Xtd10<'a> {
    /// Finds either lay-out at `root`, or below it when `root` is a folder above.
    pub(super) fn open(root: &Path, translations: Option<&'a Path>) -> Result<Self> {
        for root in [
            root.to_path_buf(),
            root.join(NAME),
            root.join("datasets").join(NAME),
        ] {
            if let Some(images) = plain_or_gz(&root.join("XTD10"), IMAGE_NAMES) {
                let folders = ["XTD10", "MIC", "STAIR"].map(|folder| root.join(folder));
                let folders = folders
                    .into_iter()
                    .filter(|folder| folder.is_dir())
                    .collect();
                return Ok(Xtd10 {
                    folders,
                    prefix: "test_1kcaptions_",
                    images,
                    translations,
                });
            }
            for flat in [root.join("all"), root] {
                let Some(images) = plain_or_gz(&flat, IMAGE_NAMES) else {
                    continue;
                };
                // The repository's own folder XTD10/ has the names too, and half of the languages.
                if let Some(above) = flat.parent().filter(|_| flat.ends_with("XTD10")) {
                    return Self::open(above, translations);
                }
                return Ok(Xtd10 {
                    folders: vec![flat],
                    prefix: "",
                    images,
                    translations,
                });
            }
        }
        Err(bad_input!(
            "{}: holds no {IMAGE_NAMES}, neither in XTD10/ nor in all/; expected a clone of \
             https://github.com/adobe-research/{NAME} or PECTVLM's folder all",
            root.display()
        ))
    }

    /// The languages that have captions.
    pub(super) fn languages(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in &self.folders {
            found.extend(middles(folder, self.prefix, ".txt")?);
        }
        found.retain(|language| language != "test_image_names");
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// All items, with the texts of `needs`.
    pub(super) fn read(
        &self,
        language: &str,
        needs: &[Role],
        warnings: &mut Vec<Warning>,
    ) -> Result<Split> {
        let mut read = Split::new(read_lines(&self.images)?);
        for &role in needs {
            let (path, texts) = match role {
                _ if language == "en" => self.captions("en")?,
                Role::Target => self.captions(language)?,
                Role::English => self.captions("en")?,
                Role::FromEnglish | Role::ToEnglish => Translations::open(self.translations, NAME)?
                    .read(role, ("", ".txt"), language, warnings)?,
            };
            check_count(&path, texts.len(), &self.images, read.len())?;
            read.texts[role.index()] = Some(texts);
        }
        Ok(read)
    }

    fn captions(&self, language: &str) -> Result<(PathBuf, Vec<String>)> {
        let path = spellings(language).into_iter().find_map(|language| {
            let name = format!("{}{language}.txt", self.prefix);
            self.folders
                .iter()
                .find_map(|folder| plain_or_gz(folder, &name))
        });
        match path {
            Some(path) => Ok((path.clone(), read_lines(&path)?)),
            None => Err(self.no_language(language)),
        }
    }

    fn no_language(&self, language: &str) -> Error {
        let has = match self.languages() {
            Ok(has) => has.join(", "),
            Err(error) => return error,
        };
        bad_input!(
            "XTD10 beside {}: no captions in `{language}`, it has {has}; choose one of these",
            self.images.display()
        )
    }
}
