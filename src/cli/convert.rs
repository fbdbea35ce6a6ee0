//! `crosstune convert`.

use std::path::PathBuf;

use anyhow::Result;
use crosstune::bad_input;
use crosstune::tensor::Dtype;
use crosstune::weights::convert::convert;
use serde_json::json;

use super::{Output, check_target};

/// Options of converting.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:
  crosstune convert m-clip/pytorch_model.bin m-clip/model.safetensors")]
pub struct Args {
    /// A checkpoint: .bin, .pt, .ckpt or .safetensors. Nothing in it is executed.
    input: PathBuf,
    /// The .safetensors file to write.
    output: PathBuf,
    /// Convert floating-point tensors to f32, f16 or bf16 [default: as they are].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Write over a file that exists.
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let dtype = match args.dtype.as_deref() {
        None => None,
        Some("f32") => Some(Dtype::F32),
        Some("f16") => Some(Dtype::F16),
        Some("bf16") => Some(Dtype::Bf16),
        Some(other) => {
            return Err(bad_input!("dtype: found `{other}`, expected f32, f16 or bf16").into());
        }
    };
    check_target(&args.output, args.force)?;
    convert(&args.input, &args.output, dtype)?;
    if output.json {
        println!("{}", json!({"input": args.input, "output": args.output}));
    } else if !output.quiet {
        println!("{}: written", args.output.display());
    }
    Ok(())
}
