//! The languages of a run or a sweep, each read and tokenised once for all members.

use std::path::Path;
use std::sync::Arc;

use crate::bad_input;
use crate::data::features::Features;
use crate::data::{self, Needs, Protocol, Role, Source};
use crate::engine::Engine;
use crate::error::Result;
use crate::train::examples::Examples;
use crate::train::objective::Strategy;
use crate::train::trainer::{LanguageSet, examples_hash};

/// One language's items.
pub struct LanguageData {
    /// Its code.
    pub language: String,
    /// The texts that its members retrieve with, in the order of [`Role::ALL`].
    pub anchors: Vec<Role>,
    /// To train on; empty for zero-shot.
    pub train: Arc<Examples>,
    /// To choose by.
    pub validation: Arc<Examples>,
    /// To report.
    pub test: Examples,
}

impl LanguageData {
    /// What a member trains on.
    pub fn set(&self) -> LanguageSet {
        LanguageSet {
            train: self.train.clone(),
            validation: Some(self.validation.clone()),
        }
    }
}

/// All languages of a sweep.
pub struct Languages {
    list: Vec<LanguageData>,
    /// Test items with the English captions, where the data set has them: what the others are
    /// compared with.
    pub english: Option<Examples>,
    /// What looks wrong with the data, a line each.
    pub warnings: Vec<String>,
}

/// Reads languages.
pub struct Reader<'a> {
    /// Tokenises.
    pub engine: &'a Engine,
    /// The data set.
    pub source: &'a Source,
    /// How it is cut.
    pub protocol: &'a Protocol,
    /// The images' features.
    pub features: &'a Features,
    /// Where these come from.
    pub file: &'a Path,
}

impl Reader<'_> {
    /// Reads each language with the texts that its strategies need, and the English test items.
    ///
    /// # Errors
    /// As [`data::load`] and [`Examples::new`].
    pub fn read(&self, wanted: &[(String, Vec<Strategy>)]) -> Result<Languages> {
        let mut languages = Languages {
            list: Vec::new(),
            english: None,
            warnings: Vec::new(),
        };
        for (language, strategies) in wanted {
            let (one, warnings) = self.language(language, strategies)?;
            let named = warnings.iter().map(|w| format!("{language}: {w}"));
            languages.warnings.extend(named);
            languages.list.push(one);
        }
        if data::languages(self.source)?.iter().any(|l| l == "en") {
            let needs = Needs {
                train: &[],
                eval: &[Role::Target],
            };
            let loaded = data::load(self.source, "en", self.protocol, needs)?;
            languages.english = Some(self.examples(&loaded.test)?);
        }
        Ok(languages)
    }

    /// Reads a language with the texts that some strategies need; says what looks wrong with its data.
    ///
    /// # Errors
    /// As [`data::load`] and [`Examples::new`].
    pub fn language(
        &self,
        language: &str,
        strategies: &[Strategy],
    ) -> Result<(LanguageData, Vec<String>)> {
        let is = |role: &Role, of: fn(Strategy) -> Option<Role>| {
            strategies.iter().any(|s| of(*s) == Some(*role))
        };
        let anchors: Vec<Role> = Role::ALL
            .into_iter()
            .filter(|role| is(role, |s| Some(s.anchor())))
            .collect();
        let train: Vec<Role> = Role::ALL
            .into_iter()
            .filter(|role| anchors.contains(role) || is(role, Strategy::partner))
            .collect();
        let needs = Needs {
            train: &train,
            eval: &anchors,
        };
        let loaded = data::load(self.source, language, self.protocol, needs)?;
        let data = LanguageData {
            language: language.to_string(),
            train: Arc::new(self.examples(&loaded.train)?),
            validation: Arc::new(self.examples(&loaded.validation)?),
            test: self.examples(&loaded.test)?,
            anchors,
        };
        let warnings = loaded.warnings.iter().map(ToString::to_string);
        Ok((data, warnings.collect()))
    }

    fn examples(&self, split: &data::Split) -> Result<Examples> {
        Examples::new(self.engine, split, self.features, self.file)
    }
}

impl Languages {
    /// In the order in which they were asked for.
    pub fn iter(&self) -> impl Iterator<Item = &LanguageData> {
        self.list.iter()
    }

    /// One of them.
    ///
    /// # Errors
    /// If it was not asked for.
    pub fn get(&self, language: &str) -> Result<&LanguageData> {
        let found = self.list.iter().find(|l| l.language == language);
        found.ok_or_else(|| bad_input!("sweep: the language {language} was not read"))
    }

    /// Tells the data of one sweep from another's.
    pub fn hash(&self) -> u64 {
        let all = self
            .list
            .iter()
            .flat_map(|l| [l.train.as_ref(), l.validation.as_ref(), &l.test]);
        examples_hash(all.chain(&self.english))
    }
}
