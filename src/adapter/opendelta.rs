//! Adapters of OpenDelta, and of PECTVLM, which trains with it.
//!
//! OpenDelta's is a folder of `pytorch_model.bin` and `config.json`; PECTVLM's a file,
//! `text_model_best.ckpt`, of every tensor that was trained. Names are ours:
//! `transformer.encoder.layer.0.attention.self.query.lora.lora_A`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::found::{Dialect, Found, Imported};
use super::{Adapter, LoraConfig, deltas};
use crate::bad_input;
use crate::error::{Error, Result};
use crate::train::program::TextModel;
use crate::weights::checkpoint::Checkpoint;

/// Reads a delta folder or a file of trained tensors for `model`.
///
/// LoRA's alpha is `alpha`, else the folder's `lora_alpha`, else 16: OpenDelta's whatever the rank.
/// Layer norms that it lacks are the model's. A soft prompt is `soft_prompt_layer.soft_embeds`.
///
/// # Errors
/// [`Error::Read`] and [`Error::Input`], which names the tensor that is not the model's or can't be
/// represented.
pub fn import(path: &Path, alpha: Option<f32>, model: &TextModel) -> Result<Imported> {
    let settings = settings(path)?;
    let number = |field: &str| settings.get(field).and_then(Value::as_f64);
    let alpha = alpha
        .map(f64::from)
        .or(number("lora_alpha"))
        .unwrap_or(16.0);
    let dropout = number("lora_dropout").unwrap_or(0.0);
    let file = Checkpoint::open(path)?;
    let mut notes = Vec::new();
    let found = Found::read(&file, Dialect::OpenDelta, &mut notes)?;
    let adapter = Adapter {
        lora: lora(&found, &file, [alpha, dropout], model.config.layers)?,
        bottleneck: deltas::bottleneck(&found, &file, &settings)?,
        compacter: deltas::compacter(&found, &file, &settings, model.config.hidden)?,
        prompt: found.prompt(&file),
        layer_norms: found.saved("output.LayerNorm"),
        head: found.saved("LinearTransformation"),
        ..Adapter::default()
    };
    let mut origin = file.metadata().clone();
    origin.retain(|key, _| !["format", "adapter"].contains(&key.as_str()));
    let adapter = found.into_adapter(&file, adapter, origin, model, &mut notes)?;
    Ok(Imported { adapter, notes })
}

/// A folder's `config.json`; nothing for a file.
fn settings(path: &Path) -> Result<Value> {
    let config = path.join("config.json");
    if !config.is_file() {
        return Ok(Value::Null);
    }
    let text = fs::read_to_string(&config).map_err(Error::read(&config))?;
    serde_json::from_str(&text)
        .map_err(|e| bad_input!("{}: is not valid JSON: {e}", config.display()))
}

/// Rank and targets of the branches, if there are any.
fn lora(
    found: &Found,
    file: &Checkpoint,
    [alpha, dropout]: [f64; 2],
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
    let (rank, rank_pattern) = Found::with_pattern(*first, &ranks);
    let usual = ["query".to_string(), "value".to_string()];
    Ok(Some(LoraConfig {
        rank,
        alpha: alpha as f32,
        dropout: dropout as f32,
        targets: found.targets(Some(&usual), layers, &path.to_string())?,
        rank_pattern,
        ..LoraConfig::default()
    }))
}
