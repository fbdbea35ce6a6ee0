//! The demo's text model as files: M-CLIP's layout in small.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::recipe::Recipe;
use crate::error::Result;
use crate::ops::philox::Stream;
use crate::tensor::Dtype;
use crate::weights::config::TensorSizes;
use crate::weights::text_model::{HEAD_BIAS, HEAD_WEIGHT, encoder_tensors};
use crate::weights::write::{OutTensor, write_atomic, write_safetensors};

/// Names, shapes and values.
pub(super) type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// BERT's deviation of 0.02 at 768 channels; narrower models get the same gain.
pub(super) fn deviation(hidden: usize) -> f32 {
    0.02 * (768.0 / hidden as f32).sqrt()
}

/// Initial values as BERT has them: normal weights, zero biases, layer norms of one.
pub(super) fn random(sizes: &TensorSizes, seed: u64) -> Tensors {
    let mut tensors: Vec<(String, Vec<usize>)> = encoder_tensors(sizes)
        .into_iter()
        .map(|(name, shape)| (format!("transformer.{name}"), shape))
        .collect();
    if let Some(rows) = sizes.head {
        tensors.push((HEAD_WEIGHT.into(), vec![rows, sizes.hidden]));
        tensors.push((HEAD_BIAS.into(), vec![rows]));
    }
    let std = deviation(sizes.hidden);
    let fill = |(name, shape): (String, Vec<usize>)| {
        let len = shape.iter().product();
        let values = if name.ends_with("LayerNorm.weight") {
            vec![1.0; len]
        } else if name.ends_with(".bias") {
            vec![0.0; len]
        } else {
            Stream::named(seed, &name).normal(len, std)
        };
        (name, shape, values)
    };
    tensors.into_iter().map(fill).collect()
}

/// Writes `model.safetensors`; the former one stays whole until the new one is.
pub(super) fn write_weights(folder: &Path, tensors: &Tensors) -> Result<()> {
    let out: Vec<OutTensor<'_>> = tensors
        .iter()
        .map(|(name, shape, values)| OutTensor {
            name,
            dtype: Dtype::F32,
            shape: shape.clone(),
            bytes: Cow::Borrowed(bytemuck::cast_slice(values)),
        })
        .collect();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors(&folder.join("model.safetensors"), &out, &metadata)
}

/// Writes `config.json` with every setting, so that no preset is needed.
pub(super) fn write_config(folder: &Path, recipe: &Recipe, sizes: &TensorSizes) -> Result<()> {
    let config = json!({
        "model_type": "M-CLIP",
        "text_model_type": "xlm-roberta",
        "transformerDimensions": sizes.hidden,
        "numDims": sizes.head,
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": recipe.heads,
        "intermediate_size": sizes.ffn,
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": sizes.token_types,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    });
    write_json(&folder.join("config.json"), &config)
}

/// Writes a value as indented JSON.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    write_atomic(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })
}
