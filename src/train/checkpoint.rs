//! Checkpoints of a run: everything needed to go on, in one file.
//!
//! Values, moments, Adam's steps, loss scales, skip counts, the step (which is the data position,
//! since a batch depends on seed and step only), and the best values so far. Written to a temporary
//! file, synced and renamed: whenever a run is killed, the file is whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bad_input;
use crate::error::Result;
use crate::exec::state::TrainState;
use crate::tensor::Dtype;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::write::{OutTensor, write_safetensors};

const FORMAT: &str = "crosstune checkpoint 1";

/// The best evaluation of a member so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its score.
    pub score: f64,
    /// Steps done when it was measured.
    pub step: usize,
    /// Values of the trainable tensors then, one after another.
    #[serde(skip)]
    pub values: Vec<f32>,
}

/// Progress of one member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberProgress {
    /// Steps in a row that were skipped because the gradient was not finite.
    pub skips: u32,
    /// Those of them that no smaller loss scale was left for.
    #[serde(default)]
    pub stuck: u32,
    /// Steps skipped in all.
    pub skipped: u32,
    /// The step of the first of the skips in a row.
    pub first_skip: usize,
    /// Multiplies the loss gradient, a power of two; 1 on a CPU.
    pub loss_scale: f32,
    /// What it began with on the device that it is for.
    #[serde(default = "one")]
    pub first_scale: f32,
    /// Steps since it changed or a step was skipped.
    #[serde(default)]
    pub good_steps: u32,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Why it takes no part any more, if it was given up.
    #[serde(default)]
    pub failed: Option<String>,
}

/// Good steps after which a loss scale is doubled.
const GROW_AFTER: u32 = 2000;
/// Beyond this a scale gains nothing: gradients of 1e-9 are in f16's range.
const MAX_SCALE: f32 = 65536.0;

fn one() -> f32 {
    1.0
}

impl MemberProgress {
    /// Begins with a loss scale, unless it goes on with one that began like that.
    pub fn begin_scale(&mut self, first: f32) {
        if self.first_scale != first {
            self.first_scale = first;
            self.loss_scale = first;
            (self.stuck, self.good_steps) = (0, 0);
        }
    }

    /// After a step whose gradient was finite. A scale that begins at 1 stays there: nothing is f16.
    pub fn grow_scale(&mut self) {
        self.good_steps += 1;
        if self.first_scale > 1.0 && self.good_steps >= GROW_AFTER {
            self.loss_scale = (self.loss_scale * 2.0).min(MAX_SCALE);
            self.good_steps = 0;
        }
    }

    /// After a step whose gradient was not finite: whether a smaller scale is left to try
    /// (Micikevicius et al., "Mixed precision training", 2018).
    pub fn shrink_scale(&mut self) -> bool {
        self.good_steps = 0;
        let can = self.loss_scale > 1.0;
        if can {
            self.loss_scale = (self.loss_scale / 4.0).max(1.0);
        }
        can
    }
}

/// The scalar part of a checkpoint.
#[derive(Serialize, Deserialize)]
struct Header {
    step: usize,
    adam_steps: Vec<u32>,
    members: Vec<MemberProgress>,
    run: String,
}

/// What a run needs to go on, beside its settings.
pub struct Progress<'a> {
    /// Steps done.
    pub step: usize,
    /// Each member's.
    pub members: &'a [MemberProgress],
    /// Names the run; going on with another is refused.
    pub run: &'a str,
}

/// Saves a checkpoint.
///
/// # Errors
/// If it can't be written; the former file is whole then.
pub fn save(path: &Path, progress: &Progress<'_>, state: &TrainState) -> Result<()> {
    let header = Header {
        step: progress.step,
        adam_steps: state.adam_steps.clone(),
        members: progress.members.to_vec(),
        run: progress.run.to_string(),
    };
    let names: Vec<String> = (0..progress.members.len())
        .map(|g| format!("best.{g}"))
        .collect();
    let mut list: Vec<(&str, &[f32])> =
        vec![("values", &state.values), ("m", &state.m), ("v", &state.v)];
    for (name, member) in names.iter().zip(progress.members) {
        if let Some(best) = &member.best {
            list.push((name, &best.values));
        }
    }
    let tensors: Vec<OutTensor<'_>> = list
        .into_iter()
        .map(|(name, values)| OutTensor {
            name,
            dtype: Dtype::F32,
            shape: vec![values.len()],
            bytes: Cow::Borrowed(bytemuck::cast_slice(values)),
        })
        .collect();
    let text = serde_json::to_string(&header).unwrap_or_default();
    let metadata = BTreeMap::from([
        ("format".to_string(), FORMAT.to_string()),
        ("progress".into(), text),
    ]);
    write_safetensors(path, &tensors, &metadata)
}

/// Loads a checkpoint into `state`; returns the step and the members' progress.
///
/// # Errors
/// If it can't be read, or belongs to a run with other settings.
pub fn load(
    path: &Path,
    run: &str,
    state: &mut TrainState,
) -> Result<(usize, Vec<MemberProgress>)> {
    let file = Checkpoint::open(path)?;
    if file.metadata().get("format").map(String::as_str) != Some(FORMAT) {
        return Err(bad_input!(
            "{}: is not a checkpoint of a run",
            path.display()
        ));
    }
    let text = file.metadata().get("progress").map_or("", String::as_str);
    let mut header: Header = serde_json::from_str(text)
        .map_err(|e| bad_input!("{}: metadata `progress`: {e}", path.display()))?;
    if header.run != run {
        return Err(bad_input!(
            "{}: belongs to a run with another model, other settings or other data; bring back what \
             it was started with, or start a new run",
            path.display()
        ));
    }
    for (name, buffer) in [
        ("values", &mut state.values),
        ("m", &mut state.m),
        ("v", &mut state.v),
    ] {
        let values = file.tensor(name)?.to_f32();
        if values.len() != buffer.len() {
            let (found, want) = (values.len(), buffer.len());
            return Err(bad_input!(
                "{}: `{name}` has {found} elements, expected {want}",
                path.display()
            ));
        }
        buffer.copy_from_slice(&values);
    }
    state.adam_steps = header.adam_steps;
    for (g, member) in header.members.iter_mut().enumerate() {
        if let Some(best) = &mut member.best {
            best.values = file.tensor(&format!("best.{g}"))?.to_f32();
        }
    }
    Ok((header.step, header.members))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_scales_shrink_at_once_and_grow_late() {
        let mut p = MemberProgress::default();
        p.begin_scale(1024.0);
        assert_eq!(p.loss_scale, 1024.0);
        for want in [256.0, 64.0, 16.0, 4.0, 1.0] {
            assert!(p.shrink_scale());
            assert_eq!(p.loss_scale, want);
        }
        assert!(!p.shrink_scale(), "nothing is left to try");
        p.begin_scale(1024.0);
        assert_eq!(p.loss_scale, 1.0, "a run that goes on keeps its own");
        p.stuck = 3;
        let mut elsewhere = p.clone();
        p.begin_scale(1024.0);
        elsewhere.begin_scale(512.0);
        assert_eq!(
            (p.stuck, elsewhere.stuck),
            (3, 0),
            "there are scales to try again"
        );
        (0..GROW_AFTER).for_each(|_| p.grow_scale());
        assert_eq!((p.loss_scale, p.good_steps), (2.0, 0));
        (0..40 * GROW_AFTER).for_each(|_| p.grow_scale());
        assert_eq!(p.loss_scale, MAX_SCALE);
        p.begin_scale(1.0);
        (0..GROW_AFTER).for_each(|_| p.grow_scale());
        assert_eq!(p.loss_scale, 1.0, "on a CPU it stays 1");
        assert!(!p.shrink_scale());
    }
}
