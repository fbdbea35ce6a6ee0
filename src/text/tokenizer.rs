//! Texts to token ids with the model's own tokenizer.json: no padding, no truncation.

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::clip_bpe;
use crate::bad_input;
use crate::error::{Error, Result};
use crate::weights::config::{Encoder, TextConfig};

/// How much of a text stands in a message.
const EXCERPT_CHARS: usize = 40;

/// A tokenizer that was checked against the model that will read its ids.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    vocab: usize,
    max_tokens: usize,
    /// Whether texts are cleaned as OpenAI's tokenizer cleans them: a tokenizer.json says all itself.
    cleans: bool,
}

impl Tokenizer {
    /// Loads a tokenizer.json (XLM-R's takes most of a second), or CLIP's list of merges, and checks that it belongs to the
    /// model: vocabulary, padding id, and the special tokens around a text.
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::Input`] that says what was expected and found.
    pub fn load(path: &Path, config: &TextConfig) -> Result<Tokenizer> {
        let merges = is_merges(path);
        let json = match merges {
            true => clip_bpe::read(path)?.into_bytes(),
            false => fs::read(path).map_err(Error::read(path))?,
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|e| bad_input!("{}: is not a valid tokenizer.json: {e}", path.display()))?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| bad_input!("{}: {e}", path.display()))?;
        let path = path.to_path_buf();
        let (vocab, max_tokens) = (config.vocab, config.max_tokens());
        let tokenizer = Tokenizer {
            inner,
            path,
            vocab,
            max_tokens,
            cleans: merges,
        };
        tokenizer.check(config)?;
        Ok(tokenizer)
    }

    /// Number of entries, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of each text with its special tokens, in the order of `texts`.
    ///
    /// `limit` is the most tokens a text may have, special tokens included; without it, and at most,
    /// what the model has positions for. Texts are never cut.
    ///
    /// # Errors
    /// [`Error::Input`] that names the first text that is too long.
    pub fn encode_batch(&self, texts: &[&str], limit: Option<usize>) -> Result<Vec<Vec<u32>>> {
        let limit = limit.map_or(self.max_tokens, |limit| limit.min(self.max_tokens));
        let ids: Vec<_> = texts
            .par_iter()
            .map(|text| self.encode(text, true))
            .collect();
        ids.into_iter()
            .enumerate()
            .map(|(i, ids)| {
                let ids = ids?;
                if ids.len() > limit {
                    return Err(bad_input!(
                        "text {} (\"{}\") has {} tokens, the limit is {limit}; shorten it or \
                         leave it out",
                        i + 1,
                        excerpt(texts[i]),
                        ids.len()
                    ));
                }
                Ok(ids)
            })
            .collect()
    }

    /// The ids of a text without special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_batch`].
    pub fn encode_words(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, false)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let cleaned = match self.cleans {
            true => clip_bpe::clean(text),
            false => Cow::Borrowed(text),
        };
        let encoding = self.inner.encode_fast(&*cleaned, special).map_err(|e| {
            bad_input!(
                "{}: cannot encode \"{}\": {e}",
                self.path.display(),
                excerpt(text)
            )
        })?;
        let ids = encoding.get_ids();
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            None => Ok(ids.to_vec()),
            Some(id) => Err(bad_input!(
                "{}: gives id {id} in \"{}\", but the model has {} word embeddings; it is a \
                 tokenizer of another vocabulary",
                self.path.display(),
                excerpt(text),
                self.vocab
            )),
        }
    }

    fn check(&self, config: &TextConfig) -> Result<()> {
        let file = self.path.display();
        if self.vocab_size() > self.vocab {
            return Err(bad_input!(
                "{file}: has {} entries, but the model has {} word embeddings; it is a tokenizer of \
                 another vocabulary",
                self.vocab_size(),
                self.vocab
            ));
        }
        let (model, begin, end, pad) = match config.encoder {
            Encoder::XlmRoberta => ("XLM-R", "<s>", "</s>", "<pad>"),
            Encoder::Bert => ("BERT", "[CLS]", "[SEP]", "[PAD]"),
            // What it pads with is never read.
            Encoder::Clip(_) => ("CLIP", clip_bpe::START, clip_bpe::END, clip_bpe::END),
        };
        let id = |token: &str| {
            self.inner.token_to_id(token).ok_or_else(|| {
                bad_input!(
                    "{file}: has no token {token}, expected the tokenizer of a {model} model"
                )
            })
        };
        let (begin_id, end_id, pad_id) = (id(begin)?, id(end)?, id(pad)?);
        if pad_id != config.pad_id && !matches!(config.encoder, Encoder::Clip(_)) {
            return Err(bad_input!(
                "{file}: {pad} is {pad_id}, but the model's pad_token_id is {}; it is a tokenizer \
                 of another vocabulary",
                config.pad_id
            ));
        }
        if config.encoder == Encoder::XlmRoberta && begin_id != 0 {
            return Err(bad_input!(
                "{file}: <s> is {begin_id}, expected 0 as in every {model} tokenizer"
            ));
        }
        let ids = self.encode("a", true)?;
        if ids.first() != Some(&begin_id) || ids.last() != Some(&end_id) {
            return Err(bad_input!(
                "{file}: encodes \"a\" as {ids:?}, expected {begin} = {begin_id} first and {end} = \
                 {end_id} last; its post_processor is not that of a {model} model"
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tokenizer({}, {} entries)",
            self.path.display(),
            self.vocab_size()
        )
    }
}

/// Whether a file is CLIP's list of merges, by its name.
fn is_merges(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    clip_bpe::MERGES_FILES.iter().any(|merges| name == *merges)
}

fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config(encoder: Encoder, vocab: usize) -> TextConfig {
        TextConfig {
            encoder,
            vocab,
            hidden: 8,
            layers: 1,
            heads: 2,
            ffn: 8,
            max_positions: 514,
            token_types: 1,
            layer_norm_eps: 1e-5,
            pad_id: if encoder == Encoder::Bert { 0 } else { 1 },
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            embed_dim: 8,
        }
    }

    /// A word-level tokenizer with XLM-R's special tokens, and settings that must be ignored.
    fn tiny() -> Value {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
        };
        let token = |t: &str, id: u32| json!({"id": t, "ids": [id], "tokens": [t]});
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                "stride": 0},
            "padding": {"strategy": {"Fixed": 16}, "direction": "Right",
                "pad_to_multiple_of": null, "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
            "added_tokens": [special(0, "<s>"), special(1, "<pad>"), special(2, "</s>")],
            "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": token("<s>", 0), "</s>": token("</s>", 2)}},
            "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "<unk>",
                "vocab": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "cat": 5}}
        })
    }

    fn load(value: &Value, config: &TextConfig) -> Result<Tokenizer> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        fs::write(&path, value.to_string()).unwrap();
        Tokenizer::load(&path, config)
    }

    fn message(value: &Value, config: &TextConfig) -> String {
        load(value, config).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_padded_or_cut() {
        let tokenizer = load(&tiny(), &config(Encoder::XlmRoberta, 6)).unwrap();
        assert_eq!(tokenizer.vocab_size(), 6);
        let ids = tokenizer
            .encode_batch(&["a cat", "", "a a a dog"], None)
            .unwrap();
        assert_eq!(ids, [vec![0, 4, 5, 2], vec![0, 2], vec![0, 4, 4, 4, 3, 2]]);
    }

    #[test]
    fn a_text_that_is_too_long_is_named() {
        let tokenizer = load(&tiny(), &config(Encoder::XlmRoberta, 6)).unwrap();
        let long = "a ".repeat(511);
        let texts = ["a", long.as_str()];
        let text = tokenizer
            .encode_batch(&texts, None)
            .unwrap_err()
            .to_string();
        assert!(text.starts_with("text 2 (\"a a a "), "{text}");
        assert!(
            text.contains("...\") has 513 tokens, the limit is 512"),
            "{text}"
        );
        assert!(tokenizer.encode_batch(&texts, Some(1000)).is_err());
        assert!(tokenizer.encode_batch(&["a cat"], Some(3)).is_err());
        assert!(tokenizer.encode_batch(&["a cat"], Some(4)).is_ok());
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let good = config(Encoder::XlmRoberta, 6);
        let text = message(&tiny(), &config(Encoder::XlmRoberta, 5));
        assert!(text.contains("has 6 entries, but the model has 5 word embeddings; it is a token"));
        let text = message(&tiny(), &config(Encoder::Bert, 6));
        assert!(
            text.contains("has no token [CLS], expected the tokenizer of a BERT"),
            "{text}"
        );
        let text = message(
            &tiny(),
            &TextConfig {
                pad_id: 3,
                ..good.clone()
            },
        );
        assert!(
            text.contains("<pad> is 1, but the model's pad_token_id is 3"),
            "{text}"
        );
        let mut bare = tiny();
        bare["post_processor"] = Value::Null;
        let text = message(&bare, &good);
        assert!(
            text.contains("encodes \"a\" as [4], expected <s> = 0 first"),
            "{text}"
        );
        let mut far = tiny();
        far["model"]["vocab"] = json!({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 99});
        let text = message(&far, &good);
        assert!(
            text.contains("gives id 99 in \"a\", but the model has 6 word emb"),
            "{text}"
        );
        assert!(message(&json!({}), &good).contains("is not a valid tokenizer.json"));
        let missing = Tokenizer::load(Path::new("/no/tokenizer.json"), &good);
        assert!(matches!(missing, Err(Error::Read { .. })));
    }

    /// The shared data folder beside the checkout, where there is one.
    fn shared() -> Option<PathBuf> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
        let folder = std::env::var_os("CROSSTUNE_SHARED").map_or(beside, PathBuf::from);
        folder.join("data/tokenizers").is_dir().then_some(folder)
    }

    #[test]
    fn ids_equal_the_golden_ones() {
        let Some(shared) = shared() else {
            eprintln!("skipped: no shared/data/tokenizers beside the checkout (CROSSTUNE_SHARED)");
            return;
        };
        let folder = shared.join("data/tokenizers");
        let golden = fs::read_to_string(folder.join("golden_ids.jsonl")).unwrap();
        let golden: Vec<Value> = golden
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let texts: Vec<&str> = golden.iter().map(|g| g["text"].as_str().unwrap()).collect();
        assert!(texts.len() > 30);
        for (name, key, encoder, vocab) in [
            ("xlmr", "xlmr", Encoder::XlmRoberta, 250_002),
            (
                "compact-unigram-16k",
                "compact_unigram_16k",
                Encoder::XlmRoberta,
                16_001,
            ),
            ("minilm-l6", "minilm_l6", Encoder::Bert, 30_522),
        ] {
            let path = folder.join(name).join("tokenizer.json");
            let tokenizer = Tokenizer::load(&path, &config(encoder, vocab)).unwrap();
            assert_eq!(tokenizer.vocab_size(), vocab);
            let ids = tokenizer.encode_batch(&texts, None).unwrap();
            for (ids, golden) in ids.iter().zip(&golden) {
                assert_eq!(json!(ids), golden[key], "{name}: {}", golden["text"]);
            }
        }
    }
}
