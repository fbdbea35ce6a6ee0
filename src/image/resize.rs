//! Pillow's resize with antialias, to the bit: two passes of 8-bit values, one a side.
//!
//! Each output value is a weighted sum over the input values that the filter reaches, which widens
//! with the scale when a picture shrinks. Weights are normalised, then rounded to 22 bits after the
//! point; a sum is rounded half up and clipped to 0..=255 after each pass.

use serde::Serialize;

use super::Picture;
use crate::bad_input;
use crate::error::Result;

/// Bits after the point of a weight: 32, less 8 of a value, less 2 for weights beyond 1.
const PRECISION: u32 = 32 - 8 - 2;

/// How neighbouring values are weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// A triangle: Pillow's resampling 2.
    Bilinear,
    /// Keys' cubic convolution with a = -0.5: Pillow's resampling 3.
    Bicubic,
}

impl Filter {
    /// How far it reaches at scale 1.
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    /// The weight at distance `x` from the centre.
    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Which side is resized first. Values are rounded between the passes, so it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PassOrder {
    /// As Pillow 11 and before: the width first, always.
    WidthFirst,
    /// As Pillow 13: the height first where it shrinks, and by more than twice what the width does.
    #[default]
    Cheapest,
}

impl PassOrder {
    fn height_first(self, from: (usize, usize), to: (usize, usize)) -> bool {
        let shrinks = |from: usize, to: usize| from as i64 - to as i64;
        match self {
            PassOrder::WidthFirst => false,
            PassOrder::Cheapest => {
                let rows = shrinks(from.1, to.1);
                rows > 0 && rows > 2 * shrinks(from.0, to.0)
            }
        }
    }
}

/// A rectangle of a resized picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Columns left of it.
    pub left: usize,
    /// Rows above it.
    pub top: usize,
    /// Its columns.
    pub width: usize,
    /// Its rows.
    pub height: usize,
}

impl Window {
    /// All of a picture of (width, height).
    pub fn all((width, height): (usize, usize)) -> Window {
        Window {
            left: 0,
            top: 0,
            width,
            height,
        }
    }
}

/// See [`Picture::resize`].
pub(super) fn resize(
    picture: &Picture,
    size: (usize, usize),
    window: Window,
    filter: Filter,
    order: PassOrder,
) -> Result<Picture> {
    let fits = |start: usize, len: usize, side: usize| {
        len > 0 && start.checked_add(len).is_some_and(|end| end <= side)
    };
    if !fits(window.left, window.width, size.0) || !fits(window.top, window.height, size.1) {
        return Err(bad_input!(
            "resize: a window of {} x {} at ({}, {}) does not lie in {} x {}",
            window.width,
            window.height,
            window.left,
            window.top,
            size.0,
            size.1
        ));
    }
    let from = (picture.width, picture.height);
    let columns = Taps::new(filter, from.0, size.0, window.left, window.width);
    let rows = Taps::new(filter, from.1, size.1, window.top, window.height);
    let rgb = match order.height_first(from, size) {
        true => {
            // Only columns that the second pass reads.
            let (start, end) = columns.reach();
            let narrow = pass_height(&picture.rgb, from.0, (start, end), &rows, 0);
            pass_width(&narrow, end - start, (0, window.height), &columns, start)
        }
        false => {
            let (start, end) = rows.reach();
            let low = pass_width(&picture.rgb, from.0, (start, end), &columns, 0);
            pass_height(&low, window.width, (0, window.width), &rows, start)
        }
    };
    Picture::new(window.width, window.height, rgb)
}

/// The weights of one side: for each output place where its inputs begin, and their weights.
struct Taps {
    starts: Vec<usize>,
    /// Where the weights of each place begin, and an end.
    offsets: Vec<usize>,
    weights: Vec<i32>,
}

impl Taps {
    /// For the `len` output places from `first` on, of `to` made of `from`.
    fn new(filter: Filter, from: usize, to: usize, first: usize, len: usize) -> Taps {
        let mut taps = Taps {
            starts: Vec::with_capacity(len),
            offsets: vec![0],
            weights: Vec::new(),
        };
        if from == to {
            // The pass is left out; one weight of 1 gives each value back.
            taps.starts.extend(first..first + len);
            taps.weights.resize(len, 1 << PRECISION);
            taps.offsets.extend(1..=len);
            return taps;
        }
        let scale = from as f64 / to as f64;
        let widened = scale.max(1.0);
        let support = filter.support() * widened;
        for place in first..first + len {
            let center = (place as f64 + 0.5) * scale;
            // Casts cut towards zero, as C's do.
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let at = |i: usize| filter.weight((i as f64 - center + 0.5) * (1.0 / widened));
            let mut weights: Vec<f64> = (start..end).map(at).collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            let fixed = weights.iter().map(|w| {
                let scaled = w * f64::from(1 << PRECISION);
                (scaled + 0.5f64.copysign(scaled)) as i32
            });
            taps.starts.push(start);
            taps.weights.extend(fixed);
            taps.offsets.push(taps.weights.len());
        }
        taps
    }

    fn len(&self) -> usize {
        self.starts.len()
    }

    /// First input and weights of an output place.
    fn at(&self, place: usize) -> (usize, &[i32]) {
        let range = self.offsets[place]..self.offsets[place + 1];
        (self.starts[place], &self.weights[range])
    }

    /// The inputs that are read at all, from the first to behind the last.
    fn reach(&self) -> (usize, usize) {
        let ends = (0..self.len())
            .map(|p| self.at(p))
            .map(|(s, w)| s + w.len());
        let start = self.starts.iter().copied().min();
        (start.unwrap_or(0), ends.max().unwrap_or(0))
    }
}

fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Half of one, which rounds a sum half up.
const HALF: i32 = 1 << (PRECISION - 1);

/// Rows `start` to `end` of `rgb`, `width` wide, by the weights of the columns, whose places count
/// from column `origin`.
fn pass_width(
    rgb: &[u8],
    width: usize,
    (start, end): (usize, usize),
    columns: &Taps,
    origin: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * columns.len() * (end - start));
    for row in rgb[3 * width * start..3 * width * end].chunks_exact(3 * width) {
        for place in 0..columns.len() {
            let (first, weights) = columns.at(place);
            let pixels = row[3 * (first - origin)..].as_chunks::<3>().0;
            let mut sums = [HALF; 3];
            for (pixel, &weight) in pixels.iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            out.extend(sums.map(rounded));
        }
    }
    out
}

/// Columns `start` to `end` of `rgb`, `width` wide, by the weights of the rows, whose places count
/// from row `origin`.
fn pass_height(
    rgb: &[u8],
    width: usize,
    (start, end): (usize, usize),
    rows: &Taps,
    origin: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * (end - start) * rows.len());
    let mut sums = vec![0i32; 3 * (end - start)];
    for place in 0..rows.len() {
        let (first, weights) = rows.at(place);
        sums.fill(HALF);
        for (row, &weight) in (first - origin..).zip(weights) {
            let values = &rgb[3 * (row * width + start)..3 * (row * width + end)];
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().copied().map(rounded));
    }
    out
}
