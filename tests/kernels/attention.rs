//! `kernels/attention.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::attention::{Backward, Forward, backward, forward};
use crosstune::ops::attention::Mask;
use crosstune::ops::philox::{Dropout, RowKey};
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "attention";

/// One that ends with its tile, one of a token, and two that take a second and a third tile.
const LENGTHS: &[Member] = &[
    Member(1, false, 32, 31),
    Member(1, false, 1, 2),
    Member(2, true, 40, 3),
    Member(3, false, 77, 5),
];

#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    pub size: usize,
    pub drop: Option<f32>,
    pub mask: Mask,
}

impl Heads {
    fn dropout(&self) -> Option<Dropout> {
        self.drop.map(|p| Dropout { p, site: 9 })
    }

    /// The factors of a query's keys, named as `ops/attention.rs` names them.
    fn factors(&self, w: &World, seq: usize, head: usize, query: usize) -> Vec<f64> {
        let b = &w.batch;
        let step = &w.steps[b.seq_member[seq] as usize];
        let place = (head as u32) << 16 | query as u32;
        let (role, item) = (b.roles[seq], b.seq_items[seq]);
        let key = RowKey::new(step.seed, step.step, 9, role, item, place);
        let factor = |j| self.dropout().map_or(1.0, |d| d.factor(&key, j).into());
        (0..b.segment(seq).len()).map(factor).collect()
    }

    fn c(&self) -> usize {
        self.heads * self.size
    }

    fn inputs(&self, w: &World) -> (Vec<f32>, Vec<f32>) {
        let qkv = w.rows("qkv", Rows::Tokens, 3 * self.c(), 1.5);
        (qkv, w.rows("dout", Rows::Tokens, self.c(), 1.0))
    }
}

impl Case for Heads {
    fn fill(&self, d: &Device, w: &World) {
        let (qkv, dout) = self.inputs(w);
        d.rows("qkv", Rows::Tokens, 3 * self.c(), &qkv);
        d.rows("dout", Rows::Tokens, self.c(), &dout);
        d.poison_rows("out", Rows::Tokens, self.c());
        d.poison_rows("dqkv", Rows::Tokens, 3 * self.c());
        for name in ["lse", "delta"] {
            d.poison_f32(name, d.step().rows(Rows::Tokens), self.heads);
        }
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let (qkv, lse, dropout) = (d.get("qkv"), d.get("lse"), self.dropout());
        let op = Forward {
            out: d.get("out"),
            lse,
            qkv,
            heads: self.heads,
            mask: self.mask,
            dropout,
        };
        forward(d.context(), &op)?;
        let is_long = Backward::needs_delta(d.step().longest());
        let op = Backward {
            dqkv: d.get("dqkv"),
            delta: is_long.then(|| d.get("delta")),
            qkv,
            dout: d.get("dout"),
            lse,
            heads: self.heads,
            mask: self.mask,
            dropout,
        };
        backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let out = |name| d.out_rows(OP, name, Rows::Tokens, w);
        vec![out("out"), out("lse"), out("dqkv")]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let (c, hs) = (self.c(), self.size);
        let (qkv, dout) = self.inputs(w);
        let (qkv, dout) = (doubles(&qkv), doubles(&dout));
        let n = w.count(Rows::Tokens);
        let mut out = vec![0.0; n * c];
        let mut lse = vec![0.0; n * self.heads];
        let mut dqkv = vec![0.0; n * 3 * c];
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let scale = 1.0 / (hs as f64).sqrt();
        for (seq, head) in
            (0..w.count(Rows::Seqs)).flat_map(|s| (0..self.heads).map(move |h| (s, h)))
        {
            let text = w.batch.segment(seq);
            let at = |which: usize, t: usize| (t * 3 + which) * c + head * hs;
            for (query, i) in text.clone().enumerate() {
                let texts = match self.mask {
                    Mask::All => text.clone(),
                    Mask::Causal => text.start..i + 1,
                };
                let q = &qkv[at(0, i)..][..hs];
                let dy = &dout[i * c + head * hs..][..hs];
                let s: Vec<f64> = texts
                    .clone()
                    .map(|t| scale * dot(q, &qkv[at(1, t)..][..hs]))
                    .collect();
                let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log = max + s.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
                lse[i * self.heads + head] = log;
                let p: Vec<f64> = s.iter().map(|x| (x - log).exp()).collect();
                let m = self.factors(w, seq, head, query);
                let dp: Vec<f64> = texts
                    .clone()
                    .zip(&m)
                    .map(|(t, m)| m * dot(dy, &qkv[at(2, t)..][..hs]))
                    .collect();
                let delta = dot(&p, &dp);
                for (j, t) in texts.clone().enumerate() {
                    let ds = scale * p[j] * (dp[j] - delta);
                    for k in 0..hs {
                        out[i * c + head * hs + k] += m[j] * p[j] * qkv[at(2, t) + k];
                        dqkv[at(0, i) + k] += ds * qkv[at(1, t) + k];
                        dqkv[at(1, t) + k] += ds * q[k];
                        dqkv[at(2, t) + k] += m[j] * p[j] * dy[k];
                    }
                }
            }
        }
        vec![out, lse, dqkv]
    }
}

fn case(heads: usize, size: usize, drop: Option<f32>) -> Heads {
    Heads {
        heads,
        size,
        drop,
        mask: Mask::All,
    }
}

fn causal(heads: usize, size: usize, drop: Option<f32>) -> Heads {
    Heads {
        mask: Mask::Causal,
        ..case(heads, size, drop)
    }
}

#[test]
fn attention_agrees_with_the_loops() {
    agrees(&case(1, 8, None), ONE);
    agrees(&case(3, 16, Some(0.1)), SEVERAL);
    agrees(&case(1, 40, Some(0.5)), LENGTHS);
    agrees(&case(2, 64, Some(0.1)), LENGTHS);
    agrees(&case(1, 96, None), SEVERAL);
    agrees(&case(1, 128, Some(0.1)), LENGTHS);
    agrees(&case(2, 64, None), REAL);
}

#[test]
fn causal_attention_agrees_with_the_loops() {
    agrees(&causal(1, 8, None), ONE);
    agrees(&causal(2, 24, Some(0.1)), LENGTHS);
    agrees(&causal(2, 64, None), LENGTHS);
    agrees(&causal(1, 128, Some(0.5)), LENGTHS);
    agrees(&causal(2, 64, Some(0.1)), REAL);
}

/// A vision tower's pictures: 50 tokens of B/32, 257 of L/14.
#[test]
fn attention_agrees_on_pictures() {
    agrees(&case(2, 64, None), &[Member(3, false, 50, 50)]);
    agrees(&case(1, 80, None), &[Member(1, false, 257, 257)]);
}

/// As long as a position table lets a text be.
#[test]
fn attention_agrees_on_long_texts() {
    agrees(&case(1, 32, Some(0.1)), &[Member(1, false, 512, 33)]);
}

#[test]
fn attention_repeats_its_bits() {
    repeats(&case(2, 24, Some(0.1)), LENGTHS);
    repeats(&causal(2, 24, Some(0.1)), LENGTHS);
}

#[test]
fn attention_of_a_member_is_the_same_alone() {
    alone_as_in_company(&case(1, 32, Some(0.1)), LENGTHS);
    alone_as_in_company(&case(1, 64, None), SEVERAL);
    alone_as_in_company(&causal(1, 64, Some(0.1)), LENGTHS);
}

#[test]
fn attention_replays_with_other_sizes() {
    let steps: [&[Member]; 3] = [ALONE, &[Member(2, true, 50, 8)], ONE];
    replays(&case(2, 16, Some(0.1)), &steps);
    replays(&causal(2, 16, None), &steps);
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let (fits, world) = (case(2, 24, None), World::new(ALONE));
    let d = Device::of(&world, None);
    load(&fits, &d, &world);
    let op = Forward {
        out: d.get("out"),
        lse: d.get("lse"),
        qkv: d.get("qkv"),
        heads: 4,
        mask: Mask::All,
        dropout: None,
    };
    let error = forward(d.context(), &op)
        .expect_err("heads of 12")
        .to_string();
    assert!(
        error.contains("attention_forward: qkv has 144 columns for 4 heads"),
        "{error}"
    );
    let op = Backward {
        dqkv: d.get("dqkv"),
        delta: Some(d.get("delta")),
        qkv: d.get("qkv"),
        dout: d.get("dout"),
        lse: d.get("lse"),
        heads: 2,
        mask: Mask::All,
        dropout: None,
    };
    assert!(backward(d.context(), &op).is_err());
}
