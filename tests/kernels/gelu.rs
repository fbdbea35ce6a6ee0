//! `kernels/gelu.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::gelu;
use crosstune::ops::gelu::Gelu as Kind;
use crosstune::text::pack::Rows;

use crate::rig::*;

#[derive(Clone, Copy, Debug)]
pub struct Gelu {
    pub kind: Kind,
    pub c: usize,
    pub in_place: bool,
}

impl Case for Gelu {
    fn fill(&self, d: &Device, w: &World) {
        for (name, std) in [("inp", 2.0), ("dout", 1.0)] {
            let data = w.rows(name, Rows::Tokens, self.c, std);
            d.rows(name, Rows::Tokens, self.c, &data);
        }
        d.poison_rows("dinp", Rows::Tokens, self.c);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let op = gelu::Backward {
            kind: self.kind,
            dinp: d.get(if self.in_place { "dout" } else { "dinp" }),
            dout: d.get("dout"),
            inp: d.get("inp"),
        };
        gelu::backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let name = if self.in_place { "dout" } else { "dinp" };
        let mut out = d.out_rows("gelu", name, Rows::Tokens, w);
        out.rename("gelu", "dinp");
        vec![out]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let x = doubles(&w.rows("inp", Rows::Tokens, self.c, 2.0));
        let dy = doubles(&w.rows("dout", Rows::Tokens, self.c, 1.0));
        vec![
            x.iter()
                .zip(dy)
                .map(|(x, d)| d * self.kind.reference(*x).1)
                .collect(),
        ]
    }
}

#[test]
fn gelu_agrees_and_replays() {
    for kind in [Kind::Exact, Kind::Quick] {
        let case = |c, in_place| Gelu { kind, c, in_place };
        for (c, in_place) in [(1, false), (37, true), (768, false)] {
            agrees(&case(c, in_place), SEVERAL);
        }
        replays(&case(37, true), &[ALONE, ONE, REAL]);
    }
}
