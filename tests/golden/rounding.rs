//! What rounding alone makes of a golden case: how far ten steps in f64 end from each other when
//! weights and gradients are off as f32's are.
//!
//! Adam divides by the gradient's size, so where an entry's first gradient is smaller than its
//! rounding, two sound f32 programs step in opposite directions, by the whole learning rate; all that
//! follows differs by what that entry does. A unit of a ReLU near zero, which one program has on and
//! the other off, does the same. Neither is a fault, and neither can be told from one by its size: it
//! is shown here, element by element, by the reference's runs among themselves (of features, by the CPU's).

use std::iter::zip;

use crosstune::exec::MemberStep;
use crosstune::exec::reference::RefExecutor;
use crosstune::graph::{Role, ValueId};
use crosstune::model::text::DropoutRates;
use crosstune::ops::philox::Stream;
use crosstune::train::program::{TextModel, TrainProgram};

use super::case::{Case, combined, encode, set_initial};
use crate::common::golden::GoldenBatch;

/// A weight's error over itself: two roundings of f32.
const WEIGHT: f64 = 1.2e-7;

/// A gradient's error over its recorded noise: each of two programs has that much.
const GRADIENT: f64 = 2.0;

/// Distances seen, times this, are allowed for: few runs do not show the worst.
const MARGIN: f64 = 3.0;

/// Runs, in pairs of opposite errors: where an error decides a sign, one of a pair has it wrong.
const PAIRS: u64 = 2;

/// How far off each number may be by rounding alone.
pub struct Rounding {
    /// Losses and their parts.
    pub losses: f32,
    /// Features after the last step.
    pub features: f32,
    /// Trained values, by tensor in the order of the state; empty for none.
    pub values: Vec<Vec<f32>>,
}

impl Rounding {
    /// No allowance.
    pub const NONE: Rounding = Rounding {
        losses: 0.0,
        features: 0.0,
        values: Vec::new(),
    };

    /// That of a case, as seen here; of losses and features what its manifest records of PyTorch's
    /// f32, where that is more.
    pub fn of(model: &TextModel, case: &Case<'_>, data: &[GoldenBatch]) -> Rounding {
        let want = run(model, case, data, None);
        let recorded = |name: &str| case.entry["noise"][name].as_f64().expect("a number");
        let mut losses = recorded("loss_max_abs");
        let mut features = recorded("feat_final_max_abs");
        let mut values: Vec<Vec<f64>> = want.values.iter().map(|v| vec![0.0; v.len()]).collect();
        for (seed, sign) in (1..=PAIRS).flat_map(|seed| [(seed, 1.0), (seed, -1.0)]) {
            let got = run(model, case, data, Some(Errors { seed, sign }));
            losses = losses.max(farthest(&got.losses, &want.losses));
            features = features.max(farthest(&got.features, &want.features));
            for (worst, (got, want)) in zip(&mut values, zip(&got.values, &want.values)) {
                for (i, worst) in worst.iter_mut().enumerate() {
                    *worst = worst.max(farthest(&got[i..=i], &want[i..=i]));
                }
            }
        }
        let allowed = |x: &f64| (MARGIN * x) as f32;
        Rounding {
            losses: allowed(&losses),
            features: allowed(&features),
            values: values
                .iter()
                .map(|v| v.iter().map(allowed).collect())
                .collect(),
        }
    }
}

impl std::fmt::Display for Rounding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values = self.values.iter().flatten();
        let beyond = |limit: f32| values.clone().filter(|x| **x > limit).count();
        write!(
            f,
            "losses {:.1e}, features {:.1e}, {} of {} values by over 5e-5, {} by over 1e-3",
            self.losses,
            self.features,
            beyond(5e-5),
            values.clone().count(),
            beyond(1e-3),
        )
    }
}

fn farthest(got: &[f64], want: &[f64]) -> f64 {
    zip(got, want).fold(0.0, |m, (got, want)| {
        assert!(got.is_finite() && want.is_finite());
        f64::max(m, (got - want).abs())
    })
}

/// What a run ends with.
struct Ended {
    losses: Vec<f64>,
    features: Vec<f64>,
    values: Vec<Vec<f64>>,
}

/// Errors of one run: each number's sign is drawn, and all of them are turned by `sign`.
#[derive(Clone, Copy)]
struct Errors {
    seed: u64,
    sign: f64,
}

impl Errors {
    fn signs(self, name: &str, n: usize) -> impl Iterator<Item = f64> + use<> {
        let drawn = Stream::named(self.seed, name).uniform(n, 1.0).into_iter();
        drawn.map(move |x| self.sign * f64::from(x.signum()))
    }
}

/// Ten steps in f64; with errors, or without.
fn run(model: &TextModel, case: &Case<'_>, data: &[GoldenBatch], errors: Option<Errors>) -> Ended {
    let program = TrainProgram::new(&model.config, model.head, &case.adapter, DropoutRates::NONE);
    let graph = &program.graph;
    let frozen = model.bind(graph).expect("bound");
    let mut state = model.init(graph, &case.adapter, &[1]).expect("state");
    set_initial(&mut state, &case.file);
    let mut exec = RefExecutor::<f64>::new(graph.clone(), &frozen, &state);
    let trained: Vec<ValueId> = graph.with_role(Role::Trainable).collect();
    let grads: Vec<ValueId> = graph.with_role(Role::Grad).collect();
    if let Some(errors) = errors {
        for id in graph.with_role(Role::Frozen).chain(trained.iter().copied()) {
            let value = exec.value_mut(id);
            let signs = errors.signs(&graph.get(id).name, value.len());
            zip(value, signs).for_each(|(x, sign)| *x *= 1.0 + sign * WEIGHT);
        }
    }
    let noise = GRADIENT
        * case.entry["noise"]["grad1_max_rel"]
            .as_f64()
            .expect("a number");
    let mut moments: Vec<Moments> = trained.iter().map(|_| Moments::default()).collect();
    let mut losses = Vec::new();
    for s in 0..case.steps() {
        let step = case.step(s);
        let batch = case.batch(&data[s % data.len()], &model.config);
        // The step's own update is left out: errors come between it and the gradients.
        let idle = MemberStep {
            active: false,
            ..step
        };
        exec.step(&batch, &[idle]);
        let loss = combined(&program.losses, &step, |id| exec.value(id)[0] as f32).1;
        losses.push(f64::from(loss));
        for (i, (id, grad)) in zip(&trained, &grads).enumerate() {
            let mut grad = exec.value(*grad).to_vec();
            if let Some(errors) = errors {
                let largest = grad.iter().fold(0.0, |m, g| f64::max(m, g.abs()));
                let signs = errors.signs(&format!("{s} {}", graph.get(*id).name), grad.len());
                // A gradient of nothing, as of a word that no text has, is exactly zero.
                for (g, sign) in zip(&mut grad, signs).filter(|(g, _)| **g != 0.0) {
                    *g += sign * noise * largest;
                }
            }
            moments[i].update(exec.value_mut(*id), &grad, &step);
        }
    }
    let values: Vec<Vec<f64>> = trained.iter().map(|id| exec.value(*id).to_vec()).collect();
    for (id, value) in zip(&trained, &values) {
        let t = state.find(&graph.get(*id).name).expect("its state");
        let value: Vec<f32> = value.iter().map(|x| *x as f32).collect();
        state.set_value(t, 0, &value);
    }
    let features = encode(model, &case.adapter, &mut state, &data[0]).concat();
    let in_state = |name: &str| trained.iter().position(|id| graph.get(*id).name == name);
    let order = state
        .tensors
        .iter()
        .map(|t| in_state(&t.name).expect("its value"));
    Ended {
        losses,
        features: features.into_iter().map(f64::from).collect(),
        values: order.map(|i| values[i].clone()).collect(),
    }
}

/// Adam's moments of a tensor.
#[derive(Default)]
struct Moments {
    m: Vec<f64>,
    v: Vec<f64>,
    steps: i32,
}

impl Moments {
    fn update(&mut self, value: &mut [f64], grad: &[f64], step: &MemberStep) {
        let a = step.adam;
        self.m.resize(grad.len(), 0.0);
        self.v.resize(grad.len(), 0.0);
        self.steps += 1;
        let corrected = |beta: f64| 1.0 - beta.powi(self.steps);
        let (c1, c2) = (corrected(a.beta1), corrected(a.beta2));
        for ((x, g), (m, v)) in zip(zip(value, grad), zip(&mut self.m, &mut self.v)) {
            let g = g + a.weight_decay * *x;
            *m = a.beta1 * *m + (1.0 - a.beta1) * g;
            *v = a.beta2 * *v + (1.0 - a.beta2) * g * g;
            *x -= a.lr * (*m / c1) / ((*v / c2).sqrt() + a.eps);
        }
    }
}
