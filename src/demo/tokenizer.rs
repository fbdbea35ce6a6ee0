//! A sub-word vocabulary for the demo's captions, written as a tokenizer.json with XLM-R's
//! conventions: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, words marked by a leading U+2581.
//!
//! The merges come from a small trainer for byte-pair encoding (Sennrich et al. 2016,
//! arXiv:1508.07909) that works on characters. It is slow on large texts; the demo's few thousand
//! different words take a moment.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

/// Marks the start of a word, as SentencePiece does.
const WORD_START: char = '\u{2581}';
const SPECIALS: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];

/// A vocabulary and the merges that build its longer pieces.
#[derive(Debug, Clone)]
struct Bpe {
    pieces: Vec<String>,
    merges: Vec<(usize, usize)>,
}

/// The text of a tokenizer.json with at most `vocab_size` pieces (never fewer than the
/// characters of `texts` need), learnt from `texts`.
pub fn build<'t>(texts: impl IntoIterator<Item = &'t str>, vocab_size: usize) -> String {
    let bpe = train(&count_words(texts), vocab_size);
    let vocab: serde_json::Map<String, Value> = bpe
        .pieces
        .iter()
        .enumerate()
        .map(|(id, piece)| (piece.clone(), json!(id)))
        .collect();
    let merges: Vec<Value> = bpe
        .merges
        .iter()
        .map(|&(a, b)| json!([bpe.pieces[a], bpe.pieces[b]]))
        .collect();
    let special = |(id, name): (usize, &&str)| {
        json!({
            "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    let added: Vec<Value> = SPECIALS.iter().enumerate().map(special).collect();
    let metaspace = json!({
        "type": "Metaspace", "replacement": WORD_START, "prepend_scheme": "always", "split": true
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            metaspace,
            { "type": "Punctuation", "behavior": "Isolated" }
        ]},
        "post_processor": template(),
        "decoder": metaspace,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges
        }
    })
    .to_string()
}

/// `<s> $A </s>`, and `<s> $A </s> </s> $B </s>` for pairs.
fn template() -> Value {
    let token = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    json!({
        "type": "TemplateProcessing",
        "single": [token("<s>"), sequence("A"), token("</s>")],
        "pair": [
            token("<s>"), sequence("A"), token("</s>"), token("</s>"), sequence("B"), token("</s>")
        ],
        "special_tokens": {
            "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] },
            "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] }
        }
    })
}

/// Words as the tokenizer's own pre-tokenizer cuts them, with their counts.
fn count_words<'t>(texts: impl IntoIterator<Item = &'t str>) -> BTreeMap<String, usize> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in texts.into_iter().flat_map(str::split_whitespace) {
        *counts.entry(word).or_default() += 1;
    }
    let mut words = BTreeMap::new();
    for (word, n) in counts {
        let marked = format!("{WORD_START}{}", word.to_lowercase());
        let pieces = marked.split_inclusive(|c: char| c.is_ascii_punctuation());
        for piece in pieces {
            let cut = piece.trim_end_matches(|c: char| c.is_ascii_punctuation());
            for part in [cut, &piece[cut.len()..]] {
                if !part.is_empty() {
                    *words.entry(part.to_owned()).or_default() += n;
                }
            }
        }
    }
    words
}

fn train(words: &BTreeMap<String, usize>, vocab_size: usize) -> Bpe {
    // Lower-case ASCII is always there, so that a visitor's own English has no unknown letters.
    let mut characters: BTreeSet<char> = ('a'..='z').chain('0'..='9').chain([WORD_START]).collect();
    characters.extend(words.keys().flat_map(|word| word.chars()));
    let mut pieces: Vec<String> = SPECIALS.iter().map(|&s| s.to_owned()).collect();
    let id_of: HashMap<char, usize> = characters
        .iter()
        .enumerate()
        .map(|(i, &c)| (c, i + pieces.len()))
        .collect();
    pieces.extend(characters.iter().map(char::to_string));
    let mut corpus: Vec<(Vec<usize>, usize)> = words
        .iter()
        .map(|(word, &n)| (word.chars().map(|c| id_of[&c]).collect(), n))
        .collect();
    let mut merges = Vec::new();
    while pieces.len() < vocab_size {
        let Some(pair) = commonest_pair(&corpus) else {
            break;
        };
        let merged = pieces.len();
        pieces.push(format!("{}{}", pieces[pair.0], pieces[pair.1]));
        merges.push(pair);
        for (word, _) in &mut corpus {
            merge(word, pair, merged);
        }
        corpus.retain(|(word, _)| word.len() > 1);
    }
    Bpe { pieces, merges }
}

/// The pair with the highest count that occurs more than once; among equals the first by id.
fn commonest_pair(corpus: &[(Vec<usize>, usize)]) -> Option<(usize, usize)> {
    let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
    for (word, n) in corpus {
        for pair in word.windows(2) {
            *counts.entry((pair[0], pair[1])).or_default() += n;
        }
    }
    let best = counts
        .into_iter()
        .max_by_key(|&(pair, n)| (n, Reverse(pair)))?;
    (best.1 > 1).then_some(best.0)
}

fn merge(word: &mut Vec<usize>, pair: (usize, usize), merged: usize) {
    let mut i = 0;
    while i + 1 < word.len() {
        if (word[i], word[i + 1]) == pair {
            word[i] = merged;
            word.remove(i + 1);
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::Tokenizer;

    use super::*;
    use crate::demo::captions::Language;
    use crate::demo::world::{World, WorldConfig};

    fn world() -> World {
        World::new(&WorldConfig {
            seed: 1,
            n_pool: 600,
            n_train: 100,
            n_val: 0,
            n_test: 100,
        })
    }

    fn load(text: &str) -> Tokenizer {
        text.parse().unwrap()
    }

    #[test]
    fn follows_the_conventions_of_xlm_r() {
        let text = build(["A small red circle.", "A small blue circle."], 120);
        let tokenizer = load(&text);
        let ids = SPECIALS.map(|s| tokenizer.token_to_id(s));
        assert_eq!(ids, [Some(0), Some(1), Some(2), Some(3)]);
        let encoding = tokenizer.encode("a small circle.", true).unwrap();
        let tokens = encoding.get_tokens();
        assert_eq!(tokens.first().map(String::as_str), Some("<s>"));
        assert_eq!(tokens.last().map(String::as_str), Some("</s>"));
        assert_eq!(tokens[1..4], ["▁a", "▁small", "▁circle"]);
        assert_eq!(
            tokenizer.decode(encoding.get_ids(), true).unwrap(),
            "a small circle."
        );
        let unknown = tokenizer.encode("ж", false).unwrap();
        assert!(unknown.get_ids().contains(&3));
    }

    #[test]
    fn covers_every_caption_in_few_tokens() {
        let world = world();
        let tokenizer = load(&build(world.texts(), 1000));
        assert!(tokenizer.get_vocab_size(true) <= 1000);
        for language in Language::ALL {
            let lengths = world.items.iter().map(|item| {
                let text = item.caption(language);
                let encoding = tokenizer.encode(text, true).unwrap();
                assert!(
                    !encoding.get_ids().contains(&3),
                    "{text}: {:?}",
                    encoding.get_tokens()
                );
                encoding.len()
            });
            let lengths: Vec<usize> = lengths.collect();
            let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
            let longest = lengths.iter().max().copied().unwrap_or(0);
            assert!(
                (10.0..28.0).contains(&mean) && longest < 64,
                "{language:?} {mean} {longest}"
            );
        }
        for text in world.texts() {
            let encoding = tokenizer.encode(text, true).unwrap();
            assert!(!encoding.get_ids().contains(&3), "{text}");
        }
    }

    #[test]
    fn the_same_texts_give_the_same_file() {
        let world = world();
        assert_eq!(build(world.texts(), 800), build(world.texts(), 800));
    }
}
