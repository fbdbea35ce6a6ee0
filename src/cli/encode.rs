//! `crosstune encode`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use crosstune::adapter::Adapter;
use crosstune::adapter::file::AdapterFile;
use crosstune::bad_input;
use crosstune::data::captions::{lines_of, read_lines};
use crosstune::data::features::Features;
use crosstune::engine::{Engine, EngineOptions, TextEncoder};
use crosstune::error::Error;
use crosstune::weights::hub;
use serde_json::json;

use super::data::required;
use super::term::Progress;
use super::{Output, check_target};

/// The name of standard input in messages.
const STDIN: &str = "standard input";

/// Options of encoding.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example: features of English captions, to stand in for image features:
  crosstune encode --model m-clip --texts test_1kcaptions_en.txt --names test_image_names.txt \\
    --out images.safetensors"
)]
pub struct Args {
    /// The model: a folder, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<String>,
    /// One text a line, plain or gzipped; `-` for standard input.
    #[arg(long, value_name = "FILE|-")]
    texts: Option<PathBuf>,
    /// One name a line: the image that each text stands for.
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// The feature file: tensor image_features (N, E), f32, names in the metadata.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// An adapter to use.
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// Scale each feature to length 1.
    #[arg(long)]
    normalize: bool,
    /// Write over a file that exists.
    #[arg(long)]
    force: bool,
    /// Threads [default: all cores].
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let start = Instant::now();
    let model = required(&args.model, "model", "DIR of an M-CLIP model")?;
    let texts = required(&args.texts, "texts", "FILE with one text a line")?;
    let out = required(&args.out, "out", "FILE for the features")?;
    check_target(&out, args.force)?;
    let engine = Engine::open(
        &hub::resolve(&model)?,
        EngineOptions {
            threads: args.threads,
        },
    )?;
    let (lines, texts) = match texts == Path::new("-") {
        true => (stdin_lines()?, PathBuf::from(STDIN)),
        false => (read_lines(&texts)?, texts),
    };
    let names = args
        .names
        .as_deref()
        .map(read_lines)
        .transpose()?
        .unwrap_or_default();
    if let (Some(file), true) = (&args.names, names.len() != lines.len()) {
        return Err(bad_input!(
            "{}: has {} names, but {} has {} texts",
            file.display(),
            names.len(),
            texts.display(),
            lines.len()
        )
        .into());
    }
    let adapter = args.adapter.as_deref().map(AdapterFile::load).transpose()?;
    let config = adapter
        .as_ref()
        .map_or_else(Adapter::default, |a| a.config.clone());
    let mut encoder = TextEncoder::new(&engine, &config)?;
    if let Some(a) = &adapter {
        a.load_into(&mut encoder.state)?;
    }
    let ready = start.elapsed();
    let ids = engine
        .tokenize(&lines)
        .map_err(|e| bad_input!("{}: {e}", texts.display()))?;
    let (_, tokenizer) = engine.tokenizer()?;
    let total = ids.len() as u64;
    let mut progress = Progress::new(total, output.quiet);
    let encode = Instant::now();
    let values = encoder.encode(&engine, &ids, &mut |done| {
        progress.at(done as u64, total, "texts")
    })?;
    progress.finish();
    let seconds = encode.elapsed().as_secs_f64();
    let mut features = Features {
        names,
        dim: engine.embed_dim(),
        values,
    };
    if args.normalize {
        normalize(&mut features);
    }
    features.save(&out)?;
    let tokens: usize = ids.iter().map(Vec::len).sum();
    let report = json!({
        "texts": ids.len(),
        "tokens": tokens,
        "dim": features.dim,
        "out": out,
        "encode_seconds": seconds,
        "tokens_per_second": tokens as f64 / seconds,
        "bound_seconds": ready.as_secs_f64(),
        "tokenizer_seconds": tokenizer.as_secs_f64(),
    });
    if output.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if !output.quiet {
        println!(
            "{}: {} texts, {} wide; {:.0} tokens/s (weights bound after {:.2} s, tokenizer loaded \
             beside in {:.2} s)",
            out.display(),
            ids.len(),
            features.dim,
            tokens as f64 / seconds,
            ready.as_secs_f64(),
            tokenizer.as_secs_f64()
        );
    }
    Ok(())
}

fn stdin_lines() -> Result<Vec<String>> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(Error::read(STDIN))?;
    Ok(lines_of(bytes, Path::new(STDIN))?)
}

fn normalize(features: &mut Features) {
    for row in features.values.chunks_mut(features.dim) {
        let norm = row
            .iter()
            .map(|x| f64::from(*x) * f64::from(*x))
            .sum::<f64>()
            .sqrt() as f32;
        row.iter_mut().for_each(|x| *x /= norm);
    }
}
