//! Kernels made worse on purpose: each limit tells them.

use std::path::Path;
use std::process::Command;

use crosstune::cuda::KernelFile;
use crosstune::cuda::report::{self, Code, Work, workload};
use crosstune::cuda::sass;
use crosstune::cuda::vm::{VmDriver, VmOptions};

use crate::limits::*;
use crate::report::{drifted, report};

/// A change of a file in kernels/: all of a text become another.
type Edit<'a> = (&'a str, &'a str, &'a str);

/// `kernels/<name>.cu` with edits, compiled as build.rs compiles it, for sm_80 alone.
fn compile(name: &'static str, edits: &[Edit<'_>]) -> KernelFile {
    let folder = tempfile::tempdir().expect("a folder");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    for entry in std::fs::read_dir(sources).expect("kernels/") {
        let path = entry.expect("a file").path();
        let file = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let mut text = std::fs::read_to_string(&path).expect("text");
        for (_, from, to) in edits.iter().filter(|e| e.0 == file) {
            assert!(text.contains(from), "{file} has no {from}");
            text = text.replace(from, to);
        }
        std::fs::write(folder.path().join(file), text).expect("written");
    }
    let run = |program: &str, args: &[&str]| -> String {
        let out = Command::new(program)
            .args(args)
            .current_dir(&folder)
            .output()
            .expect("ran");
        let said = [&out.stdout[..], &out.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(out.status.success(), "{program} {args:?}: {said}");
        said
    };
    let nvcc = |args: &[&str]| {
        let source = format!("{name}.cu");
        let common = ["-std=c++17", "-O3", "-lineinfo", source.as_str()];
        run(env!("CROSSTUNE_NVCC"), &[&common, args].concat())
    };
    nvcc(&["-ptx", "-arch=compute_80", "-o", "out.ptx"]);
    let ptxas = nvcc(&["-fatbin", "-arch=sm_80", "-Xptxas=-v", "-o", "out.fatbin"]);
    let opcodes = match env!("CROSSTUNE_CUOBJDUMP") {
        "" => String::new(),
        program => sass::to_text(&sass::count(&run(program, &["-sass", "out.fatbin"]))),
    };
    let ptx = std::fs::read_to_string(folder.path().join("out.ptx")).expect("PTX");
    let leak = |text: String| -> &'static str { text.leak() };
    KernelFile {
        name,
        fatbin: &[],
        ptx: leak(ptx),
        ptxas: leak(ptxas),
        sass: leak(opcodes),
    }
}

/// Its machine code; none where the build found no disassembler, without which some limits are blind.
fn code(file: &KernelFile) -> Option<Vec<Code>> {
    let code = report::code(file);
    if code.iter().all(|c| c.sass.is_some()) {
        return Some(code);
    }
    println!("SKIPPED: no cuobjdump beside nvcc (scripts/cuda.sh installs it)");
    None
}

/// What it does in a case of the workload.
fn work(file: &KernelFile, case: &str) -> Vec<Work> {
    let vm = VmDriver::new(VmOptions::default());
    vm.replace(file.name, file.ptx.into());
    let cases = workload::cases();
    let case = cases.iter().find(|c| c.name == case).expect("a case");
    let mut work = case.run(&vm).expect("no fault");
    work.retain(|w| w.file == file.name);
    work
}

fn tells(found: &[Found], kernel: &str, what: &str) {
    let told = |f: &Found| f.kernel == kernel && f.what.starts_with(what);
    assert!(found.iter().any(told), "{kernel} {what} is not told");
}

#[test]
fn a_kernel_that_spills_is_told() {
    let few = [(
        "linear_weight.cu",
        "__launch_bounds__(THREADS)",
        "__launch_bounds__(THREADS, 12)",
    )];
    let code = report::code(&compile("linear_weight", &few));
    tells(&spills(&code), "linear_backward_weight_f32", "on sm_80");
}

#[test]
fn a_product_by_hand_is_told() {
    let by_hand = [(
        "linear_weight.cu",
        "mma16816(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1])",
        "acc[i][j][0] += __uint_as_float(a[i][0]) * __uint_as_float(b[j / 2][j % 2 * 2])",
    )];
    let Some(code) = code(&compile("linear_weight", &by_hand)) else {
        return;
    };
    tells(
        &no_tensor_instruction(&code),
        "linear_backward_weight_f32",
        "on sm_80",
    );
}

#[test]
fn narrow_loads_and_stores_are_told() {
    let load = (
        "vec.cuh",
        "return *static_cast<const uint4*>(p);",
        "auto w = static_cast<const volatile unsigned*>(p); return make_uint4(w[0], w[1], w[2], w[3]);",
    );
    let store = (
        "vec.cuh",
        "*static_cast<uint4*>(p) = v;",
        "auto w = static_cast<volatile unsigned*>(p); w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;",
    );
    let file = compile("add", &[load, store]);
    tells(
        &narrow_traffic(&work(&file, "layer_norm")),
        "add_forward_f16",
        "in layer_norm",
    );
    let Some(code) = code(&file) else { return };
    let found = narrow_code(&code);
    tells(&found, "add_forward_f16 loads", "on sm_80");
    tells(&found, "add_forward_f16 stores", "on sm_80");
}

/// Neighbours in memory go to threads of different warps: results are the same.
#[test]
fn wasted_sectors_are_told() {
    let apart = [(
        "add.cu",
        "threadIdx.x)",
        "threadIdx.x % 32 * 8 + threadIdx.x / 32)",
    )];
    let work = work(&compile("add", &apart), "layer_norm");
    tells(&wasted_sectors(&work), "add_forward_f16", "in layer_norm");
}

#[test]
fn conflicts_in_a_main_loop_are_told() {
    let straight = [("mma.cuh", "(row >> 1) & 3 : row & 7", "0 : 0")];
    let work = work(&compile("linear_weight", &straight), "layer_norm");
    tells(
        &conflicts(&work),
        "linear_backward_weight_f32",
        "in layer_norm",
    );
}

/// One multiplication a number more.
#[test]
fn a_dearer_kernel_is_told() {
    let dearer = [("add.cu", "x[i] += y[i]", "x[i] = x[i] * x[i] + y[i] * x[i]")];
    let mut new = report().clone();
    new.work
        .retain(|w| w.file != "add" || w.case != "layer_norm");
    new.work
        .extend(work(&compile("add", &dearer), "layer_norm"));
    let told = drifted(report(), &new);
    let found = told
        .iter()
        .find(|c| c.figure == "instructions")
        .expect("more instructions");
    assert_eq!(
        (&*found.kernel, &*found.place),
        ("add_forward_f16", "layer_norm")
    );
    assert!(told.iter().all(|c| c.kernel == found.kernel), "{told:?}");
}
