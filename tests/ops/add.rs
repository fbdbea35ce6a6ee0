//! A value with several consumers: its gradient is their explicit sum.

use crosstune::ops::l2_norm::L2Norm;
use crosstune::ops::mse::Mse;
use crosstune::text::pack::Rows;

use super::rig::{ALONE, ONE, REAL, Rig, THREE};

#[test]
fn consumers_of_one_value_are_summed() {
    for (members, e) in [(ONE, 2), (ALONE, 13), (THREE, 7), (REAL, 512)] {
        let mut rig = Rig::new(members, 3);
        let text = rig.input("text", Rows::Seqs, e, 1.0);
        for name in ["a", "b", "c"] {
            let out = L2Norm::push(&mut rig.graph, name, text, Rows::Seqs);
            rig.weigh(out, Rows::Seqs);
        }
        let loss = Mse::push(&mut rig.graph, "loss", text);
        rig.loss(loss, |w| w.mse);
        let built = rig.build();
        if e < 100 {
            built.finite_differences(|_, _| true);
        }
        built.cpu_agrees("add");
    }
}
