//! Adapters in Hugging Face PEFT's format: a folder of `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! PEFT names tensors by their place in the module that it wraps, after `base_model.model.`. That
//! module is [`Wrapped::MClip`] (multilingual_clip's `MultilingualCLIP`, whose XLM-R is called
//! `transformer`) or [`Wrapped::Encoder`] (the bare XLM-R or BERT of transformers). Layer norms and
//! head are PEFT's modules_to_save.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::file::AdapterFile;
use super::peft_config::{self, PeftConfig};
use super::{Adapter, LINEAR_LAYERS, LoraConfig, Site, ends_with};
use crate::bad_input;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::train::program::{EncodeProgram, TextModel};
use crate::weights::checkpoint::{Checkpoint, shape_text};
use crate::weights::write::{OutTensor, write_atomic, write_folder, write_safetensors};

/// The settings' file.
pub const CONFIG: &str = "adapter_config.json";
/// Names of the tensors' file, best first.
pub const TENSORS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// What PEFT puts in front of every name.
const PEFT_PREFIX: &str = "base_model.model.";
/// What may stand in front of encoder names: M-CLIP, BERT and RoBERTa with a task head, and none.
const MODULE_PREFIXES: [&str; 4] = ["transformer.", "bert.", "roberta.", ""];

/// The module that PEFT wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapped {
    /// M-CLIP: `base_model.model.transformer.encoder.layer.0...`.
    MClip,
    /// Its encoder alone: `base_model.model.encoder.layer.0...`.
    Encoder,
}

/// An adapter that came from elsewhere, and what its user should know.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The adapter.
    pub adapter: AdapterFile,
    /// Sentences about what is not quite as it was.
    pub notes: Vec<String>,
}

/// Writes the folder `out` for PEFT; the values stay F32, bit by bit.
///
/// # Errors
/// [`crate::error::Error::Input`] for an adapter without LoRA, one of every tensor, or a head where
/// the encoder alone is wrapped; those of [`write_folder`].
pub fn export(adapter: &AdapterFile, wrapped: Wrapped, out: &Path) -> Result<()> {
    if adapter.config.head && wrapped == Wrapped::Encoder {
        return Err(bad_input!(
            "adapter: has a trained LinearTransformation, which is no part of the encoder; give \
             --module m-clip"
        ));
    }
    let dropout = adapter.origin.get("lora_dropout");
    let dropout = dropout.and_then(|d| d.parse().ok()).unwrap_or(0.0);
    let base = adapter.origin.get("base_model_name_or_path");
    let config = peft_config::write(&adapter.config, dropout, base.map(String::as_str))?;
    let names: Vec<String> = adapter
        .tensors
        .iter()
        .map(|(name, ..)| peft_name(name, wrapped))
        .collect();
    let tensors: Vec<OutTensor<'_>> = adapter
        .tensors
        .iter()
        .zip(&names)
        .map(|((_, shape, values), name)| OutTensor {
            name,
            dtype: Dtype::F32,
            shape: shape.clone(),
            bytes: Cow::Borrowed(bytemuck::cast_slice(values)),
        })
        .collect();
    let mut metadata = adapter.origin.clone();
    metadata.insert("format".into(), "pt".into());
    write_folder(out, |temp| {
        write_atomic(&temp.join(CONFIG), |file| {
            serde_json::to_writer_pretty(&mut *file, &config)?;
            file.write_all(b"\n")
        })?;
        write_safetensors(&temp.join(TENSORS[0]), &tensors, &metadata)
    })
}

fn peft_name(name: &str, wrapped: Wrapped) -> String {
    let inner = match wrapped {
        Wrapped::MClip => name,
        Wrapped::Encoder => name.strip_prefix("transformer.").unwrap_or(name),
    };
    match inner.split_once(".lora.") {
        Some((module, factor)) => format!("{PEFT_PREFIX}{module}.{factor}.weight"),
        None => format!("{PEFT_PREFIX}{inner}"),
    }
}

/// Reads a folder of PEFT for `model`; either module may have been wrapped.
///
/// Layer norms that it has not saved are the model's.
///
/// # Errors
/// [`crate::error::Error::Read`] and [`crate::error::Error::Input`], which names the field or the
/// tensor that is not the model's or can't be represented.
pub fn import(folder: &Path, model: &TextModel) -> Result<Imported> {
    let config = PeftConfig::read(&folder.join(CONFIG))?;
    let file = Checkpoint::open(&tensors_file(folder)?)?;
    let mut notes = Vec::new();
    let found = Found::read(&file, &mut notes)?;
    let adapter = Adapter {
        lora: Some(found.lora(&file, &config, model.config.layers)?),
        layer_norms: found.saved("output.LayerNorm"),
        head: found.saved("LinearTransformation"),
        full: false,
    };
    let mut origin = file.metadata().clone();
    origin.remove("format");
    if config.dropout != 0.0 {
        origin.insert("lora_dropout".into(), config.dropout.to_string());
        notes.push(format!(
            "lora_dropout is {}: kept for `crosstune export`, but LoRA trains without dropout here",
            config.dropout
        ));
    }
    if let Some(base) = config.base {
        origin.insert("base_model_name_or_path".into(), base);
    }
    let adapter = found.into_adapter(&file, adapter, origin, model, &mut notes)?;
    Ok(Imported { adapter, notes })
}

fn tensors_file(folder: &Path) -> Result<PathBuf> {
    let mut files = TENSORS.iter().map(|name| folder.join(name));
    files.find(|path| path.is_file()).ok_or_else(|| {
        bad_input!(
            "{}: holds no adapter of PEFT; expected {CONFIG} and {} or {}",
            folder.display(),
            TENSORS[0],
            TENSORS[1]
        )
    })
}

/// The tensors of a file by our names.
struct Found {
    /// Our name to the file's.
    names: BTreeMap<String, String>,
    /// Modules with a branch: our name to the name inside the wrapped module.
    modules: BTreeMap<String, String>,
}

impl Found {
    fn read(file: &Checkpoint, notes: &mut Vec<String>) -> Result<Found> {
        let mut found = Found {
            names: BTreeMap::new(),
            modules: BTreeMap::new(),
        };
        for (full, view) in file.tensors() {
            let bad = |why: &str| bad_input!("{}: tensor {full} {why}", file.path().display());
            let Some(inner) = full.strip_prefix(PEFT_PREFIX) else {
                return Err(bad(
                    "does not begin with base_model.model., as PEFT's names do",
                ));
            };
            if !matches!(view.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
                return Err(bad(&format!(
                    "is {}, expected F32, F16 or BF16",
                    view.dtype
                )));
            }
            let Some(own) = own_name(inner) else {
                return Err(bad(
                    "belongs to no BERT, XLM-R or M-CLIP; expected names such as \
                     base_model.model.transformer.encoder.layer.0.attention.self.query.lora_A.weight",
                ));
            };
            if own.starts_with("transformer.pooler.") {
                notes.push(format!(
                    "{inner} is left out: M-CLIP does not use the pooler"
                ));
                continue;
            }
            let name = match lora_name(&own) {
                Some((module, factor)) if is_linear(module) => {
                    let inner_module = inner.split(".lora_").next().unwrap_or(inner);
                    found.modules.insert(module.into(), inner_module.into());
                    format!("{module}.lora.{factor}")
                }
                Some(_) => return Err(bad("is a branch beside no linear layer of a block")),
                None if is_saved(&own) => own,
                None => {
                    return Err(bad(
                        "cannot be represented: beside LoRA, crosstune trains the blocks' \
                         output.LayerNorm and LinearTransformation alone",
                    ));
                }
            };
            if found.names.insert(name, full.into()).is_some() {
                return Err(bad("stands in it twice under different prefixes"));
            }
        }
        Ok(found)
    }

    /// Whether modules of that ending were trained themselves.
    fn saved(&self, module: &str) -> bool {
        let is = |name: &String| {
            name.rsplit_once('.')
                .is_some_and(|(m, _)| ends_with(m, module))
        };
        self.names.keys().any(is)
    }

    /// The one rank, alpha and list of targets of all branches.
    fn lora(&self, file: &Checkpoint, config: &PeftConfig, layers: usize) -> Result<LoraConfig> {
        let path = file.path().display();
        let mut all: Option<(f64, f64, &str)> = None;
        for (module, inner) in &self.modules {
            let (rank, alpha) = (config.rank_of(inner), config.alpha_of(inner));
            let rows = self
                .names
                .get(&format!("{module}.lora.lora_A"))
                .and_then(|name| file.get(name)?.shape.first().copied());
            if let Some(rows) = rows.filter(|rows| *rows as f64 != rank) {
                return Err(bad_input!(
                    "{path}: lora_A of {inner} has {rows} rows, but r and rank_pattern in {CONFIG} \
                     say {rank}"
                ));
            }
            let (r, a, first) = *all.get_or_insert((rank, alpha, inner));
            if r != rank {
                return Err(bad_input!(
                    "{path}: rank_pattern gives {inner} the rank {rank} and {first} {r}; crosstune \
                     has one rank for all"
                ));
            }
            if a != alpha {
                return Err(bad_input!(
                    "{path}: alpha_pattern gives {inner} the alpha {alpha} and {first} {a}; \
                     crosstune has one alpha for all"
                ));
            }
        }
        let Some((rank, alpha, _)) = all else {
            return Err(bad_input!("{path}: has no tensor called ...lora_A.weight"));
        };
        Ok(LoraConfig {
            rank: rank as usize,
            alpha: alpha as f32,
            targets: self.targets(config.targets.as_deref(), layers, &path.to_string())?,
        })
    }

    /// Targets that name exactly the modules with a branch: PEFT's own list if it does, else layers'
    /// endings, else each by its number.
    fn targets(&self, listed: Option<&[String]>, layers: usize, path: &str) -> Result<Vec<String>> {
        let every: Vec<(usize, &str)> = (0..layers)
            .flat_map(|n| LINEAR_LAYERS.map(|linear| (n, linear)))
            .collect();
        let module =
            |(n, linear): &(usize, &str)| format!("transformer.encoder.layer.{n}.{linear}");
        let modules: BTreeSet<String> = every.iter().map(module).collect();
        if let Some(alien) = self.modules.keys().find(|m| !modules.contains(*m)) {
            let inner = &self.modules[alien];
            return Err(bad_input!(
                "{path}: has a branch beside {inner}, but the model has {layers} layers; it was \
                 trained for another model"
            ));
        }
        let has = |at: &&(usize, &str)| self.modules.contains_key(&module(at));
        let uniform = LINEAR_LAYERS
            .iter()
            .filter(|l| every.iter().filter(|e| e.1 == **l).all(|e| has(&e)))
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        let numbered = every.iter().filter(has);
        let numbered = numbered.map(|(n, linear)| format!("layer.{n}.{linear}"));
        let covers = |targets: &Vec<String>| {
            let adapter = Adapter {
                lora: Some(LoraConfig {
                    targets: targets.clone(),
                    ..LoraConfig::default()
                }),
                ..Adapter::default()
            };
            let hit = |module: &String| {
                let site = Site {
                    module,
                    oc: 0,
                    k: 0,
                };
                adapter.lora_at(&site).is_some() == self.modules.contains_key(module)
            };
            adapter.check().is_ok() && modules.iter().all(hit)
        };
        let candidates = [listed.map(<[String]>::to_vec), Some(uniform)];
        let best = candidates.into_iter().flatten().find(covers);
        Ok(best.unwrap_or_else(|| numbered.collect()))
    }

    /// The values in the engine's order.
    fn into_adapter(
        self,
        file: &Checkpoint,
        config: Adapter,
        origin: BTreeMap<String, String>,
        model: &TextModel,
        notes: &mut Vec<String>,
    ) -> Result<AdapterFile> {
        let path = file.path().display();
        if config.head && !model.head {
            return Err(bad_input!(
                "{path}: has a trained LinearTransformation, but the model has none"
            ));
        }
        config.check()?;
        let program = EncodeProgram::new(&model.config, model.head, &config);
        let mut state = model.init(&program.graph, &[0])?;
        for t in 0..state.tensors.len() {
            let (own, want) = (&state.tensors[t].name, &state.tensors[t].shape);
            let Some(name) = self.names.get(own) else {
                if own.contains(".lora.") {
                    return Err(bad_input!("{path}: has no tensor for {own}"));
                }
                notes.push(format!("{own} is not in it: the model's is taken"));
                continue;
            };
            let view = file.tensor(name)?;
            if view.shape != want {
                return Err(bad_input!(
                    "{path}: {name} is {}, expected {}: it was trained for another model",
                    shape_text(view.shape),
                    shape_text(want)
                ));
            }
            state.set_value(t, 0, &view.to_f32());
        }
        match self.names.iter().find(|(own, _)| state.find(own).is_none()) {
            Some((_, name)) => Err(bad_input!("{path}: {name} is no part of the model")),
            None => Ok(AdapterFile::from_state(&config, &state, 0, origin)),
        }
    }
}

/// A name inside the wrapped module by M-CLIP's names.
fn own_name(inner: &str) -> Option<String> {
    if inner.starts_with("LinearTransformation.") {
        return Some(inner.into());
    }
    let encoder = |prefix: &str| {
        let rest = inner.strip_prefix(prefix)?;
        let parts = ["encoder.", "embeddings.", "pooler."];
        parts.iter().any(|p| rest.starts_with(p)).then_some(rest)
    };
    let rest = MODULE_PREFIXES.iter().find_map(|p| encoder(p))?;
    Some(format!("transformer.{rest}"))
}

/// Module and factor of `MODULE.lora_A.weight`.
fn lora_name(own: &str) -> Option<(&str, &str)> {
    let (module, factor) = own.strip_suffix(".weight")?.rsplit_once('.')?;
    ["lora_A", "lora_B"]
        .contains(&factor)
        .then_some((module, factor))
}

fn is_linear(module: &str) -> bool {
    let block = module.strip_prefix("transformer.encoder.layer.");
    let layer = block.and_then(|b| b.split_once('.'));
    layer.is_some_and(|(_, linear)| LINEAR_LAYERS.contains(&linear))
}

fn is_saved(own: &str) -> bool {
    let saved = Adapter {
        layer_norms: true,
        head: true,
        ..Adapter::default()
    };
    let parameter = own.rsplit('.').next();
    saved.trains(own) && matches!(parameter, Some("weight" | "bias"))
}
