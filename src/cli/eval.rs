//! `crosstune eval`.

use std::path::PathBuf;

use anyhow::Result;
use crosstune::bad_input;
use crosstune::data::{self, Needs, Protocol, Role, Shots, Split};
use crosstune::eval::disparity::{LanguageScore, disparity};
use crosstune::eval::retrieval::{Recall, retrieval};
use crosstune::train::examples::Examples;
use crosstune::train::objective::Strategy;
use serde_json::json;

use super::Output;
use super::adapters::AdapterArgs;
use super::compute::ComputeArgs;
use super::data::{DataArgs, names_in, required};
use super::term::{Progress, warn};

/// Options of an evaluation.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example: zero-shot recall of all languages of XTD10, on the test items of \
the 50/50/900 split:
  crosstune eval --model m-clip --xtd10 XTD10/ --features images.safetensors --lang all
Example: a German adapter on every language, but Korean with its own:
  crosstune eval --model m-clip --xtd10 XTD10/ --features images.safetensors --lang all \\
    --adapter runs/de/adapter_best.safetensors --adapter ko=runs/ko/adapter_best.safetensors"
)]
pub struct Args {
    /// The model: a folder, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<String>,
    /// Languages, comma-separated, or `all`.
    #[arg(long, value_delimiter = ',', value_name = "A,B|all")]
    lang: Vec<String>,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Which items: test, validation, train, or a published split such as test_2017_flickr
    /// [default: test].
    #[arg(long)]
    split: Option<String>,
    /// Which texts: those that this strategy evaluates on. baseline2 and routine3 take the
    /// translations to English, the others the captions [default: baseline1].
    #[arg(long)]
    strategy: Option<String>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    data: DataArgs,
}

/// A language and its recall.
struct Row {
    language: String,
    /// None for the bare model.
    adapter: Option<PathBuf>,
    recall: Recall,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let model = required(&args.model, "model", "DIR of an M-CLIP model")?;
    let engine = args.compute.open(&model)?;
    let strategy: Strategy = args.strategy.as_deref().unwrap_or("baseline1").parse()?;
    let role = strategy.anchor();
    let source = args.data.source()?;
    let languages = match args.lang.as_slice() {
        [] => return Err(bad_input!("lang: missing; give --lang A,B or --lang all").into()),
        [all] if all == "all" => data::languages(&source)?,
        list => list.to_vec(),
    };
    let mut splits = Vec::new();
    let mut all_warnings = Vec::new();
    for language in &languages {
        let (split, warnings) = read(&args, &source, language, role)?;
        for w in warnings {
            warn(format_args!("{language}: {w}"));
            all_warnings.push(format!("{language}: {w}"));
        }
        splits.push(split);
    }
    let how = (&args.compute, output);
    let (features, file) = args.data.image_features(|| Ok(names_in(&splits)), how)?;
    let adapters = args.adapters.load()?;
    let slots: Vec<usize> = languages
        .iter()
        .map(|l| adapters.slot(l))
        .collect::<Result<_>>()?;
    let mut set = adapters.bind(&engine)?;
    let mut progress = Progress::new(languages.len() as u64, output.quiet);
    let mut rows = Vec::new();
    for (i, (language, split)) in languages.iter().zip(&splits).enumerate() {
        let examples = Examples::new(&engine, split, &features, &file)?;
        let which = vec![slots[i]; examples.len()];
        let texts = set.encode(&engine, examples.text(role)?, &which, &mut |_| {})?;
        let (images, n, dim) = (&examples.images, examples.len(), examples.dim);
        let recall = engine
            .pool()
            .install(|| retrieval(&texts, images, n, dim))?;
        progress.at(i as u64 + 1, languages.len() as u64, language);
        rows.push(Row {
            language: language.clone(),
            adapter: adapters.file(slots[i]).map(Into::into),
            recall,
        });
    }
    progress.finish();
    print(&rows, &all_warnings, output)
}

fn read(
    args: &Args,
    source: &data::Source,
    language: &str,
    role: Role,
) -> Result<(Split, Vec<String>)> {
    let name = args.split.as_deref().unwrap_or("test");
    // Without --shots an evaluation asks for no training texts, and cuts as 50 shots do.
    let protocol = match args.data.shots {
        None => Protocol {
            shots: Shots::Zero,
            ..args.data.protocol()?
        },
        Some(_) => args.data.protocol()?,
    };
    if !["test", "validation", "train"].contains(&name) {
        let (split, warnings) = data::load_split(source, name, language, &[role])?;
        return Ok((split, warnings.iter().map(ToString::to_string).collect()));
    }
    let train: &[Role] = if name == "train" { &[role] } else { &[] };
    let loaded = data::load(
        source,
        language,
        &protocol,
        Needs {
            train,
            eval: &[role],
        },
    )?;
    let split = match name {
        "train" => loaded.train,
        "validation" => loaded.validation,
        _ => loaded.test,
    };
    if split.is_empty() {
        return Err(bad_input!("split: `{name}` has no items; give --shots").into());
    }
    let concerns_these = |w: &data::Warning| w.split().is_none_or(|s| s == name);
    let warnings = loaded.warnings.into_iter().filter(concerns_these);
    Ok((split, warnings.map(|w| w.to_string()).collect()))
}

fn print(rows: &[Row], warnings: &[String], output: Output) -> Result<()> {
    let scores: Vec<LanguageScore> = rows
        .iter()
        .map(|r| LanguageScore {
            language: r.language.clone(),
            mean_r1: r.recall.mean_r1(),
        })
        .collect();
    let english = scores
        .iter()
        .find(|s| s.language == "en")
        .map(|s| s.mean_r1);
    let spread = match english {
        Some(en) if rows.len() > 1 => Some(disparity(&scores, en)?),
        _ => None,
    };
    if output.json {
        let languages: Vec<_> = rows
            .iter()
            .map(|r| {
                let mut row = json!({
                    "language": r.language, "adapter": r.adapter, "mean_r1": r.recall.mean_r1(),
                });
                if let (Some(row), Ok(serde_json::Value::Object(recall))) =
                    (row.as_object_mut(), serde_json::to_value(&r.recall))
                {
                    row.extend(recall);
                }
                row
            })
            .collect();
        let all = json!({"languages": languages, "disparity": spread, "warnings": warnings});
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    // Where languages differ in it, a line tells its adapter.
    let several = rows.iter().any(|r| r.adapter != rows[0].adapter);
    println!("                 image to text            text to image          mean   ties (near)");
    println!("lang  items   R@1    R@5    R@10     R@1    R@5    R@10     R@1    i2t      t2i");
    for r in rows {
        let k = &r.recall;
        let ([a, b, c], [d, e, f]) = (k.i2t, k.t2i);
        println!(
            "{:4}  {:5}  {a:.4} {b:.4} {c:.4}   {d:.4} {e:.4} {f:.4}   {:.4}  {} ({})   {} ({}){}",
            r.language,
            k.n,
            k.mean_r1(),
            k.ties_i2t,
            k.near_ties_i2t,
            k.ties_t2i,
            k.near_ties_t2i,
            match &r.adapter {
                Some(file) if several => format!("   {}", file.display()),
                _ => String::new(),
            }
        );
    }
    if let Some(d) = spread {
        println!(
            "disparity: spread {:.4} ({} {:.4} to {} {:.4}), standard deviation from English {:.4}",
            d.spread,
            d.worst.language,
            d.worst.mean_r1,
            d.best.language,
            d.best.mean_r1,
            d.std_to_english
        );
    }
    Ok(())
}
