//! The CUDA executor as a whole: what is launched, replayed and placed, members in company, and the
//! command line. In the virtual machine; members, replays and the command line on a GPU too, with
//! `CROSSTUNE_TEST_DEVICE=cuda:N`.
#![cfg(feature = "cuda")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::counting::{Counting, Counts};
use common::kernel_model::{config, data, executor, member};
use common::tiny::{self, MemberData};
use common::world::World;
use crosstune::adapter::Adapter;
use crosstune::cuda::device::Device;
use crosstune::cuda::vm::{VmDriver, VmOptions};
use crosstune::device::VmArena;
use crosstune::error::Error;
use crosstune::exec::cuda::CudaExecutor;
use crosstune::exec::cuda::memory::{Memory, Room};
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, MemberStep, Pass};
use crosstune::graph::Bucket;
use crosstune::graph::plan::Reuse;
use crosstune::model::text::DropoutRates;
use crosstune::ops::Op;
use crosstune::profile::card;
use crosstune::train::program::TrainProgram;
use crosstune::train::step::{Round, StepRunner};
use crosstune::weights::config::TextConfig;
use crosstune::weights::published;

const DROPOUT: DropoutRates = DropoutRates {
    hidden: 0.1,
    attention: 0.1,
};

/// How far the gradients of a step in pieces may be off, over a tensor's largest; measured 3.0e-7.
const PIECES: f32 = 3e-6;

/// Steps of a run.
const STEPS: u32 = 6;

/// Every adapter that has kernels of its own, with several members.
fn adapters() -> [(&'static str, Adapter); 4] {
    [
        ("everything", tiny::everything(3)),
        ("bottleneck", Adapter::bottleneck(7)),
        ("compacter", tiny::compacter(4, 6)),
        ("prompt", Adapter::prompt(3)),
    ]
}

/// The state after steps of members whose texts change in number and length from step to step, and
/// how many of the steps were replayed.
fn train(
    device: &Device,
    adapter: &Adapter,
    members: &[u64],
    capture: bool,
) -> (TrainState, usize) {
    let c = config();
    let program = TrainProgram::new(&c, true, adapter, DROPOUT);
    let mut state = tiny::state(&program.graph, members);
    let exec = executor(device, &program, &state);
    let mut exec = match capture {
        true => exec,
        false => exec.without_capture(),
    };
    for step in 0..STEPS {
        let data: Vec<MemberData> = members
            .iter()
            // Few and short texts: most steps share a bucket.
            .map(|g| data(&c, g * 10 + u64::from(step), 3 + (step as usize % 2), 4))
            .collect();
        let batch = tiny::pack(&data.iter().collect::<Vec<_>>(), adapter.layout(&c));
        let steps: Vec<MemberStep> = members.iter().map(|g| spoilt(*g, step)).collect();
        exec.run(&mut state, &batch, &steps).expect("ran");
    }
    exec.store(&mut state).expect("stored");
    (state, exec.n_replays())
}

/// Member 7 overflows at its second step.
fn spoilt(seed: u64, step: u32) -> MemberStep {
    let mut s = member(seed, step);
    if (seed, step) == (7, 1) {
        s.loss_scale = 2f32.powi(100);
    }
    s
}

fn vm() -> Device {
    common::device(VmArena::Packed)
}

fn counting() -> (Device, Arc<Counts>) {
    Counting::open(VmDriver::new(VmOptions::default()), Reuse::Packed)
}

#[test]
fn replayed_steps_give_the_bytes_of_launched_ones() {
    for (name, adapter) in adapters() {
        let (replayed, n) = train(&vm(), &adapter, &[1], true);
        // Texts of several numbers and lengths share a bucket, or nothing is replayed.
        assert!(n >= 2, "{name}: {n} replays");
        let (launched, none) = train(&common::device(VmArena::Spread), &adapter, &[1], false);
        assert_eq!(none, 0, "{name}");
        assert_eq!(replayed.values, launched.values, "{name}");
        assert_eq!(replayed.m, launched.m, "{name}");
        assert_eq!(replayed.adam_steps, [STEPS], "{name}");
    }
}

#[test]
fn a_member_in_company_gives_its_own_bytes() {
    for (name, adapter) in adapters() {
        let (company, _) = train(&vm(), &adapter, &[1, 7, 2], true);
        assert_eq!(
            company.adam_steps,
            [STEPS, STEPS - 1, STEPS],
            "{name}: 7 skips a step"
        );
        for (g, seed) in [1u64, 7, 2].into_iter().enumerate() {
            let (alone, _) = train(&vm(), &adapter, &[seed], true);
            for t in 0..alone.tensors.len() {
                let what = &alone.tensors[t].name;
                assert_eq!(
                    company.value(t, g),
                    alone.value(t, 0),
                    "{name}: {what} of {seed}"
                );
            }
        }
    }
}

/// Launches of the tower, forward and backward.
fn launches(layers: usize, adapter: &Adapter) -> [usize; 2] {
    let c = TextConfig { layers, ..config() };
    let (device, counts) = counting();
    let program = TrainProgram::new(&c, true, adapter, DropoutRates::NONE);
    let mut state = tiny::state(&program.graph, &[1]);
    let mut exec = executor(&device, &program, &state);
    let data = data(&c, 5, 3, 9);
    let batch = tiny::pack(&[&data], adapter.layout(&c));
    let steps = [member(1, 0)];
    let parts = program.parts.clone();
    let mut count = |nodes| {
        let before = counts.launches.load(Ordering::Relaxed);
        let pass = Pass {
            nodes,
            batch: &batch,
            steps: &steps,
            given: &[],
        };
        exec.pass(&mut state, &pass).expect("ran");
        counts.launches.load(Ordering::Relaxed) - before
    };
    count(parts.begin);
    let forward = count(parts.tower);
    count(parts.objective);
    [forward, count(parts.tower_grad)]
}

#[test]
fn a_layer_takes_few_launches() {
    let adapter = Adapter::lora(8);
    let (three, two) = (launches(3, &adapter), launches(2, &adapter));
    let [forward, backward] = [three[0] - two[0], three[1] - two[1]];
    println!("launches a layer: {forward} forward, {backward} backward");
    assert!(forward <= 9, "{forward} launches forward");
    assert!(backward <= 14, "{backward} launches backward");
}

/// The model of time counts the launches that there are, node by node.
#[test]
fn each_node_launches_what_the_model_of_time_counts() {
    let mut all = adapters().to_vec();
    all.push(("full", Adapter::full()));
    for (name, adapter) in all {
        let c = config();
        let (device, counts) = counting();
        let program = TrainProgram::new(&c, true, &adapter, DropoutRates::NONE);
        let mut state = tiny::state(&program.graph, &[1]);
        let mut exec = executor(&device, &program, &state);
        let data = data(&c, 5, 3, 9);
        let batch = tiny::pack(&[&data], adapter.layout(&c));
        let steps = [member(1, 0)];
        for (i, op) in program.graph.nodes.iter().enumerate() {
            let before = counts.launches.load(Ordering::Relaxed);
            let pass = Pass {
                nodes: i..i + 1,
                batch: &batch,
                steps: &steps,
                given: &[],
            };
            exec.pass(&mut state, &pass).expect("ran");
            let found = counts.launches.load(Ordering::Relaxed) - before;
            // It fills, which is no kernel.
            let fills = usize::from(matches!(op, Op::ZeroGrads(_)));
            assert_eq!(
                found + fills,
                card::launches(op),
                "{name}: {i} {}",
                op.name()
            );
        }
    }
}

/// Gradients of a step of two rounds, in pieces of at most `max_tokens`.
fn gradients(device: &Device, max_tokens: Option<usize>) -> TrainState {
    let (c, adapter) = (config(), tiny::everything(3));
    let program = TrainProgram::new(&c, true, &adapter, DROPOUT);
    let mut state = tiny::state(&program.graph, &[1, 2]);
    let exec = executor(device, &program, &state);
    let mut runner = StepRunner::new(program, Box::new(exec), max_tokens);
    let round = |seed: u64| {
        let members = [data(&c, seed, 5, 9), data(&c, seed + 1, 3, 9)];
        Round {
            batch: tiny::pack(&[&members[0], &members[1]], adapter.layout(&c)),
            steps: vec![member(1, 0), member(2, 0)],
        }
    };
    let rounds = [round(20), round(30)];
    runner.step(&mut state, &rounds).expect("ran");
    runner.store(&mut state).expect("stored");
    state
}

/// Features and their gradients travel through the host as the f16 that they are; sums of f16
/// activations begin anew in each piece.
#[test]
fn a_step_in_pieces_has_the_gradients_of_a_whole_one() {
    let (whole, cut) = (gradients(&vm(), None), gradients(&vm(), Some(20)));
    let mut worst = 0f32;
    for t in 0..whole.tensors.len() {
        for g in 0..2 {
            let range = whole.range(t, g);
            let (got, want) = (&cut.grads[range.clone()], &whole.grads[range]);
            let largest = want.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
            worst = worst.max(common::max_diff(got, want) / largest);
        }
    }
    println!("worst difference over a tensor's largest gradient: {worst:.1e}");
    assert!(worst <= PIECES, "{worst:.1e}");
}

/// What a step of `items` items leaves, or why it failed.
fn one_step(
    exec: &mut CudaExecutor,
    state: &mut TrainState,
    items: usize,
) -> std::result::Result<(), Error> {
    let c = config();
    let batch = tiny::pack(&[&data(&c, 5, items, 9)], Adapter::lora(2).layout(&c));
    exec.run(state, &batch, &[member(1, 0)])
}

#[test]
fn a_device_that_fails_ends_the_step_in_a_sentence() {
    let program = TrainProgram::new(&config(), true, &Adapter::lora(2), DROPOUT);
    let after = |fail_at: Option<(usize, usize)>| {
        let (device, counts) = counting();
        let mut state = tiny::state(&program.graph, &[1]);
        let mut exec = executor(&device, &program, &state);
        for step in 0..4 {
            if let Some((_, launch)) = fail_at.filter(|(at, _)| *at == step) {
                let next = counts.launches.load(Ordering::Relaxed) + launch;
                counts.lost_at.store(next, Ordering::Relaxed);
                let error = one_step(&mut exec, &mut state, 3).expect_err("it fails");
                assert_eq!(error.to_string(), "launch: the device was lost");
                assert_eq!(error.exit_code(), 1);
            }
            one_step(&mut exec, &mut state, 3).expect("ran");
        }
        exec.store(&mut state).expect("stored");
        state.values
    };
    let undisturbed = after(None);
    // Launched by itself, and while a capture is under way.
    for fail_at in [(0, 5), (1, 7)] {
        assert_eq!(after(Some(fail_at)), undisturbed, "{fail_at:?}");
    }
}

#[test]
fn a_step_too_large_for_the_device_leaves_it_usable() {
    let program = TrainProgram::new(&config(), true, &Adapter::lora(2), DROPOUT);
    let (device, counts) = counting();
    let mut state = tiny::state(&program.graph, &[1]);
    let mut exec = executor(&device, &program, &state);
    (0..3).for_each(|_| one_step(&mut exec, &mut state, 3).expect("ran"));
    counts.room.store(exec.arena_bytes(), Ordering::Relaxed);
    let error = one_step(&mut exec, &mut state, 40).expect_err("no room");
    let text = error.to_string();
    assert!(
        text.contains("no room for") && text.contains("(activations)"),
        "{text}"
    );
    assert!(
        exec.output(program.features)
            .expect("nothing to read")
            .is_empty()
    );
    one_step(&mut exec, &mut state, 3).expect("a small one fits again");
}

/// XLM-R Large, LoRA on query and value, layer norms trained.
#[test]
fn the_arena_of_a_large_model_is_small() {
    let config = published::find(published::PAPERS).expect("published");
    let program = TrainProgram::new(&config, true, &Adapter::lora(8), DropoutRates::NONE);
    let bytes = |tokens: usize| {
        let room = Room {
            bucket: Bucket {
                tokens,
                seqs: tokens / 20,
                items: tokens / 20,
                members: 1,
            },
            longest: 64,
            prompt: 0,
        };
        Memory::planned_bytes(&program.graph, &room, Reuse::Packed) as f64
    };
    let slope = (bytes(4224) - bytes(1056)) / (4224.0 - 1056.0);
    println!("{:.0} KB a token", slope / 1e3);
    assert!(slope <= 600e3, "{slope} bytes a token");
}

/// What a run on `device` learns of its 20 training items: mean R@1 and R@5 from image to text, in
/// items, before and after; and its adapter.
fn learnt(world: &World, device: &str) -> ([f64; 4], Vec<u8>) {
    let data = [
        "--model=model",
        "--jsonl=world.jsonl",
        "--features=features.safetensors",
        "--lang=de",
        "--shots=20",
        "--threads=1",
        "--json",
    ];
    let device_arg = format!("--device={device}");
    let out = format!("--out={device}");
    let train = [
        "train",
        "--strategy=baseline1",
        "--rank=8",
        "--train-head",
        "--head-lr=2e-2",
        "--lr=3e-2",
        "--epochs=24",
        "--batch=20",
        "--dropout=0",
        "--eval-every=0",
        "--seed=3",
        out.as_str(),
        device_arg.as_str(),
    ];
    world.run(train.iter().chain(&data)).ok();
    let file = format!("{device}/adapter_last.safetensors");
    let recall = |adapter: &str| {
        let adapter = format!("--adapter=de={adapter}");
        let args = ["eval", "--split=train", &adapter, &device_arg];
        let json = world.run(args.iter().chain(&data)).ok().json();
        let items = |k: usize| json["languages"][0]["i2t"][k].as_f64().expect("recall") * 20.0;
        [items(0), items(1)]
    };
    let ([a, b], [c, d]) = (recall("none"), recall(&file));
    ([a, b, c, d], world.read(&file))
}

#[test]
fn a_run_from_the_command_line_learns_what_the_cpus_learns() {
    let world = World::new();
    let name = std::env::var("CROSSTUNE_TEST_DEVICE").unwrap_or("vm".into());
    let ((cpu, of_cpu), (it, of_it)) = (learnt(&world, "cpu"), learnt(&world, &name));
    let both = format!("CPU {cpu:?}, {name} {it:?}");
    println!("i2t R@1 and R@5 of 20 items, before and after: {both}");
    for k in 0..4 {
        assert!((cpu[k] - it[k]).abs() <= 2.0, "{both}");
    }
    for [r1, r5, after1, after5] in [cpu, it] {
        assert!(after1 > r1 && after5 > r5, "{both}");
    }
    assert_ne!(of_cpu, of_it, "the same adapter: did the kernels run?");
}
