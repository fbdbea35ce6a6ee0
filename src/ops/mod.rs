//! The ops: about twenty fused ones, the only vocabulary of the graph.
//!
//! Each file is one stem: contract, shapes, gradient rule, serial reference, fast CPU code. An op
//! names the values it reads and writes, so that a node is the op and nothing else.

pub mod activation;
pub mod adam;
pub mod add;
pub mod attention;
pub mod contrastive;
pub mod embedding;
pub mod fast;
pub mod gelu;
pub mod gemm;
pub mod l2_norm;
pub mod layer_norm;
pub mod linear;
pub mod mse;
pub mod philox;
pub mod phm;
pub mod pool;
pub mod real;
pub mod vision_embedding;

use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Bucket, Graph, ValueId};
use crate::text::pack::Chunk;
use real::Real;

/// What every op tells the graph, and how it runs.
pub trait Node {
    /// The values it reads, gradients that it accumulates into excepted.
    fn reads(&self) -> Vec<ValueId>;

    /// The values it writes, gradients that it accumulates into excepted.
    fn writes(&self) -> Vec<ValueId>;

    /// Pairs (written, read) that may share a place when the read one dies here.
    fn inplace(&self) -> Vec<(ValueId, ValueId)> {
        Vec::new()
    }

    /// Appends the gradient nodes. Gradient nodes have no gradient of their own.
    fn grad(&self, _: &mut Backward<'_>) {}

    /// Whether it is a root of the backward pass.
    fn is_loss(&self) -> bool {
        false
    }

    /// Floating-point operations of its products in a step of that size, a multiply-add being two;
    /// texts count as equally long. What goes over its input once counts nothing.
    fn flops(&self, _: &Graph, _: &Bucket) -> f64 {
        0.0
    }

    /// The specification: plain loops, in order, one thread.
    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>);

    /// The fast version on this machine's cores.
    fn cpu(&self, mem: &mut CpuMem<'_>);
}

macro_rules! ops {
    ($($variant:ident($path:path)),* $(,)?) => {
        /// A node of the graph.
        #[derive(Clone, Debug)]
        pub enum Op {
            $(
                #[doc = concat!("See [`", stringify!($path), "`].")]
                $variant($path),
            )*
        }

        $(impl From<$path> for Op {
            fn from(op: $path) -> Op {
                Op::$variant(op)
            }
        })*

        impl Op {
            /// The name of every op, for tables that must hold all.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($variant)),*];

            /// The op's name, for plans and errors.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Op::$variant(_) => stringify!($variant),)*
                }
            }

            /// See [`Node::reads`].
            pub fn reads(&self) -> Vec<ValueId> {
                match self {
                    $(Op::$variant(op) => op.reads(),)*
                }
            }

            /// See [`Node::writes`].
            pub fn writes(&self) -> Vec<ValueId> {
                match self {
                    $(Op::$variant(op) => op.writes(),)*
                }
            }

            /// See [`Node::inplace`].
            pub fn inplace(&self) -> Vec<(ValueId, ValueId)> {
                match self {
                    $(Op::$variant(op) => op.inplace(),)*
                }
            }

            /// See [`Node::grad`].
            pub fn grad(&self, bw: &mut Backward<'_>) {
                match self {
                    $(Op::$variant(op) => op.grad(bw),)*
                }
            }

            /// See [`Node::is_loss`].
            pub fn is_loss(&self) -> bool {
                match self {
                    $(Op::$variant(op) => op.is_loss(),)*
                }
            }

            /// See [`Node::flops`].
            pub fn flops(&self, graph: &Graph, bucket: &Bucket) -> f64 {
                match self {
                    $(Op::$variant(op) => op.flops(graph, bucket),)*
                }
            }

            /// See [`Node::reference`].
            pub fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
                match self {
                    $(Op::$variant(op) => op.reference(mem),)*
                }
            }

            /// See [`Node::cpu`].
            pub fn cpu(&self, mem: &mut CpuMem<'_>) {
                match self {
                    $(Op::$variant(op) => op.cpu(mem),)*
                }
            }
        }
    };
}

ops! {
    ZeroGrads(adam::ZeroGrads),
    Embedding(embedding::Embedding),
    EmbeddingGrad(embedding::EmbeddingGrad),
    VisionEmbedding(vision_embedding::VisionEmbedding),
    Linear(linear::Linear),
    LoraGrad(linear::grad::LoraGrad),
    WeightGrad(linear::grad::WeightGrad),
    InputGrad(linear::grad::InputGrad),
    GeluGrad(gelu::GeluGrad),
    Activation(activation::Activation),
    ActivationGrad(activation::ActivationGrad),
    Phm(phm::Phm),
    PhmGrad(phm::grad::PhmGrad),
    Attention(attention::Attention),
    AttentionGrad(attention::grad::AttentionGrad),
    LayerNorm(layer_norm::LayerNorm),
    LayerNormGrad(layer_norm::LayerNormGrad),
    Pool(pool::Pool),
    PoolGrad(pool::PoolGrad),
    L2Norm(l2_norm::L2Norm),
    L2NormGrad(l2_norm::L2NormGrad),
    Contrastive(contrastive::Contrastive),
    ContrastiveGrad(contrastive::ContrastiveGrad),
    Mse(mse::Mse),
    MseGrad(mse::MseGrad),
    Add(add::Add),
    GradNorm(adam::GradNorm),
    AdamStep(adam::AdamStep),
}

/// Operations of a product: two for each of the three extents' multiply-adds.
pub(crate) fn product_flops(m: usize, n: usize, k: usize) -> f64 {
    2.0 * m as f64 * n as f64 * k as f64
}

/// Cuts rows of `width` elements at the chunks, which follow one another from row 0.
pub(crate) fn split_rows<'a>(
    mut data: &'a mut [f32],
    chunks: &[Chunk],
    width: usize,
) -> Vec<&'a mut [f32]> {
    let mut out = Vec::with_capacity(chunks.len());
    for c in chunks {
        let (head, tail) = data.split_at_mut((c.end - c.start) * width);
        out.push(head);
        data = tail;
    }
    out
}

/// A member's copy of a parameter, or the one frozen copy.
pub(crate) fn member_slice<T>(data: &[T], per_member: bool, member: usize, len: usize) -> &[T] {
    let start = if per_member { member * len } else { 0 };
    &data[start..start + len]
}
