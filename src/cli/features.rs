//! `crosstune features`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use crosstune::data::captions::read_lines;
use crosstune::data::features::Features;
use crosstune::data::{self, Source, Task};
use crosstune::image::cache::origin;
use crosstune::image::list;
use crosstune::tensor::Dtype;
use serde_json::json;

use super::compute::ComputeArgs;
use super::data::{names_in, required};
use super::images::{Unread, VisionArgs, check};
use super::{Output, check_target};

/// Options of encoding pictures.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  crosstune features --vision clip-vit-base-patch32 --images photos/ --out photos.safetensors
  crosstune features --vision clip-vit-base-patch32 --images coco/ \\
    --xtd10 Cross-lingual-Test-Dataset-XTD10 --out xtd10.safetensors
Each picture is computed once, whatever folder or name it has later; stopped in any way, the same
command goes on.")]
pub struct Args {
    /// The folder of the pictures.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// One name a line, plain or gzipped: pictures to encode, in this order, found in --images or
    /// anywhere below it [default: all pictures there, by name].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["multi30k", "xtd10"])]
    list: Option<PathBuf>,
    /// The pictures that Multi30K's published repository lists (COCO's or Flickr30K's folders).
    #[arg(long, value_name = "DIR", conflicts_with = "xtd10")]
    multi30k: Option<PathBuf>,
    /// Of Multi30K, those of some splits, such as test_2017_mscoco [default:
    /// train,val,test_2016_flickr].
    #[arg(long, value_name = "A,B", value_delimiter = ',', requires = "multi30k")]
    split: Vec<String>,
    /// The pictures that XTD10's published repository lists.
    #[arg(long, value_name = "DIR")]
    xtd10: Option<PathBuf>,
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
    #[command(flatten)]
    compute: ComputeArgs,
}

/// The splits that the protocol of Multi30K takes.
const SPLITS: [&str; 3] = ["train", "val", "test_2016_flickr"];

impl Args {
    /// The pictures that a list names, by the names that data sets have for them.
    fn names(&self) -> Result<Option<Vec<String>>> {
        let translations = None;
        let (source, splits) = match (&self.list, &self.multi30k, &self.xtd10) {
            (Some(file), ..) => {
                let names = read_lines(file)?;
                let names = names.iter().map(|name| list::without_id(name).to_owned());
                return Ok(Some(names.collect()));
            }
            (None, Some(root), _) => {
                let (root, task) = (root.clone(), Task::Translation);
                let source = Source::Multi30k {
                    root,
                    task,
                    translations,
                };
                match self.split.is_empty() {
                    true => (source, SPLITS.map(String::from).to_vec()),
                    false => (source, self.split.clone()),
                }
            }
            (None, None, Some(root)) => {
                let root = root.clone();
                let source = Source::Xtd10 { root, translations };
                (source, vec!["all".to_string()])
            }
            (None, None, None) => return Ok(None),
        };
        let mut read = Vec::new();
        for split in &splits {
            read.push(data::load_split(&source, split, "en", &[])?.0);
        }
        Ok(Some(names_in(&read)))
    }
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let start = Instant::now();
    let images = required(&args.images, "images", "DIR with pictures")?;
    let out = required(&args.out, "out", "FILE for the features")?;
    check_target(&out, args.force)?;
    let pictures = match args.names()? {
        None => list::in_folder(&images)?,
        Some(names) => list::by_names(&images, &names)?,
    };
    let mut tower = args.vision.open(&args.compute)?;
    let encoded = tower.encode(&pictures, output)?;
    let what = match args.skip_unreadable {
        true => Unread::Skipped,
        false => Unread::FatalBy("--skip-unreadable"),
    };
    check(&encoded.unreadable, pictures.len(), what)?;
    let (n, dim) = (encoded.names.len(), tower.engine.config().embed_dim);
    let features = Features {
        names: encoded.names,
        dim,
        values: encoded.values,
    };
    let metadata = origin(tower.engine.files(), &tower.preprocess, &tower.key)?;
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
