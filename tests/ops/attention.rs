//! Attention within each text: query, key and value gradients, with dropped probabilities.

use crosstune::ops::attention::{Attention, Mask};
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, REAL_THREE, Rig, THREE, half};

const MASKS: [Mask; 2] = [Mask::All, Mask::Causal];

fn rig(members: (&Members, usize), c: usize, heads: (usize, Mask), drop: bool) -> Built {
    let mut rig = Rig::new(members.0, members.1);
    let qkv = rig.input("qkv", Rows::Tokens, 3 * c, 1.0);
    let drop = if drop { half(1) } else { None };
    let out = Attention::push(&mut rig.graph, "out", qkv, heads, drop);
    rig.weigh(out, Rows::Tokens);
    rig.build()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut worst = 0f64;
    for members in [ONE, ALONE, THREE] {
        for (c, heads) in [(1, 1), (6, 3), (10, 5), (7, 1)] {
            for (mask, drop) in MASKS.into_iter().flat_map(|m| [(m, false), (m, true)]) {
                let built = rig((members, 6), c, (heads, mask), drop);
                worst = worst.max(built.finite_differences(|_, _| true));
            }
        }
    }
    println!("attention: finite differences within {worst:.1e}");
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE] {
        for (c, heads) in [(1, 1), (3, 3), (35, 5), (13, 1), (51, 3)] {
            for longest in [1, 2, 17, 37] {
                for (mask, drop) in MASKS.into_iter().flat_map(|m| [(m, false), (m, true)]) {
                    rig((members, longest), c, (heads, mask), drop).cpu_agrees("attention");
                }
            }
        }
    }
    for members in [REAL, REAL_THREE] {
        rig((members, 19), 384, (12, Mask::All), true).cpu_agrees("attention");
    }
    // Longer than a block of a product and than a page of scores.
    for mask in MASKS {
        rig((ALONE, 290), 24, (3, mask), true).cpu_agrees("attention");
    }
}
