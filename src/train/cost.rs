//! What a method costs on a model, counted on the graph of its step.

use serde::Serialize;

use super::program::TrainProgram;
use crate::adapter::Adapter;
use crate::graph::plan::{Plan, Reuse};
use crate::graph::{Bucket, Graph, Role, Value};
use crate::weights::config::TextConfig;
use crate::weights::published;

/// Bytes of a trainable parameter: value, gradient and Adam's two moments, f32.
const BYTES_A_PARAMETER: usize = 16;

/// Parameters, memory and operations of a training step of one member.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Parameters that are trained.
    pub trainable_parameters: usize,
    /// Those of them that the model itself does not have.
    pub added_parameters: usize,
    /// Bytes of their values, gradients and moments.
    pub optimiser_bytes: usize,
    /// Bytes of the arena of activations and their gradients.
    pub arena_bytes: usize,
    /// The most that is alive in it at once.
    pub peak_bytes: usize,
    /// Floating-point operations a token of the forward pass: products of linear layers, branches
    /// and attention, a multiply-add being two.
    pub forward_flops: f64,
    /// The same of backward pass and optimiser.
    pub backward_flops: f64,
}

impl Cost {
    /// Counts a step of that size, of one member, whose texts are equally long; `pass` is the plan of
    /// its largest pass, which is the whole step unless it is cut in pieces.
    pub fn new(program: &TrainProgram, adapter: &Adapter, bucket: Bucket, pass: &Plan) -> Cost {
        let graph = &*program.graph;
        // Not by a state, which would hold four numbers a parameter.
        let trainable = graph.with_role(Role::Trainable).map(|id| graph.get(id));
        let (own, added): (Vec<_>, Vec<_>) = trainable.partition(|v| adapter.trains(&v.name));
        let count = |values: &[&Value]| values.iter().map(|v| v.elements(&bucket)).sum::<usize>();
        let trained = count(&own) + count(&added);
        let (forward, backward) = graph.nodes.split_at(program.forward_nodes);
        let a_token = |nodes: &[crate::ops::Op]| {
            let sum: f64 = nodes.iter().map(|n| n.flops(graph, &bucket)).sum();
            sum / bucket.tokens as f64
        };
        Cost {
            trainable_parameters: trained,
            added_parameters: count(&added),
            optimiser_bytes: trained * BYTES_A_PARAMETER,
            arena_bytes: pass.arena_len * 4,
            peak_bytes: pass.peak_len * 4,
            forward_flops: a_token(forward),
            backward_flops: a_token(backward),
        }
    }

    /// Trained parameters over all, those of a model of `parameters` and those added: the share that
    /// OpenDelta and the paper give.
    pub fn share(&self, parameters: usize) -> f64 {
        self.trainable_parameters as f64 / (parameters + self.added_parameters) as f64
    }
}

/// The most that a step brings to the tower and the objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Packed tokens.
    pub tokens: usize,
    /// Texts.
    pub seqs: usize,
    /// Items.
    pub items: usize,
    /// Tokens of the shortest text.
    pub shortest: usize,
    /// Tokens of the longest text.
    pub longest: usize,
}

impl Load {
    /// What both bring.
    pub fn plus(&self, other: &Load) -> Load {
        Load {
            tokens: self.tokens + other.tokens,
            seqs: self.seqs + other.seqs,
            items: self.items + other.items,
            shortest: self.shortest.min(other.shortest),
            longest: self.longest.max(other.longest),
        }
    }

    /// The passes that need most, in steps of so much or less: all at once, or with a limit on a
    /// pass's packed tokens the objective over all texts, and what fits in one pass.
    pub fn passes(&self, max_tokens: Option<usize>) -> Vec<Load> {
        let Some(limit) = max_tokens.filter(|n| *n < self.tokens) else {
            return vec![*self];
        };
        let seqs = self.seqs.min(limit / self.shortest.max(1));
        let objective = Load { tokens: 0, ..*self };
        let fits = Load {
            tokens: limit,
            seqs,
            // A smaller step, which fits, has its items beside its texts.
            items: self.items.min(seqs),
            ..*self
        };
        vec![objective, fits]
    }

    /// The plan of the one of [`Load::passes`] that needs most.
    pub fn largest_pass(&self, graph: &Graph, members: usize, max_tokens: Option<usize>) -> Plan {
        let plan = |load: &Load| {
            let bucket = Bucket::holding(load.tokens, load.seqs, load.items, members);
            Plan::new(graph, bucket, Reuse::Packed)
        };
        let passes = self.passes(max_tokens);
        let others = passes[1..].iter().map(plan);
        others.fold(plan(&passes[0]), |most, plan| {
            match plan.arena_len >= most.arena_len {
                true => plan,
                false => most,
            }
        })
    }
}

/// Whether it is the configuration of the paper's 0.16 %: LoRA of rank 8 beside query and value, and
/// the layer norms, of XLM-R Large under ViT-L/14.
pub fn is_the_papers(adapter: &Adapter, model: &TextConfig) -> bool {
    let paper = published::find(published::PAPERS);
    *adapter == Adapter::lora(8) && paper.is_some_and(|p| p.sizes() == model.sizes())
}
