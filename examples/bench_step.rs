//! Times whole training steps or encoding; prints one line of JSON, in the words of a PyTorch
//! script that does the same, so that both can be run in turn.
//!
//! `cargo run --release --example bench_step -- train --size base --batch 32 --steps 5 --threads 2`
//!
//! `--profile` adds a table of seconds by op on standard error. `CROSSTUNE_TEST_DEVICE=cuda:0`, with
//! feature `cuda`, runs it on a GPU.

#[path = "../benches/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use common::place::Place;
use common::{Run, config};
use crosstune::adapter::Adapter;
use crosstune::exec::Told;

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Task {
    Train,
    Encode,
}

/// Times whole steps of the CPU engine.
#[derive(Parser)]
struct Args {
    task: Task,
    /// tiny, base or large.
    #[arg(long, default_value = "base")]
    size: String,
    /// Items of a training step; captions of an encoding batch.
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
    /// Seconds by op.
    #[arg(long)]
    profile: bool,
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

/// Nodes and time by op, and by whether it ran in the forward pass.
type Profile = Arc<Mutex<BTreeMap<(&'static str, bool), (usize, Duration)>>>;

/// Mean seconds of the forward pass and of the rest, without optimiser and embeddings.
fn tower_seconds(profile: &Profile, runs: usize) -> [f64; 2] {
    const APART: [&str; 5] = [
        "ZeroGrads",
        "GradNorm",
        "AdamStep",
        "Embedding",
        "EmbeddingGrad",
    ];
    let table = profile.lock().expect("no panic holds it");
    let sum = |forward: bool| -> f64 {
        let rows = table.iter();
        let rows = rows.filter(|((op, f), _)| *f == forward && !APART.contains(op));
        rows.map(|(_, (_, time))| time.as_secs_f64()).sum()
    };
    [true, false].map(|forward| sum(forward) / runs as f64)
}

fn main() {
    let args = Args::parse();
    let Some(c) = config(&args.size) else {
        eprintln!(
            "size: found `{}`, expected one of {:?}",
            args.size,
            common::SIZES
        );
        std::process::exit(2);
    };
    let Some(adapter) = adapter(&args.method) else {
        eprintln!("method: found `{}`; see --help", args.method);
        std::process::exit(2);
    };
    let who = (&adapter, args.members.max(1));
    let home = Place::open();
    let place = (&home, args.threads);
    let mut run = match args.task {
        Task::Train => Run::train_as(&c, who, args.batch, place, args.dropout),
        Task::Encode => Run::encode(&c, args.captions, args.batch, place),
    };
    let batches = match args.task {
        Task::Train => 1,
        Task::Encode => run.batches.len(),
    };
    for _ in 0..args.warmup {
        run.step();
    }
    let profile = Profile::default();
    let table = profile.clone();
    let mut is_forward = true;
    let graph = run.graph.clone();
    let observer = Box::new(move |told: Told<'_>| {
        let Told::Ran(ran) = told else { return };
        let op = &graph.nodes[ran.node];
        let mut table = table.lock().expect("no panic holds it");
        // The first gradient node ends the forward pass, the first node of a step begins it.
        is_forward = op.name() == "ZeroGrads" || is_forward && !op.name().ends_with("Grad");
        let row = table.entry((op.name(), is_forward)).or_default();
        *row = (row.0 + 1, row.1 + ran.time);
    });
    // A device that is watched does not replay captured steps.
    if !home.is_device() || args.profile {
        run.exec.observe(observer);
    }
    let samples: Vec<Sample> = (0..args.steps.max(1))
        .map(|_| sample(&mut run, batches))
        .collect();
    report(
        (&args, &home),
        &run,
        &samples,
        tower_seconds(&profile, samples.len()),
    );
    if args.profile {
        print_profile(&profile, samples.len());
    }
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
    let round = |x: f64| (x * 1e4).round() / 1e4;
    let line = serde_json::json!({
        "device": home.name(),
        "task": if args.task == Task::Train { "train" } else { "encode" },
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

fn print_profile(profile: &Profile, runs: usize) {
    let table = profile.lock().expect("no panic holds it");
    let mut rows: Vec<_> = table.iter().collect();
    rows.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    let total: Duration = rows.iter().map(|(_, (_, time))| *time).sum();
    for ((name, _), (nodes, time)) in rows {
        eprintln!(
            "{name:16} {:5} nodes {:10.3} ms {:5.1} %",
            nodes / runs,
            time.as_secs_f64() * 1e3 / runs as f64,
            100.0 * time.as_secs_f64() / total.as_secs_f64()
        );
    }
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
