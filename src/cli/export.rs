//! `crosstune export`.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use crosstune::adapter::file::AdapterFile;
use crosstune::adapter::opendelta;
use crosstune::adapter::peft::{self, Wrapped};
use crosstune::bad_input;
use serde_json::json;

use super::{Output, check_new_folder, check_target};

/// Another program's format.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Hugging Face PEFT, LoRA: adapter_config.json and adapter_model.safetensors.
    Peft,
    /// OpenDelta: config.json and pytorch_model.bin.
    Opendelta,
    /// PECTVLM: a file such as text_model_best.ckpt.
    Pectvlm,
}

/// The module that another program wraps.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Module {
    /// M-CLIP as a whole: names begin with transformer.
    #[value(name = "m-clip")]
    MClip,
    /// The XLM-R or BERT in it: names begin with encoder.
    Encoder,
}

/// Options of exporting.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples, each with its use in Python:
  crosstune export --to peft --adapter runs/ko/adapter_best.safetensors --out ko-peft
  model = peft.PeftModel.from_pretrained(m_clip, 'ko-peft')

  crosstune export --to opendelta --adapter runs/ko/adapter_best.safetensors --out ko-delta
  opendelta.AutoDeltaModel.from_finetuned('ko-delta', m_clip.transformer)

  crosstune export --to pectvlm --adapter runs/ko/adapter_best.safetensors --out text_model_best.ckpt
  m_clip.load_state_dict(torch.load('text_model_best.ckpt'), strict=False)  # with PECTVLM's delta attached")]
pub struct Args {
    /// The adapter.
    #[arg(long, value_name = "FILE")]
    adapter: PathBuf,
    /// The format to write.
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// The folder to write, which must not exist, or for PECTVLM the file.
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,
    /// The module that PEFT or OpenDelta will wrap [default: m-clip for PEFT, encoder for OpenDelta].
    #[arg(long)]
    module: Option<Module>,
    /// Write over a file that exists, for PECTVLM.
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    match args.to {
        Format::Pectvlm if args.module.is_some() => {
            return Err(bad_input!("module: PECTVLM's names are those of M-CLIP; drop it").into());
        }
        Format::Pectvlm => check_target(&args.out, args.force)?,
        _ if args.force => {
            return Err(
                bad_input!("force: goes with --to pectvlm alone; no folder is replaced").into(),
            );
        }
        _ => check_new_folder(&args.out)?,
    }
    let adapter = AdapterFile::load(&args.adapter)?;
    if adapter.is_clips() {
        return Err(bad_input!(
            "adapter: is one of CLIP's own text tower; only those of M-CLIP's can be exported"
        )
        .into());
    }
    let wrapped = |default| match args.module {
        None => default,
        Some(Module::MClip) => Wrapped::MClip,
        Some(Module::Encoder) => Wrapped::Encoder,
    };
    match args.to {
        Format::Peft => peft::export(&adapter, wrapped(Wrapped::MClip), &args.out)?,
        Format::Opendelta => opendelta::export(&adapter, wrapped(Wrapped::Encoder), &args.out)?,
        Format::Pectvlm => opendelta::export_pectvlm(&adapter, &args.out)?,
    }
    if output.json {
        println!("{}", json!({"adapter": args.adapter, "output": args.out}));
    } else if !output.quiet {
        println!("{}: written", args.out.display());
    }
    Ok(())
}
