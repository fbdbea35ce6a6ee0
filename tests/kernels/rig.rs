//! A rig for kernels: a device, steps of several members, buffers by name, and the checks that
//! every op goes through.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

use bytemuck::cast_slice;
use crosstune::cuda::gpu::GpuDriver;
use crosstune::cuda::ops::{Context, DeviceTensor, l2_norm};
use crosstune::cuda::step_params::StepBuffer;
use crosstune::cuda::vm::{VmDriver, VmOptions};
use crosstune::cuda::{DevicePtr, Driver, Result};
use crosstune::tensor::Dtype;
use crosstune::text::pack::Rows;
use half::f16;
use ptxvm::Counters;

pub use crate::world::*;

use crate::LIMITS;

/// The least level of a tensor's numbers that an error is measured by.
const LEVEL: f64 = 0.01;

/// A device with a step buffer and buffers by name.
pub struct Device {
    driver: Rc<dyn Driver>,
    /// The same, where it is one.
    vm: Option<Rc<VmDriver>>,
    step: StepBuffer,
    tensors: RefCell<HashMap<String, DeviceTensor>>,
}

/// A driver; the same once more where it is the virtual machine.
type Opened = (Rc<dyn Driver>, Option<Rc<VmDriver>>);

/// The virtual machine, or the GPU of `CROSSTUNE_TEST_DEVICE`, which takes its own order.
fn driver(order_seed: Option<u64>) -> Result<Opened> {
    match std::env::var("CROSSTUNE_TEST_DEVICE") {
        Ok(name) => {
            let index = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
            let index = index.unwrap_or_else(|| panic!("CROSSTUNE_TEST_DEVICE={name}: not cuda:N"));
            Ok((Rc::new(GpuDriver::open(index)?), None))
        }
        Err(_) => {
            let vm = Rc::new(VmDriver::new(VmOptions {
                order_seed,
                ..VmOptions::default()
            }));
            Ok((vm.clone(), Some(vm)))
        }
    }
}

impl Device {
    /// For a step in its own bucket.
    pub fn of(world: &World, order_seed: Option<u64>) -> Device {
        Device::new(world.room(), order_seed)
    }

    fn new((bucket, longest, prompt): Room, order_seed: Option<u64>) -> Device {
        let (driver, vm) = driver(order_seed).expect("a device");
        let ptr = driver
            .alloc(StepBuffer::bytes(&bucket), "step")
            .expect("room");
        Device {
            driver,
            vm,
            step: StepBuffer::new(ptr, bucket, longest).with_prompt(prompt),
            tensors: RefCell::default(),
        }
    }

    pub fn context(&self) -> Context<'_> {
        Context {
            driver: &*self.driver,
            step: &self.step,
        }
    }

    /// A buffer by name.
    pub fn get(&self, name: &str) -> DeviceTensor {
        match self.tensors.borrow().get(name) {
            Some(t) => *t,
            None => panic!("no buffer {name}"),
        }
    }

    fn place(&self, name: &str, shape: DeviceTensor, bytes: &[u8]) -> DeviceTensor {
        let mut tensors = self.tensors.borrow_mut();
        let t = *tensors.entry(name.into()).or_insert_with(|| DeviceTensor {
            ptr: self.driver.alloc(bytes.len(), name).expect("room"),
            ..shape
        });
        assert_eq!(t.len() * t.dtype.size(), bytes.len(), "{name}");
        self.driver.copy_in(t.ptr, bytes).expect("copied");
        t
    }

    /// An f16 activation: zero in the padding, NaN past the true rows.
    pub fn rows(&self, name: &str, rows: Rows, c: usize, data: &[f32]) -> DeviceTensor {
        let t = DeviceTensor::f16(DevicePtr::NULL, self.step.rows(rows), c);
        let mut padded = pad(data, c);
        padded.resize(t.len(), f16::NAN);
        self.place(name, t, cast_slice(&padded))
    }

    /// Unit rows, numbers of [`split`]: as [`Device::rows`], but what f16 leaves is behind each row.
    pub fn unit_rows(&self, name: &str, rows: Rows, c: usize, data: &[f32]) -> DeviceTensor {
        let t = l2_norm::unit(DevicePtr::NULL, self.step.rows(rows), c);
        let (high, low) = (pad(data, c), pad(&rest(data), c));
        let both = high.chunks(t.ld / 2).zip(low.chunks(t.ld / 2));
        let mut all: Vec<f16> = both.flat_map(|(h, l)| [h, l].concat()).collect();
        all.resize(t.len(), f16::NAN);
        self.place(name, t, cast_slice(&all))
    }

    /// An f16 parameter with rows padded to 8, for each member or, with 0, for all.
    pub fn weight(&self, name: &str, members: usize, c: usize, data: &[f32]) -> DeviceTensor {
        let rows = data.len() / members.max(1) / c;
        let t = DeviceTensor::f16(DevicePtr::NULL, rows, c).per_member(members);
        self.place(name, t, cast_slice(&pad(data, c)))
    }

    /// Other numbers in an f16 buffer, padding included.
    pub fn overwrite(&self, name: &str, data: &[f32]) {
        let halves: Vec<f16> = data.iter().map(|x| f16::from_f32(*x)).collect();
        self.place(name, self.get(name), cast_slice(&halves));
    }

    /// An f32 tensor without padding.
    pub fn f32(&self, name: &str, members: usize, c: usize, data: &[f32]) -> DeviceTensor {
        let rows = data.len() / members.max(1) / c;
        let t = DeviceTensor::f32(DevicePtr::NULL, rows, c).per_member(members);
        self.place(name, t, cast_slice(data))
    }

    /// Bytes that are no matrix.
    pub fn bytes(&self, name: &str, bytes: &[u8]) {
        let t = DeviceTensor::f32(DevicePtr::NULL, 1, bytes.len() / 4);
        self.place(name, t, bytes);
    }

    /// An output, all NaN.
    pub fn poison(&self, name: &str, t: DeviceTensor) -> DeviceTensor {
        self.place(name, t, &vec![0xFF; t.len() * t.dtype.size()])
    }

    pub fn poison_rows(&self, name: &str, rows: Rows, c: usize) -> DeviceTensor {
        let n = self.step.rows(rows);
        self.poison(name, DeviceTensor::f16(DevicePtr::NULL, n, c))
    }

    pub fn poison_unit(&self, name: &str, rows: Rows, c: usize) -> DeviceTensor {
        let n = self.step.rows(rows);
        self.poison(name, l2_norm::unit(DevicePtr::NULL, n, c))
    }

    pub fn poison_f32(&self, name: &str, rows: usize, c: usize) -> DeviceTensor {
        self.poison(name, DeviceTensor::f32(DevicePtr::NULL, rows, c))
    }

    /// Makes a member's copy of a parameter, or its tokens of an activation, NaN.
    fn break_member(&self, name: &str, world: &World, g: usize) {
        let t = self.get(name);
        let rows = match t.members {
            0 => world.batch.member_rows(Rows::Tokens, g),
            _ => g * t.rows..(g + 1) * t.rows,
        };
        let nan = vec![0xFF; t.cols * t.dtype.size()];
        for row in rows {
            let at = t.ptr.offset(row * t.ld * t.dtype.size());
            self.driver.copy_in(at, &nan).expect("copied");
        }
    }

    /// The virtual machine, where the device is one.
    pub fn vm(&self) -> Option<&VmDriver> {
        self.vm.as_deref()
    }

    pub fn step(&self) -> &StepBuffer {
        &self.step
    }

    /// An output of numbers member by member.
    pub fn out(op: &str, name: &str, values: Vec<f32>) -> Out {
        Out {
            name: format!("{op}.{name}"),
            values,
            rows: None,
        }
    }

    /// All numbers of a buffer.
    pub fn read(&self, name: &str) -> (DeviceTensor, Vec<f32>) {
        let t = self.get(name);
        let mut bytes = vec![0u8; t.len() * t.dtype.size()];
        self.driver.copy_out(t.ptr, &mut bytes).expect("copied");
        let numbers = match t.dtype {
            Dtype::F16 => bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            _ => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        };
        (t, numbers)
    }

    /// The true rows of an activation; the padding must be zero, the other rows as they were.
    pub fn out_rows(&self, op: &str, name: &str, rows: Rows, world: &World) -> Out {
        let (t, data) = self.read(name);
        let values = true_rows(name, data.chunks(t.ld), (t.cols, world.count(rows)));
        Out {
            name: format!("{op}.{name}"),
            values,
            rows: Some(rows),
        }
    }

    /// The sums of unit rows and what is behind them, both checked as [`Device::out_rows`] does.
    pub fn out_unit(&self, op: &str, name: &str, rows: Rows, world: &World) -> Out {
        let (t, data) = self.read(name);
        let size = (t.cols, world.count(rows));
        let [high, low] = [0, 1].map(|at| {
            let rows = data.chunks(t.ld / 2).skip(at).step_by(2);
            true_rows(name, rows, size)
        });
        Out {
            name: format!("{op}.{name}"),
            values: high.iter().zip(low).map(|(h, l)| h + l).collect(),
            rows: Some(rows),
        }
    }

    /// A tensor of members.
    pub fn out_members(&self, op: &str, name: &str) -> Out {
        Device::out(op, name, self.read(name).1)
    }
}

/// What a kernel gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Out {
    name: String,
    values: Vec<f32>,
    rows: Option<Rows>,
}

impl Out {
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Gives the name under which its limit stands.
    pub fn rename(&mut self, op: &str, name: &str) {
        self.name = format!("{op}.{name}");
    }

    /// Where a member's part lies.
    fn span(&self, world: &World, g: usize) -> Range<usize> {
        let (total, range) = match self.rows {
            Some(rows) => (world.count(rows), world.batch.member_rows(rows, g)),
            None => (world.seeds.len(), g..g + 1),
        };
        let width = self.values.len() / total.max(1);
        range.start * width..range.end * width
    }

    /// A member's part.
    pub fn of_member(&self, world: &World, g: usize) -> Vec<u32> {
        let part = &self.values[self.span(world, g)];
        part.iter().map(|x| x.to_bits()).collect()
    }

    fn bits(&self) -> Vec<u32> {
        self.values.iter().map(|x| x.to_bits()).collect()
    }
}

/// A use of an op's kernels.
pub trait Case: std::fmt::Debug {
    /// Slots of a soft prompt in each text.
    fn prompt(&self) -> usize {
        0
    }
    /// Writes inputs and poisons outputs.
    fn fill(&self, d: &Device, world: &World);
    /// Launches.
    fn launch(&self, d: &Device) -> Result<()>;
    /// Reads outputs.
    fn read(&self, d: &Device, world: &World) -> Vec<Out>;
    /// What they should be, in the order of `read`.
    fn want(&self, world: &World) -> Vec<Vec<f64>>;
}

fn run(case: &dyn Case, world: &World, room: Room, order_seed: Option<u64>) -> Vec<Out> {
    let d = Device::new(room, order_seed);
    load(case, &d, world);
    if let Err(e) = case.launch(&d) {
        panic!("{case:?}: {e}");
    }
    case.read(&d, world)
}

/// The step of `members` as a case wants it.
fn world_of(case: &dyn Case, members: &[Member]) -> World {
    World::with_prompt(members, case.prompt())
}

/// Copies a step and a case's buffers in.
pub fn load(case: &dyn Case, d: &Device, world: &World) {
    let cx = d.context();
    cx.step
        .upload(cx.driver, &world.batch, &world.steps)
        .expect("a step that fits");
    case.fill(d, world);
}

/// What a case gives for a step of `members` in its own bucket.
pub fn outputs(case: &dyn Case, members: &[Member]) -> Vec<Out> {
    let world = world_of(case, members);
    run(case, &world, world.room(), None)
}

/// The kernels give what the loops give.
pub fn agrees(case: &dyn Case, members: &[Member]) {
    let world = world_of(case, members);
    let got = run(case, &world, world.room(), None);
    let want = case.want(&world);
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(&want) {
        compare(case, &world, got, want);
    }
}

fn compare(case: &dyn Case, world: &World, got: &Out, want: &[f64]) {
    let name = &got.name;
    let limit = LIMITS.iter().find(|l| l.name == name);
    let limit = limit.unwrap_or_else(|| panic!("no limit for {name}"));
    assert_eq!(got.values.len(), want.len(), "{case:?}: {name}");
    // Loss scales differ, so each member is measured by its own level.
    for range in (0..world.seeds.len()).map(|g| got.span(world, g)) {
        let (got, want) = (&got.values[range.clone()], &want[range]);
        let n = want.len() as f64;
        // A tensor that should be zero, but for rounding, is measured against 0.01.
        let level = want
            .iter()
            .map(|w| w * w / n)
            .sum::<f64>()
            .sqrt()
            .max(LEVEL);
        let (mut worst, mut at, mut square) = (0f64, 0, 0f64);
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*g) - w).abs();
            square += error * error;
            let error = error / (level + w.abs());
            // NaN is worse than anything.
            if error.is_nan() || error > worst {
                (worst, at) = (error, i);
            }
        }
        let nmse = if n > 0.0 {
            square / (n * level * level)
        } else {
            0.0
        };
        println!("limit {name} {worst:.1e} {nmse:.1e}");
        assert!(
            worst <= limit.error && nmse <= limit.nmse,
            "{case:?}: {name}[{at}] is {}, expected {}: error {worst:.1e}, NMSE {nmse:.1e}",
            got[at],
            want[at]
        );
    }
}

/// By kernel, what the virtual machine counted; nothing on a GPU.
pub fn counted(case: &dyn Case, members: &[Member]) -> BTreeMap<String, Counters> {
    let world = world_of(case, members);
    let d = Device::of(&world, None);
    load(case, &d, &world);
    case.launch(&d).expect("launched");
    d.vm().map_or_else(BTreeMap::new, VmDriver::take_counters)
}

/// Again, and with blocks and warps in other orders: the same bytes.
pub fn repeats(case: &dyn Case, members: &[Member]) {
    let world = world_of(case, members);
    let first = run(case, &world, world.room(), None);
    for seed in [None, Some(1), Some(2)] {
        let again = run(case, &world, world.room(), seed);
        for (a, b) in first.iter().zip(&again) {
            assert!(
                a.bits() == b.bits(),
                "{case:?}: {} with order {seed:?}",
                a.name
            );
        }
    }
}

/// Each member alone gives the bytes that it gives in company.
pub fn alone_as_in_company(case: &dyn Case, members: &[Member]) {
    let world = world_of(case, members);
    let company = run(case, &world, world.room(), None);
    for g in 0..members.len() {
        let own = world_of(case, &members[g..=g]);
        let alone = run(case, &own, own.room(), None);
        for (a, b) in alone.iter().zip(&company) {
            let same = a.of_member(&own, 0) == b.of_member(&world, g);
            assert!(same, "{case:?}: {} of member {g}", a.name);
        }
    }
}

/// Numbers of the third member that are NaN reach no other member.
pub fn keeps_apart(case: &dyn Case, members: &[Member], names: &[&str]) {
    let world = world_of(case, members);
    let fine = run(case, &world, world.room(), None);
    for name in names {
        let d = Device::of(&world, None);
        load(case, &d, &world);
        d.break_member(name, &world, 2);
        case.launch(&d).expect("launched");
        let broken = case.read(&d, &world);
        for (a, b) in fine.iter().zip(&broken) {
            for g in (0..members.len()).filter(|g| *g != 2) {
                let same = a.of_member(&world, g) == b.of_member(&world, g);
                assert!(
                    same,
                    "{case:?}: {name} of another, {} of member {g}",
                    a.name
                );
            }
        }
        let nan = broken
            .iter()
            .any(|out| out.values.iter().any(|x| x.is_nan()));
        assert!(nan, "{case:?}: {name} is not read");
    }
}

/// A captured step replayed with other true sizes equals launches one by one.
pub fn replays(case: &dyn Case, steps: &[&[Member]]) {
    let worlds: Vec<World> = steps.iter().map(|m| world_of(case, m)).collect();
    let room = worlds
        .iter()
        .map(World::room)
        .reduce(|a, b| (a.0.max(&b.0), a.1.max(b.1), a.2))
        .expect("steps");
    let d = Device::new(room, None);
    let driver = d.context().driver;
    load(case, &d, &worlds[0]);
    driver.begin_capture().expect("a capture");
    case.launch(&d).expect("noted");
    let graph = driver.end_capture().expect("a graph");
    for world in &worlds {
        load(case, &d, world);
        driver.replay(graph).expect("a replay");
        let replayed = case.read(&d, world);
        let launched = run(case, world, room, None);
        for (a, b) in replayed.iter().zip(&launched) {
            assert!(a.bits() == b.bits(), "{case:?}: {} replayed", a.name);
        }
    }
}
