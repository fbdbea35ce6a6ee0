//! `kernels/linear_weight.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::DeviceTensor;
use crosstune::cuda::ops::linear_weight::{Backward, backward};
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "linear_weight";

/// A layer of which `dout` is columns 16 .. 16 + OC of something wider, as a part of a qkv is.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    pub rows: Rows,
    pub c: usize,
    pub oc: usize,
}

impl Weight {
    fn width(&self) -> usize {
        self.oc + 32
    }
}

impl Case for Weight {
    fn fill(&self, d: &Device, w: &World) {
        let (c, oc, members) = (self.c, self.oc, w.seeds.len());
        d.rows("inp", self.rows, c, &w.rows("inp", self.rows, c, 1.0));
        let dout = w.rows("dout", self.rows, self.width(), 1.0);
        d.rows("dout", self.rows, self.width(), &dout);
        let grads = [("dweight", c, oc * c), ("dbias", oc, oc)];
        for (name, cols, len) in grads {
            d.f32(name, members, cols, &w.param(name, true, len, (0.0, 1.0)));
        }
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let whole = d.get("dout");
        let dout = DeviceTensor {
            ptr: whole.ptr.offset(32),
            cols: self.oc,
            ..whole
        };
        let op = Backward {
            rows: self.rows,
            dweight: Some(d.get("dweight")),
            dbias: Some(d.get("dbias")),
            dout,
            inp: d.get("inp"),
        };
        backward(d.context(), &op)
    }

    fn read(&self, d: &Device, _: &World) -> Vec<Out> {
        vec![d.out_members(OP, "dweight"), d.out_members(OP, "dbias")]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let (c, oc, width) = (self.c, self.oc, self.width());
        let inp = doubles(&w.rows("inp", self.rows, c, 1.0));
        let dout = doubles(&w.rows("dout", self.rows, width, 1.0));
        let mut dweight = doubles(&w.param("dweight", true, oc * c, (0.0, 1.0)));
        let mut dbias = doubles(&w.param("dbias", true, oc, (0.0, 1.0)));
        for t in 0..w.count(self.rows) {
            let g = w.batch.member_of(self.rows, t);
            for o in 0..oc {
                let d = dout[t * width + 16 + o];
                dbias[g * oc + o] += d;
                for i in 0..c {
                    dweight[(g * oc + o) * c + i] += d * inp[t * c + i];
                }
            }
        }
        vec![dweight, dbias]
    }
}

#[test]
fn linear_weight_agrees_with_the_loops() {
    for (rows, c, oc, members) in [
        (Rows::Seqs, 1, 1, ONE),
        (Rows::Tokens, 37, 70, SEVERAL),
        (Rows::Seqs, 130, 5, SEVERAL),
        (Rows::Tokens, 64, 128, REAL),
    ] {
        agrees(&Weight { rows, c, oc }, members);
    }
}

#[test]
fn linear_weight_is_the_same_again_alone_and_replayed() {
    let case = Weight {
        rows: Rows::Tokens,
        c: 37,
        oc: 11,
    };
    repeats(&case, SEVERAL);
    alone_as_in_company(&case, SEVERAL);
    replays(&case, &[ALONE, ONE, REAL]);
}
