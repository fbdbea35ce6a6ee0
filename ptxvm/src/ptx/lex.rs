//! Tokens of PTX.

use super::ParseError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name, an opcode with its modifiers, or a directive: `%r1`, `ld.global.u32`, `.reg`.
    Name(String),
    Int(u64),
    F32(u32),
    F64(u64),
    Text(String),
    Punct(char),
}

pub(super) type Spanned = (Token, u32);

pub(super) fn lex(text: &str) -> Result<Vec<Spanned>, ParseError> {
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1u32);
    let mut out = Vec::new();
    while let Some(&c) = bytes.get(at) {
        match c {
            b'\n' => {
                line += 1;
                at += 1;
            }
            _ if c.is_ascii_whitespace() => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..].iter().take_while(|b| **b != b'\n').count();
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..].find("*/").map_or(text.len(), |e| at + e + 2);
                line += text[at..end].matches('\n').count() as u32;
                at = end;
            }
            b'"' => {
                let end = text[at + 1..].find('"').ok_or(ParseError {
                    line,
                    reason: "a string without an end".into(),
                })?;
                out.push((Token::Text(text[at + 1..at + 1 + end].into()), line));
                at += end + 2;
            }
            b'0'..=b'9' => {
                let len = bytes[at..]
                    .iter()
                    .take_while(|b| b.is_ascii_alphanumeric())
                    .count();
                out.push((number(&text[at..at + len], line)?, line));
                at += len;
            }
            _ if starts_name(c) => {
                let len = name_length(&bytes[at..]);
                out.push((Token::Name(text[at..at + len].into()), line));
                at += len;
            }
            _ if c.is_ascii() => {
                out.push((Token::Punct(c as char), line));
                at += 1;
            }
            _ => {
                return Err(ParseError {
                    line,
                    reason: format!("byte {c:#x} outside a comment"),
                });
            }
        }
    }
    Ok(out)
}

fn starts_name(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// `::` belongs to a name (`shared::cta`), a single `:` ends a label.
fn name_length(rest: &[u8]) -> usize {
    let mut len = 1;
    while let Some(&c) = rest.get(len) {
        if c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.') {
            len += 1;
        } else if c == b':' && rest.get(len + 1) == Some(&b':') {
            len += 2;
        } else {
            break;
        }
    }
    len
}

fn number(text: &str, line: u32) -> Result<Token, ParseError> {
    let bad = || ParseError {
        line,
        reason: format!("{text} is not a number"),
    };
    let hex = |s: &str| u64::from_str_radix(s, 16).map_err(|_| bad());
    let (head, tail) = text.split_at(text.len().min(2));
    Ok(match head {
        "0f" | "0F" => Token::F32(hex(tail)?.try_into().map_err(|_| bad())?),
        "0d" | "0D" => Token::F64(hex(tail)?),
        "0x" | "0X" => Token::Int(hex(tail.trim_end_matches('U'))?),
        _ => Token::Int(text.trim_end_matches('U').parse().map_err(|_| bad())?),
    })
}
