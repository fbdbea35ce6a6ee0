//! `crosstune encode`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use crosstune::bad_input;
use crosstune::data::captions::read_lines;
use crosstune::data::features::Features;
use crosstune::profile::Phase;
use crosstune::tensor::Dtype;
use serde_json::json;

use super::adapters::{AdapterArgs, Adapters};
use super::compute::ComputeArgs;
use super::data::{lines_or_stdin, required};
use super::term::Progress;
use super::{Output, check_new_folder, check_target, profile};

/// Options of encoding.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example: features of English captions, to stand in for image features:
  crosstune encode --model m-clip --texts test_1kcaptions_en.txt --names test_image_names.txt \\
    --out images.safetensors
Example: texts of several languages at once, each by its language's adapter:
  crosstune encode --model m-clip --texts mixed.txt --langs mixed_langs.txt \\
    --adapter de=runs/de/adapter_best.safetensors --adapter en=none --out mixed.safetensors"
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
    /// Write f16: half the size, three digits.
    #[arg(long)]
    f16: bool,
    /// One language a line: with --adapter LANG=FILE, each text's own adapter.
    #[arg(long, value_name = "FILE")]
    langs: Option<PathBuf>,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Scale each feature to length 1.
    #[arg(long)]
    normalize: bool,
    /// Write over a file that exists.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Record where time goes, by phase and by op: a table at the end, and this folder with a trace
    /// for chrome://tracing.
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let start = Instant::now();
    let model = required(&args.model, "model", "DIR of an M-CLIP model")?;
    let texts = required(&args.texts, "texts", "FILE with one text a line")?;
    let out = required(&args.out, "out", "FILE for the features")?;
    check_target(&out, args.force)?;
    if let Some(folder) = &args.profile {
        check_new_folder(folder)?;
    }
    let mut engine = args.compute.open(&model)?;
    if args.profile.is_some() {
        engine = engine.profiled();
    }
    let (lines, texts) = lines_or_stdin(&texts)?;
    let beside = |file: &Option<PathBuf>, what: &str| -> Result<Vec<String>> {
        let Some(file) = file else { return Ok(vec![]) };
        let found = read_lines(file)?;
        if found.len() != lines.len() {
            return Err(bad_input!(
                "{}: has {} {what}, but {} has {} texts",
                file.display(),
                found.len(),
                texts.display(),
                lines.len()
            )
            .into());
        }
        Ok(found)
    };
    let names = beside(&args.names, "names")?;
    let adapters = args.adapters.load()?;
    let langs = beside(&args.langs, "languages")?;
    let which = slots(&adapters, args.langs.as_deref(), &langs, lines.len())?;
    let mut set = adapters.bind(&engine)?;
    let ready = start.elapsed();
    let ids = engine
        .tokenize(&lines)
        .map_err(|e| bad_input!("{}: {e}", texts.display()))?;
    let (_, tokenizer) = engine.tokenizer()?;
    let total = ids.len() as u64;
    let mut progress = Progress::new(total, output.quiet);
    let encode = Instant::now();
    let values = set.encode(&engine, &ids, &which, &mut |done| {
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
    {
        let _phase = engine.phase(Phase::Save);
        let dtype = if args.f16 { Dtype::F16 } else { Dtype::F32 };
        features.save_as(&out, dtype)?;
    }
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
    if let Some(folder) = &args.profile {
        profile::finish(&engine, folder, output)?;
    }
    Ok(())
}

/// The adapter of each text.
fn slots(
    adapters: &Adapters,
    file: Option<&Path>,
    langs: &[String],
    n_texts: usize,
) -> Result<Vec<usize>> {
    match (file, adapters.by_language()) {
        (None, true) => Err(bad_input!(
            "langs: missing; --adapter LANG=FILE needs --langs FILE with each text's language"
        )
        .into()),
        (Some(_), false) => Err(bad_input!(
            "langs: is of no use without an --adapter LANG=FILE for one of the languages"
        )
        .into()),
        (Some(file), true) => {
            let slot = |(i, lang): (usize, &String)| {
                let slot = adapters.slot(lang);
                slot.map_err(|e| bad_input!("{}: line {}: {e}", file.display(), i + 1).into())
            };
            langs.iter().enumerate().map(slot).collect()
        }
        (None, false) => Ok(vec![adapters.slot_of_all(); n_texts]),
    }
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
