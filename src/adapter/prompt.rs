//! Soft prompts (Lester et al., "The power of scale for parameter-efficient prompt tuning", 2021).
//!
//! k trained vectors after the first token of every text, as OpenDelta's prompts in PECTVLM: they
//! take positions like words, get the embeddings' layer norm, and count when a text is pooled. So a
//! text may have k tokens less.

use serde::{Deserialize, Serialize};

use super::Adapter;
use crate::bad_input;
use crate::error::Result;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::ops::philox::Stream;
use crate::text::pack::Layout;
use crate::weights::config::TextConfig;

/// The name of the vectors (k, C).
pub const SOFT_EMBEDS: &str = "transformer.soft_prompt_layer.soft_embeds";

/// Tokens of a text of one word, special tokens included.
const MIN_TOKENS: usize = 3;
/// Standard deviation of vectors that begin as no word.
const INITIAL_STD: f32 = 0.02;

/// A soft prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptConfig {
    /// k, the number of vectors; 0 while a tokenizer has yet to read the words.
    pub length: usize,
    /// The words whose embeddings they begin as; none for random vectors.
    pub words: Option<PromptWords>,
}

/// The words of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptWords {
    /// As given: `Language: `.
    pub text: String,
    /// Their token ids without special tokens, one a vector; none while they are unread.
    pub ids: Vec<u32>,
}

impl Default for PromptConfig {
    /// Four random vectors.
    fn default() -> PromptConfig {
        PromptConfig::random(4)
    }
}

impl PromptConfig {
    /// Random vectors.
    pub fn random(length: usize) -> PromptConfig {
        PromptConfig {
            length,
            words: None,
        }
    }

    /// A vector a token of `text`, beginning as its embedding.
    pub fn of_words(text: &str) -> PromptConfig {
        let words = PromptWords {
            text: text.into(),
            ids: vec![],
        };
        PromptConfig {
            length: 0,
            words: Some(words),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// No vectors, or not one a token of the words.
    pub fn check(&self) -> Result<()> {
        let k = self.length;
        match self.words.as_ref().map(|w| w.ids.len()) {
            None if k == 0 => Err(bad_input!("prompt-length: found 0, expected at least 1")),
            Some(n) if n != k => Err(bad_input!(
                "prompt: has {k} vectors, but its words have {n} tokens"
            )),
            _ => Ok(()),
        }
    }

    /// Checks that a model of `max_tokens` has positions for it and a text of one word.
    ///
    /// # Errors
    /// If it has not, or the words are unread.
    pub fn check_positions(&self, max_tokens: usize) -> Result<()> {
        let k = self.length;
        if k == 0 {
            return Err(bad_input!("prompt: no tokenizer has read its words yet"));
        }
        match k.saturating_add(MIN_TOKENS) > max_tokens {
            true => Err(bad_input!(
                "prompt: has {k} vectors, but the model has {max_tokens} positions, of which a text \
                 takes at least {MIN_TOKENS}"
            )),
            false => Ok(()),
        }
    }

    /// Adds the vectors, (G, k, C).
    pub fn push(&self, g: &mut Graph, channels: usize) -> ValueId {
        let shape = vec![Dim::Members, Dim::N(self.length), Dim::N(channels)];
        g.value(SOFT_EMBEDS, shape, Role::Trainable)
    }
}

impl Adapter {
    /// A soft prompt of `length` random vectors, and nothing else, as the original has it.
    pub fn prompt(length: usize) -> Adapter {
        Adapter {
            prompt: Some(PromptConfig::random(length)),
            ..Adapter::default()
        }
    }

    /// Makes tokens of a prompt's words, if it has words that are unread, and so settles its length.
    /// `encode` gives their ids without special tokens; it is called for such words alone.
    ///
    /// # Errors
    /// Words that are none; those of `encode`.
    pub fn read_words(&mut self, encode: impl FnOnce(&str) -> Result<Vec<u32>>) -> Result<()> {
        let Some(prompt) = &mut self.prompt else {
            return Ok(());
        };
        let Some(words) = prompt.words.as_mut().filter(|w| w.ids.is_empty()) else {
            return Ok(());
        };
        if !words.text.trim().is_empty() {
            words.ids = encode(&words.text)?;
        }
        prompt.length = words.ids.len();
        match prompt.length {
            0 => Err(bad_input!(
                "prompt-text: \"{}\" holds no words, expected some such as `Language: `",
                words.text
            )),
            _ => Ok(()),
        }
    }

    /// The words that a tensor begins as, if it is a prompt's and begins as words.
    pub fn prompt_words(&self, tensor: &str) -> Option<&PromptWords> {
        let prompt = self.prompt.as_ref().filter(|_| tensor == SOFT_EMBEDS)?;
        prompt.words.as_ref()
    }

    /// Where the tokens of a text go in a model.
    pub fn layout(&self, config: &TextConfig) -> Layout {
        Layout {
            position_offset: config.position_offset() as u32,
            prompt: self.prompt.as_ref().map_or(0, |p| p.length),
        }
    }

    /// Checks that texts, each with its index, have tokens, and the model positions for them and the
    /// prompt.
    ///
    /// # Errors
    /// A text that is empty or too long, by its number from 1.
    pub fn check_lengths<'t>(
        &self,
        texts: impl IntoIterator<Item = (usize, &'t [u32])>,
        config: &TextConfig,
    ) -> Result<()> {
        let (k, max) = (self.layout(config).prompt, config.max_tokens());
        let limit = max.saturating_sub(k);
        let fits = |ids: &[u32]| (1..=limit).contains(&ids.len());
        let Some((i, ids)) = texts.into_iter().find(|(_, ids)| !fits(ids)) else {
            return Ok(());
        };
        let (text, n) = (i + 1, ids.len());
        let why = match k {
            0 => String::new(),
            _ => format!(", the model's {max} positions less the {k} of the prompt"),
        };
        Err(bad_input!(
            "text {text} has {n} tokens, expected 1 to {limit}{why}; shorten it or leave it out"
        ))
    }
}

/// Initial values of random vectors.
pub fn initial(name: &str, len: usize, seed: u64) -> Option<Vec<f32>> {
    (name == SOFT_EMBEDS).then(|| Stream::named(seed, name).normal(len, INITIAL_STD))
}
