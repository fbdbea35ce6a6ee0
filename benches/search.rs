//! Search in mapped feature files: `cargo bench --bench search`. What opening costs is the pass over
//! the file that measures its rows; the file lies in the page cache. Without `--bench` each runs once,
//! on tiny shapes.

mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use common::place::{THREADS, once, threads};
use common::rig::{note, shares, short};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crosstune::data::feature_file::{FeatureFile, TENSOR};
use crosstune::graph::cost::Cost;
use crosstune::ops::philox::Stream;
use crosstune::search::mapped::Mapped;
use crosstune::search::top::top;
use crosstune::tensor::Dtype;
use crosstune::weights::write::{OutTensor, write_safetensors};

/// Rows, E, their type, and how many queries are asked together.
fn shapes() -> Vec<(usize, usize, Dtype, &'static [usize])> {
    match once() {
        true => vec![(999, 40, Dtype::F16, &[1, 20]), (100, 40, Dtype::F32, &[2])],
        false => vec![
            (1_000_000, 512, Dtype::F16, &[1, 4]),
            (100_000, 512, Dtype::F16, &[16, 64, 256, 1000]),
            (100_000, 512, Dtype::F32, &[1, 256]),
            (100_000, 768, Dtype::F16, &[256]),
        ],
    }
}

/// A mapped file of values that are -1 to -0.5 or 0.5 to 1; its folder goes when it is dropped.
fn file(rows: usize, dim: usize, dtype: Dtype) -> (tempfile::TempDir, FeatureFile) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("features.safetensors");
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 40
    };
    let mut bytes = Vec::with_capacity(rows * dim * dtype.size());
    for _ in 0..rows * dim {
        let random = next();
        match dtype {
            // Sign and mantissa are random, the exponent is that of 0.5.
            Dtype::F16 => bytes.extend((random as u16 & 0x83ff | 0x3800).to_le_bytes()),
            _ => bytes.extend(((random as u32) << 8 & 0x807f_ffff | 0x3f00_0000).to_le_bytes()),
        }
    }
    let tensor = OutTensor {
        name: TENSOR,
        dtype,
        shape: vec![rows, dim],
        bytes: bytes.into(),
    };
    write_safetensors(&path, &[tensor], &BTreeMap::new()).expect("written");
    let file = FeatureFile::open(&path).expect("mapped");
    (dir, file)
}

fn search(c: &mut Criterion) {
    let pool = threads(THREADS);
    let mut group = c.benchmark_group("search");
    for (rows, dim, dtype, counts) in shapes() {
        let (_dir, opened) = file(rows, dim, dtype);
        let bytes = (rows * dim * dtype.size()) as f64;
        let path = opened.path();
        let mut bench = |name: String, flops: f64, run: &mut (dyn FnMut() + Send)| {
            let cost = Cost {
                read: bytes,
                written: 0.0,
                flops,
            };
            short(&mut group).throughput(Throughput::ElementsAndBytes {
                elements: flops as u64,
                bytes: bytes as u64,
            });
            group.bench_function(&name, |b| {
                b.iter_custom(|times| {
                    let start = Instant::now();
                    pool.install(|| (0..times).for_each(|_| run()));
                    let time = start.elapsed();
                    note(&format!("search/{name}"), &cost, time, times);
                    time
                });
            });
        };
        let size = (rows * dim) as f64;
        let open = || Mapped::open(path).expect("rows with a direction");
        bench(
            format!("open/{rows}x{dim}/{dtype}"),
            2.0 * size,
            &mut || {
                open();
            },
        );
        let among = pool.install(open);
        for &n in counts {
            let queries = Stream::named(1, "queries").uniform(n * dim, 1.0);
            let name = format!("top/{rows}x{dim}/{dtype}/Q{n}");
            bench(name, 2.0 * size * n as f64, &mut || {
                top(&among, &queries, 10).expect("answers");
            });
        }
    }
    group.finish();
}

criterion_group!(benches, search, shares);
criterion_main!(benches);
