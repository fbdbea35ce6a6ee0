//! The options of `crosstune train`, of the command line and of a TOML file.

use std::path::{Path, PathBuf};

use anyhow::Result;
use crosstune::bad_input;
use crosstune::data::Shots;
use crosstune::device::DeviceChoice;
use crosstune::train::config::{MemberConfig, SelectBy, Shared};
use crosstune::train::objective::{Strategy, TextLoss};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::compute::ComputeArgs;
use super::data::DataArgs;
use super::finite;
use super::method::MethodArgs;
use super::options;

/// Options of a run. A TOML file given by --config has the same names; the command line wins.
#[derive(clap::Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(after_help = "Examples:
  Korean from 50 images of XTD10, with the original's baseline:
    crosstune train --model m-clip --xtd10 XTD10/ --features images.safetensors \\
      --lang ko --strategy baseline1 --rank 1 --lr 3e-4 --out runs/ko
  German from all of Multi30K, drawn to the English captions:
    crosstune train --model m-clip --multi30k dataset/ --features flickr.safetensors --lang de \\
      --shots full --strategy routine1 --ratio 0.1 --batch 64 --epochs 1 --out runs/de
  Four languages in one run, each with an adapter of its own (runs/many/de/...); with --joint, one
  adapter for all four:
    crosstune train --model m-clip --xtd10 XTD10/ --features images.safetensors \\
      --lang de,fr,ko,tr --strategy baseline1 --out runs/many
  Go on with a run that was stopped:
    crosstune train --resume runs/de")]
pub struct Args {
    /// A TOML file with these options.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Go on with the run in this folder, with the settings it was started with.
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// The model: a folder (config.json, tokenizer.json, model.safetensors or pytorch_model.bin),
    /// or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<String>,
    /// The language to adapt to, as the data set spells it. Of several, `de,fr,cs` or `all`, each
    /// gets an adapter of its own in one run, unless --joint.
    #[arg(long, value_name = "A|A,B|all")]
    pub lang: Option<String>,
    /// Where the run goes; must not hold one yet.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Record where time goes, by phase and by op: a table at the end, and in the run's folder
    /// profile/ with a trace for chrome://tracing.
    #[arg(long)]
    #[serde(skip)]
    pub profile: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub recipe: Recipe,
}

/// How a member is trained.
#[derive(clap::Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Training")]
pub struct Recipe {
    /// One adapter for all languages of --lang: its loss is the mean of theirs.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub joint: Option<bool>,
    /// Which texts meet: baseline1, baseline2, routine1, routine2, routine3 (method1 to method3 are
    /// accepted) [default: routine1].
    #[arg(long)]
    pub strategy: Option<String>,
    /// How anchor and partner are drawn together: mse, contrastive, contrastive-with-image
    /// [default: mse].
    #[arg(long)]
    pub text_loss: Option<String>,
    /// Weight of the text loss [default: 1].
    #[arg(long, value_parser = finite::<f32>)]
    pub ratio: Option<f32>,
    /// No gradient through the partner's features.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub stop_partner: Option<bool>,
    /// Highest learning rate [default: 2e-4].
    #[arg(long, value_parser = finite::<f64>)]
    pub lr: Option<f64>,
    /// Highest learning rate of the linear head, where it is trained [default: that of the rest].
    #[arg(long, value_name = "LR", value_parser = finite::<f64>)]
    pub head_lr: Option<f64>,
    /// Steps of linear warm-up before the cosine [default: 0].
    #[arg(long, value_name = "STEPS")]
    pub warmup: Option<usize>,
    /// Added to the gradient, times the value [default: 0].
    #[arg(long, value_parser = finite::<f64>)]
    pub weight_decay: Option<f64>,
    /// Largest norm of the gradient [default: none].
    #[arg(long, value_parser = finite::<f64>)]
    pub clip_norm: Option<f64>,
    /// Passes over the data [default: 50].
    #[arg(long)]
    pub epochs: Option<usize>,
    /// Items a step [default: 5].
    #[arg(long)]
    pub batch: Option<usize>,
    /// Most packed tokens of a pass through the model. A step of more is made in pieces: a batch of
    /// thousands in the memory of a small one, with one forward pass more [default: no limit].
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Names every random number of the run [default: 1].
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
    /// Steps between evaluations on the validation items; 0 for the last step alone [default: 5 for
    /// few-shot runs, else once an epoch].
    #[arg(long, value_name = "STEPS")]
    pub eval_every: Option<usize>,
    /// What the best evaluation is chosen by: mean-r1, mean-r5, mean-r10, mean-recall
    /// [default: mean-r1].
    #[arg(long)]
    pub select_by: Option<String>,
    /// Steps between checkpoints [default: 100].
    #[arg(long, value_name = "STEPS")]
    pub save_every: Option<usize>,
    /// Begin with this adapter instead of a fresh one.
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub compute: ComputeArgs,
}

impl Args {
    /// Puts the options of a TOML file under those of the command line.
    pub fn over(self, path: &Path) -> Result<Args> {
        let origin = path.display().to_string();
        let names = options::names();
        let mut merged = serde_json::Map::new();
        for (key, value) in options::read(path)? {
            let name = options::known(&origin, &key, &names, "crosstune train")?;
            let value = options::value(&origin, &key, value)?;
            options::check(&origin, &key, &name, &value)?;
            merged.insert(name, value);
        }
        if let serde_json::Value::Object(mine) = serde_json::to_value(&self)? {
            merged.extend(mine.into_iter().filter(|(_, v)| !v.is_null()));
        }
        let (config, resume, profile) = (self.config, self.resume, self.profile);
        let read: Args = serde_json::from_value(serde_json::Value::Object(merged))
            .map_err(|e| bad_input!("{}: {e}", path.display()))?;
        Ok(Args {
            config,
            resume,
            profile,
            ..read
        })
    }

    /// Options given on the command line that --resume would have to ignore.
    pub fn beside_resume(&self) -> Result<Vec<String>> {
        let mut given: Vec<String> = match serde_json::to_value(self)? {
            serde_json::Value::Object(all) => {
                let set = all.into_iter().filter(|(_, v)| !v.is_null());
                set.map(|(name, _)| name).collect()
            }
            _ => Vec::new(),
        };
        given.retain(|name| !["threads", "device"].contains(&name.as_str()));
        given.extend(self.config.is_some().then(|| "config".to_string()));
        Ok(given)
    }

    /// What all members share.
    pub fn shared(&self) -> Result<Shared> {
        let shared = Shared {
            max_tokens: self.recipe.max_tokens,
            ..self.method.shared()?
        };
        shared.check()?;
        Ok(shared)
    }

    /// The settings of the one member.
    pub fn member(&self, steps_per_epoch: impl Fn(usize) -> usize) -> Result<MemberConfig> {
        let r = &self.recipe;
        let d = MemberConfig::default();
        let parse_select = |s: &String| {
            serde_json::from_value(json!(s)).map_err(|_| {
                bad_input!(
                    "select-by: found `{s}`, expected mean-r1, mean-r5, mean-r10 or mean-recall"
                )
            })
        };
        let strategy: Strategy = r.strategy.as_deref().map_or(Ok(d.strategy), str::parse)?;
        let text_loss: TextLoss = r.text_loss.as_deref().map_or(Ok(d.text_loss), str::parse)?;
        let select_by: SelectBy = r.select_by.as_ref().map_or(Ok(d.select_by), parse_select)?;
        let batch = r.batch.unwrap_or(d.batch);
        let few = !matches!(self.data.protocol()?.shots, Shots::Full);
        let often = if few {
            d.eval_every
        } else {
            steps_per_epoch(batch.max(1))
        };
        let config = MemberConfig {
            strategy,
            text_loss,
            ratio: r.ratio.unwrap_or(d.ratio),
            stop_partner: r.stop_partner.unwrap_or(d.stop_partner),
            lr: r.lr.unwrap_or(d.lr),
            head_lr: r.head_lr,
            warmup: r.warmup.unwrap_or(d.warmup),
            weight_decay: r.weight_decay.unwrap_or(d.weight_decay),
            clip_norm: r.clip_norm,
            epochs: r.epochs.unwrap_or(d.epochs),
            batch,
            seed: r.seed.unwrap_or(d.seed),
            eval_every: r.eval_every.unwrap_or(often),
            select_by,
        };
        config.check()?;
        Ok(config)
    }

    /// The same options with every default filled in, and what `--device auto` took: what a run folder
    /// keeps.
    pub fn resolved(
        &self,
        (lang, device): (String, DeviceChoice),
        config: &MemberConfig,
        save_every: usize,
    ) -> Args {
        let mut a = self.clone();
        a.lang = Some(lang);
        let r = &mut a.recipe;
        r.compute.device = Some(device);
        r.joint.get_or_insert(false);
        r.strategy = Some(config.strategy.to_string());
        r.text_loss = Some(config.text_loss.to_string());
        r.ratio = Some(config.ratio);
        r.stop_partner = Some(config.stop_partner);
        r.lr = Some(config.lr);
        r.warmup = Some(config.warmup);
        r.weight_decay = Some(config.weight_decay);
        r.epochs = Some(config.epochs);
        r.batch = Some(config.batch);
        r.seed = Some(config.seed);
        r.eval_every = Some(config.eval_every);
        let select = serde_json::to_value(config.select_by).ok();
        r.select_by = select.and_then(|v| v.as_str().map(String::from));
        r.save_every = Some(save_every);
        a.data.shots.get_or_insert_with(|| "50".into());
        a.data.split_seed.get_or_insert(42);
        a.method.resolve();
        a
    }
}
