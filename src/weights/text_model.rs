//! A text model's folder: weights, settings and tokenizer, all checked before anything is computed.

use std::path::{Path, PathBuf};

use crate::bad_input;
use crate::error::{Error, Result};
use crate::text::clip_bpe::MERGES_FILES;
use crate::weights::checkpoint::{Checkpoint, shape_text};
use crate::weights::clip_text;
use crate::weights::config::{Encoder, TensorSizes, TextConfig};
use crate::weights::stored::{Place, Stored};

/// Names of the linear map from pooled text to the joint space.
pub const HEAD_WEIGHT: &str = "LinearTransformation.weight";
/// See [`HEAD_WEIGHT`].
pub const HEAD_BIAS: &str = "LinearTransformation.bias";

/// Name of the projection of CLIP's own text tower (E, C).
pub const CLIP_PROJECTION: &str = "text_projection.weight";

/// Whether a tensor is the linear head's.
pub fn is_head(name: &str) -> bool {
    [HEAD_WEIGHT, HEAD_BIAS, CLIP_PROJECTION].contains(&name)
}

/// What stands in front of encoder names: M-CLIP, a bare encoder, BERT and RoBERTa with a task head.
const PREFIXES: [&str; 4] = ["transformer.", "", "bert.", "roberta."];

/// An opened text model whose tensors all have the shapes that its settings ask for.
#[derive(Debug)]
pub struct TextModelFiles {
    /// The folder that was opened.
    pub folder: PathBuf,
    /// Sizes and settings.
    pub config: TextConfig,
    /// The tensors, under M-CLIP's names, or for CLIP's own tower Hugging Face's.
    pub weights: Stored,
    /// The tokenizer.json, or CLIP's list of merges.
    pub tokenizer: PathBuf,
    /// What stands in front of encoder names in the file: `transformer.` for M-CLIP.
    pub prefix: String,
    /// Whether there is a LinearTransformation; without it the feature is the pooled text itself.
    pub head: bool,
}

impl TextModelFiles {
    /// Opens an M-CLIP folder, that of a bare BERT or XLM-R encoder, or one with CLIP's own text tower
    /// under Hugging Face's, OpenAI's or OpenCLIP's names.
    ///
    /// # Errors
    /// [`Error::Input`] or [`Error::Read`] for a missing file, settings that contradict the tensors,
    /// and tensors that are missing, unknown or of another shape.
    pub fn open(folder: &Path) -> Result<TextModelFiles> {
        if !folder.is_dir() {
            return Err(bad_input!(
                "{}: is not a folder; expected one with config.json, tokenizer.json and \
                 model.safetensors or pytorch_model.bin",
                folder.display()
            ));
        }
        let files = Self::from_parts(&folder.join("config.json"), folder, Path::new(""))?;
        Ok(TextModelFiles {
            folder: folder.to_path_buf(),
            tokenizer: find_tokenizer(folder, files.config.encoder)?,
            ..files
        })
    }

    /// [`TextModelFiles::open`] for files that do not lie together under their usual names. The
    /// tokenizer is not looked at.
    ///
    /// # Errors
    /// As [`TextModelFiles::open`].
    pub fn from_parts(config: &Path, weights: &Path, tokenizer: &Path) -> Result<TextModelFiles> {
        let weights = Checkpoint::open(weights)?;
        let folder = config.parent().unwrap_or(Path::new("")).to_path_buf();
        let tokenizer = tokenizer.to_path_buf();
        if let Some(layout) = clip_text::layout(&weights) {
            let (config, head) = clip_text::config(config, layout, &weights)?;
            let places = clip_text::places(layout, &config, head);
            clip_text::check_unknown(layout, &weights, &places)?;
            return Ok(TextModelFiles {
                folder,
                config,
                weights: Stored::new(weights, places)?,
                tokenizer,
                prefix: String::new(),
                head,
            });
        }
        let prefix = find_prefix(&weights)?;
        let sizes = tensor_sizes(&weights, prefix)?;
        let config = TextConfig::read(config, &sizes)?;
        let places = places(prefix, &sizes);
        check_unknown(&weights, prefix, &places)?;
        Ok(TextModelFiles {
            folder,
            config,
            weights: Stored::new(weights, places)?,
            tokenizer,
            prefix: prefix.to_string(),
            head: sizes.head.is_some(),
        })
    }

    /// The full name of an encoder tensor: `encoder.layer.0.output.dense.weight` with the prefix.
    pub fn name(&self, encoder_name: &str) -> String {
        format!("{}{encoder_name}", self.prefix)
    }
}

/// Names and shapes of an encoder's tensors without their prefix, in the order of computation.
pub fn encoder_tensors(sizes: &TensorSizes) -> Vec<(String, Vec<usize>)> {
    let (hidden, ffn) = (sizes.hidden, sizes.ffn);
    let mut tensors = vec![
        (
            "embeddings.word_embeddings.weight".to_string(),
            vec![sizes.vocab, hidden],
        ),
        (
            "embeddings.position_embeddings.weight".to_string(),
            vec![sizes.max_positions, hidden],
        ),
        (
            "embeddings.token_type_embeddings.weight".to_string(),
            vec![sizes.token_types, hidden],
        ),
        ("embeddings.LayerNorm.weight".to_string(), vec![hidden]),
        ("embeddings.LayerNorm.bias".to_string(), vec![hidden]),
    ];
    for layer in 0..sizes.layers {
        let mut push = |name: &str, dims: &[usize]| {
            let at = format!("encoder.layer.{layer}.{name}");
            tensors.push((format!("{at}.weight"), dims.to_vec()));
            tensors.push((format!("{at}.bias"), vec![dims[0]]));
        };
        push("attention.self.query", &[hidden, hidden]);
        push("attention.self.key", &[hidden, hidden]);
        push("attention.self.value", &[hidden, hidden]);
        push("attention.output.dense", &[hidden, hidden]);
        push("attention.output.LayerNorm", &[hidden]);
        push("intermediate.dense", &[ffn, hidden]);
        push("output.dense", &[hidden, ffn]);
        push("output.LayerNorm", &[hidden]);
    }
    tensors
}

fn find_prefix(weights: &Checkpoint) -> Result<&'static str> {
    let has = |prefix: &&&str| {
        weights
            .get(&format!("{prefix}embeddings.word_embeddings.weight"))
            .is_some()
    };
    PREFIXES.iter().find(has).copied().ok_or_else(|| {
        let first: Vec<_> = weights.names().take(3).collect();
        bad_input!(
            "{}: is not a BERT or XLM-R text model: it has no \
             [transformer.|bert.|roberta.]embeddings.word_embeddings.weight; its names begin with \
             {}",
            weights.path().display(),
            first.join(", ")
        )
    })
}

fn tensor_sizes(weights: &Checkpoint, prefix: &str) -> Result<TensorSizes> {
    let matrix = |name: &str| -> Result<(usize, usize)> {
        match *weights.tensor(name)?.shape {
            [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
            ref shape => Err(bad_input!(
                "{}: {name} is {}, expected a matrix",
                weights.path().display(),
                shape_text(shape)
            )),
        }
    };
    let encoder = |name: &str| matrix(&format!("{prefix}{name}"));
    let (vocab, hidden) = encoder("embeddings.word_embeddings.weight")?;
    let head = match weights
        .names()
        .any(|n| n.starts_with("LinearTransformation"))
    {
        true => Some(matrix(HEAD_WEIGHT)?.0),
        false => None,
    };
    Ok(TensorSizes {
        vocab,
        hidden,
        layers: count_layers(weights, prefix)?,
        ffn: encoder("encoder.layer.0.intermediate.dense.weight")?.0,
        max_positions: encoder("embeddings.position_embeddings.weight")?.0,
        token_types: encoder("embeddings.token_type_embeddings.weight")?.0,
        head,
    })
}

/// One more than the highest layer; a gap shows as a missing tensor.
fn count_layers(weights: &Checkpoint, prefix: &str) -> Result<usize> {
    let at = format!("{prefix}encoder.layer.");
    let numbers = weights
        .names()
        .filter_map(|n| n.strip_prefix(&at)?.split('.').next());
    let highest = numbers.filter_map(|n| n.parse::<u32>().ok()).max();
    // A layer has 16 tensors: a number beyond their count is damage, not a deep model.
    match highest.map(|h| h as usize) {
        Some(highest) if highest < weights.len() => Ok(highest + 1),
        _ => Err(bad_input!(
            "{}: has no layers; expected tensors called {at}0.attention.self.query.weight and so on",
            weights.path().display()
        )),
    }
}

/// Where each value lies: encoder tensors have M-CLIP's names in graphs.
fn places(prefix: &str, sizes: &TensorSizes) -> Vec<Place> {
    let encoder = encoder_tensors(sizes).into_iter();
    let mut places: Vec<Place> = encoder
        .map(|(name, shape)| {
            let value = format!("{}{name}", PREFIXES[0]);
            Place::whole(value, format!("{prefix}{name}"), &shape)
        })
        .collect();
    if let Some(rows) = sizes.head {
        places.push(Place::whole(
            HEAD_WEIGHT,
            HEAD_WEIGHT,
            &[rows, sizes.hidden],
        ));
        places.push(Place::whole(HEAD_BIAS, HEAD_BIAS, &[rows]));
    }
    places
}

/// A tensor inside the encoder that is not computed with would make a silently different model.
fn check_unknown(weights: &Checkpoint, prefix: &str, places: &[Place]) -> Result<()> {
    let known: std::collections::HashSet<&str> = places.iter().map(|p| p.tensor.as_str()).collect();
    let unknown = weights.names().find(|name| {
        let inner = name.strip_prefix(prefix).unwrap_or("");
        let computed = inner.starts_with("embeddings.")
            || inner.starts_with("encoder.")
            || name.starts_with("LinearTransformation");
        let buffer = inner == "embeddings.position_ids" || inner == "embeddings.token_type_ids";
        computed && !buffer && !known.contains(name)
    });
    match unknown {
        None => Ok(()),
        Some(name) => Err(bad_input!(
            "{}: has the tensor {name}, which is no part of a BERT or XLM-R text model; merge or \
             remove what was added to the model",
            weights.path().display()
        )),
    }
}

fn find_tokenizer(folder: &Path, encoder: Encoder) -> Result<PathBuf> {
    let path = folder.join("tokenizer.json");
    if path.is_file() {
        return Ok(path);
    }
    if let Encoder::Clip(_) = encoder {
        let mut merges = MERGES_FILES.iter().map(|name| folder.join(name));
        if let Some(merges) = merges.find(|path| path.is_file()) {
            return Ok(merges);
        }
    }
    let dir = folder.display();
    let command = |class: &str| {
        format!(
            "python -c \"from transformers import {class} as T; \
             T.from_pretrained('{dir}').save_pretrained('{dir}')\""
        )
    };
    let other = [
        ("sentencepiece.bpe.model", "XLMRobertaTokenizerFast"),
        ("vocab.txt", "BertTokenizerFast"),
    ];
    match other.iter().find(|(file, _)| folder.join(file).is_file()) {
        Some((file, class)) => Err(bad_input!(
            "{dir}: has {file} but no tokenizer.json; make one: {}",
            command(class)
        )),
        None => Err(Error::Read {
            path,
            source: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "no such file; copy the tokenizer.json that was published with the model here",
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;
    use crate::weights::write::{OutTensor, write_safetensors};
    use serde_json::{Value, json};
    use std::borrow::Cow;
    use std::collections::BTreeMap;
    use std::fs;

    type Tensors = Vec<(String, Vec<usize>)>;

    const SIZES: TensorSizes = TensorSizes {
        vocab: 20,
        hidden: 8,
        layers: 2,
        ffn: 12,
        max_positions: 10,
        token_types: 1,
        head: Some(6),
    };

    fn m_clip() -> Tensors {
        let named = |(name, shape)| (format!("transformer.{name}"), shape);
        let mut tensors: Tensors = encoder_tensors(&SIZES).into_iter().map(named).collect();
        tensors.push((HEAD_WEIGHT.into(), vec![6, 8]));
        tensors.push((HEAD_BIAS.into(), vec![6]));
        tensors.push(("transformer.pooler.dense.weight".into(), vec![8, 8]));
        tensors
    }

    fn settings() -> Value {
        json!({"model_type": "M-CLIP", "text_model_type": "xlm-roberta", "num_attention_heads": 2,
            "layer_norm_eps": 1e-5, "pad_token_id": 1, "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu"})
    }

    fn folder(tensors: &Tensors, config: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let zeros = vec![0u8; 4096];
        let out: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| {
                let size = shape.iter().product::<usize>() * 4;
                let bytes = Cow::Borrowed(&zeros[..size]);
                OutTensor {
                    name,
                    dtype: Dtype::F32,
                    shape: shape.clone(),
                    bytes,
                }
            })
            .collect();
        write_safetensors(
            &dir.path().join("model.safetensors"),
            &out,
            &BTreeMap::new(),
        )
        .unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        dir
    }

    fn message(dir: &Path) -> String {
        TextModelFiles::open(dir).unwrap_err().to_string()
    }

    #[test]
    fn opens_m_clip() {
        let dir = folder(&m_clip(), &settings());
        let files = TextModelFiles::open(dir.path()).unwrap();
        assert_eq!(
            (
                files.config.layers,
                files.config.ffn,
                files.config.embed_dim
            ),
            (2, 12, 6)
        );
        assert_eq!((files.config.max_tokens(), files.head), (8, true));
        let name = files.name("encoder.layer.1.output.dense.weight");
        assert_eq!(files.weights.view(&name).unwrap().shape, [8, 12]);
        assert_eq!(files.tokenizer, dir.path().join("tokenizer.json"));
    }

    #[test]
    fn opens_bare_encoders_with_any_prefix() {
        for prefix in ["", "bert.", "roberta."] {
            let named = |(name, shape)| (format!("{prefix}{name}"), shape);
            let mut tensors: Tensors = encoder_tensors(&SIZES).into_iter().map(named).collect();
            tensors.push((format!("{prefix}embeddings.position_ids"), vec![1, 10]));
            tensors.push(("lm_head.bias".into(), vec![20]));
            let mut config = settings();
            config["model_type"] = json!("bert");
            let dir = folder(&tensors, &config);
            let files = TextModelFiles::open(dir.path()).unwrap();
            assert_eq!((files.prefix.as_str(), files.head), (prefix, false));
            assert_eq!((files.config.embed_dim, files.config.max_tokens()), (8, 10));
        }
    }

    #[test]
    fn opens_the_golden_models() {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
        let shared = std::env::var_os("CROSSTUNE_SHARED").map_or(beside, PathBuf::from);
        let open = shared.join("goldens/open");
        if !open.is_dir() {
            eprintln!("skipped: no shared/goldens beside the checkout (CROSSTUNE_SHARED)");
            return;
        }
        for (stem, vocab, embed_dim, max_tokens) in [("", 512, 48, 64), ("bert_", 400, 64, 64)] {
            let config = open.join(format!("{stem}config.json"));
            let weights = open.join(format!("{stem}model.safetensors"));
            let files = TextModelFiles::from_parts(&config, &weights, Path::new("")).unwrap();
            let got = &files.config;
            assert_eq!(
                (got.vocab, got.embed_dim, got.max_tokens()),
                (vocab, embed_dim, max_tokens)
            );
        }
        // Complete but for its tokenizer.
        assert!(message(&open).contains("tokenizer.json: cannot be read"));
    }

    #[test]
    fn a_wrong_tensor_is_named() {
        let change = |name: &str, shape: Option<&[usize]>| {
            let mut tensors = m_clip();
            tensors.retain(|t| t.0 != name);
            tensors.extend(shape.map(|s| (name.to_string(), s.to_vec())));
            message(folder(&tensors, &settings()).path())
        };
        let layer = "transformer.encoder.layer.1.";
        let dense = format!("{layer}output.dense.weight");
        let text = change(&dense, Some(&[8, 10]));
        assert!(text.ends_with(&format!(
            "model.safetensors: {dense} is (8, 10), expected (8, 12)"
        )));
        let text = change(&dense, None);
        assert!(text.contains(&format!(
            "has no tensor {dense}, expected one of shape (8, 12)"
        )));
        assert!(change(HEAD_BIAS, None).contains("has no tensor LinearTransformation.bias"));
        let text = change(
            "transformer.embeddings.position_embeddings.weight",
            Some(&[10]),
        );
        assert!(
            text.contains("position_embeddings.weight is (10), expected a matrix"),
            "{text}"
        );
        let text = change(
            &format!("{layer}attention.self.query.lora_A.weight"),
            Some(&[2, 8]),
        );
        assert!(
            text.contains("lora_A.weight, which is no part of"),
            "{text}"
        );
        let text = change("transformer.encoder.layer.4000000000.x", Some(&[1]));
        assert!(text.contains("has no layers"), "{text}");
        let text = change("transformer.embeddings.word_embeddings.weight", None);
        assert!(text.contains("is not a BERT or XLM-R text model"), "{text}");
    }

    #[test]
    fn a_missing_file_says_how_to_get_it() {
        let dir = folder(&m_clip(), &settings());
        fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        assert!(message(dir.path()).contains("tokenizer.json: cannot be read: no such file"));
        fs::write(dir.path().join("sentencepiece.bpe.model"), "").unwrap();
        let text = message(dir.path());
        let at = dir.path().display();
        assert!(text.contains("has sentencepiece.bpe.model but no tokenizer.json; make one"));
        let command = format!("XLMRobertaTokenizerFast as T; T.from_pretrained('{at}').save");
        assert!(text.contains(&command), "{text}");
        fs::remove_file(dir.path().join("config.json")).unwrap();
        assert!(message(dir.path()).contains("config.json: cannot be read"));
        assert!(message(&dir.path().join("nowhere")).contains("is not a folder; expected one"));
    }
}
