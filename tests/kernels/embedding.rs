//! `kernels/embedding.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::DeviceTensor;
use crosstune::cuda::ops::embedding::{Backward, Forward, Tables, backward, check_ids, forward};
use crosstune::ops::philox::{Dropout, RowKey};
use crosstune::text::pack::Rows;

use crate::layer_norm::Params::{self, *};
use crate::rig::*;

const EPS: f32 = 1e-5;
const OP: &str = "embedding";
const SITE: u32 = 0;
/// Rows of the tables of words, positions and types.
const TABLES: [(&str, usize); 3] = [("word", WORDS), ("position", 64), ("token_type", 2)];

/// The gradients of all but a prompt, and the rows of each.
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
    /// As CLIP's text tower has it: without token types, and the sum is read on.
    pub clip: bool,
    /// Vectors of a soft prompt; where there are some, they are trained.
    pub prompt: usize,
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

    /// The gradients and the rows of each.
    fn grads(&self) -> Vec<(&'static str, usize)> {
        let prompt = (self.prompt > 0).then_some(("dprompt", self.prompt));
        GRADS.into_iter().chain(prompt).collect()
    }

    /// Tables that a token takes a row of.
    fn taken(&self) -> usize {
        if self.clip { 2 } else { 3 }
    }

    fn tables(&self, d: &Device) -> Tables {
        Tables {
            word: d.get("word"),
            position: d.get("position"),
            token_type: (!self.clip).then(|| d.get("token_type")),
        }
    }

    fn forward(&self, d: &Device) -> Forward {
        Forward {
            out: d.get("out"),
            sum: self.clip.then(|| d.get("sum")),
            tables: self.tables(d),
            prompt: (self.prompt > 0).then(|| d.get("prompt")),
            weight: d.get("weight"),
            bias: d.get("bias"),
            eps: EPS,
            dropout: self.dropout(),
        }
    }

    fn backward(&self, d: &Device) -> Backward {
        let wanted = |name| self.trainable().then(|| d.get(name));
        let op = self.forward(d);
        Backward {
            dz: d.get(self.dz()),
            dtables: [
                wanted("dword"),
                wanted("dposition"),
                wanted("dtoken_type").filter(|_| !self.clip),
            ],
            dprompt: op.prompt.map(|_| d.get("dprompt")),
            dweight: wanted("dweight"),
            dbias: wanted("dbias"),
            partials: wanted("partials"),
            z: d.get("z"),
            stats: d.get("stats"),
            dout: d.get("dout"),
            dsum: self.clip.then(|| d.get("dsum")),
            tables: op.tables,
            prompt: op.prompt,
            weight: op.weight,
            eps: EPS,
            dropout: op.dropout,
        }
    }
}

impl Case for Embed {
    fn prompt(&self) -> usize {
        self.prompt
    }

    fn fill(&self, d: &Device, w: &World) {
        let (c, members) = (self.c, w.seeds.len());
        for (name, rows) in TABLES {
            d.weight(name, 0, c, &w.param(name, false, rows * c, (0.0, 1.0)));
        }
        for name in ["dout", "dsum"] {
            d.rows(name, Rows::Tokens, c, &w.rows(name, Rows::Tokens, c, 1.0));
        }
        for name in ["out", "sum", "z", "dz"] {
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
        if self.prompt > 0 {
            let data = w.param("prompt", true, self.prompt * c, (0.0, 1.0));
            d.f32("prompt", members, c, &data);
        }
        for (name, rows) in self.grads() {
            d.f32(name, members, c, &w.param(name, true, rows * c, (0.0, 1.0)));
        }
    }

    fn launch(&self, d: &Device) -> Result<()> {
        forward(d.context(), &self.forward(d))?;
        backward(d.context(), &self.backward(d))
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut dz = d.out_rows(OP, self.dz(), Rows::Tokens, w);
        dz.rename(OP, "dz");
        let mut outs = vec![d.out_rows(OP, "out", Rows::Tokens, w), dz];
        if self.clip {
            outs.push(d.out_rows(OP, "sum", Rows::Tokens, w));
        }
        let grads = self.grads().into_iter();
        outs.extend(grads.map(|(name, _)| d.out_members(OP, name)));
        outs
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let c = self.c;
        let tables = TABLES.map(|(name, n)| doubles(&w.param(name, false, n * c, (0.0, 1.0))));
        let dout = doubles(&w.rows("dout", Rows::Tokens, c, 1.0));
        let dsum = doubles(&w.rows("dsum", Rows::Tokens, c, 1.0));
        let weight = doubles(&w.param("weight", self.trainable(), c, (1.0, 0.3)));
        let bias = doubles(&w.param("bias", self.trainable(), c, (0.0, 0.3)));
        let prompt = doubles(&w.param("prompt", true, self.prompt * c, (0.0, 1.0)));
        let names = self.grads();
        let before =
            |(name, rows): &(&str, usize)| doubles(&w.param(name, true, rows * c, (0.0, 1.0)));
        let mut grads: Vec<Vec<f64>> = names.iter().map(before).collect();
        let (mut out, mut dzs, mut sums) = (vec![], vec![], vec![]);
        let (b, n) = (&w.batch, c as f64);
        for t in 0..w.count(Rows::Tokens) {
            let g = b.member_of(Rows::Tokens, t);
            let own = if self.trainable() { g * c } else { 0 };
            let rows = [b.ids[t], b.positions[t], b.types[t]];
            let slot = b.slot(t).map(|slot| g * self.prompt + slot);
            let taken = |i: usize, j: usize| match (i, slot) {
                (0, Some(at)) => prompt[at * c + j],
                _ => tables[i][rows[i] as usize * c + j],
            };
            let sum = |j: usize| (0..self.taken()).map(|i| taken(i, j)).sum();
            let z: Vec<f64> = (0..c).map(sum).collect();
            let mean = z.iter().sum::<f64>() / n;
            let var = z.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let rstd = 1.0 / (var + f64::from(EPS)).sqrt();
            let xhat: Vec<f64> = z.iter().map(|x| (x - mean) * rstd).collect();
            let keep: Vec<f64> = (0..c).map(|j| self.factor(w, t, j)).collect();
            let dy: Vec<f64> = (0..c).map(|j| dout[t * c + j] * keep[j]).collect();
            let d: Vec<f64> = (0..c).map(|j| dy[j] * weight[own + j]).collect();
            let s1 = d.iter().sum::<f64>() / n;
            let s2 = d.iter().zip(&xhat).map(|(d, x)| d * x).sum::<f64>() / n;
            sums.extend(&z);
            for j in 0..c {
                out.push((xhat[j] * weight[own + j] + bias[own + j]) * keep[j]);
                let besides = if self.clip { dsum[t * c + j] } else { 0.0 };
                let dz = rstd * (d[j] - s1 - xhat[j] * s2) + besides;
                dzs.push(dz);
                let no_word = usize::from(slot.is_some());
                for i in (no_word..self.taken()).filter(|_| self.trainable()) {
                    grads[i][(g * GRADS[i].1 + rows[i] as usize) * c + j] += dz;
                }
                if let Some(at) = slot {
                    grads[5][at * c + j] += dz;
                }
                if self.trainable() {
                    grads[3][g * c + j] += dy[j] * xhat[j];
                    grads[4][g * c + j] += dy[j];
                }
            }
        }
        let mut want = vec![out, dzs];
        want.extend(self.clip.then_some(sums));
        want.extend(grads);
        want
    }
}

fn cases(c: usize, prompt: usize) -> [Embed; 5] {
    let case = |params, drop, in_place| Embed {
        c,
        params,
        drop,
        in_place,
        clip: false,
        prompt,
    };
    let clip = |params, in_place| Embed {
        clip: true,
        ..case(params, None, in_place)
    };
    [
        case(FrozenF16, None, false),
        case(FrozenF32, Some(0.5), true),
        case(PerMember, Some(0.1), false),
        clip(FrozenF16, true),
        clip(PerMember, false),
    ]
}

#[test]
fn embedding_agrees_with_the_loops() {
    for (c, prompt, members) in [
        (2, 0, ONE),
        (37, 0, SEVERAL),
        (768, 0, ALONE),
        (1024, 0, ONE),
        (2, 1, ONE),
        (37, 3, SEVERAL),
        (40, 35, ALONE),
    ] {
        let cases = cases(c, prompt);
        cases.iter().for_each(|case| agrees(case, members));
    }
}

#[test]
fn embedding_is_the_same_again_alone_and_replayed() {
    for case in [cases(37, 0), cases(37, 2)].concat() {
        repeats(&case, SEVERAL);
        alone_as_in_company(&case, SEVERAL);
        replays(&case, &[ALONE, &[Member(1, false, 3, 8)], REAL]);
    }
    // Where a row is NaN, so is its padding.
    for case in cases(40, 2) {
        keeps_apart(&case, SEVERAL, &["prompt", "dout"]);
    }
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.expect_err("refused").to_string()
}

/// Before anything is launched.
#[test]
fn embedding_refuses_a_prompt_of_another_length() {
    let case = cases(8, 2)[2];
    let world = World::with_prompt(ALONE, 2);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let (prompt, grad) = (d.get("prompt"), d.get("dprompt"));
    let short = |t| Some(DeviceTensor { rows: 1, ..t });
    for (prompt, expected) in [
        (None, "prompt has 0 vectors, expected the step's 2 slots"),
        (short(prompt), "prompt has 1 vectors"),
    ] {
        let op = case.forward(&d);
        let error = message(forward(d.context(), &Forward { prompt, ..op }));
        assert!(error.contains(expected), "{error}");
    }
    let op = case.backward(&d);
    let before = d.read("dword").1;
    let ops = [
        Backward {
            dprompt: short(grad),
            ..op
        },
        Backward {
            partials: None,
            ..op
        },
    ];
    for (op, expected) in ops
        .iter()
        .zip(["gradient of prompt has 1", "partials are None"])
    {
        let error = message(backward(d.context(), op));
        assert!(error.contains(expected), "{error}");
    }
    assert!(d.read("dz").1.iter().all(|x| x.is_nan()), "dz was written");
    assert_eq!(d.read("dword").1, before);
    let other = World::with_prompt(ALONE, 1);
    let error = message(
        d.step()
            .upload(d.context().driver, &other.batch, &other.steps),
    );
    assert!(
        error.contains("1 slots of a soft prompt, expected 2"),
        "{error}"
    );
}

#[test]
fn embedding_refuses_ids_past_a_table() {
    let case = cases(8, 0)[0];
    let world = World::new(ALONE);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let tables = case.tables(&d);
    check_ids(&tables, &world.batch).expect("ids of the tables");
    let mut batch = world.batch;
    batch.types[5] = 2;
    let error = message(check_ids(&tables, &batch));
    let expected = "token 5 takes row 2 of token_type, expected one of its 2 rows";
    assert!(error.contains(expected), "{error}");
    batch.ids[1] = WORDS as u32;
    let error = message(check_ids(&tables, &batch));
    assert!(error.contains("token 1 takes row 23 of word"), "{error}");
}
