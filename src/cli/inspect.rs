//! `crosstune inspect`.

use std::path::PathBuf;

use anyhow::Result;
use crosstune::error::Error;
use crosstune::weights::inspect;
use crosstune::weights::vision::VisionConfig;
use serde_json::json;

use super::Output;

/// Options of inspecting.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example: is every weight of a checkpoint finite?
  crosstune inspect m-clip --scan")]
pub struct Args {
    /// A checkpoint, adapter or feature file, or a model's folder.
    path: PathBuf,
    /// Read every value and name the first in each tensor that is NaN or infinite; exit code 1 if
    /// there is one.
    #[arg(long)]
    scan: bool,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let file = inspect::open(&args.path)?;
    let report = inspect::report(&file);
    let bad = args.scan.then(|| inspect::scan(&file));
    // Whether it is whole is for those to say who compute with it.
    let vision = VisionConfig::found(&args.path, &file).and_then(Result::ok);
    if output.json {
        let all = json!({"report": report, "vision": vision, "not_finite": bad});
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        println!(
            "{}: {}, {} tensors, {} parameters, {} bytes",
            report.path.display(),
            format!("{:?}", report.kind).to_lowercase(),
            report.tensors.len(),
            report.parameters,
            report.file_bytes
        );
        if let Some(c) = &vision {
            println!("  {}", tower(c));
        }
        for (key, value) in &report.metadata {
            let short: String = value.chars().take(200).collect();
            println!(
                "  {key}: {short}{}",
                if short.len() < value.len() {
                    " ..."
                } else {
                    ""
                }
            );
        }
        for t in &report.tensors {
            println!("  {:5} {:16} {}", t.dtype, format!("{:?}", t.shape), t.name);
        }
    }
    match bad.as_deref() {
        None => Ok(()),
        Some([]) => {
            if !output.json && !output.quiet {
                println!("every value is finite");
            }
            Ok(())
        }
        Some(list) => {
            let lines: Vec<String> = list
                .iter()
                .map(|b| format!("{} holds {} at element {}", b.tensor, b.value, b.index))
                .collect();
            let path = report.path.display();
            Err(Error::Run(format!("{path}: not finite: {}", lines.join("; "))).into())
        }
    }
}

/// A vision tower in a line.
fn tower(c: &VisionConfig) -> String {
    format!(
        "vision tower: pictures of {side} x {side} in patches of {patch} x {patch}; {} blocks of {} \
         channels in {} heads; features of {}",
        c.layers,
        c.hidden,
        c.heads,
        c.embed_dim,
        side = c.image_size(),
        patch = c.patch,
    )
}
