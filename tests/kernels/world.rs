//! Steps of several members, and their numbers.

use crosstune::exec::{Adam, LossWeights, MemberStep};
use crosstune::graph::Bucket;
use crosstune::ops::philox::Stream;
use crosstune::text::pack::{Batch, Layout, MemberTexts, Rows, Text};
use half::f16;

/// A member of a step: items, whether they have partners, the longest text, and its seed, which
/// names all its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Member(pub usize, pub bool, pub usize, pub u64);

pub const ONE: &[Member] = &[Member(1, false, 1, 1)];
pub const ALONE: &[Member] = &[Member(3, true, 9, 2)];
/// The second has no texts, the third more rows than a chunk and a tile.
pub const SEVERAL: &[Member] = &[
    Member(2, true, 5, 3),
    Member(0, false, 1, 4),
    Member(5, true, 31, 5),
    Member(7, false, 3, 6),
];
/// About 200 tokens.
pub const REAL: &[Member] = &[Member(5, true, 40, 7)];

/// Rows of the word table.
pub const WORDS: usize = 23;

/// A bucket, the longest text in it, and the slots of a prompt.
pub type Room = (Bucket, usize, usize);

/// A step.
pub struct World {
    pub batch: Batch,
    pub steps: Vec<MemberStep>,
    pub seeds: Vec<u64>,
}

impl World {
    pub fn new(members: &[Member]) -> World {
        World::with_prompt(members, 0)
    }

    /// Of texts that each hold `prompt` slots of a soft prompt.
    pub fn with_prompt(members: &[Member], prompt: usize) -> World {
        let ids: Vec<u32> = (0..1024).map(|i| i * 37 % WORDS as u32).collect();
        let text = |m: &Member, role: u8, item: usize| {
            let at = m.3 as usize * 31 + item * 17 + role as usize * 5;
            let len = 1 + (at + m.2 - 1) % m.2;
            Text {
                ids: &ids[at % 29..][..len],
                role,
                item: item as u32,
            }
        };
        let texts: Vec<MemberTexts<'_>> = members
            .iter()
            .map(|m| MemberTexts {
                anchors: (0..m.0).map(|i| text(m, 0, i)).collect(),
                partners: (0..if m.1 { m.0 } else { 0 })
                    .map(|i| text(m, 1, i))
                    .collect(),
            })
            .collect();
        let layout = Layout {
            position_offset: 2,
            prompt,
        };
        let step = |m: &Member| MemberStep {
            seed: 0x1234_5678_9abc * m.3,
            step: 7 + m.3 as u32,
            weights: LossWeights {
                image_anchor: 1.0 + m.3 as f32 / 8.0,
                // The fourth has no use for it.
                mse: if m.3 == 4 { 0.0 } else { 0.75 },
                partner_anchor: 0.5,
                // The fifth has no use for it: it is not computed.
                image_partner: if m.3 == 5 { 0.0 } else { 0.25 },
                stop_partner: m.3 % 4 == 1,
            },
            loss_scale: [1.0, 64.0, 1024.0][m.3 as usize % 3],
            active: m.3 != 6,
            adam: Adam {
                lr: 1e-3 * m.3 as f64,
                head_lr: (m.3 % 2 == 1).then_some(3e-3),
                weight_decay: if m.3 % 2 == 1 { 0.01 } else { 0.0 },
                clip_norm: if m.3 == 3 { 0.5 } else { f64::INFINITY },
                ..Adam::default()
            },
        };
        let mut batch = Batch::pack(&texts, layout, vec![]);
        batch.types = batch.places.iter().map(|p| p / 3 % 2).collect();
        World {
            batch,
            steps: members.iter().map(step).collect(),
            seeds: members.iter().map(|m| m.3).collect(),
        }
    }

    /// f16 numbers of all rows, drawn member by member.
    pub fn rows(&self, name: &str, rows: Rows, c: usize, std: f32) -> Vec<f32> {
        let own = |g: usize| {
            let n = self.batch.member_rows(rows, g).len();
            Stream::named(self.seeds[g], name).normal(n * c, std)
        };
        round((0..self.seeds.len()).flat_map(own).collect())
    }

    /// f16 numbers of a parameter: one frozen copy, or one for each member.
    pub fn param(
        &self,
        name: &str,
        per_member: bool,
        len: usize,
        (mean, std): (f32, f32),
    ) -> Vec<f32> {
        let seeds = if per_member { &self.seeds[..] } else { &[0] };
        let own = |seed: &u64| Stream::named(*seed, name).normal(len, std);
        let shifted = seeds.iter().flat_map(own).map(|x| x + mean).collect();
        round(shifted)
    }

    /// The smallest room that holds it.
    pub fn room(&self) -> Room {
        (self.batch.bucket(), self.batch.longest(), self.batch.prompt)
    }

    pub fn count(&self, rows: Rows) -> usize {
        self.batch.rows(rows)
    }
}

pub fn doubles(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

pub fn round(x: Vec<f32>) -> Vec<f32> {
    x.into_iter().map(|x| f16::from_f32(x).to_f32()).collect()
}

/// What rounding to f16 takes.
pub fn rest(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x - f16::from_f32(*x).to_f32()).collect()
}

/// Rounded to sums of two f16.
pub fn split(x: Vec<f32>) -> Vec<f32> {
    let low = round(rest(&x));
    round(x).iter().zip(low).map(|(h, l)| h + l).collect()
}

/// The first `n` rows without their padding, which must be zero; the others are still NaN.
pub fn true_rows<'a>(
    name: &str,
    rows: impl Iterator<Item = &'a [f32]>,
    (cols, n): (usize, usize),
) -> Vec<f32> {
    let mut values = Vec::new();
    for (i, row) in rows.enumerate() {
        let (own, padding) = row.split_at(cols);
        if i < n {
            let zero = padding.iter().all(|x| *x == 0.0);
            assert!(zero, "{name}: padding of row {i}");
            values.extend_from_slice(own);
        } else {
            let untouched = row.iter().all(|x| x.is_nan());
            assert!(untouched, "{name}: wrote row {i} of {n}");
        }
    }
    values
}

/// Rows as f16, padded to 8 with zeros.
pub fn pad(data: &[f32], c: usize) -> Vec<f16> {
    let ld = c.next_multiple_of(8);
    let row = |row: &[f32]| {
        let mut out: Vec<f16> = row.iter().map(|x| f16::from_f32(*x)).collect();
        out.resize(ld, f16::ZERO);
        out
    };
    data.chunks_exact(c).flat_map(row).collect()
}
