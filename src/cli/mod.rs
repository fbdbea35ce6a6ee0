//! The command line: one file a subcommand. Each parses, calls the library and prints.

mod adapters;
mod compute;
mod convert;
mod data;
mod demo;
mod doctor;
mod encode;
mod eval;
mod export;
mod features;
mod images;
mod import;
mod inspect;
mod kernels;
mod merge;
mod method;
mod options;
mod plan;
mod plan_time;
mod profile;
mod run_folder;
mod search;
mod sweep;
mod sweep_args;
mod term;
mod train;
mod train_args;
mod train_inputs;
mod train_results;

use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Parser, Subcommand};
use crosstune::bad_input;
use crosstune::error::Error;

/// Adapts a frozen multilingual CLIP to a language by training a fraction of a percent of new
/// parameters.
#[derive(Parser)]
#[command(
    name = "crosstune",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(
    after_help = "Start with `crosstune demo`: it needs no files and takes a few minutes.
Exit codes: 0 done, 1 failed while running, 2 bad input, 130 interrupted (a checkpoint was saved)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print no progress, only results and errors.
    #[arg(long, global = true)]
    quiet: bool,
    /// Print results as JSON on standard output.
    #[arg(long, global = true)]
    json: bool,
}

/// How results and progress are shown.
#[derive(Clone, Copy)]
struct Output {
    quiet: bool,
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make a small world, train a small tower in it, adapt it to several languages.
    Demo(demo::Args),
    /// Adapt a model to a language.
    Train(Box<train::Args>),
    /// Train a grid of settings, many members in one step, and lay their results out in a table.
    Sweep(Box<sweep::Args>),
    /// Measure retrieval per language, with or without an adapter.
    Eval(Box<eval::Args>),
    /// Turn texts into features.
    Encode(encode::Args),
    /// Turn pictures into features by a vision tower, each once.
    Features(features::Args),
    /// Find the images nearest to a sentence, or the captions nearest to an image.
    Search(Box<search::Args>),
    /// Show what would be trained and what memory it takes.
    Plan(Box<plan::Args>),
    /// Show what is in a checkpoint, an adapter or a feature file.
    Inspect(inspect::Args),
    /// Write a checkpoint as safetensors.
    Convert(convert::Args),
    /// Fold an adapter into its model.
    Merge(merge::Args),
    /// Write an adapter in another program's format.
    Export(export::Args),
    /// Read an adapter of another program.
    Import(import::Args),
    /// Show what each CUDA kernel costs: registers, instructions, memory traffic. No GPU is needed.
    Kernels(kernels::Args),
    /// Show what this machine and this binary can do, and check a device.
    Doctor(doctor::Args),
}

/// Parses the command line, runs the command and maps its error to an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output {
        quiet: cli.quiet,
        json: cli.json,
    };
    let result = match cli.command {
        Command::Demo(args) => demo::run(args, output),
        Command::Train(args) => train::run(*args, output),
        Command::Sweep(args) => sweep::run(*args, output),
        Command::Eval(args) => eval::run(*args, output),
        Command::Encode(args) => encode::run(args, output),
        Command::Features(args) => features::run(args, output),
        Command::Search(args) => search::run(*args, output),
        Command::Plan(args) => plan::run(*args, output),
        Command::Inspect(args) => inspect::run(args, output),
        Command::Convert(args) => convert::run(args, output),
        Command::Merge(args) => merge::run(args, output),
        Command::Export(args) => export::run(args, output),
        Command::Import(args) => import::run(args, output),
        Command::Kernels(args) => kernels::run(args, output),
        Command::Doctor(args) => doctor::run(args, output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let known = error.downcast_ref::<Error>();
            match known {
                // Whoever was interrupted has said how to go on.
                Some(Error::Cancelled) => {}
                // Its message holds its cause.
                Some(known) => eprintln!("error: {known}"),
                None => eprintln!("error: {error:#}"),
            }
            ExitCode::from(known.map_or(1, Error::exit_code))
        }
    }
}

/// Refuses a file to be written that exists, or whose folder does not.
fn check_target(path: &Path, force: bool) -> Result<(), Error> {
    let file = path.display();
    if path.is_dir() {
        return Err(bad_input!("{file}: is a folder, expected a file name"));
    }
    if path.exists() && !force {
        return Err(bad_input!(
            "{file}: already exists; give --force to replace it"
        ));
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => Err(bad_input!(
            "{file}: cannot be written: {} is not a folder; make it first",
            folder.display()
        )),
        _ => Ok(()),
    }
}

/// Refuses a folder to be written that exists, or whose own folder does not.
fn check_new_folder(path: &Path) -> Result<(), Error> {
    if path.exists() {
        return Err(bad_input!(
            "{}: already exists; nothing is overwritten, choose another folder",
            path.display()
        ));
    }
    check_target(path, false)
}

/// Parses a number that is neither NaN nor infinite.
fn finite<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    match text.parse::<T>() {
        Ok(x) if x.into().is_finite() => Ok(x),
        _ => Err("expected a finite number".into()),
    }
}
