//! PNG by the `png` crate, in RGB by Pillow's rules.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Limits, Transformations};

use super::{Picture, check_size};
use crate::bad_input;
use crate::error::Result;

/// Memory that a file's rows may take besides its pixels: enough for any that [`check_size`] lets pass.
const LIMIT: usize = 1 << 31;

/// Decodes a PNG of any colour type, depth and interlacing; of an animation the first picture.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture> {
    let broken = |e: png::DecodingError| bad_input!("is a damaged PNG: {e}");
    let limits = Limits { bytes: LIMIT };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), limits);
    // Palettes and depths below 8 become 8 bits; 16 stay, since grey ones are clipped, not cut.
    decoder.set_transformations(Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(broken)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    check_size(width, height)?;
    // A grey with one transparent value becomes grey with alpha, but is no other grey.
    let grey = reader.info().color_type == ColorType::Grayscale;
    let Some(size) = reader.output_buffer_size() else {
        return Err(bad_input!("is a PNG too large for this machine's memory"));
    };
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels).map_err(broken)?;
    pixels.truncate(info.buffer_size());
    let wide = info.bit_depth == BitDepth::Sixteen;
    let rgb = to_rgb(pixels, info.color_type, wide, grey);
    Picture::new(width, height, rgb)
}

/// Values of each channel, two bytes each where `wide`, to three a pixel; alpha is dropped. `grey` is
/// whether the file's own pixels are of one value.
fn to_rgb(pixels: Vec<u8>, colour: ColorType, wide: bool, grey: bool) -> Vec<u8> {
    let values: Vec<u8> = match (wide, grey) {
        (false, _) => pixels,
        // Pillow holds grey in 16 bits and cuts it off at 255; of others it takes the high byte.
        (true, true) => pixels
            .chunks_exact(2)
            .map(|b| if b[0] > 0 { 255 } else { b[1] })
            .collect(),
        (true, _) => pixels.chunks_exact(2).map(|b| b[0]).collect(),
    };
    match colour {
        ColorType::Grayscale => values.iter().flat_map(|v| [*v; 3]).collect(),
        ColorType::GrayscaleAlpha => values.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        ColorType::Rgba => (values.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]])).collect(),
        // Palettes are expanded.
        ColorType::Rgb | ColorType::Indexed => values,
    }
}
