//! The program of a step: the graph of tower, objective, backward and optimiser, and the memory it
//! is bound to.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::adapter::{Adapter, initial};
use crate::bad_input;
use crate::error::Result;
use crate::exec::state::{TrainState, TrainTensor};
use crate::exec::{Frozen, LossWeights};
use crate::graph::backward::backward_from;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::model::text::{DropoutRates, text_tower, word_embeddings};
use crate::ops::adam::{AdamStep, GradNorm, ZeroGrads};
use crate::ops::contrastive::{Contrastive, Pair};
use crate::ops::l2_norm::L2Norm;
use crate::ops::mse::Mse;
use crate::text::pack::Rows;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::config::TextConfig;
use crate::weights::stored::Stored;
use crate::weights::text_model::TextModelFiles;
use crate::weights::view::TensorView;

/// The terms of the objective, as the graph's outputs (G, 1), before their weights.
#[derive(Clone, Copy, Debug)]
pub struct Losses {
    /// itc(image, anchor).
    pub image_anchor: ValueId,
    /// mse(anchor, partner).
    pub mse: ValueId,
    /// itc(partner, anchor).
    pub partner_anchor: ValueId,
    /// itc(image, partner).
    pub image_partner: ValueId,
}

/// The parts of a step: ranges of the graph's nodes, which together are all of them, in this order.
/// A step may repeat the ones between the first and the last over several batches: gradients add up.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Zeroes the gradients.
    pub begin: Range<usize>,
    /// From texts to features.
    pub tower: Range<usize>,
    /// From features to losses and to the gradient of the features.
    pub objective: Range<usize>,
    /// From the gradient of the features to that of every trainable tensor.
    pub tower_grad: Range<usize>,
    /// The gradient's norm and the optimiser.
    pub update: Range<usize>,
}

/// The graph of a training step.
pub struct TrainProgram {
    /// Forward, backward and optimiser.
    pub graph: Arc<Graph>,
    /// Its parts.
    pub parts: Parts,
    /// (S, E) features of the step's texts.
    pub features: ValueId,
    /// (S, E) gradient of the features; it lives from the objective to the gradient of the tower.
    pub dfeatures: ValueId,
    /// The objective's terms.
    pub losses: Losses,
    /// (G, 1) norm of each member's gradient.
    pub grad_norm: ValueId,
    /// Gradient of each trainable value.
    pub grads: HashMap<ValueId, ValueId>,
    /// Nodes of the forward pass, objective included.
    pub forward_nodes: usize,
}

/// The graph that turns texts into features.
pub struct EncodeProgram {
    /// The tower alone.
    pub graph: Arc<Graph>,
    /// (S, E) features, not normalised.
    pub features: ValueId,
}

impl TrainProgram {
    /// Tower, objective, backward and optimiser. Every strategy and text loss shares this graph:
    /// they are data of a member.
    pub fn new(c: &TextConfig, head: bool, adapter: &Adapter, rates: DropoutRates) -> TrainProgram {
        let mut g = Graph::new();
        g.nodes.push(ZeroGrads.into());
        let features = text_tower(&mut g, c, head, adapter, rates);
        g.get_mut(features).role = Role::Output;
        let tower = 1..g.nodes.len();
        let losses = objective(&mut g, features);
        let forward_nodes = g.nodes.len();
        let mut grads = backward_from(&mut g, &[], &[features]);
        let dfeatures = grads
            .remove(&features)
            .unwrap_or_else(|| panic!("no loss reads the features"));
        let first_grad = writer(&g, dfeatures) + 1;
        let last_grad = g.nodes.len();
        let grad_norm = GradNorm::push(&mut g, "grad_norm");
        g.nodes.push(AdamStep { norm: grad_norm }.into());
        g.check();
        let parts = Parts {
            begin: 0..1,
            objective: tower.end..first_grad,
            tower,
            tower_grad: first_grad..last_grad,
            update: last_grad..g.nodes.len(),
        };
        TrainProgram {
            graph: Arc::new(g),
            parts,
            features,
            dfeatures,
            losses,
            grad_norm,
            grads,
            forward_nodes,
        }
    }
}

/// The node that writes a value.
fn writer(g: &Graph, id: ValueId) -> usize {
    let writes = |node: &crate::ops::Op| node.writes().contains(&id);
    let found = g.nodes.iter().position(writes);
    found.unwrap_or_else(|| panic!("{} has no writer", g.get(id).name))
}

impl EncodeProgram {
    /// The tower without dropout.
    pub fn new(c: &TextConfig, head: bool, adapter: &Adapter) -> EncodeProgram {
        let mut g = Graph::new();
        let adapter = adapter.without_dropout();
        let features = text_tower(&mut g, c, head, &adapter, DropoutRates::NONE);
        g.get_mut(features).role = Role::Output;
        g.check();
        EncodeProgram {
            graph: Arc::new(g),
            features,
        }
    }
}

fn objective(g: &mut Graph, features: ValueId) -> Losses {
    let e = g.channels(features);
    let images = g.value("images", vec![Dim::Items, Dim::N(e)], Role::Input);
    let mse = Mse::push(g, "loss.mse", features);
    let text = L2Norm::push(g, "features.unit", features, Rows::Seqs);
    let image = L2Norm::push(g, "images.unit", images, Rows::Items);
    let mut itc = |name: &str, pair| Contrastive::push(g, name, pair, image, text);
    Losses {
        image_anchor: itc("loss.image_anchor", Pair::ImageAnchor),
        mse,
        partner_anchor: itc("loss.partner_anchor", Pair::PartnerAnchor),
        image_partner: itc("loss.image_partner", Pair::ImagePartner),
    }
}

impl Losses {
    /// (image-text part, text-text part before its ratio) of a member, and their weighted sum.
    pub fn combine(weights: &LossWeights, terms: [f32; 4]) -> ([f32; 2], f32) {
        let [image_anchor, mse, partner_anchor, image_partner] = terms;
        let aux = [
            (weights.mse, mse),
            (weights.partner_anchor, partner_anchor),
            (weights.image_partner, image_partner),
        ];
        let part = aux.iter().find(|(w, _)| *w != 0.0).map_or(0.0, |(_, l)| *l);
        let sum = aux
            .iter()
            .map(|(w, l)| if *w == 0.0 { 0.0 } else { w * l })
            .sum::<f32>();
        (
            [image_anchor, part],
            weights.image_anchor * image_anchor + sum,
        )
    }
}

/// An opened text model that graphs can be bound to.
pub struct TextModel {
    /// Sizes and settings.
    pub config: TextConfig,
    /// Whether there is a linear head.
    pub head: bool,
    weights: Stored,
}

impl TextModel {
    /// Shares the mapped weights of an opened folder.
    pub fn new(files: TextModelFiles) -> TextModel {
        TextModel {
            config: files.config,
            head: files.head,
            weights: files.weights,
        }
    }

    /// The checkpoint.
    pub fn weights(&self) -> &Checkpoint {
        self.weights.checkpoint()
    }

    /// A frozen value of a graph, where it lies in the checkpoint.
    ///
    /// # Errors
    /// If the checkpoint lacks it.
    pub fn frozen(&self, value: &str) -> Result<TensorView<'_>> {
        self.weights.view(value)
    }

    /// Gives back the pages of a value that has been copied.
    pub fn release(&self, value: &str) {
        self.weights.release(value);
    }

    /// Binds the frozen weights of `graph`; see [`Stored::bind`].
    ///
    /// # Errors
    /// If the checkpoint lacks one.
    pub fn bind(&self, graph: &Graph) -> Result<Frozen> {
        self.weights.bind(graph)
    }

    /// Rows of the word table (ids, C).
    fn word_embeddings(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let view = self.weights.view(word_embeddings(&self.config))?;
        let vocab = self.config.vocab;
        let row = view.bytes.len() / vocab;
        let mut values = Vec::new();
        for &id in ids {
            let Some(bytes) = view.bytes.get(id as usize * row..(id as usize + 1) * row) else {
                return Err(bad_input!(
                    "prompt: its words have the token {id}, but the model has {vocab} word embeddings"
                ));
            };
            values.extend(TensorView { bytes, ..view }.to_f32());
        }
        Ok(values)
    }

    fn initial_values(&self, t: &TrainTensor, adapter: &Adapter, seed: u64) -> Result<Vec<f32>> {
        if let Some(words) = adapter.prompt_words(&t.name) {
            return self.word_embeddings(&words.ids);
        }
        match initial(&t.name, &t.shape, seed) {
            Some(values) => Ok(values),
            None => Ok(self.weights.view(&t.name)?.to_f32()),
        }
    }

    /// Trainable state of `graph` with initial values: the checkpoint's where it has the tensor, the
    /// adapter's own otherwise, by each member's seed.
    ///
    /// # Errors
    /// If a tensor has neither.
    pub fn init(&self, graph: &Graph, adapter: &Adapter, seeds: &[u64]) -> Result<TrainState> {
        let mut state = TrainState::new(graph, seeds.len());
        for t in 0..state.tensors.len() {
            let tensor = state.tensors[t].clone();
            for (g, seed) in seeds.iter().enumerate() {
                let values = self.initial_values(&tensor, adapter, *seed)?;
                if values.len() != tensor.len {
                    let (found, want) = (values.len(), tensor.len);
                    return Err(bad_input!(
                        "{}: {found} elements, expected {want}",
                        tensor.name
                    ));
                }
                state.set_value(t, g, &values);
            }
        }
        Ok(state)
    }
}
