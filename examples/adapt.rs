//! The main job from Rust: captions and image features in memory, an adapter out.
//!
//! `crosstune demo` makes the folder that this reads:
//! `cargo run --release --example adapt -- crosstune-demo/model crosstune-demo/world.jsonl
//! crosstune-demo/features.safetensors ko`

use std::{ops::ControlFlow, path::Path, sync::Arc};

use crosstune::adapter::{Adapter, file::AdapterFile};
use crosstune::data::{self, JsonlFiles, Needs, Protocol, Role, Shots, Source, features::Features};
use crosstune::engine::{Engine, EngineOptions};
use crosstune::error::Result;
use crosstune::train::config::{MemberConfig, Shared};
use crosstune::train::examples::Examples;
use crosstune::train::trainer::{Event, Member, Trainer};

/// Adapts a model to captions that belong to images; `progress` may stop it.
pub fn adapt(
    engine: &Engine,
    captions: &[String],
    english: &[String],
    images: Vec<f32>,
    mut progress: impl FnMut(usize, f32) -> ControlFlow<()>,
) -> Result<AdapterFile> {
    let texts = [(Role::Target, captions), (Role::English, english)];
    let train = Arc::new(Examples::in_memory(engine, &texts, images)?);
    let config = MemberConfig {
        epochs: 4,
        batch: 16,
        lr: 1e-3,
        ..MemberConfig::default()
    };
    let shared = Shared {
        adapter: Adapter::lora(4),
        ..Shared::default()
    };
    let member = Member::new(config, train, None);
    let mut trainer = Trainer::new(engine, shared, vec![member])?;
    let outcomes = trainer.run(&mut |event| match event {
        Event::Step(s) => progress(s.step, s.loss),
        _ => ControlFlow::Continue(()),
    })?;
    Ok(outcomes[0].last.clone())
}

/// Reads the demo's files and adapts its model.
#[allow(dead_code)] // the test of this example calls `adapt`
fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, captions, features, language] = &args[..] else {
        eprintln!("usage: adapt MODEL CAPTIONS.jsonl FEATURES.safetensors LANGUAGE");
        std::process::exit(2);
    };
    let engine = Engine::open(Path::new(model), EngineOptions::default())?;
    let source = Source::Jsonl(JsonlFiles::One(captions.into()));
    let needs = Needs {
        train: &[Role::Target, Role::English],
        eval: &[],
    };
    let protocol = Protocol {
        shots: Shots::Full,
        ..Protocol::default()
    };
    let split = data::load(&source, language, &protocol, needs)?.train;
    let features = Features::load(Path::new(features))?;
    let index = features.index();
    let rows = split
        .images
        .iter()
        .filter_map(|name| index.get(name.as_str()));
    let images = rows.flat_map(|row| features.row(*row)).copied().collect();
    let texts = |role| split.text(role).unwrap_or_default();
    let adapter = adapt(
        &engine,
        texts(Role::Target),
        texts(Role::English),
        images,
        |step, loss| {
            println!("step {step}: loss {loss:.4}");
            ControlFlow::Continue(())
        },
    )?;
    adapter.save(Path::new("adapter.safetensors"))
}
