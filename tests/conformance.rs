//! The conformance suite of the virtual machine, through the driver of this crate: in the machine
//! always, on a GPU where one is present. What they give must be the same.
#![cfg(feature = "cuda")]

#[path = "../ptxvm/conformance/mod.rs"]
mod suite;

use crosstune::cuda::gpu::GpuDriver;
use crosstune::cuda::vm::{VmDriver, VmOptions};
use crosstune::cuda::{Arg, DevicePtr, Driver, DriverError, Geometry, KernelFile};
use suite::{Argument, Case};

/// A file of one kernel: the driver finds PTX by its text, which ends in NUL.
fn file(case: &Case) -> KernelFile {
    let name: &'static str = Box::leak(case.name.clone().into_boxed_str());
    let text: &'static str = Box::leak(format!("{}\0", case.ptx).into_boxed_str());
    KernelFile {
        name,
        fatbin: text.as_bytes(),
        ptxas: "",
        sass: "",
        ptx: &text[..text.len() - 1],
    }
}

/// What the kernel wrote.
fn run(driver: &dyn Driver, case: &Case) -> Result<Vec<u8>, DriverError> {
    let kernel = driver.kernel(&file(case), case.kernel)?;
    let mut buffers: Vec<DevicePtr> = Vec::new();
    let mut buffer = |bytes: usize, data: &[u8], label: &str| {
        let ptr = driver.alloc(bytes, label)?;
        if !data.is_empty() {
            driver.copy_in(ptr, data)?;
        }
        buffers.push(ptr);
        Ok::<_, DriverError>(Arg::Ptr(ptr))
    };
    let mut out = DevicePtr::NULL;
    let mut args = Vec::new();
    for argument in &case.args {
        args.push(match argument {
            Argument::Out(before) => {
                let arg = buffer(case.want.len(), before, "out")?;
                if let Arg::Ptr(ptr) = arg {
                    out = ptr;
                }
                arg
            }
            Argument::In(data) => buffer(data.len(), data, "in")?,
            Argument::U32(x) => Arg::U32(*x),
            Argument::U64(x) => Arg::U64(*x),
        });
    }
    let geometry = Geometry {
        grid: [case.grid, 1, 1],
        block: [case.block, 1, 1],
        shared_bytes: case.shared_bytes,
    };
    driver.launch(kernel, geometry, &args)?;
    let mut got = vec![0; case.want.len()];
    driver.copy_out(out, &mut got)?;
    for ptr in buffers {
        driver.free(ptr)?;
    }
    Ok(got)
}

/// Every case; all that differ are named, not the first alone.
fn conforms(driver: &dyn Driver, cases: &[Case]) {
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            match run(driver, case) {
                Ok(got) => case.check(&got).err(),
                Err(e) => Some(format!("{}: {e}", case.name)),
            }
            .map(|what| format!("{}: {what}", case.family))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{}: {} of {} cases:\n{}",
        driver.name(),
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

#[test]
fn the_virtual_machine_conforms() {
    conforms(&VmDriver::new(VmOptions::default()), &suite::cases());
}

/// The GPU that `CROSSTUNE_TEST_DEVICE=cuda:N` names must be there; where nothing is named, the first
/// may be.
#[test]
fn a_gpu_conforms_where_one_is_present() {
    let named = std::env::var("CROSSTUNE_TEST_DEVICE").ok();
    let index = named.as_ref().map_or(0, |name| {
        let index = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        index.unwrap_or_else(|| panic!("CROSSTUNE_TEST_DEVICE={name}: not cuda:N"))
    });
    match GpuDriver::open(index) {
        Ok(gpu) => {
            println!("on {}", gpu.name());
            conforms(&gpu, &suite::cases());
        }
        Err(e) if named.is_some() => panic!("cuda:{index}: {e}"),
        Err(e) => println!("no GPU here: ran in the VM only ({e})"),
    }
}
