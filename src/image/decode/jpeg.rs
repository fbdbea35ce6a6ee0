//! JPEG by zune-jpeg; four inks become RGB by Pillow's rule.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Picture, check_size};
use crate::bad_input;
use crate::error::Result;

/// Longest side that the format can declare.
const MAX_SIDE: usize = 65_535;

/// Decodes a JPEG: baseline or progressive, grey, YCbCr, RGB, CMYK or YCCK.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture> {
    let broken = |e: &dyn std::fmt::Display| bad_input!("is a damaged JPEG: {e}");
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| broken(&e))?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    check_size(width, height)?;
    if !is_whole(bytes) {
        return Err(bad_input!(
            "is a JPEG that was cut short: it has no end of image"
        ));
    }
    let components = decoder.info().map_or(0, |info| info.components);
    // An Adobe marker without a transform means four inks, or red, green and blue.
    let inks = match (components, decoder.input_colorspace()) {
        (1 | 3, _) => false,
        (4, space) => space == Some(ColorSpace::CMYK),
        _ => {
            return Err(bad_input!(
                "is a JPEG of {components} components; 1, 3 or 4 are read"
            ));
        }
    };
    if inks {
        // As they are stored; the decoder's own rule rounds otherwise than Pillow's.
        decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::CMYK));
    }
    let pixels = decoder.decode().map_err(|e| broken(&e))?;
    match inks {
        true => Picture::new(width, height, rgb_of_inks(&pixels)),
        false => Picture::new(width, height, pixels),
    }
}

/// Whether the picture has an end of image. Whatever a program appended behind it, such as a film,
/// is not looked at.
fn is_whole(bytes: &[u8]) -> bool {
    // Behind the start of image.
    let mut at = 2;
    while let Some(next) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(|b| *b == 0xff))
    {
        at += next + 1;
        match bytes.get(at) {
            Some(0xd9) => return true,
            // Filling; a value of a scan; a restart.
            Some(0xff) => {}
            Some(0x00 | 0x01 | 0xd0..=0xd7) => at += 1,
            Some(_) => match bytes.get(at + 1..at + 3) {
                // A segment, whose length counts itself.
                Some(length) => at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
            None => return false,
        }
    }
    false
}

/// Four inks, stored as what they leave white, as Pillow's `convert("RGB")` mixes them.
fn rgb_of_inks(pixels: &[u8]) -> Vec<u8> {
    let mix = |ink: u8, black: u8| {
        let product = u32::from(255 - ink) * u32::from(black) + 128;
        black - (((product >> 8) + product) >> 8) as u8
    };
    let (pixels, _) = pixels.as_chunks::<4>();
    pixels
        .iter()
        .flat_map(|&[c, m, y, k]| [mix(c, k), mix(m, k), mix(y, k)])
        .collect()
}
