//! `crosstune doctor`.

use std::collections::BTreeMap;

use anyhow::Result;
use crosstune::device::{DeviceChoice, host_memory_bytes};
use crosstune::error::Error;
use serde::Serialize;

use super::Output;

/// What a binary without the feature says of CUDA.
#[cfg(not(feature = "cuda"))]
pub const NO_FEATURE: &str =
    "this binary has no CUDA: build it with `cargo build --release --features cuda`";

/// Options of looking at the machine.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example: does the first GPU work?
  crosstune doctor --device cuda:0")]
pub struct Args {
    /// Open this device (auto, cpu, cuda:N or vm) and check that memory, copies and kernels work on
    /// it; exit code 2 if it can't be opened.
    #[arg(long)]
    device: Option<DeviceChoice>,
}

/// All that the command knows.
#[derive(Serialize)]
struct Report {
    machine: Machine,
    binary: Binary,
    cuda: Cuda,
    /// Kernels in this binary, by file.
    kernels: Vec<KernelFile>,
    /// What `--device` asked for.
    device: Option<Checked>,
}

#[derive(Serialize)]
struct Machine {
    os: &'static str,
    arch: &'static str,
    cores: Option<usize>,
    memory_bytes: Option<u64>,
    /// The CPU features that the fast code of the ops can use.
    cpu_features: BTreeMap<&'static str, bool>,
}

#[derive(Serialize)]
struct Binary {
    version: &'static str,
    /// Whether it was built with feature `cuda`.
    cuda: bool,
    /// The kernels' compiler.
    nvcc: Option<&'static str>,
    /// What the kernels hold code for.
    architectures: &'static [&'static str],
}

#[derive(Default, Serialize)]
struct Cuda {
    /// The newest CUDA that the driver supports.
    driver: Option<String>,
    gpus: Vec<Gpu>,
    /// Why there is no driver.
    reason: Option<String>,
}

#[derive(Serialize)]
struct Gpu {
    index: usize,
    name: String,
    memory_bytes: usize,
    compute_capability: String,
    /// Why kernels can't run on it.
    reason: Option<String>,
}

#[derive(Serialize)]
struct KernelFile {
    name: &'static str,
    bytes: usize,
    kernels: Vec<Kernel>,
}

#[derive(Serialize)]
struct Kernel {
    name: String,
    architecture: String,
    registers: u32,
    spill_store_bytes: u32,
    spill_load_bytes: u32,
    shared_bytes: u32,
}

#[derive(Serialize)]
struct Checked {
    name: String,
    /// Kernels that the device loaded.
    kernels_loaded: usize,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let report = Report {
        machine: machine(),
        binary: binary(),
        cuda: cuda(),
        kernels: kernels(),
        device: args.device.map(check).transpose()?,
    };
    if output.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn print(report: &Report) {
    let Binary {
        version,
        cuda,
        nvcc,
        architectures,
    } = report.binary;
    let with = if cuda { "with" } else { "without" };
    println!("crosstune {version}, {with} CUDA");
    let m = &report.machine;
    let unknown = || "unknown".to_string();
    println!(
        "machine: {} {}, cores: {}, memory: {}",
        m.os,
        m.arch,
        m.cores.map_or_else(unknown, |n| n.to_string()),
        m.memory_bytes.map_or_else(unknown, gib)
    );
    let features = m.cpu_features.iter();
    let features: Vec<_> = features
        .map(|(name, has)| format!("{name} {}", if *has { "yes" } else { "no" }))
        .collect();
    println!("  CPU features: {}", features.join(", "));
    match (&report.cuda.driver, &report.cuda.reason) {
        (Some(version), _) => println!("CUDA driver: supports CUDA {version}"),
        (None, reason) => println!("CUDA driver: {}", reason.as_deref().unwrap_or("none")),
    }
    for gpu in &report.cuda.gpus {
        let memory = gib(gpu.memory_bytes as u64);
        let Gpu { index, name, .. } = gpu;
        let capability = &gpu.compute_capability;
        println!("  cuda:{index}: {name}, {memory}, compute capability {capability}");
        if let Some(reason) = &gpu.reason {
            println!("    can't be used: {reason}");
        }
    }
    if let Some(nvcc) = nvcc {
        println!("kernels by nvcc {nvcc} for {}:", architectures.join(", "));
        report.kernels.iter().for_each(print_file);
    }
    if let Some(device) = &report.device {
        let Checked {
            name,
            kernels_loaded,
        } = device;
        println!("{name}: works, {kernels_loaded} kernels loaded");
    }
}

fn print_file(file: &KernelFile) {
    // The most registers by architecture: what bounds occupancy.
    let mut registers = BTreeMap::new();
    for k in &file.kernels {
        let most: &mut u32 = registers.entry(&k.architecture).or_default();
        *most = k.registers.max(*most);
    }
    let kib = file.bytes.div_ceil(1024);
    let registers: Vec<_> = registers
        .iter()
        .map(|(arch, n)| format!(", at most {n} registers on {arch}"))
        .collect();
    println!("  {}: {kib} KiB{}", file.name, registers.concat());
    for k in &file.kernels {
        let (stores, loads) = (k.spill_store_bytes, k.spill_load_bytes);
        if stores + loads > 0 {
            let (name, arch) = (&k.name, &k.architecture);
            println!("    {name} on {arch} spills: {stores} bytes stored, {loads} loaded");
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

fn machine() -> Machine {
    Machine {
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        cores: std::thread::available_parallelism().ok().map(usize::from),
        memory_bytes: host_memory_bytes(),
        cpu_features: cpu_features(),
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> BTreeMap<&'static str, bool> {
    BTreeMap::from([
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("F16C", is_x86_feature_detected!("f16c")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
    ])
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> BTreeMap<&'static str, bool> {
    BTreeMap::from(["AVX2", "FMA", "F16C", "AVX-512"].map(|name| (name, false)))
}

/// Checks a device.
fn check(device: DeviceChoice) -> Result<Checked, Error> {
    match device {
        DeviceChoice::Cuda(index) => check_gpu(index),
        DeviceChoice::Auto => {
            let first = cuda().gpus.into_iter().find(|g| g.reason.is_none());
            first.map_or_else(|| check(DeviceChoice::Cpu), |gpu| check_gpu(gpu.index))
        }
        DeviceChoice::Vm(_) => check_vm(),
        // That this line runs is the check.
        DeviceChoice::Cpu => Ok(Checked {
            name: "cpu".into(),
            kernels_loaded: 0,
        }),
    }
}

#[cfg(not(feature = "cuda"))]
fn binary() -> Binary {
    Binary {
        version: env!("CARGO_PKG_VERSION"),
        cuda: false,
        nvcc: None,
        architectures: &[],
    }
}

#[cfg(feature = "cuda")]
fn binary() -> Binary {
    use crosstune::cuda::embedded::{ARCHITECTURES, NVCC_RELEASE};
    Binary {
        version: env!("CARGO_PKG_VERSION"),
        cuda: true,
        nvcc: Some(NVCC_RELEASE),
        architectures: ARCHITECTURES,
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Cuda {
    Cuda {
        reason: Some(NO_FEATURE.into()),
        ..Cuda::default()
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Cuda {
    let machine = match crosstune::cuda::installed::installed() {
        Ok(machine) => machine,
        Err(e) => {
            return Cuda {
                reason: Some(e.to_string()),
                ..Cuda::default()
            };
        }
    };
    let dotted = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    let gpus = machine.gpus.iter().map(|g| Gpu {
        index: g.index,
        name: g.name.clone(),
        memory_bytes: g.memory_bytes,
        compute_capability: dotted(g.compute_capability),
        reason: machine.usable(g.index).err().map(|e| e.to_string()),
    });
    Cuda {
        driver: Some(dotted(machine.version)),
        gpus: gpus.collect(),
        reason: None,
    }
}

#[cfg(not(feature = "cuda"))]
fn kernels() -> Vec<KernelFile> {
    Vec::new()
}

#[cfg(feature = "cuda")]
fn kernels() -> Vec<KernelFile> {
    let kernel = |r: crosstune::cuda::embedded::Resources| Kernel {
        name: r.kernel,
        architecture: r.architecture,
        registers: r.registers,
        spill_store_bytes: r.spill_store_bytes,
        spill_load_bytes: r.spill_load_bytes,
        shared_bytes: r.shared_bytes,
    };
    let files = crosstune::cuda::embedded::FILES.iter();
    files
        .map(|file| KernelFile {
            name: file.name,
            bytes: file.fatbin.len(),
            kernels: file.resources().into_iter().map(kernel).collect(),
        })
        .collect()
}

#[cfg(not(feature = "cuda"))]
fn check_gpu(index: usize) -> Result<Checked, Error> {
    Err(Error::Input(format!("cuda:{index}: {NO_FEATURE}")))
}

#[cfg(not(feature = "cuda"))]
fn check_vm() -> Result<Checked, Error> {
    Err(Error::Input(format!("vm: {NO_FEATURE}")))
}

#[cfg(feature = "cuda")]
fn check_vm() -> Result<Checked, Error> {
    use crosstune::cuda::vm::{VmDriver, VmOptions};
    use crosstune::cuda::{Driver, check::check};
    let driver = VmDriver::new(VmOptions::default());
    Ok(Checked {
        name: driver.name(),
        kernels_loaded: check(&driver)?,
    })
}

#[cfg(feature = "cuda")]
fn check_gpu(index: usize) -> Result<Checked, Error> {
    use crosstune::cuda::{Driver, check::check, gpu::GpuDriver};
    let driver = GpuDriver::open(index)?;
    Ok(Checked {
        name: driver.name(),
        kernels_loaded: check(&driver)?,
    })
}
