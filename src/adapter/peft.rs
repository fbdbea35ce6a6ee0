//! Adapters in Hugging Face PEFT's format: a folder of `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! PEFT names tensors by their place in the module that it wraps, after `base_model.model.`. That
//! module is [`Wrapped::MClip`] (multilingual_clip's `MultilingualCLIP`, whose XLM-R is called
//! `transformer`) or [`Wrapped::Encoder`] (the bare XLM-R or BERT of transformers). Layer norms and
//! head are PEFT's modules_to_save.

use std::path::{Path, PathBuf};

use super::file::AdapterFile;
use super::found::{Dialect, Found, Imported, PEFT_PREFIX};
use super::peft_config::{self, PeftConfig};
use super::{Adapter, LoraConfig};
use crate::bad_input;
use crate::error::Result;
use crate::train::program::TextModel;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::write::{write_atomic, write_folder, write_safetensors};

/// The settings' file.
pub const CONFIG: &str = "adapter_config.json";
/// Names of the tensors' file, best first.
pub const TENSORS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The module that PEFT or OpenDelta wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapped {
    /// M-CLIP: `transformer.encoder.layer.0...`, for PEFT after `base_model.model.`.
    MClip,
    /// Its encoder alone: `encoder.layer.0...`.
    Encoder,
}

impl Wrapped {
    /// Fails where an adapter trains what is not in the module.
    pub(super) fn check(self, adapter: &Adapter) -> Result<()> {
        match adapter.head && self == Wrapped::Encoder {
            true => Err(bad_input!(
                "adapter: has a trained LinearTransformation, which is no part of the encoder; give \
                 --module m-clip"
            )),
            false => Ok(()),
        }
    }

    /// A tensor's name in the module.
    pub(super) fn inner(self, name: &str) -> &str {
        match self {
            Wrapped::MClip => name,
            Wrapped::Encoder => name.strip_prefix("transformer.").unwrap_or(name),
        }
    }
}

/// Writes the folder `out` for PEFT; the values stay F32, bit by bit.
///
/// # Errors
/// [`crate::error::Error::Input`] for an adapter without LoRA, one of every tensor, a prompt, or a head where
/// the encoder alone is wrapped; those of [`write_folder`].
pub fn export(adapter: &AdapterFile, wrapped: Wrapped, out: &Path) -> Result<()> {
    wrapped.check(&adapter.config)?;
    if let Some(what) = adapter.config.own_layers() {
        return Err(bad_input!(
            "adapter: has {what}, which PEFT's LoRA format cannot hold"
        ));
    }
    if adapter.config.prompt.is_some() {
        return Err(bad_input!(
            "adapter: has a soft prompt, whose vectors follow the first token; PEFT's stand before it"
        ));
    }
    let base = adapter.origin.get("base_model_name_or_path");
    let config = peft_config::write(&adapter.config, base.map(String::as_str))?;
    let names: Vec<String> = adapter
        .tensors
        .iter()
        .map(|(name, ..)| peft_name(name, wrapped))
        .collect();
    let mut metadata = adapter.origin.clone();
    metadata.insert("format".into(), "pt".into());
    write_folder(out, |temp| {
        write_atomic(&temp.join(CONFIG), |file| {
            serde_json::to_writer_pretty(&mut *file, &config)?;
            file.write_all(b"\n")
        })?;
        write_safetensors(
            &temp.join(TENSORS[0]),
            &adapter.out_tensors(&names),
            &metadata,
        )
    })
}

fn peft_name(name: &str, wrapped: Wrapped) -> String {
    let inner = wrapped.inner(name);
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
    let found = Found::read(&file, Dialect::Peft, &mut notes)?;
    let adapter = Adapter {
        lora: Some(lora(&found, &file, &config, model.config.layers)?),
        layer_norms: found.saved("output.LayerNorm"),
        head: found.saved("LinearTransformation"),
        ..Adapter::default()
    };
    let mut origin = file.metadata().clone();
    origin.remove("format");
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

/// Ranks, alphas and targets of the branches.
fn lora(
    found: &Found,
    file: &Checkpoint,
    config: &PeftConfig,
    layers: usize,
) -> Result<LoraConfig> {
    let path = file.path().display();
    let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
    for (module, inner) in &found.modules {
        let rank = config.rank_of(inner);
        let rows = found
            .names
            .get(&format!("{module}.lora.lora_A"))
            .and_then(|name| file.get(name)?.shape.first().copied());
        if let Some(rows) = rows.filter(|rows| *rows as f64 != rank) {
            return Err(bad_input!(
                "{path}: lora_A of {inner} has {rows} rows, but r and rank_pattern in {CONFIG} \
                 say {rank}"
            ));
        }
        ranks.push((module.as_str(), rank as usize));
        alphas.push((module.as_str(), config.alpha_of(inner) as f32));
    }
    if ranks.is_empty() {
        return Err(bad_input!("{path}: has no tensor called ...lora_A.weight"));
    }
    let (rank, rank_pattern) = Found::with_pattern(config.rank as usize, &ranks);
    let (alpha, alpha_pattern) = Found::with_pattern(config.alpha as f32, &alphas);
    Ok(LoraConfig {
        rank,
        alpha,
        targets: found.targets(config.targets.as_deref(), layers, &path.to_string())?,
        rslora: config.rslora,
        rank_pattern,
        alpha_pattern,
        dropout: config.dropout as f32,
    })
}
