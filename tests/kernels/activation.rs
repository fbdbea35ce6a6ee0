//! `kernels/activation.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::activation;
use crosstune::ops::activation::Kind;
use crosstune::ops::real;
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "activation";

#[derive(Clone, Copy, Debug)]
pub struct Act {
    pub kind: Kind,
    pub c: usize,
    pub in_place: bool,
}

impl Act {
    fn dinp(&self) -> &'static str {
        if self.in_place { "dout" } else { "dinp" }
    }
}

impl Case for Act {
    fn fill(&self, d: &Device, w: &World) {
        for (name, std) in [("inp", 2.0), ("dout", 1.0)] {
            let data = w.rows(name, Rows::Tokens, self.c, std);
            d.rows(name, Rows::Tokens, self.c, &data);
        }
        d.poison_rows("out", Rows::Tokens, self.c);
        d.poison_rows("dinp", Rows::Tokens, self.c);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let (kind, inp) = (self.kind, d.get("inp"));
        let out = d.get("out");
        activation::forward(d.context(), &activation::Forward { kind, out, inp })?;
        let op = activation::Backward {
            kind,
            dinp: d.get(self.dinp()),
            dout: d.get("dout"),
            inp,
        };
        activation::backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut dinp = d.out_rows(OP, self.dinp(), Rows::Tokens, w);
        dinp.rename(OP, "dinp");
        vec![d.out_rows(OP, "out", Rows::Tokens, w), dinp]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let x = doubles(&w.rows("inp", Rows::Tokens, self.c, 2.0));
        let dy = doubles(&w.rows("dout", Rows::Tokens, self.c, 1.0));
        let f = |x: f64| match self.kind {
            Kind::GeluTanh => real::gelu_tanh(x),
            Kind::Relu => (x.max(0.0), f64::from(x > 0.0)),
        };
        let out = x.iter().map(|x| f(*x).0).collect();
        vec![out, x.iter().zip(dy).map(|(x, d)| d * f(*x).1).collect()]
    }
}

const KINDS: [Kind; 2] = [Kind::GeluTanh, Kind::Relu];

#[test]
fn activation_agrees_and_replays() {
    for kind in KINDS {
        let case = |c, in_place| Act { kind, c, in_place };
        agrees(&case(1, false), ONE);
        agrees(&case(37, true), SEVERAL);
        agrees(&case(24, false), REAL);
        repeats(&case(7, true), SEVERAL);
        alone_as_in_company(&case(7, false), SEVERAL);
        replays(&case(37, true), &[ALONE, ONE, REAL]);
    }
}

/// A derivative of 0 does not hide what is not finite, and no function does.
#[test]
fn activation_keeps_what_is_not_finite() {
    let world = World::new(ONE);
    for kind in KINDS {
        let case = Act {
            kind,
            c: 2,
            in_place: false,
        };
        let d = Device::of(&world, None);
        load(&case, &d, &world);
        d.rows("inp", Rows::Tokens, 2, &[f32::NAN, -1.0]);
        d.rows("dout", Rows::Tokens, 2, &[1.0, f32::INFINITY]);
        case.launch(&d).expect("launched");
        let [out, dinp] = &case.read(&d, &world)[..] else {
            panic!("two outputs");
        };
        assert!(out.values()[0].is_nan(), "{kind:?}");
        assert!(!dinp.values()[1].is_finite(), "{kind:?}");
    }
}
