//! What a node costs at least: bytes that move and operations of its products.
//!
//! Bytes are those of each value once, as if caches held everything within a node and nothing
//! between two: a kernel that reads an operand twice is not better for it. Operations are those of
//! products, a multiply-add being two; what goes over its input once is bound by its bytes and
//! counts none.

use std::iter::Sum;
use std::ops::Add;

use super::{Bucket, Dim, Graph, Role, ValueId};
use crate::exec::{LossWeights, MemberStep};
use crate::ops::contrastive::Pair;
use crate::ops::embedding::Tables;
use crate::ops::linear::grad::WeightGrad;
use crate::ops::pool::Pooling;
use crate::ops::{Op, product_flops};
use crate::text::pack::Batch;

/// What an executor holds numbers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// f32 throughout: the CPU's.
    F32,
    /// A device's: activations and frozen weights f16; statistics, losses and all that the optimiser
    /// owns f32, beside f16 copies of what products read.
    F16,
}

/// Extents of a step and the terms of its objective.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// True or planned extents; texts count as equally long.
    pub bucket: Bucket,
    /// A term of weight 0 is not computed. Members count as alike.
    pub weights: LossWeights,
}

impl Work {
    /// That of a batch: its true extents, and every term that some member has.
    pub fn of(batch: &Batch, steps: &[MemberStep]) -> Work {
        let bucket = Bucket {
            tokens: batch.tokens(),
            seqs: batch.seqs(),
            items: batch.items(),
            members: batch.members.len(),
        };
        let largest = |of: fn(&LossWeights) -> f32| {
            let all = steps.iter().map(|s| of(&s.weights).abs());
            all.fold(0.0, f32::max)
        };
        let weights = LossWeights {
            image_anchor: largest(|w| w.image_anchor),
            mse: largest(|w| w.mse),
            partner_anchor: largest(|w| w.partner_anchor),
            image_partner: largest(|w| w.image_partner),
            stop_partner: steps.iter().all(|s| s.weights.stop_partner),
        };
        Work { bucket, weights }
    }
}

/// What a node, or several, cost at least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes read.
    pub read: f64,
    /// Bytes written.
    pub written: f64,
    /// Operations of products.
    pub flops: f64,
}

impl Cost {
    /// Bytes read and written.
    pub fn bytes(&self) -> f64 {
        self.read + self.written
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            read: self.read + other.read,
            written: self.written + other.written,
            flops: self.flops + other.flops,
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(all: I) -> Cost {
        all.fold(Cost::default(), Add::add)
    }
}

/// Counts the nodes of one graph.
pub struct Counter<'g> {
    graph: &'g Graph,
    numbers: Numbers,
    /// Bytes of an element, by value.
    sizes: Vec<f64>,
}

impl<'g> Counter<'g> {
    /// For a graph as an executor with these numbers runs it.
    pub fn new(graph: &'g Graph, numbers: Numbers) -> Counter<'g> {
        let sizes = match numbers {
            Numbers::F32 => vec![4.0; graph.values.len()],
            Numbers::F16 => device_sizes(graph),
        };
        Counter {
            graph,
            numbers,
            sizes,
        }
    }

    /// What some nodes cost together.
    pub fn nodes<'n>(&self, nodes: impl IntoIterator<Item = &'n Op>, work: &Work) -> Cost {
        nodes.into_iter().map(|op| self.node(op, work)).sum()
    }

    /// What a node costs. An op that reads and writes its values whole needs no arm here.
    pub fn node(&self, op: &Op, work: &Work) -> Cost {
        let (read, written) = match op {
            Op::Embedding(op) => {
                let written = op.sum.into_iter().chain([op.out]);
                (self.gathered(&op.tables, work), self.all(written, work))
            }
            Op::EmbeddingGrad(op) => {
                let adds = self.touched(op.grads, work);
                let given = op.dsum.into_iter().chain([op.dout]);
                let read = self.gathered(&op.tables, work) + self.all(given, work);
                (read + adds, adds)
            }
            Op::WeightGrad(op) => self.weight_grad(op, work),
            // One token of a text is as much as comes out.
            Op::Pool(op) if op.pooling != Pooling::Mean => {
                let row = self.value(op.out, work);
                (row, row)
            }
            // A term of weight 0 is not computed, and its gradient is zero.
            Op::Contrastive(op) if is_off(op.pair, work) => (0.0, 0.0),
            Op::ContrastiveGrad(op) if is_off(op.pair, work) => (0.0, self.value(op.dtext, work)),
            Op::ZeroGrads(_) => (0.0, self.owned(Role::Grad, work)),
            // A device measures the gradient as it spends it, in the next node.
            Op::GradNorm(_) if self.numbers == Numbers::F16 => (0.0, 0.0),
            Op::GradNorm(op) => (self.owned(Role::Grad, work), self.value(op.norm, work)),
            Op::AdamStep(_) => self.adam(work),
            _ => self.whole(op, work),
        };
        let flops = self.flops(op, work);
        Cost {
            read,
            written,
            flops,
        }
    }

    /// Operations of a node's products. Those of a contrastive loss depend on the objective.
    fn flops(&self, op: &Op, work: &Work) -> f64 {
        match op {
            Op::Contrastive(op) if is_off(op.pair, work) => 0.0,
            Op::ContrastiveGrad(op) if is_off(op.pair, work) => 0.0,
            Op::Contrastive(op) => self.logits(op.text, work),
            Op::ContrastiveGrad(op) => {
                self.logits(op.text, work) * products_back(op.pair, &work.weights)
            }
            _ => op.flops(self.graph, &work.bucket),
        }
    }

    /// Bytes read and written of an op that takes its values whole; gradients that it adds to are
    /// both.
    fn whole(&self, op: &Op, work: &Work) -> (f64, f64) {
        let adds = self.all(self.accumulated(op), work);
        let reads = self.all(op.reads().into_iter(), work);
        (reads + adds, self.all(op.writes().into_iter(), work) + adds)
    }

    /// Of `dout` it reads the columns of its part.
    fn weight_grad(&self, op: &WeightGrad, work: &Work) -> (f64, f64) {
        let adds = self.all([op.dweight, op.dbias].into_iter().flatten(), work);
        let width = self.graph.channels(op.dout) as f64;
        let own = self.table_rows(op.parts[op.part].weight) / width;
        let inp = op.dweight.map_or(0.0, |_| self.value(op.inp, work));
        (inp + own * self.value(op.dout, work) + adds, adds)
    }

    /// Gradients that a node adds to as a whole.
    fn accumulated(&self, op: &Op) -> impl Iterator<Item = ValueId> {
        let ids: Vec<Option<ValueId>> = match op {
            Op::LayerNormGrad(op) => vec![op.dweight, op.dbias],
            Op::PhmGrad(op) => op.dweights.to_vec(),
            Op::LoraGrad(op) => {
                let branches = op.branches.iter().flatten();
                branches.flat_map(|b| [b.dlora_a, b.dlora_b]).collect()
            }
            _ => vec![],
        };
        ids.into_iter().flatten()
    }

    fn elements(&self, id: ValueId, work: &Work) -> f64 {
        self.graph.get(id).elements(&work.bucket) as f64
    }

    /// Bytes of a value.
    fn value(&self, id: ValueId, work: &Work) -> f64 {
        self.elements(id, work) * self.sizes[id.idx()]
    }

    fn all(&self, ids: impl Iterator<Item = ValueId>, work: &Work) -> f64 {
        ids.map(|id| self.value(id, work)).sum()
    }

    /// Bytes of the rows of a table that a step meets, `most` at most.
    fn rows_met(&self, id: ValueId, most: f64, work: &Work) -> f64 {
        let rows = self.table_rows(id);
        self.value(id, work) * (most / rows).min(1.0)
    }

    /// Bytes of the rows of words, positions, types and prompts that a step meets: tokens may all be
    /// different words, texts have the same places.
    fn met(&self, tables: [Option<ValueId>; 4], work: &Work) -> f64 {
        let tokens = work.bucket.tokens as f64;
        let length = tokens / work.bucket.seqs.max(1) as f64;
        let each = tables.into_iter().zip([tokens, length, tokens, tokens]);
        each.filter_map(|(id, most)| Some(self.rows_met(id?, most, work)))
            .sum()
    }

    /// Bytes that an embedding gathers.
    fn gathered(&self, t: &Tables, work: &Work) -> f64 {
        let tables = [Some(t.word), Some(t.position), t.token_type, t.prompt];
        let rows = self.met(tables, work);
        rows + self.all([t.weight, t.bias].into_iter(), work)
    }

    /// Bytes of an embedding's gradients that it adds to: rows of tables, vectors whole.
    fn touched(&self, grads: [Option<ValueId>; 6], work: &Work) -> f64 {
        let [word, position, kind, weight, bias, prompt] = grads;
        let rows = self.met([word, position, kind, prompt], work);
        rows + self.all([weight, bias].into_iter().flatten(), work)
    }

    /// Rows of a table or output channels of a weight, whether it has a leading G or not.
    fn table_rows(&self, id: ValueId) -> f64 {
        let shape = &self.graph.get(id).shape;
        match shape.get(shape.len().wrapping_sub(2)) {
            Some(Dim::N(n)) => *n as f64,
            _ => 1.0,
        }
    }

    /// Operations of a contrastive loss's logits: each member's items meet one another.
    fn logits(&self, text: ValueId, work: &Work) -> f64 {
        let members = work.bucket.members.max(1);
        let n = work.bucket.items / members;
        members as f64 * product_flops(n, n, self.graph.channels(text))
    }

    /// Bytes, as f32, of everything that the optimiser owns of one kind.
    fn owned(&self, role: Role, work: &Work) -> f64 {
        let ids = self.graph.with_role(role);
        ids.map(|id| self.elements(id, work)).sum::<f64>() * 4.0
    }

    /// Gradient, values and both moments are read, all but the gradient written; on a device the
    /// gradient is read once more, for its norm, and the f16 copies are written.
    fn adam(&self, work: &Work) -> (f64, f64) {
        let (grads, values) = (
            self.owned(Role::Grad, work),
            self.owned(Role::Trainable, work),
        );
        let (again, copies) = match self.numbers {
            Numbers::F32 => (0.0, 0.0),
            Numbers::F16 => {
                let sizes = copy_sizes(self.graph);
                let copy = |id: ValueId| Some(self.elements(id, work) * sizes[id.idx()]?);
                let trained = self.graph.with_role(Role::Trainable);
                (grads, trained.filter_map(copy).sum())
            }
        };
        (grads + again + 3.0 * values, 3.0 * values + copies)
    }
}

/// Whether a term of the objective is left out.
fn is_off(pair: Pair, work: &Work) -> bool {
    pair.weight(&work.weights) == 0.0
}

/// Products of a contrastive loss's gradient: the logits again, and one for each side that takes a
/// gradient.
fn products_back(pair: Pair, weights: &LossWeights) -> f64 {
    let (_, a, b) = pair.flow(weights);
    1.0 + f64::from(u8::from(a)) + f64::from(u8::from(b))
}

/// How a value's numbers lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f16: activations.
    Half,
    /// f32: images, statistics, losses, what is small and sums.
    Single,
    /// f16 with what rounding took: unit rows.
    Unit,
}

/// How the values of a graph lie on a device.
pub fn kinds(graph: &Graph) -> Vec<Kind> {
    let mut out = vec![Kind::Half; graph.values.len()];
    for op in &graph.nodes {
        if let Op::L2Norm(op) = op {
            out[op.out.idx()] = Kind::Unit;
            if graph.get(op.inp).role == Role::Input {
                out[op.inp.idx()] = Kind::Single;
            }
        }
        let ids: &[ValueId] = match op {
            Op::LayerNorm(op) => &[op.stats],
            Op::Attention(op) => &[op.lse],
            Op::L2Norm(op) => &[op.norm],
            Op::Contrastive(op) => &[op.loss, op.lse, op.low],
            Op::Mse(op) => &[op.loss],
            Op::GradNorm(op) => &[op.norm],
            Op::Phm(op) => &[op.u, op.s],
            Op::PhmGrad(op) => &[op.ds, op.du],
            _ => &[],
        };
        ids.iter().for_each(|id| out[id.idx()] = Kind::Single);
    }
    out
}

/// Bytes of an element as kernels read it, by value.
fn device_sizes(graph: &Graph) -> Vec<f64> {
    let copies = copy_sizes(graph);
    let values = graph
        .values
        .iter()
        .zip(kinds(graph).into_iter().zip(copies));
    let size = values.map(|(v, (kind, copy))| match (v.role, kind) {
        (Role::Grad, _) => 4.0,
        (Role::Trainable, _) => copy.unwrap_or(4.0),
        (Role::Temp | Role::Output | Role::Input, Kind::Single | Kind::Unit) => 4.0,
        _ => 2.0,
    });
    size.collect()
}

/// Of weights that kernels read as f16 whoever owns them: those of products, which trained ones have
/// two of, biases beside them, and tables.
fn copy_sizes(graph: &Graph) -> Vec<Option<f64>> {
    let mut out = vec![None; graph.values.len()];
    let mut set = |id: ValueId, bytes: f64| out[id.idx()] = Some(bytes);
    for op in &graph.nodes {
        match op {
            Op::Linear(op) => {
                for p in &op.parts {
                    set(p.weight, 4.0);
                    let lora = p.lora.iter().flat_map(|l| [l.lora_a, l.lora_b]);
                    lora.chain(p.bias).for_each(|id| set(id, 2.0));
                }
            }
            Op::Embedding(op) => {
                let t = &op.tables;
                let kinds = t.token_type.into_iter();
                let tables = [t.word, t.position].into_iter().chain(kinds);
                tables.for_each(|id| set(id, 2.0));
            }
            _ => {}
        }
    }
    out
}
