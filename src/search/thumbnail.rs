//! A picture's file as a page can hold it.

use std::fs;
use std::path::{Component, Path};

use crate::error::{Error, Result};
use crate::html::data_uri;
use crate::image::decode::{Kind, decode};
use crate::image::{Filter, PassOrder, Picture, Window};

/// The longest side of a thumbnail in pixels.
const SIDE: usize = 256;
/// A file of at most so many bytes stands in the page as it is.
const SMALL: usize = 32 << 10;

/// The picture `name` of a folder as an address that holds it. The error says in a few words why
/// there is none.
pub(super) fn thumbnail(folder: &Path, name: &str) -> std::result::Result<String, String> {
    // A feature file may come from anywhere: its names must not lead out of the folder.
    let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if !Path::new(name).components().all(inside) {
        return Err("its name leads out of the folder".into());
    }
    let path = folder.join(name);
    if !path.is_file() {
        return Err(format!("no such file in {}", folder.display()));
    }
    let bytes = fs::read(&path).map_err(|e| format!("cannot be read: {e}"))?;
    shrunk(&bytes).map_err(|e| e.to_string())
}

fn shrunk(bytes: &[u8]) -> Result<String> {
    // Small ones are decoded too: a damaged one must not look like an empty frame.
    let picture = decode(bytes)?;
    if let (Some(kind), true) = (Kind::of(bytes), bytes.len() <= SMALL) {
        let mime = match kind {
            Kind::Jpeg => "image/jpeg",
            Kind::Png => "image/png",
        };
        return Ok(data_uri(mime, bytes));
    }
    let longest = picture.width().max(picture.height());
    let side = |n: usize| match longest > SIDE {
        true => (n * SIDE / longest).max(1),
        false => n,
    };
    let size = (side(picture.width()), side(picture.height()));
    let small = picture.resize(
        size,
        Window::all(size),
        Filter::Bicubic,
        PassOrder::default(),
    )?;
    Ok(data_uri("image/png", &to_png(&small)?))
}

fn to_png(picture: &Picture) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Sides of a thumbnail fit.
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(picture.rgb())?;
        writer.finish()
    });
    written.map_err(|e| Error::Run(format!("a thumbnail cannot be written as PNG: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of `size` whose red grows to the right.
    fn picture((width, height): (usize, usize)) -> Picture {
        let pixel = |i: usize| [(i % width * 255 / width) as u8, 90, (i * 7 % 256) as u8];
        let rgb = (0..width * height).flat_map(pixel).collect();
        Picture::new(width, height, rgb).unwrap()
    }

    fn unpacked(uri: &str) -> (&str, Vec<u8>) {
        let (mime, text) = uri.split_once(";base64,").unwrap();
        let digit = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let mut bytes = Vec::new();
        for four in text.as_bytes().chunks(4) {
            let kept = four.iter().filter(|c| **c != b'=');
            let word = kept
                .clone()
                .fold(0u32, |w, c| w << 6 | u32::from(digit(*c)));
            let n = kept.count();
            let word = word << (6 * (4 - n));
            bytes.extend(&word.to_be_bytes()[1..n]);
        }
        (mime, bytes)
    }

    #[test]
    fn large_ones_shrink_and_small_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        let small = to_png(&picture((40, 30))).unwrap();
        put("small.png", &small);
        let uri = thumbnail(dir.path(), "./small.png").unwrap();
        assert_eq!(unpacked(&uri), ("data:image/png", small));
        for (size, want) in [
            ((600, 300), (256, 128)),
            ((3, 9000), (1, 256)),
            ((230, 200), (230, 200)),
        ] {
            let large = to_png(&picture(size)).unwrap();
            // Not a few bytes: what follows the picture is not read.
            put("large.png", &[large, vec![0; SMALL]].concat());
            let uri = thumbnail(dir.path(), "large.png").unwrap();
            let shown = decode(&unpacked(&uri).1).unwrap();
            assert_eq!((shown.width(), shown.height()), want);
            if size == want {
                assert_eq!(shown, picture(size));
            }
        }
    }

    #[test]
    fn why_there_is_none_is_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes.jpg"), "a text").unwrap();
        let png = to_png(&picture((9, 9))).unwrap();
        fs::write(dir.path().join("cut.png"), &png[..png.len() / 2]).unwrap();
        let why = |name: &str| thumbnail(dir.path(), name).unwrap_err();
        assert!(why("gone.jpg").starts_with("no such file in /"));
        assert!(why("notes.jpg").contains("neither a JPEG nor a PNG"));
        assert!(why("cut.png").contains("PNG"));
        for name in ["../secret.png", "/etc/passwd", "a/../../b.png"] {
            assert_eq!(why(name), "its name leads out of the folder");
        }
    }
}
