//! What the pages that are written share: they are one file each, ask for nothing outside it, and
//! follow the reader's choice of light or dark.

/// A text as it may stand between tags and in quoted attributes.
pub fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// A file's bytes as an address.
pub fn data_uri(mime: &str, bytes: &[u8]) -> String {
    format!("data:{mime};base64,{}", base64(bytes))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let sextet = (word >> (18 - 6 * i)) as usize & 63;
            text.push(if i <= chunk.len() {
                char::from(ALPHABET[sextet])
            } else {
                '='
            });
        }
    }
    text
}

/// Colours, the page's frame and its headings.
pub const STYLE: &str = "
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #1d1f23; --soft: #666b73;
  --line: #e3e0da; --card: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e9e7e2; --soft: #9aa0a8;
  --line: #2c3036; --card: #1c1f23; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; }
main { margin: 0 auto; padding: 48px 24px 64px; }
.kicker { margin: 0; color: var(--soft); font-size: 14px; }
h1 { margin: 4px 0 12px; font-size: 34px; line-height: 1.15; letter-spacing: -.02em; }
h2 { margin: 40px 0 12px; font-size: 19px; }
.lead { margin: 0; max-width: 62ch; }
footer { margin-top: 40px; color: var(--soft); font-size: 14px; }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (text, want) in cases {
            assert_eq!(base64(text.as_bytes()), want);
        }
    }

    #[test]
    fn texts_are_safe() {
        let escaped = "&lt;a &amp; &quot;b&quot; &#39;c&#39;&gt;";
        assert_eq!(escape("<a & \"b\" 'c'>"), escaped);
    }
}
