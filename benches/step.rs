//! Whole training steps and encoding, tokens a second: `cargo bench --bench step`.
//!
//! On a GPU, captured and replayed as in training: `CROSSTUNE_TEST_DEVICE=cuda:0 cargo bench --features
//! cuda --bench step`. Without `--bench` (`cargo test --bench step`) each runs once, on the tiny tower.
//! `examples/bench_step.rs` prints one as JSON, with memory and CPU seconds.

mod common;

use std::time::{Duration, Instant};

use common::place::{Place, once};
use common::rig::{note, shares};
use common::{Run, SIZES, config};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

/// Items of a step: about 200, 1,056 and 4,224 tokens, as far as a CPU makes them within seconds.
fn items(size: &str, place: &Place) -> &'static [usize] {
    match (size, place.is_device()) {
        _ if once() => &[2],
        ("large", false) => &[5],
        ("base", false) => &[5, 28],
        _ => &[5, 28, 111],
    }
}

fn steps(c: &mut Criterion) {
    let sizes = if once() { &SIZES[..1] } else { &SIZES[..] };
    for task in ["train", "encode"] {
        let mut group = c.benchmark_group(task);
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_secs(2));
        for size in sizes {
            let config = config(size).expect("a size");
            for n in items(size, &Place::open()) {
                let name = format!("{size}/items{n}");
                // A device's memory is one run's at a time.
                let place = Place::open();
                let mut run = match task {
                    "train" => Run::train(&config, *n, &place),
                    // As many texts as a step of so many items has.
                    _ => Run::encode(&config, 2 * n, 2 * n, (&place, common::place::THREADS)),
                };
                // One batch, so that every step has the same tokens.
                run.batches.truncate(1);
                let (cost, tokens) = (run.cost(&place), run.batches[0].tokens());
                group.throughput(Throughput::Elements(tokens as u64));
                group.bench_function(&name, |b| {
                    b.iter_custom(|times| {
                        let start = Instant::now();
                        for _ in 0..times {
                            run.step();
                        }
                        run.wait();
                        let time = start.elapsed();
                        note(&format!("{task}/{name}/T{tokens}"), &cost, time, times);
                        time
                    })
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, steps, shares);
criterion_main!(benches);
