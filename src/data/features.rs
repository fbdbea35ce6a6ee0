//! Image features made beforehand: one row an image, with the images' names.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::feature_file::{FeatureFile, NAMES, TENSOR, check_names};
use crate::bad_input;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::weights::convert::cast;
use crate::weights::view::TensorView;
use crate::weights::write::{OutTensor, write_safetensors};

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
    /// Reads a file that [`FeatureFile::open`] knows.
    ///
    /// # Errors
    /// As that has.
    pub fn load(path: &Path) -> Result<Features> {
        Ok(FeatureFile::open(path)?.to_features())
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

    /// Writes a safetensors file of F32 that [`Features::load`] reads.
    ///
    /// # Errors
    /// As [`Features::save_as`].
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_as(path, Dtype::F32)
    }

    /// The same with values of F32 or F16.
    ///
    /// # Errors
    /// [`Error::Write`](crate::error::Error::Write), or
    /// [`Error::Input`](crate::error::Error::Input) when names and rows do not match, for another
    /// type, and for a value that F16 cannot hold.
    pub fn save_as(&self, path: &Path, dtype: Dtype) -> Result<()> {
        self.save_with(path, dtype, BTreeMap::new())
    }

    /// The same with more metadata than the names: where the features are from.
    ///
    /// # Errors
    /// As [`Features::save_as`].
    pub fn save_with(
        &self,
        path: &Path,
        dtype: Dtype,
        mut metadata: BTreeMap<String, String>,
    ) -> Result<()> {
        check_names(path, &self.names, self.len())?;
        let file = path.display();
        if !matches!(dtype, Dtype::F32 | Dtype::F16) {
            return Err(bad_input!(
                "{file}: features cannot be written as {dtype}, expected F32 or F16"
            ));
        }
        if !self.names.is_empty() {
            let names = serde_json::Value::from(self.names.clone());
            metadata.insert(NAMES.to_string(), names.to_string());
        }
        let shape = vec![self.len(), self.dim];
        let view = TensorView {
            dtype: Dtype::F32,
            shape: &shape,
            bytes: bytemuck::cast_slice(&self.values),
        };
        let bytes = cast(view, dtype).map_err(|at| {
            bad_input!(
                "{file}: row {} holds {}, which is too large for {dtype}; write F32, or features \
                 of length 1",
                at / self.dim,
                self.values[at]
            )
        })?;
        let tensor = OutTensor {
            name: TENSOR,
            dtype,
            shape: shape.clone(),
            bytes,
        };
        write_safetensors(path, &[tensor], &metadata)
    }

    /// Checks the rows that will be used: each must exist, be finite and not all zero.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) that names the first row that is not so.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> Features {
        let names = vec!["a.jpg".into(), "b \"ü\".jpg".into()];
        Features {
            names,
            dim: 3,
            values: vec![1.0, 0.5, -2.0, 0.0, 0.0, 0.25],
        }
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
    fn half_the_size_keeps_what_f16_can_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.safetensors");
        features().save_as(&path, Dtype::F16).unwrap();
        let file = FeatureFile::open(&path).unwrap();
        assert_eq!(
            (file.view().dtype, file.view().bytes.len()),
            (Dtype::F16, 12)
        );
        // Each of them is exact in F16.
        assert_eq!(file.to_features(), features());

        let mut large = features();
        large.values[4] = -7e4;
        let text = large.save_as(&path, Dtype::F16).unwrap_err().to_string();
        assert!(
            text.contains("row 1 holds -70000, which is too large for F16"),
            "{text}"
        );
        let text = large.save_as(&path, Dtype::F64).unwrap_err().to_string();
        assert!(
            text.contains("written as F64, expected F32 or F16"),
            "{text}"
        );
        assert_eq!(Features::load(&path).unwrap(), features());
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
