//! The graph: values and nodes, the only intermediate representation.
//!
//! Ids are indices, every value has one writer, nodes stand in execution order. A value holds no
//! data: [`plan`] gives it a place, an executor gives it memory. The one exception to one writer is
//! the gradient of a trainable tensor: the first node of a step zeroes it and gradient nodes
//! accumulate into it in node order.

pub mod backward;
pub mod cost;
pub mod plan;

use crate::ops::Op;

/// Index of a [`Value`] in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

impl ValueId {
    /// As an index into [`Graph::values`].
    pub fn idx(self) -> usize {
        self.0 as usize
    }
}

/// One extent of a value. What changes from step to step is symbolic, so a graph is built once and
/// planned for every bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A fixed extent.
    N(usize),
    /// T: the packed tokens of a step.
    Tokens,
    /// S: the texts (segments) of a step.
    Seqs,
    /// N: the items of a step, each with one image.
    Items,
    /// G: the members, each with its own copy of every trainable tensor.
    Members,
}

/// Extents that the symbolic dims take in one plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// T, packed tokens.
    pub tokens: usize,
    /// S, texts.
    pub seqs: usize,
    /// N, items.
    pub items: usize,
    /// G, members.
    pub members: usize,
}

impl Bucket {
    /// The smallest bucket that holds so much. Tokens, texts and items are rounded up, so that few
    /// plans serve all steps.
    pub fn holding(tokens: usize, seqs: usize, items: usize, members: usize) -> Bucket {
        Bucket {
            tokens: tokens.next_multiple_of(32).max(32),
            seqs: seqs.next_multiple_of(8).max(8),
            items: items.next_multiple_of(8).max(8),
            members,
        }
    }

    /// The smallest bucket that holds both; members are the first one's, since state is theirs.
    pub fn max(&self, other: &Bucket) -> Bucket {
        Bucket {
            tokens: self.tokens.max(other.tokens),
            seqs: self.seqs.max(other.seqs),
            items: self.items.max(other.items),
            members: self.members,
        }
    }
}

impl Dim {
    /// The extent in `bucket`.
    pub fn size(self, bucket: &Bucket) -> usize {
        match self {
            Dim::N(n) => n,
            Dim::Tokens => bucket.tokens,
            Dim::Seqs => bucket.seqs,
            Dim::Items => bucket.items,
            Dim::Members => bucket.members,
        }
    }
}

/// Who owns a value's memory and how long it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Copied in before a step.
    Input,
    /// A weight of the checkpoint; never written.
    Frozen,
    /// A trainable tensor, `[Members, ...]`.
    Trainable,
    /// The gradient of a trainable tensor, same shape.
    Grad,
    /// Lives in the arena from its writer to its last reader.
    Temp,
    /// Like `Temp`, but kept to the end of the step for the host to read.
    Output,
}

/// A tensor of the graph: a description without data. Elements are f32 (f16 on a GPU).
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// For people and for checkpoints: `encoder.layer.0.qkv`.
    pub name: String,
    /// Extents, row-major.
    pub shape: Vec<Dim>,
    /// Owner and lifetime.
    pub role: Role,
}

impl Value {
    /// Number of elements in `bucket`.
    pub fn elements(&self, bucket: &Bucket) -> usize {
        self.shape.iter().map(|d| d.size(bucket)).product()
    }
}

/// Values and the nodes that compute them.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// All values; a [`ValueId`] is an index here.
    pub values: Vec<Value>,
    /// All nodes, in execution order.
    pub nodes: Vec<Op>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Graph {
        Graph::default()
    }

    /// Adds a value that no node has written yet.
    pub fn value(&mut self, name: impl Into<String>, shape: Vec<Dim>, role: Role) -> ValueId {
        self.values.push(Value {
            name: name.into(),
            shape,
            role,
        });
        ValueId(self.values.len() as u32 - 1)
    }

    /// The value of an id.
    pub fn get(&self, id: ValueId) -> &Value {
        &self.values[id.idx()]
    }

    /// The value of an id, to rename it or change its role.
    pub fn get_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.idx()]
    }

    /// The last extent of a value: its number of channels.
    ///
    /// # Panics
    /// If the value is a scalar or its last extent is symbolic; both are mistakes of a model
    /// builder, not of a user.
    pub fn channels(&self, id: ValueId) -> usize {
        match self.get(id).shape.last() {
            Some(Dim::N(n)) => *n,
            other => panic!(
                "{}: the last extent is {other:?}, not fixed",
                self.get(id).name
            ),
        }
    }

    /// Rows of a value in a bucket: its first extent.
    pub fn rows(&self, id: ValueId, bucket: &Bucket) -> usize {
        self.get(id).shape.first().map_or(1, |d| d.size(bucket))
    }

    /// The first value of that name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.values
            .iter()
            .position(|v| v.name == name)
            .map(|i| ValueId(i as u32))
    }

    /// Ids of all values with a role, in order.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = ValueId> + '_ {
        let ids = (0..self.values.len() as u32).map(ValueId);
        ids.filter(move |&id| self.get(id).role == role)
    }

    /// Checks what every executor relies on.
    ///
    /// # Panics
    /// If a value is read before it is written, written twice, or never written.
    pub fn check(&self) {
        let mut written: Vec<bool> = self
            .values
            .iter()
            .map(|v| {
                matches!(
                    v.role,
                    Role::Input | Role::Frozen | Role::Trainable | Role::Grad
                )
            })
            .collect();
        for (i, node) in self.nodes.iter().enumerate() {
            for r in node.reads() {
                assert!(
                    written[r.idx()],
                    "node {i} {} reads {}",
                    node.name(),
                    self.get(r).name
                );
            }
            for w in node.writes() {
                let name = &self.get(w).name;
                assert!(
                    !written[w.idx()],
                    "node {i} {} writes {name} again",
                    node.name()
                );
                written[w.idx()] = true;
            }
        }
    }
}
