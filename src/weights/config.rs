//! What a text model is: sizes read off its tensors, the rest from config.json or a named preset.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::bad_input;
use crate::error::{Error, Result};
use crate::ops::gelu::Gelu;
use crate::weights::checkpoint::nearest;
use crate::weights::preset::{PRESET_DROPOUT, PRESETS, Preset};

/// Which encoder the text tower is; they differ in position ids and special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Encoder {
    /// XLM-RoBERTa: positions count from `pad_id + 1`.
    XlmRoberta,
    /// BERT: positions count from 0.
    Bert,
    /// CLIP's own: causal, pre-LN, positions count from 0, no token types.
    Clip(Gelu),
}

/// A text tower with its linear head. But for CLIP's own the activation is always the exact GELU.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TextConfig {
    /// The kind of encoder.
    pub encoder: Encoder,
    /// Rows of the word embedding table.
    pub vocab: usize,
    /// Channels C.
    pub hidden: usize,
    /// Transformer blocks L.
    pub layers: usize,
    /// Attention heads NH.
    pub heads: usize,
    /// Channels of the feed-forward network.
    pub ffn: usize,
    /// Rows of the position table.
    pub max_positions: usize,
    /// Rows of the token type table; only row 0 is used.
    pub token_types: usize,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f32,
    /// Id of the padding token.
    pub pad_id: u32,
    /// Dropout probability of embeddings and block outputs in training.
    pub hidden_dropout: f32,
    /// Dropout probability of attention weights in training.
    pub attention_dropout: f32,
    /// Width of the joint space E: rows of LinearTransformation, or `hidden` without it.
    pub embed_dim: usize,
}

/// The sizes that the tensors of a checkpoint say.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSizes {
    /// Rows of the word embedding table.
    pub vocab: usize,
    /// Channels C.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Channels of the feed-forward network.
    pub ffn: usize,
    /// Rows of the position table.
    pub max_positions: usize,
    /// Rows of the token type table.
    pub token_types: usize,
    /// Rows of LinearTransformation, if there is one.
    pub head: Option<usize>,
}

impl TextConfig {
    /// Reads `config.json` and joins it with what the tensors say.
    ///
    /// Sizes come from the tensors and must agree with the file where it states them. The rest
    /// comes from the file, else from the preset that its modelBase names; nothing is guessed.
    ///
    /// # Errors
    /// [`Error::Input`] that names the field, what was expected and what was found.
    pub fn read(path: &Path, sizes: &TensorSizes) -> Result<TextConfig> {
        let text = fs::read_to_string(path).map_err(Error::read(path))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| bad_input!("{}: is not valid JSON: {e}", path.display()))?;
        let Value::Object(fields) = value else {
            return Err(bad_input!(
                "{}: expected a JSON object of settings",
                path.display()
            ));
        };
        let file = ConfigFile {
            path,
            fields,
            sizes,
        };
        file.check_sizes()?;
        file.check_function()?;
        let config = TextConfig {
            encoder: file.encoder()?,
            vocab: sizes.vocab,
            hidden: sizes.hidden,
            layers: sizes.layers,
            heads: file.count("num_attention_heads", |p| p.heads as u64)? as usize,
            ffn: sizes.ffn,
            max_positions: sizes.max_positions,
            token_types: sizes.token_types,
            layer_norm_eps: file.number("layer_norm_eps", |p| p.layer_norm_eps)? as f32,
            pad_id: file.pad_id()?,
            hidden_dropout: file.number("hidden_dropout_prob", |_| PRESET_DROPOUT)? as f32,
            attention_dropout: file.number("attention_probs_dropout_prob", |_| PRESET_DROPOUT)?
                as f32,
            embed_dim: sizes.head.unwrap_or(sizes.hidden),
        };
        config.check(path)?;
        Ok(config)
    }

    /// The position id of a text's first token.
    pub fn position_offset(&self) -> usize {
        match self.encoder {
            Encoder::XlmRoberta => self.pad_id as usize + 1,
            Encoder::Bert | Encoder::Clip(_) => 0,
        }
    }

    /// The longest text in tokens, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_positions.saturating_sub(self.position_offset())
    }

    /// Channels of one attention head HS.
    pub fn head_size(&self) -> usize {
        self.hidden / self.heads
    }

    /// Fails where settings make no tower.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let file = path.display();
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return Err(bad_input!(
                "{file}: num_attention_heads is {}, expected a divisor of the hidden size {}",
                self.heads,
                self.hidden
            ));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return Err(bad_input!(
                "{file}: layer_norm_eps is {}, expected a small positive number such as 1e-5",
                self.layer_norm_eps
            ));
        }
        for (field, value) in [
            ("hidden_dropout_prob", self.hidden_dropout),
            ("attention_probs_dropout_prob", self.attention_dropout),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(bad_input!(
                    "{file}: {field} is {value}, expected 0 to below 1"
                ));
            }
        }
        if self.pad_id as usize >= self.vocab {
            return Err(bad_input!(
                "{file}: pad_token_id is {}, but the vocabulary has {} entries",
                self.pad_id,
                self.vocab
            ));
        }
        if self.max_tokens() < 2 {
            return Err(bad_input!(
                "{file}: pad_token_id {} leaves {} of {} positions, expected at least 2",
                self.pad_id,
                self.max_tokens(),
                self.max_positions
            ));
        }
        Ok(())
    }
}

struct ConfigFile<'a> {
    path: &'a Path,
    fields: Map<String, Value>,
    sizes: &'a TensorSizes,
}

impl ConfigFile<'_> {
    /// The field, unless it is absent or null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|v| !v.is_null())
    }

    fn check_sizes(&self) -> Result<()> {
        let s = self.sizes;
        let stated = [
            ("hidden_size", s.hidden),
            ("transformerDimensions", s.hidden),
            ("num_hidden_layers", s.layers),
            ("intermediate_size", s.ffn),
            ("vocab_size", s.vocab),
            ("max_position_embeddings", s.max_positions),
            ("type_vocab_size", s.token_types),
        ];
        for (field, found) in stated {
            if let Some(value) = self.get(field)
                && value.as_u64() != Some(found as u64)
            {
                return Err(self.mismatch(field, value, &format!("the tensors say {found}")));
            }
        }
        match (self.get("numDims"), s.head) {
            (Some(value), Some(head)) if value.as_u64() != Some(head as u64) => {
                let found = format!("LinearTransformation.weight has {head} rows");
                Err(self.mismatch("numDims", value, &found))
            }
            (Some(value), None) => {
                Err(self.mismatch("numDims", value, "there is no LinearTransformation.weight"))
            }
            _ => Ok(()),
        }
    }

    fn mismatch(&self, field: &str, value: &Value, found: &str) -> Error {
        bad_input!(
            "{}: {field} is {value}, but {found}; the files belong to different models",
            self.path.display()
        )
    }

    /// Refuses what would compute another function than ours.
    fn check_function(&self) -> Result<()> {
        match self.get("hidden_act") {
            Some(act) if act == "gelu" || act == "gelu_python" => {}
            Some(act) => {
                return Err(bad_input!(
                    "{}: hidden_act is {act}, expected \"gelu\"; no other is supported",
                    self.path.display()
                ));
            }
            None => self.preset("hidden_act").map(drop)?,
        }
        match self.get("position_embedding_type") {
            Some(kind) if kind != "absolute" => Err(bad_input!(
                "{}: position_embedding_type is {kind}, expected \"absolute\"",
                self.path.display()
            )),
            _ => Ok(()),
        }
    }

    fn encoder(&self) -> Result<Encoder> {
        let is_m_clip = self.get("model_type").is_none_or(|t| t == "M-CLIP");
        let field = if is_m_clip {
            "text_model_type"
        } else {
            "model_type"
        };
        match self.get(field) {
            Some(kind) if kind == "xlm-roberta" || kind == "roberta" => Ok(Encoder::XlmRoberta),
            Some(kind) if kind == "bert" => Ok(Encoder::Bert),
            Some(kind) => Err(bad_input!(
                "{}: {field} is {kind}, expected \"xlm-roberta\", \"roberta\" or \"bert\"",
                self.path.display()
            )),
            None => self.preset(field).map(|p| p.encoder),
        }
    }

    fn count(&self, field: &str, preset: impl Fn(&Preset) -> u64) -> Result<u64> {
        match self.get(field) {
            Some(value) => value.as_u64().ok_or_else(|| {
                bad_input!(
                    "{}: {field} is {value}, expected a count",
                    self.path.display()
                )
            }),
            None => self.preset(field).map(preset),
        }
    }

    fn number(&self, field: &str, preset: impl Fn(&Preset) -> f64) -> Result<f64> {
        match self.get(field) {
            Some(value) => value.as_f64().ok_or_else(|| {
                bad_input!(
                    "{}: {field} is {value}, expected a number",
                    self.path.display()
                )
            }),
            None => self.preset(field).map(preset),
        }
    }

    fn pad_id(&self) -> Result<u32> {
        let id = self.count("pad_token_id", |p| p.pad_id)?;
        u32::try_from(id).map_err(|_| {
            bad_input!(
                "{}: pad_token_id is {id}, expected a token id",
                self.path.display()
            )
        })
    }

    /// The preset that modelBase names, for a field that the file lacks.
    fn preset(&self, field: &str) -> Result<&'static Preset> {
        let file = self.path.display();
        let known = || {
            let names: Vec<_> = PRESETS.iter().map(|p| p.names[0]).collect();
            names.join(", ")
        };
        let Some(base) = self.get("modelBase").and_then(Value::as_str) else {
            return Err(bad_input!(
                "{file}: has no {field}, and no modelBase that implies it; add {field}, or a \
                 modelBase of {}",
                known()
            ));
        };
        let Some(preset) = PRESETS.iter().find(|p| p.names.contains(&base)) else {
            let hint = nearest(base, PRESETS.iter().flat_map(|p| p.names).copied());
            let hint = hint.map_or(String::new(), |name| format!(" (did you mean {name}?)"));
            return Err(bad_input!(
                "{file}: has no {field}, and modelBase \"{base}\" is not one of {}{hint}; add \
                 {field} to the file",
                known()
            ));
        };
        let s = self.sizes;
        if (preset.hidden, preset.layers) != (s.hidden, s.layers) {
            return Err(bad_input!(
                "{file}: modelBase {base} has {} layers of {} channels, but the tensors have {} of \
                 {}; correct modelBase, or add {field} to the file",
                preset.layers,
                preset.hidden,
                s.layers,
                s.hidden
            ));
        }
        Ok(preset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn large() -> TensorSizes {
        TensorSizes {
            vocab: 250_002,
            hidden: 1024,
            layers: 24,
            ffn: 4096,
            max_positions: 514,
            token_types: 1,
            head: Some(768),
        }
    }

    fn full() -> Value {
        json!({"model_type": "M-CLIP", "text_model_type": "xlm-roberta", "hidden_size": 1024,
            "num_attention_heads": 8, "layer_norm_eps": 1e-5, "pad_token_id": 1, "numDims": 768,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.25, "hidden_act": "gelu",
            "position_embedding_type": "absolute", "max_position_embeddings": 514})
    }

    fn read(value: &Value, sizes: &TensorSizes) -> Result<TextConfig> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, value.to_string()).unwrap();
        TextConfig::read(&path, sizes)
    }

    fn message(value: &Value, sizes: &TensorSizes) -> String {
        read(value, sizes).unwrap_err().to_string()
    }

    #[test]
    fn the_published_config_takes_the_rest_from_its_preset() {
        let published = json!({"modelBase": "xlm-roberta-large", "transformerDimensions": 1024,
            "numDims": 768, "model_type": "M-CLIP"});
        let config = read(&published, &large()).unwrap();
        assert_eq!(
            (config.encoder, config.heads, config.pad_id),
            (Encoder::XlmRoberta, 16, 1)
        );
        assert_eq!((config.layer_norm_eps, config.hidden_dropout), (1e-5, 0.1));
        assert_eq!((config.position_offset(), config.max_tokens()), (2, 512));
        assert_eq!((config.embed_dim, config.head_size()), (768, 64));

        let sizes = TensorSizes {
            hidden: 768,
            layers: 12,
            max_positions: 512,
            ..large()
        };
        let labse = json!({"modelBase": "sentence-transformers/LaBSE", "model_type": "M-CLIP"});
        let config = read(&labse, &sizes).unwrap();
        assert_eq!(
            (config.encoder, config.layer_norm_eps),
            (Encoder::Bert, 1e-12)
        );
        assert_eq!((config.position_offset(), config.max_tokens()), (0, 512));
    }

    #[test]
    fn a_full_config_needs_no_preset() {
        let config = read(&full(), &large()).unwrap();
        assert_eq!((config.heads, config.attention_dropout), (8, 0.25));
        let bare = TensorSizes {
            head: None,
            ..large()
        };
        let mut value = full();
        value["numDims"] = Value::Null;
        assert_eq!(read(&value, &bare).unwrap().embed_dim, 1024);
    }

    #[test]
    fn every_disagreement_is_named() {
        let cases = [
            (
                "hidden_size",
                json!(512),
                "hidden_size is 512, but the tensors say 1024",
            ),
            (
                "vocab_size",
                json!("x"),
                "vocab_size is \"x\", but the tensors say 250002",
            ),
            (
                "numDims",
                json!(512),
                "numDims is 512, but LinearTransformation.weight has 768 rows",
            ),
            (
                "hidden_act",
                json!("relu"),
                "hidden_act is \"relu\", expected \"gelu\"",
            ),
            (
                "position_embedding_type",
                json!("relative_key"),
                "expected \"absolute\"",
            ),
            (
                "num_attention_heads",
                json!(7),
                "is 7, expected a divisor of the hidden size 1024",
            ),
            ("num_attention_heads", json!(0), "is 0, expected a divisor"),
            (
                "num_attention_heads",
                json!(-1),
                "num_attention_heads is -1, expected a count",
            ),
            (
                "layer_norm_eps",
                json!("1e-5"),
                "layer_norm_eps is \"1e-5\", expected a number",
            ),
            (
                "layer_norm_eps",
                json!(0),
                "layer_norm_eps is 0, expected a small positive",
            ),
            (
                "hidden_dropout_prob",
                json!(1.0),
                "hidden_dropout_prob is 1, expected 0 to below 1",
            ),
            (
                "pad_token_id",
                json!(250_002),
                "but the vocabulary has 250002 entries",
            ),
            ("pad_token_id", json!(600), "leaves 0 of 514 positions"),
            (
                "text_model_type",
                json!("t5"),
                "text_model_type is \"t5\", expected",
            ),
            (
                "text_model_type",
                Value::Null,
                "has no text_model_type, and no modelBase",
            ),
            (
                "layer_norm_eps",
                Value::Null,
                "add layer_norm_eps, or a modelBase of xlm-roberta-b",
            ),
            ("hidden_act", Value::Null, "has no hidden_act"),
        ];
        for (field, bad, expected) in cases {
            let mut value = full();
            value[field] = bad;
            let text = message(&value, &large());
            assert!(
                text.contains("config.json: ") && text.contains(expected),
                "{text}"
            );
        }
        let text = message(
            &full(),
            &TensorSizes {
                head: None,
                ..large()
            },
        );
        assert!(
            text.contains("numDims is 768, but there is no LinearTransformation"),
            "{text}"
        );
        assert!(message(&json!([1]), &large()).contains("expected a JSON object"));
    }

    #[test]
    fn a_preset_must_exist_and_fit() {
        let value = json!({"modelBase": "xlm-roberta-larg"});
        let text = message(&value, &large());
        assert!(
            text.contains("is not one of xlm-roberta-base, xlm-roberta-large, LaBSE"),
            "{text}"
        );
        assert!(text.contains("(did you mean xlm-roberta-large?)"), "{text}");
        let text = message(&json!({"modelBase": "xlm-roberta-base"}), &large());
        assert!(text.contains("has 12 layers of 768 channels, but the tensors have 24 of 1024"));
    }
}
