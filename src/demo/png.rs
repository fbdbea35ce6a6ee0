//! A minimal PNG writer (ISO/IEC 15948): 8-bit RGB, no row filter, one compressed block.

use std::io::Write as _;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use super::render::{Picture, SIDE};
use crate::error::{Error, Result};

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// The picture as a PNG file.
///
/// # Errors
/// [`Error::Run`] when compression fails, which writing to memory does not provoke.
pub fn to_png(picture: &Picture) -> Result<Vec<u8>> {
    let side = (SIDE as u32).to_be_bytes();
    // Bit depth 8, colour type 2 (RGB), deflate, adaptive filtering, no interlace.
    let header = [&side[..], &side, &[8, 2, 0, 0, 0]].concat();
    let mut rows = Vec::with_capacity(picture.pixels().len() + SIDE);
    for row in picture.pixels().chunks_exact(3 * SIDE) {
        rows.push(0);
        rows.extend_from_slice(row);
    }
    let mut file = SIGNATURE.to_vec();
    chunk(&mut file, b"IHDR", &header);
    chunk(
        &mut file,
        b"IDAT",
        &deflate(&rows).map_err(|e| Error::Run(format!("png: {e}")))?,
    );
    chunk(&mut file, b"IEND", &[]);
    Ok(file)
}

fn deflate(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], body: &[u8]) {
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(body);
    file.extend_from_slice(&(body.len() as u32).to_be_bytes());
    file.extend_from_slice(kind);
    file.extend_from_slice(body);
    file.extend_from_slice(&crc.sum().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::demo::render::render;
    use crate::demo::scene::Scene;

    #[test]
    fn the_pixels_come_back() {
        let picture = render(&Scene::random(1, 0), 1);
        let file = to_png(&picture).unwrap();
        // Signature, then IHDR: length, name, 13 bytes, checksum.
        let idat = 8 + 12 + 13;
        let length = u32::from_be_bytes(file[idat..idat + 4].try_into().unwrap()) as usize;
        assert_eq!(&file[idat + 4..idat + 8], b"IDAT");
        let mut rows = Vec::new();
        let body = &file[idat + 8..idat + 8 + length];
        flate2::read::ZlibDecoder::new(body)
            .read_to_end(&mut rows)
            .unwrap();
        let pixels: Vec<u8> = rows
            .chunks(1 + 3 * SIDE)
            .flat_map(|row| &row[1..])
            .copied()
            .collect();
        assert_eq!(pixels, picture.pixels());
        // The checksum of an empty IEND is a constant of the standard.
        assert_eq!(&file[file.len() - 4..], [0xae, 0x42, 0x60, 0x82]);
    }
}
