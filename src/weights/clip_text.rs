//! CLIP's own text tower in published files: names, sizes and settings.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::config::{Encoder, TextConfig};
use super::stored::{How, Place};
use super::text_model::CLIP_PROJECTION;
use super::vision::dims;
use super::vision::layout::Layout;
use super::vision::settings::{
    OPEN_CLIP, activation, count, number, open_clip_gelu, read_json, refuse_others,
};
use crate::bad_input;
use crate::error::Result;
use crate::model::clip_text::{FINAL_NORM, POSITIONS, WORD_EMBEDDINGS, block};
use crate::ops::gelu::Gelu;

/// Settings of OpenCLIP's that make another tower of the same tensors, or of others, and the value with
/// which they do not.
const OTHER_TOWERS: [(&str, &str); 9] = [
    ("hf_model_name", "null"),
    ("ls_init_value", "null"),
    ("embed_cls", "false"),
    ("no_causal_mask", "false"),
    ("pool_type", "\"argmax\""),
    ("proj_bias", "false"),
    ("act_kwargs", "{}"),
    ("norm_kwargs", "{}"),
    ("qk_norm", "false"),
];

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

/// What settings say that tensors do not.
struct Settings {
    /// Who says so; the checkpoint where nothing else does.
    file: PathBuf,
    /// The part for texts.
    own: Value,
    gelu: Gelu,
    heads: usize,
}

impl Settings {
    /// Reads the config.json at `path`, or OpenCLIP's settings beside it. OpenAI published none: its
    /// towers have heads of 64 channels and the quick GELU.
    fn read(path: &Path, names: Names, weights: &Checkpoint, hidden: usize) -> Result<Settings> {
        let open_clip = path.with_file_name(OPEN_CLIP);
        if names == Names::HuggingFace {
            let whole = read_json(path)?;
            let own = whole.get("text_config").filter(|v| v.is_object());
            let own = own.unwrap_or(&whole).clone();
            return Ok(Settings {
                file: path.to_path_buf(),
                gelu: activation(path, &own, Layout::HuggingFace)?,
                heads: count(path, &own, "num_attention_heads")?.unwrap_or(8) as usize,
                own,
            });
        }
        if !open_clip.is_file() {
            return Ok(Settings {
                file: weights.path().to_path_buf(),
                own: Value::Null,
                gelu: Gelu::Quick,
                heads: hidden / 64,
            });
        }
        let whole = read_json(&open_clip)?;
        let model = whole.get("model_cfg").unwrap_or(&whole);
        let own = model.get("text_cfg").cloned().unwrap_or(Value::Null);
        refuse_others(&open_clip, "text_cfg", &own, &OTHER_TOWERS)?;
        Ok(Settings {
            gelu: open_clip_gelu(model),
            heads: count(&open_clip, &own, "heads")?.map_or(hidden / 64, |n| n as usize),
            own,
            file: open_clip,
        })
    }
}

/// Sizes and settings, and whether there is a projection. `path` is the folder's config.json, whether it
/// is there or not.
///
/// # Errors
/// Settings that can't be read, contradict the tensors, or are of another tower.
pub(super) fn config(
    path: &Path,
    names: Names,
    weights: &Checkpoint,
) -> Result<(TextConfig, bool)> {
    let [vocab, hidden] = dims(weights, &names.word())?;
    let [max_positions, _] = dims(weights, &names.position())?;
    let up = |layer| format!("{}.{}", names.block(layer), names.up());
    let layers = (0..).take_while(|n| weights.get(&up(*n)).is_some()).count();
    let [ffn, _] = dims(weights, &up(0))?;
    let projection = names.projection();
    let head = weights.get(&projection).is_some();
    let embed_dim = match names {
        _ if !head => hidden,
        Names::HuggingFace => dims::<2>(weights, &projection)?[0],
        Names::OpenAi(_) => dims::<2>(weights, &projection)?[1],
    };
    let settings = Settings::read(path, names, weights, hidden)?;
    let (file, own) = (&settings.file, &settings.own);
    let stated = match names {
        Names::HuggingFace => [
            ("hidden_size", hidden),
            ("num_hidden_layers", layers),
            ("vocab_size", vocab),
            ("max_position_embeddings", max_positions),
            ("intermediate_size", ffn),
        ]
        .to_vec(),
        Names::OpenAi(_) => [
            ("width", hidden),
            ("layers", layers),
            ("vocab_size", vocab),
            ("context_length", max_positions),
        ]
        .to_vec(),
    };
    for (field, found) in stated {
        if let Some(value) = count(file, own, field)?
            && value != found as u64
        {
            return Err(bad_input!(
                "{}: {field} is {value}, but the tensors say {found}; the files belong to different \
                 models",
                file.display()
            ));
        }
    }
    let config = TextConfig {
        encoder: Encoder::Clip(settings.gelu),
        vocab,
        hidden,
        layers,
        heads: settings.heads,
        ffn,
        max_positions,
        token_types: 0,
        layer_norm_eps: number(file, own, "layer_norm_eps", 1e-5)? as f32,
        pad_id: 0,
        hidden_dropout: 0.0,
        attention_dropout: number(file, own, "attention_dropout", 0.0)? as f32,
        embed_dim,
    };
    config.check(file)?;
    Ok((config, head))
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
