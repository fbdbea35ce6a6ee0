//! The gradient of the whole objective, through tower, dropout and losses: finite differences in
//! f64 on a tiny random model, for every kind of adapter.

mod common;

use common::tiny::{self, MemberData};
use crosstune::adapter::{Adapter, LINEAR_LAYERS, LoraConfig};
use crosstune::exec::reference::RefExecutor;
use crosstune::exec::{Adam, LossWeights, MemberStep};
use crosstune::model::text::DropoutRates;
use crosstune::ops::gelu::Gelu;
use crosstune::text::pack::Batch;
use crosstune::train::objective::{Strategy, TextLoss};
use crosstune::train::program::TrainProgram;
use crosstune::weights::config::{Encoder, TextConfig};

/// Largest error over the largest entry of its tensor. Measured: 1.7e-8.
const LIMIT: f64 = 1e-7;
/// Step of a difference.
const H: f64 = 1e-5;
/// Entries of a tensor that are checked.
const ENTRIES: usize = 12;

const DROPOUT: DropoutRates = DropoutRates {
    hidden: 0.25,
    attention: 0.25,
};

/// Every kind, and how many members it is tried with.
fn adapters() -> Vec<(&'static str, Adapter, usize)> {
    let none = Adapter::default();
    let lora = LoraConfig {
        rank: 2,
        alpha: 4.0,
        targets: LINEAR_LAYERS.map(String::from).to_vec(),
        ..LoraConfig::default()
    };
    let mut dropped = Adapter::lora(2);
    if let Some(lora) = &mut dropped.lora {
        (lora.dropout, lora.rslora) = (0.25, true);
    }
    vec![
        (
            "lora on all six",
            Adapter {
                lora: Some(lora),
                ..none.clone()
            },
            2,
        ),
        ("lora with dropout", dropped, 2),
        ("lora and layer norms", Adapter::lora(3), 2),
        ("bottleneck", Adapter::bottleneck(4), 2),
        ("parallel bottleneck", tiny::parallel(4), 2),
        ("compacter", tiny::compacter(3, 2), 2),
        ("prompt", Adapter::prompt(2), 2),
        (
            "prompt and everything",
            Adapter {
                prompt: Adapter::prompt(1).prompt,
                ..tiny::everything(1)
            },
            2,
        ),
        (
            "layer norms",
            Adapter {
                layer_norms: true,
                ..none.clone()
            },
            2,
        ),
        ("bitfit", Adapter::bitfit(), 2),
        ("head", Adapter { head: true, ..none }, 2),
        ("everything", tiny::everything(1), 2),
        ("full", Adapter::full(), 1),
    ]
}

/// A step of routine 1. The partner is not stopped, since a difference would not stop.
fn step(text_loss: TextLoss, g: usize) -> MemberStep {
    MemberStep {
        seed: 40 + g as u64,
        step: 3,
        weights: Strategy::Routine1.weights(text_loss, [0.5, 2.0][g], false),
        loss_scale: [1.0, 8.0][g],
        adam: Adam {
            lr: 0.0,
            ..Adam::default()
        },
        ..MemberStep::default()
    }
}

/// Two members of unequal sizes, or the first alone.
fn batch(adapter: &Adapter, members: usize) -> Batch {
    let c = tiny::smallest();
    let data: Vec<MemberData> = [(3, true), (2, true)][..members]
        .iter()
        .enumerate()
        .map(|(g, size)| MemberData::new(60 + g as u64, *size, 5, (c.vocab, c.embed_dim)))
        .collect();
    tiny::pack(&data.iter().collect::<Vec<_>>(), adapter.layout(&c))
}

/// All members' objectives, as their loss scales weigh them.
fn objective(exec: &RefExecutor<f64>, program: &TrainProgram, steps: &[MemberStep]) -> f64 {
    let l = &program.losses;
    let weigh = |w: &LossWeights| {
        [
            (l.image_anchor, w.image_anchor),
            (l.mse, w.mse),
            (l.partner_anchor, w.partner_anchor),
            (l.image_partner, w.image_partner),
        ]
    };
    let of_member = |(g, step): (usize, &MemberStep)| {
        let terms = weigh(&step.weights).map(|(id, w)| exec.value(id)[g] * f64::from(w));
        terms.iter().sum::<f64>() * f64::from(step.loss_scale)
    };
    steps.iter().enumerate().map(of_member).sum()
}

/// Worst error over all tensors of a program.
fn worst_error(
    encoder: Encoder,
    (adapter, members): (&Adapter, usize),
    text_loss: TextLoss,
) -> f64 {
    let config = TextConfig {
        encoder,
        ..tiny::smallest()
    };
    let program = TrainProgram::new(&config, true, adapter, DROPOUT);
    let frozen = tiny::frozen(&program.graph);
    let seeds: Vec<u64> = (1..=members as u64).collect();
    let state = tiny::state(&program.graph, &seeds);
    let steps: Vec<MemberStep> = (0..members).map(|g| step(text_loss, g)).collect();
    let batch = batch(adapter, members);
    let mut exec = RefExecutor::<f64>::new(program.graph.clone(), &frozen, &state);
    exec.step(&batch, &steps);
    let level = objective(&exec, &program, &steps).abs();
    let mut pairs: Vec<_> = program.grads.iter().map(|(v, d)| (*v, *d)).collect();
    pairs.sort_unstable();
    let analytic: Vec<Vec<f64>> = pairs.iter().map(|(_, d)| exec.value(*d).to_vec()).collect();
    let mut worst = 0f64;
    for (&(id, _), want) in pairs.iter().zip(&analytic) {
        let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
        let name = &program.graph.get(id).name;
        if name.ends_with("key.bias") || name.ends_with("k_proj.bias") {
            // It shifts all scores of a query alike, so it has no gradient at all, and differences
            // of the objective would show their own rounding alone.
            let idle = largest <= 1e-10 * level;
            assert!(idle, "d.{name} is {largest:e}, expected 0 of {level:e}");
            continue;
        }
        let scale = largest + 1e-3 * level;
        // The rows of a table that no text reads have none either: begin with the largest.
        let mut order: Vec<usize> = (0..want.len()).collect();
        order.sort_by(|a, b| want[*b].abs().total_cmp(&want[*a].abs()));
        let chosen = order.iter().step_by(order.len().div_ceil(ENTRIES));
        for &i in chosen {
            let x = exec.value(id)[i];
            let mut at = |k: f64| {
                exec.value_mut(id)[i] = x + k * H;
                exec.step(&batch, &steps);
                objective(&exec, &program, &steps)
            };
            let near = at(1.0) - at(-1.0);
            let far = at(2.0) - at(-2.0);
            exec.value_mut(id)[i] = x;
            let got = (8.0 * near - far) / (12.0 * H);
            let error = (got - want[i]).abs() / scale;
            assert!(
                error <= LIMIT,
                "d.{name}[{i}] is {}, differences give {got}: {error:.2e} of the largest",
                want[i]
            );
            worst = worst.max(error);
        }
        assert!(largest > 1e-9 * level, "d.{name} is zero");
    }
    worst
}

#[test]
fn the_whole_gradient_is_that_of_finite_differences() {
    let losses = [
        TextLoss::Mse,
        TextLoss::Contrastive,
        TextLoss::ContrastiveWithImage,
    ];
    for (name, adapter, members) in adapters() {
        for text_loss in losses {
            let worst = worst_error(Encoder::XlmRoberta, (&adapter, members), text_loss);
            println!("{name}, {text_loss}: within {worst:.1e}");
        }
        let clip = Encoder::Clip(Gelu::Quick);
        let worst = worst_error(clip, (&adapter, members), TextLoss::Mse);
        println!("{name}, CLIP's own tower: within {worst:.1e}");
    }
}
