//! Search against a plain f64 loop: odd sizes, ties, both types, any number of threads, and files
//! that must be refused.

mod common;

use std::path::{Path, PathBuf};

use common::tiny::pool;
use crosstune::data::feature_file::FeatureFile;
use crosstune::data::features::Features;
use crosstune::ops::philox::Stream;
use crosstune::search::mapped::Mapped;
use crosstune::search::top::{Hit, top};
use crosstune::tensor::Dtype;
use tempfile::TempDir;

fn random(name: &str, rows: usize, dim: usize) -> Features {
    Features {
        names: (0..rows).map(|i| format!("{i}.jpg")).collect(),
        dim,
        values: Stream::named(3, name).normal(rows * dim, 1.0),
    }
}

/// A file of them, in a folder that goes with it.
fn saved(features: &Features, dtype: Dtype) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("f.safetensors");
    features.save_as(&path, dtype).expect("saved");
    (dir, path)
}

/// All rows by their cosine in f64, rounded once; equal ones by row.
fn by_hand(features: &Features, query: &[f32]) -> Vec<Hit> {
    let sum = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let score = |row: usize| {
        let x = features.row(row);
        (sum(x, query) / (sum(x, x) * sum(query, query)).sqrt()) as f32
    };
    let mut hits: Vec<Hit> = (0..features.len())
        .map(|row| Hit {
            row,
            score: score(row),
        })
        .collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)));
    hits
}

fn check(what: &str, features: &Features, path: &Path, queries: &[f32], k: usize) {
    let among = Mapped::open(path).expect("opened");
    // What the file holds, rounded where it is F16.
    let held = Features {
        values: among.file().to_features().values,
        ..features.clone()
    };
    let found = top(&among, queries, k).expect("found");
    assert_eq!(found.len(), queries.len() / features.dim, "{what}");
    for (q, (found, query)) in found.iter().zip(queries.chunks(features.dim)).enumerate() {
        let mut want = by_hand(&held, query);
        want.truncate(k);
        let rows = |hits: &[Hit]| hits.iter().map(|h| h.row).collect::<Vec<_>>();
        assert_eq!(rows(found), rows(&want), "{what}, query {q}");
        for (found, want) in found.iter().zip(&want) {
            assert!(
                (found.score - want.score).abs() <= f32::EPSILON,
                "{what}, query {q}: {found:?}, by hand {want:?}"
            );
        }
    }
}

#[test]
fn agrees_with_a_plain_loop() {
    // One row; k beyond the rows; more columns than a run of a product; several blocks a thread.
    let shapes = [
        (1, 1, 1, 1),
        (1, 7, 3, 5),
        (2, 3, 9, 10),
        (37, 5, 1, 100),
        (1009, 33, 7, 10),
        (1009, 33, 8, 1),
        (3001, 129, 1, 3),
        (3001, 129, 17, 50),
        (523, 300, 259, 10),
    ];
    for (rows, dim, n_queries, k) in shapes {
        for dtype in [Dtype::F32, Dtype::F16] {
            let mut features = random("rows", rows, dim);
            // Lengths must not count.
            for (i, row) in features.values.chunks_mut(dim).enumerate() {
                row.iter_mut().for_each(|x| *x *= (1 + i % 9) as f32);
            }
            let queries = random("queries", n_queries, dim).values;
            let (_dir, path) = saved(&features, dtype);
            let what = format!("{rows} x {dim} {dtype}, {n_queries} queries, k {k}");
            check(&what, &features, &path, &queries, k);
        }
    }
}

#[test]
fn equal_scores_stand_by_row() {
    let (rows, dim) = (900, 24);
    let mut features = random("rows", rows, dim);
    // Five different rows, over and over, each also twice and half as long.
    for i in 5..rows {
        let scale = [1.0, 2.0, 0.5][i % 3];
        let same: Vec<f32> = features.row(i % 5).iter().map(|x| scale * x).collect();
        features.values[i * dim..][..dim].copy_from_slice(&same);
    }
    let queries = random("queries", 11, dim).values;
    for dtype in [Dtype::F32, Dtype::F16] {
        let (_dir, path) = saved(&features, dtype);
        for (n, k) in [(1, 7), (1, 250), (11, 7), (11, 250), (11, 2000)] {
            let what = format!("{dtype}, {n} queries, k {k}");
            check(&what, &features, &path, &queries[..n * dim], k);
        }
    }
}

#[test]
fn company_and_threads_change_no_byte() {
    let (rows, dim) = (5003, 65);
    let (_dir, path) = saved(&random("rows", rows, dim), Dtype::F16);
    let queries = random("queries", 30, dim).values;
    let bits = |hits: &[Hit]| -> Vec<(usize, u32)> {
        hits.iter().map(|h| (h.row, h.score.to_bits())).collect()
    };
    let with = |threads: usize| {
        pool(threads).install(|| {
            let among = Mapped::open(&path).expect("opened");
            let together = top(&among, &queries, 20).expect("found");
            for (query, want) in queries.chunks(dim).zip(&together) {
                let alone = top(&among, query, 20).expect("found");
                assert_eq!(bits(&alone[0]), bits(want), "{threads} threads");
            }
            together.iter().map(|hits| bits(hits)).collect::<Vec<_>>()
        })
    };
    let one = with(1);
    assert_eq!(with(2), one);
    assert_eq!(with(3), one);
}

#[test]
fn values_that_are_not_aligned_and_arrays_of_numpy_are_read() {
    let features = random("rows", 41, 19);
    let queries = random("queries", 10, 19).values;
    for dtype in [Dtype::F32, Dtype::F16] {
        let (dir, path) = saved(&features, dtype);
        let file = FeatureFile::open(&path).expect("opened");
        let descr = if dtype == Dtype::F16 { "<f2" } else { "<f4" };
        for pad in ["", " ", "  "] {
            let header =
                format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (41, 19), }}{pad}");
            let mut npy = b"\x93NUMPY\x01\x00".to_vec();
            npy.extend((header.len() as u16).to_le_bytes());
            npy.extend(header.as_bytes());
            npy.extend(file.view().bytes);
            let path = dir.path().join("f.npy");
            std::fs::write(&path, npy).expect("written");
            let what = format!("{dtype}, {} more bytes", pad.len());
            check(&what, &features, &path, &queries, 9);
            check(&what, &features, &path, &queries[..19], 9);
        }
    }
}

#[test]
fn rows_of_any_length_that_f32_holds_are_found() {
    let dim = 40;
    let mut features = random("rows", 60, dim);
    for (i, scale) in [(7, 1e25), (8, 1e-25), (9, 1e28), (10, 1e-28)] {
        features.values[i * dim..][..dim]
            .iter_mut()
            .for_each(|x| *x *= scale);
    }
    let (_dir, path) = saved(&features, Dtype::F32);
    for row in 7..11 {
        check("long and short", &features, &path, features.row(row), 60);
    }
}

#[test]
fn what_has_no_direction_is_refused_by_name() {
    let dim = 12;
    let open = |at: usize, value: f32, dtype: Dtype| {
        let mut features = random("rows", 300, dim);
        match value {
            0.0 => features.values[at / dim * dim..][..dim].fill(0.0),
            _ => features.values[at] = value,
        }
        let (_dir, path) = saved(&features, dtype);
        Mapped::open(&path).expect_err("refused").to_string()
    };
    for dtype in [Dtype::F32, Dtype::F16] {
        let text = open(12 * 271 + 5, f32::NAN, dtype);
        let says = "f.safetensors: row 271 (271.jpg) has NaN at place 5, expected finite values";
        assert!(text.contains(says), "{text}");
        let text = open(12 * 30 + 1, f32::INFINITY, dtype);
        assert!(
            text.contains("row 30 (30.jpg) has inf at place 1"),
            "{text}"
        );
        let text = open(12 * 99, 0.0, dtype);
        assert!(text.contains("row 99 (99.jpg) is all zero"), "{text}");
    }
    // Of several the first, whichever thread comes first.
    let mut features = random("rows", 3000, 40);
    for row in [2999, 2000, 900] {
        features.values[row * 40] = f32::NAN;
    }
    let (_dir, path) = saved(&features, Dtype::F32);
    for threads in 1..4 {
        let opened = pool(threads).install(|| Mapped::open(&path));
        let text = opened.expect_err("refused").to_string();
        assert!(text.contains("row 900 (900.jpg)"), "{text}");
    }
    let text = open(0, 2e35, Dtype::F32);
    assert!(text.contains("row 0 (0.jpg) has the length 2"), "{text}");

    let (_dir, path) = saved(&random("rows", 5, dim), Dtype::F32);
    let among = Mapped::open(&path).expect("opened");
    let mut queries = random("queries", 3, dim).values;
    let message = |queries: &[f32], k| {
        let error = top(&among, queries, k).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    assert!(message(&queries, 0).contains("top: found 0"));
    assert!(message(&queries[1..], 1).contains("35 values, expected (Q, 12)"));
    queries[30] = f32::NAN;
    assert!(message(&queries, 1).contains("query 2 has NaN at place 6"));
    assert_eq!(top(&among, &[], 1).expect("no answers").len(), 0);
}

#[test]
fn a_name_is_found_or_the_nearest_told() {
    let mut features = random("rows", 30, 4);
    let (_dir, path) = saved(&features, Dtype::F32);
    let among = Mapped::open(&path).expect("opened");
    assert_eq!(among.file().find("17.jpg").expect("found"), 17);
    let text = among
        .file()
        .find("17.jpeg")
        .expect_err("refused")
        .to_string();
    assert!(
        text.ends_with("has no row `17.jpeg`; the nearest name in it is `17.jpg`"),
        "{text}"
    );
    features.names.clear();
    let (_dir, path) = saved(&features, Dtype::F32);
    let among = Mapped::open(&path).expect("opened");
    let text = among
        .file()
        .find("17.jpg")
        .expect_err("refused")
        .to_string();
    assert!(text.contains("has no names, so none is `17.jpg`"), "{text}");
}

#[test]
fn features_in_memory_are_searched_alike() {
    let features = random("rows", 200, 31);
    let (_dir, path) = saved(&features, Dtype::F32);
    let queries = random("queries", 12, 31).values;
    let from_file = top(&Mapped::open(&path).expect("opened"), &queries, 5);
    let file = FeatureFile::in_memory(Path::new("made here"), features).expect("checked");
    let in_memory = top(
        &Mapped::new(file).expect("rows with a direction"),
        &queries,
        5,
    );
    assert_eq!(in_memory.expect("found"), from_file.expect("found"));
}
