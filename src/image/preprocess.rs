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
    /// What they were.
    Keep,
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
    /// What 8-bit values are divided by first: 255 where they are to lie in 0 to 1.
    pub range: f32,
    /// Subtracted from each channel's values then.
    pub mean: [f32; 3],
    /// What they are divided by last.
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
            range: 255.0,
            mean: MEAN,
            std: STD,
        }
    }

    /// What a folder's preprocessor_config.json, processor_config.json or open_clip_config.json says;
    /// OpenAI's where it has none, for pictures of `side`, which is asked for only where no file says
    /// it.
    ///
    /// # Errors
    /// A file that can't be read, or one that asks for what is not done here.
    pub fn read(folder: &Path, side: impl FnOnce() -> Result<usize>) -> Result<Preprocess> {
        let found = |name: &str| Some(folder.join(name)).filter(|file| file.is_file());
        if let Some(file) = found("preprocessor_config.json") {
            return Reader::open(&file)?.hugging_face(side);
        }
        // Newer processors keep all their parts in one file.
        if let Some(file) = found("processor_config.json") {
            let mut reader = Reader::open(&file)?;
            if let Some(own) = reader.value.get_mut("image_processor").map(Value::take) {
                reader.value = own;
                return reader.hugging_face(side);
            }
        }
        if let Some(file) = found("open_clip_config.json") {
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
            Resize::Keep => (w, h),
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
            let (range, mean, std) = (self.range, self.mean[c], self.std[c]);
            let value = move |p: &[u8; 3]| (f32::from(p[c]) / range - mean) / std;
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

    fn hugging_face(&self, side: impl FnOnce() -> Result<usize>) -> Result<Preprocess> {
        self.check_others()?;
        let (size, crop) = (self.sides("size")?, self.crop_size()?);
        let crop = match (crop, size) {
            (Some(crop), _) => crop,
            (None, Some(Resize::To(n, m))) if n == m => n,
            (None, Some(Resize::Shorter(n))) => n,
            _ => side()?,
        };
        let resize = match self.does("do_resize")? {
            true => size.unwrap_or(Resize::Shorter(crop)),
            false => Resize::Keep,
        };
        if !self.does("do_center_crop")? && resize != Resize::To(crop, crop) {
            let expected = "true where pictures are not resized to the tower's square";
            return Err(self.refuse("do_center_crop", expected));
        }
        let [mean, std] = match self.does("do_normalize")? {
            true => [
                self.triple(&self.value, "image_mean")?.unwrap_or(MEAN),
                self.triple(&self.value, "image_std")?.unwrap_or(STD),
            ],
            false => [[0.0; 3], [1.0; 3]],
        };
        Ok(Preprocess {
            resize,
            filter: self.filter()?,
            order: PassOrder::default(),
            crop,
            range: self.range()?,
            mean,
            std,
        })
    }

    /// Refuses other processors' steps that change pixels.
    fn check_others(&self) -> Result<()> {
        for step in ["do_pad", "do_flip_channel_order"] {
            if self.get(step).and_then(Value::as_bool) == Some(true) {
                return Err(self.refuse(step, "false"));
            }
        }
        match self.get("crop_pct") {
            Some(_) => Err(self.refuse("crop_pct", "null")),
            None => Ok(()),
        }
    }

    /// Pillow's number of a filter.
    fn filter(&self) -> Result<Filter> {
        match self.get("resample").map(Value::as_u64) {
            None | Some(Some(3)) => Ok(Filter::Bicubic),
            Some(Some(2)) => Ok(Filter::Bilinear),
            Some(_) => Err(self.refuse("resample", "3 (bicubic) or 2 (bilinear)")),
        }
    }

    /// A field that is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field).filter(|v| !v.is_null())
    }

    /// Whether a step is taken: it is, unless the file says otherwise.
    fn does(&self, step: &str) -> Result<bool> {
        match self.get(step) {
            None => Ok(true),
            Some(v) => v
                .as_bool()
                .ok_or_else(|| self.refuse(step, "true or false")),
        }
    }

    /// What values are divided by; files say what they are multiplied with.
    fn range(&self) -> Result<f32> {
        if !self.does("do_rescale")? {
            return Ok(1.0);
        }
        let factor = match self.get("rescale_factor") {
            None => return Ok(255.0),
            Some(v) => v.as_f64().filter(|f| f.is_finite() && *f > 0.0),
        };
        let factor = factor.ok_or_else(|| self.refuse("rescale_factor", "a number above 0"))?;
        Ok((1.0 / factor) as f32)
    }

    /// The side of the square that is cut out, where the file says it.
    fn crop_size(&self) -> Result<Option<usize>> {
        match self.sides("crop_size")? {
            None => Ok(None),
            Some(Resize::Shorter(n)) => Ok(Some(n)),
            Some(Resize::To(h, w)) if h == w => Ok(Some(h)),
            Some(_) => Err(self.refuse("crop_size", "the side of a square")),
        }
    }

    fn open_clip(&self, side: usize) -> Result<Preprocess> {
        let none = Value::Null;
        let own = self.value.get("preprocess_cfg").unwrap_or(&none);
        let text = |field: &str| own.get(field).and_then(Value::as_str);
        let resize = match text("resize_mode") {
            None | Some("shortest") => Resize::Shorter(side),
            Some("squash") => Resize::To(side, side),
            Some(_) => return Err(self.refuse("resize_mode", "\"shortest\" or \"squash\"")),
        };
        let filter = match text("interpolation") {
            None | Some("bicubic") => Filter::Bicubic,
            Some("bilinear") => Filter::Bilinear,
            Some(_) => return Err(self.refuse("interpolation", "\"bicubic\" or \"bilinear\"")),
        };
        Ok(Preprocess {
            resize,
            filter,
            mean: self.triple(own, "mean")?.unwrap_or(MEAN),
            std: self.triple(own, "std")?.unwrap_or(STD),
            ..Preprocess::clip(side)
        })
    }

    /// `224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}`.
    fn sides(&self, field: &str) -> Result<Option<Resize>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let side = |v: Option<&Value>| {
            let n = v.and_then(Value::as_u64).map(|n| n as usize);
            n.filter(|n| (1..=1 << 14).contains(n))
        };
        let sides = match (side(Some(value)), side(value.get("shortest_edge"))) {
            // Both edges bound the longer side as well.
            (Some(n), _) | (_, Some(n)) if value.get("longest_edge").is_none() => {
                Some(Resize::Shorter(n))
            }
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
