//! `crosstune import`.

use std::path::PathBuf;

use anyhow::Result;
use crosstune::adapter::peft;
use crosstune::train::program::TextModel;
use crosstune::weights::hub;
use crosstune::weights::text_model::TextModelFiles;
use serde_json::json;

use super::export::Format;
use super::term::warn;
use super::{Output, check_target};

/// Options of importing.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:
  crosstune import --from peft --adapter ko-peft --model m-clip --out ko.safetensors")]
pub struct Args {
    /// The adapter: for PEFT, the folder of its adapter_config.json.
    #[arg(long, value_name = "DIR")]
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
    /// Write over a file that exists.
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    check_target(&args.out, args.force)?;
    let model = TextModel::new(TextModelFiles::open(&hub::resolve(&args.model)?)?);
    let imported = match args.from {
        Format::Peft => peft::import(&args.adapter, &model)?,
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
