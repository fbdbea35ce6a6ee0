//! A checkpoint's tensors under the names of a graph's values, where the two differ: fused, transposed,
//! scaled or resampled.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::checkpoint::{Checkpoint, shape_text};
use super::view::TensorView;
use super::vision::resample::resampled;
use crate::bad_input;
use crate::error::Result;
use crate::exec::{Frozen, FrozenTensor};
use crate::graph::{Graph, Role};
use crate::tensor::Dtype;

/// How a value lies in its tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum How {
    /// As it is, row-major.
    Whole,
    /// Some of its rows.
    Rows(Range<usize>),
    /// A matrix (A, B) read as (B, A).
    Transposed,
    /// Each row times the number of that row in another tensor.
    Scaled(String),
    /// A vision tower's table of places, for squares of the first side, as one for squares of the second.
    Resampled(usize, usize),
}

/// Where a value lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The graph's name for it.
    pub value: String,
    /// The tensor in the file.
    pub tensor: String,
    /// The shape that the tensor must have.
    pub shape: Vec<usize>,
    /// How it lies there.
    pub how: How,
}

impl Place {
    /// A tensor as it is.
    pub fn whole(value: impl Into<String>, tensor: impl Into<String>, shape: &[usize]) -> Place {
        Place {
            value: value.into(),
            tensor: tensor.into(),
            shape: shape.to_vec(),
            how: How::Whole,
        }
    }
}

/// The values of a model, each where it lies; those that lie otherwise are made once.
#[derive(Debug)]
pub struct Stored {
    checkpoint: Arc<Checkpoint>,
    places: HashMap<String, Place>,
    made: HashMap<String, Arc<Vec<f32>>>,
}

impl Stored {
    /// Checks every tensor.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or no floating-point numbers.
    pub fn new(checkpoint: Checkpoint, places: Vec<Place>) -> Result<Stored> {
        let mut made = HashMap::new();
        for place in &places {
            check(&checkpoint, &place.tensor, &place.shape)?;
            match &place.how {
                How::Whole | How::Rows(_) => {}
                How::Transposed => {
                    let values = checkpoint.tensor(&place.tensor)?.to_f32();
                    let values = transposed(&values, place.shape[1]);
                    made.insert(place.value.clone(), Arc::new(values));
                }
                How::Scaled(by) => {
                    check(&checkpoint, by, &place.shape[..1])?;
                    let mut values = checkpoint.tensor(&place.tensor)?.to_f32();
                    let by = checkpoint.tensor(by)?.to_f32();
                    let width = values.len() / by.len().max(1);
                    let rows = values.chunks_exact_mut(width.max(1));
                    rows.zip(&by)
                        .for_each(|(row, by)| row.iter_mut().for_each(|x| *x *= by));
                    made.insert(place.value.clone(), Arc::new(values));
                }
                How::Resampled(from, to) => {
                    let table = checkpoint.tensor(&place.tensor)?.to_f32();
                    let channels = place.shape[place.shape.len() - 1];
                    let values = resampled(&table, channels, (*from, *to));
                    made.insert(place.value.clone(), Arc::new(values));
                }
            }
        }
        Ok(Stored {
            checkpoint: Arc::new(checkpoint),
            places: places.into_iter().map(|p| (p.value.clone(), p)).collect(),
            made,
        })
    }

    /// The file.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// A value where it lies. Its shape is the tensor's, of a resampled table too, whose numbers are the
    /// value's.
    ///
    /// # Errors
    /// If the model has no such value.
    pub fn view(&self, value: &str) -> Result<TensorView<'_>> {
        let place = self.place(value)?;
        if let Some(made) = self.made.get(value) {
            return Ok(TensorView {
                dtype: Dtype::F32,
                shape: &place.shape,
                bytes: bytemuck::cast_slice(made),
            });
        }
        let view = self.checkpoint.tensor(&place.tensor)?;
        let bytes = match &place.how {
            How::Rows(rows) => {
                let row = view.bytes.len() / place.shape[0];
                &view.bytes[rows.start * row..rows.end * row]
            }
            _ => view.bytes,
        };
        Ok(TensorView { bytes, ..view })
    }

    /// Binds the frozen values of `graph`: f32 where they lie, others by one private copy whose source
    /// pages are given back.
    ///
    /// # Errors
    /// If the model has no such value.
    pub fn bind(&self, graph: &Graph) -> Result<Frozen> {
        let mut frozen = Frozen::default();
        for id in graph.with_role(Role::Frozen) {
            let value = &graph.get(id).name;
            frozen.insert(value, self.frozen(value)?);
        }
        Ok(frozen)
    }

    fn frozen(&self, value: &str) -> Result<FrozenTensor> {
        if let Some(made) = self.made.get(value) {
            return Ok(FrozenTensor::Owned(made.clone()));
        }
        let place = self.place(value)?;
        let view = self.view(value)?;
        let Some(values) = view.as_f32() else {
            let copy = Arc::new(view.to_f32());
            self.release(value);
            return Ok(FrozenTensor::Owned(copy));
        };
        let row = values.len() / place_rows(place);
        Ok(FrozenTensor::Mapped {
            checkpoint: self.checkpoint.clone(),
            name: place.tensor.clone(),
            part: match &place.how {
                How::Rows(rows) => Some(rows.start * row..rows.end * row),
                _ => None,
            },
        })
    }

    /// Gives back the pages of a value that has been copied.
    pub fn release(&self, value: &str) {
        if let Ok(place) = self.place(value) {
            self.checkpoint.page_advise_release(&place.tensor);
        }
    }

    fn place(&self, value: &str) -> Result<&Place> {
        self.places.get(value).ok_or_else(|| {
            let file = self.checkpoint.path().display();
            bad_input!("{file}: its model has no {value}")
        })
    }
}

/// Rows of the part of a tensor that a value is.
fn place_rows(place: &Place) -> usize {
    match &place.how {
        How::Rows(rows) => rows.len().max(1),
        _ => 1,
    }
}

/// Fails unless the file has a tensor of that shape in numbers that weights have.
fn check(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<()> {
    let file = checkpoint.path().display();
    let Some(tensor) = checkpoint.get(name) else {
        return Err(bad_input!(
            "{file}: has no tensor {name}, expected one of shape {}; the file is incomplete",
            shape_text(shape)
        ));
    };
    if tensor.shape != shape {
        return Err(bad_input!(
            "{file}: {name} is {}, expected {}",
            shape_text(tensor.shape),
            shape_text(shape)
        ));
    }
    match tensor.dtype {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Ok(()),
        other => Err(bad_input!(
            "{file}: {name} has dtype {other}, expected F32, F16, BF16 or F64"
        )),
    }
}

/// (rows, columns) to (columns, rows).
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |j: usize| values.iter().skip(j).step_by(columns.max(1)).copied();
    (0..columns).flat_map(column).collect()
}
