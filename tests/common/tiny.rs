//! A tiny random text model, made without a file, and batches of random texts for it.

use std::sync::Arc;

use crosstune::adapter::bottleneck::BottleneckConfig;
use crosstune::adapter::compacter::CompacterConfig;
use crosstune::adapter::{Adapter, LINEAR_LAYERS, LoraConfig};
use crosstune::exec::state::TrainState;
use crosstune::exec::{Frozen, FrozenTensor};
use crosstune::graph::{Bucket, Graph, Role};
use crosstune::ops::philox::Stream;
use crosstune::text::pack::{Batch, Layout, MemberTexts, Text};
use crosstune::weights::config::{Encoder, TextConfig};

/// Two layers, no size a multiple of a vector; the FFN is longer than one pass of a product.
pub fn config() -> TextConfig {
    TextConfig {
        encoder: Encoder::XlmRoberta,
        vocab: 41,
        hidden: 35,
        layers: 2,
        heads: 5,
        ffn: 277,
        max_positions: 24,
        token_types: 1,
        layer_norm_eps: 1e-5,
        pad_id: 1,
        hidden_dropout: 0.1,
        attention_dropout: 0.1,
        embed_dim: 23,
    }
}

/// The same, small enough for finite differences.
pub fn smallest() -> TextConfig {
    TextConfig {
        vocab: 9,
        hidden: 6,
        heads: 3,
        ffn: 11,
        max_positions: 9,
        embed_dim: 5,
        ..config()
    }
}

/// Bottlenecks beside the sub-layers, and layer norms.
pub fn parallel(channels: usize) -> Adapter {
    let bottleneck = BottleneckConfig {
        channels,
        parallel: true,
    };
    Adapter {
        bottleneck: Some(bottleneck),
        ..Adapter::bottleneck(channels)
    }
}

/// Compacters of `n` blocks, which must divide the model and its bottleneck, and layer norms.
pub fn compacter(n: usize, reduction: usize) -> Adapter {
    let compacter = CompacterConfig {
        reduction,
        phm_dim: n,
    };
    Adapter {
        compacter: Some(compacter),
        ..Adapter::compacter(reduction)
    }
}

/// LoRA with dropout beside every linear layer, layer norms and head.
pub fn everything(rank: usize) -> Adapter {
    let lora = LoraConfig {
        rank,
        alpha: 2.0 * rank as f32,
        dropout: 0.2,
        targets: LINEAR_LAYERS.map(String::from).to_vec(),
        ..LoraConfig::default()
    };
    Adapter {
        lora: Some(lora),
        layer_norms: true,
        head: true,
        ..Adapter::default()
    }
}

/// Random values that keep activations near 1: weights of layer norms about 1, matrices by their
/// width.
pub fn random(seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
    let len = shape.iter().product();
    let stream = Stream::named(seed, name);
    let is_norm = ["LayerNorm", "layer_norm", "layernorm", "layrnorm"];
    if name.ends_with(".weight") && is_norm.iter().any(|n| name.contains(n)) {
        let mut x = stream.normal(len, 0.2);
        x.iter_mut().for_each(|v| *v += 1.0);
        return x;
    }
    let width = match shape.len() {
        1 => 25.0,
        _ if name.contains("embeddings") => 1.0,
        _ => *shape.last().expect("a matrix") as f32,
    };
    stream.normal(len, 1.0 / width.sqrt())
}

/// Random frozen weights of a graph.
pub fn frozen(graph: &Graph) -> Arc<Frozen> {
    let none = Bucket {
        tokens: 0,
        seqs: 0,
        items: 0,
        members: 0,
    };
    let mut frozen = Frozen::default();
    for id in graph.with_role(Role::Frozen) {
        let value = graph.get(id);
        let shape: Vec<usize> = value.shape.iter().map(|d| d.size(&none)).collect();
        let data = random(0, &value.name, &shape);
        frozen.insert(&value.name, FrozenTensor::Owned(Arc::new(data)));
    }
    Arc::new(frozen)
}

/// Random values of all trainable tensors, by each member's seed; `lora_B` is not zero, so that
/// every gradient is alive.
pub fn state(graph: &Graph, seeds: &[u64]) -> TrainState {
    let mut state = TrainState::new(graph, seeds.len());
    for t in 0..state.tensors.len() {
        for (g, seed) in seeds.iter().enumerate() {
            let tensor = &state.tensors[t];
            let values = random(*seed, &tensor.name, &tensor.shape);
            state.set_value(t, g, &values);
        }
    }
    state
}

/// The texts of one member at one step: (ids of anchors, ids of partners).
pub struct MemberData {
    anchors: Vec<Vec<u32>>,
    partners: Vec<Vec<u32>>,
    images: Vec<f32>,
}

impl MemberData {
    /// `items` random texts of 1 to `longest` tokens, as many partners where `paired`, and images
    /// of `e` channels; all by `seed`.
    pub fn new(
        seed: u64,
        (items, paired): (usize, bool),
        longest: usize,
        (vocab, e): (usize, usize),
    ) -> MemberData {
        let texts = |name: &str, n: usize| -> Vec<Vec<u32>> {
            let stream = |i: usize| Stream::named(seed, &format!("{name}{i}"));
            let below = |x: f32, n: usize| ((x + 1.0) * 0.5 * n as f32) as usize;
            (0..n)
                .map(|i| {
                    let x = stream(i).uniform(longest + 1, 1.0);
                    let len = 1 + below(x[0], longest).min(longest - 1);
                    let id = |v: &f32| below(*v, vocab).min(vocab - 1) as u32;
                    x[1..=len].iter().map(id).collect()
                })
                .collect()
        };
        MemberData {
            anchors: texts("anchor", items),
            partners: texts("partner", if paired { items } else { 0 }),
            images: Stream::named(seed, "images").normal(items * e, 1.0),
        }
    }

    /// Its image features, to spoil one.
    pub fn images_mut(&mut self) -> &mut [f32] {
        &mut self.images
    }

    fn texts(&self) -> MemberTexts<'_> {
        MemberTexts {
            anchors: texts_of(&self.anchors, 0),
            partners: texts_of(&self.partners, 1),
        }
    }
}

fn texts_of(rows: &[Vec<u32>], role: u8) -> Vec<Text<'_>> {
    rows.iter()
        .enumerate()
        .map(|(i, ids)| Text {
            ids,
            role,
            item: i as u32,
        })
        .collect()
}

/// Packs members in the given order.
pub fn pack(members: &[&MemberData], layout: Layout) -> Batch {
    let texts: Vec<MemberTexts<'_>> = members.iter().map(|m| m.texts()).collect();
    let images = members.iter().flat_map(|m| m.images.clone()).collect();
    Batch::pack(&texts, layout, images)
}

/// A pool of that many threads.
pub fn pool(threads: usize) -> Arc<rayon::ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
    Arc::new(builder.build().expect("threads"))
}
