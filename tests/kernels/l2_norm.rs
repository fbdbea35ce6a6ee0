//! `kernels/l2_norm.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::l2_norm;
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "l2_norm";

#[derive(Clone, Copy, Debug)]
pub struct Unit {
    pub rows: Rows,
    pub e: usize,
    /// Of the input, else f32.
    pub half: bool,
    pub in_place: bool,
}

impl Unit {
    fn dinp(&self) -> &'static str {
        if self.in_place { "dout" } else { "dinp" }
    }
}

impl Case for Unit {
    fn fill(&self, d: &Device, w: &World) {
        let (rows, e) = (self.rows, self.e);
        d.rows("dout", rows, e, &w.rows("dout", rows, e, 1.0));
        let mut inp = w.rows("inp", rows, e, 2.0);
        if self.half {
            d.rows("inp", rows, e, &inp);
        } else {
            inp.resize(d.step().rows(rows) * e, f32::NAN);
            d.f32("inp", 0, e, &inp);
        }
        d.poison_unit("out", self.rows, self.e);
        d.poison_rows("dinp", self.rows, self.e);
        d.poison_f32("norm", d.step().rows(self.rows), 1);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let (rows, out, norm) = (self.rows, d.get("out"), d.get("norm"));
        let op = l2_norm::Forward {
            rows,
            out,
            norm,
            inp: d.get("inp"),
        };
        l2_norm::forward(d.context(), &op)?;
        let op = l2_norm::Backward {
            rows,
            dinp: d.get(self.dinp()),
            dout: d.get("dout"),
            out,
            norm,
        };
        l2_norm::backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut dinp = d.out_rows(OP, self.dinp(), self.rows, w);
        dinp.rename(OP, "dinp");
        let out = |name| d.out_rows(OP, name, self.rows, w);
        let unit = d.out_unit(OP, "out", self.rows, w);
        vec![unit, out("norm"), dinp]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let e = self.e;
        let inp = doubles(&w.rows("inp", self.rows, e, 2.0));
        let dout = doubles(&w.rows("dout", self.rows, e, 1.0));
        let (mut outs, mut norms, mut dinp) = (vec![], vec![], vec![]);
        for (x, d) in inp.chunks(e).zip(dout.chunks(e)) {
            let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let out: Vec<f64> = x.iter().map(|x| x / norm).collect();
            let along = out.iter().zip(d).map(|(y, d)| y * d).sum::<f64>();
            dinp.extend(d.iter().zip(&out).map(|(d, y)| (d - y * along) / norm));
            outs.extend(out);
            norms.push(norm);
        }
        vec![outs, norms, dinp]
    }
}

#[test]
fn l2_norm_agrees_with_the_loops() {
    for (rows, e, half, in_place) in [
        (Rows::Seqs, 37, true, false),
        (Rows::Items, 37, false, true),
        (Rows::Items, 40, false, true),
        (Rows::Seqs, 512, true, true),
        (Rows::Items, 1032, true, false),
    ] {
        let case = Unit {
            rows,
            e,
            half,
            in_place,
        };
        agrees(&case, SEVERAL);
    }
}

#[test]
fn l2_norm_is_the_same_again_alone_and_replayed() {
    let case = Unit {
        rows: Rows::Seqs,
        e: 37,
        half: true,
        in_place: true,
    };
    repeats(&case, SEVERAL);
    alone_as_in_company(&case, SEVERAL);
    replays(&case, &[ALONE, ONE, REAL]);
}
