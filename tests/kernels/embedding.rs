//! `kernels/embedding.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::embedding::{Backward, Forward, Tables, backward, forward};
use crosstune::ops::philox::{Dropout, RowKey};
use crosstune::text::pack::Rows;

use crate::layer_norm::Params::{self, *};
use crate::rig::*;

const EPS: f32 = 1e-5;
const OP: &str = "embedding";
const SITE: u32 = 0;
/// Rows of the tables of words, positions and types.
const TABLES: [(&str, usize); 3] = [("word", WORDS), ("position", 64), ("token_type", 2)];

/// The gradients and the rows of each.
const GRADS: [(&str, usize); 5] = [
    ("dword", WORDS),
    ("dposition", 64),
    ("dtoken_type", 2),
    ("dweight", 1),
    ("dbias", 1),
];

#[derive(Clone, Copy, Debug)]
pub struct Embed {
    pub c: usize,
    pub params: Params,
    pub drop: Option<f32>,
    /// Whether `dz` takes the place of `dout`.
    pub in_place: bool,
}

impl Embed {
    fn dropout(&self) -> Option<Dropout> {
        self.drop.map(|p| Dropout { p, site: SITE })
    }

    fn factor(&self, w: &World, t: usize, col: usize) -> f64 {
        let b = &w.batch;
        let seq = b.token_seq[t] as usize;
        let step = &w.steps[b.seq_member[seq] as usize];
        let (role, item) = (b.roles[seq], b.seq_items[seq]);
        let key = RowKey::new(step.seed, step.step, SITE, role, item, b.places[t]);
        self.dropout().map_or(1.0, |d| d.factor(&key, col).into())
    }

    fn dz(&self) -> &'static str {
        if self.in_place { "dout" } else { "dz" }
    }

    fn trainable(&self) -> bool {
        self.params == PerMember
    }
}

impl Case for Embed {
    fn fill(&self, d: &Device, w: &World) {
        let (c, members) = (self.c, w.seeds.len());
        for (name, rows) in TABLES {
            d.weight(name, 0, c, &w.param(name, false, rows * c, (0.0, 1.0)));
        }
        d.rows(
            "dout",
            Rows::Tokens,
            c,
            &w.rows("dout", Rows::Tokens, c, 1.0),
        );
        for name in ["out", "z", "dz"] {
            d.poison_rows(name, Rows::Tokens, c);
        }
        d.poison_f32("stats", d.step().rows(Rows::Tokens), 2);
        d.poison_f32("partials", d.step().max_chunks(), 2 * c);
        for (name, mean) in [("weight", 1.0), ("bias", 0.0)] {
            let data = w.param(name, self.trainable(), c, (mean, 0.3));
            match self.params {
                FrozenF16 => d.weight(name, 0, c, &data),
                FrozenF32 => d.f32(name, 0, c, &data),
                PerMember => d.f32(name, members, c, &data),
            };
        }
        for (name, rows) in GRADS {
            d.f32(name, members, c, &w.param(name, true, rows * c, (0.0, 1.0)));
        }
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let tables = Tables {
            word: d.get("word"),
            position: d.get("position"),
            token_type: d.get("token_type"),
        };
        let (weight, eps, dropout) = (d.get("weight"), EPS, self.dropout());
        let op = Forward {
            out: d.get("out"),
            tables,
            weight,
            bias: d.get("bias"),
            eps,
            dropout,
        };
        forward(d.context(), &op)?;
        let wanted = |name| self.trainable().then(|| d.get(name));
        let op = Backward {
            dz: d.get(self.dz()),
            dtables: ["dword", "dposition", "dtoken_type"].map(wanted),
            dweight: wanted("dweight"),
            dbias: wanted("dbias"),
            partials: wanted("partials"),
            z: d.get("z"),
            stats: d.get("stats"),
            dout: d.get("dout"),
            tables,
            weight,
            eps,
            dropout,
        };
        backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut dz = d.out_rows(OP, self.dz(), Rows::Tokens, w);
        dz.rename(OP, "dz");
        let mut outs = vec![d.out_rows(OP, "out", Rows::Tokens, w), dz];
        outs.extend(GRADS.map(|(name, _)| d.out_members(OP, name)));
        outs
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let c = self.c;
        let tables = TABLES.map(|(name, n)| doubles(&w.param(name, false, n * c, (0.0, 1.0))));
        let dout = doubles(&w.rows("dout", Rows::Tokens, c, 1.0));
        let weight = doubles(&w.param("weight", self.trainable(), c, (1.0, 0.3)));
        let bias = doubles(&w.param("bias", self.trainable(), c, (0.0, 0.3)));
        let mut grads =
            GRADS.map(|(name, rows)| doubles(&w.param(name, true, rows * c, (0.0, 1.0))));
        let (mut out, mut dzs) = (vec![], vec![]);
        let (b, n) = (&w.batch, c as f64);
        for t in 0..w.count(Rows::Tokens) {
            let g = b.member_of(Rows::Tokens, t);
            let own = if self.trainable() { g * c } else { 0 };
            let rows = [b.ids[t], b.positions[t], b.types[t]];
            let z: Vec<f64> = (0..c)
                .map(|j| (0..3).map(|i| tables[i][rows[i] as usize * c + j]).sum())
                .collect();
            let mean = z.iter().sum::<f64>() / n;
            let var = z.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let rstd = 1.0 / (var + f64::from(EPS)).sqrt();
            let xhat: Vec<f64> = z.iter().map(|x| (x - mean) * rstd).collect();
            let keep: Vec<f64> = (0..c).map(|j| self.factor(w, t, j)).collect();
            let dy: Vec<f64> = (0..c).map(|j| dout[t * c + j] * keep[j]).collect();
            let d: Vec<f64> = (0..c).map(|j| dy[j] * weight[own + j]).collect();
            let s1 = d.iter().sum::<f64>() / n;
            let s2 = d.iter().zip(&xhat).map(|(d, x)| d * x).sum::<f64>() / n;
            for j in 0..c {
                out.push((xhat[j] * weight[own + j] + bias[own + j]) * keep[j]);
                let dz = rstd * (d[j] - s1 - xhat[j] * s2);
                dzs.push(dz);
                for (i, row) in rows.iter().enumerate().filter(|_| self.trainable()) {
                    grads[i][(g * GRADS[i].1 + *row as usize) * c + j] += dz;
                }
                if self.trainable() {
                    grads[3][g * c + j] += dy[j] * xhat[j];
                    grads[4][g * c + j] += dy[j];
                }
            }
        }
        let mut want = vec![out, dzs];
        want.extend(grads);
        want
    }
}

fn cases(c: usize) -> [Embed; 3] {
    let case = |params, drop, in_place| Embed {
        c,
        params,
        drop,
        in_place,
    };
    [
        case(FrozenF16, None, false),
        case(FrozenF32, Some(0.5), true),
        case(PerMember, Some(0.1), false),
    ]
}

#[test]
fn embedding_agrees_with_the_loops() {
    for (c, members) in [(2, ONE), (37, SEVERAL), (768, ALONE), (1024, ONE)] {
        cases(c).iter().for_each(|case| agrees(case, members));
    }
}

#[test]
fn embedding_is_the_same_again_alone_and_replayed() {
    for case in cases(37) {
        repeats(&case, SEVERAL);
        alone_as_in_company(&case, SEVERAL);
        replays(&case, &[ALONE, &[Member(1, false, 3, 8)], REAL]);
    }
}
