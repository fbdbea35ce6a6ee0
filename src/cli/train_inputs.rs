//! Everything that a run reads: the model, and what each language is trained and measured on.

use anyhow::Result;
use crosstune::bad_input;
use crosstune::data::{self, Shots, Source};
use crosstune::engine::Engine;
use crosstune::error::Error;
use crosstune::train::config::MemberConfig;
use crosstune::train::languages::{LanguageData, Reader};
use crosstune::train::objective::Strategy;
use crosstune::train::trainer::Member;

use super::Output;
use super::data::required;
use super::train::Args;

/// Everything that a run reads.
pub struct Inputs {
    /// The model.
    pub engine: Engine,
    /// The languages, in the order given.
    pub languages: Vec<LanguageData>,
    /// Whether one member learns all of them; else each has a member of its own.
    pub joint: bool,
    /// What looks wrong in the data.
    pub warnings: Vec<String>,
}

impl Inputs {
    /// Opens the model and reads the data.
    pub fn open(args: &Args, lang: &str, strategy: Strategy, output: Output) -> Result<Inputs> {
        let joint = args.recipe.joint.unwrap_or(false);
        let model = required(&args.model, "model", "DIR of an M-CLIP model")?;
        let mut engine = args.recipe.compute.open(&model)?;
        if args.profile {
            engine = engine.profiled();
        }
        let source = args.data.source()?;
        let protocol = args.data.protocol()?;
        if protocol.shots == Shots::Zero {
            return Err(bad_input!(
                "shots: zero trains nothing; `crosstune eval` measures zero-shot"
            )
            .into());
        }
        let names = language_names(&source, lang)?;
        if joint && names.len() < 2 {
            return Err(bad_input!(
                "joint: found one language, `{lang}`; expected several, such as --lang de,fr"
            )
            .into());
        }
        let (features, file) = args.data.image_features(
            || args.data.images_of(&names),
            (&args.recipe.compute, output),
        )?;
        let reader = Reader {
            engine: &engine,
            source: &source,
            protocol: &protocol,
            features: &features,
            file: &file,
        };
        let (mut languages, mut warnings) = (Vec::new(), Vec::new());
        for name in &names {
            let (language, found) = reader.language(name, &[strategy])?;
            languages.push(language);
            warnings.extend(found.into_iter().map(|w| match names.len() {
                1 => w,
                _ => format!("{name}: {w}"),
            }));
        }
        Ok(Inputs {
            engine,
            languages,
            joint,
            warnings,
        })
    }

    /// Items of the largest language.
    pub fn most_items(&self) -> usize {
        let items = self.languages.iter().map(|l| l.train.len());
        items.max().unwrap_or(0)
    }

    /// The languages of each member.
    pub fn members(&self) -> Vec<&[LanguageData]> {
        let size = if self.joint { self.languages.len() } else { 1 };
        self.languages.chunks(size).collect()
    }

    /// The members of a run, all with one configuration.
    pub fn train_members(&self, config: &MemberConfig) -> Vec<Member> {
        let member = |languages: &[LanguageData]| Member {
            config: config.clone(),
            languages: languages.iter().map(LanguageData::set).collect(),
        };
        self.members().into_iter().map(member).collect()
    }

    /// What a member is called: its languages, with commas between.
    pub fn label(&self, member: usize) -> String {
        let members = self.members();
        joined(members.get(member).copied().unwrap_or_default())
    }

    /// All languages, with commas between.
    pub fn names(&self) -> String {
        joined(&self.languages)
    }
}

fn joined(languages: &[LanguageData]) -> String {
    let names = languages.iter().map(|l| l.language.as_str());
    names.collect::<Vec<_>>().join(",")
}

/// The languages that --lang names.
fn language_names(source: &Source, lang: &str) -> Result<Vec<String>, Error> {
    if lang == "all" {
        return data::languages(source);
    }
    let names: Vec<String> = lang.split(',').map(|n| n.trim().to_string()).collect();
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(bad_input!(
                "lang: found an empty name in `{lang}`, expected names with commas between"
            ));
        }
        if names[..i].contains(name) {
            return Err(bad_input!("lang: `{name}` is named twice in `{lang}`"));
        }
    }
    Ok(names)
}
