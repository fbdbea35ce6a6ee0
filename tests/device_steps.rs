//! Whole steps on a device: the golden cases through every kernel, in the virtual machine or, with
//! `CROSSTUNE_TEST_DEVICE=cuda:N`, on a GPU.
#![cfg(feature = "cuda")]

mod common;
mod golden {
    #[allow(dead_code)] // tests/golden.rs uses the rest
    pub mod case;
}

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::golden::{GoldenBatch, TEXTS, batches, floats, open_model};
use common::{device, goldens, max_diff};
use crosstune::cuda::device::Device;
use crosstune::device::VmArena;
use crosstune::exec::cuda::CudaExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, MemberStep};
use crosstune::model::text::DropoutRates;
use crosstune::train::program::{EncodeProgram, TextModel, TrainProgram};
use golden::case::{Case, features, losses, set_initial};
use serde_json::Value;

/// How far features and losses may stray, in units of how far PyTorch's f16 does in the same case.
/// Measured: features 2.9 (case 13), losses 2.0 (case 22) and what the next two tell.
const TIMES: f32 = 3.0;
/// Of one case in ten, but for full training, losses may stray this far: what a case's are measured by is
/// the most of ten numbers of one run, in which roundings may cancel. Measured 3.6 (case 2) and, in a folder
/// of other shapes, 4.03. In case 2 PyTorch strays 3.1 where nothing but the frozen weights is f16, with all
/// else in f32 (tests/torch_f16_operands.py): with f16 weights no arithmetic is sure of 3.
const TIMES_SOME: f32 = 5.0;
/// Of the losses of full training, measured 4.7 and 7.7 (cases 28 and 29). PyTorch strays 3.9 and 1.4 where
/// nothing but gradients is f16, 1.3 and 3.0 where nothing but what modules give is, and 5.8 and 3.9 (on
/// another machine 8.1 and 6.1) where, as here, linear layers' inputs, biases and tables are f16 too.
const TIMES_FULL: f32 = 9.0;
/// The gradient of the first step, over its tensor's norm; measured 6.4e-2 (case 19, where ReLUs of a
/// fresh Compacter are near zero), 2.0e-2 without Compacters.
const GRAD1: f32 = 0.1;

/// `NAME_f16_noise.json` beside the folder NAME: how far PyTorch's f16 strays from the goldens.
fn noise(folder: &Path) -> Option<Value> {
    let name = folder.file_name()?.to_string_lossy().into_owned();
    let path: PathBuf = folder.with_file_name(format!("{name}_f16_noise.json"));
    if path.is_file() {
        return Some(json(&path));
    }
    println!("SKIPPED: {} is absent", path.display());
    None
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("readable");
    serde_json::from_str(&text).expect("JSON")
}

/// What ten steps left.
#[derive(PartialEq)]
struct Trace {
    feat_init: Vec<Vec<f32>>,
    losses: Vec<f32>,
    /// Worst error of the first step's gradients.
    grad1: f32,
    values: Vec<f32>,
    feat_final: Vec<Vec<f32>>,
}

fn run(
    device: &Device,
    capture: bool,
    model: &TextModel,
    case: &Case<'_>,
    data: &[GoldenBatch],
) -> Trace {
    let program = TrainProgram::new(&model.config, model.head, &case.adapter, DropoutRates::NONE);
    let tower = EncodeProgram::new(&model.config, model.head, &case.adapter);
    let mut state = model
        .init(&program.graph, &case.adapter, &[1])
        .expect("state");
    set_initial(&mut state, &case.file);
    let source = |name: &str| model.frozen(name);
    let exec = CudaExecutor::new(device, &source, program.graph.clone(), &state).expect("bound");
    let mut exec = match capture {
        true => exec,
        false => exec.without_capture(),
    };
    let encoder = CudaExecutor::new(device, &source, tower.graph.clone(), &state);
    let mut encoder = encoder.expect("bound");
    let who = (model, &case.adapter);
    let feat_init = features(&mut encoder, tower.features, who, &mut state, &data[0]);
    exec.load(&state).expect("loaded");
    let n = floats(&case.file, "losses").len();
    let (mut trace, mut grad1) = (vec![], 0.0);
    for s in 0..n {
        let step = MemberStep {
            loss_scale: 1024.0,
            ..case.step(s)
        };
        let batch = case.batch(&data[s % data.len()], &model.config);
        exec.run(&mut state, &batch, &[step]).expect("ran");
        trace.push(losses(&exec, &program.losses, &step).1);
        if s == 0 {
            exec.store(&mut state).expect("stored");
            grad1 = gradient_error(case, &state, step.loss_scale);
        }
    }
    exec.store(&mut state).expect("stored");
    let feat_final = features(&mut encoder, tower.features, who, &mut state, &data[0]);
    Trace {
        feat_init,
        losses: trace,
        grad1,
        values: state.values,
        feat_final,
    }
}

/// The norm of the difference over the norm, of the worst tensor; one whose true gradient is zero, as
/// a key's bias, holds rounding alone and is left out.
fn gradient_error(case: &Case<'_>, state: &TrainState, scale: f32) -> f32 {
    let norm = |x: Vec<f32>| x.iter().map(|v| v * v).sum::<f32>().sqrt();
    let rows = (0..state.tensors.len()).map(|t| {
        let want = floats(&case.file, &format!("grad1.{}", state.tensors[t].name));
        let got = &state.grads[state.range(t, 0)];
        let off = got.iter().zip(&want).map(|(g, w)| g / scale - w).collect();
        (norm(off), norm(want))
    });
    let rows: Vec<(f32, f32)> = rows.collect();
    let largest = rows.iter().map(|r| r.1).fold(0f32, f32::max);
    let alive = rows.iter().filter(|r| r.1 > 1e-5 * largest);
    // A NaN is the worst, and `max` would lose it.
    let errors = alive.map(|(off, size)| off / size);
    errors.fold(
        0f32,
        |m, e| if e.is_nan() { f32::INFINITY } else { m.max(e) },
    )
}

fn worst(deviations: &[Value]) -> f32 {
    let numbers = deviations.iter().filter_map(Value::as_f64);
    numbers.fold(0f64, f64::max) as f32
}

/// Runs `f` on every case, two at a time; panics with what the failed ones said.
fn each_case(cases: &[Value], f: impl Fn(&Value) -> Result<(), String> + Sync) {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = f(case) {
                        failures.lock().expect("no panic").push(why);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// What is off by how much, and its limit.
type Error = (&'static str, f32, f32);

/// How far a run is from PyTorch's, and whether its losses stray more than most may.
fn errors(entry: &Value, case: &Case<'_>, noise: &Value, got: &Trace) -> (Vec<Error>, bool) {
    let limit = |key: &str| noise[key].as_f64().expect("a deviation") as f32 * TIMES;
    let own = worst(noise["loss_abs"].as_array().expect("deviations"));
    let (is_full, want) = (entry["pet"]["type"] == "full", floats(&case.file, "losses"));
    let feature = |got: &[Vec<f32>], key: &str| {
        let of = |(got, text): (&Vec<f32>, &&str)| {
            max_diff(got, &floats(&case.file, &format!("{key}.{text}")))
        };
        got.iter().zip(&TEXTS).map(of).fold(0f32, f32::max)
    };
    let (init, last) = (
        feature(&got.feat_init, "feat_init"),
        feature(&got.feat_final, "feat_final"),
    );
    let losses = max_diff(&got.losses, &want);
    let most = if is_full { TIMES_FULL } else { TIMES_SOME };
    let all = vec![
        (
            "first loss",
            max_diff(&got.losses[..1], &want[..1]),
            own * TIMES,
        ),
        ("losses", losses, own * most),
        ("grad1", got.grad1, GRAD1),
        ("feat_init", init, limit("feat_init_abs")),
        ("feat_final", last, limit("feat_final_abs")),
    ];
    (all, !is_full && losses > own * TIMES)
}

#[test]
fn ten_steps_of_every_case_stay_near_pytorch() {
    let Some(folder) = goldens() else { return };
    let Some(noise) = noise(&folder) else { return };
    let manifest = json(&folder.join("manifest.json"));
    let model = open_model(&folder);
    let data = batches(&folder);
    let cases = manifest["cases"].as_array().expect("cases");
    let n_far = AtomicUsize::new(0);
    each_case(cases, |entry| {
        let name = entry["name"].as_str().expect("name");
        let case = Case::open(&folder, entry)?;
        let start = std::time::Instant::now();
        let packed = run(&device(VmArena::Packed), true, &model, &case, &data);
        let took = start.elapsed();
        let (errors, is_far) = errors(entry, &case, &noise[name], &packed);
        n_far.fetch_add(is_far.into(), Ordering::Relaxed);
        println!("{name:56} {errors:?} {took:.1?}");
        for (what, error, limit) in errors {
            if error.is_nan() || error > limit {
                return Err(format!(
                    "{name}: {what} is off by {error:.2e}, limit {limit:.2e}"
                ));
            }
        }
        let spread = run(&device(VmArena::Spread), false, &model, &case, &data);
        match packed == spread {
            true => Ok(()),
            false => Err(format!(
                "{name}: packed and captured differ from spread and launched"
            )),
        }
    });
    let (n_far, n) = (n_far.into_inner(), cases.len());
    assert!(
        n_far * 10 <= n,
        "losses of {n_far} of {n} cases stray more than {TIMES} times PyTorch's f16"
    );
}
