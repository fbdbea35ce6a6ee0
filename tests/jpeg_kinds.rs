//! JPEGs of every kind, written here: of one colour, so that the standard alone says what each value is.

use crosstune::image::decode::decode;

/// A JPEG of one colour, 8 pixels wide.
struct Flat<'a> {
    /// Stored values, one a component.
    values: &'a [u8],
    ids: &'a [u8],
    /// The transform that Adobe's marker tells.
    adobe: Option<u8>,
    progressive: bool,
    /// Blocks below each other.
    n_blocks: usize,
}

impl Flat<'_> {
    /// Source: ITU T.81, annexes B, C and F.
    fn bytes(&self) -> Vec<u8> {
        let n = self.values.len() as u8;
        let mut out = vec![0xff, 0xd8];
        if let Some(transform) = self.adobe {
            let body = [b"Adobe\0\x64\0\0\0\0", &[transform][..]].concat();
            out.extend(segment(0xee, &body));
        }
        out.extend(segment(0xdb, &[&[0][..], &[1; 64]].concat()));
        let mut frame = vec![8, 0, 8 * self.n_blocks as u8, 0, 8, n];
        let mut scan = vec![n];
        for &id in self.ids {
            frame.extend([id, 0x11, 0]);
            scan.extend([id, 0]);
        }
        let (kind, last) = if self.progressive {
            (0xc2, 0)
        } else {
            (0xc0, 63)
        };
        scan.extend([0, last, 0]);
        out.extend(segment(kind, &frame));
        // Differences of 0 to 11 bits have codes of four bits, the end of a block is a single 0.
        let of_length =
            |length: usize, n: u8| (1..=16).map(move |l| if l == length { n } else { 0 });
        let dc = std::iter::once(0).chain(of_length(4, 12)).chain(0..12);
        out.extend(segment(0xc4, &dc.collect::<Vec<u8>>()));
        let ac = std::iter::once(0x10).chain(of_length(1, 1)).chain([0]);
        out.extend(segment(0xc4, &ac.collect::<Vec<u8>>()));
        out.extend(segment(0xda, &scan));
        out.extend(self.scan());
        out.extend([0xff, 0xd9]);
        out
    }

    fn scan(&self) -> Vec<u8> {
        let mut bits = String::new();
        for block in 0..self.n_blocks {
            for &value in self.values {
                // A flat block's only coefficient, less that of the block before.
                let dc = if block == 0 {
                    8 * (i32::from(value) - 128)
                } else {
                    0
                };
                let size = 32 - dc.unsigned_abs().leading_zeros() as usize;
                bits += &format!("{size:04b}");
                if size > 0 {
                    let low = if dc < 0 { dc - 1 } else { dc } & ((1 << size) - 1);
                    bits += &format!("{low:0size$b}");
                }
                if !self.progressive {
                    bits.push('0');
                }
            }
        }
        bits += &"1".repeat((8 - bits.len() % 8) % 8);
        let bytes = (0..bits.len())
            .step_by(8)
            .map(|i| u8::from_str_radix(&bits[i..i + 8], 2).unwrap());
        // A 0 behind each ff says that it is no marker.
        bytes
            .flat_map(|b| if b == 0xff { vec![b, 0] } else { vec![b] })
            .collect()
    }
}

fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16 + 2).to_be_bytes();
    [&[0xff, marker][..], &length, body].concat()
}

const GREY: Flat = Flat {
    values: &[77],
    ids: &[1],
    adobe: None,
    progressive: false,
    n_blocks: 1,
};

/// Values, ids, Adobe's transform, and what Pillow makes of them.
type Case = (&'static [u8], &'static [u8], Option<u8>, [u8; 3]);

#[test]
fn each_kind_becomes_pillows_rgb() {
    let (abc, four): (&[u8], &[u8]) = (&[1, 2, 3], &[1, 2, 3, 4]);
    let cases: [Case; 9] = [
        (&[77], &[1], None, [77; 3]),
        // YCbCr, where nothing says otherwise: red is y + 1.402 (cr - 128).
        (&[100, 128, 178], abc, None, [170, 64, 100]),
        (&[100, 128, 178], abc, Some(1), [170, 64, 100]),
        (&[9, 200, 31], abc, Some(0), [9, 200, 31]),
        (&[9, 200, 31], b"RGB", None, [9, 200, 31]),
        // Four inks, 255 for none: by Pillow 13's Image.frombytes("CMYK", (1, 1), bytes(255 - v for v
        // in values)).convert("RGB").
        (&[255, 255, 255, 255], four, Some(0), [255; 3]),
        (&[0, 128, 255, 200], four, Some(0), [0, 100, 200]),
        (&[17, 99, 201, 77], four, None, [5, 30, 61]),
        // YCCK: y is the white that an ink leaves of its complement.
        (&[40, 128, 128, 200], four, Some(2), [169; 3]),
    ];
    for (values, ids, adobe, want) in cases {
        for progressive in [false, true] {
            let flat = Flat {
                values,
                ids,
                adobe,
                progressive,
                n_blocks: 2,
            };
            let what = format!("{values:?}, {ids:?}, Adobe {adobe:?}, progressive {progressive}");
            let picture = decode(&flat.bytes()).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!((picture.width(), picture.height()), (8, 16), "{what}");
            for pixel in picture.rgb().chunks(3) {
                // A decoder may round the colours of YCbCr its own way.
                let near = pixel.iter().zip(want).all(|(a, b)| a.abs_diff(b) <= 1);
                assert!(near, "{what}: {pixel:?}, expected {want:?}");
            }
        }
    }
}

#[test]
fn an_orientation_is_ignored() {
    // Exif, little-endian, one entry: tag 0x112 (orientation), type 3, one of them, 6 (turned).
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let flat = Flat {
        n_blocks: 3,
        ..GREY
    }
    .bytes();
    let turned = [&flat[..2], &segment(0xe1, exif), &flat[2..]].concat();
    let picture = decode(&turned).unwrap();
    assert_eq!((picture.width(), picture.height()), (8, 24));
}

#[test]
fn an_end_is_needed_and_what_stands_behind_it_ignored() {
    let flat = GREY.bytes();
    let whole = decode(&flat).unwrap();
    let end = flat.len() - 2;
    // A thumbnail's own end is none of the picture's.
    let thumbnail = [&flat[..2], &segment(0xe1, &flat), &flat[2..]].concat();
    assert_eq!(decode(&thumbnail).unwrap(), whole);
    // Filling before a marker; a film behind the picture, in which any bytes may stand.
    let filled = [&flat[..end], &[0xff, 0xff], &flat[end..]].concat();
    assert_eq!(decode(&filled).unwrap(), whole);
    assert_eq!(
        decode(&[&flat[..], b"\xff\xda\0\x08film"].concat()).unwrap(),
        whole
    );
    for cut in [
        &flat[..end],
        &flat[..end + 1],
        &thumbnail[..thumbnail.len() - 2],
    ] {
        let text = decode(cut).unwrap_err().to_string();
        assert!(text.contains("cut short: it has no end of image"), "{text}");
    }
}

#[test]
fn other_jpegs_are_refused() {
    let two = Flat {
        values: &[1, 2],
        ids: &[1, 2],
        ..GREY
    };
    let mut large = GREY.bytes();
    let frame = large.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    large[frame + 5..frame + 9].fill(0xff);
    let mut lossless = GREY.bytes();
    lossless[frame + 1] = 0xc3;
    for (bytes, says) in [
        (two.bytes(), "is a JPEG of 2 components; 1, 3 or 4 are read"),
        (
            large,
            "declares 65535 x 65535 pixels, more than the 178956970",
        ),
        (lossless, "is a damaged JPEG"),
    ] {
        let text = decode(&bytes).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    }
}
