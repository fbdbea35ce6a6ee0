//! Parts side by side, bias, GELU, low-rank branches; frozen, trainable and mixed.

use crosstune::ops::gelu::Gelu;
use crosstune::ops::linear::{Layer, Linear, LoraLayer};
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, REAL_THREE, Rig, THREE, half};

/// What a case trains.
#[derive(Clone, Copy)]
struct Trains {
    weight: bool,
    bias: bool,
    lora: Option<usize>,
    /// Dropout of what the branch reads; the rows are then tokens.
    drop: bool,
}

const FROZEN: Trains = Trains {
    weight: false,
    bias: false,
    lora: None,
    drop: false,
};
const ALL: Trains = Trains {
    weight: true,
    bias: true,
    lora: Some(3),
    drop: false,
};

fn rig(
    (members, longest): (&Members, usize),
    rows: Rows,
    (k, widths): (usize, &[usize]),
    trains: &[Trains],
    act: Option<Gelu>,
) -> Built {
    let mut rig = Rig::new(members, longest);
    let x = rig.input("x", rows, k, 1.0);
    let std = 1.0 / (k as f32).sqrt();
    let layers: Vec<Layer> = widths
        .iter()
        .zip(trains.iter().cycle())
        .enumerate()
        .map(|(i, (&oc, t))| Layer {
            weight: rig.param(&format!("{i}.w"), &[oc, k], t.weight, (0.0, std)),
            bias: (i != 1).then(|| rig.param(&format!("{i}.b"), &[oc], t.bias, (0.0, 1.0))),
            lora: t.lora.map(|r| {
                let a = rig.param(&format!("{i}.lora_A"), &[r, k], true, (0.0, std));
                let b = rig.param(&format!("{i}.lora_B"), &[oc, r], true, (0.0, 0.5));
                LoraLayer {
                    lora_a: a,
                    lora_b: b,
                    scale: 2.0,
                    dropout: half(20 + i as u32).filter(|_| t.drop),
                }
            }),
        })
        .collect();
    let out = Linear::push(&mut rig.graph, "out", (x, rows), &layers, act);
    rig.weigh(out, rows);
    rig.build()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let lora = Trains {
        lora: Some(1),
        ..FROZEN
    };
    let bias = Trains {
        bias: true,
        ..FROZEN
    };
    let mut worst = 0f64;
    for members in [ONE, ALONE, THREE] {
        for trains in [&[FROZEN][..], &[ALL], &[lora, FROZEN, ALL], &[bias, lora]] {
            let cases = [
                (Rows::Tokens, 7, &[5usize, 3, 4][..], None),
                (Rows::Tokens, 5, &[11], Some(Gelu::Exact)),
                (Rows::Tokens, 4, &[7], Some(Gelu::Quick)),
                (Rows::Seqs, 6, &[1, 2], None),
            ];
            for (rows, k, widths, act) in cases {
                let built = rig((members, 4), rows, (k, widths), trains, act);
                worst = worst.max(built.finite_differences(|_, _| true));
            }
        }
    }
    println!("linear: finite differences within {worst:.1e}");
}

#[test]
fn cpu_agrees_on_odd_shapes() {
    let lora = |r| Trains {
        lora: Some(r),
        ..FROZEN
    };
    for members in [ONE, ALONE, THREE] {
        for (k, widths) in [(1, &[1, 1, 1][..]), (13, &[13, 17, 1]), (259, &[129, 31])] {
            for trains in [&[FROZEN][..], &[ALL], &[lora(1), FROZEN, lora(5)]] {
                for act in [None, Some(Gelu::Exact), Some(Gelu::Quick)] {
                    rig((members, 19), Rows::Tokens, (k, widths), trains, act).cpu_agrees("linear");
                }
                rig((members, 3), Rows::Seqs, (k, widths), trains, None).cpu_agrees("linear");
            }
        }
    }
}

#[test]
fn cpu_agrees_on_a_real_block() {
    let lora = Trains {
        lora: Some(8),
        ..FROZEN
    };
    let real = (REAL, 19);
    rig(
        real,
        Rows::Tokens,
        (384, &[384, 384, 384]),
        &[lora, FROZEN, lora],
        None,
    )
    .cpu_agrees("linear");
    rig(
        real,
        Rows::Tokens,
        (384, &[1536]),
        &[lora],
        Some(Gelu::Exact),
    )
    .cpu_agrees("linear");
    rig(
        (REAL_THREE, 19),
        Rows::Tokens,
        (1536, &[384]),
        &[lora],
        None,
    )
    .cpu_agrees("linear");
    rig((REAL_THREE, 19), Rows::Tokens, (384, &[512]), &[ALL], None).cpu_agrees("linear");
}

/// Dropout in two branches of three; more rows than are dropped at once, and columns of more than one
/// run.
const DROPPED: &[Trains] = &[
    Trains { drop: true, ..ALL },
    FROZEN,
    Trains {
        lora: Some(2),
        drop: true,
        ..FROZEN
    },
];

#[test]
fn gradients_with_dropout_are_those_of_finite_differences() {
    let mut worst = 0f64;
    for members in [ONE, ALONE, THREE] {
        for (k, widths, act) in [
            (7, &[5usize, 3, 4][..], None),
            (5, &[11], Some(Gelu::Exact)),
        ] {
            let built = rig((members, 4), Rows::Tokens, (k, widths), DROPPED, act);
            worst = worst.max(built.finite_differences(|_, _| true));
        }
    }
    println!("linear with dropout: finite differences within {worst:.1e}");
}

#[test]
fn cpu_agrees_with_dropout() {
    let cases = [
        (ONE, 1, 1),
        (ALONE, 19, 13),
        (THREE, 19, 259),
        (REAL_THREE, 19, 523),
    ];
    for (members, longest, k) in cases {
        let widths = [13, 17, 1];
        let rows = Rows::Tokens;
        rig((members, longest), rows, (k, &widths), DROPPED, None).cpu_agrees("linear");
    }
    let long = (&[(40, true), (1, false)][..], 19);
    let built = rig(long, Rows::Tokens, (67, &[31]), DROPPED, Some(Gelu::Exact));
    assert!(built.batch().members[0].tokens.len() > 2 * 256);
    built.cpu_agrees("linear");
}
