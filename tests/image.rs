//! Pictures: decoding and preprocessing against Pillow's, to the bit where both begin with the same pixels.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::golden::floats;
use common::{goldens, max_diff, shared};
use crosstune::image::decode::decode;
use crosstune::image::preprocess::{Preprocess, Resize};
use crosstune::image::{Filter, PassOrder, Picture, Window};
use crosstune::weights::checkpoint::Checkpoint;
use serde_json::{Value, json};

/// Levels that JPEG decoders may differ by at 4:2:0.
const DECODERS: u8 = 4;

fn read(path: &Path) -> Picture {
    let bytes = fs::read(path).expect("readable");
    decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The largest difference of two pictures' values.
fn levels(a: &Picture, b: &Picture) -> u8 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let pairs = a.rgb().iter().zip(b.rgb());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn crops_of_golden_pictures_are_pillows() {
    let Some(folder) = goldens() else { return };
    let manifest = fs::read_to_string(folder.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let want = Checkpoint::open(&folder.join("preprocess.safetensors")).expect("opens");
    let clip = Preprocess::clip(224);
    let all = manifest["preprocess"].as_array().expect("a list");
    assert!(!all.is_empty());
    for (i, entry) in all.iter().enumerate() {
        let picture = read(&folder.join(entry["input"].as_str().expect("a name")));
        let size = [picture.width(), picture.height()];
        assert_eq!(json!(size), entry["size_wh"]);
        let crop = clip.crop(&picture).expect("a crop");
        let bytes = want
            .tensor(&format!("img{i}.u8_hwc"))
            .expect("a crop")
            .bytes;
        assert!(crop.rgb() == bytes, "picture {i}: not the same bytes");
        let rows = |y: usize| (y * 224 + 96)..(y * 224 + 128);
        let normal = clip.normalise(&crop);
        let middle = (0..3).flat_map(|c| (96..128).map(move |y| (c, y)));
        let middle: Vec<f32> = middle
            .flat_map(|(c, y)| normal[c * 224 * 224..][rows(y)].to_vec())
            .collect();
        let want = floats(&want, &format!("img{i}.norm_chw_96_128"));
        assert!(max_diff(&middle, &want) <= 1e-6, "picture {i}");
    }
}

/// A picture as Pillow decodes it, where Pillow is there.
fn pillow(paths: &[PathBuf]) -> Option<Vec<Picture>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", root.join("target/python"));
    python.arg(root.join("tests/pillow_pixels.py")).args(paths);
    let ran = python.output().ok().filter(|out| out.status.success());
    if ran.is_none() {
        println!("SKIPPED: python3 has no Pillow (scripts/test.sh installs it)");
        return None;
    }
    let picture = |path: &PathBuf| {
        let mut raw = path.clone().into_os_string();
        raw.push(".rgb");
        let raw = fs::read(raw).expect("written");
        let line = raw.iter().position(|b| *b == b'\n').expect("a line");
        let size = String::from_utf8_lossy(&raw[..line]).into_owned();
        let (w, h) = size.split_once(' ').expect("two numbers");
        let (w, h) = (w.parse().expect("a width"), h.parse().expect("a height"));
        Picture::new(w, h, raw[line + 1..].to_vec()).expect("a picture")
    };
    Some(paths.iter().map(picture).collect())
}

#[test]
fn crops_of_coco_are_pillows_from_its_pixels_and_near_from_the_file() {
    let Some(shared) = shared() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let golden = shared.join("data/golden/clip_preprocess");
    let mut cases = vec![];
    for entry in fs::read_dir(&golden).expect("goldens").flatten() {
        let name = entry.file_name().into_string().expect("UTF-8");
        if let Some(stem) = name.strip_suffix(".224.png") {
            let copy = dir.path().join(format!("{stem}.jpg"));
            fs::copy(shared.join(format!("data/images/{stem}.jpg")), &copy).expect("copied");
            cases.push((copy, read(&entry.path())));
        }
    }
    assert_eq!(cases.len(), 3);
    let clip = Preprocess::clip(224);
    for (path, want) in &cases {
        let ours = levels(&clip.crop(&read(path)).expect("a crop"), want);
        assert!(ours <= DECODERS, "{}: {ours} levels off", path.display());
    }
    let paths: Vec<PathBuf> = cases.iter().map(|(path, _)| path.clone()).collect();
    let Some(decoded) = pillow(&paths) else {
        return;
    };
    for ((path, want), pixels) in cases.iter().zip(&decoded) {
        assert_eq!(
            levels(&clip.crop(pixels).expect("a crop"), want),
            0,
            "{}",
            path.display()
        );
    }
}

#[test]
fn every_coco_picture_is_read_as_pillow_reads_it() {
    let Some(shared) = shared() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let mut paths = vec![];
    for entry in fs::read_dir(shared.join("data/images"))
        .expect("images")
        .flatten()
    {
        let name = entry.file_name();
        if Path::new(&name).extension().is_some_and(|e| e == "jpg") {
            let copy = dir.path().join(&name);
            fs::copy(entry.path(), &copy).expect("copied");
            paths.push(copy);
        }
    }
    assert_eq!(paths.len(), 41);
    let ours: Vec<Picture> = paths.iter().map(|p| read(p)).collect();
    let Some(theirs) = pillow(&paths) else { return };
    let worst = ours.iter().zip(&theirs).map(|(a, b)| levels(a, b)).max();
    println!("41 pictures: at most {worst:?} levels");
    assert!(worst <= Some(DECODERS));
}

/// Pixels of a formula.
fn picture(width: usize, height: usize) -> Picture {
    let value = |i: usize| (i * i * 31 + i * 17 + i / 7) as u8;
    let rgb = (0..3 * width * height).map(value).collect();
    Picture::new(width, height, rgb).expect("a picture")
}

#[test]
fn odd_shapes_are_cropped() {
    let clip = Preprocess::clip(224);
    for (w, h) in [
        (1, 1),
        (12_000, 30),
        (30, 12_000),
        (224, 224),
        (223, 225),
        (3, 2),
    ] {
        for order in [PassOrder::WidthFirst, PassOrder::Cheapest] {
            let clip = Preprocess {
                order,
                ..clip.clone()
            };
            let crop = clip.crop(&picture(w, h)).expect("a crop");
            assert_eq!((crop.width(), crop.height()), (224, 224));
            assert_eq!(clip.normalise(&crop).len(), 3 * 224 * 224);
        }
    }
    let one = picture(1, 1);
    let crop = clip.crop(&one).expect("a crop");
    assert!(crop.rgb().chunks(3).all(|p| p == one.rgb()));
    // A square that is as large as it should be is left as it is.
    assert_eq!(
        clip.crop(&picture(224, 224)).expect("a crop"),
        picture(224, 224)
    );
    // What is smaller than the crop lies on black.
    let small = Preprocess {
        resize: Resize::To(2, 4),
        crop: 5,
        ..clip
    };
    let crop = small.crop(&picture(4, 2)).expect("a crop");
    let row = |y: usize| &crop.rgb()[15 * y..][..15];
    // (2 - 5) / 2 is rounded to -2, (4 - 5) / 2 to 0.
    assert!([0, 1, 4].iter().all(|y| row(*y).iter().all(|v| *v == 0)));
    assert_eq!(row(2)[..12], picture(4, 2).rgb()[..12]);
    assert_eq!(row(3)[12..], [0, 0, 0]);
}

#[test]
fn either_order_of_passes_is_its_pillows() {
    // Image.fromarray(pixels).resize((3, 2), filter) of Pillow 13.0.0 and 11.3.0.
    let cases = [
        (
            (PassOrder::Cheapest, Filter::Bicubic),
            [
                132, 105, 125, 138, 122, 133, 136, 123, 122, 116, 128, 96, 133, 129, 109, 147, 156,
                129,
            ],
        ),
        (
            (PassOrder::Cheapest, Filter::Bilinear),
            [
                132, 107, 125, 139, 122, 132, 136, 125, 123, 118, 128, 97, 132, 130, 111, 146, 154,
                128,
            ],
        ),
        (
            (PassOrder::WidthFirst, Filter::Bicubic),
            [
                132, 105, 125, 138, 122, 133, 136, 124, 122, 116, 129, 96, 133, 129, 109, 146, 156,
                129,
            ],
        ),
        (
            (PassOrder::WidthFirst, Filter::Bilinear),
            [
                132, 107, 125, 138, 122, 132, 136, 126, 123, 118, 128, 98, 132, 130, 110, 145, 153,
                128,
            ],
        ),
    ];
    let tall = picture(5, 40);
    for ((order, filter), want) in cases {
        let small = tall.resize((3, 2), Window::all((3, 2)), filter, order);
        assert_eq!(small.expect("resizes").rgb(), want, "{order:?} {filter:?}");
        // A part is the same part of the whole.
        let window = Window {
            left: 1,
            top: 1,
            width: 2,
            height: 1,
        };
        let part = tall.resize((3, 2), window, filter, order);
        assert_eq!(part.expect("resizes").rgb(), &want[12..]);
    }
}

/// A PNG of those values.
fn png(colour: png::ColorType, depth: png::BitDepth, (w, h): (u32, u32), data: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    let mut encoder = png::Encoder::new(&mut out, w, h);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == png::ColorType::Indexed {
        encoder.set_palette(vec![1, 2, 3, 250, 251, 252]);
        encoder.set_trns(vec![0, 128]);
    }
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(data).expect("pixels");
    writer.finish().expect("an end");
    out
}

#[test]
fn pngs_of_every_kind_become_rgb() {
    use png::{BitDepth, ColorType};
    let cases: [(ColorType, BitDepth, &[u8], [u8; 6]); 9] = [
        (
            ColorType::Grayscale,
            BitDepth::Eight,
            &[7, 200],
            [7, 7, 7, 200, 200, 200],
        ),
        (
            ColorType::Grayscale,
            BitDepth::One,
            &[0b0100_0000],
            [0, 0, 0, 255, 255, 255],
        ),
        (
            ColorType::Grayscale,
            BitDepth::Four,
            &[0x3f],
            [51, 51, 51, 255, 255, 255],
        ),
        // Pillow cuts 16-bit grey off at 255.
        (
            ColorType::Grayscale,
            BitDepth::Sixteen,
            &[0, 9, 1, 0],
            [9, 9, 9, 255, 255, 255],
        ),
        (
            ColorType::GrayscaleAlpha,
            BitDepth::Eight,
            &[7, 0, 200, 255],
            [7, 7, 7, 200, 200, 200],
        ),
        (
            ColorType::Indexed,
            BitDepth::Eight,
            &[1, 0],
            [250, 251, 252, 1, 2, 3],
        ),
        (
            ColorType::Rgb,
            BitDepth::Eight,
            &[1, 2, 3, 4, 5, 6],
            [1, 2, 3, 4, 5, 6],
        ),
        (
            ColorType::Rgba,
            BitDepth::Eight,
            &[1, 2, 3, 0, 4, 5, 6, 9],
            [1, 2, 3, 4, 5, 6],
        ),
        (
            ColorType::Rgb,
            BitDepth::Sixteen,
            &[1, 99, 2, 99, 3, 99, 4, 99, 5, 99, 6, 99],
            [1, 2, 3, 4, 5, 6],
        ),
    ];
    for (colour, depth, data, want) in cases {
        let got = decode(&png(colour, depth, (2, 1), data)).expect("decodes");
        assert_eq!((got.width(), got.height()), (2, 1));
        assert_eq!(got.rgb(), want, "{colour:?} {depth:?}");
    }
}

#[test]
fn a_grey_of_16_bits_with_a_transparent_value_is_cut_off_too() {
    let mut out = vec![];
    let mut encoder = png::Encoder::new(&mut out, 2, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.set_trns(vec![0, 9]);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&[0, 9, 1, 0]).expect("pixels");
    writer.finish().expect("an end");
    let got = decode(&out).expect("decodes");
    assert_eq!(got.rgb(), [9, 9, 9, 255, 255, 255]);
}

#[test]
fn broken_files_are_told() {
    let whole = png(
        png::ColorType::Rgb,
        png::BitDepth::Eight,
        (8, 8),
        &[77; 192],
    );
    let mut huge = whole.clone();
    huge[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let cases: [(&[u8], &str); 7] = [
        (b"", "is empty, expected a JPEG or PNG"),
        (
            b"hello, I am a text",
            "is neither a JPEG nor a PNG: it begins with \"hello, I\"",
        ),
        (b"GIF89a", "is a GIF; only JPEG and PNG are read"),
        (&whole[..40], "is a damaged PNG"),
        (&whole[..whole.len() - 20], "is a damaged PNG"),
        (&[0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 1], "is a damaged JPEG"),
        (&huge, "is a damaged PNG"),
    ];
    for (bytes, says) in cases {
        let text = decode(bytes).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    }
    let Some(shared) = shared() else { return };
    let jpeg = fs::read(shared.join("data/images/000000006818.jpg")).expect("a picture");
    let text = decode(&jpeg[..jpeg.len() / 2]).unwrap_err().to_string();
    assert!(text.contains("cut short"), "{text}");
}

#[test]
fn settings_are_read() {
    let read = |name: &str, value: Value| {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(name), value.to_string()).expect("written");
        Preprocess::read(dir.path(), || Ok(32))
    };
    let clip = json!({"crop_size": 224, "size": 224, "resample": 3, "do_resize": true,
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73],
        "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11]});
    let file = "preprocessor_config.json";
    assert_eq!(
        read(file, clip.clone()).expect("reads"),
        Preprocess::clip(224)
    );
    let newer = json!({"crop_size": {"height": 10, "width": 10}, "size": {"shortest_edge": 12},
        "resample": 2, "image_mean": [0, 0.5, 0], "image_std": [1, 2, 3]});
    let newer = read(file, newer).expect("reads");
    assert_eq!((newer.resize, newer.crop), (Resize::Shorter(12), 10));
    assert_eq!(
        (newer.filter, newer.std),
        (Filter::Bilinear, [1.0, 2.0, 3.0])
    );
    // Steps that are left out; a picture of the right size goes through as it is.
    let mut bare = json!({"size": {"height": 4, "width": 4}});
    for step in ["do_resize", "do_rescale", "do_normalize"] {
        bare[step] = json!(false);
    }
    let bare = read(file, bare).expect("reads");
    assert_eq!((bare.resize, bare.crop), (Resize::Keep, 4));
    let whole = picture(4, 4);
    let seen = bare.crop(&whole).expect("a crop");
    assert_eq!(seen, whole);
    let red: Vec<f32> = whole
        .rgb()
        .iter()
        .step_by(3)
        .map(|v| f32::from(*v))
        .collect();
    assert_eq!(bare.normalise(&seen)[..16], red);
    // What a file does not say is the tower's, or OpenAI's; null is not said.
    let parts = json!({"image_processor": {"rescale_factor": 0.003_921_568_627_450_98,
        "size": null, "crop_pct": null}, "tokenizer": {}});
    let parts = read("processor_config.json", parts).expect("reads");
    assert_eq!(parts, Preprocess::clip(32));
    let squash = json!({"preprocess_cfg": {"resize_mode": "squash"}});
    let squash = read("open_clip_config.json", squash).expect("reads");
    assert_eq!(squash.resize, Resize::To(32, 32));
    let open = json!({"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "interpolation": "bicubic"}});
    let open = read("open_clip_config.json", open).expect("reads");
    assert_eq!((open.crop, open.mean), (32, [0.5; 3]));
    assert_eq!(
        read("README.md", json!({})).expect("reads"),
        Preprocess::clip(32)
    );
    for (field, value, says) in [
        (
            "resample",
            json!(1),
            "resample is 1, expected 3 (bicubic) or 2 (bilinear)",
        ),
        (
            "do_center_crop",
            json!(false),
            "do_center_crop is false, expected true where pictures are not resized to",
        ),
        (
            "rescale_factor",
            json!(0),
            "rescale_factor is 0, expected a number above 0",
        ),
        (
            "do_resize",
            json!(1),
            "do_resize is 1, expected true or false",
        ),
        ("do_pad", json!(true), "do_pad is true, expected false"),
        (
            "size",
            json!({"shortest_edge": 2, "longest_edge": 3}),
            "expected a side",
        ),
        (
            "crop_size",
            json!({"height": 2, "width": 3}),
            "expected the side of a square",
        ),
        ("size", json!(0), "size is 0, expected a side"),
        (
            "image_std",
            json!([1, 0, 1]),
            "image_std is [1,0,1], expected three numbers",
        ),
    ] {
        let mut bad = clip.clone();
        bad[field] = value;
        let text = read(file, bad).unwrap_err().to_string();
        assert!(text.contains(says) && text.contains(file), "{text}");
    }
}
