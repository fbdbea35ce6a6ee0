//! Times whole training steps or encoding; prints one line of JSON, in the words of a PyTorch
//! script that does the same, so that both can be run in turn.
//!
//! `cargo run --release --example bench_step -- train --size base --batch 32 --steps 5 --threads 2`
//!
//! `--profile DIR` writes where the time went. `CROSSTUNE_TEST_DEVICE=cuda:0`, with feature `cuda`, runs it
//! on a GPU.

#[path = "../benches/common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use common::place::Place;
use common::{Run, config, vision_config};
use crosstune::adapter::Adapter;
use crosstune::error::Error;
use crosstune::profile::report::Report;
use crosstune::profile::{Phase, Profiler};

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Task {
    Train,
    Encode,
    Vit,
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Task::Train => "train",
            Task::Encode => "encode",
            Task::Vit => "vit",
        }
    }
}

/// Times whole steps, on the CPU or on a device.
#[derive(Parser)]
struct Args {
    task: Task,
    /// tiny, base or large; of a vision tower vit-b32 or vit-l14.
    #[arg(long, default_value = "base")]
    size: String,
    /// Items of a training step; captions of an encoding batch; pictures.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Captions to encode.
    #[arg(long, default_value_t = 1000)]
    captions: usize,
    /// Timed runs: steps, or encodings of all captions.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Untimed runs before.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 0.0)]
    dropout: f32,
    /// What is trained: lora (rank 8), cross (rank 8), adapter, compacter, bitfit or full.
    #[arg(long, default_value = "lora")]
    method: String,
    /// Members that share the items of a step.
    #[arg(long, default_value_t = 1)]
    members: usize,
    /// Where a profile of the timed runs goes: time by op, as `crosstune train --profile` writes it.
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
}

/// What one method trains.
fn adapter(method: &str) -> Option<Adapter> {
    Some(match method {
        "lora" => Adapter::lora(8),
        "cross" => Adapter::cross(8),
        "adapter" => Adapter::bottleneck(24),
        "compacter" => Adapter::compacter(16),
        "bitfit" => Adapter::bitfit(),
        "full" => Adapter::full(),
        _ => return None,
    })
}

/// What one timed run took.
struct Sample {
    wall_s: f64,
    cpu_s: f64,
    /// Cores that other processes kept busy meanwhile.
    foreign_cores: f64,
    tokens: usize,
}

/// Mean seconds of the forward pass and of the rest, without optimiser and embeddings.
fn tower_seconds(report: &Report, runs: usize) -> [f64; 2] {
    let sum = |phase: Phase| -> f64 {
        let lines = report.ops.iter().filter(|l| l.phase == phase);
        let tower = lines.filter(|l| !l.op.is_some_and(|op| op.starts_with("Embedding")));
        tower.map(|l| l.seconds).sum()
    };
    [Phase::Forward, Phase::Backward].map(|phase| sum(phase) / runs as f64)
}

fn main() {
    let args = Args::parse();
    let Some(adapter) = adapter(&args.method) else {
        eprintln!("method: found `{}`; see --help", args.method);
        std::process::exit(2);
    };
    let who = (&adapter, args.members.max(1));
    let home = Place::open();
    let place = (&home, args.threads);
    let text = || config(&args.size).unwrap_or_else(|| unknown(&args.size, &common::SIZES));
    let mut run = match args.task {
        Task::Train => Run::train_as(&text(), who, args.batch, place, args.dropout),
        Task::Encode => Run::encode(&text(), args.captions, args.batch, place),
        Task::Vit => {
            let vision = vision_config(&args.size);
            let vision = vision.unwrap_or_else(|| unknown(&args.size, &common::VISION_SIZES));
            Run::vit(&vision, args.batch, place)
        }
    };
    let batches = match args.task {
        Task::Train | Task::Vit => 1,
        Task::Encode => run.batches.len(),
    };
    for _ in 0..args.warmup {
        run.step();
    }
    let profiler = Profiler::new(home.numbers());
    // A device that is watched does not replay captured steps.
    if !home.is_device() || args.profile.is_some() {
        run.exec.observe(profiler.observer(&run.graph));
    }
    let samples: Vec<Sample> = (0..args.steps.max(1))
        .map(|_| sample(&mut run, batches))
        .collect();
    let tower = match args.task {
        Task::Train => {
            let all = profiler.report(home.describe(args.threads), || Err(Error::Cancelled));
            tower_seconds(&all, samples.len())
        }
        Task::Encode | Task::Vit => [f64::NAN; 2],
    };
    report((&args, &home), &run, &samples, tower);
    if let Some(folder) = &args.profile {
        let ceilings = || Ok(home.ceilings(args.threads));
        let profile = profiler.report(home.describe(args.threads), ceilings);
        profiler.save(&profile, folder).expect("written");
        eprint!("{}", profile.table());
    }
}

fn unknown(size: &str, sizes: &[&str]) -> ! {
    eprintln!("size: found `{size}`, expected one of {sizes:?}");
    std::process::exit(2);
}

fn sample(run: &mut Run, batches: usize) -> Sample {
    let (start, cpu, busy) = (Instant::now(), cpu_seconds(), busy_seconds());
    let tokens = (0..batches).map(|_| run.step()).sum();
    run.wait();
    let wall_s = start.elapsed().as_secs_f64();
    let cpu_s = cpu_seconds() - cpu;
    let foreign_cores = ((busy_seconds() - busy - cpu_s) / wall_s).max(0.0);
    Sample {
        wall_s,
        cpu_s,
        foreign_cores,
        tokens,
    }
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    (x[(x.len() - 1) / 2] + x[x.len() / 2]) / 2.0
}

fn report(
    (args, home): (&Args, &Place),
    run: &Run,
    samples: &[Sample],
    [forward_s, rest_s]: [f64; 2],
) {
    let of = |f: fn(&Sample) -> f64| samples.iter().map(f).collect::<Vec<f64>>();
    let wall = of(|s| s.wall_s);
    let quiet: Vec<f64> = samples
        .iter()
        .filter(|s| s.foreign_cores < 0.15)
        .map(|s| s.wall_s)
        .collect();
    let tokens = median(of(|s| s.tokens as f64));
    // A tenth of a microsecond: a step on a GPU takes milliseconds.
    let round = |x: f64| (x * 1e7).round() / 1e7;
    let line = serde_json::json!({
        "device": home.name(),
        "profiled": args.profile.is_some(),
        "task": args.task.name(),
        "size": args.size,
        "batch": args.batch,
        "threads": args.threads,
        "dropout": args.dropout,
        "median_s": round(median(wall.clone())),
        "min_s": round(wall.iter().copied().fold(f64::INFINITY, f64::min)),
        "max_s": round(wall.iter().copied().fold(0.0, f64::max)),
        "runs": wall.len(),
        "quiet_median_s": (!quiet.is_empty()).then(|| round(median(quiet.clone()))),
        "quiet_runs": quiet.len(),
        "median_cpu_s": round(median(of(|s| s.cpu_s))),
        "min_cpu_s": round(of(|s| s.cpu_s).into_iter().fold(f64::INFINITY, f64::min)),
        "median_foreign_cores": round(median(of(|s| s.foreign_cores))),
        "real_tokens": tokens,
        "real_tokens_per_s": round(median(of(|s| s.tokens as f64 / s.wall_s))),
        "method": args.method,
        "members": args.members,
        "tower_forward_s": round(forward_s),
        "tower_step_over_forward": round((forward_s + rest_s) / forward_s),
        "trainable": run.parameters(),
        "arena_mib": round(run.exec.arena_bytes() as f64 / 1048576.0),
        "peak_rss_gib": round(peak_rss_gib()),
    });
    println!("{line}");
}

/// Clock ticks a second of /proc, the same on every Linux.
const TICKS: f64 = 100.0;

fn proc_file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// CPU seconds of this process.
fn cpu_seconds() -> f64 {
    let stat = proc_file("/proc/self/stat");
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|x| x.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// CPU seconds of the whole machine: neither idle nor waiting for a disk.
fn busy_seconds() -> f64 {
    let stat = proc_file("/proc/stat");
    let line = stat.lines().next().unwrap_or_default();
    let fields = line.split_whitespace().skip(1).take(8).enumerate();
    let busy = fields.filter(|(i, _)| *i != 3 && *i != 4);
    busy.filter_map(|(_, x)| x.parse::<f64>().ok()).sum::<f64>() / TICKS
}

fn peak_rss_gib() -> f64 {
    let status = proc_file("/proc/self/status");
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1048576.0
}
