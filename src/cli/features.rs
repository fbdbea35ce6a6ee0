//! `crosstune features`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use crosstune::data::captions::read_lines;
use crosstune::data::features::Features;
use crosstune::image::list;
use crosstune::tensor::Dtype;
use serde_json::json;

use super::data::required;
use super::images::{Unread, VisionArgs, check};
use super::{Output, check_target};

/// Options of encoding pictures.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  crosstune features --vision clip-vit-base-patch32 --images photos/ --out photos.safetensors
  crosstune features --vision clip-vit-base-patch32 --images coco/ \\
    --list XTD10/test_image_names.txt --out xtd10.safetensors
Each picture is computed once, whatever folder or name it has later; stopped in any way, the same
command goes on.")]
pub struct Args {
    /// The folder of the pictures.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// One name a line, plain or gzipped: pictures to encode, in this order, in --images or where
    /// COCO's and Flickr30K's conventions put them below it [default: all .jpg, .jpeg and .png
    /// files, by name].
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    #[command(flatten)]
    vision: VisionArgs,
    /// Leave out pictures that can't be read; they are listed.
    #[arg(long)]
    skip_unreadable: bool,
    /// The feature file: tensor image_features (N, E), f32, names in the metadata.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write f16: half the size, three digits.
    #[arg(long)]
    f16: bool,
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
    let images = required(&args.images, "images", "DIR with pictures")?;
    let out = required(&args.out, "out", "FILE for the features")?;
    check_target(&out, args.force)?;
    let pictures = match &args.list {
        None => list::in_folder(&images)?,
        Some(file) => {
            let names = read_lines(file)?;
            list::by_names(&images, &names)?
        }
    };
    let mut tower = args.vision.open(args.threads)?;
    let encoded = tower.encode(&pictures, output)?;
    let what = match args.skip_unreadable {
        true => Unread::Skipped,
        false => Unread::FatalBy("--skip-unreadable"),
    };
    check(&encoded.unreadable, pictures.len(), what)?;
    let (n, dim) = (encoded.names.len(), tower.engine.config().embed_dim);
    let key: String = tower.key.iter().map(|b| format!("{b:02x}")).collect();
    let features = Features {
        names: encoded.names,
        dim,
        values: encoded.values,
    };
    let metadata = BTreeMap::from([
        (
            "vision".to_string(),
            tower.engine.files().path.display().to_string(),
        ),
        (
            "preprocess".to_string(),
            serde_json::to_string(&tower.preprocess)?,
        ),
        ("key".to_string(), key),
    ]);
    let dtype = if args.f16 { Dtype::F16 } else { Dtype::F32 };
    features.save_with(&out, dtype, metadata)?;
    let seconds = start.elapsed().as_secs_f64();
    let skipped: Vec<&str> = encoded.unreadable.iter().map(|u| u.name.as_str()).collect();
    if output.json {
        let all = json!({
            "output": out, "images": n, "dim": dim, "computed": encoded.computed,
            "skipped": skipped, "cache": tower.cache.path(), "seconds": seconds,
        });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else if !output.quiet {
        let left = match skipped.len() {
            0 => String::new(),
            n => format!(", {n} left out"),
        };
        println!(
            "{}: {n} features of {dim} numbers, {} computed now{left}, {seconds:.1} s",
            out.display(),
            encoded.computed
        );
    }
    Ok(())
}
