//! What an executor takes on a device, and that it gives it back: at its end, when it could not be made,
//! when it plans anew, after a panic. And that a sweep's groups fit, or go on where they fitted once. In
//! the virtual machine, which knows every byte.
#![cfg(feature = "cuda")]

mod common;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use common::counting::{Counting, Counts};
use common::kernel_model::{config, data, executor, member, source};
use common::tiny;
use common::world::World;
use crosstune::adapter::Adapter;
use crosstune::cuda::device::Device;
use crosstune::cuda::vm::{VmDriver, VmOptions};
use crosstune::data::features::Features;
use crosstune::data::{JsonlFiles, Protocol, Shots, Source};
use crosstune::device::{DeviceChoice, VmArena};
use crosstune::engine::{Engine, EngineOptions};
use crosstune::error::Error;
use crosstune::exec::Executor;
use crosstune::exec::cuda::memory::Room;
use crosstune::exec::cuda::{CudaExecutor, planned_bytes};
use crosstune::exec::state::TrainState;
use crosstune::graph::plan::Reuse;
use crosstune::model::text::DropoutRates;
use crosstune::sweep::Spec;
use crosstune::sweep::pack::{self, Limits};
use crosstune::sweep::run::{Event, Sweep};
use crosstune::tensor::Dtype;
use crosstune::text::pack::Batch;
use crosstune::train::config::{MemberConfig, Shared};
use crosstune::train::languages::{Languages, Reader};
use crosstune::train::objective::Strategy;
use crosstune::train::program::{EncodeProgram, TrainProgram};
use crosstune::weights::view::TensorView;

fn vm() -> VmDriver {
    VmDriver::new(VmOptions::default())
}

fn used(device: &Device) -> u64 {
    let memory = device.memory().expect("told");
    memory.total - memory.free
}

fn program() -> TrainProgram {
    TrainProgram::new(&config(), true, &tiny::everything(3), DropoutRates::NONE)
}

fn batch(items: usize) -> Batch {
    let c = config();
    tiny::pack(&[&data(&c, 5, items, 4)], tiny::everything(3).layout(&c))
}

fn step(exec: &mut CudaExecutor, state: &mut TrainState, items: usize) {
    let steps = [member(1, 0)];
    exec.run(state, &batch(items), &steps).expect("ran");
}

#[test]
fn an_executor_gives_back_what_it_took() {
    let program = program();
    for reuse in [Reuse::Packed, Reuse::Spread] {
        let (device, counts) = Counting::open(vm(), reuse);
        let mut state = tiny::state(&program.graph, &[1]);
        let one_room = {
            let mut exec = executor(&device, &program, &state);
            step(&mut exec, &mut state, 3);
            used(&device)
        };
        // The frozen weights stay for the next one.
        let weights = used(&device);
        let planned = planned_bytes(&program.graph, 1, (&[Room::of(&batch(3))], reuse));
        match reuse {
            Reuse::Packed => assert_eq!(one_room - weights, planned),
            Reuse::Spread => assert!(one_room - weights <= planned, "{one_room} {planned}"),
        }
        let mut exec = executor(&device, &program, &state);
        for items in [3, 3, 3, 9, 9, 9] {
            step(&mut exec, &mut state, items);
        }
        // Captured lists of the smaller room named memory that moved.
        let graphs = counts.graphs.load(Relaxed);
        assert_eq!(graphs, if reuse == Reuse::Packed { 1 } else { 2 });
        let largest = planned_bytes(&program.graph, 1, (&[Room::of(&batch(9))], reuse));
        if reuse == Reuse::Packed {
            assert_eq!(used(&device) - weights, largest);
        }
        drop(exec);
        assert_eq!((used(&device), counts.graphs.load(Relaxed)), (weights, 0));
    }
}

#[test]
fn an_executor_that_cannot_be_made_leaves_nothing() {
    let program = program();
    let state = tiny::state(&program.graph, &[1]);
    let frozen = tiny::frozen(&program.graph);
    let whole = {
        let device = Device::new(Box::new(vm()), Reuse::Packed);
        let exec = executor(&device, &program, &state);
        let whole = used(&device);
        drop(exec);
        whole
    };
    for twelfths in 0..12 {
        let driver = vm().with_memory(whole * twelfths / 12);
        let device = Device::new(Box::new(driver), Reuse::Packed);
        let graph = program.graph.clone();
        let made = CudaExecutor::new(&device, &|name| source(&frozen, name), graph, &state);
        let error = made.err().expect("no room").to_string();
        assert!(error.contains("no room for"), "{error}");
        assert_eq!(used(&device), 0, "{twelfths}: {error}");
    }
    // Weights that the device can't hold.
    let device = Device::new(Box::new(vm()), Reuse::Packed);
    let huge = [1e6f32; 24 * 41];
    let spoilt = |name: &str| match name.ends_with("layer.1.output.dense.weight") {
        true => Ok(TensorView {
            dtype: Dtype::F32,
            shape: &[],
            bytes: bytemuck::cast_slice(&huge),
        }),
        false => source(&frozen, name),
    };
    let made = CudaExecutor::new(&device, &spoilt, program.graph.clone(), &state);
    let error = made.err().expect("not f16").to_string();
    assert!(error.contains("which f16 can't"), "{error}");
    assert_eq!(used(&device), 0);
}

/// Values after steps of few, many and few items; the most memory in use, and how often some of it was
/// given back on the way.
fn there_and_back((device, counts): (Device, Arc<Counts>)) -> (Vec<f32>, u64, usize) {
    let program = program();
    let mut state = tiny::state(&program.graph, &[1]);
    let mut exec = executor(&device, &program, &state);
    let mut most = 0;
    for items in [3, 3, 9, 9, 3, 3] {
        step(&mut exec, &mut state, items);
        most = most.max(used(&device));
    }
    exec.store(&mut state).expect("stored");
    (state.values, most, counts.frees.load(Relaxed))
}

#[test]
fn rooms_make_way_for_others_where_memory_is_short() {
    for reuse in [Reuse::Packed, Reuse::Spread] {
        let (want, most, frees) = there_and_back(Counting::open(vm(), reuse));
        let short = vm().with_memory(most - 1);
        let (got, _, more) = there_and_back(Counting::open(short, reuse));
        assert!(more > frees, "{reuse:?}: {more} of {frees}");
        assert!(got == want, "{reuse:?}");
    }
}

#[test]
fn steps_that_there_is_no_room_to_capture_are_launched() {
    let program = program();
    let after = |no_graphs: usize| {
        let (device, counts) = Counting::open(vm(), Reuse::Packed);
        counts.no_graphs.store(no_graphs, Relaxed);
        let mut state = tiny::state(&program.graph, &[1]);
        let mut exec = executor(&device, &program, &state);
        // The larger room comes first: it is there still when the smaller one comes.
        for items in [9, 9, 9, 3, 3, 3, 9] {
            step(&mut exec, &mut state, items);
        }
        exec.store(&mut state).expect("stored");
        let seen = (counts.graphs.load(Relaxed), exec.n_replays());
        drop(exec);
        assert_eq!(counts.graphs.load(Relaxed), 0);
        (state.values, seen)
    };
    let (want, all) = after(0);
    let (got, one) = after(1);
    assert_eq!((all, one), ((2, 3), (1, 1)));
    assert!(got == want);
}

#[test]
fn marks_of_an_observed_executor_are_given_back() {
    let program = program();
    let (device, counts) = Counting::open(vm(), Reuse::Packed);
    let mut state = tiny::state(&program.graph, &[1]);
    let mut exec = executor(&device, &program, &state);
    exec.observe(Box::new(|_| {}));
    (0..2).for_each(|_| step(&mut exec, &mut state, 3));
    let n_nodes = program.graph.nodes.len();
    assert_eq!(counts.events.load(Relaxed), n_nodes + 1);
    drop(exec);
    assert_eq!(counts.events.load(Relaxed), 0);
}

#[test]
fn a_panic_in_a_capture_leaves_the_device_usable() {
    let program = program();
    let after = |panics: bool| {
        let (device, counts) = Counting::open(vm(), Reuse::Packed);
        let mut state = tiny::state(&program.graph, &[1]);
        let mut exec = executor(&device, &program, &state);
        step(&mut exec, &mut state, 3);
        if panics {
            let next = counts.launches.load(Relaxed) + 7;
            counts.panic_at.store(next, Relaxed);
            let run = || step(&mut exec, &mut state, 3);
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert_eq!(counts.graphs.load(Relaxed), 0);
        }
        (0..3).for_each(|_| step(&mut exec, &mut state, 3));
        assert_eq!(exec.n_replays(), 2);
        exec.store(&mut state).expect("stored");
        drop(exec);
        assert_eq!(counts.graphs.load(Relaxed), 0);
        state.values
    };
    assert!(after(true) == after(false));
}

/// Four members of one kind.
fn specs() -> Vec<Spec> {
    let spec = |lr: f64| Spec {
        name: format!("lr{lr}"),
        row: "baseline1".into(),
        languages: vec!["de".into()],
        shared: Shared {
            adapter: Adapter::lora(2),
            ..Shared::default()
        },
        config: MemberConfig {
            strategy: Strategy::Baseline1,
            lr,
            epochs: 1,
            batch: 5,
            eval_every: 2,
            ..MemberConfig::default()
        },
        init: None,
    };
    [1e-3, 2e-3, 3e-3, 4e-3].map(spec).into()
}

/// A sweep on a machine.
struct Swept {
    engine: Engine,
    languages: Languages,
    specs: Vec<Spec>,
    limits: Limits,
}

impl Swept {
    fn open(w: &World, driver: VmDriver, members: usize) -> Swept {
        let device = Device::new(Box::new(driver), Reuse::Packed);
        let options = EngineOptions {
            threads: Some(1),
            device: DeviceChoice::Vm(VmArena::Packed),
        };
        let engine = Engine::open_on(&w.path("model"), options, device).expect("opened");
        let limits = Limits {
            members,
            memory: engine.training_memory(None).expect("told"),
        };
        let source = Source::Jsonl(JsonlFiles::One(w.path("world.jsonl")));
        let protocol = Protocol {
            shots: Shots::Few(10),
            ..Protocol::default()
        };
        let file = w.path("features.safetensors");
        let features = Features::load(&file).expect("features");
        let reader = Reader {
            engine: &engine,
            source: &source,
            protocol: &protocol,
            features: &features,
            file: &file,
        };
        let wanted = [("de".to_string(), vec![Strategy::Baseline1])];
        let languages = reader.read(&wanted).expect("read");
        Swept {
            languages,
            specs: specs(),
            limits,
            engine,
        }
    }

    /// Members and bytes of all groups.
    fn groups(&self) -> Result<Vec<(usize, u64)>, Error> {
        let all: Vec<usize> = (0..self.specs.len()).collect();
        let chosen = (&self.specs[..], &all[..]);
        let groups = pack::pack(&self.engine, chosen, &self.languages, self.limits)?;
        Ok(groups.iter().map(|g| (g.members.len(), g.bytes)).collect())
    }

    /// Runs it in a folder, until so many steps of members are done; says with how many members and
    /// at which step each group began.
    fn run(&self, w: &World, out: &str, steps: usize) -> Result<Vec<(usize, usize)>, Error> {
        let folder = w.path(out);
        std::fs::create_dir_all(&folder).expect("made");
        let sweep = Sweep {
            engine: &self.engine,
            folder: &folder,
            model: "model",
            specs: &self.specs,
            languages: &self.languages,
            limits: self.limits,
            save_every: 100,
        };
        let mut begun = Vec::new();
        let ran = sweep.run(&mut |event| {
            match event {
                Event::Group { group, step } => begun.push((group.members.len(), step)),
                Event::Step { done, .. } if done >= steps => return ControlFlow::Break(()),
                _ => {}
            }
            ControlFlow::Continue(())
        });
        match ran {
            Ok(_) | Err(Error::Cancelled) => Ok(begun),
            Err(error) => Err(error),
        }
    }
}

/// Bytes of the model's weights on a device.
fn weights(w: &World) -> u64 {
    let engine = Engine::open(&w.path("model"), EngineOptions::default()).expect("opened");
    let model = engine.model();
    let tower = EncodeProgram::new(&model.config, model.head, &Adapter::default());
    Device::vm(VmArena::Packed).missing_bytes(&tower.graph)
}

#[test]
fn groups_of_a_sweep_fit_in_the_devices_memory() {
    let w = World::new();
    let roomy = Swept::open(&w, vm(), 16);
    let all = roomy.groups().expect("packed");
    let pairs = Swept::open(&w, vm(), 2).groups().expect("packed");
    assert_eq!((all.len(), all[0].0, pairs.len()), (1, 4, 2));
    roomy.run(&w, "roomy", usize::MAX).expect("ran");
    // So much that two fit and four don't, beside the weights and what a driver keeps.
    let bytes = weights(&w) + (all[0].1 + pairs[0].1) / 2 / 9 * 10;
    let few = Swept::open(&w, vm().with_memory(bytes), 16);
    assert!(few.groups().expect("packed").len() > 1);
    few.run(&w, "short", usize::MAX).expect("ran");
    let want = common::sweep::results(&w, "roomy");
    assert_eq!(want.len(), 3 * 4 + 2);
    common::sweep::assert_same(&w, "short", &want);
}

#[test]
fn a_member_that_does_not_fit_alone_is_refused_with_what_there_is() {
    let w = World::new();
    let weights = weights(&w);
    let says = |bytes: u64| {
        let none = Swept::open(&w, vm().with_memory(bytes), 16).groups();
        none.expect_err("no room").to_string()
    };
    let alone = says(weights + 1000);
    let needs = "memory: lr0.001 needs 0.001 GiB for its largest step, even alone, and 0.000 GiB are \
        allowed (vm has 0.000 GiB free, the model takes 0.000 GiB, a tenth of the rest is left to the \
        driver); give a smaller batch, --max-tokens, or free memory there";
    assert_eq!(alone, needs);
    let model = says(weights);
    let takes = "memory: vm has 0.000 GiB free, the model takes 0.000 GiB; free some there, or use \
        --device cpu";
    assert_eq!(model, takes);
}

#[test]
fn a_group_that_was_begun_goes_on_in_less_memory_or_says_that_it_does_not_fit() {
    let w = World::new();
    let begun = Swept::open(&w, vm(), 16);
    let bytes = begun.groups().expect("packed")[0].1;
    begun.run(&w, "undisturbed", usize::MAX).expect("ran");
    let want = common::sweep::results(&w, "undisturbed");
    let most = weights(&w) + bytes;
    // Sized to nine tenths of what was free, it goes on where that many bytes are the last ones.
    for (out, less, members) in [("begun", 0, 16), ("again", 1, 16), ("pairs", 0, 2)] {
        let first = begun.run(&w, out, 4).expect("stopped");
        assert_eq!(first, [(4, 0)]);
        let short = Swept::open(&w, vm().with_memory(most - less), members);
        assert!(
            short.groups().expect("packed").len() > 1,
            "a new one would be smaller"
        );
        let checkpoint = w.path(out).join("checkpoint.safetensors");
        let kept = std::fs::read(&checkpoint).expect("a checkpoint");
        match (short.run(&w, out, usize::MAX), out) {
            (went_on, "begun") => assert_eq!(went_on.expect("ran"), [(4, 1)]),
            (refused, _) => {
                let error = refused.expect_err("refused").to_string();
                let why = match out {
                    "pairs" => {
                        "its group has 4 members, and --max-members allows 2; allow as many, or"
                    }
                    _ => "GiB are allowed (vm has 0.002 GiB free, the model takes 0.000 GiB); free",
                };
                assert!(
                    error.contains("/checkpoint.safetensors: its group"),
                    "{error}"
                );
                assert!(error.contains(why), "{error}");
                assert!(std::fs::read(&checkpoint).expect("still there") == kept);
                std::fs::remove_file(&checkpoint).expect("removed");
                let anew = short.run(&w, out, usize::MAX).expect("ran");
                assert!(
                    anew.iter().all(|(n, step)| *n < 4 && *step == 0),
                    "{anew:?}"
                );
            }
        }
        common::sweep::assert_same(&w, out, &want);
    }
}
