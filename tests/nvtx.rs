//! NVTX ranges, with no NVIDIA library: `nvtx/nvtx.c` stands in for it, found by `LD_LIBRARY_PATH`.
#![cfg(all(feature = "cuda", target_os = "linux"))]

mod common;

use std::path::Path;
use std::process::Command;

use common::world::{World, train_args};

#[test]
fn a_profiled_run_opens_and_closes_ranges() {
    let world = World::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvtx/nvtx.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(world.path("libnvToolsExt.so.1"))
        .arg(source)
        .status();
    assert!(built.expect("cc, as for nvcc").success());
    let run = |out: &str, more: &[&str]| {
        let args = train_args(out, &[&["--epochs=1"], more].concat());
        let mut command = world.command(args);
        command.env("LD_LIBRARY_PATH", world.path(""));
        command.env("NVTX_LOG", world.path("log"));
        assert!(command.output().expect("runs").status.success());
    };
    run("plain", &[]);
    assert!(!world.path("log").exists(), "ranges without --profile");
    run("profiled", &["--profile"]);
    let log = world.text("log");
    let (mut depth, mut deepest) = (0i32, 0);
    for line in log.lines() {
        depth += if line == "-" { -1 } else { 1 };
        deepest = deepest.max(depth);
        assert!(depth >= 0, "a range that was not open was closed");
    }
    assert_eq!((depth, deepest), (0, 2));
    for name in ["+step", "+batches", "+evaluate", "+Linear", "+AdamStep"] {
        assert!(log.lines().any(|l| l == name), "{name}");
    }
    let text = world.text("profiled/profile/profile.txt");
    assert!(text.contains("NVTX ranges"), "{text}");
}
