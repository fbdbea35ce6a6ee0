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
    let info = decoder.info();
    let (width, height) = info.map_or((0, 0), |i| (usize::from(i.width), usize::from(i.height)));
    check_size(width, height)?;
    if !is_whole(bytes) {
        return Err(bad_input!(
            "is a JPEG that was cut short: it has no end of image"
        ));
    }
    let inks = decoder.input_colorspace() == Some(ColorSpace::CMYK);
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

/// Whether the last scan has an end. In a scan the byte ff is never followed by d9.
fn is_whole(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|w| w == marker);
    last([0xff, 0xd9]) > last([0xff, 0xda])
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
