//! Whole training steps and encoding, tokens a second: `cargo bench --bench step`; the largest take
//! minutes on a CPU, `-- items28` keeps those of 28 items.
//!
//! On a GPU, captured and replayed as in training: `CROSSTUNE_TEST_DEVICE=cuda:0 cargo bench --features
//! cuda --bench step`. Times are then those of device events around a step, its L2 flushed before, three
//! batches in turn. Without `--bench` (`cargo test --bench step`) each runs once, on the tiny tower.
//! `examples/bench_step.rs` prints one as JSON, with memory and CPU seconds.

mod common;

use std::time::Duration;

use common::place::{Place, THREADS, once};
use common::rig::{note, shares};
use common::{Run, SIZES, config, lengths};
use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};

/// Items of a step: about 200, 1,056 and 4,224 tokens.
fn items() -> &'static [usize] {
    if once() { &[2] } else { &[5, 28, 111] }
}

fn steps(c: &mut Criterion) {
    let sizes = if once() { &SIZES[..1] } else { &SIZES[..] };
    for task in ["train", "encode"] {
        let mut group = c.benchmark_group(task);
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_secs(2));
        for size in sizes {
            for n in items() {
                step(&mut group, task, size, *n);
            }
        }
        group.finish();
    }
}

/// Tokens of a step of `items` texts and their partners, or of encoding as many texts.
fn tokens(task: &str, items: usize) -> usize {
    let sum = |split: &str, n: usize| lengths(split)[..n].iter().sum::<usize>();
    match task {
        "train" => sum("train.de", items) + sum("train.en", items),
        _ => sum("test.de", 2 * items),
    }
}

fn step(group: &mut BenchmarkGroup<'_, WallTime>, task: &str, size: &str, items: usize) {
    let (name, tokens) = (format!("{size}/items{items}"), tokens(task, items));
    let config = config(size).expect("a size");
    // Made where it runs: one that a filter leaves out costs nothing.
    let mut made = None;
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function(&name, |b| {
        let (run, place) = made.get_or_insert_with(|| {
            // A device's memory is one run's at a time.
            let place = Place::open();
            let run = match task {
                "train" => Run::train(&config, items, &place),
                _ => Run::encode(&config, 2 * items, 2 * items, (&place, THREADS)),
            };
            assert_eq!(run.batches[0].tokens(), tokens, "{name}");
            (run.alike(place.sets(), config.vocab), place)
        });
        let cost = run.cost(place);
        b.iter_custom(|times| {
            let step = || {
                place.time(|| {
                    run.step();
                    run.wait();
                })
            };
            let time = std::iter::repeat_with(step).take(times as usize).sum();
            note(&format!("{task}/{name}/T{tokens}"), &cost, time, times);
            time
        })
    });
}

criterion_group!(benches, steps, shares);
criterion_main!(benches);
