//! Every op alone, forward and backward, by shape: `cargo bench --bench ops -- layer_norm`.
//!
//! What is declared as throughput is bytes read and written and, as elements, operations, as
//! [`crosstune::graph::cost`] counts them; at the end stands what share of the ceilings each came to.
//! On a GPU: `CROSSTUNE_TEST_DEVICE=cuda:0 cargo bench --features cuda --bench ops`. Without `--bench`
//! (`cargo test --bench ops`) each runs once, on tiny shapes.

mod common;

use std::time::Instant;

use common::place::{Place, THREADS, once, threads};
use common::rig::{Rig, VOCAB, note, shares, short};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crosstune::graph::cost::Cost;
use crosstune::graph::{Dim, Role};
use crosstune::ops::activation::{Activation, Kind};
use crosstune::ops::adam::{AdamStep, GradNorm};
use crosstune::ops::add::Add;
use crosstune::ops::attention::{Attention, Mask};
use crosstune::ops::contrastive::{Contrastive, Pair};
use crosstune::ops::embedding::{Embedding, Tables};
use crosstune::ops::gelu::Gelu;
use crosstune::ops::gemm::{Dest, Mat, Segment, Start, gemm};
use crosstune::ops::l2_norm::L2Norm;
use crosstune::ops::layer_norm::LayerNorm;
use crosstune::ops::linear::{Layer, Linear, LoraLayer};
use crosstune::ops::mse::Mse;
use crosstune::ops::philox::{Dropout, Stream};
use crosstune::ops::phm::{Phm, Weights};
use crosstune::ops::pool::{Pool, Pooling};
use crosstune::ops::vision_embedding::VisionEmbedding;
use crosstune::text::pack::Rows;

/// Name, C, heads, FFN channels, texts (half anchors, half partners): steps of about 200, 1,056 and
/// 4,224 tokens.
fn shapes() -> Vec<(&'static str, usize, usize, usize, usize)> {
    let sizes = [
        ("tiny", 64, 4, 128),
        ("base", 768, 12, 3072),
        ("large", 1024, 16, 4096),
    ];
    let (sizes, texts) = match once() {
        true => (&sizes[..1], &[4][..]),
        false => (&sizes[..], &[10, 56, 222][..]),
    };
    let of = |(name, c, heads, ffn): &(_, _, _, _)| {
        let shape = |n: &usize| (*name, *c, *heads, *ffn, *n);
        texts.iter().map(shape).collect::<Vec<_>>()
    };
    sizes.iter().flat_map(of).collect()
}

fn embedding(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in shapes() {
        let mut rig = Rig::new(texts);
        let tables = Tables {
            word: rig.weight("word", &[VOCAB, hidden]),
            position: rig.weight("position", &[514, hidden]),
            token_type: Some(rig.weight("type", &[1, hidden])),
            weight: rig.trainable("weight", &[hidden]),
            bias: rig.trainable("bias", &[hidden]),
            prompt: None,
        };
        let out = Embedding::push(&mut rig.graph, "out", tables, 1e-5, None);
        rig.seed(out);
        rig.bench(c, "embedding", size);
    }
}

/// A soft prompt of four vectors, the embeddings being frozen.
fn prompt(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in shapes() {
        let mut rig = Rig::with_prompt(texts, 4);
        let tables = Tables {
            word: rig.weight("word", &[VOCAB, hidden]),
            position: rig.weight("position", &[514, hidden]),
            token_type: Some(rig.weight("type", &[1, hidden])),
            weight: rig.weight("weight", &[hidden]),
            bias: rig.weight("bias", &[hidden]),
            prompt: Some(rig.trainable("prompt", &[4, hidden])),
        };
        let out = Embedding::push(&mut rig.graph, "out", tables, 1e-5, None);
        rig.seed(out);
        rig.bench(c, "prompt", size);
    }
}

/// Query, key and value with LoRA, and both layers of the feed-forward network.
fn linear(c: &mut Criterion) {
    for (size, hidden, _, ffn, texts) in shapes() {
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
            let act = (what == "up").then_some(Gelu::Exact);
            let out = Linear::push(&mut rig.graph, "out", inp, &layers, act);
            rig.seed(out);
            rig.bench(c, "linear", &format!("{size}-{what}"));
        }
    }
}

fn attention(c: &mut Criterion) {
    for (size, hidden, heads, _, texts) in shapes() {
        for (mask, what) in [(Mask::All, ""), (Mask::Causal, "-causal")] {
            let mut rig = Rig::new(texts);
            let qkv = rig.input("qkv", Dim::Tokens, 3 * hidden);
            let out = Attention::push(&mut rig.graph, "out", qkv, (heads, mask), None);
            rig.seed(out);
            rig.bench(c, "attention", &format!("{size}{what}"));
        }
    }
}

fn layer_norm(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in shapes() {
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
            rig.bench(c, "layer_norm", &name);
        }
    }
}

/// A bottleneck of 24 channels.
fn activation(c: &mut Criterion) {
    for (size, _, _, _, texts) in shapes() {
        for (name, kind) in [("gelu_tanh", Kind::GeluTanh), ("relu", Kind::Relu)] {
            let mut rig = Rig::new(texts);
            let inp = rig.input("inp", Dim::Tokens, 24);
            let out = Activation::push(&mut rig.graph, "out", kind, inp);
            rig.seed(out);
            rig.bench(c, "activation", &format!("{size}-{name}"));
        }
    }
}

/// Both layers of a Compacter of reduction 16.
fn phm(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in shapes() {
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
            rig.bench(c, "phm", &format!("{size}-{what}"));
        }
    }
}

fn pool(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in shapes() {
        let mut rig = Rig::new(texts);
        let inp = rig.input("inp", Dim::Tokens, hidden);
        let out = Pool::push(&mut rig.graph, "out", Pooling::Mean, inp);
        rig.seed(out);
        rig.bench(c, "pool", size);
    }
}

/// The objective, over features of 768 channels.
fn losses(c: &mut Criterion) {
    let sizes: &[usize] = if once() { &[10] } else { &[10, 64, 512] };
    for texts in sizes.iter().copied() {
        let shape = format!("S{texts}");
        let mut rig = Rig::new(texts);
        let text = rig.input("text", Dim::Seqs, 768);
        let out = L2Norm::push(&mut rig.graph, "out", text, Rows::Seqs);
        rig.seed(out);
        rig.bench(c, "l2_norm", &shape);

        let mut rig = Rig::new(texts);
        let text = rig.input("text", Dim::Seqs, 768);
        Mse::push(&mut rig.graph, "loss", text);
        rig.bench(c, "mse", &shape);

        let mut rig = Rig::new(texts);
        let text = rig.given("text", vec![Dim::Seqs, Dim::N(768)]);
        let image = rig.given("image", vec![Dim::Items, Dim::N(768)]);
        let text = L2Norm::push(&mut rig.graph, "text.unit", text, Rows::Seqs);
        let image = L2Norm::push(&mut rig.graph, "image.unit", image, Rows::Items);
        rig.begin(text);
        Contrastive::push(&mut rig.graph, "loss", Pair::ImageAnchor, image, text);
        rig.bench(c, "contrastive", &shape);
    }
}

fn adam(c: &mut Criterion) {
    let sizes = [("lora", 331_776), ("full", 7_077_888)];
    for (name, n) in if once() {
        [("tiny", 4096), ("odd", 999)]
    } else {
        sizes
    } {
        let mut rig = Rig::new(10);
        let weight = rig.trainable("weight", &[n]);
        let grad = rig.graph.get(weight).shape.clone();
        rig.graph.value("d.weight", grad, Role::Grad);
        let norm = GradNorm::push(&mut rig.graph, "norm");
        rig.graph.nodes.push(AdamStep { norm }.into());
        rig.bench(c, "adam", name);
    }
}

/// NT is a forward product, NN a gradient of the input, TN one of a weight. The CPU's alone: on a
/// device products are `linear`'s.
fn products(c: &mut Criterion) {
    if Place::open().is_device() {
        return;
    }
    let pool = threads(THREADS);
    let mut group = c.benchmark_group("gemm");
    let sizes = [
        (200, 64, 128),
        (200, 768, 768),
        (1056, 768, 768),
        (1056, 3072, 768),
        (4224, 768, 3072),
        (1056, 1024, 4096),
    ];
    let sizes = if once() { &sizes[..1] } else { &sizes[..] };
    for &(m, n, k) in sizes {
        let random = |name, len| Stream::named(1, name).uniform(len, 1.0);
        let (a, b) = (random("a", m * k), random("b", n * k));
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
            let cost = Cost {
                read: 4.0 * (m * k + n * k) as f64,
                written: 4.0 * (m * n) as f64,
                flops: 2.0 * m as f64 * n as f64 * k as f64,
            };
            short(&mut group).throughput(Throughput::ElementsAndBytes {
                elements: cost.flops as u64,
                bytes: cost.bytes() as u64,
            });
            let name = format!("{layout}/{m}x{n}x{k}");
            group.bench_function(&name, |bench| {
                let mut run = || {
                    let dest = Dest {
                        data: &mut out,
                        ld: n,
                    };
                    let segment = [Segment { a, b, k }];
                    gemm(dest, None, (m, n), &segment, Start::Zero, |_, _, _, _| {});
                };
                bench.iter_custom(|times| {
                    let start = Instant::now();
                    pool.install(|| (0..times).for_each(|_| run()));
                    let time = start.elapsed();
                    note(&format!("gemm/{name}"), &cost, time, times);
                    time
                });
            });
        }
    }
    group.finish();
}

/// Gradients of a value that two ops read.
fn add(c: &mut Criterion) {
    for (size, hidden, _, _, texts) in shapes() {
        let mut rig = Rig::new(texts);
        let rows = || vec![Dim::Tokens, Dim::N(hidden)];
        let (a, b) = (rig.given("a", rows()), rig.given("b", rows()));
        let out = rig.graph.value("out", rows(), Role::Temp);
        rig.graph.nodes.push(Add { a, b, out }.into());
        rig.bench(c, "add", size);
    }
}

/// Name, C, heads, tokens of a picture, pictures: towers for pictures of 224.
fn pictures() -> &'static [(&'static str, usize, usize, usize, usize)] {
    match once() {
        true => &[("vit-tiny", 64, 4, 5, 2)],
        false => &[("vit-b32", 768, 12, 50, 32), ("vit-l14", 1024, 16, 257, 8)],
    }
}

/// How a vision tower begins and ends.
fn vision_ends(c: &mut Criterion) {
    for &(size, hidden, _, tokens, n) in pictures() {
        let mut rig = Rig::pictures(n, tokens);
        let patches = rig.given("patches", vec![Dim::Tokens, Dim::N(hidden)]);
        let places = (
            rig.weight("class", &[hidden]),
            rig.weight("position", &[tokens, hidden]),
        );
        VisionEmbedding::push(&mut rig.graph, "out", patches, places);
        rig.bench(c, "vision_embedding", size);

        let mut rig = Rig::pictures(n, tokens);
        let inp = rig.input("inp", Dim::Tokens, hidden);
        let out = Pool::push(&mut rig.graph, "out", Pooling::First, inp);
        rig.seed(out);
        rig.bench(c, "pool", size);
    }
}

/// What its blocks have that a text tower's have not: more tokens, sums that are read on, the quick GELU.
fn vision_block(c: &mut Criterion) {
    for &(size, hidden, heads, tokens, n) in pictures() {
        let mut rig = Rig::pictures(n, tokens);
        let qkv = rig.input("qkv", Dim::Tokens, 3 * hidden);
        let out = Attention::push(&mut rig.graph, "out", qkv, (heads, Mask::All), None);
        rig.seed(out);
        rig.bench(c, "attention", size);

        let mut rig = Rig::pictures(n, tokens);
        let inp = ["inp", "resid"].map(|name| rig.input(name, Dim::Tokens, hidden));
        let params = ["weight", "bias"].map(|name| rig.weight(name, &[hidden]));
        let (inp, params) = (inp.into(), params.into());
        let (sum, out) = LayerNorm::push_sum(&mut rig.graph, "out", inp, params, 1e-5);
        rig.seed(sum);
        rig.seed(out);
        rig.bench(c, "layer_norm", size);

        let mut rig = Rig::pictures(n, tokens);
        let inp = (rig.input("inp", Dim::Tokens, hidden), Rows::Tokens);
        let layer = Layer {
            weight: rig.weight("weight", &[4 * hidden, hidden]),
            bias: Some(rig.weight("bias", &[4 * hidden])),
            lora: None,
        };
        let out = Linear::push(&mut rig.graph, "out", inp, &[layer], Some(Gelu::Quick));
        rig.seed(out);
        rig.bench(c, "linear", &format!("{size}-up"));
    }
}

criterion_group!(
    benches,
    products,
    linear,
    attention,
    layer_norm,
    activation,
    phm,
    add,
    embedding,
    prompt,
    pool,
    losses,
    adam,
    vision_ends,
    vision_block,
    shares
);
criterion_main!(benches);
