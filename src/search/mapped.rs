//! A feature file ready for search: mapped, and the length of each row known.

use std::ops::Range;
use std::path::Path;

use half::f16;
use rayon::prelude::*;

use crate::bad_input;
use crate::data::feature_file::FeatureFile;
use crate::error::Result;
use crate::ops::fast::{sum_map, vector, widen};
use crate::tensor::Dtype;
use crate::weights::checkpoint::nearest;

/// Bytes of f32 that are converted at once: they stay in the L1 cache.
const BLOCK_BYTES: usize = 16 << 10;
/// Blocks of a task that measures lengths.
const BLOCKS: usize = 64;
/// Lengths of rows, and of queries, whose scores keep their digits in f32.
const LENGTHS: std::ops::RangeInclusive<f64> = 1e-30..=1e30;

/// Features to search among.
#[derive(Debug)]
pub struct Mapped {
    file: FeatureFile,
    /// (N): 1 over the length of each row.
    inv_norms: Vec<f32>,
}

impl Mapped {
    /// Maps a file that [`FeatureFile::open`] knows and reads it once, on the threads of the pool
    /// that this runs in.
    ///
    /// # Errors
    /// As that has; [`Error::Input`](crate::error::Error::Input) that names the first row that has no direction.
    pub fn open(path: &Path) -> Result<Mapped> {
        Mapped::new(FeatureFile::open(path)?)
    }

    /// The same of a file that is mapped already.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) that names the first row that has no direction.
    pub fn new(file: FeatureFile) -> Result<Mapped> {
        let mut mapped = Mapped {
            inv_norms: vec![0.0; file.rows()],
            file,
        };
        let mut inv_norms = std::mem::take(&mut mapped.inv_norms);
        let rows = block_rows(BLOCK_BYTES, mapped.dim());
        let tasks = inv_norms.par_chunks_mut(rows * BLOCKS).enumerate();
        let measured = tasks.map(|(task, inv)| mapped.measure(task * rows * BLOCKS, inv, rows));
        if let Some(failed) = measured.find_first(Result::is_err) {
            failed?;
        }
        mapped.inv_norms = inv_norms;
        Ok(mapped)
    }

    /// Writes 1 over the lengths of the rows from `first` on.
    fn measure(&self, first: usize, inv_norms: &mut [f32], rows: usize) -> Result<()> {
        let mut scratch = Vec::new();
        for (b, inv) in inv_norms.chunks_mut(rows).enumerate() {
            let start = first + b * rows;
            let block = self.block(start..start + inv.len(), &mut scratch);
            vector(
                #[inline(always)]
                || {
                    for (inv, row) in inv.iter_mut().zip(block.chunks_exact(self.dim())) {
                        *inv = sum_map(row, |x| x * x);
                    }
                },
            );
            for (i, inv) in inv.iter_mut().enumerate() {
                // Where squares leave f32, f64 tells whether the row is at fault.
                *inv = match (1e-30..1e30).contains(inv) {
                    true => 1.0 / inv.sqrt(),
                    false => (1.0 / self.length(start + i)?) as f32,
                };
            }
        }
        Ok(())
    }

    /// The length of a row.
    fn length(&self, i: usize) -> Result<f64> {
        length(&self.row(i)).map_err(|why| {
            bad_input!(
                "{}: row {} {why}; make the features again",
                self.file.path().display(),
                self.told(i)
            )
        })
    }

    /// The file.
    pub fn file(&self) -> &FeatureFile {
        &self.file
    }

    /// Number of rows N, at least 1.
    pub fn rows(&self) -> usize {
        self.file.rows()
    }

    /// Width E of a row, at least 1.
    pub fn dim(&self) -> usize {
        self.file.dim()
    }

    /// (N): 1 over the length of each row.
    pub(super) fn inv_norms(&self) -> &[f32] {
        &self.inv_norms
    }

    /// The name of a row, if the file has names.
    pub fn name(&self, i: usize) -> Option<&str> {
        self.file.names().get(i).map(String::as_str)
    }

    /// `3 (a.jpg)`: how messages name a row.
    fn told(&self, i: usize) -> String {
        match self.name(i) {
            Some(name) => format!("{i} ({name})"),
            None => i.to_string(),
        }
    }

    /// The row of that name.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) that names the file and the nearest name it has.
    pub fn find(&self, name: &str) -> Result<usize> {
        let names = self.file.names();
        let file = self.file.path().display();
        if names.is_empty() {
            return Err(bad_input!(
                "{file}: has no names, so none is `{name}`; write them as the metadata `names`"
            ));
        }
        names.iter().position(|n| n == name).ok_or_else(|| {
            let hint = match nearest(name, names.iter().map(String::as_str)) {
                Some(near) => format!("the nearest name in it is `{near}`"),
                None => format!("none of its {} names is like it", names.len()),
            };
            bad_input!("{file}: has no row `{name}`; {hint}")
        })
    }

    /// A copy of a row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, i: usize) -> Vec<f32> {
        self.block(i..i + 1, &mut Vec::new()).to_vec()
    }

    /// Rows as f32: where they lie, or converted into `scratch`.
    pub(super) fn block<'a>(&'a self, rows: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let view = self.file.view();
        let row_bytes = self.dim() * view.dtype.size();
        let bytes = &view.bytes[rows.start * row_bytes..rows.end * row_bytes];
        let place = |scratch: &'a mut Vec<f32>| -> &'a mut [f32] {
            scratch.resize(rows.len() * self.dim(), 0.0);
            scratch
        };
        if view.dtype == Dtype::F32 {
            return match bytemuck::try_cast_slice(bytes) {
                Ok(values) => values,
                Err(_) => each(bytes, place(scratch), f32::from_le_bytes),
            };
        }
        let out = place(scratch);
        match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) => {
                widen(out, halves);
                out
            }
            Err(_) => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        }
    }
}

/// How many rows of `dim` values take about so many bytes as f32.
pub(super) fn block_rows(bytes: usize, dim: usize) -> usize {
    (bytes / (4 * dim)).max(1)
}

/// Values of a file that are not aligned, one at a time.
fn each<'a, const SIZE: usize>(
    bytes: &[u8],
    out: &'a mut [f32],
    value: impl Fn([u8; SIZE]) -> f32,
) -> &'a [f32] {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
    }
    out
}

/// Length of a feature; the error is the rest of a sentence that begins with what has it.
pub(super) fn length(x: &[f32]) -> std::result::Result<f64, String> {
    if let Some(at) = x.iter().position(|v| !v.is_finite()) {
        return Err(format!(
            "has {} at place {at}, expected finite values",
            x[at]
        ));
    }
    let length = x
        .iter()
        .map(|&v| f64::from(v) * f64::from(v))
        .sum::<f64>()
        .sqrt();
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
