//! The folders of machine translations, `translated_from_en` and `translated_to_en`.
//!
//! PECTVLM publishes them as `datasets/Multi30K/translated_*/SPLIT.LANG` and
//! `datasets/Cross-lingual-Test-Dataset-XTD10/translated_*/LANG.txt`.

use std::fs;
use std::path::{Path, PathBuf};

use super::captions::{middles, plain_or_gz, read_bytes, read_lines};
use super::{Role, Warning, spellings};
use crate::bad_input;
use crate::error::{Error, Result};

/// A data set's folder of translations.
pub(super) struct Translations {
    folder: PathBuf,
}

impl Translations {
    /// Finds the folder at `root`: the data set's own or one above it, up to the repository.
    pub(super) fn open(root: Option<&Path>, dataset: &str) -> Result<Self> {
        let Some(root) = root else {
            return Err(bad_input!(
                "translations: this strategy needs machine translations and no folder was given; \
                 clone https://github.com/eric-ai-lab/PECTVLM and give its path"
            ));
        };
        let below = [
            root.to_path_buf(),
            root.join(dataset),
            root.join("datasets").join(dataset),
            root.join("PECTVLM/datasets").join(dataset),
        ];
        let holds = |folder: &PathBuf| {
            [Role::FromEnglish, Role::ToEnglish]
                .iter()
                .any(|r| folder.join(r.name()).is_dir())
        };
        match below.into_iter().find(holds) {
            Some(folder) => Ok(Translations { folder }),
            None => Err(bad_input!(
                "{}: holds neither translated_from_en nor translated_to_en (nor does \
                 datasets/{dataset} below it); give the path of the PECTVLM repository, or of the \
                 folder that holds the two",
                root.display()
            )),
        }
    }

    /// The texts of `prefix LANG suffix` in the folder of `role`, and their file.
    pub(super) fn read(
        &self,
        role: Role,
        (prefix, suffix): (&str, &str),
        language: &str,
        warnings: &mut Vec<Warning>,
    ) -> Result<(PathBuf, Vec<String>)> {
        let folder = self.folder.join(role.name());
        let path = spellings(language)
            .into_iter()
            .find_map(|language| plain_or_gz(&folder, &format!("{prefix}{language}{suffix}")));
        let Some(path) = path else {
            let has = middles(&folder, prefix, suffix)?;
            let found = match has.is_empty() {
                true => format!("no {prefix}*{suffix}"),
                false => format!("{prefix}*{suffix} of {}", has.join(", ")),
            };
            return Err(bad_input!(
                "{}: expected {prefix}{language}{suffix}, found {found}; choose another language, \
                 or add the file",
                folder.display()
            ));
        };
        if let Some(same_as) = twin(&path, &folder, (prefix, suffix))? {
            warnings.push(Warning::SameTranslation {
                file: path.clone(),
                same_as,
            });
        }
        let lines = read_lines(&path)?;
        Ok((path, lines))
    }
}

/// Another language's file of the same split that equals `path` byte for byte.
fn twin(path: &Path, folder: &Path, (prefix, suffix): (&str, &str)) -> Result<Option<PathBuf>> {
    let size = |path: &Path| {
        fs::metadata(path)
            .map(|m| m.len())
            .map_err(Error::read(path))
    };
    let wanted = size(path)?;
    for language in middles(folder, prefix, suffix)? {
        let Some(other) = plain_or_gz(folder, &format!("{prefix}{language}{suffix}")) else {
            continue;
        };
        if other != path && size(&other)? == wanted && read_bytes(&other)? == read_bytes(path)? {
            return Ok(Some(other));
        }
    }
    Ok(None)
}
