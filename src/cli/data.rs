//! Options that name a data set, an image feature file and a split.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use crosstune::bad_input;
use crosstune::data::captions::{lines_of, read_lines};
use crosstune::data::features::Features;
use crosstune::data::{self, JsonlFiles, Needs, Protocol, Shots, Source, Split, Task};
use crosstune::error::Error;
use serde::{Deserialize, Serialize};

use super::Output;
use super::compute::ComputeArgs;
use super::images::VisionArgs;

/// The data set.
#[derive(clap::Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// XTD10: the published repository, or PECTVLM's flat folder `all`.
    #[arg(long, value_name = "DIR")]
    pub xtd10: Option<PathBuf>,
    /// Multi30K: the published repository (multi30k/dataset).
    #[arg(long, value_name = "DIR")]
    pub multi30k: Option<PathBuf>,
    /// Multi30K: 1 for translations (one caption an image), 2 for descriptions (five) [default: 1].
    #[arg(long, value_name = "1|2")]
    pub task: Option<u8>,
    /// Multi30K task 2: which of the five captions [default: 1].
    #[arg(long, value_name = "1..5")]
    pub caption: Option<u8>,
    /// Your own data, one JSON object a line: {"image": "1.jpg", "captions": {"de": "ein Hund",
    /// "en": "a dog"}, "split": "train"}. Without "split" it is cut as XTD10 is.
    #[arg(long, value_name = "FILE")]
    pub jsonl: Option<PathBuf>,
    /// Validation items, when --jsonl holds the training items alone.
    #[arg(long, value_name = "FILE")]
    pub jsonl_validation: Option<PathBuf>,
    /// Test items, when --jsonl holds the training items alone.
    #[arg(long, value_name = "FILE")]
    pub jsonl_test: Option<PathBuf>,
    /// Machine translations: the PECTVLM repository, or the folder that holds translated_from_en
    /// and translated_to_en. Needed by baseline2, routine2 and routine3.
    #[arg(long, value_name = "DIR")]
    pub translations: Option<PathBuf>,
    /// Image features: .safetensors (tensor image_features, metadata names) or .npy in list order.
    #[arg(long, value_name = "FILE")]
    pub features: Option<PathBuf>,
    /// Instead of --features: the folder of the pictures that the data set names, in it or
    /// anywhere below it, as COCO's and Flickr30K's are published.
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub vision: VisionArgs,
    /// Items to train on: a number, `full`, or `zero`. XTD10 validates on as many and tests on the
    /// rest [default: 50].
    #[arg(long, value_name = "N|full|zero")]
    #[serde(default, deserialize_with = "text_or_number")]
    pub shots: Option<String>,
    /// Seed of torch.randperm, which chooses the items [default: 42].
    #[arg(long, value_name = "N")]
    pub split_seed: Option<u32>,
}

/// A TOML file may say `shots = 50` or `shots = "full"`.
fn text_or_number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    Ok(Option::<Either>::deserialize(d)?.map(|e| match e {
        Either::Number(n) => n.to_string(),
        Either::Text(t) => t,
    }))
}

impl DataArgs {
    /// The data set that the options name.
    pub fn source(&self) -> Result<Source> {
        let given = [
            self.xtd10.is_some(),
            self.multi30k.is_some(),
            self.jsonl.is_some(),
        ];
        if given.iter().filter(|g| **g).count() != 1 {
            return Err(bad_input!(
                "data: expected exactly one of --xtd10 DIR, --multi30k DIR and --jsonl FILE"
            )
            .into());
        }
        let translations = self.translations.clone();
        if let Some(root) = self.xtd10.clone() {
            return Ok(Source::Xtd10 { root, translations });
        }
        if let Some(root) = self.multi30k.clone() {
            let task = Task::new(self.task.unwrap_or(1), self.caption.unwrap_or(1))?;
            return Ok(Source::Multi30k {
                root,
                task,
                translations,
            });
        }
        let train = self.jsonl.clone().unwrap_or_default();
        let files = match (self.jsonl_validation.clone(), self.jsonl_test.clone()) {
            (None, None) => JsonlFiles::One(train),
            (Some(validation), Some(test)) => JsonlFiles::Three {
                train,
                validation,
                test,
            },
            _ => {
                return Err(bad_input!(
                    "data: --jsonl-validation and --jsonl-test go together; found one of them"
                )
                .into());
            }
        };
        Ok(Source::Jsonl(files))
    }

    /// How the data set is cut.
    pub fn protocol(&self) -> Result<Protocol> {
        let default = Protocol::default();
        let shots = match self.shots.as_deref() {
            None => default.shots,
            Some("full") => Shots::Full,
            Some("zero") => Shots::Zero,
            Some(n) => Shots::Few(usize::from_str(n).map_err(|_| {
                bad_input!("shots: found `{n}`, expected a number, `full` or `zero`")
            })?),
        };
        Ok(Protocol {
            shots,
            split_seed: self.split_seed.unwrap_or(default.split_seed),
            ..default
        })
    }

    /// The image features, and the file or folder that they are from. Of a folder's pictures, those
    /// that `names` gives are encoded.
    pub fn image_features(
        &self,
        names: impl FnOnce() -> Result<Vec<String>>,
        how: (&ComputeArgs, Output),
    ) -> Result<(Features, PathBuf)> {
        let Some(images) = &self.images else {
            if let Some(option) = self.vision.given() {
                return Err(bad_input!("{option}: goes with --images DIR").into());
            }
            let what = "FILE with image features, or --images DIR and --vision DIR";
            let path = required(&self.features, "features", what)?;
            return Ok((Features::load(&path)?, path));
        };
        if self.features.is_some() {
            return Err(bad_input!("images: goes without --features; drop one").into());
        }
        let features = self.vision.features(images, &names()?, how)?;
        Ok((features, images.clone()))
    }

    /// The images that runs in some languages need.
    pub fn images_of(&self, languages: &[String]) -> Result<Vec<String>> {
        let (source, protocol) = (self.source()?, self.protocol()?);
        let needs = Needs {
            train: &[],
            eval: &[],
        };
        let mut splits = Vec::new();
        for language in languages {
            let loaded = data::load(&source, language, &protocol, needs)?;
            splits.extend([loaded.train, loaded.validation, loaded.test]);
        }
        Ok(names_in(&splits))
    }
}

/// The images of some splits, each once.
pub fn names_in<'s>(splits: impl IntoIterator<Item = &'s Split>) -> Vec<String> {
    let mut seen = HashSet::new();
    let all = splits.into_iter().flat_map(|split| &split.images);
    all.filter(|name| seen.insert(*name)).cloned().collect()
}

/// An option that has no default.
pub fn required<T: Clone>(value: &Option<T>, name: &str, what: &str) -> Result<T, Error> {
    value
        .clone()
        .ok_or_else(|| bad_input!("{name}: missing; give --{name} {what}"))
}

/// The lines of a file, or of standard input for `-`; and what messages call it.
pub fn lines_or_stdin(file: &Path) -> Result<(Vec<String>, PathBuf)> {
    const STDIN: &str = "standard input";
    if file != Path::new("-") {
        return Ok((read_lines(file)?, file.to_path_buf()));
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().read_to_end(&mut bytes);
    read.map_err(Error::read(STDIN))?;
    Ok((lines_of(bytes, Path::new(STDIN))?, STDIN.into()))
}
