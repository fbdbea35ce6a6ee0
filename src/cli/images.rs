//! Pictures instead of features: the options of a vision tower, and what it makes of pictures, by the
//! cache.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use crosstune::bad_input;
use crosstune::data::features::Features;
use crosstune::engine::vision::VisionEngine;
use crosstune::error::Error;
use crosstune::image::PassOrder;
use crosstune::image::cache::{Digest, FeatureCache, key};
use crosstune::image::encode::{Encoded, Unreadable, encode};
use crosstune::image::list::{self, Named};
use crosstune::image::preprocess::Preprocess;
use crosstune::weights::hub;
use crosstune::weights::vision::VisionFiles;
use serde::{Deserialize, Serialize};

use super::Output;
use super::compute::ComputeArgs;
use super::term::{Interrupt, Progress, warn};

/// Unreadable pictures that a message lists.
const TOLD: usize = 10;

/// Options of a vision tower and its cache.
#[derive(clap::Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VisionArgs {
    /// The vision tower that --images are encoded by: a folder, or a name in the local Hugging Face
    /// cache.
    #[arg(long, value_name = "DIR|NAME")]
    pub vision: Option<String>,
    /// Where features of pictures are kept, so that each is computed once [default: crosstune in
    /// $XDG_CACHE_HOME or ~/.cache].
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Resize as this version of Pillow does: 13, or 11, which takes the width first always
    /// [default: 13].
    #[arg(long, value_name = "11|13")]
    pub pillow: Option<u8>,
}

/// An opened tower with its cache.
pub struct Tower {
    pub engine: VisionEngine,
    pub preprocess: Preprocess,
    pub cache: FeatureCache,
    pub key: Digest,
}

impl VisionArgs {
    /// An option that was given, if one was.
    pub fn given(&self) -> Option<&'static str> {
        let options = [
            ("vision", self.vision.is_some()),
            ("cache", self.cache.is_some()),
            ("pillow", self.pillow.is_some()),
        ];
        options
            .iter()
            .find(|(_, given)| *given)
            .map(|(name, _)| *name)
    }

    /// Opens the tower, where it is to compute, and its cache.
    pub fn open(&self, compute: &ComputeArgs) -> Result<Tower> {
        let Some(vision) = &self.vision else {
            return Err(bad_input!("vision: missing; give --vision DIR of a vision tower").into());
        };
        let order = match self.pillow {
            None | Some(13) => PassOrder::Cheapest,
            Some(11) => PassOrder::WidthFirst,
            Some(n) => return Err(bad_input!("pillow: found {n}, expected 11 or 13").into()),
        };
        let folder = hub::resolve(vision)?;
        let side = |path: &Path| Ok(VisionFiles::open(path, None)?.config.image_size());
        let preprocess = Preprocess {
            order,
            ..Preprocess::read(&folder, || side(&folder))?
        };
        let files = VisionFiles::open(&folder, Some(preprocess.crop))?;
        let engine = VisionEngine::new(files, compute.options())?;
        let key = key(&engine, &preprocess)?;
        let dim = engine.config().embed_dim;
        let cache = FeatureCache::open(&self.folder()?, &key, dim, |path| {
            eprintln!(
                "waiting for another crosstune, which has {} open",
                path.display()
            );
        })?;
        if cache.torn() > 0 {
            warn(format_args!(
                "{}: an earlier run was cut off; {} bytes at its end are gone",
                cache.path().display(),
                cache.torn()
            ));
        }
        Ok(Tower {
            engine,
            preprocess,
            cache,
            key,
        })
    }

    fn folder(&self) -> Result<PathBuf, Error> {
        if let Some(folder) = &self.cache {
            return Ok(folder.clone());
        }
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let home = || Some(PathBuf::from(set("HOME")?).join(".cache"));
        let base = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        let base = base.ok_or_else(|| {
            bad_input!("cache: neither XDG_CACHE_HOME nor HOME is set; give --cache DIR")
        })?;
        Ok(base.join("crosstune"))
    }

    /// The features of the pictures that a data set names, in its order.
    pub fn features(
        &self,
        images: &Path,
        names: &[String],
        (compute, output): (&ComputeArgs, Output),
    ) -> Result<Features> {
        let pictures = list::by_names(images, names)?;
        let mut tower = self.open(compute)?;
        let encoded = tower.encode(&pictures, output)?;
        check(&encoded.unreadable, pictures.len(), Unread::Fatal)?;
        Ok(Features {
            names: encoded.names,
            dim: tower.engine.config().embed_dim,
            values: encoded.values,
        })
    }
}

/// What becomes of pictures that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// They end the run: each is asked for.
    Fatal,
    /// They end the run, but need not.
    FatalBy(&'static str),
    /// They are left out.
    Skipped,
}

/// Lists those of `all` pictures that could not be read; fails unless they may be left out.
pub fn check(unreadable: &[Unreadable], all: usize, what: Unread) -> Result<()> {
    if unreadable.is_empty() {
        return Ok(());
    }
    for picture in unreadable.iter().take(TOLD) {
        warn(format_args!("{}: {}", picture.path.display(), picture.why));
    }
    if unreadable.len() > TOLD {
        warn(format_args!("and {} more", unreadable.len() - TOLD));
    }
    let n = unreadable.len();
    let advice = match what {
        Unread::Skipped if n < all => return Ok(()),
        Unread::Skipped => "none is left".to_string(),
        Unread::Fatal => "mend them".into(),
        Unread::FatalBy(option) => format!("mend or remove them, or leave them out with {option}"),
    };
    Err(bad_input!("images: {n} of {all} pictures can't be read; {advice}").into())
}

impl Tower {
    /// Features of pictures, with progress; a Ctrl-C ends it with what is done kept.
    pub fn encode(&mut self, pictures: &[Named], output: Output) -> Result<Encoded> {
        let interrupt = Interrupt::listen()?;
        let total = pictures.len() as u64;
        let mut progress = Progress::new(total, output.quiet);
        let encoded = encode(
            &mut self.engine,
            &self.preprocess,
            &mut self.cache,
            pictures,
            &mut |done| {
                progress.at(done as u64, total, "pictures");
                match interrupt.stopped() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            },
        );
        progress.finish();
        if let Err(Error::Cancelled) = encoded {
            eprintln!(
                "stopped; {} features are kept, and the same command goes on",
                self.cache.len()
            );
        }
        Ok(encoded?)
    }
}
