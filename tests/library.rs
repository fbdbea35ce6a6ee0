//! The library from Rust: the example itself, cancelling, two engines in one process.

#[path = "../examples/adapt.rs"]
#[allow(dead_code)] // its main is run by hand
mod adapt;
mod common;

use std::ops::ControlFlow;

use common::world::World;
use crosstune::adapter::file::AdapterFile;
use crosstune::engine::{Engine, EngineOptions};
use crosstune::error::{Error, Result};

fn captions(n: usize) -> (Vec<String>, Vec<String>) {
    let colours = ["red", "blue", "green", "grey"];
    let shapes = ["circle", "square", "star"];
    let pick = |i: usize| (colours[i % 4], shapes[i / 4 % 3]);
    let english = (0..n)
        .map(|i| format!("a {} {}", pick(i).0, pick(i).1))
        .collect();
    let other = (0..n)
        .map(|i| format!("the {} that is {}", pick(i).1, pick(i).0))
        .collect();
    (other, english)
}

fn images(n: usize, dim: usize) -> Vec<f32> {
    (0..n * dim)
        .map(|i| ((i * 37 + i / dim * 101) % 17) as f32 - 8.0)
        .collect()
}

fn run(engine: &Engine, stop_at: Option<usize>) -> Result<AdapterFile> {
    let (target, english) = captions(24);
    let images = images(24, engine.embed_dim());
    let mut seen = 0;
    let file = adapt::adapt(engine, &target, &english, images, |step, loss| {
        assert!(loss.is_finite());
        seen = step;
        if Some(step) == stop_at {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    // 24 items in batches of 16, four epochs.
    assert_eq!(seen, 8);
    Ok(file)
}

#[test]
fn the_example_adapts_and_its_adapter_changes_features() {
    let world = World::new();
    let engine = Engine::open(&world.path("model"), EngineOptions::default()).expect("engine");
    let adapter = run(&engine, None).expect("adapted");
    let path = world.path("mine.safetensors");
    adapter.save(&path).expect("saved");
    let loaded = AdapterFile::load(&path).expect("loaded");
    assert_eq!(loaded, adapter);
    let texts = ["a red circle", "a blue star"];
    let plain = engine.encode(&texts, None).expect("features");
    let adapted = engine.encode(&texts, Some(&loaded)).expect("features");
    assert_eq!(plain.len(), adapted.len());
    assert_ne!(plain, adapted);
}

#[test]
fn a_callback_cancels() {
    let world = World::new();
    let engine = Engine::open(&world.path("model"), EngineOptions::default()).expect("engine");
    assert!(matches!(run(&engine, Some(3)), Err(Error::Cancelled)));
}

#[test]
fn two_engines_work_side_by_side() {
    let world = World::new();
    let open = |threads| {
        let options = EngineOptions {
            threads: Some(threads),
            ..EngineOptions::default()
        };
        Engine::open(&world.path("model"), options).expect("engine")
    };
    let (one, two) = (open(1), open(2));
    let alone = run(&one, None).expect("adapted");
    let both = std::thread::scope(|s| {
        let a = s.spawn(|| run(&one, None).expect("adapted"));
        let b = s.spawn(|| run(&two, None).expect("adapted"));
        [a.join().expect("joined"), b.join().expect("joined")]
    });
    assert!(
        both.iter().all(|b| *b == alone),
        "the bytes depend on company"
    );
}
