//! CLIP's byte-pair encoding as a tokenizer.json, made from its published list of merges.
//!
//! OpenAI's `simple_tokenizer.py` and the `tokenizers` library agree on ids, but the former cleans a
//! text first: [`clean`] is that, as far as captions need it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::{Map, Value, json};

use crate::bad_input;
use crate::error::{Error, Result};

/// The token that every text begins with.
pub const START: &str = "<|startoftext|>";
/// The token that every text ends in, whose place the text's feature is taken from.
pub const END: &str = "<|endoftext|>";
/// Files of merges, as OpenAI's repository and Hugging Face's slow tokenizer call them.
pub const MERGES_FILES: [&str; 2] = ["bpe_simple_vocab_16e6.txt.gz", "merges.txt"];

/// Merges that CLIP uses of those that were published: its vocabulary was cut at 49,152.
const N_MERGES: usize = 49_152 - 256 - 2;
/// What the last piece of a word ends in.
const WORD_END: &str = "</w>";
/// Contractions, words, single digits, and runs of anything else but blanks.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Reads a file of merges, one a line after a line of its own, gzipped or not, as a tokenizer.json.
///
/// # Errors
/// [`Error::Read`]; [`Error::Input`] for a line that is not two pieces.
pub fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(Error::read(path))?;
    let mut text = String::new();
    let read = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => GzDecoder::new(&bytes[..]).read_to_string(&mut text),
        false => (&bytes[..]).read_to_string(&mut text),
    };
    read.map_err(Error::read(path))?;
    tokenizer_json(&text).map_err(|what| bad_input!("{}: {what}", path.display()))
}

fn tokenizer_json(merges: &str) -> std::result::Result<String, String> {
    let merges: Vec<&str> = merges
        .lines()
        .skip(1)
        .take(N_MERGES)
        .filter(|line| !line.trim().is_empty())
        .collect();
    let mut pieces: Vec<String> = byte_letters().values().map(char::to_string).collect();
    pieces.sort_by_key(|piece| letter_order(piece));
    let whole = pieces.iter().map(|piece| format!("{piece}{WORD_END}"));
    pieces = pieces.iter().cloned().chain(whole).collect();
    for (i, merge) in merges.iter().enumerate() {
        match merge.split(' ').collect::<Vec<_>>()[..] {
            [left, right] if !left.is_empty() && !right.is_empty() => {
                pieces.push(format!("{left}{right}"));
            }
            _ => return Err(format!("line {} is `{merge}`, expected two pieces", i + 2)),
        }
    }
    pieces.extend([START.to_string(), END.to_string()]);
    let id = |piece: &str| pieces.len() - if piece == START { 2 } else { 1 };
    let special = |piece: &str| {
        json!({"id": id(piece), "content": piece, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": true, "special": true})
    };
    let vocab: Map<String, Value> = (pieces.iter().cloned())
        .zip((0..pieces.len()).map(Value::from))
        .collect();
    let whole = json!({
        "version": "1.0",
        "added_tokens": [special(START), special(END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, id(END)],
            "cls": [START, id(START)], "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {"type": "BPE", "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": WORD_END, "fuse_unk": false, "vocab": vocab, "merges": merges},
    });
    Ok(whole.to_string())
}

/// The letter that stands for each byte in pieces: printable ones for themselves, the others from
/// U+0100 on (GPT-2's table).
fn byte_letters() -> BTreeMap<u8, char> {
    let mut other = 0x100..;
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => other.next().and_then(char::from_u32).unwrap_or_default(),
    };
    let letters: Vec<char> = (0..=255).map(letter).collect();
    (0..=255).zip(letters).collect()
}

/// Printable letters have the first ids, then the others.
fn letter_order(piece: &str) -> (bool, Option<char>) {
    let letter = piece.chars().next();
    (letter >= Some('\u{100}'), letter)
}

/// A text as OpenAI's tokenizer reads it: HTML entities resolved (twice), and of what ftfy mends
/// straight quotes, ligatures, fullwidth letters and control characters. Broken encodings are left as
/// they are, and of named entities only those of XML and `&nbsp;` are known.
pub fn clean(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii() && !c.is_ascii_control() && c != '&';
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let once = unescape(text);
    let text = unescape(&once);
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| mend(c, &mut out));
    Cow::Owned(out)
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let entity = rest
            .find(';')
            .and_then(|end| Some((end, entity(&rest[1..end])?)));
        let (len, c) = entity.map_or((1, '&'), |(end, c)| (end + 1, c));
        out.push(c);
        rest = &rest[len..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn entity(name: &str) -> Option<char> {
    let number = |text: &str, radix| {
        u32::from_str_radix(text, radix)
            .ok()
            .and_then(char::from_u32)
    };
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some('\u{a0}'),
        _ => match name.strip_prefix('#')?.strip_prefix(['x', 'X']) {
            Some(hex) => number(hex, 16),
            None => number(&name[1..], 10),
        },
    }
}

fn mend(c: char, out: &mut String) {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
        '\u{201c}'..='\u{201f}' => out.push('"'),
        '\u{3000}' => out.push(' '),
        // Fullwidth letters stand in ASCII's order.
        '\u{ff01}'..='\u{ff5e}' => out.extend(char::from_u32(c as u32 - 0xff01 + 0x21)),
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' => {}
        '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => {}
        _ => match LIGATURES.iter().find(|(ligature, _)| *ligature == c) {
            Some((_, letters)) => out.push_str(letters),
            None => out.push(c),
        },
    }
}

const LIGATURES: [(char, &str); 19] = [
    ('Ĳ', "IJ"),
    ('ĳ', "ij"),
    ('ŉ', "ʼn"),
    ('Ǆ', "DŽ"),
    ('ǅ', "Dž"),
    ('ǆ', "dž"),
    ('Ǉ', "LJ"),
    ('ǈ', "Lj"),
    ('ǉ', "lj"),
    ('Ǌ', "NJ"),
    ('ǋ', "Nj"),
    ('ǌ', "nj"),
    ('ﬀ', "ff"),
    ('ﬁ', "fi"),
    ('ﬂ', "fl"),
    ('ﬃ', "ffi"),
    ('ﬄ', "ffl"),
    ('ﬅ', "ſt"),
    ('ﬆ', "st"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
        let encoding = tokenizer.encode_fast(clean(text).as_ref(), true).unwrap();
        encoding.get_ids().to_vec()
    }

    #[test]
    fn texts_are_cleaned_as_openai_does() {
        let cases = [
            ("plain 'text'", "plain 'text'"),
            ("Q&amp;amp;A &lt;b&gt; &#65;&#x42;", "Q&A <b> AB"),
            ("a & b &unknown; &", "a & b &unknown; &"),
            ("\u{201c}it\u{2019}s\u{201d}", "\"it's\""),
            ("ｆｕｌｌ，", "full,"),
            ("ﬁn ǅ", "fin Dž"),
            ("a\u{feff}b\u{7f}", "ab"),
        ];
        for (text, want) in cases {
            assert_eq!(clean(text), want);
        }
    }

    #[test]
    fn a_small_list_of_merges_makes_a_vocabulary() {
        let json = tokenizer_json("#version: 0.2\nc a\nca t</w>\n").unwrap();
        let tokenizer = tokenizers::Tokenizer::from_bytes(json).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 512 + 2 + 2);
        // `!` is the first letter of all; `a</w>` stands 256 behind `a`.
        assert_eq!(ids(&tokenizer, "Cat"), [514, 513, 515]);
        assert_eq!(ids(&tokenizer, "! a"), [514, 256, 64 + 256, 515]);
        assert_eq!(ids(&tokenizer, "  "), [514, 515]);
        let error = tokenizer_json("#version\nc a\nabc\n").unwrap_err();
        assert_eq!(error, "line 3 is `abc`, expected two pieces");
    }

    #[test]
    fn the_published_merges_give_openais_ids() {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
        let shared = std::env::var_os("CROSSTUNE_SHARED").map_or(beside, Into::into);
        let folder = shared.join("data/tokenizers");
        if !folder.is_dir() {
            println!("SKIPPED: {} is absent", folder.display());
            return;
        }
        let json = read(&folder.join("clip").join(MERGES_FILES[0])).unwrap();
        let tokenizer = tokenizers::Tokenizer::from_bytes(json).unwrap();
        let golden = fs::read_to_string(folder.join("golden_ids.jsonl")).unwrap();
        let mut n = 0;
        for line in golden.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = line["text"].as_str().unwrap();
            let want: Vec<u32> = serde_json::from_value(line["clip"].clone()).unwrap();
            assert_eq!(ids(&tokenizer, text), want, "{text:?}");
            n += 1;
        }
        assert!(n > 30, "{n} texts");
    }
}
