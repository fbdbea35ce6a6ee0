//! Adapter files: the trained tensors of one member, and what they belong to.
//!
//! A safetensors file. Tensors carry OpenDelta's names as PECTVLM's checkpoints have them
//! (`transformer.encoder.layer.0.attention.self.query.lora.lora_A`); the metadata says what was
//! trained and how, so that a file is enough to use it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::Adapter;
use crate::bad_input;
use crate::error::Result;
use crate::exec::state::TrainState;
use crate::tensor::Dtype;
use crate::train::program::{EncodeProgram, TextModel};
use crate::weights::checkpoint::{Checkpoint, shape_text};
use crate::weights::text_model::CLIP_PROJECTION;
use crate::weights::write::{OutTensor, write_safetensors};

/// Value of the metadata key `format`.
pub const FORMAT: &str = "crosstune adapter 1";

/// What stands in front of names in CLIP's own text tower.
const CLIP_MODEL: &str = "text_model.";

/// A trained adapter, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// What was trained.
    pub config: Adapter,
    /// Where it came from: language, strategy, step, model. For people.
    pub origin: BTreeMap<String, String>,
    /// Names, shapes and values.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl AdapterFile {
    /// Whether it belongs to CLIP's own text tower, whose layers have Hugging Face's names.
    pub fn is_clips(&self) -> bool {
        self.tensors
            .iter()
            .any(|(name, ..)| name.starts_with(CLIP_MODEL) || name == CLIP_PROJECTION)
    }

    /// Copies one member's values out of the state of a run.
    pub fn from_state(
        config: &Adapter,
        state: &TrainState,
        member: usize,
        origin: BTreeMap<String, String>,
    ) -> AdapterFile {
        let tensors = state
            .tensors
            .iter()
            .enumerate()
            .map(|(i, t)| {
                (
                    t.name.clone(),
                    t.shape.clone(),
                    state.value(i, member).to_vec(),
                )
            })
            .collect();
        AdapterFile {
            config: config.clone(),
            origin,
            tensors,
        }
    }

    /// Trained parameters.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|(_, _, values)| values.len()).sum()
    }

    /// Writes the file: to a temporary one first, so that a crash leaves the old one whole.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let names: Vec<String> = self.tensors.iter().map(|t| t.0.clone()).collect();
        write_safetensors(path, &self.out_tensors(&names), &self.metadata())
    }

    /// What is said beside the tensors.
    pub(super) fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.origin.clone();
        metadata.insert("format".into(), FORMAT.into());
        let config = serde_json::to_string(&self.config).unwrap_or_default();
        metadata.insert("adapter".into(), config);
        metadata
    }

    /// The tensors under other names, one each, for a file.
    pub(super) fn out_tensors<'a>(&'a self, names: &'a [String]) -> Vec<OutTensor<'a>> {
        let pairs = self.tensors.iter().zip(names);
        pairs
            .map(|((_, shape, values), name)| OutTensor {
                name,
                dtype: Dtype::F32,
                shape: shape.clone(),
                bytes: Cow::Borrowed(bytemuck::cast_slice(values)),
            })
            .collect()
    }

    /// Reads an adapter.
    ///
    /// # Errors
    /// If it can't be read or is not one of ours.
    pub fn load(path: &Path) -> Result<AdapterFile> {
        let file = Checkpoint::open(path)?;
        let metadata = file.metadata();
        let Some(config) = settings(&file)? else {
            return Err(bad_input!(
                "{}: is not an adapter of crosstune; expected metadata format `{FORMAT}`, found {}",
                path.display(),
                metadata
                    .get("format")
                    .map_or("none".into(), |f| format!("`{f}`"))
            ));
        };
        let mut origin = metadata.clone();
        origin.remove("format");
        origin.remove("adapter");
        let tensors = file
            .tensors()
            .map(|(name, t)| (name.to_string(), t.shape.to_vec(), t.to_f32()))
            .collect();
        Ok(AdapterFile {
            config,
            origin,
            tensors,
        })
    }

    /// Checks that this adapter belongs to a model: that it has each tensor that its settings train
    /// in it, in the model's shape, and no other.
    ///
    /// # Errors
    /// As [`AdapterFile::load_into`].
    pub fn check_model(&self, model: &TextModel) -> Result<()> {
        self.config.check()?;
        self.config.check_model(&model.config)?;
        let program = EncodeProgram::new(&model.config, model.head, &self.config);
        self.load_into(&mut model.init(&program.graph, &self.config, &[0])?, 0)
    }

    /// Copies the values into a member of a state.
    ///
    /// # Errors
    /// If a tensor is missing, is not the model's, or has another shape: the adapter belongs to
    /// another model.
    pub fn load_into(&self, state: &mut TrainState, member: usize) -> Result<()> {
        for (name, shape, values) in &self.tensors {
            let Some(t) = state.find(name) else {
                return Err(bad_input!(
                    "adapter: the model has no trainable tensor {name}"
                ));
            };
            let want = state.tensors[t].shape.clone();
            if *shape != want {
                return Err(bad_input!(
                    "adapter: {name} is {}, the model's is {}: it was trained for another model",
                    shape_text(shape),
                    shape_text(&want)
                ));
            }
            state.set_value(t, member, values);
        }
        let has = |name: &str| self.tensors.iter().any(|(n, _, _)| n == name);
        match state.tensors.iter().find(|t| !has(&t.name)) {
            Some(t) => Err(bad_input!("adapter: {} is missing", t.name)),
            None => Ok(()),
        }
    }
}

/// The settings beside a file's tensors; `None` where crosstune did not write it.
pub(super) fn settings(file: &Checkpoint) -> Result<Option<Adapter>> {
    let metadata = file.metadata();
    if metadata.get("format").map(String::as_str) != Some(FORMAT) {
        return Ok(None);
    }
    let text = metadata.get("adapter").map_or("", String::as_str);
    serde_json::from_str(text)
        .map(Some)
        .map_err(|e| bad_input!("{}: metadata `adapter`: {e}", file.path().display()))
}
