//! Runs one kernel of a PTX file and prints what it counted.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use half::f16;
use ptxvm::{Launch, Machine, Options};

/// Runs one kernel of a PTX file in the virtual machine; prints its counters.
#[derive(Parser)]
#[command(after_help = "Arguments of the kernel, in order:
  i32:N u32:N i64:N u64:N f32:X   a number
  empty:BYTES                     a buffer that nobody has written
  zero:BYTES                      a buffer of zeros
  rand-f16:COUNT rand-f32:COUNT   a buffer of random numbers in [-1, 1)
  file:PATH                       a buffer with a file's bytes

Example: ptxvm layer_norm.ptx layer_norm_forward_f16 --grid 64 --block 256 \\
  --arg empty:131072 --arg rand-f16:65536 --arg i32:1024")]
struct Args {
    /// The PTX file.
    file: PathBuf,
    /// The kernel; without it the file's kernels are listed.
    kernel: Option<String>,
    /// Blocks: X, or X,Y,Z.
    #[arg(long, default_value = "1", value_parser = extent)]
    grid: [u32; 3],
    /// Threads of a block: X, or X,Y,Z.
    #[arg(long, default_value = "32", value_parser = extent)]
    block: [u32; 3],
    /// Dynamic shared memory in bytes.
    #[arg(long, default_value_t = 0)]
    shared: u32,
    /// An argument of the kernel.
    #[arg(long = "arg")]
    args: Vec<String>,
    /// After the run, writes the buffer of argument N (from 0) to a file.
    #[arg(long = "save", value_name = "N:PATH", value_parser = save)]
    saves: Vec<(usize, PathBuf)>,
    /// Counts by source line too.
    #[arg(long)]
    lines: bool,
    /// Runs blocks and warps in an order drawn from this seed.
    #[arg(long)]
    order_seed: Option<u64>,
    /// Blocks that run at the same time.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn extent(text: &str) -> Result<[u32; 3], String> {
    let mut out = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err("at most three numbers".into());
    }
    for (o, p) in out.iter_mut().zip(parts) {
        *o = p.trim().parse().map_err(|_| format!("{p} is no number"))?;
    }
    Ok(out)
}

fn save(text: &str) -> Result<(usize, PathBuf), String> {
    let (n, path) = text.split_once(':').ok_or("expected N:PATH")?;
    let n = n.parse().map_err(|_| format!("{n} is no number"))?;
    Ok((n, path.into()))
}

/// An argument's bytes, and the size of its buffer if it is one.
struct Value {
    bytes: Vec<u8>,
    buffer_bytes: Option<usize>,
}

fn main() -> Result<()> {
    // Rust ignores SIGPIPE, and printing then panics where `| head` has closed the pipe: the command
    // ends by the signal instead, as others do.
    let always = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_default(signal_hook::consts::SIGPIPE, always)
        .context("cannot listen to SIGPIPE")?;
    let args = Args::parse();
    let text = fs::read_to_string(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let mut machine = Machine::new(Options {
        threads: args.threads,
        order_seed: args.order_seed,
        ..Options::default()
    });
    let program = machine
        .load(&text)
        .with_context(|| args.file.display().to_string())?;
    let Some(kernel) = &args.kernel else {
        for name in program.kernels() {
            let sizes = program.arguments(name).unwrap_or_default();
            println!("{name}  arguments of {sizes:?} bytes");
        }
        return Ok(());
    };
    let values = args
        .args
        .iter()
        .map(|a| argument(&mut machine, a))
        .collect::<Result<Vec<_>>>()?;
    for (n, _) in &args.saves {
        if values.get(*n).is_none_or(|v| v.buffer_bytes.is_none()) {
            bail!("--save {n}: argument {n} is no buffer");
        }
    }
    let bytes: Vec<&[u8]> = values.iter().map(|v| v.bytes.as_slice()).collect();
    let launch = Launch {
        grid: args.grid,
        block: args.block,
        shared_bytes: args.shared,
    };
    let start = Instant::now();
    let counters = machine.launch(&program, kernel, launch, &bytes)?;
    let taken = start.elapsed();
    for (n, path) in &args.saves {
        let mut out = vec![0; values[*n].buffer_bytes.unwrap_or(0)];
        let address = <[u8; 8]>::try_from(values[*n].bytes.as_slice())?;
        machine.copy_out(u64::from_le_bytes(address), &mut out)?;
        fs::write(path, out).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("seconds           {:>12.6}", taken.as_secs_f64());
    let t = counters.total;
    println!("instructions      {:>12}", t.instructions);
    println!("matrix FLOPs      {:>12}", t.matrix_flops);
    println!(
        "global bytes      {:>12} read, {} written",
        t.global_read_bytes, t.global_write_bytes
    );
    println!(
        "sectors           {:>12} moved, {} needed",
        t.sectors_moved, t.sectors_needed
    );
    println!("global requests   {:>12}", t.global_requests);
    println!("shared requests   {:>12}", t.shared_requests);
    println!("bank conflicts    {:>12}", t.bank_conflicts);
    println!("barriers          {:>12}", t.barriers);
    if args.lines {
        println!(
            "\n{:>12} {:>10} {:>10} {:>10}  line",
            "instructions", "moved", "needed", "conflicts"
        );
        for (loc, c) in &counters.lines {
            let (file, line) = program.place(*loc);
            println!(
                "{:>12} {:>10} {:>10} {:>10}  {file}:{line}",
                c.instructions, c.sectors_moved, c.sectors_needed, c.bank_conflicts
            );
        }
    }
    Ok(())
}

/// An argument, after its buffer is made.
fn argument(machine: &mut Machine, text: &str) -> Result<Value> {
    let (kind, value) = text
        .split_once(':')
        .with_context(|| format!("{text}: expected kind:value"))?;
    let bad = || format!("{text}: {value} is no {kind}");
    let number = |bytes: &[u8]| Value {
        bytes: bytes.into(),
        buffer_bytes: None,
    };
    let count = || value.parse::<usize>().with_context(bad);
    let data = match kind {
        "i32" => {
            return Ok(number(
                &value.parse::<i32>().with_context(bad)?.to_le_bytes(),
            ));
        }
        "u32" => {
            return Ok(number(
                &value.parse::<u32>().with_context(bad)?.to_le_bytes(),
            ));
        }
        "i64" => {
            return Ok(number(
                &value.parse::<i64>().with_context(bad)?.to_le_bytes(),
            ));
        }
        "u64" => {
            return Ok(number(
                &value.parse::<u64>().with_context(bad)?.to_le_bytes(),
            ));
        }
        "f32" => {
            return Ok(number(
                &value.parse::<f32>().with_context(bad)?.to_le_bytes(),
            ));
        }
        "rand-f16" => random(count()?)
            .flat_map(|x| f16::from_f32(x).to_le_bytes())
            .collect(),
        "rand-f32" => random(count()?).flat_map(f32::to_le_bytes).collect(),
        "empty" | "zero" => vec![0; count()?],
        "file" => fs::read(value).with_context(|| format!("cannot read {value}"))?,
        _ => bail!("{text}: {kind} is not known; see --help"),
    };
    let address = machine.alloc(data.len(), text);
    if kind != "empty" {
        machine.copy_in(address, &data)?;
    }
    Ok(Value {
        bytes: address.to_le_bytes().into(),
        buffer_bytes: Some(data.len()),
    })
}

fn random(n: usize) -> impl Iterator<Item = f32> {
    let mut s = 1u64;
    (0..n).map(move |_| {
        s = s
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}
