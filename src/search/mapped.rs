//! A feature file ready for search: mapped, and the length of each row known.

use std::path::Path;

use rayon::prelude::*;

use crate::data::feature_file::FeatureFile;
use crate::error::Result;
use crate::ops::fast::{sum_map, vector};

/// Bytes of f32 that are converted at once: they stay in the L1 cache.
const BLOCK_BYTES: usize = 16 << 10;
/// Blocks of a task that measures lengths.
const BLOCKS: usize = 64;

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
    /// As [`FeatureFile::open`] and [`Mapped::new`].
    pub fn open(path: &Path) -> Result<Mapped> {
        Mapped::new(FeatureFile::open(path)?)
    }

    /// The same of a file that is mapped already.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) that names the first row without direction.
    pub fn new(file: FeatureFile) -> Result<Mapped> {
        let mut inv_norms = vec![0.0; file.rows()];
        let share = BLOCKS * block_rows(BLOCK_BYTES, file.dim());
        let tasks = inv_norms.par_chunks_mut(share).enumerate();
        let measured = tasks.map(|(task, inv)| measure(&file, task * share, inv));
        if let Some(failed) = measured.find_first(Result::is_err) {
            failed?;
        }
        Ok(Mapped { file, inv_norms })
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
}

/// How many rows of `dim` values take about so many bytes as f32.
pub(super) fn block_rows(bytes: usize, dim: usize) -> usize {
    (bytes / (4 * dim)).max(1)
}

/// Writes 1 over the lengths of the rows from `first` on.
fn measure(file: &FeatureFile, first: usize, inv_norms: &mut [f32]) -> Result<()> {
    let rows = block_rows(BLOCK_BYTES, file.dim());
    let mut scratch = Vec::new();
    for (b, inv) in inv_norms.chunks_mut(rows).enumerate() {
        let start = first + b * rows;
        let block = file.block(start..start + inv.len(), &mut scratch);
        vector(
            #[inline(always)]
            || {
                for (inv, row) in inv.iter_mut().zip(block.chunks_exact(file.dim())) {
                    *inv = sum_map(row, |x| x * x);
                }
            },
        );
        for (i, inv) in inv.iter_mut().enumerate() {
            // Where squares leave f32, f64 tells whether the row is at fault.
            *inv = match (1e-30..1e30).contains(inv) {
                true => 1.0 / inv.sqrt(),
                false => (1.0 / file.length(start + i)?) as f32,
            };
        }
    }
    Ok(())
}
