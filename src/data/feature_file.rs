//! A feature file as it lies on the disk: mapped, its lay-out checked, nothing of it copied.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use memmap2::Mmap;

use super::features::Features;
use crate::bad_input;
use crate::error::Result;
use crate::ops::fast::widen;
use crate::tensor::Dtype;
use crate::weights::checkpoint::{Checkpoint, map_file, nearest, shape_text};
use crate::weights::view::TensorView;

/// Name of the features' tensor in a safetensors file.
pub const TENSOR: &str = "image_features";
/// Metadata key of the images' names, a JSON list of texts.
pub(super) const NAMES: &str = "names";
/// Lengths of features whose products keep their digits in f32.
const LENGTHS: RangeInclusive<f64> = 1e-30..=1e30;
const NPY_MAGIC: &[u8] = b"\x93NUMPY";

/// A mapped file of N features, F32 or F16.
#[derive(Debug)]
pub struct FeatureFile {
    path: PathBuf,
    names: Vec<String>,
    values: Values,
    dtype: Dtype,
    /// (N, E)
    shape: [usize; 2],
}

#[derive(Debug)]
enum Values {
    /// A range of a map.
    Mapped(Arc<Mmap>, Range<usize>),
    Owned(Vec<f32>),
}

impl FeatureFile {
    /// Maps `.safetensors` (tensor `image_features` (N, E), F32 or F16, metadata `names`: a JSON
    /// list of N texts, which may be absent) or `.npy` (f4 or f2, C order, (N, E), no names).
    ///
    /// # Errors
    /// [`Error::Read`](crate::error::Error::Read), and
    /// [`Error::Input`](crate::error::Error::Input) for another layout, a wrong count or a repeated
    /// name.
    pub fn open(path: &Path) -> Result<FeatureFile> {
        match path.extension().is_some_and(|e| e == "npy") {
            true => open_npy(path),
            false => open_safetensors(path),
        }
    }

    /// Features that were made in memory, as their file would hold them; messages call it `path`.
    ///
    /// # Errors
    /// As [`FeatureFile::open`].
    pub fn in_memory(path: &Path, features: Features) -> Result<FeatureFile> {
        let shape = [features.len(), features.dim];
        check_layout(path, TENSOR, Dtype::F32, &shape)?;
        check_names(path, &features.names, shape[0])?;
        Ok(FeatureFile {
            path: path.to_path_buf(),
            names: features.names,
            values: Values::Owned(features.values),
            dtype: Dtype::F32,
            shape,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The images' names, or none when the rows stand in the order of the image list.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of images N, at least 1.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Width E of a feature, at least 1.
    pub fn dim(&self) -> usize {
        self.shape[1]
    }

    /// The values (N, E) where they lie.
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            dtype: self.dtype,
            shape: &self.shape,
            bytes: match &self.values {
                Values::Mapped(map, range) => &map[range.clone()],
                Values::Owned(values) => bytemuck::cast_slice(values),
            },
        }
    }

    /// The row of that name.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) that names the file and the nearest name it has.
    pub fn find(&self, name: &str) -> Result<usize> {
        let file = self.path.display();
        if self.names.is_empty() {
            return Err(bad_input!(
                "{file}: has no names, so none is `{name}`; write them as the metadata `{NAMES}`"
            ));
        }
        let found = self.names.iter().position(|n| n == name);
        found.ok_or_else(|| {
            let hint = match nearest(name, self.names.iter().map(String::as_str)) {
                Some(near) => format!("the nearest name in it is `{near}`"),
                None => format!("none of its {} names is like it", self.names.len()),
            };
            bad_input!("{file}: has no row `{name}`; {hint}")
        })
    }

    /// The length of a row.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) that names a row without direction.
    pub fn length(&self, i: usize) -> Result<f64> {
        length(self.block(i..i + 1, &mut Vec::new())).map_err(|why| {
            let name = self.names.get(i).map(|n| format!(" ({n})"));
            bad_input!(
                "{}: row {i}{} {why}; make the features again",
                self.path.display(),
                name.unwrap_or_default()
            )
        })
    }

    /// Rows as f32: where they lie, or converted into `scratch`.
    ///
    /// # Panics
    /// When there are no such rows.
    pub fn block<'a>(&'a self, rows: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let row_bytes = self.dim() * self.dtype.size();
        let bytes = &self.view().bytes[rows.start * row_bytes..rows.end * row_bytes];
        if let (Dtype::F32, Ok(values)) = (self.dtype, bytemuck::try_cast_slice(bytes)) {
            return values;
        }
        scratch.resize(rows.len() * self.dim(), 0.0);
        match (self.dtype, bytemuck::try_cast_slice(bytes)) {
            (Dtype::F32, _) => each(bytes, scratch, f32::from_le_bytes),
            (_, Ok(halves)) => widen(scratch, halves),
            _ => each(bytes, scratch, |b| f16::from_le_bytes(b).to_f32()),
        }
        scratch
    }

    /// A copy of all of it.
    pub fn to_features(&self) -> Features {
        Features {
            names: self.names.clone(),
            dim: self.dim(),
            values: self.view().to_f32(),
        }
    }
}

/// Values that are not aligned, one at a time.
fn each<const SIZE: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; SIZE]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
    }
}

/// Length of a feature; the error is the rest of a sentence that begins with what has it.
pub(crate) fn length(x: &[f32]) -> std::result::Result<f64, String> {
    if let Some(at) = x.iter().position(|v| !v.is_finite()) {
        return Err(format!(
            "has {} at place {at}, expected finite values",
            x[at]
        ));
    }
    let squares = x.iter().map(|&v| f64::from(v) * f64::from(v));
    let length = squares.sum::<f64>().sqrt();
    match length {
        0.0 => Err("is all zero and has no direction".into()),
        _ if !LENGTHS.contains(&length) => Err(format!(
            "has the length {length:e}, expected {:e} to {:e}",
            LENGTHS.start(),
            LENGTHS.end()
        )),
        _ => Ok(length),
    }
}

fn open_safetensors(path: &Path) -> Result<FeatureFile> {
    let ckpt = Checkpoint::open(path)?;
    let file = ckpt.path().display();
    let Some(view) = ckpt.get(TENSOR) else {
        let names: Vec<_> = ckpt.names().take(5).collect();
        let hint = nearest(TENSOR, ckpt.names()).map(|n| format!("; rename {n}?"));
        return Err(bad_input!(
            "{file}: has no tensor {TENSOR}, found {}{}",
            names.join(", "),
            hint.unwrap_or_default()
        ));
    };
    let shape @ [n, _] = check_layout(path, TENSOR, view.dtype, view.shape)?;
    let names: Vec<String> = match ckpt.metadata().get(NAMES) {
        None => Vec::new(),
        Some(json) => serde_json::from_str(json)
            .map_err(|e| bad_input!("{file}: metadata {NAMES} is not a JSON list of texts: {e}"))?,
    };
    if names.is_empty() && n > 0 && ckpt.metadata().contains_key(NAMES) {
        return Err(bad_input!(
            "{file}: metadata {NAMES} has 0 names, but there are {n} rows"
        ));
    }
    check_names(path, &names, n)?;
    Ok(FeatureFile {
        path: ckpt.path().to_path_buf(),
        names,
        values: Values::Mapped(ckpt.map().clone(), ckpt.range(TENSOR).unwrap_or_default()),
        dtype: view.dtype,
        shape,
    })
}

fn check_layout(path: &Path, what: &str, dtype: Dtype, shape: &[usize]) -> Result<[usize; 2]> {
    let file = path.display();
    if !matches!(dtype, Dtype::F32 | Dtype::F16) {
        return Err(bad_input!(
            "{file}: {what} has dtype {dtype}, expected F32 or F16"
        ));
    }
    match *shape {
        [n, dim] if n > 0 && dim > 0 => Ok([n, dim]),
        _ => Err(bad_input!(
            "{file}: {what} is {}, expected (images, channels), both at least 1",
            shape_text(shape)
        )),
    }
}

/// As many names as rows, or none; each once.
pub(super) fn check_names(path: &Path, names: &[String], rows: usize) -> Result<()> {
    if !names.is_empty() && names.len() != rows {
        return Err(bad_input!(
            "{}: has {} names for {rows} rows of {TENSOR}, expected one for each",
            path.display(),
            names.len()
        ));
    }
    let mut seen = HashMap::new();
    for (i, name) in names.iter().enumerate() {
        if let Some(first) = seen.insert(name.as_str(), i) {
            return Err(bad_input!(
                "{}: the name {name} stands at row {first} and again at row {i}; names must differ",
                path.display()
            ));
        }
    }
    Ok(())
}

/// Source: numpy.lib.format, versions 1 to 3.
fn open_npy(path: &Path) -> Result<FeatureFile> {
    let map = map_file(path)?;
    let file = path.display();
    let (header, data) = split_npy(&map).ok_or_else(|| {
        bad_input!("{file}: is not a complete .npy file; save it with numpy.save")
    })?;
    let dtype = match npy_field(header, "descr") {
        Some("'<f4'") => Dtype::F32,
        Some("'<f2'") => Dtype::F16,
        other => {
            return Err(bad_input!(
                "{file}: has descr {}, expected '<f4' or '<f2'; save it after .astype('float32')",
                other.unwrap_or("missing")
            ));
        }
    };
    if npy_field(header, "fortran_order") != Some("False") {
        return Err(bad_input!(
            "{file}: is in Fortran order; save it after numpy.ascontiguousarray"
        ));
    }
    let shape: Option<Vec<usize>> = npy_field(header, "shape").and_then(|text| {
        let inner = text.strip_prefix('(')?.strip_suffix(')')?;
        let dims = inner.split(',').map(str::trim).filter(|d| !d.is_empty());
        dims.map(|d| d.parse().ok()).collect()
    });
    let shape = shape.ok_or_else(|| bad_input!("{file}: its header has no valid shape"))?;
    let [n, dim] = check_layout(path, "the array", dtype, &shape)?;
    let size = n.checked_mul(dim).and_then(|n| n.checked_mul(dtype.size()));
    if size != Some(data.len()) {
        return Err(bad_input!(
            "{file}: {} {dtype} values follow from the header, found {} bytes; copy it again",
            shape_text(&shape),
            data.len()
        ));
    }
    let range = map.len() - data.len()..map.len();
    Ok(FeatureFile {
        path: path.to_path_buf(),
        names: Vec::new(),
        values: Values::Mapped(Arc::new(map), range),
        dtype,
        shape: [n, dim],
    })
}

/// The header's text and the data.
fn split_npy(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(NPY_MAGIC)?;
    let (&[major, _], rest) = rest.split_first_chunk::<2>()?;
    let (length, rest) = if major == 1 {
        let (length, rest) = rest.split_first_chunk()?;
        (usize::from(u16::from_le_bytes(*length)), rest)
    } else {
        let (length, rest) = rest.split_first_chunk()?;
        (u32::from_le_bytes(*length) as usize, rest)
    };
    let (header, data) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// The value of a key in the header, a Python dictionary as numpy always writes it.
fn npy_field<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let at = header.find(&format!("'{key}':"))?;
    let value = header[at..].split_once(':')?.1.trim_start();
    let end = match value.starts_with('(') {
        true => value.find(')')? + 1,
        false => value.find([',', '}'])?,
    };
    Some(value[..end].trim_end())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::weights::write::{OutTensor, write_safetensors};

    const VALUES: [f32; 6] = [1.0, 0.5, -2.0, 0.0, 0.0, 0.25];

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = NPY_MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn reads_what_numpy_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.npy");
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }    \n";
        fs::write(&path, npy(header, bytemuck::cast_slice(&VALUES))).unwrap();
        let loaded = Features::load(&path).unwrap();
        assert_eq!((loaded.names.len(), loaded.dim), (0, 3));
        assert_eq!(loaded.values, VALUES);
        let halves = VALUES.map(f16::from_f32);
        let header = header.replace("<f4", "<f2");
        fs::write(&path, npy(&header, bytemuck::cast_slice(&halves))).unwrap();
        assert_eq!(Features::load(&path).unwrap().values, VALUES);

        let cases = [
            (
                header.replace("<f2", "<f8"),
                "has descr '<f8', expected '<f4' or '<f2'",
            ),
            (header.replace("False", "True"), "is in Fortran order"),
            (
                header.replace("(2, 3)", "(6,)"),
                "the array is (6), expected (images, channels)",
            ),
            (
                header.replace("(2, 3)", "(2, 4)"),
                "(2, 4) F16 values follow from the header, found 12",
            ),
            (
                header.replace("(2, 3)", "(2, x)"),
                "its header has no valid shape",
            ),
            (String::new(), "has descr missing"),
        ];
        for (header, expected) in cases {
            fs::write(&path, npy(&header, bytemuck::cast_slice(&halves))).unwrap();
            let text = Features::load(&path).unwrap_err().to_string();
            assert!(
                text.contains("f.npy: ") && text.contains(expected),
                "{text}"
            );
        }
        fs::write(&path, b"\x93NUMPY\x01").unwrap();
        let text = Features::load(&path).unwrap_err().to_string();
        assert!(text.contains("is not a complete .npy file"), "{text}");
    }

    #[test]
    fn a_wrong_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.safetensors");
        let write = |name: &str, shape: &[usize], dtype: Dtype, names: &str| {
            let bytes = vec![0u8; shape.iter().product::<usize>() * dtype.size()];
            let tensor = OutTensor {
                name,
                dtype,
                shape: shape.to_vec(),
                bytes: bytes.into(),
            };
            let metadata = BTreeMap::from([(NAMES.to_string(), names.to_string())]);
            write_safetensors(&path, &[tensor], &metadata).unwrap();
            Features::load(&path).unwrap_err().to_string()
        };
        let cases = [
            (
                write("image_feature", &[1, 2], Dtype::F32, "[]"),
                "rename image_feature?",
            ),
            (
                write(TENSOR, &[2], Dtype::F32, "[]"),
                "image_features is (2), expected (images, ch",
            ),
            (
                write(TENSOR, &[1, 2], Dtype::I32, "[]"),
                "has dtype I32, expected F32 or F16",
            ),
            (
                write(TENSOR, &[2, 2], Dtype::F16, "[\"a\"]"),
                "has 1 names for 2 rows",
            ),
            (
                write(TENSOR, &[2, 2], Dtype::F16, "[]"),
                "has 0 names, but there are 2 rows",
            ),
            (
                write(TENSOR, &[1, 2], Dtype::F32, "a.jpg"),
                "names is not a JSON list of texts",
            ),
            (
                write(TENSOR, &[2, 1], Dtype::F32, "[\"a\",\"a\"]"),
                "a stands at row 0 and again at",
            ),
        ];
        for (text, expected) in cases {
            assert!(
                text.contains("f.safetensors: ") && text.contains(expected),
                "{text}"
            );
        }
    }
}
