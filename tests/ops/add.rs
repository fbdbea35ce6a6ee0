//! A sum in the forward; a value with several consumers, whose gradient is their explicit sum.

use crosstune::ops::add::Add;
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

#[test]
fn terms_of_a_sum_may_be_one_and_may_have_other_consumers() {
    for (members, c) in [(ONE, 1), (ALONE, 13), (THREE, 7), (REAL, 384)] {
        let mut rig = Rig::new(members, 5);
        let a = rig.input("a", Rows::Tokens, c, 1.0);
        let b = rig.input("b", Rows::Tokens, c, 1.0);
        let fixed = rig.constant("fixed", Rows::Tokens, c, 1.0);
        let sum = Add::push(&mut rig.graph, "sum", (a, b));
        let twice = Add::push(&mut rig.graph, "twice", (sum, sum));
        let more = Add::push(&mut rig.graph, "more", (twice, a));
        let out = Add::push(&mut rig.graph, "out", (fixed, more));
        rig.weigh(out, Rows::Tokens);
        let built = rig.build();
        if c < 100 {
            built.finite_differences(|_, _| true);
        }
        built.cpu_agrees("add");
    }
}
