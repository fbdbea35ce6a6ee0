//! The demo's "published" model: English first, then distillation on uneven data.
//!
//! M-CLIP's recipe (Carlsson et al., LREC 2022) in small. A text tower learns English from captions
//! and pictures; its English features are then the targets of machine-translated captions, of which
//! a language has many or few, good or bad. What comes out knows some languages well and others
//! badly, and is frozen from then on.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::captions::Language;
use super::event::{DemoEvent, Phase, Teller};
use super::features::D;
use super::model::{Tensors, random, write_config, write_json, write_weights};
use super::png::to_png;
use super::recipe::{Recipe, Stage};
use super::run::DemoOptions;
use super::sight::{TowerReport, give_sight, is_whole};
use super::tokenizer;
use super::world::{World, write_jsonl};
use crate::adapter::Adapter;
use crate::bad_input;
use crate::data::Role;
use crate::engine::{Engine, EngineOptions, TextEncoder, pool};
use crate::error::{Error, Result};
use crate::ops::philox::Stream;
use crate::train::config::Shared;
use crate::train::examples::Examples;
use crate::train::objective::Strategy;
use crate::train::trainer::{Member, Trainer};
use crate::weights::write::write_atomic;

/// Changes when the same seed and recipe would give another model.
const FORMAT: &str = "crosstune demo 2";

/// What a folder holds: written unfinished before anything else, finished after everything else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Stamp {
    format: String,
    finished: bool,
    seed: u64,
    recipe: Recipe,
    /// Parameters of the model.
    pub(super) parameters: usize,
    /// Pieces of its vocabulary.
    pub(super) vocab: usize,
    /// Captions that each language was pre-trained on, in the order of [`Language::ALL`].
    pub(super) captions: Vec<usize>,
    /// What became of the vision tower.
    pub(super) tower: TowerReport,
    /// Seconds of world, vision, English and distillation when they were made.
    pub(super) seconds: [f64; 4],
}

/// Opens the folder's model, made now if it is not there yet; says whether it was.
pub(super) fn prepare(
    options: &DemoOptions,
    teller: &mut Teller<'_>,
) -> Result<(Engine, Stamp, bool)> {
    let folder = &options.folder;
    fs::create_dir_all(folder).map_err(Error::write(folder))?;
    let engine = EngineOptions {
        threads: options.threads,
        ..EngineOptions::default()
    };
    if let Some((engine, stamp)) = cached(options, engine)? {
        let folder = folder.clone();
        teller.tell(DemoEvent::Cached { folder })?;
        return Ok((engine, stamp, true));
    }
    let (engine, stamp) = make(options, engine, teller)?;
    Ok((engine, stamp, false))
}

/// The finished model of the same demo, if the folder holds it whole.
fn cached(options: &DemoOptions, engine: EngineOptions) -> Result<Option<(Engine, Stamp)>> {
    let folder = &options.folder;
    let path = folder.join("demo.json");
    let Ok(text) = fs::read_to_string(&path) else {
        return refuse_foreign(folder).map(|()| None);
    };
    let Ok(stamp) = serde_json::from_str::<Stamp>(&text) else {
        return Ok(None);
    };
    let same = stamp.format == FORMAT && stamp.seed == options.seed;
    let whole = || {
        let data = ["world.jsonl", "features.safetensors"];
        data.iter().all(|name| folder.join(name).is_file()) && is_whole(folder)
    };
    if !(stamp.finished && same && stamp.recipe.gives_the_model_of(&options.recipe) && whole()) {
        return Ok(None);
    }
    // A model that was damaged since is made again.
    let opened = Engine::open(&folder.join("model"), engine).ok();
    Ok(opened.map(|engine| (engine, stamp)))
}

/// A folder without a stamp must be empty: what lies there is not the demo's to overwrite.
fn refuse_foreign(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::read(folder))? {
        let name = entry.map_err(Error::read(folder))?.file_name();
        if !name.to_string_lossy().starts_with(".crosstune-") {
            return Err(bad_input!(
                "{}: holds {} but no demo.json, so it is not a demo's folder; name an empty or a \
                 new one",
                folder.display(),
                name.to_string_lossy()
            ));
        }
    }
    Ok(())
}

fn make(
    options: &DemoOptions,
    engine: EngineOptions,
    teller: &mut Teller<'_>,
) -> Result<(Engine, Stamp)> {
    let (folder, recipe) = (&options.folder, &options.recipe);
    let model = folder.join("model");
    let mut stamp = Stamp {
        format: FORMAT.into(),
        finished: false,
        seed: options.seed,
        recipe: *recipe,
        parameters: 0,
        vocab: 0,
        captions: vec![],
        tower: TowerReport::default(),
        seconds: [0.0; 4],
    };
    write_json(&folder.join("demo.json"), &stamp)?;

    let made = teller.phase(Phase::World, |_| make_world(options, engine))?;
    let mut world;
    ((world, stamp.vocab), stamp.seconds[0]) = made;

    (stamp.tower, stamp.seconds[1]) = teller.phase(Phase::Vision, |teller| {
        give_sight(options, engine, &mut world, teller)
    })?;

    let (teacher, seconds) = teller.phase(Phase::English, |teller| {
        let engine = Engine::open(&model, engine)?;
        let data = english_examples(&engine, &world)?;
        train(
            &engine,
            data,
            recipe.english,
            options.seed,
            (Phase::English, teller),
        )
    })?;
    stamp.seconds[2] = seconds;
    write_weights(&model, &teacher)?;

    let (student, seconds) = teller.phase(Phase::Distillation, |teller| {
        let engine = Engine::open(&model, engine)?;
        let data = distillation_examples(&engine, &world, recipe.noise)?;
        let stage = recipe.distillation;
        train(
            &engine,
            data,
            stage,
            options.seed,
            (Phase::Distillation, teller),
        )
    })?;
    stamp.seconds[3] = seconds;
    write_weights(&model, &student)?;

    stamp.parameters = student.iter().map(|(_, _, values)| values.len()).sum();
    stamp.captions = Language::ALL
        .map(|language| world.pool_pairs(language).count())
        .to_vec();
    stamp.finished = true;
    let engine = Engine::open(&model, engine)?;
    write_json(&folder.join("demo.json"), &stamp)?;
    Ok((engine, stamp))
}

/// Draws the world and writes its data and a random model; gives the size of the vocabulary too.
fn make_world(options: &DemoOptions, engine: EngineOptions) -> Result<(World, usize)> {
    let (folder, recipe) = (&options.folder, &options.recipe);
    let world = pool(engine.threads)?.install(|| World::new(&recipe.world(options.seed)));
    write_jsonl(&folder.join("world.jsonl"), &world.items)?;
    write_pictures(&folder.join("pictures"), &world)?;

    let model = folder.join("model");
    fs::create_dir_all(&model).map_err(Error::write(&model))?;
    let text = tokenizer::build(world.texts(), recipe.vocab);
    write_atomic(&model.join("tokenizer.json"), |out| {
        out.write_all(text.as_bytes())
    })?;
    // The table has the recipe's rows whether or not the texts fill them.
    let sizes = recipe.sizes(recipe.vocab, D);
    write_config(&model, recipe, &sizes)?;
    write_weights(&model, &random(&sizes, options.seed))?;
    let vocab = Engine::open(&model, engine)?.tokenizer()?.0.vocab_size();
    Ok((world, vocab))
}

fn write_pictures(folder: &Path, world: &World) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::write(folder))?;
    for item in &world.items {
        let path = folder.join(&item.image);
        fs::write(&path, to_png(&item.picture())?).map_err(Error::write(&path))?;
    }
    Ok(())
}

/// English captions of the pool against their pictures.
fn english_examples(engine: &Engine, world: &World) -> Result<Examples> {
    let pairs = || world.pool_pairs(Language::En);
    let texts: Vec<&str> = pairs().map(|pair| pair.en).collect();
    let images = pairs().flat_map(|pair| pair.features).copied().collect();
    examples(engine.tokenize(&texts)?, images, engine)
}

/// Whether every other caption of a language was written by a person, not a machine: the commoner
/// languages are luckier in this, too.
fn told_by_people(language: Language) -> bool {
    matches!(language, Language::De | Language::Fr)
}

/// Captions in every language, as many as each has. English ones go on meeting their pictures; the
/// others meet the teacher's features of their English originals.
///
/// Noise on these makes the contrastive loss mind every direction of the space, as M-CLIP's squared
/// error does: without it the student is free to drift where texts do not vary but pictures do.
fn distillation_examples(engine: &Engine, world: &World, noise: f32) -> Result<Examples> {
    let english: Vec<&str> = world.pool_pairs(Language::En).map(|p| p.en).collect();
    let mut teacher = TextEncoder::new(engine, &Adapter::default())?;
    let targets = teacher.encode(engine, &engine.tokenize(&english)?, &mut |_| {})?;
    let dim = engine.embed_dim();
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    for language in Language::ALL {
        let pairs = world.pool_pairs(language).zip(targets.chunks_exact(dim));
        for (i, (pair, target)) in pairs.enumerate() {
            let person = told_by_people(language) && i % 2 == 0;
            texts.push(if person { pair.native } else { pair.translated });
            if language == Language::En {
                images.extend_from_slice(pair.features);
                continue;
            }
            let norm = target.iter().map(|x| x * x).sum::<f32>().sqrt();
            let draw = Stream::named(i as u64, language.code());
            let added = draw.normal(dim, noise / (dim as f32).sqrt());
            images.extend(target.iter().zip(added).map(|(x, n)| x / norm + n));
        }
    }
    examples(engine.tokenize(&texts)?, images, engine)
}

fn examples(texts: Vec<Vec<u32>>, images: Vec<f32>, engine: &Engine) -> Result<Examples> {
    let dim = engine.embed_dim();
    let mut examples = Examples {
        images,
        dim,
        ..Examples::default()
    };
    examples.texts[Role::Target.index()] = texts;
    Ok(examples)
}

/// Trains every tensor by itc(image, caption); gives their values.
fn train(
    engine: &Engine,
    data: Examples,
    stage: Stage,
    seed: u64,
    (phase, teller): (Phase, &mut Teller<'_>),
) -> Result<Tensors> {
    let shared = Shared {
        adapter: Adapter::full(),
        hidden_dropout: Some(0.0),
        attention_dropout: Some(0.0),
        max_tokens: None,
    };
    let config = stage.member(Strategy::Baseline1, seed);
    let member = Member::new(config, Arc::new(data), None);
    let mut trainer = Trainer::new(engine, shared, vec![member])?;
    let outcomes = trainer.run(&mut |event| teller.pass(phase, event))?;
    let last = outcomes
        .into_iter()
        .next()
        .map(|outcome| outcome.last.tensors);
    last.ok_or_else(|| Error::Run("pre-training left no model".into()))
}
