//! The `crosstune` program.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

mod cli;

fn main() -> ExitCode {
    // Rust ignores SIGPIPE, and printing then panics where `| head` has closed the pipe: the program
    // ends by the signal instead, as others do.
    let always = Arc::new(AtomicBool::new(true));
    let signal = signal_hook::consts::SIGPIPE;
    if let Err(error) = signal_hook::flag::register_conditional_default(signal, always) {
        eprintln!("error: cannot listen to SIGPIPE: {error}");
        return ExitCode::FAILURE;
    }
    cli::main()
}
