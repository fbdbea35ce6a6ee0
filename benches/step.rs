//! Whole training steps and encoding, tokens a second: `cargo bench --bench step`.
//!
//! `examples/bench_step.rs` prints the same as JSON, with memory and CPU seconds.

mod common;

use std::hint::black_box;
use std::time::Duration;

use common::{Run, SIZES, config};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

const THREADS: usize = 2;

/// One member's step: the size, and the items that keep a run within seconds.
fn items(size: &str) -> usize {
    match size {
        "tiny" => 32,
        "base" => 16,
        _ => 5,
    }
}

fn steps(c: &mut Criterion) {
    for task in ["train", "encode"] {
        let mut group = c.benchmark_group(task);
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_secs(2));
        for size in SIZES {
            let config = config(size).expect("a size");
            let n = items(size);
            let mut run = match task {
                "train" => Run::train(&config, n, THREADS, 0.0),
                _ => Run::encode(&config, n, n, THREADS),
            };
            // One batch, so that every step has the same tokens.
            run.batches.truncate(1);
            group.throughput(Throughput::Elements(run.batches[0].tokens() as u64));
            group.bench_function(format!("{size}/items{n}"), |b| {
                b.iter(|| black_box(run.step()))
            });
        }
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
