//! Runs one kernel of a PTX file and prints what it counted.

use std::fs;
use std::path::PathBuf;

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

fn main() -> Result<()> {
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
    let bytes: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    let launch = Launch {
        grid: args.grid,
        block: args.block,
        shared_bytes: args.shared,
    };
    let counters = machine.launch(&program, kernel, launch, &bytes)?;
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

/// The bytes of an argument, after its buffer is made.
fn argument(machine: &mut Machine, text: &str) -> Result<Vec<u8>> {
    let (kind, value) = text
        .split_once(':')
        .with_context(|| format!("{text}: expected kind:value"))?;
    let bad = || format!("{text}: {value} is no {kind}");
    Ok(match kind {
        "i32" => value.parse::<i32>().with_context(bad)?.to_le_bytes().into(),
        "u32" => value.parse::<u32>().with_context(bad)?.to_le_bytes().into(),
        "i64" => value.parse::<i64>().with_context(bad)?.to_le_bytes().into(),
        "u64" => value.parse::<u64>().with_context(bad)?.to_le_bytes().into(),
        "f32" => value.parse::<f32>().with_context(bad)?.to_le_bytes().into(),
        "empty" | "zero" | "rand-f16" | "rand-f32" => {
            let n: usize = value.parse().with_context(bad)?;
            let data: Vec<u8> = match kind {
                "rand-f16" => random(n)
                    .flat_map(|x| f16::from_f32(x).to_le_bytes())
                    .collect(),
                "rand-f32" => random(n).flat_map(f32::to_le_bytes).collect(),
                _ => vec![0; n],
            };
            let address = machine.alloc(data.len(), text);
            if kind != "empty" {
                machine.copy_in(address, &data)?;
            }
            address.to_le_bytes().into()
        }
        _ => bail!("{text}: {kind} is not known; see --help"),
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
