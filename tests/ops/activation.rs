//! Activations of adapters: alone, and where their input has another consumer.

use crosstune::ops::activation::{Activation, Kind};
use crosstune::ops::add::Add;
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, REAL_THREE, Rig, THREE};

fn rig((members, longest): (&Members, usize), c: usize, kind: Kind, shared: bool) -> Built {
    let mut rig = Rig::new(members, longest);
    let x = rig.input("x", Rows::Tokens, c, 2.0);
    let mut out = Activation::push(&mut rig.graph, "out", kind, x);
    if shared {
        out = Add::push(&mut rig.graph, "sum", (x, out));
    }
    rig.weigh(out, Rows::Tokens);
    rig.build()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut worst = 0f64;
    for members in [ONE, ALONE, THREE] {
        for kind in [Kind::GeluTanh, Kind::Relu] {
            for shared in [false, true] {
                let built = rig((members, 5), 7, kind, shared);
                worst = worst.max(built.finite_differences(|_, _| true));
            }
        }
    }
    println!("activation: finite differences within {worst:.1e}");
}

#[test]
fn cpu_agrees() {
    for kind in [Kind::GeluTanh, Kind::Relu] {
        for members in [ONE, ALONE, THREE, REAL_THREE] {
            for c in [1, 7, 24, 35] {
                for shared in [false, true] {
                    rig((members, 19), c, kind, shared).cpu_agrees("activation");
                }
            }
        }
        rig((REAL, 19), 384, kind, false).cpu_agrees("activation");
    }
}
