//! CLIP's preprocessing: resize, crop, normalise, as the checkpoint's own file says it.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Filter, PassOrder, Picture, Window};
use crate::bad_input;
use crate::error::{Error, Result};

/// OpenAI's mean of each channel.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// OpenAI's standard deviation of each channel.
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// What a resized picture's sides become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter one so long, the longer `int(n * long / short)`.
    Shorter(usize),
    /// (height, width), whatever the shape was.
    To(usize, usize),
}

/// How a picture becomes what a tower reads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preprocess {
    /// The first step.
    pub resize: Resize,
    /// How neighbouring values are weighted.
    pub filter: Filter,
    /// Which Pillow's order of passes.
    pub order: PassOrder,
    /// Side of the square that is cut from the middle.
    pub crop: usize,
    /// Subtracted from each channel's values in 0 to 1.
    pub mean: [f32; 3],
    /// What they are divided by then.
    pub std: [f32; 3],
}

impl Preprocess {
    /// OpenAI's for pictures of `side`.
    pub fn clip(side: usize) -> Preprocess {
        Preprocess {
            resize: Resize::Shorter(side),
            filter: Filter::Bicubic,
            order: PassOrder::default(),
            crop: side,
            mean: MEAN,
            std: STD,
        }
    }

    /// What a folder's preprocessor_config.json or open_clip_config.json says; OpenAI's where it has
    /// neither, for pictures of `side`, which is asked for then only.
    ///
    /// # Errors
    /// A file that can't be read, or one that asks for what is not done here.
    pub fn read(folder: &Path, side: impl FnOnce() -> Result<usize>) -> Result<Preprocess> {
        let file = folder.join("preprocessor_config.json");
        if file.is_file() {
            return Reader::open(&file)?.hugging_face();
        }
        let file = folder.join("open_clip_config.json");
        if file.is_file() {
            return Reader::open(&file)?.open_clip(side()?);
        }
        Ok(Preprocess::clip(side()?))
    }

    /// The square that the tower sees, still of 8-bit values. What lies outside of a picture that is
    /// smaller than it is black, as Pillow's crop has it.
    ///
    /// # Errors
    /// None for a picture of at least one pixel.
    pub fn crop(&self, picture: &Picture) -> Result<Picture> {
        let (w, h) = (picture.width(), picture.height());
        let size = match self.resize {
            Resize::To(height, width) => (width, height),
            Resize::Shorter(n) if w <= h => (n, scaled(n, h, w)),
            Resize::Shorter(n) => (scaled(n, w, h), n),
        };
        let (left, width, at_x) = middle(size.0, self.crop);
        let (top, height, at_y) = middle(size.1, self.crop);
        let window = Window {
            left,
            top,
            width,
            height,
        };
        let seen = picture.resize(size, window, self.filter, self.order)?;
        if (width, height) == (self.crop, self.crop) {
            return Ok(seen);
        }
        let mut rgb = vec![0; 3 * self.crop * self.crop];
        let rows = rgb.chunks_exact_mut(3 * self.crop).skip(at_y);
        for (row, from) in rows.zip(seen.rgb().chunks_exact(3 * width)) {
            row[3 * at_x..][..3 * width].copy_from_slice(from);
        }
        Picture::new(self.crop, self.crop, rgb)
    }

    /// What the tower reads of a square: (3, side, side).
    pub fn normalise(&self, square: &Picture) -> Vec<f32> {
        let (pixels, _) = square.rgb().as_chunks::<3>();
        let channel = |c: usize| {
            let (mean, std) = (self.mean[c], self.std[c]);
            let value = move |p: &[u8; 3]| (f32::from(p[c]) / 255.0 - mean) / std;
            pixels.iter().map(value)
        };
        (0..3).flat_map(channel).collect()
    }
}

/// `int(n * long / short)`, cut towards zero as Python does; at least 1.
fn scaled(n: usize, long: usize, short: usize) -> usize {
    ((n as f64 * long as f64 / short as f64) as usize).max(1)
}

/// Of a side of `len`, where the middle `crop` begin, how many of them there are, and where they stand
/// in the crop. Halves are rounded to even.
fn middle(len: usize, crop: usize) -> (usize, usize, usize) {
    let start = ((len as f64 - crop as f64) / 2.0).round_ties_even() as i64;
    let left = start.max(0) as usize;
    let end = (start + crop as i64).clamp(0, len as i64) as usize;
    (left, end.saturating_sub(left), (-start).max(0) as usize)
}

/// A file of settings.
struct Reader<'a> {
    file: &'a Path,
    value: Value,
}

impl Reader<'_> {
    fn open(file: &Path) -> Result<Reader<'_>> {
        let text = fs::read_to_string(file).map_err(Error::read(file))?;
        let value = serde_json::from_str(&text)
            .map_err(|e| bad_input!("{}: is not valid JSON: {e}", file.display()))?;
        Ok(Reader { file, value })
    }

    fn hugging_face(&self) -> Result<Preprocess> {
        for step in [
            "do_resize",
            "do_center_crop",
            "do_rescale",
            "do_normalize",
            "do_convert_rgb",
        ] {
            if self.value.get(step).and_then(Value::as_bool) == Some(false) {
                return Err(self.refuse(step, "true"));
            }
        }
        let scale = self.value.get("rescale_factor").filter(|v| !v.is_null());
        let is_byte = |v: &Value| v.as_f64().is_some_and(|v| (v * 255.0 - 1.0).abs() < 1e-6);
        if scale.is_some_and(|v| !is_byte(v)) {
            return Err(self.refuse("rescale_factor", "1 / 255"));
        }
        let filter = match self.value.get("resample").filter(|v| !v.is_null()) {
            None => Filter::Bicubic,
            Some(v) if v.as_u64() == Some(3) => Filter::Bicubic,
            Some(v) if v.as_u64() == Some(2) => Filter::Bilinear,
            Some(_) => return Err(self.refuse("resample", "3 (bicubic) or 2 (bilinear)")),
        };
        let crop = match self.sides("crop_size")? {
            Some(Resize::To(h, w)) if h == w => h,
            Some(Resize::Shorter(n)) => n,
            _ => return Err(self.refuse("crop_size", "the side of a square")),
        };
        let resize = self.sides("size")?;
        Ok(Preprocess {
            resize: resize.ok_or_else(|| self.refuse("size", "the shorter side, or both"))?,
            filter,
            order: PassOrder::default(),
            crop,
            mean: self.triple(&self.value, "image_mean")?.unwrap_or(MEAN),
            std: self.triple(&self.value, "image_std")?.unwrap_or(STD),
        })
    }

    fn open_clip(&self, side: usize) -> Result<Preprocess> {
        let none = Value::Null;
        let own = self.value.get("preprocess_cfg").unwrap_or(&none);
        let text = |field: &str| own.get(field).and_then(Value::as_str);
        if text("resize_mode").is_some_and(|mode| mode != "shortest") {
            return Err(self.refuse("resize_mode", "\"shortest\""));
        }
        let filter = match text("interpolation") {
            None | Some("bicubic") => Filter::Bicubic,
            Some("bilinear") => Filter::Bilinear,
            Some(_) => return Err(self.refuse("interpolation", "\"bicubic\" or \"bilinear\"")),
        };
        Ok(Preprocess {
            filter,
            mean: self.triple(own, "mean")?.unwrap_or(MEAN),
            std: self.triple(own, "std")?.unwrap_or(STD),
            ..Preprocess::clip(side)
        })
    }

    /// `224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}`.
    fn sides(&self, field: &str) -> Result<Option<Resize>> {
        let Some(value) = self.value.get(field).filter(|v| !v.is_null()) else {
            return Ok(None);
        };
        let side = |v: Option<&Value>| {
            let n = v.and_then(Value::as_u64).map(|n| n as usize);
            n.filter(|n| (1..=1 << 14).contains(n))
        };
        let sides = match (side(Some(value)), side(value.get("shortest_edge"))) {
            (Some(n), _) | (_, Some(n)) => Some(Resize::Shorter(n)),
            _ => match (side(value.get("height")), side(value.get("width"))) {
                (Some(h), Some(w)) => Some(Resize::To(h, w)),
                _ => None,
            },
        };
        let expected =
            "a side, {\"shortest_edge\"}, or {\"height\", \"width\"}, of 1 to 16384 pixels";
        match sides {
            Some(sides) => Ok(Some(sides)),
            None => Err(self.refuse(field, expected)),
        }
    }

    fn triple(&self, of: &Value, field: &str) -> Result<Option<[f32; 3]>> {
        let Some(value) = of.get(field).filter(|v| !v.is_null()) else {
            return Ok(None);
        };
        let triple: Option<[f32; 3]> = serde_json::from_value(value.clone()).ok();
        let good = |t: &[f32; 3]| {
            t.iter()
                .all(|x| x.is_finite() && (*x > 0.0 || field.ends_with("mean")))
        };
        match triple.filter(good) {
            Some(triple) => Ok(Some(triple)),
            None => Err(self.refuse(field, "three numbers, deviations above 0")),
        }
    }

    fn refuse(&self, field: &str, expected: &str) -> Error {
        let own = self.value.get(field);
        let nested = || self.value.get("preprocess_cfg")?.get(field);
        let found = own.or_else(nested).unwrap_or(&Value::Null);
        bad_input!(
            "{}: {field} is {found}, expected {expected}; other preprocessing is not supported",
            self.file.display()
        )
    }
}
