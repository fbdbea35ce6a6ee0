//! Every op alone, forward and backward, by shape: `cargo bench --bench ops -- layer_norm`.
//!
//! A graph of one op and its gradient runs as in a training step; an observer adds up the time of
//! the nodes in question. What is declared as throughput is bytes read and written, FLOPs for
//! `linear` and `gemm`.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, Frozen, FrozenTensor, LossWeights, MemberStep};
use crosstune::graph::backward::backward_from;
use crosstune::graph::{Dim, Graph, Role, ValueId};
use crosstune::ops::activation::{Activation, Kind};
use crosstune::ops::adam::{AdamStep, GradNorm};
use crosstune::ops::attention::Attention;
use crosstune::ops::contrastive::{Contrastive, Pair};
use crosstune::ops::embedding::{Embedding, Tables};
use crosstune::ops::gemm::{Dest, Mat, Segment, Start, gemm};
use crosstune::ops::l2_norm::L2Norm;
use crosstune::ops::layer_norm::LayerNorm;
use crosstune::ops::linear::{Layer, Linear, LoraLayer};
use crosstune::ops::mse::Mse;
use crosstune::ops::philox::{Dropout, Stream};
use crosstune::ops::phm::{Phm, Weights};
use crosstune::ops::pool::Pool;
use crosstune::text::pack::{Batch, Layout, MemberTexts, Rows};

const THREADS: usize = 2;
const VOCAB: usize = 1000;

/// Name, C, heads, FFN channels, texts (half anchors, half partners).
const SHAPES: [(&str, usize, usize, usize, usize); 5] = [
    ("tiny", 64, 4, 128, 10),
    ("base", 768, 12, 3072, 10),
    ("base", 768, 12, 3072, 56),
    ("base", 768, 12, 3072, 222),
    ("large", 1024, 16, 4096, 56),
];

/// A graph under construction, over random values.
struct Rig {
    graph: Graph,
    batch: Batch,
    frozen: Frozen,
    seeds: Vec<(ValueId, ValueId)>,
    wanted: Vec<ValueId>,
}

impl Rig {
    fn new(texts: usize) -> Rig {
        Rig::with_prompt(texts, 0)
    }

    fn with_prompt(texts: usize, prompt: usize) -> Rig {
        let layout = Layout {
            position_offset: 2,
            prompt,
        };
        let lengths = common::lengths("train.de");
        let ids: Vec<Vec<u32>> = (0..texts)
            .map(|i| {
                (0..lengths[i] as u32)
                    .map(|t| t * 37 % VOCAB as u32)
                    .collect()
            })
            .collect();
        let member = MemberTexts {
            anchors: common::texts(&ids[..texts / 2], 0),
            partners: common::texts(&ids[texts / 2..], 1),
        };
        Rig {
            graph: Graph::new(),
            batch: Batch::pack(&[member], layout, vec![]),
            frozen: Frozen::default(),
            seeds: Vec::new(),
            wanted: Vec::new(),
        }
    }

    fn frozen(&mut self, name: &str, shape: Vec<Dim>) -> ValueId {
        let id = self.graph.value(name, shape, Role::Frozen);
        let n = self.graph.get(id).elements(&self.batch.bucket());
        let data = Stream::named(1, name).uniform(n, 0.1);
        self.frozen
            .insert(name, FrozenTensor::Owned(Arc::new(data)));
        id
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.frozen(name, shape.iter().map(|n| Dim::N(*n)).collect())
    }

    fn trainable(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let dims = shape.iter().map(|n| Dim::N(*n));
        let dims = std::iter::once(Dim::Members).chain(dims).collect();
        self.graph.value(name, dims, Role::Trainable)
    }

    /// An input whose gradient is wanted.
    fn input(&mut self, name: &str, rows: Dim, c: usize) -> ValueId {
        let id = self.frozen(name, vec![rows, Dim::N(c)]);
        self.wanted.push(id);
        id
    }

    /// Gives a result a gradient.
    fn seed(&mut self, out: ValueId) {
        let shape = self.graph.get(out).shape.clone();
        let seed = self.frozen(&format!("seed.{}", out.0), shape);
        self.seeds.push((out, seed));
    }
}

/// Benches the nodes of a rig: those of its forward pass, then those of its gradient.
fn nodes(c: &mut Criterion, stem: &str, shape: &str, mut rig: Rig, flops: Option<u64>) {
    let forward = rig.graph.nodes.len();
    backward_from(&mut rig.graph, &rig.seeds, &rig.wanted);
    let all = rig.graph.nodes.len();
    let tokens = rig.batch.tokens();
    for (side, range) in [("forward", 0..forward), ("backward", forward..all)] {
        if range.is_empty() {
            continue;
        }
        let graph = Arc::new(rig.graph.clone());
        let bytes = range.clone().map(|i| {
            let ids = [graph.nodes[i].reads(), graph.nodes[i].writes()].concat();
            let sizes = ids
                .iter()
                .map(|id| graph.get(*id).elements(&rig.batch.bucket()));
            4 * sizes.sum::<usize>() as u64
        });
        let throughput = match flops {
            Some(flops) => Throughput::Elements(flops),
            None => Throughput::Bytes(bytes.sum()),
        };
        let mut state = TrainState::new(&graph, 1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build();
        let frozen = Arc::new(rig.frozen.clone());
        let pool = Arc::new(pool.expect("threads"));
        let mut exec = CpuExecutor::new(graph, frozen, &state, pool);
        let spent = Arc::new(AtomicU64::new(0));
        let (total, mut node) = (spent.clone(), 0);
        exec.observe(move |_, time| {
            if range.contains(&node) {
                total.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
            }
            node = (node + 1) % all;
        });
        let step = [MemberStep {
            weights: LossWeights {
                image_anchor: 1.0,
                mse: 0.1,
                ..LossWeights::default()
            },
            ..MemberStep::default()
        }];
        let mut group = c.benchmark_group(stem);
        short(&mut group).throughput(throughput);
        group.bench_function(format!("{side}/{shape}/T{tokens}"), |b| {
            b.iter_custom(|n| {
                spent.store(0, Ordering::Relaxed);
                for _ in 0..n {
                    exec.run(&mut state, &rig.batch, &step).expect("a step");
                }
                Duration::from_nanos(spent.load(Ordering::Relaxed))
            });
        });
        group.finish();
    }
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn short<'a, 'b>(group: &'b mut Group<'a>) -> &'b mut Group<'a> {
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
}

fn embedding(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in SHAPES {
        let mut rig = Rig::new(texts);
        let tables = Tables {
            word: rig.weight("word", &[VOCAB, hidden]),
            position: rig.weight("position", &[514, hidden]),
            token_type: rig.weight("type", &[1, hidden]),
            weight: rig.trainable("weight", &[hidden]),
            bias: rig.trainable("bias", &[hidden]),
            prompt: None,
        };
        let out = Embedding::push(&mut rig.graph, "out", tables, 1e-5, None);
        rig.seed(out);
        nodes(c, "embedding", size, rig, None);
    }
}

/// A soft prompt of four vectors, the embeddings being frozen.
fn prompt(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in SHAPES {
        let mut rig = Rig::with_prompt(texts, 4);
        let tables = Tables {
            word: rig.weight("word", &[VOCAB, hidden]),
            position: rig.weight("position", &[514, hidden]),
            token_type: rig.weight("type", &[1, hidden]),
            weight: rig.weight("weight", &[hidden]),
            bias: rig.weight("bias", &[hidden]),
            prompt: Some(rig.trainable("prompt", &[4, hidden])),
        };
        let out = Embedding::push(&mut rig.graph, "out", tables, 1e-5, None);
        rig.seed(out);
        nodes(c, "prompt", size, rig, None);
    }
}

/// Query, key and value with LoRA, and both layers of the feed-forward network.
fn linear(c: &mut Criterion) {
    for (size, hidden, _, ffn, texts) in SHAPES {
        for (what, parts, k, oc) in [
            ("qkv", 3, hidden, hidden),
            ("up", 1, hidden, ffn),
            ("down", 1, ffn, hidden),
        ] {
            let mut rig = Rig::new(texts);
            let x = rig.input("x", Dim::Tokens, k);
            let layers: Vec<Layer> = (0..parts)
                .map(|i| Layer {
                    weight: rig.weight(&format!("w{i}"), &[oc, k]),
                    bias: Some(rig.weight(&format!("b{i}"), &[oc])),
                    lora: (parts == 3 && i != 1).then(|| LoraLayer {
                        lora_a: rig.trainable(&format!("a{i}"), &[8, k]),
                        lora_b: rig.trainable(&format!("b{i}.lora"), &[oc, 8]),
                        scale: 2.0,
                        dropout: None,
                    }),
                })
                .collect();
            let inp = (x, Rows::Tokens);
            let out = Linear::push(&mut rig.graph, "out", inp, &layers, what == "up");
            rig.seed(out);
            let flops = 2 * rig.batch.tokens() * parts * k * oc;
            nodes(
                c,
                "linear",
                &format!("{size}-{what}"),
                rig,
                Some(flops as u64),
            );
        }
    }
}

fn attention(c: &mut Criterion) {
    for (size, hidden, heads, _, texts) in SHAPES {
        let mut rig = Rig::new(texts);
        let qkv = rig.input("qkv", Dim::Tokens, 3 * hidden);
        let out = Attention::push(&mut rig.graph, "out", qkv, heads, None);
        rig.seed(out);
        nodes(c, "attention", size, rig, None);
    }
}

fn layer_norm(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in SHAPES {
        for p in [0.0, 0.1] {
            let mut rig = Rig::new(texts);
            let inp = rig.input("inp", Dim::Tokens, hidden);
            let resid = rig.input("resid", Dim::Tokens, hidden);
            let params = (
                rig.trainable("weight", &[hidden]),
                rig.trainable("bias", &[hidden]),
            );
            let drop = (p > 0.0).then_some(Dropout { p, site: 1 });
            let out = LayerNorm::push(&mut rig.graph, "out", (inp, resid), params, 1e-5, drop);
            rig.seed(out);
            let name = if p > 0.0 {
                format!("{size}-dropout")
            } else {
                size.to_string()
            };
            nodes(c, "layer_norm", &name, rig, None);
        }
    }
}

/// A bottleneck of 24 channels.
fn activation(c: &mut Criterion) {
    for (size, _, _, _, texts) in SHAPES {
        for (name, kind) in [("gelu_tanh", Kind::GeluTanh), ("relu", Kind::Relu)] {
            let mut rig = Rig::new(texts);
            let inp = rig.input("inp", Dim::Tokens, 24);
            let out = Activation::push(&mut rig.graph, "out", kind, inp);
            rig.seed(out);
            nodes(c, "activation", &format!("{size}-{name}"), rig, None);
        }
    }
}

/// Both layers of a Compacter of reduction 16.
fn phm(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in SHAPES {
        for (what, k, oc) in [("down", hidden, hidden / 16), ("up", hidden / 16, hidden)] {
            let mut rig = Rig::new(texts);
            let inp = rig.input("inp", Dim::Tokens, k);
            let weights = Weights {
                rule: rig.trainable("rule", &[4, 4, 4]),
                left: rig.trainable("left", &[4, k / 4, 1]),
                right: rig.trainable("right", &[4, 1, oc / 4]),
                bias: rig.trainable("bias", &[oc]),
            };
            let out = Phm::push(&mut rig.graph, "out", inp, weights);
            rig.seed(out);
            nodes(c, "phm", &format!("{size}-{what}"), rig, None);
        }
    }
}

fn pool(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in SHAPES {
        let mut rig = Rig::new(texts);
        let inp = rig.input("inp", Dim::Tokens, hidden);
        let out = Pool::push(&mut rig.graph, "out", inp);
        rig.seed(out);
        nodes(c, "pool", size, rig, None);
    }
}

/// The objective, over features of 768 channels.
fn losses(c: &mut Criterion) {
    for texts in [10, 64, 512] {
        let shape = format!("S{texts}");
        let mut rig = Rig::new(texts);
        let text = rig.input("text", Dim::Seqs, 768);
        let out = L2Norm::push(&mut rig.graph, "out", text, Rows::Seqs);
        rig.seed(out);
        nodes(c, "l2_norm", &shape, rig, None);

        let mut rig = Rig::new(texts);
        let text = rig.input("text", Dim::Seqs, 768);
        Mse::push(&mut rig.graph, "loss", text);
        nodes(c, "mse", &shape, rig, None);

        let mut rig = Rig::new(texts);
        let text = rig.input("text", Dim::Seqs, 768);
        let image = rig.frozen("image", vec![Dim::Items, Dim::N(768)]);
        Contrastive::push(&mut rig.graph, "loss", Pair::ImageAnchor, image, text);
        nodes(c, "contrastive", &shape, rig, None);
    }
}

fn adam(c: &mut Criterion) {
    for (name, n) in [("lora", 331_776), ("full", 7_077_888)] {
        let mut rig = Rig::new(10);
        let weight = rig.trainable("weight", &[n]);
        let grad = rig.graph.get(weight).shape.clone();
        rig.graph.value("d.weight", grad, Role::Grad);
        let norm = GradNorm::push(&mut rig.graph, "norm");
        rig.graph.nodes.push(AdamStep { norm }.into());
        nodes(c, "adam", name, rig, None);
    }
}

/// NT is a forward product, NN a gradient of the input, TN one of a weight.
fn products(c: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build();
    let pool = pool.expect("threads");
    let mut group = c.benchmark_group("gemm");
    for (m, n, k) in [
        (200, 64, 128),
        (200, 768, 768),
        (1056, 768, 768),
        (1056, 3072, 768),
        (4224, 768, 3072),
        (1056, 1024, 4096),
    ] {
        let (a, b) = (vec![0.5; m * k], vec![0.25; n * k]);
        let mut out = vec![0f32; m * n];
        for layout in ["NT", "NN", "TN"] {
            let a = match layout {
                "TN" => Mat::rows(&a, m).t(),
                _ => Mat::rows(&a, k),
            };
            let b = match layout {
                "NT" => Mat::rows(&b, k).t(),
                _ => Mat::rows(&b, n),
            };
            short(&mut group).throughput(Throughput::Elements(2 * (m * n * k) as u64));
            group.bench_function(format!("{layout}/{m}x{n}x{k}"), |bench| {
                bench.iter(|| {
                    pool.install(|| {
                        let dest = Dest {
                            data: &mut out,
                            ld: n,
                        };
                        let segment = [Segment { a, b, k }];
                        gemm(dest, None, (m, n), &segment, Start::Zero, |_, _, _, _| {});
                    });
                });
            });
        }
    }
    group.finish();
}

criterion_group!(
    benches, products, linear, attention, layer_norm, activation, phm, embedding, prompt, pool,
    losses, adam
);
criterion_main!(benches);
