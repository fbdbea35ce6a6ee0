//! `kernels/layer_norm.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::layer_norm::{
    Backward, Forward, MAX_C, MAX_FORWARD_C, backward, forward,
};
use crosstune::ops::philox::{Dropout, RowKey};
use crosstune::text::pack::Rows;

use crate::rig::*;

const EPS: f32 = 1e-5;
const OP: &str = "layer_norm";

/// How weight and bias lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Params {
    FrozenF16,
    FrozenF32,
    PerMember,
}
pub use Params::*;

#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub c: usize,
    pub params: Params,
    pub drop: Option<f32>,
    pub rows: Rows,
    /// Whether something went around `inp`.
    pub resid: bool,
    /// Whether `z` takes the place of `inp`, and `dz` that of `dout`.
    pub in_place: bool,
}

impl Norm {
    fn dropout(&self) -> Option<Dropout> {
        self.drop.map(|p| Dropout { p, site: 5 })
    }

    fn factor(&self, w: &World, t: usize, col: usize) -> f64 {
        let b = &w.batch;
        let seq = b.token_seq[t] as usize;
        let step = &w.steps[b.seq_member[seq] as usize];
        let (role, item) = (b.roles[seq], b.seq_items[seq]);
        let key = RowKey::new(step.seed, step.step, 5, role, item, b.places[t]);
        self.dropout().map_or(1.0, |d| d.factor(&key, col).into())
    }

    /// Wider rows are a frozen vision tower's.
    fn has_gradient(&self) -> bool {
        self.c <= MAX_C
    }

    fn z_name(&self) -> &'static str {
        match self.in_place || !self.resid {
            true => "inp",
            false => "z",
        }
    }

    fn dz_name(&self) -> &'static str {
        if self.in_place { "dout" } else { "dz" }
    }
}

impl Case for Norm {
    fn fill(&self, d: &Device, w: &World) {
        let c = self.c;
        for name in ["inp", "resid", "dout"] {
            d.rows(name, self.rows, c, &w.rows(name, self.rows, c, 1.0));
        }
        for name in ["out", "z", "dz", "dinp"] {
            d.poison_rows(name, self.rows, c);
        }
        d.poison_f32("stats", d.step().rows(self.rows), 2);
        d.poison_f32("partials", d.step().max_chunks(), 2 * c);
        let members = w.seeds.len();
        for (name, mean) in [("weight", 1.0), ("bias", 0.0)] {
            let data = w.param(name, self.params == PerMember, c, (mean, 0.3));
            match self.params {
                FrozenF16 => d.weight(name, 0, c, &data),
                FrozenF32 => d.f32(name, 0, c, &data),
                PerMember => d.f32(name, members, c, &data),
            };
        }
        for name in ["dweight", "dbias"] {
            d.f32(name, members, c, &w.param(name, true, c, (0.0, 1.0)));
        }
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let z = d.get(self.z_name());
        let (stats, weight) = (d.get("stats"), d.get("weight"));
        let op = Forward {
            rows: self.rows,
            out: d.get("out"),
            z,
            stats,
            inp: d.get("inp"),
            resid: self.resid.then(|| d.get("resid")),
            weight,
            bias: d.get("bias"),
            eps: EPS,
            dropout: self.dropout(),
        };
        forward(d.context(), &op)?;
        if !self.has_gradient() {
            return Ok(());
        }
        let trainable = self.params == PerMember;
        let op = Backward {
            rows: self.rows,
            dz: d.get(self.dz_name()),
            dinp: self.drop.map(|_| d.get("dinp")),
            dweight: trainable.then(|| d.get("dweight")),
            dbias: trainable.then(|| d.get("dbias")),
            partials: trainable.then(|| d.get("partials")),
            dout: d.get("dout"),
            z,
            stats,
            weight,
            dropout: self.dropout(),
        };
        backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let rename = |mut out: Out, name: &str| {
            out.rename(OP, name);
            out
        };
        let mut outs = vec![
            rename(d.out_rows(OP, self.z_name(), self.rows, w), "z"),
            d.out_rows(OP, "stats", self.rows, w),
            d.out_rows(OP, "out", self.rows, w),
        ];
        if !self.has_gradient() {
            return outs;
        }
        outs.push(rename(d.out_rows(OP, self.dz_name(), self.rows, w), "dz"));
        if self.drop.is_some() {
            outs.push(d.out_rows(OP, "dinp", self.rows, w));
        }
        outs.push(d.out_members(OP, "dweight"));
        outs.push(d.out_members(OP, "dbias"));
        outs
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let c = self.c;
        let data = |name| doubles(&w.rows(name, self.rows, c, 1.0));
        let (inp, resid, dout) = (data("inp"), data("resid"), data("dout"));
        let per_member = self.params == PerMember;
        let weight = doubles(&w.param("weight", per_member, c, (1.0, 0.3)));
        let bias = doubles(&w.param("bias", per_member, c, (0.0, 0.3)));
        let mut dweight = doubles(&w.param("dweight", true, c, (0.0, 1.0)));
        let mut dbias = doubles(&w.param("dbias", true, c, (0.0, 1.0)));
        let (mut zs, mut stats, mut outs) = (vec![], vec![], vec![]);
        let (mut dzs, mut dinps) = (vec![], vec![]);
        let around = if self.resid { 1.0 } else { 0.0 };
        for t in 0..w.count(self.rows) {
            let g = w.batch.member_of(self.rows, t);
            let own = if per_member { g * c } else { 0 };
            let keep: Vec<f64> = (0..c).map(|j| self.factor(w, t, j)).collect();
            let z: Vec<f64> = (0..c)
                .map(|j| around * resid[t * c + j] + keep[j] * inp[t * c + j])
                .collect();
            let n = c as f64;
            let mean = z.iter().sum::<f64>() / n;
            let var = z.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let rstd = 1.0 / (var + f64::from(EPS)).sqrt();
            let xhat: Vec<f64> = z.iter().map(|x| (x - mean) * rstd).collect();
            let dy = &dout[t * c..][..c];
            let d: Vec<f64> = (0..c).map(|j| dy[j] * weight[own + j]).collect();
            let s1 = d.iter().sum::<f64>() / n;
            let s2 = d.iter().zip(&xhat).map(|(d, x)| d * x).sum::<f64>() / n;
            for j in 0..c {
                outs.push(xhat[j] * weight[own + j] + bias[own + j]);
                let dz = rstd * (d[j] - s1 - xhat[j] * s2);
                dzs.push(dz);
                dinps.push(dz * keep[j]);
                if per_member {
                    dweight[g * c + j] += dy[j] * xhat[j];
                    dbias[g * c + j] += dy[j];
                }
            }
            stats.extend([mean, rstd]);
            zs.extend(z);
        }
        if !self.has_gradient() {
            return vec![zs, stats, outs];
        }
        let mut want = vec![zs, stats, outs, dzs];
        if self.drop.is_some() {
            want.push(dinps);
        }
        want.extend([dweight, dbias]);
        want
    }
}

fn cases(c: usize) -> Vec<Norm> {
    let case = |params, drop, in_place| Norm {
        c,
        params,
        drop,
        rows: Rows::Tokens,
        resid: true,
        in_place,
    };
    let alone = |params, rows| Norm {
        rows,
        resid: false,
        ..case(params, None, false)
    };
    vec![
        case(FrozenF16, None, false),
        case(FrozenF32, Some(0.5), true),
        case(PerMember, Some(0.1), false),
        case(PerMember, None, true),
        alone(FrozenF16, Rows::Tokens),
        alone(PerMember, Rows::Tokens),
        alone(PerMember, Rows::Seqs),
    ]
}

#[test]
fn layer_norm_agrees_with_the_loops() {
    for (c, members) in [
        (1, ONE),
        (2, ONE),
        (8, SEVERAL),
        (37, ALONE),
        (37, SEVERAL),
        (768, REAL),
        (1024, ALONE),
        (1280, ALONE),
        (1536, ONE),
    ] {
        cases(c).iter().for_each(|case| agrees(case, members));
    }
}

#[test]
fn layer_norm_repeats_its_bits() {
    cases(37).iter().for_each(|case| repeats(case, SEVERAL));
}

#[test]
fn layer_norm_of_a_member_is_the_same_alone() {
    cases(40)
        .iter()
        .for_each(|case| alone_as_in_company(case, SEVERAL));
}

#[test]
fn layer_norm_replays_with_other_sizes() {
    let steps: [&[Member]; 3] = [ALONE, &[Member(1, false, 3, 8)], REAL];
    cases(37).iter().for_each(|case| replays(case, &steps));
}

/// With a residual of 0 and an input of 1, z is the mask.
#[test]
fn layer_norm_draws_the_mask_of_the_cpu() {
    let case = Norm {
        drop: Some(0.5),
        ..cases(37)[0]
    };
    let world = World::new(SEVERAL);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let n = world.count(Rows::Tokens) * 37;
    d.rows("inp", Rows::Tokens, 37, &vec![1.0; n]);
    d.rows("resid", Rows::Tokens, 37, &vec![0.0; n]);
    case.launch(&d).expect("launched");
    let z = d.out_rows(OP, "z", Rows::Tokens, &world);
    let want: Vec<f32> = (0..n)
        .map(|i| case.factor(&world, i / 37, i % 37) as f32)
        .collect();
    assert_eq!(z.values(), want);
}

#[test]
fn layer_norm_refuses_what_does_not_fit() {
    let case = cases(37)[0];
    let world = World::new(ONE);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    d.f32("narrow", 0, 36, &[0.0; 36]);
    let op = Forward {
        rows: Rows::Tokens,
        out: d.get("out"),
        z: d.get("z"),
        stats: d.get("stats"),
        inp: d.get("inp"),
        resid: Some(d.get("resid")),
        weight: d.get("narrow"),
        bias: d.get("bias"),
        eps: EPS,
        dropout: None,
    };
    let error = forward(d.context(), &op)
        .expect_err("a weight of 36")
        .to_string();
    assert!(error.contains("layer_norm_forward: weight is"), "{error}");
    let refused = |op: Forward, expected: &str| {
        let error = forward(d.context(), &op).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let op = Forward {
        weight: d.get("weight"),
        ..op
    };
    let z = d.get("stats");
    refused(Forward { z, ..op }, "layer_norm_forward: z is");
    let resid = None;
    refused(Forward { resid, ..op }, "without a residual z is not inp");
    let wide = d.poison_rows("wide", Rows::Tokens, MAX_FORWARD_C + 8);
    let op = Forward {
        out: wide,
        z: wide,
        inp: wide,
        resid: Some(wide),
        ..op
    };
    refused(op, "C is 1544, expected 1 to 1536");
}
