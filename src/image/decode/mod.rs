//! The bytes of a JPEG or PNG file become a [`Picture`], as Pillow's `convert("RGB")` gives it.

mod jpeg;
mod png;

use super::Picture;
use crate::bad_input;
use crate::error::Result;

/// Most pixels of a picture: where Pillow takes a file for a decompression bomb.
pub const MAX_PIXELS: usize = 178_956_970;

/// Beginnings of files that are pictures of a kind that is not read.
const OTHERS: [(&[u8], &str); 6] = [
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"RIFF", "a WebP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\0\0\0 ftyp", "a HEIC or AVIF"),
];

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Joint Photographic Experts Group, ITU T.81.
    Jpeg,
    /// Portable Network Graphics, ISO/IEC 15948.
    Png,
}

impl Kind {
    /// How many bytes [`Kind::of`] needs.
    pub const N_BYTES: usize = 8;

    /// The kind of a file that begins with `bytes`, where it is one that is read.
    pub fn of(bytes: &[u8]) -> Option<Kind> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Kind::Jpeg),
            _ if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => Some(Kind::Png),
            _ => None,
        }
    }
}

/// Decodes a file. Its name does not count, its first bytes do. Alpha is dropped, an orientation or
/// a colour profile ignored. 16-bit values lose their low byte, but those of grey PNGs without alpha
/// end at 255, as Pillow's do.
///
/// # Errors
/// When the bytes are no JPEG or PNG, are cut short or damaged, or make more than [`MAX_PIXELS`]. The
/// message does not name the file.
pub fn decode(bytes: &[u8]) -> Result<Picture> {
    match Kind::of(bytes) {
        Some(Kind::Jpeg) => jpeg::decode(bytes),
        Some(Kind::Png) => png::decode(bytes),
        None => Err(bad_input!("{}", what(bytes))),
    }
}

/// Why bytes are no picture.
fn what(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "is empty, expected a JPEG or PNG".into();
    }
    match OTHERS.iter().find(|(start, _)| bytes.starts_with(start)) {
        Some((_, kind)) => format!("is {kind}; only JPEG and PNG are read, convert it"),
        None => {
            let start: String = bytes
                .iter()
                .take(8)
                .map(|b| b.escape_ascii().to_string())
                .collect();
            format!("is neither a JPEG nor a PNG: it begins with \"{start}\"")
        }
    }
}

/// Refuses sides that no memory is wanted for. Nothing of the pixels has been read by then.
fn check_size(width: usize, height: usize) -> Result<()> {
    match width.checked_mul(height) {
        Some(0) => Err(bad_input!(
            "declares {width} x {height} pixels, expected at least one"
        )),
        Some(n) if n <= MAX_PIXELS => Ok(()),
        _ => Err(bad_input!(
            "declares {width} x {height} pixels, more than the {MAX_PIXELS} that are decoded; make \
             it smaller"
        )),
    }
}
