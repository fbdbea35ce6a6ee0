//! What the benches of whole steps share: a text tower with random weights, and texts of the
//! lengths that captions have. No file is needed.

#![allow(dead_code)] // each bench uses its own part

pub mod place;
pub mod rig;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crosstune::adapter::{Adapter, initial};
use crosstune::engine::vision::{self, VisionProgram};
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, Frozen, FrozenTensor, LossWeights, MemberStep};
use crosstune::graph::cost::{Cost, Counter, Work};
use crosstune::graph::{Bucket, Graph, Role, ValueId};
use crosstune::model::text::DropoutRates;
use crosstune::ops::gelu::Gelu;
use crosstune::ops::philox::Stream;
use crosstune::text::pack::{Batch, MemberTexts, Text};
use crosstune::train::program::{EncodeProgram, TrainProgram};
use crosstune::weights::config::{Encoder, TextConfig};
use crosstune::weights::vision::VisionConfig;
use place::{Place, THREADS};
use rayon::prelude::*;

/// Sizes by name: the goldens' tower, XLM-R base, XLM-R large.
pub const SIZES: [&str; 3] = ["tiny", "base", "large"];

/// The tower of a size.
pub fn config(size: &str) -> Option<TextConfig> {
    let (vocab, layers, hidden, heads, ffn, embed_dim) = match size {
        "tiny" => (512, 3, 64, 4, 128, 48),
        "base" => (250_002, 12, 768, 12, 3072, 768),
        "large" => (250_002, 24, 1024, 16, 4096, 768),
        _ => return None,
    };
    Some(TextConfig {
        encoder: Encoder::XlmRoberta,
        vocab,
        hidden,
        layers,
        heads,
        ffn,
        max_positions: 514,
        token_types: 1,
        layer_norm_eps: 1e-5,
        pad_id: 1,
        hidden_dropout: 0.1,
        attention_dropout: 0.1,
        embed_dim,
    })
}

/// Vision towers by name: CLIP's.
pub const VISION_SIZES: [&str; 2] = ["vit-b32", "vit-l14"];

/// The vision tower of a name, for pictures of 224.
pub fn vision_config(size: &str) -> Option<VisionConfig> {
    let (layers, hidden, heads, patch, embed_dim) = match size {
        "vit-b32" => (12, 768, 12, 32, 512),
        "vit-l14" => (24, 1024, 16, 14, 768),
        _ => return None,
    };
    Some(VisionConfig {
        hidden,
        layers,
        heads,
        ffn: 4 * hidden,
        patch,
        grid: 224 / patch,
        embed_dim,
        gelu: Gelu::Quick,
        layer_norm_eps: 1e-5,
        patch_bias: false,
        pre_norm: true,
        projection: true,
    })
}

/// Tokens of the first captions of a split (`train.de`, `train.en`, `test.de`): those of
/// `tools/bench_lengths.json` in `CROSSTUNE_SHARED` or `../shared`, else a list like them.
pub fn lengths(split: &str) -> Vec<usize> {
    let shared = std::env::var_os("CROSSTUNE_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let file = std::fs::read_to_string(shared.join("tools/bench_lengths.json"));
    let all = file
        .ok()
        .and_then(|t| serde_json::from_str::<serde_json::Value>(&t).ok());
    let listed = all.as_ref().and_then(|v| v[split].as_array()).map(|list| {
        list.iter()
            .filter_map(|n| Some(n.as_u64()? as usize))
            .collect()
    });
    listed.unwrap_or_else(|| {
        const LIKE: [usize; 16] = [
            18, 18, 16, 21, 14, 22, 14, 24, 13, 20, 30, 12, 19, 35, 16, 25,
        ];
        let shorter = if split.ends_with("en") { 3 } else { 0 };
        (0..1000).map(|i| LIKE[i * 7 % 16] - shorter).collect()
    })
}

/// Ids of texts of the given lengths, uniform over the vocabulary.
fn random_texts(lengths: &[usize], vocab: usize, name: &str) -> Vec<Vec<u32>> {
    let stream = Stream::named(7, name);
    let total = lengths.iter().sum();
    let numbers = stream.uniform(total, 1.0);
    let mut ids = numbers
        .iter()
        .map(|u| 5 + ((u + 1.0) * 0.5 * (vocab - 6) as f32) as u32);
    lengths
        .iter()
        .map(|n| ids.by_ref().take(*n).collect())
        .collect()
}

/// The texts of a role, one an item.
pub fn texts(rows: &[Vec<u32>], role: u8) -> Vec<Text<'_>> {
    let text = |(i, ids)| Text {
        ids,
        role,
        item: i as u32,
    };
    rows.iter()
        .map(|r| r.as_slice())
        .enumerate()
        .map(text)
        .collect()
}

/// Random frozen weights. The word table is zero and never touched but for the rows that texts
/// use, so it costs no more memory than a mapped one.
fn random_frozen(graph: &Graph) -> Frozen {
    let none = Bucket {
        tokens: 0,
        seqs: 0,
        items: 0,
        members: 1,
    };
    let ids: Vec<ValueId> = graph.with_role(Role::Frozen).collect();
    let tensors: Vec<(String, Vec<f32>)> = ids
        .into_par_iter()
        .map(|id| {
            let value = graph.get(id);
            let n = value.elements(&none);
            let data = if value.name.ends_with("word_embeddings.weight") {
                vec![0.0; n]
            } else {
                random_tensor(&value.name, n)
            };
            (value.name.clone(), data)
        })
        .collect();
    let mut frozen = Frozen::default();
    for (name, data) in tensors {
        frozen.insert(name, FrozenTensor::Owned(Arc::new(data)));
    }
    frozen
}

fn random_tensor(name: &str, n: usize) -> Vec<f32> {
    let is_norm =
        name.contains("LayerNorm") || name.contains("layer_norm") || name.contains("layernorm");
    if is_norm && name.ends_with(".weight") {
        return vec![1.0; n];
    }
    Stream::named(1, name).uniform(n, 0.035)
}

fn random_state(graph: &Graph, members: usize) -> TrainState {
    let mut state = TrainState::new(graph, members);
    for t in 0..state.tensors.len() {
        let tensor = state.tensors[t].clone();
        for g in 0..members {
            let values = initial(&tensor.name, &tensor.shape, 1 + g as u64)
                .unwrap_or_else(|| random_tensor(&tensor.name, tensor.len));
            state.set_value(t, g, &values);
        }
    }
    state
}

/// A graph bound to random weights, and the batches that it runs over in turn.
pub struct Run {
    /// The executor.
    pub exec: Box<dyn Executor + Send>,
    /// What it runs.
    pub graph: Arc<Graph>,
    /// Packed batches.
    pub batches: Vec<Batch>,
    state: TrainState,
    members: Vec<MemberStep>,
    steps: usize,
}

impl Run {
    /// Training with method1/mse and LoRA of rank 8: two texts an item, 8 batches.
    pub fn train(c: &TextConfig, batch: usize, place: &Place) -> Run {
        Run::train_as(c, (&Adapter::lora(8), 1), batch, (place, THREADS), 0.0)
    }

    /// The same with another adapter, by `members` that share the items of a batch.
    pub fn train_as(
        c: &TextConfig,
        (adapter, members): (&Adapter, usize),
        batch: usize,
        (place, threads): (&Place, usize),
        dropout: f32,
    ) -> Run {
        let rates = DropoutRates {
            hidden: dropout,
            attention: dropout,
        };
        let program = TrainProgram::new(c, true, adapter, rates);
        let sides = ["train.de", "train.en"].map(|s| random_texts(&lengths(s), c.vocab, s));
        let items = sides[0].len().min(sides[1].len());
        let batches = (0..(items / batch).clamp(1, 8)).map(|b| {
            let end = ((b + 1) * batch).min(items);
            let each = (end - b * batch).div_ceil(members);
            let ranges = (0..members).map(|g| {
                let start = b * batch + g * each;
                start.min(end)..(start + each).min(end)
            });
            let of_member = |range: Range<usize>| MemberTexts {
                anchors: texts(&sides[0][range.clone()], 0),
                partners: texts(&sides[1][range], 1),
            };
            let all: Vec<MemberTexts<'_>> = ranges.map(of_member).collect();
            let images =
                Stream::named(b as u64, "images").normal((end - b * batch) * c.embed_dim, 1.0);
            Batch::pack(&all, adapter.layout(c), images)
        });
        Run::new(program.graph, batches.collect(), place, threads)
    }

    /// Encoding the first captions of `test.de`, `batch` of them at a time.
    pub fn encode(
        c: &TextConfig,
        captions: usize,
        batch: usize,
        (place, threads): (&Place, usize),
    ) -> Run {
        let graph = EncodeProgram::new(c, true, &Adapter::lora(8)).graph;
        let all = lengths("test.de");
        let rows = random_texts(&all[..captions.min(all.len())], c.vocab, "test.de");
        let batches = rows.chunks(batch).map(|rows| {
            let member = MemberTexts {
                anchors: texts(rows, 0),
                partners: vec![],
            };
            Batch::pack(&[member], Adapter::default().layout(c), vec![])
        });
        Run::new(graph, batches.collect(), place, threads)
    }

    /// Encoding so many random pictures at a time, 8 batches.
    pub fn vit(c: &VisionConfig, pictures: usize, (place, threads): (&Place, usize)) -> Run {
        let graph = VisionProgram::new(c).graph;
        let batches = (0..8).map(|b| {
            let n = pictures * 3 * c.image_size() * c.image_size();
            let pixels = Stream::named(b, "pixels").normal(n, 1.0);
            vision::batch(c, pictures, vision::patches(c, &pixels))
        });
        Run::new(graph, batches.collect(), place, threads)
    }

    fn new(graph: Arc<Graph>, batches: Vec<Batch>, place: &Place, threads: usize) -> Run {
        let frozen = random_frozen(&graph);
        let members = batches.first().map_or(1, |b| b.members.len());
        let state = random_state(&graph, members);
        let mut exec = place.executor(&graph, &frozen, &state, place::threads(threads));
        exec.load(&state).expect("loaded");
        let weights = LossWeights {
            image_anchor: 1.0,
            mse: 0.1,
            ..LossWeights::default()
        };
        let member = MemberStep {
            weights,
            ..MemberStep::default()
        };
        Run {
            exec,
            graph,
            batches,
            state,
            members: vec![member; members],
            steps: 0,
        }
    }

    /// Keeps the first batch, and others of the same lengths with ids and images of their own: steps
    /// over them in turn cost the same and find nothing of one another in a cache.
    pub fn alike(mut self, sets: usize, vocab: usize) -> Run {
        self.batches.truncate(1);
        for i in 1..sets {
            let mut batch = self.batches[0].clone();
            let name = format!("set {i}");
            let lengths = [batch.tokens()];
            batch.ids = random_texts(&lengths, vocab, &name).concat();
            batch.images = Stream::named(i as u64, &name).normal(batch.images.len(), 1.0);
            self.batches.push(batch);
        }
        self
    }

    /// Runs the next batch; returns its tokens.
    pub fn step(&mut self) -> usize {
        let batch = &self.batches[self.steps % self.batches.len()];
        for member in &mut self.members {
            member.step = self.steps as u32;
        }
        self.steps += 1;
        let ran = self.exec.run(&mut self.state, batch, &self.members);
        ran.expect("a step");
        batch.tokens()
    }

    /// Waits for what a device has not done yet.
    pub fn wait(&self) {
        let outputs = self.graph.with_role(Role::Output);
        if let Some(last) = outputs.last() {
            self.exec.output(last).expect("an output");
        }
    }

    /// What a step of the first batch costs at least.
    pub fn cost(&self, place: &Place) -> Cost {
        let work = Work::of(&self.batches[0], &self.members);
        Counter::new(&self.graph, place.numbers()).nodes(&self.graph.nodes, &work)
    }

    /// Trainable parameters.
    pub fn parameters(&self) -> usize {
        self.state.parameters()
    }
}
