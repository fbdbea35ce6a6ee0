//! `crosstune merge`.

use std::path::PathBuf;

use anyhow::Result;
use crosstune::adapter::file::AdapterFile;
use crosstune::adapter::merge::merge;
use crosstune::weights::hub;
use serde_json::json;

use super::{Output, check_new_folder};

/// Options of merging.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example: a model that needs no adapter beside it:
  crosstune merge --model m-clip --adapter runs/ko/adapter_best.safetensors --out m-clip-ko")]
pub struct Args {
    /// The model: a folder, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: String,
    /// The adapter to fold in.
    #[arg(long, value_name = "FILE")]
    adapter: PathBuf,
    /// The folder to write; it must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    check_new_folder(&args.out)?;
    let adapter = AdapterFile::load(&args.adapter)?;
    merge(&hub::resolve(&args.model)?, &adapter, &args.out)?;
    if output.json {
        let all = json!({"model": args.model, "adapter": args.adapter, "output": args.out});
        println!("{all}");
    } else if !output.quiet {
        println!("{}: written", args.out.display());
    }
    Ok(())
}
