//! Mean of each text's tokens.

use crosstune::ops::pool::Pool;
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, Rig, THREE};

fn rig(members: (&Members, usize), c: usize) -> Built {
    let mut rig = Rig::new(members.0, members.1);
    let x = rig.input("x", Rows::Tokens, c, 1.0);
    let out = Pool::push(&mut rig.graph, "out", x);
    rig.weigh(out, Rows::Seqs);
    rig.build()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for members in [ONE, ALONE, THREE] {
        rig((members, 5), 7).finite_differences(|_, _| true);
    }
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE] {
        for c in [1, 13, 33] {
            rig((members, 19), c).cpu_agrees("pool");
        }
    }
    rig((REAL, 19), 384).cpu_agrees("pool");
}
