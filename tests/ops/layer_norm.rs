//! Residual, dropout and layer norm: every gradient, and a value with several consumers.

use crosstune::ops::layer_norm::LayerNorm;
use crosstune::ops::linear::{Layer, Linear};
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, REAL_THREE, Rig, THREE, half};

const EPS: f32 = 1e-5;

fn rig(members: (&Members, usize), c: usize, (w, b): (bool, bool), drop: bool) -> Built {
    let mut rig = Rig::new(members.0, members.1);
    let x = rig.input("x", Rows::Tokens, c, 1.0);
    let resid = rig.input("resid", Rows::Tokens, c, 1.0);
    let weight = rig.param("weight", &[c], w, (1.0, 0.3));
    let bias = rig.param("bias", &[c], b, (0.0, 0.3));
    let drop = if drop { half(5) } else { None };
    let params = (weight, bias);
    let out = LayerNorm::push(&mut rig.graph, "out", (x, resid), params, EPS, drop);
    rig.weigh(out, Rows::Tokens);
    rig.build()
}

/// `LN(x + drop(W x))`, then the same again on its result: as a block has it.
fn block(members: &Members, c: usize, drop: bool) -> Built {
    let mut rig = Rig::new(members, 4);
    let mut x = rig.input("x", Rows::Tokens, c, 1.0);
    for i in 0..2 {
        let weight = rig.param(&format!("{i}.w"), &[c, c], true, (0.0, 0.5));
        let layer = Layer {
            weight,
            bias: None,
            lora: None,
        };
        let inner = Linear::push(
            &mut rig.graph,
            &format!("{i}.linear"),
            (x, Rows::Tokens),
            &[layer],
            None,
        );
        let w = rig.param(&format!("{i}.weight"), &[c], i == 1, (1.0, 0.3));
        let b = rig.param(&format!("{i}.bias"), &[c], i == 0, (0.0, 0.3));
        let drop = if drop { half(i) } else { None };
        let name = format!("{i}.out");
        x = LayerNorm::push(&mut rig.graph, &name, (inner, x), (w, b), EPS, drop);
    }
    rig.weigh(x, Rows::Tokens);
    rig.build()
}

/// A block of a pre-LN transformer, twice: `x += W LN(x)`, where the norm of the second reads the sum,
/// and the stream goes on beside it.
fn pre_norm_blocks(members: &Members, rows: Rows, c: usize, frozen_below: bool) -> Built {
    let mut rig = Rig::new(members, 4);
    let mut x = rig.input("x", rows, c, 1.0);
    let params = |rig: &mut Rig, name: &str, trained: bool| {
        let w = rig.param(&format!("{name}.weight"), &[c], trained, (1.0, 0.3));
        (
            w,
            rig.param(&format!("{name}.bias"), &[c], trained, (0.0, 0.3)),
        )
    };
    let first = params(&mut rig, "first", !frozen_below);
    let mut out = LayerNorm::push_alone(&mut rig.graph, "first", x, first, EPS);
    for i in 0..2 {
        let weight = rig.param(&format!("{i}.w"), &[c, c], true, (0.0, 0.5));
        let layer = Layer {
            weight,
            bias: None,
            lora: None,
        };
        let name = format!("{i}.linear");
        let inner = Linear::push(&mut rig.graph, &name, (out, rows), &[layer], None);
        let name = format!("{i}.norm");
        let own = params(&mut rig, &name, i == 0);
        (x, out) = LayerNorm::push_sum(&mut rig.graph, &name, (inner, x), own, EPS);
    }
    rig.weigh(x, rows);
    rig.weigh(out, rows);
    rig.build()
}

#[test]
fn the_sum_may_be_read_on() {
    for members in [ONE, ALONE, THREE] {
        for (rows, frozen) in [
            (Rows::Tokens, false),
            (Rows::Tokens, true),
            (Rows::Seqs, false),
        ] {
            let worst = pre_norm_blocks(members, rows, 5, frozen).finite_differences(|_, _| true);
            println!("pre-norm: finite differences within {worst:.1e}");
            pre_norm_blocks(members, rows, 35, frozen).cpu_agrees("layer_norm");
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut worst = 0f64;
    for members in [ONE, ALONE, THREE] {
        for params in [(false, false), (true, false), (false, true), (true, true)] {
            for drop in [false, true] {
                let built = rig((members, 4), 7, params, drop);
                worst = worst.max(built.finite_differences(|_, _| true));
            }
        }
        for drop in [false, true] {
            worst = worst.max(block(members, 5, drop).finite_differences(|_, _| true));
        }
    }
    println!("layer_norm: finite differences within {worst:.1e}");
}

#[test]
fn one_value_may_be_input_and_residual() {
    for drop in [None, half(2)] {
        let mut rig = Rig::new(THREE, 4);
        let x = rig.input("x", Rows::Tokens, 5, 1.0);
        let params = (
            rig.param("weight", &[5], true, (1.0, 0.3)),
            rig.param("bias", &[5], true, (0.0, 0.3)),
        );
        let out = LayerNorm::push(&mut rig.graph, "out", (x, x), params, EPS, drop);
        rig.weigh(out, Rows::Tokens);
        let built = rig.build();
        built.finite_differences(|_, _| true);
        built.cpu_agrees("layer_norm");
    }
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE, REAL_THREE] {
        for c in [5, 13, 16, 35] {
            for params in [(false, false), (true, false), (false, true), (true, true)] {
                for drop in [false, true] {
                    rig((members, 19), c, params, drop).cpu_agrees("layer_norm");
                }
            }
        }
        block(members, 13, true).cpu_agrees("layer_norm");
    }
    rig((REAL, 19), 384, (true, true), true).cpu_agrees("layer_norm");
}
