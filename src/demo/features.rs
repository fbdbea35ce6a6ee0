//! A hand-made map from pixels to a feature vector: what the demo's vision tower is taught.
//!
//! Statistics on a 4 x 4 grid (mean colour, soft colour classes, edge orientations) are
//! standardised over a calibration set, projected at random to [`D`] numbers and whitened, so that
//! the cosine of two different pictures is about 0. Nothing of the map itself is trained.

use rayon::prelude::*;

use super::render::{Picture, Rgb, SIDE, background_rgb, colour_rgb, render};
use super::rng::Rng;
use super::scene::{Background, Colour, scenes};

/// Length of a feature vector.
pub const D: usize = 64;

const GRID: usize = 4;
const CELLS: usize = GRID * GRID;
const CELL: usize = SIDE / GRID;
const CLASSES: usize = Colour::ALL.len() + Background::ALL.len();
const ANGLES: usize = 8;
const CELL_STATS: usize = 3 + CLASSES + ANGLES;
const STATS: usize = CELLS * CELL_STATS;
const N_CALIBRATION: usize = 768;

/// The map; the same seed gives the same map.
#[derive(Clone, Debug)]
pub struct FeatureMap {
    /// Mean of each statistic, `(STATS)`.
    mean: Vec<f32>,
    /// Projection, scaling and whitening in one matrix, `(D, STATS)`.
    weight: Vec<f32>,
}

impl FeatureMap {
    /// Calibrates the map on scenes of its own.
    pub fn new(seed: u64) -> Self {
        let stats: Vec<Vec<f32>> = scenes(seed, N_CALIBRATION)
            .par_iter()
            .enumerate()
            .map(|(i, scene)| statistics(&render(scene, seed ^ i as u64)))
            .collect();
        let (mean, scale) = mean_and_scale(&stats);
        let mut rng = Rng::stream(seed, 0x6d_61_70);
        let mut weight: Vec<f32> = (0..D * STATS)
            .map(|i| rng.normal() * scale[i % STATS])
            .collect();
        let projected: Vec<Vec<f32>> = stats
            .par_iter()
            .map(|s| project(&weight, &mean, s))
            .collect();
        whiten(&mut weight, &covariance(&projected));
        Self { mean, weight }
    }

    /// The features of a picture, `(D)`, of unit length.
    pub fn features(&self, picture: &Picture) -> Vec<f32> {
        let mut features = project(&self.weight, &self.mean, &statistics(picture));
        let norm = features
            .iter()
            .map(|x| x * x)
            .sum::<f32>()
            .sqrt()
            .max(f32::MIN_POSITIVE);
        features.iter_mut().for_each(|x| *x /= norm);
        features
    }
}

/// The grid statistics, `(CELLS, CELL_STATS)`.
fn statistics(picture: &Picture) -> Vec<f32> {
    let palette: Vec<Rgb> = (Colour::ALL.into_iter().map(colour_rgb))
        .chain(Background::ALL.into_iter().map(background_rgb))
        .collect();
    let mut stats = vec![0.0f32; STATS];
    for y in 0..SIDE {
        for x in 0..SIDE {
            let cell = (y / CELL) * GRID + x / CELL;
            let (mean, rest) = stats[cell * CELL_STATS..][..CELL_STATS].split_at_mut(3);
            let (classes, angles) = rest.split_at_mut(CLASSES);
            let rgb = pixel(picture, x, y);
            mean.iter_mut().zip(rgb).for_each(|(m, v)| *m += v / 255.0);
            add_classes(classes, rgb, &palette);
            add_edge(angles, picture, x, y);
        }
    }
    stats
}

fn pixel(picture: &Picture, x: usize, y: usize) -> Rgb {
    let at = 3 * (y * SIDE + x);
    let samples = &picture.pixels()[at..at + 3];
    [
        f32::from(samples[0]),
        f32::from(samples[1]),
        f32::from(samples[2]),
    ]
}

/// Shares one pixel among the colours of the palette, nearest first.
fn add_classes(classes: &mut [f32], rgb: Rgb, palette: &[Rgb]) {
    const WIDTH: f32 = 30.0;
    let mut shares = [0.0f32; CLASSES];
    for (share, paint) in shares.iter_mut().zip(palette) {
        let d2: f32 = rgb.iter().zip(paint).map(|(a, b)| (a - b) * (a - b)).sum();
        let near = 1.0 / (1.0 + d2 / (WIDTH * WIDTH));
        *share = near * near;
    }
    let total: f32 = shares.iter().sum();
    classes
        .iter_mut()
        .zip(shares)
        .for_each(|(class, share)| *class += share / total);
}

/// Adds the gradient of the channel that changes most to the two nearest angles.
fn add_edge(angles: &mut [f32], picture: &Picture, x: usize, y: usize) {
    const THRESHOLD: f32 = 24.0;
    let edge = SIDE - 1;
    let (left, right) = (
        pixel(picture, x.max(1) - 1, y),
        pixel(picture, (x + 1).min(edge), y),
    );
    let (up, down) = (
        pixel(picture, x, y.max(1) - 1),
        pixel(picture, x, (y + 1).min(edge)),
    );
    let mut strongest = (0.0, 0.0, 0.0);
    for channel in 0..3 {
        let (gx, gy) = (right[channel] - left[channel], down[channel] - up[channel]);
        let length = gx.hypot(gy);
        if length > strongest.0 {
            strongest = (length, gx, gy);
        }
    }
    let (length, gx, gy) = strongest;
    if length < THRESHOLD {
        return;
    }
    let turn = (gy.atan2(gx) / std::f32::consts::TAU).rem_euclid(1.0) * ANGLES as f32;
    let (low, part) = (turn.floor() as usize, turn.fract());
    angles[low % ANGLES] += (1.0 - part) * length / 255.0;
    angles[(low + 1) % ANGLES] += part * length / 255.0;
}

/// Mean and reciprocal deviation of each statistic; one that never varies gets 0.
fn mean_and_scale(rows: &[Vec<f32>]) -> (Vec<f32>, Vec<f32>) {
    let n = rows.len() as f32;
    let mean: Vec<f32> = (0..STATS)
        .map(|j| rows.iter().map(|r| r[j]).sum::<f32>() / n)
        .collect();
    let scale = (0..STATS).map(|j| {
        let variance = rows.iter().map(|r| (r[j] - mean[j]).powi(2)).sum::<f32>() / n;
        if variance > 1e-6 {
            variance.sqrt().recip()
        } else {
            0.0
        }
    });
    let scale = scale.collect();
    (mean, scale)
}

/// `weight (D, STATS)` times `stats - mean`.
fn project(weight: &[f32], mean: &[f32], stats: &[f32]) -> Vec<f32> {
    let centred: Vec<f32> = stats.iter().zip(mean).map(|(s, m)| s - m).collect();
    let rows = weight.chunks_exact(STATS);
    rows.map(|row| row.iter().zip(&centred).map(|(w, c)| w * c).sum())
        .collect()
}

/// Covariance of centred rows, `(D, D)`.
fn covariance(rows: &[Vec<f32>]) -> Vec<f64> {
    let mut cov = vec![0.0f64; D * D];
    for row in rows {
        for (i, j) in (0..D).flat_map(|i| (0..=i).map(move |j| (i, j))) {
            cov[i * D + j] += f64::from(row[i]) * f64::from(row[j]) / rows.len() as f64;
        }
    }
    cov
}

/// Replaces `weight` by `L^-1 weight`, where `L L^T` is the covariance (lower half) of its outputs.
fn whiten(weight: &mut [f32], cov: &[f64]) {
    // A floor on the spectrum keeps directions of mere grain from being blown up.
    let ridge = 1e-3 * (0..D).map(|i| cov[i * D + i]).sum::<f64>() / D as f64;
    let mut low = cov.to_vec();
    for i in 0..D {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| low[i * D + k] * low[j * D + k]).sum();
            let rest = low[i * D + j] - dot;
            low[i * D + j] = if i == j {
                (rest + ridge).max(ridge).sqrt()
            } else {
                rest / low[j * D + j]
            };
        }
        let (done, row) = weight.split_at_mut(i * STATS);
        let row = &mut row[..STATS];
        for (j, earlier) in done.chunks_exact(STATS).enumerate() {
            let factor = low[i * D + j] as f32;
            row.iter_mut()
                .zip(earlier)
                .for_each(|(r, e)| *r -= factor * e);
        }
        row.iter_mut().for_each(|r| *r /= low[i * D + i] as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::scene::{Object, Scene};

    const SEED: u64 = 20_240_607;

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(x, y)| x * y).sum()
    }

    fn all_features(scenes: &[Scene]) -> Vec<Vec<f32>> {
        let map = FeatureMap::new(SEED);
        let one = |(i, scene): (usize, &Scene)| map.features(&render(scene, i as u64));
        scenes.par_iter().enumerate().map(one).collect()
    }

    /// Attributes of each object at its place, and of the background.
    fn one_hot(scene: &Scene) -> Vec<f32> {
        const OBJECT: usize = 8 + 9 + 2 + 2 + 1;
        let scene = scene.canonical();
        let layout =
            2 * usize::from(!scene.relation.is_horizontal()) + usize::from(scene.third.is_some());
        let mut row = vec![0.0; 4 * 3 * OBJECT + 5];
        for (i, object) in scene.objects().enumerate() {
            let Object {
                shape,
                colour,
                size,
                striped,
            } = *object;
            let at = (layout * 3 + i) * OBJECT;
            let hot = [
                shape as usize,
                8 + colour as usize,
                17 + size as usize,
                19 + striped as usize,
                21,
            ];
            hot.iter().for_each(|h| row[at + h] = 1.0);
        }
        row[4 * 3 * OBJECT + scene.background as usize] = 1.0;
        row
    }

    /// Weights of a ridge regression by conjugate gradients on the normal equations, per feature.
    fn ridge(rows: &[Vec<f32>], targets: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let width = rows[0].len();
        let apply = |w: &[f32]| -> Vec<f32> {
            let mut out: Vec<f32> = w.to_vec();
            for row in rows {
                let along = dot(row, w);
                out.iter_mut().zip(row).for_each(|(o, r)| *o += along * r);
            }
            out
        };
        let solve = |d: usize| {
            let mut residual = vec![0.0f32; width];
            for (row, target) in rows.iter().zip(targets) {
                residual
                    .iter_mut()
                    .zip(row)
                    .for_each(|(g, r)| *g += target[d] * r);
            }
            let (mut w, mut step) = (vec![0.0f32; width], residual.clone());
            let mut norm = dot(&residual, &residual);
            for _ in 0..60 {
                let image = apply(&step);
                let alpha = norm / dot(&step, &image).max(1e-12);
                w.iter_mut().zip(&step).for_each(|(w, s)| *w += alpha * s);
                residual
                    .iter_mut()
                    .zip(&image)
                    .for_each(|(r, i)| *r -= alpha * i);
                let next = dot(&residual, &residual);
                step.iter_mut()
                    .zip(&residual)
                    .for_each(|(s, r)| *s = r + next / norm * *s);
                norm = next.max(1e-20);
            }
            w
        };
        (0..D).into_par_iter().map(solve).collect()
    }

    #[test]
    fn different_pictures_are_far_apart() {
        let features = all_features(&scenes(1, 200));
        let pairs = (0..200).flat_map(|i| (0..i).map(move |j| (i, j)));
        let cosines: Vec<f32> = pairs
            .map(|(i, j)| dot(&features[i], &features[j]))
            .collect();
        let mean = cosines.iter().sum::<f32>() / cosines.len() as f32;
        assert!(mean.abs() < 0.05, "{mean}");
        let spread = cosines.iter().map(|c| c * c).sum::<f32>() / cosines.len() as f32;
        assert!(spread.sqrt() < 0.25, "{}", spread.sqrt());
    }

    #[test]
    fn a_second_picture_of_a_scene_stays_near() {
        let scenes = scenes(1, 200);
        let map = FeatureMap::new(SEED);
        let first: Vec<_> = scenes.iter().map(|s| map.features(&render(s, 1))).collect();
        let second: Vec<_> = scenes.iter().map(|s| map.features(&render(s, 2))).collect();
        let recall = recall_at_1(&first, &second);
        assert!(recall > 0.95, "{recall}");
    }

    #[test]
    fn attributes_predict_the_picture() {
        let all = scenes(2, 2200);
        let features = all_features(&all);
        let rows: Vec<Vec<f32>> = all.iter().map(one_hot).collect();
        let weights = ridge(&rows[..2000], &features[..2000]);
        let guess = |row: &Vec<f32>| weights.iter().map(|w| dot(w, row)).collect::<Vec<f32>>();
        let guesses: Vec<Vec<f32>> = rows[2000..].iter().map(guess).collect();
        let recall = recall_at_1(&guesses, &features[2000..]);
        assert!(recall > 0.7, "{recall}");
    }

    fn recall_at_1(queries: &[Vec<f32>], gallery: &[Vec<f32>]) -> f32 {
        let best = |q: &Vec<f32>| {
            let scores = gallery.iter().map(|g| dot(q, g)).enumerate();
            scores.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
        };
        let hits = queries
            .iter()
            .enumerate()
            .filter(|(i, q)| best(q) == Some(*i))
            .count();
        hits as f32 / queries.len() as f32
    }
}
