//! The invariants of a step (design.md), each by its name, on whole training steps of a tiny random
//! model on the CPU.

mod common;

use std::sync::Arc;

use common::tiny::{self, MemberData};
use crosstune::adapter::Adapter;
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Adam, Executor, LossWeights, MemberStep};
use crosstune::graph::Bucket;
use crosstune::model::text::DropoutRates;
use crosstune::train::program::TrainProgram;
use crosstune::weights::config::TextConfig;

const DROPOUT: DropoutRates = DropoutRates {
    hidden: 0.1,
    attention: 0.1,
};

/// A member as a user would describe it.
#[derive(Clone, Copy)]
struct Member {
    seed: u64,
    items: usize,
    paired: bool,
    longest: usize,
    lr: f64,
    weights: LossWeights,
}

/// Unequal in everything; together they cross every block and chunk of the ops.
fn members() -> [Member; 3] {
    let itc = LossWeights {
        image_anchor: 1.0,
        ..LossWeights::default()
    };
    let baseline = Member {
        seed: 11,
        items: 7,
        paired: false,
        longest: 19,
        lr: 1e-3,
        weights: itc,
    };
    let mse = Member {
        seed: 12,
        items: 67,
        paired: true,
        longest: 5,
        lr: 3e-3,
        weights: LossWeights { mse: 0.1, ..itc },
    };
    let contrastive = Member {
        seed: 13,
        items: 3,
        paired: true,
        longest: 13,
        lr: 1e-2,
        weights: LossWeights {
            partner_anchor: 0.3,
            stop_partner: true,
            ..itc
        },
    };
    [baseline, mse, contrastive]
}

impl Member {
    /// Its texts and images at a step: by its seed and the step alone.
    fn data(&self, c: &TextConfig, step: u32) -> MemberData {
        let seed = self.seed * 1000 + u64::from(step);
        let items = self.items + step as usize % 2;
        MemberData::new(
            seed,
            (items, self.paired),
            self.longest,
            (c.vocab, c.embed_dim),
        )
    }

    fn step(&self, step: u32) -> MemberStep {
        MemberStep {
            seed: self.seed,
            step,
            weights: self.weights,
            loss_scale: 1.0,
            adam: Adam {
                lr: self.lr,
                weight_decay: 0.01,
                clip_norm: 1.0,
                ..Adam::default()
            },
            ..MemberStep::default()
        }
    }
}

/// What a member has after some steps.
#[derive(Clone, Default)]
struct Trace {
    /// The objective's four terms and the norm of the gradient, step by step.
    reports: Vec<f32>,
    values: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    adam_steps: u32,
}

impl Trace {
    fn assert_same(&self, other: &Trace, what: &str) {
        let pairs = [
            ("reports", &self.reports, &other.reports),
            ("values", &self.values, &other.values),
            ("first moments", &self.m, &other.m),
            ("second moments", &self.v, &other.v),
        ];
        for (name, a, b) in pairs {
            assert_eq!(a.len(), b.len(), "{what}: {name}");
            let differ = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits());
            if let Some(i) = differ {
                panic!("{what}: {name}[{i}] is {} and {}", a[i], b[i]);
            }
        }
        assert_eq!(self.adam_steps, other.adam_steps, "{what}: Adam's steps");
    }
}

/// How a run is laid out and what spoils it.
struct Run<'a> {
    members: &'a [Member],
    threads: usize,
    steps: u32,
    spread: bool,
    bucket: Option<Bucket>,
    spoil: &'a dyn Fn(u32, usize, &mut MemberData),
}

impl<'a> Run<'a> {
    fn new(members: &'a [Member]) -> Run<'a> {
        Run {
            members,
            threads: 2,
            steps: 3,
            spread: false,
            bucket: None,
            spoil: &|_, _, _| {},
        }
    }

    /// Trains all members together; returns each one's trace.
    fn traces(&self, adapter: &Adapter) -> Vec<Trace> {
        let c = tiny::config();
        let program = TrainProgram::new(&c, true, adapter, DROPOUT);
        let seeds: Vec<u64> = self.members.iter().map(|m| m.seed).collect();
        let mut state = tiny::state(&program.graph, &seeds);
        let frozen = tiny::frozen(&program.graph);
        let pool = tiny::pool(self.threads);
        let mut exec = CpuExecutor::new(program.graph.clone(), frozen, &state, pool);
        if self.spread {
            exec = exec.spread();
        }
        if let Some(bucket) = self.bucket {
            exec = exec.with_bucket(bucket);
        }
        let mut traces = vec![Trace::default(); self.members.len()];
        for step in 0..self.steps {
            let mut data: Vec<MemberData> = self.members.iter().map(|m| m.data(&c, step)).collect();
            for (g, data) in data.iter_mut().enumerate() {
                (self.spoil)(step, g, data);
            }
            let batch = tiny::pack(&data.iter().collect::<Vec<_>>(), adapter.layout(&c));
            let steps: Vec<MemberStep> = self.members.iter().map(|m| m.step(step)).collect();
            exec.run(&mut state, &batch, &steps).expect("ran");
            let l = program.losses;
            let terms = [
                l.image_anchor,
                l.mse,
                l.partner_anchor,
                l.image_partner,
                program.grad_norm,
            ];
            for id in terms {
                for (trace, x) in traces.iter_mut().zip(exec.output(id)) {
                    trace.reports.push(x);
                }
            }
        }
        for (g, trace) in traces.iter_mut().enumerate() {
            keep(trace, &state, g);
        }
        traces
    }
}

fn keep(trace: &mut Trace, state: &TrainState, g: usize) {
    for t in 0..state.tensors.len() {
        let range = state.range(t, g);
        trace.values.extend(&state.values[range.clone()]);
        trace.m.extend(&state.m[range.clone()]);
        trace.v.extend(&state.v[range]);
    }
    trace.adam_steps = state.adam_steps[g];
}

fn assert_finite(trace: &Trace, what: &str) {
    let finite = |x: &[f32]| x.iter().all(|v| v.is_finite());
    assert!(finite(&trace.reports) && finite(&trace.values), "{what}");
}

/// Members of every kind of adapter that may have company.
fn adapters() -> Vec<Adapter> {
    let none = Adapter::default();
    let layer_norms = Adapter {
        layer_norms: true,
        ..none.clone()
    };
    vec![
        tiny::everything(3),
        Adapter::lora(8),
        Adapter::cross(2),
        Adapter::bottleneck(7),
        tiny::parallel(7),
        tiny::compacter(5, 7),
        Adapter::prompt(3),
        Adapter::bitfit(),
        layer_norms,
        Adapter { head: true, ..none },
    ]
}

/// Invariant 1.
#[test]
fn same_bits_in_company() {
    for adapter in adapters() {
        let members = members();
        let company = Run::new(&members).traces(&adapter);
        for (g, member) in members.iter().enumerate() {
            let alone = Run::new(std::slice::from_ref(member)).traces(&adapter);
            assert_finite(&alone[0], "alone");
            assert_eq!(alone[0].adam_steps, 3, "member {g} skipped a step");
            company[g].assert_same(&alone[0], &format!("member {g}"));
        }
    }
}

/// Invariants 1 and 4: what is not finite stays with its member, and skips its step.
#[test]
fn an_overflow_stays_with_its_member() {
    let (members, adapter) = (members(), tiny::everything(3));
    let clean = Run::new(&members).traces(&adapter);
    for bad in [f32::NAN, f32::INFINITY] {
        for sick in 0..members.len() {
            let spoil = |step: u32, g: usize, data: &mut MemberData| {
                if (step, g) == (1, sick) {
                    data.images_mut()[5] = bad;
                }
            };
            let run = |steps| {
                Run {
                    steps,
                    spoil: &spoil,
                    ..Run::new(&members)
                }
                .traces(&adapter)
            };
            let (before, during, after) = (run(1), run(2), run(3));
            for g in (0..members.len()).filter(|g| *g != sick) {
                after[g].assert_same(&clean[g], &format!("{bad} in {sick}, member {g}"));
            }
            let norm = *during[sick].reports.last().expect("a norm");
            assert!(!norm.is_finite(), "the norm is {norm}");
            let still = Trace {
                reports: before[sick].reports.clone(),
                ..during[sick].clone()
            };
            still.assert_same(&before[sick], &format!("{bad}: the skipped step of {sick}"));
            assert_eq!(after[sick].adam_steps, 2, "a skipped step does not count");
            assert_finite(
                &Trace {
                    reports: vec![],
                    ..after[sick].clone()
                },
                "after",
            );
        }
    }
}

/// The same where a member drives its own weights to infinity.
#[test]
fn a_member_that_diverges_stays_alone() {
    let adapter = tiny::everything(3);
    let calm = members();
    let clean = Run::new(&calm).traces(&adapter);
    let mut wild = calm;
    wild[1].lr = 1e30;
    let traces = Run::new(&wild).traces(&adapter);
    assert!(
        traces[1].reports.iter().any(|x| !x.is_finite()),
        "did not diverge"
    );
    for g in [0, 2] {
        traces[g].assert_same(&clean[g], &format!("member {g} beside one that diverges"));
    }
}

/// Invariant 2: with any number of threads and any order of members.
#[test]
fn random_numbers_by_name() {
    let members = members();
    for adapter in [tiny::everything(3), Adapter::prompt(3)] {
        let two = Run::new(&members).traces(&adapter);
        for threads in [1, 3, 5] {
            let other = Run {
                threads,
                ..Run::new(&members)
            }
            .traces(&adapter);
            for (g, trace) in other.iter().enumerate() {
                trace.assert_same(&two[g], &format!("{threads} threads, member {g}"));
            }
        }
        let [a, b, c] = members;
        let turned = Run::new(&[c, a, b]).traces(&adapter);
        for (g, place) in [(0, 1), (1, 2), (2, 0)] {
            turned[place].assert_same(&two[g], &format!("member {g} in another place"));
        }
    }
}

/// Invariant 2: the seed and the step choose the numbers, nothing else does.
#[test]
fn another_seed_drops_others() {
    let member = [members()[0]];
    let c = tiny::config();
    let program = TrainProgram::new(&c, true, &tiny::everything(3), DROPOUT);
    let frozen = tiny::frozen(&program.graph);
    let features = |seed: u64, step: u32| {
        let mut state = tiny::state(&program.graph, &[1]);
        let graph = program.graph.clone();
        let mut exec = CpuExecutor::new(graph, frozen.clone(), &state, tiny::pool(1));
        let data = member[0].data(&c, 0);
        let batch = tiny::pack(&[&data], Adapter::default().layout(&c));
        let step = MemberStep {
            seed,
            ..member[0].step(step)
        };
        exec.run(&mut state, &batch, &[step]).expect("ran");
        exec.output(program.features)
    };
    assert_eq!(features(1, 0), features(1, 0));
    assert_ne!(features(1, 0), features(2, 0), "another seed");
    assert_ne!(features(1, 0), features(1, 1), "another step");
    // Beyond 32 bits too.
    assert_ne!(
        features(1, 0),
        features(1 | 1 << 32, 0),
        "the seed's upper half"
    );
}

/// Invariant 5: ten steps of different T and B under one larger plan, and each under its own.
#[test]
fn the_bucket_does_not_matter() {
    let (members, adapter) = (members(), tiny::everything(3));
    let own = Run {
        steps: 10,
        ..Run::new(&members)
    }
    .traces(&adapter);
    let bucket = Bucket {
        tokens: 1056,
        seqs: 208,
        items: 104,
        members: members.len(),
    };
    for spread in [false, true] {
        let run = Run {
            steps: 10,
            spread,
            bucket: Some(bucket),
            ..Run::new(&members)
        };
        for (g, trace) in run.traces(&adapter).iter().enumerate() {
            assert_finite(trace, "one bucket");
            trace.assert_same(&own[g], &format!("one bucket, spread {spread}, member {g}"));
        }
    }
}

/// Nobody reads what nobody wrote: freed places filled with NaN change nothing.
#[test]
fn reused_memory_does_not_matter() {
    let all = members();
    let cases = [
        (tiny::everything(3), &all[..]),
        (Adapter::lora(8), &all[..]),
        (Adapter::bitfit(), &all[..]),
        (Adapter::bottleneck(7), &all[..]),
        (tiny::parallel(7), &all[..]),
        (tiny::compacter(5, 7), &all[..]),
        (Adapter::prompt(3), &all[..]),
        (Adapter::full(), &all[1..2]),
    ];
    for (adapter, members) in cases {
        let packed = Run::new(members).traces(&adapter);
        let spread = Run {
            spread: true,
            ..Run::new(members)
        };
        for (g, trace) in spread.traces(&adapter).iter().enumerate() {
            assert_finite(trace, "spread");
            trace.assert_same(&packed[g], &format!("spread, member {g}"));
        }
    }
}

/// Full training alone gives the same bytes with any number of threads.
#[test]
fn full_training_does_not_depend_on_threads() {
    let member = [members()[1]];
    let adapter = Arc::new(Adapter::full());
    let one = Run {
        threads: 1,
        ..Run::new(&member)
    }
    .traces(&adapter);
    for threads in [2, 3, 5] {
        let other = Run {
            threads,
            ..Run::new(&member)
        };
        other.traces(&adapter)[0].assert_same(&one[0], &format!("{threads} threads"));
    }
}
