//! Linear layers side by side, as a case of the rig.

use crosstune::cuda::Result;
use crosstune::cuda::ops::DeviceTensor;
use crosstune::cuda::ops::linear::{
    BranchGrad, Forward, InputBackward, Lora, LoraBackward, Part, Tile, forward, input_backward,
    lora_backward,
};
use crosstune::ops::gelu::Gelu;
use crosstune::ops::philox::{Dropout, RowKey};
use crosstune::text::pack::Rows;

use crate::rig::*;

pub const OP: &str = "linear";

/// Layers side by side.
#[derive(Clone, Debug)]
pub struct Layer {
    pub rows: Rows,
    pub c: usize,
    pub parts: Vec<Piece>,
    pub act: Option<Gelu>,
    /// Of `dinp`: none, its own, or `dinp` itself.
    pub resid: Resid,
    pub tile: Tile,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    oc: usize,
    /// Of the branch; 0: none.
    rank: usize,
    /// Whether weight and bias are the members' own.
    own: [bool; 2],
    /// Whether what rounding took from the weight is there.
    split: bool,
    bias: bool,
    drop: Option<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resid {
    None,
    Apart,
    InPlace,
}

/// A frozen piece with a frozen bias.
pub const fn piece(oc: usize, rank: usize) -> Piece {
    Piece {
        oc,
        rank,
        own: [false, false],
        split: false,
        bias: true,
        drop: None,
    }
}

impl Piece {
    fn scale(&self) -> f32 {
        16.0 / self.rank.max(1) as f32
    }

    fn owned(self) -> Piece {
        Piece {
            own: [true, true],
            ..self
        }
    }

    fn split(self) -> Piece {
        Piece {
            split: true,
            ..self
        }
    }

    /// The factor of a number that the branch reads.
    fn factor(&self, i: usize, w: &World, t: usize, col: usize) -> f64 {
        let Some(drop) = self.dropout(i) else {
            return 1.0;
        };
        let b = &w.batch;
        let seq = b.token_seq[t] as usize;
        let step = &w.steps[b.seq_member[seq] as usize];
        let (role, item) = (b.roles[seq], b.seq_items[seq]);
        let key = RowKey::new(step.seed, step.step, drop.site, role, item, b.places[t]);
        drop.factor(&key, col).into()
    }

    fn dropout(&self, i: usize) -> Option<Dropout> {
        let site = 9 + i as u32;
        self.drop.map(|p| Dropout { p, site })
    }
}

/// A buffer of a piece.
fn of(name: &str, i: usize) -> String {
    format!("{name}{i}")
}

impl Layer {
    pub fn width(&self) -> usize {
        self.parts.iter().map(|p| p.oc).sum()
    }

    /// A parameter of piece `i`, in f64 and as it is stored.
    fn param(&self, w: &World, name: &str, i: usize) -> Vec<f32> {
        let p = &self.parts[i];
        // Weights of about unit gain.
        let std = (1.0 / self.c as f32).sqrt();
        let (own, len, std) = match name {
            "weight" => (p.own[0], p.oc * self.c, std),
            // Far larger than what rounding takes, so that a product without it is seen.
            "low" => (p.own[0], p.oc * self.c, std / 8.0),
            "bias" => (p.own[1], p.oc, 0.5),
            "lora_a" => (true, p.rank * self.c, std),
            "lora_b" => (true, p.oc * p.rank, 0.05),
            "dlora_a" => (true, p.rank * self.c, 1.0),
            _ => (true, p.oc * p.rank, 1.0),
        };
        w.param(&of(name, i), own, len, (0.0, std))
    }

    /// Each member's copy of it.
    fn of_members(&self, w: &World, name: &str, i: usize) -> Vec<Vec<f64>> {
        let (all, members) = (doubles(&self.param(w, name, i)), w.seeds.len());
        let own = match name {
            "weight" | "low" => self.parts[i].own[0],
            "bias" => self.parts[i].own[1],
            _ => true,
        };
        match own {
            true => all
                .chunks((all.len() / members).max(1))
                .map(Vec::from)
                .collect(),
            false => vec![all; members],
        }
    }

    /// Each member's weight of piece `i`, whole.
    fn weights(&self, w: &World, i: usize) -> Vec<Vec<f64>> {
        let mut all = self.of_members(w, "weight", i);
        if self.parts[i].split {
            let low = self.of_members(w, "low", i).into_iter().flatten();
            let high = all.iter_mut().flatten();
            high.zip(low).for_each(|(high, low)| *high += low);
        }
        all
    }

    fn fill_part(&self, d: &Device, w: &World, i: usize) {
        let (c, p, members) = (self.c, self.parts[i], w.seeds.len());
        let copies = |own: bool| if own { members } else { 0 };
        let weight = self.param(w, "weight", i);
        d.weight(&of("weight", i), copies(p.own[0]), c, &weight);
        let low = self.param(w, "low", i);
        d.weight(&of("low", i), copies(p.own[0]), c, &low);
        let bias = self.param(w, "bias", i);
        d.weight(&of("bias", i), copies(p.own[1]), p.oc, &bias);
        if p.rank == 0 {
            return;
        }
        d.poison_rows(&of("u", i), self.rows, p.rank);
        d.poison_rows(&of("v", i), self.rows, p.rank);
        let padded = p.rank.next_multiple_of(8) * c;
        let mut lora_a = Vec::new();
        for own in self.param(w, "lora_a", i).chunks(p.rank * c) {
            lora_a.extend_from_slice(own);
            lora_a.resize(lora_a.len().next_multiple_of(padded), 0.0);
        }
        d.weight(&of("lora_a", i), members, c, &lora_a);
        let lora_b = self.param(w, "lora_b", i);
        d.weight(&of("lora_b", i), members, p.rank, &lora_b);
        for (name, cols) in [("dlora_a", c), ("dlora_b", p.rank)] {
            d.f32(&of(name, i), members, cols, &self.param(w, name, i));
        }
    }

    pub fn parts(&self, d: &Device) -> Vec<Part> {
        let part = |(i, p): (usize, &Piece)| Part {
            weight: d.get(&of("weight", i)),
            low: p.split.then(|| d.get(&of("low", i))),
            bias: p.bias.then(|| d.get(&of("bias", i))),
            lora: (p.rank > 0).then(|| Lora {
                u: d.get(&of("u", i)),
                lora_a: d.get(&of("lora_a", i)),
                lora_b: d.get(&of("lora_b", i)),
                scale: p.scale(),
                dropout: p.dropout(i),
            }),
        };
        self.parts.iter().enumerate().map(part).collect()
    }

    pub fn branches(&self, d: &Device) -> Vec<Option<BranchGrad>> {
        let branch = |(i, p): (usize, &Piece)| {
            (p.rank > 0).then(|| BranchGrad {
                v: d.get(&of("v", i)),
                dlora_a: Some(d.get(&of("dlora_a", i))),
                dlora_b: Some(d.get(&of("dlora_b", i))),
            })
        };
        self.parts.iter().enumerate().map(branch).collect()
    }

    pub fn forward(&self, d: &Device, out: DeviceTensor) -> Result<()> {
        let op = Forward {
            rows: self.rows,
            out,
            act: self.act.map(|kind| (kind, d.get("act"))),
            inp: d.get("inp"),
            parts: &self.parts(d),
            tile: self.tile,
        };
        forward(d.context(), &op)
    }
}

impl Case for Layer {
    fn fill(&self, d: &Device, w: &World) {
        let (c, width, rows) = (self.c, self.width(), self.rows);
        d.rows("inp", rows, c, &w.rows("inp", rows, c, 1.0));
        d.rows("dout", rows, width, &w.rows("dout", rows, width, 1.0));
        d.poison_rows("out", rows, width);
        d.poison_rows("act", rows, width);
        match self.resid {
            Resid::InPlace => d.rows("dinp", rows, c, &w.rows("resid", rows, c, 1.0)),
            _ => d.poison_rows("dinp", rows, c),
        };
        d.rows("resid", rows, c, &w.rows("resid", rows, c, 1.0));
        (0..self.parts.len()).for_each(|i| self.fill_part(d, w, i));
    }

    fn launch(&self, d: &Device) -> Result<()> {
        self.forward(d, d.get("out"))?;
        let (parts, branches) = (self.parts(d), self.branches(d));
        let op = LoraBackward {
            rows: self.rows,
            dout: d.get("dout"),
            inp: d.get("inp"),
            parts: &parts,
            branches: &branches,
        };
        lora_backward(d.context(), &op)?;
        let v: Vec<_> = branches.iter().map(|b| b.map(|b| b.v)).collect();
        let op = InputBackward {
            rows: self.rows,
            dinp: d.get("dinp"),
            dout: d.get("dout"),
            resid: match self.resid {
                Resid::None => None,
                Resid::Apart => Some(d.get("resid")),
                Resid::InPlace => Some(d.get("dinp")),
            },
            parts: &parts,
            v: &v,
            tile: self.tile,
        };
        input_backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut outs = vec![
            d.out_rows(OP, "out", self.rows, w),
            d.out_rows(OP, "dinp", self.rows, w),
        ];
        if self.act.is_some() {
            outs.push(d.out_rows(OP, "act", self.rows, w));
        }
        let branches = (0..self.parts.len()).filter(|i| self.parts[*i].rank > 0);
        for i in branches {
            let own = [
                ("u", d.out_rows(OP, &of("u", i), self.rows, w)),
                ("v", d.out_rows(OP, &of("v", i), self.rows, w)),
                ("dlora_a", d.out_members(OP, &of("dlora_a", i))),
                ("dlora_b", d.out_members(OP, &of("dlora_b", i))),
            ];
            outs.extend(own.map(|(name, mut out)| {
                out.rename(OP, name);
                out
            }));
        }
        outs
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let (c, width, n) = (self.c, self.width(), w.count(self.rows));
        let mut at = Sides {
            x: doubles(&w.rows("inp", self.rows, c, 1.0)),
            dy: doubles(&w.rows("dout", self.rows, width, 1.0)),
            out: vec![0.0; n * width],
            dinp: match self.resid {
                Resid::None => vec![0.0; n * c],
                _ => doubles(&w.rows("resid", self.rows, c, 1.0)),
            },
        };
        let (mut first, mut branches) = (0, vec![]);
        for (i, p) in self.parts.iter().enumerate() {
            self.product(w, (i, first), &mut at);
            if p.rank > 0 {
                branches.extend(self.branch(w, (i, first), &mut at));
            }
            first += p.oc;
        }
        let act = |kind: Gelu| at.out.iter().map(|x| kind.reference(*x).0).collect();
        let act = self.act.map(act);
        let mut want = vec![at.out, at.dinp];
        want.extend(act);
        want.extend(branches);
        want
    }
}

/// What goes in and out of the layers, by rows.
struct Sides {
    x: Vec<f64>,
    dy: Vec<f64>,
    out: Vec<f64>,
    dinp: Vec<f64>,
}

impl Layer {
    /// `out` and `dinp` of piece `i`, whose columns begin at `first`, without its branch.
    fn product(&self, w: &World, (i, first): (usize, usize), at: &mut Sides) {
        let (c, p, width) = (self.c, self.parts[i], self.width());
        let (weight, bias) = (self.weights(w, i), self.of_members(w, "bias", i));
        for t in 0..w.count(self.rows) {
            let g = w.batch.member_of(self.rows, t);
            let x = &at.x[t * c..][..c];
            for o in 0..p.oc {
                let (col, weight) = (t * width + first + o, &weight[g][o * c..][..c]);
                at.out[col] = dot(x, weight) + if p.bias { bias[g][o] } else { 0.0 };
                let dinp = at.dinp[t * c..].iter_mut().zip(weight);
                dinp.for_each(|(d, w)| *d += at.dy[col] * w);
            }
        }
    }

    /// What the branch of piece `i` adds; its u, v and the gradients of its tables.
    fn branch(&self, w: &World, (i, first): (usize, usize), at: &mut Sides) -> [Vec<f64>; 4] {
        let (c, n, width) = (self.c, w.count(self.rows), self.width());
        let (p, Piece { oc, rank, .. }) = (self.parts[i], self.parts[i]);
        let scale = f64::from(p.scale());
        let (mut u, mut v) = (vec![0.0; n * rank], vec![0.0; n * rank]);
        let [a, b] = ["lora_a", "lora_b"].map(|name| self.of_members(w, name, i));
        let [mut da, mut db] = ["dlora_a", "dlora_b"].map(|name| doubles(&self.param(w, name, i)));
        for t in 0..n {
            let g = w.batch.member_of(self.rows, t);
            let factors: Vec<f64> = (0..c).map(|j| p.factor(i, w, t, j)).collect();
            let x: Vec<f64> = (0..c).map(|j| factors[j] * at.x[t * c + j]).collect();
            let dy = &at.dy[t * width + first..][..oc];
            for r in 0..rank {
                let a = &a[g][r * c..][..c];
                let b: Vec<f64> = (0..oc).map(|o| b[g][o * rank + r]).collect();
                let (term, back) = (dot(&x, a), scale * dot(dy, &b));
                (u[t * rank + r], v[t * rank + r]) = (term, back);
                for j in 0..c {
                    da[(g * rank + r) * c + j] += back * x[j];
                    at.dinp[t * c + j] += factors[j] * back * a[j];
                }
                for o in 0..oc {
                    at.out[t * width + first + o] += scale * term * b[o];
                    db[(g * oc + o) * rank + r] += scale * dy[o] * term;
                }
            }
        }
        [u, v, da, db]
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// One frozen layer.
pub fn layer(c: usize, oc: usize, rank: usize, tile: Tile) -> Layer {
    let part = Piece {
        bias: rank.is_multiple_of(2),
        ..piece(oc, rank)
    };
    Layer {
        act: rank.is_multiple_of(4).then_some(Gelu::Exact),
        resid: [Resid::None, Resid::Apart, Resid::InPlace][rank % 3],
        ..beside(c, vec![part], tile)
    }
}

pub fn beside(c: usize, parts: Vec<Piece>, tile: Tile) -> Layer {
    Layer {
        rows: Rows::Tokens,
        c,
        parts,
        act: None,
        resid: Resid::InPlace,
        tile,
    }
}

/// Query, key and value with the trimmings that `i` names.
pub fn qkv(i: usize, tile: Tile) -> Layer {
    let bare = Piece {
        bias: false,
        ..piece(168, 1)
    };
    let members_bias = Piece {
        own: [false, true],
        ..piece(24, 16)
    };
    let drops = |p: Piece, drop| Piece {
        drop: Some(drop),
        ..p
    };
    let (c, parts) = match i {
        0 => (40, vec![piece(24, 5), piece(24, 0), piece(24, 8)]),
        1 => (72, vec![piece(168, 0), bare]),
        2 => (40, vec![piece(8, 16).owned(), piece(21, 0).owned().split()]),
        3 => (72, vec![members_bias, piece(24, 0).owned(), members_bias]),
        4 => (
            72,
            vec![
                drops(piece(24, 8), 0.3),
                piece(72, 1),
                drops(piece(37, 5), 0.1),
            ],
        ),
        _ => (37, vec![drops(piece(64, 16).owned().split(), 0.5)]),
    };
    Layer {
        act: [Some(Gelu::Quick), None, Some(Gelu::Exact), None][i % 4],
        resid: [Resid::Apart, Resid::None, Resid::InPlace][i % 3],
        ..beside(c, parts, tile)
    }
}
