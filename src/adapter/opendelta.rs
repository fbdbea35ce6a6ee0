//! Adapters of OpenDelta, and of PECTVLM, which trains with it.
//!
//! OpenDelta's is a folder of `pytorch_model.bin` and `config.json`; PECTVLM's a file,
//! `text_model_best.ckpt`, of every tensor that was trained. Names are ours:
//! `transformer.encoder.layer.0.attention.self.query.lora.lora_A`. Neither says all that an adapter
//! file says: what they leave out lies in the file where they do not look, and is read from there.

use std::path::Path;

use serde_json::Value;

use super::delta_config::{self, ALPHA, Said};
use super::file::{self, AdapterFile};
use super::found::{Dialect, Found, Imported};
use super::peft::Wrapped;
use super::{Adapter, LoraConfig, deltas};
use crate::bad_input;
use crate::error::{Error, Result};
use crate::train::program::TextModel;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::pickle_write::write_pytorch;
use crate::weights::write::{OutTensor, write_atomic, write_folder};

/// Reads a delta folder or a file of trained tensors for `model`.
///
/// LoRA's alpha is `alpha`, else the folder's `lora_alpha`, else 16: OpenDelta's whatever the rank.
/// Layer norms and biases that it lacks are the model's. A soft prompt is
/// `soft_prompt_layer.soft_embeds`; its vectors follow the first token, as PECTVLM's do. What is
/// assumed is among the notes.
///
/// # Errors
/// [`crate::error::Error::Read`] and [`crate::error::Error::Input`], which names the tensor that is not
/// the model's or can't be represented.
pub fn import(path: &Path, alpha: Option<f32>, model: &TextModel) -> Result<Imported> {
    let file = Checkpoint::open(path)?;
    let mut said = Said::read(path, file::settings(&file)?)?;
    let mut notes = Vec::new();
    let found = Found::read(&file, Dialect::OpenDelta, &mut notes)?;
    let adapter = match found.full() {
        true => Adapter::full(),
        false => Adapter {
            lora: lora(&found, &file, alpha, &mut said, model.config.layers)?,
            bottleneck: deltas::bottleneck(&found, &file, &mut said)?,
            compacter: deltas::compacter(&found, &file, &mut said, model.config.hidden)?,
            prompt: prompt(&found, &file, &mut said),
            layer_norms: found.layer_norms(),
            biases: found.biases(),
            head: found.saved("LinearTransformation"),
            ..Adapter::default()
        },
    };
    let mut origin = file.metadata().clone();
    origin.retain(|key, _| !["format", "adapter"].contains(&key.as_str()));
    notes.append(&mut said.assumed);
    let adapter = found.into_adapter(&file, adapter, origin, model, &mut notes)?;
    Ok(Imported { adapter, notes })
}

/// Writes the folder `out` for OpenDelta around `wrapped`; the values stay F32, bit by bit.
///
/// BitFit's biases have the model's own names, as opendelta 0.3.2 leaves them.
///
/// # Errors
/// [`crate::error::Error::Input`] for what is no delta of OpenDelta (a soft prompt, several kinds at
/// once, tensors of the model alone, branches of different scales), or a head where the encoder alone
/// is wrapped; those of [`write_folder`].
pub fn export(adapter: &AdapterFile, wrapped: Wrapped, out: &Path) -> Result<()> {
    wrapped.check(&adapter.config)?;
    let config = delta_config::write(&adapter.config)?;
    let name = |own: &str| wrapped.inner(&deltas::their_name(own)).to_string();
    write_folder(out, |temp| {
        write_atomic(&temp.join("config.json"), |file| {
            serde_json::to_writer_pretty(&mut *file, &config)?;
            file.write_all(b"\n")
        })?;
        write_tensors(adapter, name, &temp.join("pytorch_model.bin"))
    })
}

/// Writes the file `out` for PECTVLM; the values stay F32, bit by bit.
///
/// # Errors
/// [`crate::error::Error::Input`] for what PECTVLM's scripts would compute otherwise (an alpha that is
/// not 16, rslora, ranks that differ, parallel bottlenecks, a phm-dim that is not 4, several kinds at
/// once); those of [`write_pytorch`].
pub fn export_pectvlm(adapter: &AdapterFile, out: &Path) -> Result<()> {
    delta_config::check_pectvlm(&adapter.config)?;
    write_tensors(adapter, str::to_string, out)
}

fn write_tensors(adapter: &AdapterFile, name: impl Fn(&str) -> String, out: &Path) -> Result<()> {
    let names: Vec<String> = adapter.tensors.iter().map(|t| name(&t.0)).collect();
    let tensors: Vec<OutTensor<'_>> = adapter.out_tensors(&names);
    write_pytorch(out, &tensors, &adapter.metadata())
}

/// Rank and targets of the branches, if there are any.
fn lora(
    found: &Found,
    file: &Checkpoint,
    alpha: Option<f32>,
    said: &mut Said,
    layers: usize,
) -> Result<Option<LoraConfig>> {
    let path = file.path().display();
    let mut ranks = Vec::new();
    for module in found.modules.keys() {
        let name = found.names.get(&format!("{module}.lora.lora_A"));
        let Some(&rows) = name.and_then(|n| file.get(n)?.shape.first()) else {
            return Err(bad_input!("{path}: has no tensor for {module}.lora.lora_A"));
        };
        ranks.push((module.as_str(), rows));
    }
    let Some((_, first)) = ranks.first() else {
        return Ok(None);
    };
    let saved = said.saved.as_ref().and_then(|s| s.lora.clone());
    let config = |field: &str| Ok::<_, Error>(said.number(field)?.map(|x| x as f32));
    let alpha = alpha
        .or(config("lora_alpha")?)
        .or(saved.as_ref().map(|s| s.alpha));
    let dropout = config("lora_dropout")?.or(saved.as_ref().map(|s| s.dropout));
    let listed = saved.map(|s| s.targets).unwrap_or_else(|| targets(said));
    if alpha.is_none() {
        let taken = format!("{ALPHA} is taken, OpenDelta's and PECTVLM's; --alpha says another");
        said.assume("lora_alpha", &taken);
    }
    let (rank, rank_pattern) = Found::with_pattern(*first, &ranks);
    Ok(Some(LoraConfig {
        rank,
        alpha: alpha.unwrap_or(ALPHA),
        dropout: dropout.unwrap_or(0.0),
        targets: found.targets(Some(&listed), layers, &path.to_string())?,
        rank_pattern,
        ..LoraConfig::default()
    }))
}

/// The targets that `config.json` lists, or else the usual ones.
fn targets(said: &Said) -> Vec<String> {
    let listed = said.get("modified_modules").and_then(Value::as_array);
    let names = listed.map(|list| list.iter().filter_map(Value::as_str));
    match names {
        Some(names) => names.map(String::from).collect(),
        None => LoraConfig::default().targets,
    }
}

/// The soft prompt, if there is one, with its words where crosstune wrote them.
fn prompt(
    found: &Found,
    file: &Checkpoint,
    said: &mut Said,
) -> Option<super::prompt::PromptConfig> {
    let prompt = found.prompt(file)?;
    let saved = said.saved.as_ref().and_then(|s| s.prompt.clone());
    said.assume(
        "where the soft prompt stands",
        "it is taken to follow the first token, as PECTVLM's does; OpenDelta's own stands before it",
    );
    match saved {
        Some(saved) if saved.length == prompt.length => Some(saved),
        _ => Some(prompt),
    }
}
