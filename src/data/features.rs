//! Image features made beforehand: one row an image, with the images' names.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use crate::bad_input;
use crate::error::{Error, Result};
use crate::tensor::Dtype;
use crate::weights::checkpoint::{Checkpoint, nearest, shape_text};
use crate::weights::view::TensorView;
use crate::weights::write::{OutTensor, write_safetensors};

/// Name of the features' tensor in a safetensors file.
pub const TENSOR: &str = "image_features";
/// Metadata key of the images' names, a JSON list of texts.
const NAMES: &str = "names";
const NPY_MAGIC: &[u8] = b"\x93NUMPY";

/// Features of N images.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// The images' names, or none when the rows stand in the order of the image list.
    pub names: Vec<String>,
    /// Width E of a feature.
    pub dim: usize,
    /// The features (N, E), not necessarily of length 1.
    pub values: Vec<f32>,
}

impl Features {
    /// Reads `.safetensors` (tensor `image_features` (N, E), F32 or F16, metadata `names`: a JSON
    /// list of N texts, which may be absent) or `.npy` (f4 or f2, C order, (N, E), no names).
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::Input`] for another layout, a wrong count or a repeated name.
    pub fn load(path: &Path) -> Result<Features> {
        match path.extension().is_some_and(|e| e == "npy") {
            true => load_npy(path),
            false => load_safetensors(path),
        }
    }

    /// Number of images N.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.dim).unwrap_or(0)
    }

    /// True without any image.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The feature of image `i`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.dim..(i + 1) * self.dim]
    }

    /// Row by name; empty when the file had no names.
    pub fn index(&self) -> HashMap<&str, usize> {
        self.names
            .iter()
            .enumerate()
            .map(|(i, name)| (name.as_str(), i))
            .collect()
    }

    /// Writes a safetensors file that [`Features::load`] reads.
    ///
    /// # Errors
    /// [`Error::Write`], or [`Error::Input`] when names and rows do not match.
    pub fn save(&self, path: &Path) -> Result<()> {
        check_names(path, &self.names, self.len())?;
        let mut metadata = BTreeMap::new();
        if !self.names.is_empty() {
            metadata.insert(
                NAMES.to_string(),
                serde_json::Value::from(self.names.clone()).to_string(),
            );
        }
        let bytes: &[u8] = bytemuck::cast_slice(&self.values);
        let shape = vec![self.len(), self.dim];
        let tensor = OutTensor {
            name: TENSOR,
            dtype: Dtype::F32,
            shape,
            bytes: bytes.into(),
        };
        write_safetensors(path, &[tensor], &metadata)
    }

    /// Checks the rows that will be used: each must exist, be finite and not all zero.
    ///
    /// # Errors
    /// [`Error::Input`] that names the first row that is not so.
    pub fn check_rows(&self, rows: &[usize]) -> Result<()> {
        for &i in rows {
            if i >= self.len() {
                return Err(bad_input!(
                    "image features: row {i} is asked for, but there are {}",
                    self.len()
                ));
            }
            let what = match self.names.get(i) {
                Some(name) => format!("image features: row {i} ({name})"),
                None => format!("image features: row {i}"),
            };
            let row = self.row(i);
            if let Some(at) = row.iter().position(|v| !v.is_finite()) {
                return Err(bad_input!(
                    "{what} has {} at place {at}, expected finite values; make the features again",
                    row[at]
                ));
            }
            if row.iter().all(|&v| v == 0.0) {
                return Err(bad_input!(
                    "{what} is all zero and has no direction; was this image never encoded?"
                ));
            }
        }
        Ok(())
    }
}

fn load_safetensors(path: &Path) -> Result<Features> {
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
    let (n, dim) = check_layout(path, TENSOR, view.dtype, view.shape)?;
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
    Ok(Features {
        names,
        dim,
        values: view.to_f32(),
    })
}

fn check_layout(path: &Path, what: &str, dtype: Dtype, shape: &[usize]) -> Result<(usize, usize)> {
    let file = path.display();
    if !matches!(dtype, Dtype::F32 | Dtype::F16) {
        return Err(bad_input!(
            "{file}: {what} has dtype {dtype}, expected F32 or F16"
        ));
    }
    match *shape {
        [n, dim] if n > 0 && dim > 0 => Ok((n, dim)),
        _ => Err(bad_input!(
            "{file}: {what} is {}, expected (images, channels), both at least 1",
            shape_text(shape)
        )),
    }
}

/// As many names as rows, or none; each once.
fn check_names(path: &Path, names: &[String], rows: usize) -> Result<()> {
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
fn load_npy(path: &Path) -> Result<Features> {
    let bytes = fs::read(path).map_err(Error::read(path))?;
    let file = path.display();
    let (header, data) = split_npy(&bytes).ok_or_else(|| {
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
    let (n, dim) = check_layout(path, "the array", dtype, &shape)?;
    let size = n.checked_mul(dim).and_then(|n| n.checked_mul(dtype.size()));
    if size != Some(data.len()) {
        return Err(bad_input!(
            "{file}: {} {dtype} values follow from the header, found {} bytes; copy it again",
            shape_text(&shape),
            data.len()
        ));
    }
    let values = TensorView {
        dtype,
        shape: &shape,
        bytes: data,
    }
    .to_f32();
    Ok(Features {
        names: Vec::new(),
        dim,
        values,
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
    use super::*;
    use half::f16;

    fn features() -> Features {
        let names = vec!["a.jpg".into(), "b \"ü\".jpg".into()];
        Features {
            names,
            dim: 3,
            values: vec![1.0, 0.5, -2.0, 0.0, 0.0, 0.25],
        }
    }

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = NPY_MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn save_and_load_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.safetensors");
        features().save(&path).unwrap();
        let loaded = Features::load(&path).unwrap();
        assert_eq!(loaded, features());
        assert_eq!((loaded.len(), loaded.row(1)), (2, &[0.0, 0.0, 0.25][..]));
        assert_eq!(loaded.index()["b \"ü\".jpg"], 1);
        let unnamed = Features {
            names: vec![],
            ..features()
        };
        unnamed.save(&path).unwrap();
        assert_eq!(Features::load(&path).unwrap(), unnamed);
    }

    #[test]
    fn reads_what_numpy_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.npy");
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }    \n";
        fs::write(&path, npy(header, bytemuck::cast_slice(&features().values))).unwrap();
        let loaded = Features::load(&path).unwrap();
        assert_eq!((loaded.names.len(), loaded.dim), (0, 3));
        assert_eq!(loaded.values, features().values);
        let halves: Vec<f16> = features()
            .values
            .iter()
            .map(|&v| f16::from_f32(v))
            .collect();
        let header = header.replace("<f4", "<f2");
        fs::write(&path, npy(&header, bytemuck::cast_slice(&halves))).unwrap();
        assert_eq!(Features::load(&path).unwrap().values, features().values);

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

    #[test]
    fn unusable_rows_are_named() {
        let mut features = features();
        features.check_rows(&[0, 1]).unwrap();
        let text = features.check_rows(&[1, 2]).unwrap_err().to_string();
        assert!(
            text.contains("row 2 is asked for, but there are 2"),
            "{text}"
        );
        features.values[5] = 0.0;
        features.check_rows(&[0]).unwrap();
        let text = features.check_rows(&[0, 1]).unwrap_err().to_string();
        assert!(text.contains("row 1 (b \"ü\".jpg) is all zero"), "{text}");
        features.values[1] = f32::NAN;
        let text = features.check_rows(&[0]).unwrap_err().to_string();
        assert!(text.contains("row 0 (a.jpg) has NaN at place 1"), "{text}");
    }
}
