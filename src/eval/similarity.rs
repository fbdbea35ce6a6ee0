//! The product of all texts with all images, consumed as it is formed.
//!
//! Scores are never stored: n = 5000 would need 100 MB. A block of texts is multiplied with a panel
//! of [`WIDTH`] images at a time, and each score is compared with the right answers of its row
//! and of its column while it is in a register.

use pulp::{Arch, Simd, WithSimd};

/// Images in a panel.
const WIDTH: usize = 16;
/// Texts that share a pass over a panel: [`HEIGHT`] x [`WIDTH`] sums fill half of AVX2's registers.
const HEIGHT: usize = 4;
/// Texts in a unit of parallel work.
pub(super) const TEXT_BLOCK: usize = 64;
/// Scores within so much of one another are near ties.
const NEAR: f32 = 1e-5;

/// What stands beside the right answer of a query.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Answers with a higher score, or the same and a lower index.
    pub ahead: u32,
    /// Answers with the same score, the right one among them.
    pub ties: u32,
    /// Answers within [`NEAR`], the right one among them.
    pub near: u32,
}

impl Counts {
    /// Adds the counts of other answers to the same query.
    pub(super) fn add(&mut self, other: Counts) {
        self.ahead += other.ahead;
        self.ties += other.ties;
        self.near += other.near;
    }
}

/// [`Counts`] of a panel's columns, a field an array so that they vectorise.
#[derive(Clone, Copy, Default)]
struct Lanes {
    ahead: [u32; WIDTH],
    ties: [u32; WIDTH],
    near: [u32; WIDTH],
}

impl Lanes {
    /// Counts an answer a lane; `before` is 1 where its index is lower than the right one's.
    #[inline(always)]
    fn see(&mut self, scores: &[f32; WIDTH], right: &[f32; WIDTH], before: &[u32; WIDTH]) {
        for c in 0..WIDTH {
            let tie = u32::from(scores[c] == right[c]);
            self.ahead[c] += u32::from(scores[c] > right[c]) | (tie & before[c]);
            self.ties[c] += tie;
            self.near[c] += u32::from((scores[c] - right[c]).abs() <= NEAR);
        }
    }

    fn lane(&self, c: usize) -> Counts {
        Counts {
            ahead: self.ahead[c],
            ties: self.ties[c],
            near: self.near[c],
        }
    }

    fn sum(&self) -> Counts {
        let sum = |lanes: &[u32; WIDTH]| lanes.iter().sum();
        Counts {
            ahead: sum(&self.ahead),
            ties: sum(&self.ties),
            near: sum(&self.near),
        }
    }
}

/// The images, regrouped so that a feature of [`WIDTH`] images lies together.
pub(super) struct Panels<'a> {
    /// (n / WIDTH rounded up, dim, WIDTH); images beyond n are zero and never counted.
    packed: Vec<f32>,
    /// (n): the score of each right pair.
    right: &'a [f32],
    dim: usize,
}

impl<'a> Panels<'a> {
    /// # Shapes
    /// image (n, dim), right (n).
    pub(super) fn new(image: &[f32], right: &'a [f32], dim: usize) -> Self {
        let mut packed = vec![0.0; right.len().div_ceil(WIDTH) * WIDTH * dim];
        for (j, row) in image.chunks_exact(dim).enumerate() {
            let panel = &mut packed[j / WIDTH * WIDTH * dim..][..WIDTH * dim];
            for (slot, &value) in panel[j % WIDTH..].iter_mut().step_by(WIDTH).zip(row) {
                *slot = value;
            }
        }
        Panels { packed, right, dim }
    }
}

/// Counts for the texts of a block among all images, and for all images among these texts.
///
/// # Shapes
/// text (rows, dim), its first row being text `first`; the results are (rows) and (n).
pub(super) fn count_block(
    text: &[f32],
    first: usize,
    panels: &Panels,
) -> (Vec<Counts>, Vec<Counts>) {
    Arch::new().dispatch(CountBlock {
        text,
        first,
        panels,
    })
}

/// The arguments of [`count_block`]. A type, since a closure is not always inlined into the
/// function that has the vector instructions.
struct CountBlock<'a> {
    text: &'a [f32],
    first: usize,
    panels: &'a Panels<'a>,
}

impl WithSimd for CountBlock<'_> {
    type Output = (Vec<Counts>, Vec<Counts>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        count_block_here(simd, self.text, self.first, self.panels)
    }
}

#[inline(always)]
fn count_block_here<S: Simd>(
    simd: S,
    text: &[f32],
    first: usize,
    panels: &Panels,
) -> (Vec<Counts>, Vec<Counts>) {
    let (dim, right) = (panels.dim, panels.right);
    let mut by_text = vec![Counts::default(); text.len() / dim];
    let mut by_image = Vec::with_capacity(right.len());
    for (p, panel) in panels.packed.chunks_exact(WIDTH * dim).enumerate() {
        let from = p * WIDTH;
        let width = WIDTH.min(right.len() - from);
        // Lanes beyond the last image are answers that nothing ranks behind, and right ones that
        // nothing ranks before.
        let mut rights = [f32::INFINITY; WIDTH];
        rights[..width].copy_from_slice(&right[from..from + width]);
        let mut columns = Lanes::default();
        for (g, group) in text.chunks(HEIGHT * dim).enumerate() {
            let height = group.len() / dim;
            // A last group of fewer texts repeats one; its scores are not counted.
            let rows = std::array::from_fn(|r| &group[r.min(height - 1) * dim..][..dim]);
            let mut scores = product(simd, rows, panel);
            for (r, scores) in scores.iter_mut().enumerate().take(height) {
                scores[width..].fill(f32::NEG_INFINITY);
                let i = first + g * HEIGHT + r;
                let (mut image_before, mut text_before) = ([0; WIDTH], [0; WIDTH]);
                for c in 0..WIDTH {
                    image_before[c] = u32::from(from + c < i);
                    text_before[c] = u32::from(i < from + c);
                }
                let mut row = Lanes::default();
                row.see(scores, &[right[i]; WIDTH], &image_before);
                by_text[g * HEIGHT + r].add(row.sum());
                columns.see(scores, &rights, &text_before);
            }
        }
        by_image.extend((0..width).map(|c| columns.lane(c)));
    }
    (by_text, by_image)
}

/// Scores of [`HEIGHT`] texts with a panel; each is one sum in the order of the features.
#[inline(always)]
fn product<S: Simd>(simd: S, rows: [&[f32]; HEIGHT], panel: &[f32]) -> [[f32; WIDTH]; HEIGHT] {
    match S::F32_LANES {
        16 => product_of::<S, 1>(simd, rows, panel),
        8 => product_of::<S, 2>(simd, rows, panel),
        4 => product_of::<S, 4>(simd, rows, panel),
        _ => product_of::<S, WIDTH>(simd, rows, panel),
    }
}

/// [`product`] where `VECTORS` vectors make up [`WIDTH`].
///
/// Multiply and add stay apart: fused where the machine can, they would give other bits there.
#[inline(always)]
fn product_of<S: Simd, const VECTORS: usize>(
    simd: S,
    rows: [&[f32]; HEIGHT],
    panel: &[f32],
) -> [[f32; WIDTH]; HEIGHT] {
    let [a, b, c, d] = rows;
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; HEIGHT];
    let features = a
        .iter()
        .zip(b)
        .zip(c.iter().zip(d))
        .zip(panel.as_chunks::<WIDTH>().0);
    for (((a, b), (c, d)), images) in features {
        let (images, _) = S::as_simd_f32s(images);
        let texts = [a, b, c, d].map(|&text| simd.splat_f32s(text));
        for r in 0..HEIGHT {
            for v in 0..VECTORS {
                sums[r][v] = simd.add_f32s(sums[r][v], simd.mul_f32s(texts[r], images[v]));
            }
        }
    }
    let mut scores = [[0.0; WIDTH]; HEIGHT];
    for (scores, sums) in scores.iter_mut().zip(&sums) {
        let (vectors, _) = S::as_mut_simd_f32s(scores);
        vectors.copy_from_slice(sums);
    }
    scores
}
