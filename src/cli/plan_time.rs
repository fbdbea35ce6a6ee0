//! `crosstune plan --time`: a step by the model of time.

use std::fmt::Write as _;

use crosstune::exec::LossWeights;
use crosstune::graph::cost::Work;
use crosstune::graph::{Bucket, Graph};
use crosstune::profile::card::{CARDS, Card, Estimate, estimate};
use serde_json::{Value, json};

/// A step's estimates.
pub struct Time {
    rows: Vec<Estimate>,
    tokens: usize,
}

impl Time {
    /// Of a step of one member whose objective is that of most runs: images and anchors, and the
    /// partner's distance.
    pub fn new(graph: &Graph, bucket: Bucket) -> Time {
        let weights = LossWeights {
            image_anchor: 1.0,
            mse: 1.0,
            ..LossWeights::default()
        };
        Time {
            rows: estimate(graph, &Work { bucket, weights }),
            tokens: bucket.tokens,
        }
    }

    fn seconds(&self, card: usize) -> f64 {
        self.rows.iter().map(|r| r.seconds[card]).sum()
    }

    /// As JSON, seconds in the order of the cards.
    pub fn json(&self) -> Value {
        let row = |r: &Estimate| {
            json!({
                "op": r.op, "nodes": r.nodes, "launches": r.launches, "bytes": r.cost.bytes(),
                "flops": r.cost.flops, "seconds": r.seconds,
            })
        };
        let card = |(i, c): (usize, &Card)| {
            json!({
                "name": c.name, "step_seconds": self.seconds(i),
                "tokens_per_second": self.tokens as f64 / self.seconds(i),
                "memory_bytes_per_second": c.memory, "memory_share": c.memory_share,
                "tensor_flops_per_second": c.tensor, "tensor_share": c.tensor_share,
                "launch_seconds": c.launch, "sources": c.sources,
            })
        };
        json!({
            "cards": CARDS.iter().enumerate().map(card).collect::<Vec<_>>(),
            "ops": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "\nleast time of a step by a model of the card; nothing here was measured \
             (docs/profiling.md)\n",
        );
        let heads: String = CARDS.iter().map(|c| format!("{:>19}", c.name)).collect();
        let _ = writeln!(
            out,
            "op                nodes  launches         MB      GFLOP{heads}"
        );
        for r in &self.rows {
            let times = r.seconds.iter().map(|s| format!("{:16.1} us", s * 1e6));
            let _ = writeln!(
                out,
                "{:16} {:6} {:9} {:10.1} {:10.2}{}",
                r.op,
                r.nodes,
                r.launches,
                r.cost.bytes() / 1e6,
                r.cost.flops / 1e9,
                times.collect::<String>()
            );
        }
        let all = |f: &dyn Fn(usize) -> String| (0..CARDS.len()).map(f).collect::<String>();
        let _ = writeln!(
            out,
            "{:55}{}\n{:55}{}",
            "the whole step",
            all(&|c| format!("{:16.1} us", self.seconds(c) * 1e6)),
            "tokens a second",
            all(&|c| format!("{:19.0}", self.tokens as f64 / self.seconds(c))),
        );
        for card in &CARDS {
            let _ = writeln!(out, "{}", card.describe());
        }
        out
    }
}
