//! Tables, their layer norm and dropout: a row of a table sums all tokens that read it. A prompt of
//! k vectors is a table that its slots read in place of the words'.

use crosstune::ops::embedding::{Embedding, Tables};
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, REAL, REAL_THREE, Rig, THREE, VOCAB, half};

/// Vectors of the prompt, and whether they are trained.
type Prompt = (usize, bool);
const NONE: Prompt = (0, false);

fn rig(
    (members, longest): (&Members, usize),
    c: usize,
    trains: [bool; 5],
    (k, trained): Prompt,
    drop: bool,
) -> Built {
    let mut rig = Rig::with_prompt(members, longest, k);
    let positions = longest + k + 2;
    let tables = Tables {
        word: rig.param("word", &[VOCAB, c], trains[0], (0.0, 1.0)),
        position: rig.param("position", &[positions, c], trains[1], (0.0, 0.5)),
        token_type: Some(rig.param("type", &[2, c], trains[2], (0.0, 0.5))),
        weight: rig.param("weight", &[c], trains[3], (1.0, 0.3)),
        bias: rig.param("bias", &[c], trains[4], (0.0, 0.3)),
        prompt: (k > 0).then(|| rig.param("prompt", &[k, c], trained, (0.0, 1.0))),
    };
    let drop = if drop { half(0) } else { None };
    let out = Embedding::push(&mut rig.graph, "out", tables, 1e-5, drop);
    rig.weigh(out, Rows::Tokens);
    rig.build()
}

/// Without token types, the sum read on beside its norm: as CLIP's text tower has it.
fn pre_norm((members, longest): (&Members, usize), c: usize, trains: [bool; 4], k: usize) -> Built {
    let mut rig = Rig::with_prompt(members, longest, k);
    let tables = Tables {
        word: rig.param("word", &[VOCAB, c], trains[0], (0.0, 1.0)),
        position: rig.param("position", &[longest + k + 2, c], trains[1], (0.0, 0.5)),
        token_type: None,
        weight: rig.param("weight", &[c], trains[2], (1.0, 0.3)),
        bias: rig.param("bias", &[c], trains[3], (0.0, 0.3)),
        prompt: (k > 0).then(|| rig.param("prompt", &[k, c], true, (0.0, 1.0))),
    };
    let (sum, out) = Embedding::push_sum(&mut rig.graph, "out", tables, 1e-5);
    rig.weigh(sum, Rows::Tokens);
    rig.weigh(out, Rows::Tokens);
    rig.build()
}

#[test]
fn the_sum_may_be_read_on() {
    let some = [[true; 4], [true, false, false, true], [false; 4]];
    for members in [ONE, ALONE, THREE] {
        for (trains, k) in some.into_iter().zip([0, 2, 3]) {
            pre_norm((members, 5), 7, trains, k).finite_differences(|_, _| true);
            pre_norm((members, 19), 35, trains, k).cpu_agrees("embedding");
        }
    }
}

const TRAINS: [[bool; 5]; 4] = [
    [true; 5],
    [true, false, true, false, false],
    [false, true, false, true, false],
    [false, false, false, false, true],
];
/// Prompts as methods have them: alone, and beside everything or some of the tables.
const PROMPTS: [([bool; 5], Prompt); 5] = [
    ([false; 5], (1, true)),
    ([false; 5], (3, true)),
    ([true; 5], (5, true)),
    ([true; 5], (2, false)),
    ([false, true, false, true, false], (4, true)),
];

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut worst = 0f64;
    let bare = TRAINS.map(|trains| (trains, NONE));
    for members in [ONE, ALONE, THREE] {
        for (trains, prompt) in bare.into_iter().chain(PROMPTS) {
            for drop in [false, true] {
                let built = rig((members, 5), 7, trains, prompt, drop);
                worst = worst.max(built.finite_differences(|_, _| true));
            }
        }
    }
    println!("embedding: finite differences within {worst:.1e}");
}

#[test]
fn cpu_agrees() {
    let bare = TRAINS.into_iter().chain([[false; 5]]);
    let all: Vec<_> = bare.map(|t| (t, NONE)).chain(PROMPTS).collect();
    for members in [ONE, ALONE, THREE, REAL_THREE] {
        for c in [5, 13, 35] {
            for (trains, prompt) in &all {
                for drop in [false, true] {
                    rig((members, 19), c, *trains, *prompt, drop).cpu_agrees("embedding");
                }
            }
        }
    }
    rig((REAL, 19), 384, [true; 5], NONE, true).cpu_agrees("embedding");
    rig((REAL, 19), 384, [false; 5], (4, true), true).cpu_agrees("embedding");
}

/// Words and prompt must not be packed by one length and computed by another.
#[test]
#[should_panic(expected = "vectors and slots of the prompt")]
fn vectors_without_slots_are_a_fault() {
    let mut rig = Rig::new(ALONE, 5);
    let tables = Tables {
        word: rig.param("word", &[VOCAB, 3], false, (0.0, 1.0)),
        position: rig.param("position", &[7, 3], false, (0.0, 1.0)),
        token_type: Some(rig.param("type", &[2, 3], false, (0.0, 1.0))),
        weight: rig.param("weight", &[3], false, (1.0, 0.3)),
        bias: rig.param("bias", &[3], false, (0.0, 0.3)),
        prompt: Some(rig.param("prompt", &[2, 3], true, (0.0, 1.0))),
    };
    let out = Embedding::push(&mut rig.graph, "out", tables, 1e-5, None);
    rig.weigh(out, Rows::Tokens);
    rig.build().cpu_agrees("embedding");
}
