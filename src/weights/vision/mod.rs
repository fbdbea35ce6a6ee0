//! A vision tower's folder: the ViT of CLIP under Hugging Face's, OpenAI's and OpenCLIP's names, and
//! DINOv2's. All is checked before anything is computed.

pub(super) mod layout;
pub(super) mod resample;
pub(super) mod settings;

use std::path::{Path, PathBuf};

use serde::Serialize;

use self::layout::Layout;
use self::settings::Settings;
use super::checkpoint::{Checkpoint, shape_text};
use super::stored::Stored;
use crate::bad_input;
use crate::error::Result;
use crate::ops::gelu::Gelu;

/// A vision tower. Pictures have 3 channels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VisionConfig {
    /// Channels C.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads NH.
    pub heads: usize,
    /// Channels of the feed-forward network.
    pub ffn: usize,
    /// Pixels of a patch's side.
    pub patch: usize,
    /// Patches of a picture's side.
    pub grid: usize,
    /// Width of the joint space E, or `hidden` where there is no projection.
    pub embed_dim: usize,
    /// Of the feed-forward network.
    pub gelu: Gelu,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f32,
    /// Whether the patches' embedding has a bias (DINOv2).
    pub patch_bias: bool,
    /// Whether there is a layer norm before the blocks (CLIP).
    pub pre_norm: bool,
    /// Whether there is a projection to the joint space.
    pub projection: bool,
}

impl VisionConfig {
    /// Pixels of a picture's side.
    pub fn image_size(&self) -> usize {
        self.patch * self.grid
    }

    /// The sizes and settings of the tower in a folder or file and its open weights, if they have one:
    /// as [`VisionFiles::open`], but no tensor is read or checked.
    pub fn found(path: &Path, weights: &Checkpoint) -> Option<Result<VisionConfig>> {
        let layout = Layout::of(weights).ok()?;
        Some(read(path, weights, (layout, None)))
    }

    /// Tokens of a picture: the class token and the patches.
    pub fn tokens(&self) -> usize {
        self.grid * self.grid + 1
    }

    /// Numbers of a patch: 3 channels of its pixels, rows in each.
    pub fn patch_len(&self) -> usize {
        3 * self.patch * self.patch
    }
}

/// An opened vision tower whose tensors all have the shapes that its settings ask for.
#[derive(Debug)]
pub struct VisionFiles {
    /// The folder, or the file, that was opened.
    pub path: PathBuf,
    /// Sizes and settings.
    pub config: VisionConfig,
    /// The tensors, under Hugging Face's names for CLIP.
    pub weights: Stored,
}

impl VisionFiles {
    /// Opens a folder of Hugging Face's (`CLIPModel`, `CLIPVisionModel`, `Dinov2Model`) or OpenCLIP's, or
    /// one whose checkpoint has OpenAI's names, or such a checkpoint alone. `side` is that of the pictures
    /// that it will see, where it is not the table's (DINOv2).
    ///
    /// # Errors
    /// A missing file, settings that contradict the tensors, and tensors that are missing, unknown or
    /// of another shape.
    pub fn open(path: &Path, side: Option<usize>) -> Result<VisionFiles> {
        if !path.exists() {
            return Err(bad_input!(
                "{}: no such folder; expected one of a vision tower, with config.json or \
                 open_clip_config.json and its weights",
                path.display()
            ));
        }
        let weights = Checkpoint::open(path)?;
        let layout = Layout::of(&weights)?;
        let config = read(path, &weights, (layout, side))?;
        layout.check_unknown(&weights, &config)?;
        let places = layout.places(&config, &weights);
        let weights = Stored::new(weights, places)?;
        Ok(VisionFiles {
            path: path.to_path_buf(),
            config,
            weights,
        })
    }
}

/// Joins what settings and tensors say.
fn read(
    path: &Path,
    weights: &Checkpoint,
    (layout, side): (Layout, Option<usize>),
) -> Result<VisionConfig> {
    let settings = Settings::read(path, layout)?;
    settings.join(layout.sizes(weights, side)?, weights)
}

/// What the tensors say.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sizes {
    hidden: usize,
    layers: usize,
    ffn: usize,
    patch: usize,
    grid: usize,
    projection: Option<usize>,
}

/// Height of a square table of `rows` places behind a class token's.
fn grid_of(weights: &Checkpoint, table: &str, rows: usize) -> Result<usize> {
    let grid = rows.saturating_sub(1).isqrt();
    if grid == 0 || grid * grid + 1 != rows {
        return Err(bad_input!(
            "{}: {table} has {rows} rows, expected one for a class token and those of a square of \
             patches",
            weights.path().display()
        ));
    }
    Ok(grid)
}

/// The dims of a tensor, of which there must be so many.
pub(super) fn dims<const N: usize>(weights: &Checkpoint, name: &str) -> Result<[usize; N]> {
    let shape = weights.tensor(name)?.shape;
    match <[usize; N]>::try_from(shape) {
        Ok(dims) if dims.iter().all(|n| *n > 0) => Ok(dims),
        _ => Err(bad_input!(
            "{}: {name} is {}, expected {N} dims of at least 1",
            weights.path().display(),
            shape_text(shape)
        )),
    }
}
