//! The CUDA executor as a whole: what is launched, replayed and placed, members in company, and the
//! command line. In the virtual machine.
#![cfg(feature = "cuda")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::tiny::{self, MemberData};
use common::world::{TRAIN, World};
use crosstune::adapter::Adapter;
use crosstune::cuda::device::Device;
use crosstune::cuda::vm::{VmDriver, VmOptions};
use crosstune::cuda::{
    Arg, DevicePtr, Driver, EventId, Geometry, GraphId, KernelFile, KernelId, Result,
};
use crosstune::device::VmArena;
use crosstune::exec::cuda::CudaExecutor;
use crosstune::exec::cuda::memory::{Memory, Room};
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, Frozen, LossWeights, MemberStep, Pass};
use crosstune::graph::Bucket;
use crosstune::graph::plan::Reuse;
use crosstune::model::text::DropoutRates;
use crosstune::tensor::Dtype;
use crosstune::train::program::TrainProgram;
use crosstune::weights::config::TextConfig;
use crosstune::weights::published;
use crosstune::weights::view::TensorView;

const DROPOUT: DropoutRates = DropoutRates {
    hidden: 0.1,
    attention: 0.1,
};

/// Two layers that the kernels take: heads of 8.
fn config() -> TextConfig {
    TextConfig {
        hidden: 24,
        heads: 3,
        ffn: 41,
        ..tiny::config()
    }
}

/// An executor of `program` with random weights.
fn executor(device: &Device, program: &TrainProgram, state: &TrainState) -> CudaExecutor {
    let frozen: Arc<Frozen> = tiny::frozen(&program.graph);
    let shapes: Vec<(String, Vec<usize>)> = program
        .graph
        .values
        .iter()
        .map(|v| (v.name.clone(), vec![]))
        .collect();
    let source = |name: &str| {
        let values = frozen.get(name).expect("a frozen value");
        let shape = shapes.iter().find(|(n, _)| n == name).map(|(_, s)| &s[..]);
        Ok(TensorView {
            dtype: Dtype::F32,
            shape: shape.unwrap_or(&[]),
            bytes: bytemuck::cast_slice(values),
        })
    };
    let mut exec = CudaExecutor::new(device, &source, program.graph.clone(), state).expect("bound");
    exec.load(state).expect("loaded");
    exec
}

fn data(c: &TextConfig, seed: u64, items: usize, longest: usize) -> MemberData {
    MemberData::new(seed, (items, true), longest, (c.vocab, c.embed_dim))
}

fn member(seed: u64, step: u32) -> MemberStep {
    MemberStep {
        seed,
        step,
        loss_scale: 256.0,
        weights: LossWeights {
            image_anchor: 1.0,
            mse: 0.5,
            partner_anchor: 0.25,
            image_partner: 0.125,
            stop_partner: false,
        },
        ..MemberStep::default()
    }
}

/// Every adapter that has kernels of its own, with several members.
fn adapters() -> [(&'static str, Adapter); 4] {
    [
        ("everything", tiny::everything(3)),
        ("bottleneck", Adapter::bottleneck(7)),
        ("compacter", tiny::compacter(4, 6)),
        ("prompt", Adapter::prompt(3)),
    ]
}

/// Values after steps of members whose texts change in number and length from step to step.
fn train(device: &Device, adapter: &Adapter, members: &[u64], capture: bool) -> TrainState {
    let c = config();
    let program = TrainProgram::new(&c, true, adapter, DROPOUT);
    let mut state = tiny::state(&program.graph, members);
    let exec = executor(device, &program, &state);
    let mut exec = match capture {
        true => exec,
        false => exec.without_capture(),
    };
    for step in 0..4u32 {
        let data: Vec<MemberData> = members
            .iter()
            .map(|g| data(&c, g * 10 + u64::from(step), 3 + (step as usize % 2), 9))
            .collect();
        let batch = tiny::pack(&data.iter().collect::<Vec<_>>(), adapter.layout(&c));
        let steps: Vec<MemberStep> = members.iter().map(|g| spoilt(*g, step)).collect();
        exec.run(&mut state, &batch, &steps).expect("ran");
    }
    exec.store(&mut state).expect("stored");
    state
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
    Device::vm(VmArena::Packed)
}

#[test]
fn replayed_steps_give_the_bytes_of_launched_ones() {
    for (name, adapter) in adapters() {
        let replayed = train(&vm(), &adapter, &[1], true);
        let launched = train(&Device::vm(VmArena::Spread), &adapter, &[1], false);
        assert_eq!(replayed.values, launched.values, "{name}");
        assert_eq!(replayed.m, launched.m, "{name}");
        assert_eq!(replayed.adam_steps, [4], "{name}");
    }
}

#[test]
fn a_member_in_company_gives_its_own_bytes() {
    for (name, adapter) in adapters() {
        let company = train(&vm(), &adapter, &[1, 7, 2], true);
        assert_eq!(company.adam_steps, [4, 3, 4], "{name}: 7 skips a step");
        for (g, seed) in [1u64, 7, 2].into_iter().enumerate() {
            let alone = train(&vm(), &adapter, &[seed], true);
            for t in 0..alone.tensors.len() {
                let what = &alone.tensors[t].name;
                assert_eq!(company.value(t, g), alone.value(t, 0), "{name}: {what} of {seed}");
            }
        }
    }
}

/// A virtual machine that counts launches.
struct Counting {
    vm: VmDriver,
    launches: Arc<AtomicUsize>,
}

impl Driver for Counting {
    fn name(&self) -> String {
        self.vm.name()
    }
    fn alloc(&self, bytes: usize, label: &str) -> Result<DevicePtr> {
        self.vm.alloc(bytes, label)
    }
    fn free(&self, ptr: DevicePtr) -> Result<()> {
        self.vm.free(ptr)
    }
    fn copy_in(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        self.vm.copy_in(to, from)
    }
    fn copy_out(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.vm.copy_out(from, to)
    }
    fn fill(&self, ptr: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        self.vm.fill(ptr, value, bytes)
    }
    fn forget(&self, ptr: DevicePtr, bytes: usize) -> Result<()> {
        self.vm.forget(ptr, bytes)
    }
    fn kernel(&self, file: &KernelFile, name: &str) -> Result<KernelId> {
        self.vm.kernel(file, name)
    }
    fn launch(&self, kernel: KernelId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        self.vm.launch(kernel, geometry, args)
    }
    fn record(&self) -> Result<EventId> {
        self.vm.record()
    }
    fn elapsed_ms(&self, from: EventId, to: EventId) -> Result<f32> {
        self.vm.elapsed_ms(from, to)
    }
    fn begin_capture(&self) -> Result<()> {
        self.vm.begin_capture()
    }
    fn end_capture(&self) -> Result<GraphId> {
        self.vm.end_capture()
    }
    fn replay(&self, graph: GraphId) -> Result<()> {
        self.vm.replay(graph)
    }
    fn synchronize(&self) -> Result<()> {
        self.vm.synchronize()
    }
}

/// Launches of the tower, forward and backward.
fn launches(layers: usize, adapter: &Adapter) -> [usize; 2] {
    let c = TextConfig { layers, ..config() };
    let counter = Arc::new(AtomicUsize::new(0));
    let driver = Counting {
        vm: VmDriver::new(VmOptions::default()),
        launches: counter.clone(),
    };
    let device = Device::new(Box::new(driver), Reuse::Packed);
    let program = TrainProgram::new(&c, true, adapter, DropoutRates::NONE);
    let mut state = tiny::state(&program.graph, &[1]);
    let mut exec = executor(&device, &program, &state);
    let data = data(&c, 5, 3, 9);
    let batch = tiny::pack(&[&data], adapter.layout(&c));
    let steps = [member(1, 0)];
    let parts = program.parts.clone();
    let mut count = |nodes| {
        let before = counter.load(Ordering::Relaxed);
        let pass = Pass {
            nodes,
            batch: &batch,
            steps: &steps,
            given: &[],
        };
        exec.pass(&mut state, &pass).expect("ran");
        counter.load(Ordering::Relaxed) - before
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
        Memory::planned_bytes(&program.graph, &room) as f64
    };
    let slope = (bytes(4224) - bytes(1056)) / (4224.0 - 1056.0);
    println!("{:.0} KB a token", slope / 1e3);
    assert!(slope <= 600e3, "{slope} bytes a token");
}

/// Recall of the run's last step and of the bare model, in items.
fn recalls(world: &World, device: &str) -> (f64, f64) {
    let out = format!("--out=run-{}", device.replace(':', "-"));
    let device = format!("--device={device}");
    let ran = world.run(TRAIN.iter().chain(&[out.as_str(), device.as_str(), "--json"])).ok();
    let json = ran.json();
    println!("{json}");
    (json["after"].as_f64().unwrap_or(-1.0), json["before"].as_f64().unwrap_or(-1.0))
}

#[test]
fn a_run_from_the_command_line_learns_what_the_cpus_learns() {
    let world = World::new();
    println!("{:?} {:?}", recalls(&world, "cpu"), recalls(&world, "vm"));
}
