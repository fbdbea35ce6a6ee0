//! CLIP's own text tower in published files: names, sizes and settings.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::checkpoint::{Checkpoint, shape_text};
use super::config::{Encoder, TextConfig};
use super::stored::{How, Place};
use super::text_model::CLIP_PROJECTION;
use super::vision::layout::Layout;
use crate::bad_input;
use crate::error::{Error, Result};
use crate::model::clip_text::{FINAL_NORM, POSITIONS, WORD_EMBEDDINGS, block};
use crate::ops::gelu::Gelu;

/// Whose names they are, and what stands in front of them: OpenCLIP puts `text.` before those of a
/// tower of its own class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    HuggingFace,
    OpenAi(&'static str),
}

/// Recognises a checkpoint by its word table.
pub(super) fn layout(weights: &Checkpoint) -> Option<Names> {
    let all = [
        Names::HuggingFace,
        Names::OpenAi(""),
        Names::OpenAi("text."),
    ];
    all.into_iter().find(|n| weights.get(&n.word()).is_some())
}

impl Names {
    fn word(self) -> String {
        match self {
            Names::HuggingFace => WORD_EMBEDDINGS.into(),
            Names::OpenAi(prefix) => format!("{prefix}token_embedding.weight"),
        }
    }

    fn position(self) -> String {
        match self {
            Names::HuggingFace => POSITIONS.into(),
            Names::OpenAi(prefix) => format!("{prefix}positional_embedding"),
        }
    }

    fn block(self, layer: usize) -> String {
        match self {
            Names::HuggingFace => block(layer),
            Names::OpenAi(prefix) => format!("{prefix}transformer.resblocks.{layer}"),
        }
    }

    fn up(self) -> &'static str {
        match self {
            Names::HuggingFace => "mlp.fc1.weight",
            Names::OpenAi(_) => "mlp.c_fc.weight",
        }
    }

    fn projection(self) -> String {
        match self {
            Names::HuggingFace => CLIP_PROJECTION.into(),
            Names::OpenAi(prefix) => format!("{prefix}text_projection"),
        }
    }
}

fn matrix(weights: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    match *weights.tensor(name)?.shape {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        ref shape => Err(bad_input!(
            "{}: {name} is {}, expected a matrix",
            weights.path().display(),
            shape_text(shape)
        )),
    }
}

/// Sizes and settings, and whether there is a projection. `path` is the folder's config.json; OpenCLIP's
/// settings lie beside it, and OpenAI has none: heads of 64 channels, the quick GELU.
pub(super) fn config(
    path: &Path,
    names: Names,
    weights: &Checkpoint,
) -> Result<(TextConfig, bool)> {
    let [vocab, hidden] = matrix(weights, &names.word())?;
    let [max_positions, _] = matrix(weights, &names.position())?;
    let layers = (0..).take_while(|n| {
        let up = format!("{}.{}", names.block(*n), names.up());
        weights.get(&up).is_some()
    });
    let layers = layers.count();
    let [ffn, _] = matrix(weights, &format!("{}.{}", names.block(0), names.up()))?;
    let projection = names.projection();
    let projection = weights.get(&projection).is_some().then_some(projection);
    let embed_dim = match (&projection, names) {
        (None, _) => hidden,
        (Some(name), Names::HuggingFace) => matrix(weights, name)?[0],
        (Some(name), Names::OpenAi(_)) => matrix(weights, name)?[1],
    };
    let sizes = [
        ("hidden_size", "width", hidden),
        ("num_hidden_layers", "layers", layers),
        ("vocab_size", "vocab_size", vocab),
        ("max_position_embeddings", "context_length", max_positions),
        ("intermediate_size", "", ffn),
    ];
    let open_clip = path.with_file_name("open_clip_config.json");
    let (file, settings) = match names {
        Names::HuggingFace => (path.to_path_buf(), Some(read(path)?)),
        Names::OpenAi(_) if open_clip.is_file() => (open_clip.clone(), Some(read(&open_clip)?)),
        Names::OpenAi(_) => (weights.path().to_path_buf(), None),
    };
    let of = |part: &str, whole: &str| {
        let own = settings.as_ref()?;
        let nested = own.get(whole).and_then(|v| v.get(part)).or(own.get(part));
        Some(nested.filter(|v| v.is_object()).unwrap_or(own).clone())
    };
    let own = match names {
        Names::HuggingFace => of("text_config", ""),
        Names::OpenAi(_) => of("text_cfg", "model_cfg"),
    }
    .unwrap_or(Value::Null);
    for (hf, open, found) in sizes {
        let field = if names == Names::HuggingFace {
            hf
        } else {
            open
        };
        if let Some(value) = own.get(field).filter(|v| !v.is_null())
            && value.as_u64() != Some(found as u64)
        {
            return Err(bad_input!(
                "{}: {field} is {value}, but the tensors say {found}; the files belong to different \
                 models",
                file.display()
            ));
        }
    }
    let count = |field: &str, default: usize| match own.get(field).filter(|v| !v.is_null()) {
        None => Ok(default),
        Some(value) => value
            .as_u64()
            .map(|n| n as usize)
            .ok_or_else(|| bad_input!("{}: {field} is {value}, expected a count", file.display())),
    };
    let heads = match names {
        Names::HuggingFace => count("num_attention_heads", 8)?,
        Names::OpenAi(_) => count("heads", hidden / 64)?,
    };
    let quick = settings
        .as_ref()
        .and_then(|s| s.get("model_cfg")?.get("quick_gelu"));
    let gelu = match (names, own.get("hidden_act").and_then(Value::as_str)) {
        (Names::HuggingFace, None | Some("quick_gelu")) => Gelu::Quick,
        (Names::HuggingFace, Some("gelu")) => Gelu::Exact,
        (Names::HuggingFace, Some(act)) => {
            return Err(bad_input!(
                "{}: hidden_act is \"{act}\", expected \"gelu\" or \"quick_gelu\"",
                file.display()
            ));
        }
        (Names::OpenAi(_), _) if settings.is_none() => Gelu::Quick,
        (Names::OpenAi(_), _) if quick.and_then(Value::as_bool) == Some(true) => Gelu::Quick,
        (Names::OpenAi(_), _) => Gelu::Exact,
    };
    let number =
        |field: &str, default: f64| own.get(field).and_then(Value::as_f64).unwrap_or(default);
    let config = TextConfig {
        encoder: Encoder::Clip(gelu),
        vocab,
        hidden,
        layers,
        heads,
        ffn,
        max_positions,
        token_types: 0,
        layer_norm_eps: number("layer_norm_eps", 1e-5) as f32,
        pad_id: 0,
        hidden_dropout: 0.0,
        attention_dropout: number("attention_dropout", 0.0) as f32,
        embed_dim,
    };
    config.check(&file)?;
    Ok((config, projection.is_some()))
}

fn read(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).map_err(Error::read(file))?;
    serde_json::from_str(&text)
        .map_err(|e| bad_input!("{}: is not valid JSON: {e}", file.display()))
}

/// Where each value of the tower lies.
pub(super) fn places(names: Names, c: &TextConfig, head: bool) -> Vec<Place> {
    let mut out = vec![
        Place::whole(WORD_EMBEDDINGS, names.word(), &[c.vocab, c.hidden]),
        Place::whole(POSITIONS, names.position(), &[c.max_positions, c.hidden]),
    ];
    let last = match names {
        Names::HuggingFace => FINAL_NORM.to_string(),
        Names::OpenAi(prefix) => format!("{prefix}ln_final"),
    };
    for part in ["weight", "bias"] {
        let (value, tensor) = (format!("{FINAL_NORM}.{part}"), format!("{last}.{part}"));
        out.push(Place::whole(value, tensor, &[c.hidden]));
    }
    let layout = match names {
        Names::HuggingFace => Layout::HuggingFace,
        Names::OpenAi(_) => Layout::OpenAi,
    };
    for layer in 0..c.layers {
        let own = (&*names.block(layer), &*block(layer));
        layout.block((c.hidden, c.ffn), own, &mut out);
    }
    if head {
        out.push(match names {
            Names::HuggingFace => {
                Place::whole(CLIP_PROJECTION, CLIP_PROJECTION, &[c.embed_dim, c.hidden])
            }
            Names::OpenAi(_) => Place {
                value: CLIP_PROJECTION.into(),
                tensor: names.projection(),
                shape: vec![c.hidden, c.embed_dim],
                how: How::Transposed,
            },
        });
    }
    out
}

/// A tensor inside the tower that is not computed with would make a silently different one.
pub(super) fn check_unknown(names: Names, weights: &Checkpoint, places: &[Place]) -> Result<()> {
    let known: HashSet<&str> = places.iter().map(|p| p.tensor.as_str()).collect();
    let ours = |name: &&str| match names {
        Names::HuggingFace => name.starts_with("text_model."),
        Names::OpenAi("") => name.starts_with("transformer.resblocks."),
        Names::OpenAi(prefix) => name.starts_with(prefix),
    };
    let buffer = |name: &str| name.ends_with("position_ids") || name.ends_with("attn_mask");
    let mut all = weights.names().filter(ours);
    match all.find(|name| !known.contains(name) && !buffer(name)) {
        None => Ok(()),
        Some(name) => Err(bad_input!(
            "{}: has the tensor {name}, which is no part of CLIP's text tower; merge or remove what \
             was added to the model",
            weights.path().display()
        )),
    }
}
