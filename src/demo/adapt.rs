//! Zero-shot recall, then adapters for the languages that the model knows least, all in one
//! run.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::captions::Language;
use super::event::{DemoEvent, Phase, Teller};
use super::html::Sample;
use super::recipe::Recipe;
use crate::adapter::{Adapter, LoraConfig};
use crate::data::features::Features;
use crate::data::{JsonlFiles, Needs, Protocol, Role, Shots, Source, load};
use crate::engine::{Engine, TextEncoder};
use crate::error::{Error, Result};
use crate::eval::retrieval::Recall;
use crate::train::config::{MemberConfig, Shared};
use crate::train::examples::Examples;
use crate::train::objective::Strategy;
use crate::train::trainer::{Event, Member, Trainer, evaluate};

/// The strategies that are compared.
pub(super) const STRATEGIES: [Strategy; 2] = [Strategy::Baseline1, Strategy::Routine1];

/// Languages and number of the pictures that are shown in the report.
const SHOWN: [Language; 3] = [Language::En, Language::Es, Language::Ko];
const N_SHOWN: usize = 6;

/// A language's items, read back from the folder as a user's own data would be.
pub(super) struct LanguageData {
    pub(super) language: Language,
    train: Arc<Examples>,
    test: Examples,
    /// Picture and caption of the first test items.
    shown: Vec<(String, String)>,
}

/// A few pictures with their captions in some languages.
pub(super) fn samples(data: &[LanguageData]) -> Vec<Sample> {
    let shown = data.iter().filter(|d| SHOWN.contains(&d.language));
    let one = |i: usize| {
        let texts = shown
            .clone()
            .filter_map(|d| Some((d.language, d.shown.get(i)?)));
        Sample {
            image: texts
                .clone()
                .next()
                .map(|(_, (image, _))| image.clone())
                .unwrap_or_default(),
            captions: texts
                .map(|(language, (_, text))| (language, text.clone()))
                .collect(),
        }
    };
    let n = data.first().map_or(0, |d| d.shown.len());
    (0..n).map(one).collect()
}

/// What adaptation leaves.
pub(super) struct Adapted {
    /// Each adapted language, with each of [`STRATEGIES`].
    pub(super) recalls: Vec<(Language, [Recall; 2])>,
    /// Trainable parameters of one adapter.
    pub(super) parameters: usize,
    /// Packed tokens of all steps.
    pub(super) tokens: usize,
    /// Seconds of all steps, without evaluation.
    pub(super) seconds: f64,
}

/// Reads every language.
pub(super) fn read(engine: &Engine, folder: &Path) -> Result<Vec<LanguageData>> {
    let file = folder.join("features.safetensors");
    let features = Features::load(&file)?;
    let source = Source::Jsonl(JsonlFiles::One(folder.join("world.jsonl")));
    let protocol = Protocol {
        shots: Shots::Full,
        ..Protocol::default()
    };
    let needs = Needs {
        train: &[Role::Target, Role::English],
        eval: &[Role::Target],
    };
    let one = |language: Language| {
        let loaded = load(&source, language.code(), &protocol, needs)?;
        let texts = loaded.test.text(Role::Target).unwrap_or_default();
        let shown = loaded.test.images.iter().zip(texts).take(N_SHOWN);
        let shown = shown.map(|(image, text)| (image.clone(), text.clone()));
        Ok(LanguageData {
            language,
            shown: shown.collect(),
            train: Arc::new(Examples::new(engine, &loaded.train, &features, &file)?),
            test: Examples::new(engine, &loaded.test, &features, &file)?,
        })
    };
    Language::ALL.into_iter().map(one).collect()
}

/// Recall of the model as it is.
pub(super) fn zero_shot(
    engine: &Engine,
    data: &[LanguageData],
    teller: &mut Teller<'_>,
) -> Result<Vec<Recall>> {
    let mut encoder = TextEncoder::new(engine, &Adapter::default())?;
    let mut recalls = Vec::new();
    for d in data {
        let recall = evaluate(engine, &mut encoder, &d.test, Role::Target)?;
        recalls.push(recall.clone());
        teller.tell(DemoEvent::Recall {
            language: d.language,
            strategy: None,
            recall,
        })?;
    }
    Ok(recalls)
}

/// The `n` languages with the lowest recall, in the order of `data`. English is never one: it is
/// what the others are drawn to.
fn weakest<'d>(data: &'d [LanguageData], before: &[Recall], n: usize) -> Vec<&'d LanguageData> {
    let mut ranked: Vec<(usize, f64)> = before.iter().map(Recall::mean_r1).enumerate().collect();
    ranked.retain(|(i, _)| data[*i].language != Language::En);
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    ranked.truncate(n);
    ranked.sort_by_key(|(i, _)| *i);
    ranked.into_iter().map(|(i, _)| &data[i]).collect()
}

/// Branches beside every linear layer but query and key: words that the frozen tower hardly knows
/// need more than a shift of its attention.
fn adapter(rank: usize) -> Adapter {
    let lora = LoraConfig {
        rank,
        targets: vec!["value".into(), "dense".into()],
        ..LoraConfig::default()
    };
    Adapter {
        lora: Some(lora),
        layer_norms: true,
        ..Adapter::default()
    }
}

/// Trains an adapter for each of the weakest languages and each strategy, saves them and measures recall again.
pub(super) fn adapt(
    engine: &Engine,
    (data, before): (&[LanguageData], &[Recall]),
    (recipe, seed): (&Recipe, u64),
    folder: &Path,
    teller: &mut Teller<'_>,
) -> Result<Adapted> {
    let data = weakest(data, before, recipe.n_adapted);
    let shared = Shared {
        adapter: adapter(recipe.rank),
        ..Shared::default()
    };
    let member = |d: &LanguageData, strategy: Strategy| {
        let config = MemberConfig {
            ratio: recipe.ratio,
            ..recipe.adaptation.member(strategy, seed)
        };
        Member::new(config, d.train.clone(), None)
    };
    let members = data
        .iter()
        .flat_map(|d| STRATEGIES.map(|strategy| member(d, strategy)))
        .collect();
    let mut trainer = Trainer::new(engine, shared, members)?;
    let (mut tokens, mut seconds) = (0, 0.0);
    let outcomes = trainer.run(&mut |event| {
        // A step is reported once for each member, with the tokens and seconds of all.
        if let Event::Step(step) = event
            && step.member == 0
        {
            tokens += step.tokens;
            seconds += step.seconds;
        }
        teller.pass(Phase::Adaptation, event)
    })?;
    fs::create_dir_all(folder).map_err(Error::write(folder))?;
    let mut recalls = Vec::new();
    for (d, pair) in data.iter().zip(outcomes.chunks(STRATEGIES.len())) {
        let first = recalls.len() * STRATEGIES.len();
        for (strategy, outcome) in STRATEGIES.iter().zip(pair) {
            let name = format!("{}-{strategy}.safetensors", d.language.code());
            outcome.last.save(&folder.join(name))?;
        }
        let mut measure = |i: usize| -> Result<Recall> {
            let recall = trainer.evaluate(first + i, &d.test)?;
            teller.tell(DemoEvent::Recall {
                language: d.language,
                strategy: Some(STRATEGIES[i]),
                recall: recall.clone(),
            })?;
            Ok(recall)
        };
        recalls.push((d.language, [measure(0)?, measure(1)?]));
    }
    Ok(Adapted {
        recalls,
        parameters: trainer.parameters(),
        tokens,
        seconds,
    })
}
