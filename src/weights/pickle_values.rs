//! What a pickle may build: tensors and plain containers.
//!
//! Compound values live in one [`Heap`] and refer to each other by index: a hostile file can nest or
//! tie them as it likes without a stack overflow or a leak.

use crate::tensor::Dtype;

/// PyTorch's own limit.
const MAX_DIMS: usize = 64;

/// A value on the machine's stack; compound ones are indices into the [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A number or a byte string, of which no tensor depends.
    Opaque,
    Str(usize),
    /// A list or a tuple.
    Seq(usize),
    Dict(usize),
    /// An object of a TorchScript program: the dictionary of its attributes.
    Module(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// The only names a file may refer to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
    /// A class of a TorchScript program.
    Module,
    /// What TorchScript wraps lists and dictionaries in, to say their types.
    Typed,
}

/// A tensor as the pickle describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RawTensor {
    pub dtype: Dtype,
    /// The text that is the storage's name under `data/`.
    pub key: usize,
    /// Values in the storage.
    pub numel: usize,
    /// First value in the storage.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// Everything that the pickle built.
#[derive(Default)]
pub(crate) struct Heap {
    pub(super) texts: Vec<String>,
    pub(super) seqs: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<(Dtype, usize, usize)>,
    pub(super) tensors: Vec<RawTensor>,
}

impl Heap {
    pub(crate) fn text(&self, id: usize) -> &str {
        &self.texts[id]
    }

    pub(crate) fn dict(&self, id: usize) -> &[(Value, Value)] {
        &self.dicts[id]
    }

    pub(crate) fn tensor(&self, id: usize) -> &RawTensor {
        &self.tensors[id]
    }

    pub(crate) fn str(&mut self, text: &str) -> Value {
        self.texts.push(text.to_string());
        Value::Str(self.texts.len() - 1)
    }

    pub(crate) fn seq(&mut self, items: Vec<Value>) -> Value {
        self.seqs.push(items);
        Value::Seq(self.seqs.len() - 1)
    }

    pub(crate) fn new_dict(&mut self) -> Value {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    pub(crate) fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Seq(id) => Some(&self.seqs[id]),
            _ => None,
        }
    }

    pub(crate) fn sizes(&self, value: Value) -> Option<Vec<usize>> {
        let items = self.items(value).filter(|items| items.len() <= MAX_DIMS)?;
        items.iter().map(|v| v.as_usize()).collect()
    }
}

impl Value {
    /// What the value is, in words.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Value::None => "nothing (None)",
            Value::Bool(_) | Value::Int(_) | Value::Opaque => "a plain value",
            Value::Str(_) => "a text",
            Value::Seq(_) => "a list",
            Value::Dict(_) => "a dictionary",
            Value::Module(_) => "a module",
            Value::Global(_) => "a function or class",
            Value::Storage(_) => "a bare storage",
            Value::Tensor(_) => "a single tensor without a name",
        }
    }

    pub(crate) fn as_usize(self) -> Option<usize> {
        match self {
            Value::Int(v) => usize::try_from(v).ok(),
            _ => None,
        }
    }
}
