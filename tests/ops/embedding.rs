//! Tables, their layer norm and dropout: a row of a table sums all tokens that read it.

use crosstune::ops::embedding::{Embedding, Tables};
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, REAL_THREE, Rig, THREE, VOCAB, half};

fn rig((members, longest): (&Members, usize), c: usize, trains: [bool; 5], drop: bool) -> Built {
    let mut rig = Rig::new(members, longest);
    let tables = Tables {
        word: rig.param("word", &[VOCAB, c], trains[0], (0.0, 1.0)),
        position: rig.param("position", &[longest + 2, c], trains[1], (0.0, 0.5)),
        token_type: rig.param("type", &[2, c], trains[2], (0.0, 0.5)),
        weight: rig.param("weight", &[c], trains[3], (1.0, 0.3)),
        bias: rig.param("bias", &[c], trains[4], (0.0, 0.3)),
    };
    let drop = if drop { half(0) } else { None };
    let out = Embedding::push(&mut rig.graph, "out", tables, 1e-5, drop);
    rig.weigh(out, Rows::Tokens);
    rig.build()
}

const TRAINS: [[bool; 5]; 4] = [
    [true; 5],
    [true, false, true, false, false],
    [false, true, false, true, false],
    [false, false, false, false, true],
];

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut worst = 0f64;
    for members in [ONE, ALONE, THREE] {
        for trains in TRAINS {
            for drop in [false, true] {
                let built = rig((members, 5), 7, trains, drop);
                worst = worst.max(built.finite_differences(|_, _| true));
            }
        }
    }
    println!("embedding: finite differences within {worst:.1e}");
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE, REAL_THREE] {
        for c in [5, 13, 35] {
            for trains in TRAINS.into_iter().chain([[false; 5]]) {
                for drop in [false, true] {
                    rig((members, 19), c, trains, drop).cpu_agrees("embedding");
                }
            }
        }
    }
    rig((REAL, 19), 384, [true; 5], true).cpu_agrees("embedding");
}
