//! A table of places for pictures of another size than those that a tower was trained with.

/// PyTorch's, of `torch.nn.functional.interpolate(mode="bicubic")`.
const A: f32 = -0.75;

/// A table (1 + from from, C), a class token's row and then a square's, by bicubic interpolation as one
/// (1 + to to, C). The class token's row stays.
///
/// Source: `Dinov2Embeddings.interpolate_pos_encoding` of Hugging Face's transformers, in f32, corners not
/// aligned and no antialias (Keys, "Cubic convolution interpolation for digital image processing", 1981).
pub(crate) fn resampled(table: &[f32], channels: usize, (from, to): (usize, usize)) -> Vec<f32> {
    let (class, square) = table.split_at(channels);
    let taps: Vec<[(usize, f32); 4]> = (0..to).map(|at| taps(at, (from, to))).collect();
    let mut out = class.to_vec();
    for down in &taps {
        for across in &taps {
            for c in 0..channels {
                let line = |y: usize| -> f32 {
                    let terms = across.iter();
                    terms
                        .map(|(x, w)| w * square[(y * from + x) * channels + c])
                        .sum()
                };
                out.push(down.iter().map(|(y, w)| w * line(*y)).sum());
            }
        }
    }
    out
}

/// The four places that place `at` of `to` is made of, and the weight of each: one past the edge is the
/// edge's.
fn taps(at: usize, (from, to): (usize, usize)) -> [(usize, f32); 4] {
    let source = from as f32 / to as f32 * (at as f32 + 0.5) - 0.5;
    let (first, t) = (source.floor(), source - source.floor());
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    let place = |i: usize| (first + i as f32 - 1.0).clamp(0.0, (from - 1) as f32) as usize;
    [0, 1, 2, 3].map(|i| (place(i), weights[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(side: usize) -> Vec<f32> {
        let rows = 0..side * side + 1;
        rows.flat_map(|r| [0.0, 0.5].map(|c| (0.9 * r as f32 + c).sin()))
            .collect()
    }

    /// Its first numbers, sum and sum of squares in PyTorch 2.15.
    #[test]
    fn tables_are_those_of_pytorch() {
        let small = [
            0.0, 0.479426, 0.42374, 0.656713, 0.629118, 0.345893, -0.39984, -0.643572, -0.634474,
            -0.900653,
        ];
        let large = [
            0.0, 0.479426, 0.876032, 1.182536, 1.046493, 1.12939, 1.16118, 0.90935, 0.801337,
            0.317693,
        ];
        let real = [
            0.0, 0.479426, 0.270658, -0.130511, -0.812209, -0.629357, 0.579573, 0.803946, 0.287465,
            -0.132315,
        ];
        for (sides, want, sum, squares) in [
            ((5, 3), small, 1.0792, 6.8731),
            ((3, 5), large, 9.4406, 22.2741),
            ((37, 16), real, 0.9843, 225.802),
        ] {
            let got = resampled(&table(sides.0), 2, sides);
            assert_eq!(got.len(), 2 * (sides.1 * sides.1 + 1));
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 2e-5, "{sides:?}: {got}, {want}");
            }
            let of = |f: fn(f64) -> f64| got.iter().map(|x| f(f64::from(*x))).sum::<f64>();
            assert!((of(|x| x) - sum).abs() < 1e-3, "{sides:?}");
            assert!((of(|x| x * x) - squares).abs() < 1e-2, "{sides:?}");
        }
    }

    #[test]
    fn a_table_of_the_same_size_stays_as_it_is() {
        assert_eq!(resampled(&table(4), 2, (4, 4)), table(4));
    }
}
