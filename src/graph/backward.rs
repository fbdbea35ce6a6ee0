//! Backward as a rewrite of the graph: gradient nodes are appended to the forward nodes.

use std::collections::HashMap;

use super::{Graph, Role, ValueId};
use crate::ops::{Op, add::Add};

/// State of the rewrite, handed to each op's `grad`.
pub struct Backward<'g> {
    /// The graph that grows.
    pub graph: &'g mut Graph,
    needs: Vec<bool>,
    grads: HashMap<ValueId, ValueId>,
}

/// Appends the gradient nodes of every node that has a trainable ancestor.
///
/// The roots are the loss nodes: they need no incoming gradient, since their weights are data of a
/// member. Nothing is computed for frozen weights, and nothing at all below the lowest trainable
/// tensor. A saved activation needs no mechanism: a gradient node that names a forward value
/// stretches its life.
///
/// Returns the gradient of each trainable value.
pub fn backward(graph: &mut Graph) -> HashMap<ValueId, ValueId> {
    backward_from(graph, &[], &[])
}

/// The same for a piece of a program: it also starts from `seeds`, pairs of a value and its given
/// gradient, and also returns the gradients of `wanted`, which need not be trainable.
pub fn backward_from(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wanted: &[ValueId],
) -> HashMap<ValueId, ValueId> {
    let mut needs: Vec<bool> = graph
        .values
        .iter()
        .map(|v| v.role == Role::Trainable)
        .collect();
    wanted.iter().for_each(|id| needs[id.idx()] = true);
    for node in &graph.nodes {
        if node.reads().iter().any(|r| needs[r.idx()]) {
            for w in node.writes() {
                needs[w.idx()] = true;
            }
        }
    }
    let trainable: Vec<ValueId> = graph.with_role(Role::Trainable).collect();
    let mut grads: HashMap<ValueId, ValueId> = seeds.iter().copied().collect();
    for id in trainable {
        let value = graph.get(id);
        let (name, shape) = (format!("d.{}", value.name), value.shape.clone());
        grads.insert(id, graph.value(name, shape, Role::Grad));
    }
    let forward = graph.nodes.clone();
    let mut bw = Backward {
        graph,
        needs,
        grads,
    };
    for node in forward.iter().rev() {
        let differentiable = node.reads().iter().any(|&r| bw.needs(r));
        let reached = node.is_loss() || node.writes().iter().any(|w| bw.grads.contains_key(w));
        if differentiable && reached {
            node.grad(&mut bw);
        }
    }
    let Backward {
        graph, mut grads, ..
    } = bw;
    grads.retain(|id, _| graph.get(*id).role == Role::Trainable || wanted.contains(id));
    grads
}

impl Backward<'_> {
    /// Whether the gradient of a forward value is wanted.
    pub fn needs(&self, id: ValueId) -> bool {
        self.needs.get(id.idx()).copied().unwrap_or(false)
    }

    /// The gradient that later nodes left for `id`.
    pub fn grad_of(&self, id: ValueId) -> Option<ValueId> {
        self.grads.get(&id).copied()
    }

    /// The gradient to accumulate into, if `id` is trainable.
    pub fn param_grad(&self, id: ValueId) -> Option<ValueId> {
        (self.graph.get(id).role == Role::Trainable).then(|| self.grads[&id])
    }

    /// A new value shaped like `id`, named as its gradient.
    pub fn like(&mut self, id: ValueId) -> ValueId {
        let value = self.graph.get(id);
        let (name, shape) = (format!("d.{}", value.name), value.shape.clone());
        self.graph.value(name, shape, Role::Temp)
    }

    /// Appends a gradient node.
    pub fn push(&mut self, op: impl Into<Op>) {
        self.graph.nodes.push(op.into());
    }

    /// Records `grad` as the gradient of `id`, replacing what was there: for an op that took the
    /// former gradient in as its residual.
    pub fn set(&mut self, id: ValueId, grad: ValueId) {
        self.grads.insert(id, grad);
    }

    /// Records a further contribution to the gradient of `id`: an explicit add where there is one
    /// already.
    pub fn contribute(&mut self, id: ValueId, grad: ValueId) {
        let Some(former) = self.grad_of(id) else {
            self.set(id, grad);
            return;
        };
        let out = self.like(id);
        self.push(Add {
            a: former,
            b: grad,
            out,
        });
        self.set(id, out);
    }
}
