//! What each node launches.

use std::collections::HashMap;
use std::ops::Range;

use super::memory::Memory;
use super::state::DeviceState;
use crate::cuda::ops::{
    Context, DeviceTensor, activation, add, attention, contrastive, embedding, gelu, l2_norm,
    layer_norm, linear, linear_weight, mse, phm, pool, vision_embedding,
};
use crate::cuda::{DriverError, Result};
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::ops::linear::grad::{BranchGrad, InputGrad, LoraGrad, WeightGrad};
use crate::ops::linear::{Columns, Linear, Lora, Part, columns};
use crate::ops::{
    Op, attention as op_attention, embedding as op_embedding, layer_norm as op_norm, phm as op_phm,
};
use crate::text::pack::Rows;

/// One run over nodes of a graph.
pub struct Run<'a> {
    /// Device and step.
    pub cx: Context<'a>,
    /// The graph.
    pub graph: &'a Graph,
    /// Frozen values.
    pub weights: &'a HashMap<ValueId, DeviceTensor>,
    /// Trainable values.
    pub state: &'a DeviceState,
    /// The arena's values.
    pub memory: &'a Memory,
    /// Whether a value's place held another before it.
    pub forget: bool,
}

impl Run<'_> {
    /// Launches what some nodes launch.
    pub fn nodes(&self, nodes: Range<usize>) -> Result<()> {
        for op in &self.graph.nodes[nodes] {
            self.begin(op)?;
            self.node(op)?;
        }
        Ok(())
    }

    /// Values are born unwritten, except in the place of one that dies here.
    fn begin(&self, op: &Op) -> Result<()> {
        if !self.forget {
            return Ok(());
        }
        let place = |id: ValueId| self.memory.tensors[id.idx()];
        let read: Vec<_> = op
            .reads()
            .into_iter()
            .filter_map(place)
            .map(|t| t.ptr)
            .collect();
        for t in op.writes().into_iter().filter_map(place) {
            if !read.contains(&t.ptr) {
                self.cx.driver.forget(t.ptr, t.len() * t.dtype.size())?;
            }
        }
        Ok(())
    }

    fn node(&self, op: &Op) -> Result<()> {
        match op {
            Op::ZeroGrads(_) => self.state.zero_grads(self.cx.driver),
            Op::Embedding(op) => self.embedding(op),
            Op::EmbeddingGrad(op) => self.embedding_grad(op),
            Op::Linear(op) => self.linear(op),
            Op::LoraGrad(op) => self.lora_grad(op),
            Op::WeightGrad(op) => self.weight_grad(op),
            Op::InputGrad(op) => self.input_grad(op),
            Op::GeluGrad(op) => {
                let (dinp, dout, inp) = (self.at(op.dinp), self.at(op.dout), self.at(op.inp));
                let kind = op.kind;
                let backward = gelu::Backward {
                    kind,
                    dinp,
                    dout,
                    inp,
                };
                gelu::backward(self.cx, &backward)
            }
            Op::Activation(op) => {
                let (kind, out, inp) = (op.kind, self.at(op.out), self.at(op.inp));
                activation::forward(self.cx, &activation::Forward { kind, out, inp })
            }
            Op::ActivationGrad(op) => activation::backward(
                self.cx,
                &activation::Backward {
                    kind: op.kind,
                    dinp: self.at(op.dinp),
                    dout: self.at(op.dout),
                    inp: self.at(op.inp),
                },
            ),
            Op::Phm(op) => phm::forward(
                self.cx,
                &phm::Forward {
                    inp: self.at(op.inp),
                    weights: self.phm_weights(&op.weights),
                    u: self.at(op.u),
                    s: self.at(op.s),
                    out: self.at(op.out),
                },
            ),
            Op::PhmGrad(op) => self.phm_grad(op),
            Op::Attention(op) => self.attention(op),
            Op::AttentionGrad(op) => self.attention_grad(op),
            Op::LayerNorm(op) => self.layer_norm(op),
            Op::LayerNormGrad(op) => self.layer_norm_grad(op),
            Op::Pool(op) => {
                let (pooling, out, inp) = (op.pooling, self.at(op.out), self.at(op.inp));
                pool::forward(self.cx, &pool::Forward { pooling, out, inp })
            }
            Op::PoolGrad(op) => {
                let (pooling, dinp, dout) = (op.pooling, self.at(op.dinp), self.at(op.dout));
                let backward = pool::Backward {
                    pooling,
                    dinp,
                    dout,
                };
                pool::backward(self.cx, &backward)
            }
            Op::L2Norm(op) => l2_norm::forward(
                self.cx,
                &l2_norm::Forward {
                    rows: op.rows,
                    out: self.at(op.out),
                    norm: self.at(op.norm),
                    inp: self.at(op.inp),
                },
            ),
            Op::L2NormGrad(op) => l2_norm::backward(
                self.cx,
                &l2_norm::Backward {
                    rows: op.rows,
                    dinp: self.at(op.dinp),
                    dout: self.at(op.dout),
                    out: self.at(op.out),
                    norm: self.at(op.norm),
                },
            ),
            Op::Contrastive(op) => contrastive::forward(
                self.cx,
                &contrastive::Forward {
                    pair: op.pair,
                    loss: self.at(op.loss),
                    lse: self.at(op.lse),
                    low: self.at(op.low),
                    terms: needed(self.memory.scratch.terms, "terms")?,
                    image: self.at(op.image),
                    text: self.at(op.text),
                },
            ),
            Op::ContrastiveGrad(op) => contrastive::backward(
                self.cx,
                &contrastive::Backward {
                    pair: op.pair,
                    dtext: self.at(op.dtext),
                    dimage: None,
                    image: self.at(op.image),
                    text: self.at(op.text),
                    lse: self.at(op.lse),
                    low: self.at(op.low),
                },
            ),
            Op::Mse(op) => {
                let (loss, text) = (self.at(op.loss), self.at(op.text));
                mse::forward(self.cx, &mse::Forward { loss, text })
            }
            Op::MseGrad(op) => {
                let (dtext, text) = (self.at(op.dtext), self.at(op.text));
                mse::backward(self.cx, &mse::Backward { dtext, text })
            }
            Op::Add(op) => add::forward(
                self.cx,
                &add::Forward {
                    rows: self.rows(op.out),
                    out: self.at(op.out),
                    a: self.at(op.a),
                    b: self.at(op.b),
                },
            ),
            Op::VisionEmbedding(op) => vision_embedding::forward(
                self.cx,
                &vision_embedding::Forward {
                    out: self.at(op.out),
                    patches: self.at(op.patches),
                    class: self.half(op.class),
                    position: self.half(op.position),
                },
            ),
            // The optimiser's kernels measure what they spend.
            Op::GradNorm(_) => Ok(()),
            Op::AdamStep(op) => self.state.step(self.cx, self.at(op.norm)),
        }
    }

    /// What the rows of a value are.
    fn rows(&self, id: ValueId) -> Rows {
        match self.graph.get(id).shape.first() {
            Some(Dim::Seqs) => Rows::Seqs,
            Some(Dim::Items) => Rows::Items,
            _ => Rows::Tokens,
        }
    }

    /// A value that the arena or a pass's input holds.
    fn at(&self, id: ValueId) -> DeviceTensor {
        match self.graph.get(id).role {
            Role::Input => self.memory.scratch.inputs[&id],
            _ => match self.memory.tensors[id.idx()] {
                Some(t) => t,
                None => unreachable!("{} has no place", self.graph.get(id).name),
            },
        }
    }

    /// A weight that kernels read as f16: frozen, or each member's copy of its values.
    fn half(&self, id: ValueId) -> DeviceTensor {
        match self.graph.get(id).role {
            Role::Frozen => self.weights[&id],
            _ => self.state.half(id),
        }
    }

    /// What rounding took from [`Run::half`] of a product's weight; nothing of a frozen one.
    fn low(&self, id: ValueId) -> Option<DeviceTensor> {
        match self.graph.get(id).role {
            Role::Frozen => None,
            _ => self.state.low(id),
        }
    }

    /// A vector that kernels read as it is: frozen f16, or each member's f32 values.
    fn vector(&self, id: ValueId) -> DeviceTensor {
        match self.graph.get(id).role {
            Role::Frozen => self.weights[&id],
            _ => self.state.value(id),
        }
    }

    fn grad(&self, id: Option<ValueId>) -> Option<DeviceTensor> {
        id.map(|id| self.state.grad(id))
    }

    /// The tables of an embedding.
    pub fn tables(&self, tables: &op_embedding::Tables) -> embedding::Tables {
        embedding::Tables {
            word: self.half(tables.word),
            position: self.half(tables.position),
            token_type: tables.token_type.map(|id| self.half(id)),
        }
    }

    fn embedding(&self, op: &op_embedding::Embedding) -> Result<()> {
        let forward = embedding::Forward {
            out: self.at(op.out),
            sum: op.sum.map(|id| self.at(id)),
            tables: self.tables(&op.tables),
            weight: self.vector(op.tables.weight),
            bias: self.vector(op.tables.bias),
            prompt: op.tables.prompt.map(|id| self.state.value(id)),
            eps: op.eps,
            dropout: op.dropout,
        };
        embedding::forward(self.cx, &forward)
    }

    fn embedding_grad(&self, op: &op_embedding::EmbeddingGrad) -> Result<()> {
        let scratch = &self.memory.scratch;
        let [z, dz] = needed(scratch.embedding, "sums of embeddings")?;
        let [word, position, token_type, weight, bias, dprompt] = op.grads.map(|id| self.grad(id));
        let norm = weight.or(bias).is_some();
        let backward = embedding::Backward {
            dz,
            dtables: [word, position, token_type],
            dprompt,
            prompt: op.tables.prompt.map(|id| self.state.value(id)),
            dweight: weight,
            dbias: bias,
            partials: scratch
                .partials
                .filter(|_| norm)
                .map(|t| self.cut(t, dz.cols)),
            z,
            stats: needed(scratch.stats, "statistics of embeddings")?,
            dout: self.at(op.dout),
            dsum: op.dsum.map(|id| self.at(id)),
            tables: self.tables(&op.tables),
            weight: self.vector(op.tables.weight),
            eps: op.eps,
            dropout: op.dropout,
        };
        embedding::backward(self.cx, &backward)
    }

    /// The scratch for sums over C columns: it is as wide as the widest needs.
    fn cut(&self, partials: DeviceTensor, c: usize) -> DeviceTensor {
        DeviceTensor::f32(partials.ptr, partials.rows, 2 * c)
    }

    fn phm_weights(&self, w: &op_phm::Weights) -> phm::Weights {
        // One number a row in checkpoints, K / n on the device: the same memory.
        let left = self.state.value(w.left);
        let n = self.graph.channels(w.rule);
        phm::Weights {
            rule: self.state.value(w.rule),
            left: flat(left, n),
            right: self.state.value(w.right),
            bias: self.state.value(w.bias),
        }
    }

    fn phm_grad(&self, op: &op_phm::grad::PhmGrad) -> Result<()> {
        let f = &op.forward;
        let [rule, left, right, bias] = op.dweights.map(|id| self.grad(id));
        let n = self.graph.channels(f.weights.rule);
        let backward = phm::Backward {
            inp: self.at(f.inp),
            weights: self.phm_weights(&f.weights),
            u: self.at(f.u),
            s: self.at(f.s),
            dout: self.at(op.dout),
            resid: op.resid.map(|id| self.at(id)),
            ds: self.at(op.ds),
            du: self.at(op.du),
            dinp: op.dinp.map(|id| self.at(id)),
            dweights: [rule, left.map(|t| flat(t, n)), right, bias],
        };
        phm::backward(self.cx, &backward)
    }

    fn attention(&self, op: &op_attention::Attention) -> Result<()> {
        let forward = attention::Forward {
            out: self.at(op.out),
            lse: self.at(op.lse),
            qkv: self.at(op.qkv),
            heads: op.heads,
            mask: op.mask,
            dropout: op.dropout,
        };
        attention::forward(self.cx, &forward)
    }

    fn attention_grad(&self, op: &op_attention::grad::AttentionGrad) -> Result<()> {
        let delta = self.memory.scratch.delta;
        let backward = attention::Backward {
            dqkv: self.at(op.dqkv),
            delta: delta.map(|t| DeviceTensor::f32(t.ptr, t.rows, op.heads)),
            qkv: self.at(op.qkv),
            dout: self.at(op.dout),
            lse: self.at(op.lse),
            heads: op.heads,
            mask: op.mask,
            dropout: op.dropout,
        };
        attention::backward(self.cx, &backward)
    }

    fn layer_norm(&self, op: &op_norm::LayerNorm) -> Result<()> {
        let forward = layer_norm::Forward {
            rows: op.rows,
            out: self.at(op.out),
            z: self.at(op.z),
            stats: self.at(op.stats),
            inp: self.at(op.inp),
            resid: op.resid.map(|id| self.at(id)),
            weight: self.vector(op.weight),
            bias: self.vector(op.bias),
            eps: op.eps,
            dropout: op.dropout,
        };
        layer_norm::forward(self.cx, &forward)
    }

    fn layer_norm_grad(&self, op: &op_norm::LayerNormGrad) -> Result<()> {
        let (dweight, dbias) = (self.grad(op.dweight), self.grad(op.dbias));
        let (z, wanted) = (self.at(op.z), dweight.or(dbias).is_some());
        let partials = self.memory.scratch.partials.filter(|_| wanted);
        let backward = layer_norm::Backward {
            rows: op.rows,
            dz: self.at(op.dz),
            dinp: op.dinp.map(|id| self.at(id)),
            dweight,
            dbias,
            partials: partials.map(|t| self.cut(t, z.cols)),
            dout: self.at(op.dout),
            z,
            stats: self.at(op.stats),
            weight: self.vector(op.weight),
            dropout: op.dropout,
        };
        layer_norm::backward(self.cx, &backward)
    }

    /// Some columns of a matrix.
    fn columns(&self, of: DeviceTensor, at: &Columns) -> DeviceTensor {
        DeviceTensor {
            ptr: of.ptr.offset(at.start * of.dtype.size()),
            cols: at.len,
            ..of
        }
    }

    fn linear(&self, op: &Linear) -> Result<()> {
        let inp = self.at(op.inp);
        let forward = linear::Forward {
            rows: op.rows,
            out: self.at(op.out),
            act: op.act.map(|(kind, id)| (kind, self.at(id))),
            inp,
            parts: &self.parts(&op.parts),
            tile: linear::Tile::of(inp.rows),
        };
        linear::forward(self.cx, &forward)
    }

    fn parts(&self, parts: &[Part]) -> Vec<linear::Part> {
        let lora = |l: Lora| linear::Lora {
            u: self.at(l.u),
            lora_a: self.state.half(l.lora_a),
            lora_b: self.state.half(l.lora_b),
            scale: l.scale,
            dropout: l.dropout,
        };
        let part = |p: &Part| linear::Part {
            weight: self.half(p.weight),
            low: self.low(p.weight),
            bias: p.bias.map(|id| self.half(id)),
            lora: p.lora.map(lora),
        };
        parts.iter().map(part).collect()
    }

    fn lora_grad(&self, op: &LoraGrad) -> Result<()> {
        let grad = |b: &BranchGrad| linear::BranchGrad {
            v: self.at(b.v),
            dlora_a: self.grad(b.dlora_a),
            dlora_b: self.grad(b.dlora_b),
        };
        let branches: Vec<_> = op.branches.iter().map(|b| b.as_ref().map(grad)).collect();
        let backward = linear::LoraBackward {
            rows: op.rows,
            dout: self.at(op.dout),
            inp: self.at(op.inp),
            parts: &self.parts(&op.parts),
            branches: &branches,
        };
        linear::lora_backward(self.cx, &backward)
    }

    fn weight_grad(&self, op: &WeightGrad) -> Result<()> {
        let at = &columns(self.graph, &op.parts)[op.part];
        let dout = self.columns(self.at(op.dout), at);
        let backward = linear_weight::Backward {
            rows: op.rows,
            dweight: self.grad(op.dweight),
            dbias: self.grad(op.dbias),
            dout,
            // A bias alone does not read the input, which may have died.
            inp: op.dweight.map_or(dout, |_| self.at(op.inp)),
        };
        linear_weight::backward(self.cx, &backward)
    }

    fn input_grad(&self, op: &InputGrad) -> Result<()> {
        let dinp = self.at(op.dinp);
        let v: Vec<_> = op
            .branches
            .iter()
            .map(|v| v.map(|id| self.at(id)))
            .collect();
        let backward = linear::InputBackward {
            rows: op.rows,
            dinp,
            dout: self.at(op.dout),
            resid: op.resid.map(|id| self.at(id)),
            parts: &self.parts(&op.parts),
            v: &v,
            tile: linear::Tile::of(dinp.rows),
        };
        linear::input_backward(self.cx, &backward)
    }
}

/// An unpadded tensor with its numbers in `rows` rows.
fn flat(t: DeviceTensor, rows: usize) -> DeviceTensor {
    let cols = t.rows * t.cols / rows;
    DeviceTensor::f32(t.ptr, rows, cols).per_member(t.members)
}

/// Scratch that the plan made for nodes of this kind.
fn needed<T>(scratch: Option<T>, what: &str) -> Result<T> {
    scratch.ok_or_else(|| DriverError::Failed {
        call: what.into(),
        reason: "the plan made no room for it".into(),
    })
}
