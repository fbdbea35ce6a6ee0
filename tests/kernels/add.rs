//! `kernels/add.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::add::{Forward, forward};
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "add";

#[derive(Clone, Copy, Debug)]
struct Sum {
    rows: Rows,
    c: usize,
    in_place: bool,
}

impl Sum {
    fn out(&self) -> &'static str {
        if self.in_place { "a" } else { "out" }
    }
}

impl Case for Sum {
    fn fill(&self, d: &Device, w: &World) {
        for name in ["a", "b"] {
            let data = w.rows(name, self.rows, self.c, 1.0);
            d.rows(name, self.rows, self.c, &data);
        }
        d.poison_rows("out", self.rows, self.c);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let op = Forward {
            rows: self.rows,
            out: d.get(self.out()),
            a: d.get("a"),
            b: d.get("b"),
        };
        forward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut out = d.out_rows(OP, self.out(), self.rows, w);
        out.rename(OP, "out");
        vec![out]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let [a, b] = ["a", "b"].map(|name| doubles(&w.rows(name, self.rows, self.c, 1.0)));
        vec![a.iter().zip(b).map(|(a, b)| a + b).collect()]
    }
}

#[test]
fn add_agrees_and_replays() {
    for (rows, c, in_place) in [
        (Rows::Seqs, 1, false),
        (Rows::Tokens, 37, true),
        (Rows::Items, 520, false),
    ] {
        let case = Sum { rows, c, in_place };
        agrees(&case, SEVERAL);
        replays(&case, &[ALONE, ONE, REAL]);
    }
}
