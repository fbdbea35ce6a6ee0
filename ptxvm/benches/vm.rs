//! How fast the virtual machine is, checks and counters on, on one thread.

use criterion::{Criterion, criterion_group, criterion_main};
use half::f16;
use ptxvm::{Launch, Machine, Options, Program};

/// A machine with a file in it, and the arguments of its kernel.
struct Bench {
    machine: Machine,
    program: Program,
    args: Vec<Vec<u8>>,
}

impl Bench {
    fn new(ptx: &str) -> Bench {
        let mut machine = Machine::new(Options::default());
        let program = machine.load(ptx).expect("nvcc wrote it");
        Bench {
            machine,
            program,
            args: vec![],
        }
    }

    fn buffer(&mut self, label: &str, bytes: usize, data: &[u8]) -> u64 {
        let address = self.machine.alloc(bytes, label);
        self.machine.copy_in(address, data).expect("it fits");
        self.args.push(address.to_le_bytes().into());
        address
    }

    fn number(&mut self, x: i32) {
        self.args.push(x.to_le_bytes().into());
    }

    fn run(&mut self, kernel: &str, launch: Launch) {
        let args: Vec<&[u8]> = self.args.iter().map(Vec::as_slice).collect();
        let done = self.machine.launch(&self.program, kernel, launch, &args);
        done.unwrap_or_else(|fault| panic!("{fault}"));
    }

    fn floats(&self, address: u64, n: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * n];
        self.machine.copy_out(address, &mut bytes).expect("it fits");
        let float = |c: &[u8]| f32::from_le_bytes([c[0], c[1], c[2], c[3]]);
        bytes.chunks(4).map(float).collect()
    }
}

/// Small numbers that f16 holds exactly, with a period that no dimension has.
fn value(i: usize) -> f32 {
    (i % 13) as f32 / 8.0 - 0.75
}

fn halves(n: usize) -> Vec<u8> {
    let half = |i| f16::from_f32(value(i)).to_le_bytes();
    (0..n).flat_map(half).collect()
}

fn singles(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| value(i).to_le_bytes()).collect()
}

fn layer_norm(c: &mut Criterion) {
    let (rows, columns) = (64, 1024);
    let mut bench = Bench::new(include_str!("layer_norm.ptx"));
    bench.buffer("out", 2 * rows * columns, &[]);
    let mean = bench.buffer("mean", 4 * rows, &[]);
    bench.buffer("rstd", 4 * rows, &[]);
    bench.buffer("inp", 2 * rows * columns, &halves(rows * columns));
    bench.buffer("weight", 4 * columns, &singles(columns));
    bench.buffer("bias", 4 * columns, &singles(columns));
    bench.number(columns as i32);
    let launch = Launch::new([rows as u32, 1, 1], [128, 1, 1]);
    bench.run("layer_norm", launch);
    let want: f32 = (columns..2 * columns).map(value).sum::<f32>() / columns as f32;
    let got = bench.floats(mean, rows)[1];
    assert!((got - want).abs() < 1e-6, "mean of row 1 is {got}, expected {want}");
    c.bench_function("layer norm 64 x 1024", |b| b.iter(|| bench.run("layer_norm", launch)));
}

fn product(c: &mut Criterion) {
    let n = 128;
    let mut bench = Bench::new(include_str!("product.ptx"));
    let out = bench.buffer("out", 4 * n * n, &[]);
    bench.buffer("a", 2 * n * n, &halves(n * n));
    bench.buffer("b", 2 * n * n, &halves(n * n));
    bench.number(n as i32);
    bench.number(n as i32);
    let launch = Launch::new([n as u32 / 64, n as u32 / 64, 1], [128, 1, 1]);
    bench.run("product", launch);
    for (at, got) in bench.floats(out, n * n).iter().enumerate() {
        let (row, col) = (at / n, at % n);
        let want: f32 = (0..n).map(|k| value(row * n + k) * value(col * n + k)).sum();
        assert!((got - want).abs() < 1e-4, "({row}, {col}) is {got}, expected {want}");
    }
    c.bench_function("product 128 cubed", |b| b.iter(|| bench.run("product", launch)));
}

criterion_group!(benches, layer_norm, product);
criterion_main!(benches);
