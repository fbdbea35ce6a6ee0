//! A model of time: what a node takes at least on a card, from what it costs and what the card can.
//!
//! A kernel moves its bytes and makes its products at once, so the longer of the two counts; each
//! launch costs its own on top. It knows no tails of waves and no caches between kernels: a step
//! measured at twice the model is worth a look, one measured below it is a mistake here.

use crate::graph::Graph;
use crate::graph::cost::{Cost, Counter, Numbers, Work};
use crate::ops::Op;

/// What a card can, each figure with where it is from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// For people.
    pub name: &'static str,
    /// What the driver's name of it holds.
    pub mark: &'static str,
    /// Bytes a second to and from its memory: its data sheet.
    pub memory: f64,
    /// The share of it that kernels in 16-byte accesses reach.
    pub memory_share: f64,
    /// Operations a second of its tensor cores, f16 with f32 sums, dense: its data sheet.
    pub tensor: f64,
    /// The share of it that `mma.sync` reaches, which is what our products are made of.
    pub tensor_share: f64,
    /// Instructions a second that its warps issue: one a cycle in each of an SM's four schedulers, at the
    /// clock that its data sheet's figure for tensor cores is for.
    pub issue: f64,
    /// Seconds of a launch in a captured list, the one before being done.
    pub launch: f64,
    /// Where each figure is from.
    pub sources: &'static str,
}

/// A dependent node of a captured list, about 1 us: what this project's design counts with. No card
/// has measured it here yet.
const LAUNCH: f64 = 1e-6;

/// Of data-sheet bandwidth: the goal set for memory-bound kernels here.
const STREAM: f64 = 0.85;

/// The cards that the model knows.
pub const CARDS: [Card; 3] = [
    Card {
        name: "H100 SXM",
        mark: "H100",
        memory: 3.35e12,
        memory_share: STREAM,
        tensor: 989.4e12,
        tensor_share: 0.35,
        issue: 132.0 * 4.0 * 1.83e9,
        launch: LAUNCH,
        sources: "memory, tensor cores and 132 SMs: NVIDIA's H100 data sheet (half of the figure with \
                  sparsity); mma.sync: worklogs of hand-written products reach 300 to 400 TFLOP/s, \
                  where wgmma reaches 800",
    },
    Card {
        name: "A100 80 GB SXM",
        mark: "A100",
        memory: 2.039e12,
        memory_share: STREAM,
        tensor: 312e12,
        tensor_share: 0.67,
        issue: 108.0 * 4.0 * 1.41e9,
        launch: LAUNCH,
        sources: "memory, tensor cores and 108 SMs: NVIDIA's A100 data sheet; mma.sync: MLPerf Training v3.0's \
                  BERT Large on 8 A100 comes to 210 TFLOP/s a card over whole steps",
    },
    Card {
        name: "L4",
        mark: "L4",
        memory: 300e9,
        memory_share: STREAM,
        tensor: 121e12,
        tensor_share: 0.67,
        issue: 58.0 * 4.0 * 2.04e9,
        launch: LAUNCH,
        sources: "memory, tensor cores and 58 SMs: NVIDIA's L4 data sheet (half of the figure with sparsity); \
                  mma.sync: no record known, taken to be the A100's share",
    },
];

impl Card {
    /// The card that a driver names so; none for those of the same name with slower memory.
    pub fn find(device: &str) -> Option<&'static Card> {
        let words = || device.split(|c: char| !c.is_ascii_alphanumeric());
        let slower = |w: &str| ["PCIe", "PCIE", "NVL", "40GB"].contains(&w);
        let of_mark = |c: &&Card| words().any(|w| w == c.mark) && !words().any(slower);
        CARDS.iter().find(of_mark)
    }

    /// What a time by the model goes by, in a line.
    pub fn describe(&self) -> String {
        format!(
            "{}: {:.0} % of {:.2} TB/s, {:.0} % of {:.0} TFLOP/s, {:.2} T instructions/s, {:.0} us a launch; {}",
            self.name,
            self.memory_share * 100.0,
            self.memory / 1e12,
            self.tensor_share * 100.0,
            self.tensor / 1e12,
            self.issue / 1e12,
            self.launch * 1e6,
            self.sources
        )
    }

    /// Seconds of so many launches that together cost `cost`.
    pub fn seconds(&self, cost: &Cost, launches: usize) -> f64 {
        let bytes = cost.bytes() / (self.memory * self.memory_share);
        let products = cost.flops / (self.tensor * self.tensor_share);
        bytes.max(products) + launches as f64 * self.launch
    }
}

/// What the nodes of one op come to in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Name of the op.
    pub op: &'static str,
    /// Nodes.
    pub nodes: usize,
    /// Launches of all of them.
    pub launches: usize,
    /// What they move and compute.
    pub cost: Cost,
    /// Seconds by card, in the order of [`CARDS`].
    pub seconds: [f64; 3],
}

/// What each op of a graph comes to in a step of so much, the dearest on the first card first.
pub fn estimate(graph: &Graph, work: &Work) -> Vec<Estimate> {
    let counter = Counter::new(graph, Numbers::F16);
    let mut rows: Vec<Estimate> = Vec::new();
    for node in &graph.nodes {
        let (op, cost, n) = (node.name(), counter.node(node, work), launches(node));
        let at = rows.iter().position(|r| r.op == op).unwrap_or_else(|| {
            rows.push(Estimate {
                op,
                nodes: 0,
                launches: 0,
                cost: Cost::default(),
                seconds: [0.0; 3],
            });
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.nodes += 1;
        row.launches += n;
        row.cost = row.cost + cost;
        for (sum, card) in row.seconds.iter_mut().zip(&CARDS) {
            *sum += card.seconds(&cost, n);
        }
    }
    rows.sort_by(|a, b| b.seconds[0].total_cmp(&a.seconds[0]));
    rows
}

/// Kernels and fills that a node launches on a device, texts being short (`tests/device.rs` counts
/// them).
pub fn launches(op: &Op) -> usize {
    let some = |n: bool| usize::from(n);
    match op {
        Op::Linear(op) => 1 + some(op.parts.iter().any(|p| p.lora.is_some())),
        Op::LoraGrad(op) => {
            let branches = || op.branches.iter().flatten();
            let sums = branches().any(|b| b.dlora_a.or(b.dlora_b).is_some());
            1 + some(sums)
        }
        Op::WeightGrad(op) => some(op.dweight.is_some()) + some(op.dbias.is_some()),
        Op::LayerNormGrad(op) => 1 + some(op.dweight.or(op.dbias).is_some()),
        Op::EmbeddingGrad(op) => {
            let [word, position, kind, weight, bias, prompt] = op.grads;
            let tables = [word, position, kind, prompt].iter().flatten().count();
            2 + some(weight.or(bias).is_some()) + tables
        }
        Op::PhmGrad(op) => 1 + some(op.dweights.iter().any(Option::is_some)),
        Op::Contrastive(_) => 2,
        // The optimiser measures what it spends.
        Op::GradNorm(_) => 0,
        Op::AdamStep(_) => 3,
        _ => 1,
    }
}
