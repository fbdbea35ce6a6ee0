//! The `ptxvm` command: what it prints, and that a reader may go away.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

const RUN: [&str; 5] = [
    "benches/layer_norm.ptx",
    "layer_norm",
    "--grid=2",
    "--block=128",
    "--lines",
];

fn layer_norm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptxvm"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(RUN);
    for arg in ["empty:1024", "empty:8", "empty:8", "rand-f16:512"] {
        command.arg("--arg").arg(arg);
    }
    command.args([
        "--arg",
        "rand-f32:256",
        "--arg",
        "zero:1024",
        "--arg",
        "i32:256",
    ]);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn counters_are_printed() {
    let Output {
        status,
        stdout,
        stderr,
    } = layer_norm().output().expect("it runs");
    assert!(status.success(), "{}", text(&stderr));
    let printed = text(&stdout);
    // Two rows of 256 halves, read twice, and 256 weights and biases for each; two rows, two means
    // and two deviations are written.
    let bytes = "global bytes              6144 read, 1040 written";
    assert!(printed.contains(bytes), "{printed}");
    assert!(printed.contains("layer_norm.cu:"), "{printed}");
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = layer_norm();
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn();
    // The command holds the writing end too.
    drop(command);
    let done = child.and_then(|c| c.wait_with_output()).expect("it ends");
    // By SIGPIPE, which is what a shell reports as 141.
    assert_eq!(done.status.signal(), Some(13), "{:?}", done.status);
    assert_eq!(text(&done.stderr), "");
}
