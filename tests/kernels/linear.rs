//! `kernels/linear.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::DeviceTensor;
use crosstune::cuda::ops::linear::{
    Backward, Forward, Lora, LoraBackward, Tile, backward, forward,
};
use crosstune::ops::real;
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "linear";

#[derive(Clone, Copy, Debug)]
pub struct Layer {
    rows: Rows,
    c: usize,
    oc: usize,
    /// 0: no branch.
    rank: usize,
    bias: bool,
    act: bool,
    /// Of `dinp`: none, its own, or `dinp` itself.
    resid: Resid,
    tile: Tile,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resid {
    None,
    Apart,
    InPlace,
}

impl Layer {
    fn scale(&self) -> f32 {
        16.0 / self.rank.max(1) as f32
    }

    /// Weights of about unit gain.
    fn std(&self) -> f32 {
        (1.0 / self.c as f32).sqrt()
    }

    fn lora_a(&self, w: &World) -> Vec<f32> {
        w.param("lora_a", true, self.rank * self.c, (0.0, self.std()))
    }

    fn lora_b(&self, w: &World) -> Vec<f32> {
        w.param("lora_b", true, self.oc * self.rank, (0.0, 0.05))
    }

    fn lora(&self, d: &Device) -> Option<Lora> {
        (self.rank > 0).then(|| Lora {
            u: d.get("u"),
            lora_a: d.get("lora_a"),
            lora_b: d.get("lora_b"),
            scale: self.scale(),
        })
    }
}

impl Case for Layer {
    fn fill(&self, d: &Device, w: &World) {
        let (c, oc, rank, rows) = (self.c, self.oc, self.rank, self.rows);
        let members = w.seeds.len();
        d.rows("inp", rows, c, &w.rows("inp", rows, c, 1.0));
        d.rows("dout", rows, oc, &w.rows("dout", rows, oc, 1.0));
        let std = (0.0, self.std());
        d.weight("weight", 0, c, &w.param("weight", false, oc * c, std));
        d.weight("bias", 0, oc, &w.param("bias", false, oc, (0.0, 0.5)));
        d.poison_rows("out", rows, oc);
        d.poison_rows("act", rows, oc);
        match self.resid {
            Resid::InPlace => d.rows("dinp", rows, c, &w.rows("resid", rows, c, 1.0)),
            _ => d.poison_rows("dinp", rows, c),
        };
        d.rows("resid", rows, c, &w.rows("resid", rows, c, 1.0));
        if rank == 0 {
            return;
        }
        d.poison_rows("u", rows, rank);
        d.poison_rows("v", rows, rank);
        let padded = rank.next_multiple_of(8) * c;
        let mut lora_a = Vec::new();
        for own in self.lora_a(w).chunks(rank * c) {
            lora_a.extend_from_slice(own);
            lora_a.resize(lora_a.len().next_multiple_of(padded), 0.0);
        }
        d.weight("lora_a", members, c, &lora_a);
        d.weight("lora_b", members, rank, &self.lora_b(w));
        let da = w.param("dlora_a", true, rank * c, (0.0, 1.0));
        let db = w.param("dlora_b", true, oc * rank, (0.0, 1.0));
        d.f32("dlora_a", members, c, &da);
        d.f32("dlora_b", members, rank, &db);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let lora = self.lora(d);
        let op = Forward {
            rows: self.rows,
            out: d.get("out"),
            act: self.act.then(|| d.get("act")),
            inp: d.get("inp"),
            weight: d.get("weight"),
            bias: self.bias.then(|| d.get("bias")),
            lora,
            tile: self.tile,
        };
        forward(d.context(), &op)?;
        let op = Backward {
            rows: self.rows,
            dinp: Some(d.get("dinp")),
            dout: d.get("dout"),
            weight: d.get("weight"),
            resid: match self.resid {
                Resid::None => None,
                Resid::Apart => Some(d.get("resid")),
                Resid::InPlace => Some(d.get("dinp")),
            },
            lora: lora.map(|lora| LoraBackward {
                dlora_a: Some(d.get("dlora_a")),
                dlora_b: Some(d.get("dlora_b")),
                v: d.get("v"),
                inp: d.get("inp"),
                lora,
            }),
            tile: self.tile,
        };
        backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut outs = vec![
            d.out_rows(OP, "out", self.rows, w),
            d.out_rows(OP, "dinp", self.rows, w),
        ];
        if self.act {
            outs.push(d.out_rows(OP, "act", self.rows, w));
        }
        if self.rank > 0 {
            outs.push(d.out_rows(OP, "u", self.rows, w));
            outs.push(d.out_rows(OP, "v", self.rows, w));
            outs.push(d.out_members(OP, "dlora_a"));
            outs.push(d.out_members(OP, "dlora_b"));
        }
        outs
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let (c, oc, rank, rows) = (self.c, self.oc, self.rank, self.rows);
        let n = w.count(rows);
        let x = doubles(&w.rows("inp", rows, c, 1.0));
        let dy = doubles(&w.rows("dout", rows, oc, 1.0));
        let resid = doubles(&w.rows("resid", rows, c, 1.0));
        let weight = doubles(&w.param("weight", false, oc * c, (0.0, self.std())));
        let bias = doubles(&w.param("bias", false, oc, (0.0, 0.5)));
        let (a, b) = (doubles(&self.lora_a(w)), doubles(&self.lora_b(w)));
        let mut da = doubles(&w.param("dlora_a", true, rank * c, (0.0, 1.0)));
        let mut db = doubles(&w.param("dlora_b", true, oc * rank, (0.0, 1.0)));
        let scale = f64::from(self.scale());
        let (mut out, mut dinp) = (vec![0.0; n * oc], vec![0.0; n * c]);
        let (mut u, mut v) = (vec![0.0; n * rank], vec![0.0; n * rank]);
        for t in 0..n {
            let g = w.batch.member_of(rows, t);
            let (x, dy) = (&x[t * c..][..c], &dy[t * oc..][..oc]);
            let a = &a[g * rank * c..][..rank * c];
            let b = &b[g * oc * rank..][..oc * rank];
            for r in 0..rank {
                u[t * rank + r] = dot(x, &a[r * c..]);
                v[t * rank + r] = scale * (0..oc).map(|o| dy[o] * b[o * rank + r]).sum::<f64>();
                for j in 0..c {
                    da[(g * rank + r) * c + j] += v[t * rank + r] * x[j];
                }
                for o in 0..oc {
                    db[(g * oc + o) * rank + r] += scale * dy[o] * u[t * rank + r];
                }
            }
            for o in 0..oc {
                let term = dot(&u[t * rank..][..rank], &b[o * rank..]);
                out[t * oc + o] = dot(x, &weight[o * c..]) + scale * term;
                if self.bias {
                    out[t * oc + o] += bias[o];
                }
                for j in 0..c {
                    dinp[t * c + j] += dy[o] * weight[o * c + j];
                }
            }
            for j in 0..c {
                dinp[t * c + j] += (0..rank)
                    .map(|r| v[t * rank + r] * a[r * c + j])
                    .sum::<f64>();
                if self.resid != Resid::None {
                    dinp[t * c + j] += resid[t * c + j];
                }
            }
        }
        let act = out.iter().map(|x| real::gelu(*x).0).collect();
        let mut want = vec![out, dinp];
        if self.act {
            want.push(act);
        }
        if rank > 0 {
            want.extend([u, v, da, db]);
        }
        want
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

pub fn layer(c: usize, oc: usize, rank: usize, tile: Tile) -> Layer {
    Layer {
        rows: Rows::Tokens,
        c,
        oc,
        rank,
        bias: rank.is_multiple_of(2),
        act: rank.is_multiple_of(4),
        resid: [Resid::None, Resid::Apart, Resid::InPlace][rank % 3],
        tile,
    }
}

#[test]
fn linear_agrees_with_the_loops() {
    for tile in [Tile::Small, Tile::Large] {
        for (c, oc, rank, members) in [
            (1, 1, 1, ONE),
            (8, 8, 8, ALONE),
            (37, 41, 5, SEVERAL),
            (64, 136, 16, SEVERAL),
            (96, 40, 20, SEVERAL),
            (40, 64, 0, SEVERAL),
        ] {
            agrees(&layer(c, oc, rank, tile), members);
        }
        let seqs = Layer {
            rows: Rows::Seqs,
            ..layer(48, 24, 8, tile)
        };
        agrees(&seqs, SEVERAL);
        agrees(
            &Layer {
                rows: Rows::Items,
                ..seqs
            },
            SEVERAL,
        );
    }
}

#[test]
fn linear_agrees_at_real_size() {
    agrees(&layer(768, 768, 8, Tile::Small), REAL);
    agrees(&layer(768, 256, 8, Tile::Large), REAL);
}

#[test]
fn linear_gives_the_same_bits_in_any_tile() {
    let give = |tile| outputs(&layer(72, 136, 8, tile), SEVERAL);
    assert!(give(Tile::Small) == give(Tile::Large));
}

#[test]
fn linear_repeats_its_bits() {
    for tile in [Tile::Small, Tile::Large] {
        repeats(&layer(72, 37, 12, tile), SEVERAL);
    }
}

#[test]
fn linear_of_a_member_is_the_same_alone() {
    for tile in [Tile::Small, Tile::Large] {
        alone_as_in_company(&layer(72, 37, 12, tile), SEVERAL);
    }
}

#[test]
fn linear_replays_with_other_sizes() {
    let steps: [&[Member]; 3] = [ALONE, &[Member(1, false, 3, 8)], REAL];
    replays(&layer(40, 37, 4, Tile::Small), &steps);
    replays(&layer(40, 37, 4, Tile::Large), &steps);
}

/// A branch of infinities stays its member's own.
#[test]
fn linear_keeps_a_members_infinities_to_itself() {
    let case = layer(40, 24, 8, Tile::Small);
    let world = World::new(SEVERAL);
    let sound = outputs(&case, SEVERAL);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let mut b = case.lora_b(&world);
    b[..24 * 8].fill(f32::INFINITY);
    d.weight("lora_b", SEVERAL.len(), 8, &b);
    case.launch(&d).expect("launched");
    let spoilt = case.read(&d, &world);
    for (a, b) in sound.iter().zip(&spoilt) {
        for g in 1..SEVERAL.len() {
            assert!(a.of_member(&world, g) == b.of_member(&world, g), "{a:?}");
        }
    }
    assert!(spoilt[0].values().iter().any(|x| !x.is_finite()));
}

/// `out` in columns of something wider: query, key and value side by side.
#[test]
fn linear_writes_columns_of_something_wider() {
    let case = layer(40, 24, 8, Tile::Small);
    let world = World::new(ALONE);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let wide = d.poison_rows("wide", Rows::Tokens, 72);
    let own = DeviceTensor {
        ptr: wide.ptr.offset(24 * 2),
        cols: 24,
        ..wide
    };
    let op = Forward {
        rows: Rows::Tokens,
        out: own,
        act: None,
        inp: d.get("inp"),
        weight: d.get("weight"),
        bias: None,
        lora: case.lora(&d),
        tile: Tile::Small,
    };
    forward(d.context(), &op).expect("launched");
    let wide = d.out_rows(OP, "wide", Rows::Tokens, &world);
    let plain = Layer {
        bias: false,
        ..case
    };
    let want = outputs(&plain, ALONE);
    for (wide, row) in wide.values().chunks(72).zip(want[0].values().chunks(24)) {
        assert_eq!(&wide[24..48], row);
        assert!(wide[..24].iter().chain(&wide[48..]).all(|x| x.is_nan()));
    }
}
