//! Unit rows.

use crosstune::ops::l2_norm::L2Norm;
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, Rig, THREE};

fn rig(members: &Members, rows: Rows, e: usize) -> Built {
    let mut rig = Rig::new(members, 4);
    let x = rig.input("x", rows, e, 1.0);
    let out = L2Norm::push(&mut rig.graph, "out", x, rows);
    rig.weigh(out, rows);
    rig.build()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for members in [ONE, ALONE, THREE] {
        for rows in [Rows::Seqs, Rows::Items] {
            rig(members, rows, 7).finite_differences(|_, _| true);
        }
    }
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE] {
        for rows in [Rows::Seqs, Rows::Items, Rows::Tokens] {
            for e in [2, 13, 33] {
                rig(members, rows, e).cpu_agrees("l2_norm");
            }
        }
    }
    rig(REAL, Rows::Seqs, 512).cpu_agrees("l2_norm");
}
