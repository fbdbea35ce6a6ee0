//! `crosstune doctor`, with and without feature `cuda`, on a machine with or without a GPU.

use assert_cmd::Command;
use serde_json::Value;

/// The exit code, standard output and standard error.
fn doctor(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("crosstune").expect("the binary is built");
    let ran = command.arg("doctor").args(args).output().expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (ran.status.code(), text(ran.stdout), text(ran.stderr))
}

fn report() -> Value {
    let (code, stdout, stderr) = doctor(&["--json"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    serde_json::from_str(&stdout).expect("JSON")
}

#[test]
fn it_tells_of_machine_and_binary() {
    let report = report();
    let cores = std::thread::available_parallelism().expect("known").get();
    assert_eq!(report["machine"]["cores"], cores);
    assert_eq!(report["binary"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["binary"]["cuda"], cfg!(feature = "cuda"));
    for feature in ["AVX2", "FMA", "F16C", "AVX-512"] {
        assert!(report["machine"]["cpu_features"][feature].is_boolean());
    }
    #[cfg(target_os = "linux")]
    assert!(report["machine"]["memory_bytes"].as_u64() > Some(1 << 28));
    assert!(report["device"].is_null());

    let (code, stdout, _) = doctor(&[]);
    assert_eq!(code, Some(0));
    let first = format!("crosstune {}, with", env!("CARGO_PKG_VERSION"));
    assert!(stdout.starts_with(&first), "{stdout}");
    assert!(stdout.contains("machine:") && stdout.contains("CUDA driver:"));
}

#[test]
fn a_driver_is_there_or_the_reason_is() {
    let report = report();
    let (driver, reason) = (&report["cuda"]["driver"], &report["cuda"]["reason"]);
    assert_eq!(driver.is_null(), reason.is_string(), "{report}");
    if !cfg!(feature = "cuda") {
        let reason = reason.as_str().expect("no driver without the feature");
        assert!(reason.contains("--features cuda"), "{reason}");
        assert_eq!(report["kernels"], serde_json::json!([]));
    }
}

#[test]
fn a_gpu_that_is_not_there_is_one_sentence_and_exit_code_2() {
    // No machine has this many.
    let (code, stdout, stderr) = doctor(&["--device=cuda:4096"]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.starts_with("error: cuda:4096: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let report = report();
    if let Some(reason) = report["cuda"]["reason"].as_str() {
        assert!(stderr.contains(reason), "{stderr}");
    }
}

#[test]
fn the_cpu_is_always_there() {
    let (code, stdout, _) = doctor(&["--device=cpu", "--json"]);
    assert_eq!(code, Some(0));
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(report["device"]["name"], "cpu");
    assert_eq!(doctor(&["--device=auto"]).0, Some(0));
}

#[test]
fn a_device_of_no_kind_is_refused() {
    for device in ["gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "CPU", ""] {
        let (code, _, stderr) = doctor(&[&format!("--device={device}")]);
        assert_eq!(code, Some(2), "{device}");
        assert!(stderr.contains("expected auto, cpu, cuda:N") || device.is_empty());
    }
}

#[test]
#[cfg(feature = "cuda")]
fn embedded_kernels_are_listed_with_what_they_take() {
    let report = report();
    for file in report["kernels"].as_array().expect("a list") {
        assert!(file["bytes"].as_u64() > Some(0));
        for kernel in file["kernels"].as_array().expect("a list") {
            assert!(kernel["registers"].as_u64() > Some(0), "{kernel}");
            let (name, arch) = (&kernel["name"], &kernel["architecture"]);
            assert!(name.is_string() && (arch == "sm_80" || arch == "sm_90a"));
        }
    }
    assert!(doctor(&[]).1.contains("kernels by nvcc "));
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_first_gpu_works() {
    let (code, stdout, stderr) = doctor(&["--device=cuda:0"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("works"), "{stdout}");
}
