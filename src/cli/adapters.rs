//! Which adapter encodes which language.

use std::path::{Path, PathBuf};

use anyhow::Result;
use crosstune::adapter::file::AdapterFile;
use crosstune::adapter_set::AdapterSet;
use crosstune::bad_input;
use crosstune::data::spellings;
use crosstune::engine::Engine;

/// Options that name adapters.
#[derive(clap::Args, Clone, Debug)]
pub struct AdapterArgs {
    /// An adapter to use; LANG=FILE uses it for texts of that language alone, LANG=none the bare
    /// model. May be given several times; one without LANG serves all other languages.
    #[arg(long, value_name = "[LANG=]FILE")]
    adapter: Vec<PathBuf>,
}

/// The adapters of a command.
pub struct Adapters {
    /// A slot each, in the order given; none is the model as it is.
    slots: Vec<Option<(PathBuf, AdapterFile)>>,
    /// Languages with their slots.
    by_language: Vec<(String, usize)>,
    /// The slot of all other languages, if there is one.
    others: Option<usize>,
}

impl AdapterArgs {
    /// Whether there are any.
    pub fn is_given(&self) -> bool {
        !self.adapter.is_empty()
    }

    /// Reads the files.
    pub fn load(&self) -> Result<Adapters> {
        let mut all = Adapters {
            slots: vec![],
            by_language: vec![],
            others: None,
        };
        for given in &self.adapter {
            let (language, file) = by_language(given);
            let slot = match language.is_some() && file.as_os_str() == "none" {
                true => all.push(None),
                false => {
                    let loaded = AdapterFile::load(&file)?;
                    all.push(Some((file, loaded)))
                }
            };
            let again = match language {
                Some(l) => {
                    let again = all.find(&l).is_some();
                    all.by_language.push((l, slot));
                    again
                }
                None => all.others.replace(slot).is_some(),
            };
            if again {
                let which = given.display();
                return Err(bad_input!("adapter: `{which}` is the second for its language").into());
            }
        }
        if self.adapter.is_empty() {
            all.others = Some(all.push(None));
        }
        Ok(all)
    }
}

/// `LANG=FILE` as its parts; anything else is a file.
fn by_language(given: &Path) -> (Option<String>, PathBuf) {
    let parts = given.to_str().and_then(|text| text.split_once('='));
    match parts {
        Some((language, file)) if language.chars().all(|c| c.is_alphanumeric() || c == '-') => {
            (Some(language.to_owned()), file.into())
        }
        _ => (None, given.to_path_buf()),
    }
}

impl Adapters {
    fn push(&mut self, slot: Option<(PathBuf, AdapterFile)>) -> usize {
        self.slots.push(slot);
        self.slots.len() - 1
    }

    fn find(&self, language: &str) -> Option<usize> {
        let same = |l: &str| spellings(language).iter().any(|s| s == l);
        let own = self.by_language.iter().find(|(l, _)| same(l));
        own.map(|(_, slot)| *slot)
    }

    /// Whether languages have adapters of their own.
    pub fn by_language(&self) -> bool {
        !self.by_language.is_empty()
    }

    /// The slot of texts whose language is not told: there is one if no language has its own.
    pub fn slot_of_all(&self) -> usize {
        self.others.unwrap_or_default()
    }

    /// The slot of a language's texts.
    ///
    /// # Errors
    /// If other languages have adapters and this one has none.
    pub fn slot(&self, language: &str) -> Result<usize> {
        let slot = self.find(language).or(self.others);
        Ok(slot.ok_or_else(|| {
            bad_input!(
                "adapter: none for `{language}`; give --adapter {language}=FILE, or \
                 {language}=none for the bare model"
            )
        })?)
    }

    /// The file of a slot; none for the bare model.
    pub fn file(&self, slot: usize) -> Option<&Path> {
        self.slots[slot].as_ref().map(|(path, _)| path.as_path())
    }

    /// All slots, bound to memory.
    pub fn bind(&self, engine: &Engine) -> Result<AdapterSet> {
        let slots = self.slots.iter();
        let slots: Vec<_> = slots.map(|s| s.as_ref().map(|(_, file)| file)).collect();
        Ok(AdapterSet::new(engine, &slots)?)
    }
}
