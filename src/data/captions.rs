//! Reading files of one caption (or one image name) a line.
//!
//! The published files differ in line ends, in blanks at the ends of lines and in whether the
//! last line ends at all; a line's number ties it to its image, so none may be lost or invented.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::bad_input;
use crate::error::{Error, Result};

/// The lines of a file, plain or gzipped (told by its first bytes, not by its name).
///
/// Lines end with `\n` or `\r\n`; the last may have no end. ASCII blanks (space, tab, CR,
/// vertical tab, form feed) are taken off both ends, other blanks such as U+00A0 are text.
/// Inside a line nothing changes: tabs, double spaces and HTML entities stay. A byte order mark
/// before the first line is dropped.
///
/// # Errors
/// A file that cannot be read or unpacked, a line that is not UTF-8 and a line that is empty after
/// stripping are errors that name the file and the line, counted from 1.
pub fn read_lines(path: &Path) -> Result<Vec<String>> {
    lines_of(fs::read(path).map_err(Error::read(path))?, path)
}

/// [`read_lines`] of bytes already read; `path` names them in messages.
///
/// # Errors
/// As [`read_lines`].
pub fn lines_of(bytes: Vec<u8>, path: &Path) -> Result<Vec<String>> {
    let bytes = unpack(bytes, path)?;
    let mut rest = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    if rest.is_empty() {
        return Err(bad_input!(
            "{}: the file is empty; expected one caption or name a line",
            path.display()
        ));
    }
    rest = rest.strip_suffix(b"\n").unwrap_or(rest);
    let mut lines = Vec::new();
    for (i, line) in rest.split(|&b| b == b'\n').enumerate() {
        let line = std::str::from_utf8(line).map_err(|e| {
            bad_input!(
                "{}: line {} is not UTF-8 (byte {} of the line is 0x{:02x}); convert the file to \
                 UTF-8",
                path.display(),
                i + 1,
                e.valid_up_to() + 1,
                line[e.valid_up_to()]
            )
        })?;
        let line = strip_ascii(line);
        if line.is_empty() {
            return Err(bad_input!(
                "{}: line {} is empty; expected a caption or name, since line numbers tie captions \
                 to images",
                path.display(),
                i + 1
            ));
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}

/// A file's bytes, unpacked when they are gzip (all members).
///
/// # Errors
/// When the file cannot be read or is a damaged gzip file.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    unpack(fs::read(path).map_err(Error::read(path))?, path)
}

fn unpack(bytes: Vec<u8>, path: &Path) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut unpacked = Vec::with_capacity(bytes.len() * 4);
    MultiGzDecoder::new(bytes.as_slice())
        .read_to_end(&mut unpacked)
        .map_err(|e| {
            bad_input!(
                "{}: a damaged gzip file ({e}); fetch it again",
                path.display()
            )
        })?;
    Ok(unpacked)
}

/// `text` without ASCII blanks at its ends.
pub fn strip_ascii(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\r', '\n', '\x0b', '\x0c'])
}

/// `folder/name` or `folder/name.gz`, whichever is a file.
pub(super) fn plain_or_gz(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = folder.join(name);
    let packed = folder.join(format!("{name}.gz"));
    [plain, packed].into_iter().find(|path| path.is_file())
}

/// What stands between `prefix` and `suffix` in the names of a folder's files (`.gz` aside),
/// sorted: the languages of a split, the splits of a data set.
pub(super) fn middles(folder: &Path, prefix: &str, suffix: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::read(folder))? {
        let name = entry.map_err(Error::read(folder))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let name = name.strip_suffix(".gz").unwrap_or(name);
        let middle = name
            .strip_prefix(prefix)
            .and_then(|name| name.strip_suffix(suffix));
        if let Some(middle) = middle.filter(|m| !m.is_empty() && !m.contains('.')) {
            found.push(middle.to_owned());
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn read(bytes: &[u8]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.de");
        fs::write(&path, bytes).unwrap();
        read_lines(&path)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn line_ends_of_every_kind() {
        let want = ["ein Hund", "zwei Katzen"];
        for text in [
            "ein Hund\nzwei Katzen\n",
            "ein Hund\nzwei Katzen",
            "ein Hund\r\nzwei Katzen\r\n",
            "ein Hund\r\nzwei Katzen",
            "\u{feff}ein Hund\nzwei Katzen\n",
            " \tein Hund \x0b\x0c\nzwei Katzen  \r\n",
        ] {
            assert_eq!(read(text.as_bytes()).unwrap(), want, "{text:?}");
        }
    }

    #[test]
    fn inner_text_is_untouched() {
        let text = "\u{a0}a\tb  c &amp; d\u{200b}\n\u{2028}x\u{85}y\u{3000}\n";
        let want = ["\u{a0}a\tb  c &amp; d\u{200b}", "\u{2028}x\u{85}y\u{3000}"];
        assert_eq!(read(text.as_bytes()).unwrap(), want);
    }

    #[test]
    fn gzip_members_are_joined() {
        let mut bytes = gzip(b"one\ntwo\n");
        bytes.extend(gzip(b"three"));
        assert_eq!(read(&bytes).unwrap(), ["one", "two", "three"]);
        let error = read(&bytes[..bytes.len() - 9]).unwrap_err().to_string();
        assert!(
            error.contains("captions.de") && error.contains("damaged gzip"),
            "{error}"
        );
    }

    #[test]
    fn bad_lines_name_file_and_line() {
        for (bytes, part) in [
            (b"one\n \t\r\nthree\n".as_slice(), "line 2 is empty"),
            (b"one\ntwo\n\n", "line 3 is empty"),
            (
                b"one\ntw\xe4\n",
                "line 2 is not UTF-8 (byte 3 of the line is 0xe4)",
            ),
            (b"", "the file is empty"),
            (b"\n", "line 1 is empty"),
        ] {
            let error = read(bytes).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let error = error.to_string();
            assert!(
                error.contains("captions.de") && error.contains(part),
                "{error}"
            );
        }
        let error = read_lines(Path::new("/nowhere/train.de"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nowhere/train.de"), "{error}");
    }
}
