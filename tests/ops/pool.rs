//! Mean, first or last of each text's tokens.

use crosstune::ops::pool::{Pool, Pooling};
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, Rig, THREE};

const ALL: [Pooling; 3] = [Pooling::Mean, Pooling::First, Pooling::Last];

fn rig(members: (&Members, usize), pooling: Pooling, c: usize) -> Built {
    let mut rig = Rig::new(members.0, members.1);
    let x = rig.input("x", Rows::Tokens, c, 1.0);
    let out = Pool::push(&mut rig.graph, "out", pooling, x);
    rig.weigh(out, Rows::Seqs);
    rig.build()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for members in [ONE, ALONE, THREE] {
        for pooling in ALL {
            rig((members, 5), pooling, 7).finite_differences(|_, _| true);
        }
    }
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE] {
        for (pooling, c) in ALL.into_iter().zip([1, 13, 33]) {
            rig((members, 19), pooling, c).cpu_agrees("pool");
            rig((members, 19), pooling, 35).cpu_agrees("pool");
        }
    }
    rig((REAL, 19), Pooling::Mean, 384).cpu_agrees("pool");
}
