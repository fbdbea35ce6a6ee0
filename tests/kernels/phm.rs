//! `kernels/phm.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::DeviceTensor;
use crosstune::cuda::ops::phm::{Backward, Forward, Weights, backward, forward};
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "phm";
const WEIGHTS: [&str; 4] = ["rule", "left", "right", "bias"];
const GRADS: [&str; 4] = ["drule", "dleft", "dright", "dbias"];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dinp {
    Unwanted,
    /// Nothing else reads the input.
    Alone,
    /// Added to what other readers left.
    Added,
    /// In its place.
    InPlace,
}

#[derive(Clone, Copy, Debug)]
pub struct Layer {
    pub n: usize,
    pub k: usize,
    pub oc: usize,
    pub dinp: Dinp,
    /// Which of the parameters' gradients are wanted.
    pub wanted: [bool; 4],
}

impl Layer {
    /// Columns and numbers of a member's copy of each parameter.
    fn shapes(&self) -> [(usize, usize); 4] {
        let (n, k, oc) = (self.n, self.k, self.oc);
        [(n, n * n * n), (k / n, k), (oc / n, oc), (oc, oc)]
    }

    fn dinp(&self) -> &'static str {
        match self.dinp {
            Dinp::InPlace => "resid",
            _ => "dinp",
        }
    }

    fn weights(d: &Device) -> Weights {
        let [rule, left, right, bias] = WEIGHTS.map(|name| d.get(name));
        Weights {
            rule,
            left,
            right,
            bias,
        }
    }

    fn forward(d: &Device) -> Forward {
        Forward {
            inp: d.get("inp"),
            weights: Layer::weights(d),
            u: d.get("u"),
            s: d.get("s"),
            out: d.get("out"),
        }
    }

    fn backward(&self, d: &Device) -> Backward {
        let f = Layer::forward(d);
        let mut dweights = GRADS.map(|name| Some(d.get(name)));
        for (grad, wanted) in dweights.iter_mut().zip(self.wanted) {
            *grad = grad.filter(|_| wanted);
        }
        let resid = matches!(self.dinp, Dinp::Added | Dinp::InPlace);
        Backward {
            inp: f.inp,
            weights: f.weights,
            u: f.u,
            s: f.s,
            dout: d.get("dout"),
            resid: resid.then(|| d.get("resid")),
            ds: d.get("ds"),
            du: d.get("du"),
            dinp: (self.dinp != Dinp::Unwanted).then(|| d.get(self.dinp())),
            dweights,
        }
    }
}

/// A member's parameters, or their gradients.
struct Own<'a> {
    n: usize,
    rule: &'a [f64],
    left: &'a [f64],
    right: &'a [f64],
    bias: &'a [f64],
}

impl Own<'_> {
    fn rule(&self, i: usize, a: usize, b: usize) -> f64 {
        self.rule[(i * self.n + a) * self.n + b]
    }
}

/// `[a, i]`: the product of block a of a row and vector i.
fn dots(row: &[f64], vecs: &[f64], n: usize) -> Vec<f64> {
    let width = vecs.len() / n;
    let dot = |a: usize, i: usize| {
        let terms = (0..width).map(|p| row[a * width + p] * vecs[i * width + p]);
        terms.sum::<f64>()
    };
    (0..n * n).map(|at| dot(at / n, at % n)).collect()
}

/// Block b of the row: the sum over i of `factors[b, i] vecs[i]`.
fn spread(factors: &[f64], vecs: &[f64], n: usize) -> Vec<f64> {
    let width = vecs.len() / n;
    let number = |b: usize, q: usize| {
        let terms = (0..n).map(|i| factors[b * n + i] * vecs[i * width + q]);
        terms.sum::<f64>()
    };
    (0..n * width)
        .map(|at| number(at / width, at % width))
        .collect()
}

impl Case for Layer {
    fn fill(&self, d: &Device, w: &World) {
        let members = w.seeds.len();
        for (name, c) in [("inp", self.k), ("dout", self.oc), ("resid", self.k)] {
            d.rows(name, Rows::Tokens, c, &w.rows(name, Rows::Tokens, c, 1.0));
        }
        for ((name, grad), (cols, len)) in WEIGHTS.iter().zip(GRADS).zip(self.shapes()) {
            d.f32(name, members, cols, &w.param(name, true, len, (0.0, 0.5)));
            d.f32(grad, members, cols, &w.param(grad, true, len, (0.0, 1.0)));
        }
        for name in ["u", "s", "ds", "du"] {
            d.poison_f32(name, d.step().rows(Rows::Tokens), self.n * self.n);
        }
        d.poison_rows("out", Rows::Tokens, self.oc);
        d.poison_rows("dinp", Rows::Tokens, self.k);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        forward(d.context(), &Layer::forward(d))?;
        backward(d.context(), &self.backward(d))
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let names = ["out", "u", "s", "ds", "du"];
        let mut outs: Vec<Out> = names
            .iter()
            .map(|name| d.out_rows(OP, name, Rows::Tokens, w))
            .collect();
        if self.dinp != Dinp::Unwanted {
            let mut dinp = d.out_rows(OP, self.dinp(), Rows::Tokens, w);
            dinp.rename(OP, "dinp");
            outs.push(dinp);
        }
        outs.extend(GRADS.map(|name| d.out_members(OP, name)));
        outs
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let (n, k, oc) = (self.n, self.k, self.oc);
        let rows = |name, c| doubles(&w.rows(name, Rows::Tokens, c, 1.0));
        let (inp, dout, resid) = (rows("inp", k), rows("dout", oc), rows("resid", k));
        let shapes = self.shapes();
        let all = |names: [&str; 4], std: f32| {
            let mut shapes = shapes.iter();
            names.map(|name| {
                let len = shapes.next().map_or(0, |shape| shape.1);
                doubles(&w.param(name, true, len, (0.0, std)))
            })
        };
        let (params, mut grads) = (all(WEIGHTS, 0.5), all(GRADS, 1.0));
        let (mut out, mut us, mut ss) = (vec![], vec![], vec![]);
        let (mut dss, mut dus, mut dinp) = (vec![], vec![], vec![]);
        for t in 0..w.count(Rows::Tokens) {
            let g = w.batch.member_of(Rows::Tokens, t);
            let part = |i: usize| &params[i][g * shapes[i].1..][..shapes[i].1];
            let own = Own {
                n,
                rule: part(0),
                left: part(1),
                right: part(2),
                bias: part(3),
            };
            let (x, dy) = (&inp[t * k..][..k], &dout[t * oc..][..oc]);
            let (u, ds) = (dots(x, own.left, n), dots(dy, own.right, n));
            let (mut s, mut du) = (vec![0.0; n * n], vec![0.0; n * n]);
            for (i, a, b) in (0..n * n * n).map(|at| (at / n / n, at / n % n, at % n)) {
                s[b * n + i] += own.rule(i, a, b) * u[a * n + i];
                du[a * n + i] += own.rule(i, a, b) * ds[b * n + i];
                if self.wanted[0] {
                    let at = ((g * n + i) * n + a) * n + b;
                    grads[0][at] += u[a * n + i] * ds[b * n + i];
                }
            }
            out.extend(
                spread(&s, own.right, n)
                    .iter()
                    .zip(own.bias)
                    .map(|(y, b)| y + b),
            );
            let added = f64::from(u8::from(matches!(self.dinp, Dinp::Added | Dinp::InPlace)));
            let own_dinp = spread(&du, own.left, n);
            dinp.extend(
                own_dinp
                    .iter()
                    .zip(&resid[t * k..])
                    .map(|(d, r)| d + added * r),
            );
            for (j, (factors, row)) in [(1, (&du, x)), (2, (&s, dy))] {
                let width = row.len() / n;
                for (at, i) in (0..row.len()).flat_map(|at| (0..n).map(move |i| (at, i))) {
                    if self.wanted[j] {
                        let to = g * row.len() + i * width + at % width;
                        grads[j][to] += factors[at / width * n + i] * row[at];
                    }
                }
            }
            for (o, d) in dy.iter().enumerate().filter(|_| self.wanted[3]) {
                grads[3][g * oc + o] += d;
            }
            us.extend(u);
            ss.extend(s);
            dss.extend(ds);
            dus.extend(du);
        }
        let mut want = vec![out, us, ss, dss, dus];
        if self.dinp != Dinp::Unwanted {
            want.push(dinp);
        }
        want.extend(grads);
        want
    }
}

pub fn layer(n: usize, k: usize, oc: usize, dinp: Dinp) -> Layer {
    let wanted = [true; 4];
    Layer {
        n,
        k,
        oc,
        dinp,
        wanted,
    }
}

#[test]
fn phm_agrees_with_the_loops() {
    use Dinp::*;
    for (case, members) in [
        (layer(1, 1, 1, Alone), ONE),
        (layer(2, 6, 10, Added), ONE),
        (layer(4, 64, 24, Added), SEVERAL),
        (layer(4, 24, 64, InPlace), SEVERAL),
        (layer(5, 35, 105, InPlace), SEVERAL),
        (layer(16, 48, 32, Alone), ALONE),
        (layer(4, 768, 48, Added), ALONE),
        (layer(4, 48, 768, Alone), ALONE),
        (layer(8, 1024, 1024, Unwanted), ONE),
    ] {
        agrees(&case, members);
    }
}

/// What is not asked for stays as it is.
#[test]
fn phm_gives_each_gradient_alone() {
    for i in 0..5 {
        let wanted = std::array::from_fn(|j| i == j);
        let case = Layer {
            wanted,
            ..layer(3, 9, 21, Dinp::Unwanted)
        };
        agrees(&case, SEVERAL);
    }
}

#[test]
fn phm_is_the_same_again_alone_and_replayed() {
    for case in [
        layer(4, 24, 12, Dinp::InPlace),
        layer(3, 9, 21, Dinp::Added),
    ] {
        repeats(&case, SEVERAL);
        alone_as_in_company(&case, SEVERAL);
        keeps_apart(&case, SEVERAL, &["inp", "dout", "resid", "left"]);
        replays(&case, &[ALONE, ONE, REAL]);
    }
}

/// Before anything is launched.
#[test]
fn phm_refuses_what_does_not_fit() {
    let case = layer(4, 24, 12, Dinp::Added);
    let world = World::new(ALONE);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let (op, weights) = (Layer::forward(&d), Layer::weights(&d));
    let frozen = |t| DeviceTensor { members: 0, ..t };
    let cols = |t, cols| DeviceTensor { cols, ..t };
    let with = |weights| Forward { weights, ..op };
    let rule = cols(weights.rule, 17);
    let left = frozen(weights.left);
    for (op, expected) in [
        (
            with(Weights { rule, ..weights }),
            "rule has n = 17, expected 1 to 16",
        ),
        (with(Weights { left, ..weights }), "left is F32 members"),
        (
            Forward {
                inp: cols(op.inp, 22),
                ..op
            },
            "inp has 22 columns 24 apart, expected a multiple of n = 4",
        ),
        (Forward { u: op.inp, ..op }, "u is F16 members"),
    ] {
        let error = forward(d.context(), &op).expect_err("refused").to_string();
        assert!(
            error.contains("phm_forward") && error.contains(expected),
            "{error}"
        );
    }
    let mut op = case.backward(&d);
    op.dweights[3] = Some(d.get("dleft"));
    let error = backward(d.context(), &op).expect_err("refused").to_string();
    assert!(error.contains("gradient of bias is F32"), "{error}");
    assert!(d.read("ds").1.iter().all(|x| x.is_nan()), "ds was written");
}
