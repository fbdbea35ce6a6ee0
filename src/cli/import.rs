//! `crosstune import`.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use crosstune::adapter::{opendelta, peft};
use crosstune::bad_input;
use crosstune::train::program::TextModel;
use crosstune::weights::config::Encoder;
use crosstune::weights::hub;
use crosstune::weights::text_model::TextModelFiles;
use serde_json::json;

use super::term::warn;
use super::{Output, check_target, finite};

/// Another program's format.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Hugging Face PEFT, LoRA: a folder of adapter_config.json and adapter_model.safetensors.
    Peft,
    /// OpenDelta: a folder of config.json and pytorch_model.bin.
    Opendelta,
    /// PECTVLM: text_model_best.ckpt.
    Pectvlm,
}

/// Options of importing.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:
  crosstune import --from peft --adapter ko-peft --model m-clip --out ko.safetensors
  crosstune import --from pectvlm --adapter text_model_best.ckpt --model m-clip --out de.safetensors")]
pub struct Args {
    /// The adapter: a folder, or for PECTVLM a file.
    #[arg(long, value_name = "DIR|FILE")]
    adapter: PathBuf,
    /// Its format.
    #[arg(long, value_name = "FORMAT")]
    from: Format,
    /// The model that it belongs to: a folder, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: String,
    /// The adapter file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// LoRA's alpha, which PECTVLM's files do not say [default: OpenDelta's config.json, or 16].
    #[arg(long, value_parser = finite::<f32>)]
    alpha: Option<f32>,
    /// Write over a file that exists.
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    check_target(&args.out, args.force)?;
    let model = TextModel::new(TextModelFiles::open(&hub::resolve(&args.model)?)?);
    if let Encoder::Clip(_) = model.config.encoder {
        return Err(bad_input!(
            "model: {} is CLIP's own text tower; only adapters of M-CLIP's can be imported",
            args.model
        )
        .into());
    }
    let imported = match args.from {
        Format::Peft if args.alpha.is_some() => {
            return Err(
                bad_input!("alpha: PEFT's adapter_config.json says it; drop --alpha").into(),
            );
        }
        Format::Peft => peft::import(&args.adapter, &model)?,
        Format::Opendelta | Format::Pectvlm => {
            opendelta::import(&args.adapter, args.alpha, &model)?
        }
    };
    for note in &imported.notes {
        warn(note);
    }
    imported.adapter.save(&args.out)?;
    let parameters = imported.adapter.parameters();
    if output.json {
        let all = json!({"adapter": args.adapter, "output": args.out, "parameters": parameters,
            "notes": imported.notes, "settings": imported.adapter.config});
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else if !output.quiet {
        println!("{}: written, {parameters} parameters", args.out.display());
    }
    Ok(())
}
