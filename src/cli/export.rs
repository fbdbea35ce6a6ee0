//! `crosstune export`.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use crosstune::adapter::file::AdapterFile;
use crosstune::adapter::peft::{self, Wrapped};
use serde_json::json;

use super::{Output, check_new_folder};

/// Another program's format.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Hugging Face PEFT, LoRA: adapter_config.json and adapter_model.safetensors.
    Peft,
}

/// The module that PEFT wraps.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Module {
    /// M-CLIP as a whole: names begin with base_model.model.transformer.
    #[value(name = "m-clip")]
    MClip,
    /// The XLM-R or BERT in it: names begin with base_model.model.encoder.
    Encoder,
}

/// Options of exporting.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example, and its use in Python:
  crosstune export --to peft --adapter runs/ko/adapter_best.safetensors --out ko-peft
  model = peft.PeftModel.from_pretrained(m_clip, 'ko-peft')")]
pub struct Args {
    /// The adapter.
    #[arg(long, value_name = "FILE")]
    adapter: PathBuf,
    /// The format to write.
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// The folder to write; it must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The module that PEFT will wrap.
    #[arg(long, default_value = "m-clip")]
    module: Module,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    check_new_folder(&args.out)?;
    let adapter = AdapterFile::load(&args.adapter)?;
    let wrapped = match args.module {
        Module::MClip => Wrapped::MClip,
        Module::Encoder => Wrapped::Encoder,
    };
    match args.to {
        Format::Peft => peft::export(&adapter, wrapped, &args.out)?,
    }
    if output.json {
        println!("{}", json!({"adapter": args.adapter, "output": args.out}));
    } else if !output.quiet {
        println!("{}: written", args.out.display());
    }
    Ok(())
}
