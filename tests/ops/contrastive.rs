//! The contrastive loss: all three pairs, both sides flowing or one, and terms switched off.

use crosstune::graph::ValueId;
use crosstune::ops::contrastive::{Contrastive, Pair};
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, Rig, THREE, Weight};

const PAIRS: [(Pair, Weight); 3] = [
    (Pair::ImageAnchor, |w| w.image_anchor),
    (Pair::PartnerAnchor, |w| w.partner_anchor),
    (Pair::ImagePartner, |w| w.image_partner),
];

/// Rows of about unit length where there are many channels; shorter with few, where random rows
/// would differ so much that a softmax is 1 and its gradient nothing but rounding.
fn rig(members: &Members, pairs: &[usize], e: usize, stop_partner: bool) -> Built {
    let mut rig = Rig::new(members, 3);
    rig.steps
        .iter_mut()
        .for_each(|s| s.weights.stop_partner = stop_partner);
    // The last member of several switches the pair off.
    if let [.., last] = &mut rig.steps[1..] {
        (last.weights.partner_anchor, last.weights.image_partner) = (0.0, 0.0);
    }
    let std = if e < 100 { 0.3 } else { 1.0 } / (e as f32).sqrt();
    let text = rig.input("text", Rows::Seqs, e, std);
    let image = rig.constant("image", Rows::Items, e, std);
    for &p in pairs {
        let (pair, weight) = PAIRS[p];
        let name = format!("loss.{p}");
        let loss = Contrastive::push(&mut rig.graph, &name, pair, image, text);
        rig.loss(loss, weight);
    }
    rig.build()
}

/// Whether a gradient flows into a row of the texts.
fn flows(built: &Built, pairs: &[usize], stop: bool) -> impl Fn(ValueId, usize) -> bool + use<> {
    let batch = built.batch().clone();
    let nothing = stop && pairs == [2];
    move |_, row| {
        let partner = batch.members.iter().any(|m| m.partners().contains(&row));
        !(nothing || stop && partner)
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut worst = 0f64;
    for members in [ALONE, THREE] {
        for pairs in [&[0][..], &[1], &[2], &[0, 1, 2]] {
            for stop in [false, true] {
                let built = rig(members, pairs, 7, stop);
                let flows = flows(&built, pairs, stop);
                worst = worst.max(built.finite_differences(flows));
            }
        }
    }
    println!("contrastive: finite differences within {worst:.1e}");
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE, &[(65, true), (1, true), (129, true)]] {
        for pairs in [&[0][..], &[1], &[2], &[0, 1, 2]] {
            for stop in [false, true] {
                for e in [1, 13, 33] {
                    rig(members, pairs, e, stop).cpu_agrees("contrastive");
                }
            }
        }
    }
    rig(REAL, &[0, 1, 2], 512, false).cpu_agrees("contrastive");
}
