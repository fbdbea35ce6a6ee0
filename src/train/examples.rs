//! Examples: a split whose texts are token ids and whose images are features, ready for batches.

use std::path::Path;

use crate::bad_input;
use crate::data::features::Features;
use crate::data::{Role, Split};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Items with their texts and image features in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examples {
    /// Token ids by [`Role::index`]; empty where a role was not asked for.
    pub texts: [Vec<Vec<u32>>; 4],
    /// Image features (N, E), not normalised.
    pub images: Vec<f32>,
    /// E.
    pub dim: usize,
}

impl Examples {
    /// Tokenises a split and looks up its images by name, or by place where the feature file has no
    /// names.
    ///
    /// # Errors
    /// An image without a feature, a feature that is not finite or all zero, a width that is not
    /// the model's, a text longer than the position table.
    pub fn new(
        engine: &Engine,
        split: &Split,
        features: &Features,
        file: &Path,
    ) -> Result<Examples> {
        let named = |e: Error| bad_input!("{}: {e}", file.display());
        let dim = engine.embed_dim();
        if features.dim != dim {
            return Err(bad_input!(
                "{}: features are {} wide, the model's are {dim}: they come from another model",
                file.display(),
                features.dim
            ));
        }
        let rows = image_rows(split, features).map_err(named)?;
        features.check_rows(&rows).map_err(named)?;
        let images = rows
            .iter()
            .flat_map(|r| features.row(*r))
            .copied()
            .collect();
        let mut texts: [Vec<Vec<u32>>; 4] = Default::default();
        for role in Role::ALL {
            if let Some(lines) = split.text(role) {
                texts[role.index()] = engine
                    .tokenize(lines)
                    .map_err(|e| blame(engine, split, role, e))?;
            }
        }
        Ok(Examples { texts, images, dim })
    }

    /// Items from texts and image features in memory; text i of every role belongs to image i.
    ///
    /// # Errors
    /// Lengths that differ, an image feature that is not finite or all zero, an empty or too long
    /// text.
    pub fn in_memory<S: AsRef<str>>(
        engine: &Engine,
        texts: &[(Role, &[S])],
        images: Vec<f32>,
    ) -> Result<Examples> {
        let dim = engine.embed_dim();
        if !images.len().is_multiple_of(dim) {
            return Err(bad_input!(
                "images: found {} numbers, expected rows of {dim}",
                images.len()
            ));
        }
        let features = Features {
            names: vec![],
            dim,
            values: images,
        };
        features.check_rows(&(0..features.len()).collect::<Vec<_>>())?;
        let n = features.len();
        let mut examples = Examples {
            images: features.values,
            dim,
            ..Examples::default()
        };
        for (role, lines) in texts {
            if lines.len() != n {
                let (name, found) = (role.name(), lines.len());
                return Err(bad_input!(
                    "texts `{name}`: found {found}, expected one an image, {n}"
                ));
            }
            examples.texts[role.index()] = engine.tokenize(lines)?;
        }
        Ok(examples)
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.images.len() / self.dim.max(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Texts of a role.
    ///
    /// # Errors
    /// If there are none.
    pub fn text(&self, role: Role) -> Result<&[Vec<u32>]> {
        let texts = &self.texts[role.index()];
        if texts.len() == self.len() {
            return Ok(texts);
        }
        let (found, want) = (texts.len(), self.len());
        Err(bad_input!(
            "captions `{}`: found {found}, expected {want}",
            role.name()
        ))
    }

    /// The image feature of an item.
    pub fn image(&self, item: usize) -> &[f32] {
        &self.images[item * self.dim..(item + 1) * self.dim]
    }
}

/// The error of the first text that is bad on its own, by its place in the data set: the order of a
/// split is that of a permutation.
fn blame(engine: &Engine, split: &Split, role: Role, all: Error) -> Error {
    if engine.tokenizer().is_err() {
        return all;
    }
    let lines = split.text(role).unwrap_or_default();
    let single = |(i, line)| Some((i, engine.tokenize(&[line]).err()?));
    match lines.iter().enumerate().find_map(single) {
        Some((i, e)) => bad_input!(
            "captions `{}`, line {} (image {}): {}",
            role.name(),
            split.items[i] + 1,
            split.images[i],
            e.to_string().trim_start_matches("text 1 ")
        ),
        None => all,
    }
}

/// Rows of the feature file for each item: by name where there are names, else by line.
fn image_rows(split: &Split, features: &Features) -> Result<Vec<usize>> {
    if features.names.is_empty() {
        let last = split.items.iter().max().map_or(0, |i| *i as usize);
        if last >= features.len() {
            return Err(bad_input!(
                "it has no names and {} rows, but line {} is asked for",
                features.len(),
                last + 1
            ));
        }
        return Ok(split.items.iter().map(|i| *i as usize).collect());
    }
    let index = features.index();
    let find =
        |name: &String| {
            index.get(name.as_str()).copied().ok_or_else(|| {
            let missing = split.images.iter().filter(|n| !index.contains_key(n.as_str())).count();
            let (len, example) = (features.len(), &features.names[0]);
            bad_input!(
                "no feature for image {name} ({missing} of {} are missing; it has {len}, such as \
                 {example})",
                split.images.len()
            )
        })
        };
    split.images.iter().map(find).collect()
}
