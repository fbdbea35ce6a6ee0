//! Recall of image-to-text and text-to-image retrieval, where row i of one belongs to row i of the
//! other.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::similarity::{Counts, Panels, TEXT_BLOCK, count_block};
use crate::bad_input;
use crate::error::{Error, Result};

/// The ranks up to which an answer counts.
const AT: [usize; 3] = [1, 5, 10];

/// Recall at 1, 5 and 10 in both directions, as fractions of the queries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// How many images, and texts.
    pub n: usize,
    /// Images as queries: R@1, R@5, R@10.
    pub i2t: [f64; 3],
    /// Texts as queries: R@1, R@5, R@10.
    pub t2i: [f64; 3],
    /// Over all image queries, wrong texts whose score equals the right one's exactly.
    pub ties_i2t: usize,
    /// Over all text queries, wrong images whose score equals the right one's exactly.
    pub ties_t2i: usize,
    /// As `ties_i2t`, but within 1e-5 of the right score; exact ties are counted too.
    pub near_ties_i2t: usize,
    /// As `ties_t2i`, but within 1e-5 of the right score; exact ties are counted too.
    pub near_ties_t2i: usize,
}

impl Recall {
    /// Mean of the two R@1.
    pub fn mean_r1(&self) -> f64 {
        (self.i2t[0] + self.t2i[0]) / 2.0
    }

    /// [`Recall::mean_r1`] rounded to 4 digits as Python's `round(x, 4)` does: the decimal nearest
    /// to the exact binary value, to even between two.
    pub fn score(&self) -> f64 {
        let mean = self.mean_r1();
        format!("{mean:.4}").parse().unwrap_or(mean)
    }
}

/// Ranks every text among the images and every image among the texts by cosine.
///
/// An answer's rank is the number of wrong ones that score higher, or the same with a lower index.
/// The same features give the same bits on every machine: a score is one sum over `dim` in order.
///
/// # Shapes
/// text (n, dim), image (n, dim), not normalised.
///
/// # Errors
/// When a slice is not n * dim long, and `Error::Run` naming the row when a feature is not finite
/// or a row is zero.
pub fn retrieval(text: &[f32], image: &[f32], n: usize, dim: usize) -> Result<Recall> {
    if n == 0 || dim == 0 {
        return Err(bad_input!(
            "retrieval: expected at least 1 item of 1 feature, found {n} of {dim}"
        ));
    }
    for (name, features) in [("text", text), ("image", image)] {
        if features.len() != n * dim {
            return Err(bad_input!(
                "retrieval: {name} has {} elements, expected (n, dim) = ({n}, {dim})",
                features.len()
            ));
        }
    }
    let text = normalise("text", text, dim)?;
    let image = normalise("image", image, dim)?;
    let right: Vec<f32> = text
        .chunks_exact(dim)
        .zip(image.chunks_exact(dim))
        .map(|(t, i)| dot(t, i))
        .collect();
    let panels = Panels::new(&image, &right, dim);
    let blocks: Vec<_> = text
        .par_chunks(TEXT_BLOCK * dim)
        .enumerate()
        .map(|(b, block)| count_block(block, b * TEXT_BLOCK, &panels))
        .collect();
    let mut by_text = Vec::with_capacity(n);
    let mut by_image = vec![Counts::default(); n];
    for (rows, columns) in blocks {
        by_text.extend(rows);
        for (sum, column) in by_image.iter_mut().zip(columns) {
            sum.add(column);
        }
    }
    let (i2t, ties_i2t, near_ties_i2t) = summarise(&by_image);
    let (t2i, ties_t2i, near_ties_t2i) = summarise(&by_text);
    Ok(Recall {
        n,
        i2t,
        t2i,
        ties_i2t,
        ties_t2i,
        near_ties_i2t,
        near_ties_t2i,
    })
}

/// Recalls, ties and near ties of one direction. The right answer is its own tie; it is taken off.
fn summarise(counts: &[Counts]) -> ([f64; 3], usize, usize) {
    let n = counts.len();
    let recall = AT.map(|k| {
        let hits = counts.iter().filter(|c| (c.ahead as usize) < k).count();
        hits as f64 / n as f64
    });
    let ties: usize = counts.iter().map(|c| c.ties as usize).sum();
    let near: usize = counts.iter().map(|c| c.near as usize).sum();
    (recall, ties - n, near - n)
}

/// The sum that [`count_block`] forms for every pair, in the same order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

/// Rows of length one; norms are summed in f64.
fn normalise(name: &str, features: &[f32], dim: usize) -> Result<Vec<f32>> {
    let mut unit = Vec::with_capacity(features.len());
    for (row, values) in features.chunks_exact(dim).enumerate() {
        let square: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        if !square.is_finite() || square == 0.0 {
            let what = if square == 0.0 {
                "is zero"
            } else {
                "has a value that is not finite"
            };
            return Err(Error::Run(format!(
                "retrieval: row {row} of the {name} features {what}, so it has no direction; check \
                 the run's losses and the feature file"
            )));
        }
        let scale = 1.0 / square.sqrt();
        unit.extend(values.iter().map(|&x| (f64::from(x) * scale) as f32));
    }
    Ok(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// Deterministic values in -1..1.
    fn noise(n: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Texts near their images, so that recalls are neither 0 nor 1.
    fn pairs(n: usize, dim: usize, spread: f32) -> (Vec<f32>, Vec<f32>) {
        let image = noise(n * dim, 1);
        let text = image
            .iter()
            .zip(noise(n * dim, 2))
            .map(|(i, e)| i + spread * e)
            .collect();
        (text, image)
    }

    /// The definition, pair by pair.
    fn reference(text: &[f32], image: &[f32], n: usize, dim: usize) -> Recall {
        let text = normalise("text", text, dim).unwrap();
        let image = normalise("image", image, dim).unwrap();
        let score = |t: usize, i: usize| dot(&text[t * dim..][..dim], &image[i * dim..][..dim]);
        let direction = |score: &dyn Fn(usize, usize) -> f32| {
            let (mut hits, mut ties, mut near) = ([0; 3], 0, 0);
            for q in 0..n {
                let (mut rank, right) = (0, score(q, q));
                for other in (0..n).filter(|&other| other != q) {
                    let s = score(q, other);
                    rank += usize::from(s > right || (s == right && other < q));
                    ties += usize::from(s == right);
                    near += usize::from((s - right).abs() <= 1e-5);
                }
                for (hits, k) in hits.iter_mut().zip(AT) {
                    *hits += usize::from(rank < k);
                }
            }
            (hits.map(|h| h as f64 / n as f64), ties, near)
        };
        let (t2i, ties_t2i, near_ties_t2i) = direction(&score);
        let (i2t, ties_i2t, near_ties_i2t) = direction(&|i, t| score(t, i));
        Recall {
            n,
            i2t,
            t2i,
            ties_i2t,
            ties_t2i,
            near_ties_i2t,
            near_ties_t2i,
        }
    }

    #[test]
    fn equals_the_definition() {
        for (n, dim) in [
            (1, 1),
            (2, 3),
            (16, 8),
            (17, 5),
            (67, 33),
            (131, 64),
            (200, 7),
        ] {
            let (mut text, mut image) = pairs(n, dim, 2.0);
            // Rows that repeat make exact ties on both sides.
            let (first, last) = (0..dim, (n - 1) * dim);
            text.copy_within(first.clone(), last);
            image.copy_within(first, last);
            let found = retrieval(&text, &image, n, dim).unwrap();
            assert_eq!(found, reference(&text, &image, n, dim), "n {n}, dim {dim}");
            assert!(n == 1 || found.ties_i2t >= 2);
        }
    }

    #[test]
    fn ties_rank_by_index() {
        // All alike: the right answer of query i stands behind i others.
        let same = vec![0.5; 20 * 4];
        let found = retrieval(&same, &same, 20, 4).unwrap();
        assert_eq!(found.i2t, [0.05, 0.25, 0.5]);
        assert_eq!(found.t2i, [0.05, 0.25, 0.5]);
        assert_eq!((found.ties_i2t, found.near_ties_t2i), (20 * 19, 20 * 19));
    }

    #[test]
    fn scores_round_like_python() {
        let recall = |i: f64, t: f64| Recall {
            n: 1,
            i2t: [i; 3],
            t2i: [t; 3],
            ties_i2t: 0,
            ties_t2i: 0,
            near_ties_i2t: 0,
            near_ties_t2i: 0,
        };
        // The right column is round(x, 4) of CPython 3.
        for (x, want) in [
            (0.03125, 0.0312),
            (0.09375, 0.0938),
            (0.65625, 0.6562),
            (1.0, 1.0),
        ] {
            assert_eq!(recall(x, x).score(), want);
        }
        assert_eq!(recall(0.6543, 0.6544).score(), 0.6543);
        assert_eq!(recall(0.4127, 0.4128).score(), 0.4128);
        assert_eq!(recall(0.123, 0.1235).score(), 0.1232);
        assert_eq!(recall(0.0001, 0.0002).score(), 0.0002);
    }

    #[test]
    fn faults_are_named() {
        let (mut text, image) = pairs(4, 3, 1.0);
        let error = retrieval(&text[1..], &image, 4, 3).unwrap_err().to_string();
        assert!(
            error.contains("text has 11 elements") && error.contains("(4, 3)"),
            "{error}"
        );
        text[7] = f32::NAN;
        let error = retrieval(&text, &image, 4, 3).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("row 2 of the text"), "{error}");
        text[6..9].fill(0.0);
        let error = retrieval(&image, &text, 4, 3).unwrap_err().to_string();
        assert!(
            error.contains("row 2 of the image features is zero"),
            "{error}"
        );
        assert!(retrieval(&[], &[], 0, 3).is_err());
    }

    /// A tensor of a safetensors file of f32 tensors.
    fn tensor(path: &Path, name: &str) -> (Vec<f32>, usize, usize) {
        let bytes = std::fs::read(path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let index: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let number = |v: &serde_json::Value| v.as_u64().unwrap() as usize;
        let entry = &index[name];
        let [from, to] = [0, 1].map(|i| 8 + header + number(&entry["data_offsets"][i]));
        let values = bytes[from..to]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (
            values.collect(),
            number(&entry["shape"][0]),
            number(&entry["shape"][1]),
        )
    }

    #[test]
    fn equals_the_golden() {
        let folder = std::env::var_os("CROSSTUNE_GOLDENS").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/goldens/open"),
            PathBuf::from,
        );
        let path = folder.join("retrieval.safetensors");
        if !path.is_file() {
            eprintln!("skipped: no {}", path.display());
            return;
        }
        let (text, n, dim) = tensor(&path, "retrieval.text");
        let (image, ..) = tensor(&path, "retrieval.image");
        let found = retrieval(&text, &image, n, dim).unwrap();
        let scalars = std::fs::read_to_string(folder.join("scalars.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&scalars).unwrap();
        let golden = &golden["retrieval"];
        for (k, name) in ["r1", "r5", "r10"].into_iter().enumerate() {
            assert_eq!(golden[format!("i2t_{name}")].as_f64(), Some(found.i2t[k]));
            assert_eq!(golden[format!("t2i_{name}")].as_f64(), Some(found.t2i[k]));
        }
        assert_eq!(golden["score"].as_f64(), Some(found.score()));
        let (cosines, ..) = tensor(&path, "retrieval.scaled_cos");
        let (text, image) = (
            normalise("text", &text, dim).unwrap(),
            normalise("image", &image, dim).unwrap(),
        );
        let off = |k: usize| {
            let (text, image) = (&text[k / n * dim..][..dim], &image[k % n * dim..][..dim]);
            (dot(text, image) - cosines[k] / 100.0).abs()
        };
        let worst = (0..n * n).map(off).fold(0.0, f32::max);
        // Measured 3.6e-7; PyTorch sums in another order.
        assert!(worst <= 1e-6, "cosines are off by {worst:e}");
    }

    #[test]
    #[ignore = "a timing: 5000 items of 768 features"]
    fn five_thousand_items() {
        let (text, image) = pairs(5000, 768, 8.0);
        let start = std::time::Instant::now();
        let found = retrieval(&text, &image, 5000, 768).unwrap();
        eprintln!("{:.3} s, {found:?}", start.elapsed().as_secs_f64());
    }
}
