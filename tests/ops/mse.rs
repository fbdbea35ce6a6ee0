//! Mean squared error of anchors and partners, with a partner that is a constant or not.

use crosstune::ops::mse::Mse;
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, Rig, THREE};

fn rig(members: &Members, e: usize, stop_partner: bool) -> Built {
    let mut rig = Rig::new(members, 3);
    rig.steps
        .iter_mut()
        .for_each(|s| s.weights.stop_partner = stop_partner);
    let text = rig.input("text", Rows::Seqs, e, 1.0);
    let loss = Mse::push(&mut rig.graph, "loss", text);
    rig.loss(loss, |w| w.mse);
    rig.build()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for members in [ALONE, THREE] {
        for stop in [false, true] {
            let built = rig(members, 7, stop);
            let batch = built.batch().clone();
            built.finite_differences(|_, row| {
                let partner = batch.members.iter().any(|m| m.partners().contains(&row));
                !(stop && partner)
            });
        }
    }
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE] {
        for stop in [false, true] {
            for e in [1, 13, 33] {
                rig(members, e, stop).cpu_agrees("mse");
            }
        }
    }
    rig(REAL, 512, false).cpu_agrees("mse");
}

/// A term that a member has switched off must not spoil its gradient: 0 times infinity is NaN.
#[test]
fn a_weight_of_zero_gives_a_gradient_of_zero() {
    let mut rig = Rig::new(THREE, 3);
    rig.steps[0].weights.mse = 0.0;
    let text = rig.input("text", Rows::Seqs, 5, f32::INFINITY);
    let loss = Mse::push(&mut rig.graph, "loss", text);
    rig.loss(loss, |w| w.mse);
    rig.build().first_member_rests(text);
}
