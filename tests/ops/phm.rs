//! Hypercomplex layers: alone, and where their input has another consumer; frozen and trainable.

use crosstune::ops::add::Add;
use crosstune::ops::phm::{Phm, Weights};
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, REAL_THREE, Rig, THREE};

/// Which of rule, left, right and bias are trained.
type Trained = [bool; 4];

const ALL: Trained = [true; 4];

fn rig(
    (members, longest): (&Members, usize),
    (n, k, oc): (usize, usize, usize),
    [rule, left, right, bias]: Trained,
    shared: bool,
) -> Built {
    let mut rig = Rig::new(members, longest);
    let x = rig.input("x", Rows::Tokens, k, 1.0);
    let std = (n as f32 / k as f32).sqrt();
    let weights = Weights {
        rule: rig.param("rule", &[n, n, n], rule, (0.0, 0.5)),
        left: rig.param("left", &[n, k / n, 1], left, (0.0, std)),
        right: rig.param("right", &[n, 1, oc / n], right, (0.0, 1.0)),
        bias: rig.param("bias", &[oc], bias, (0.0, 1.0)),
    };
    let mut out = Phm::push(&mut rig.graph, "out", x, weights);
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
        for trained in [ALL, [false; 4], [true, false, true, false]] {
            let mut check = |shape, shared| {
                let built = rig((members, 4), shape, trained, shared);
                worst = worst.max(built.finite_differences(|_, _| true));
            };
            check((4, 12, 20), false);
            check((1, 5, 3), false);
            check((3, 9, 9), true);
        }
    }
    println!("phm: finite differences within {worst:.1e}");
}

#[test]
fn cpu_agrees_on_odd_shapes() {
    for members in [ONE, ALONE, THREE] {
        for shape in [(1, 1, 1), (2, 14, 34), (3, 3, 51), (4, 4, 4), (5, 285, 5)] {
            for trained in [ALL, [false; 4], [false, true, false, true]] {
                rig((members, 19), shape, trained, false).cpu_agrees("phm");
            }
        }
        rig((members, 19), (4, 20, 20), ALL, true).cpu_agrees("phm");
    }
}

#[test]
fn cpu_agrees_on_a_real_block() {
    rig((REAL, 19), (4, 384, 24), ALL, false).cpu_agrees("phm");
    rig((REAL_THREE, 19), (4, 24, 384), ALL, false).cpu_agrees("phm");
}
