//! Trainable state, explicit: a list of named tensors with value, gradient and both moments.

use std::collections::HashMap;

use crate::graph::{Bucket, Graph, Role};

/// One trainable tensor. All members' copies lie side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainTensor {
    /// Name as checkpoints have it.
    pub name: String,
    /// Shape of one member's copy.
    pub shape: Vec<usize>,
    /// Elements of one member's copy.
    pub len: usize,
    /// Offset of the first member's copy in the flat arrays.
    pub offset: usize,
}

/// Values, gradients and Adam's moments of every trainable tensor, f32.
#[derive(Clone, Debug, Default)]
pub struct TrainState {
    /// The tensors in the graph's order.
    pub tensors: Vec<TrainTensor>,
    /// G.
    pub members: usize,
    /// Values, all tensors' one after another, each (G, ...).
    pub values: Vec<f32>,
    /// Gradients.
    pub grads: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Adam's own step count of each member: skipped steps do not count.
    pub adam_steps: Vec<u32>,
    index: HashMap<String, usize>,
}

impl TrainState {
    /// Zeroed state for the trainable values of `graph`; without a trainable value, an empty one.
    pub fn new(graph: &Graph, members: usize) -> TrainState {
        let bucket = Bucket {
            tokens: 0,
            seqs: 0,
            items: 0,
            members,
        };
        let mut s = TrainState {
            members,
            adam_steps: vec![0; members],
            ..TrainState::default()
        };
        let mut offset = 0;
        for id in graph.with_role(Role::Trainable) {
            let value = graph.get(id);
            let shape: Vec<usize> = value.shape[1..].iter().map(|d| d.size(&bucket)).collect();
            let len = shape.iter().product();
            s.index.insert(value.name.clone(), s.tensors.len());
            s.tensors.push(TrainTensor {
                name: value.name.clone(),
                shape,
                len,
                offset,
            });
            offset += len * members;
        }
        for buffer in [&mut s.values, &mut s.grads, &mut s.m, &mut s.v] {
            buffer.resize(offset, 0.0);
        }
        s
    }

    /// Index of a tensor by its name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Trainable parameters of one member.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.len).sum()
    }

    /// Where one member's copy of a tensor lies in the flat arrays.
    pub fn range(&self, tensor: usize, member: usize) -> std::ops::Range<usize> {
        let t = &self.tensors[tensor];
        let start = t.offset + member * t.len;
        start..start + t.len
    }

    /// One member's value of a tensor.
    pub fn value(&self, tensor: usize, member: usize) -> &[f32] {
        &self.values[self.range(tensor, member)]
    }

    /// Sets one member's value of a tensor.
    ///
    /// # Panics
    /// If `values` has another length.
    pub fn set_value(&mut self, tensor: usize, member: usize, values: &[f32]) {
        let range = self.range(tensor, member);
        self.values[range].copy_from_slice(values);
    }

    /// A member's largest value by magnitude and its tensor; the first that is not finite, if one is.
    pub fn largest(&self, member: usize) -> Option<(&str, f32)> {
        let magnitude = |x: f32| {
            if x.is_finite() {
                x.abs()
            } else {
                f32::INFINITY
            }
        };
        let mut found: Option<(&str, f32)> = None;
        for (i, tensor) in self.tensors.iter().enumerate() {
            for &x in self.value(i, member) {
                if found.is_none_or(|(_, most)| magnitude(x) > magnitude(most)) {
                    found = Some((&tensor.name, x));
                }
            }
        }
        found
    }

    /// The first tensor of a member whose gradient is not finite.
    pub fn first_bad_gradient(&self, member: usize) -> Option<&str> {
        let bad = |i: &usize| {
            self.grads[self.range(*i, member)]
                .iter()
                .any(|g| !g.is_finite())
        };
        (0..self.tensors.len())
            .find(bad)
            .map(|i| self.tensors[i].name.as_str())
    }
}
