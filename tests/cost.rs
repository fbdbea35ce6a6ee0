//! What nodes cost, against numbers made by hand and the published model's.

use crosstune::adapter::Adapter;
use crosstune::exec::LossWeights;
use crosstune::graph::backward::backward_from;
use crosstune::graph::cost::{Cost, Counter, Numbers, Work};
use crosstune::graph::{Bucket, Dim, Graph, Role};
use crosstune::model::text::DropoutRates;
use crosstune::ops::linear::{Layer, Linear, LoraLayer};
use crosstune::text::pack::Rows;
use crosstune::train::program::TrainProgram;
use crosstune::weights::published;

/// T = 10 in 2 texts of one member.
const SMALL: Bucket = Bucket {
    tokens: 10,
    seqs: 2,
    items: 1,
    members: 1,
};

/// The strategy of most runs: images and anchors, and the partner by its distance.
const TERMS: LossWeights = LossWeights {
    image_anchor: 1.0,
    mse: 1.0,
    partner_anchor: 0.0,
    image_partner: 0.0,
    stop_partner: false,
};

fn work(bucket: Bucket) -> Work {
    Work {
        bucket,
        weights: TERMS,
    }
}

fn costs(graph: &Graph, numbers: Numbers, work: &Work) -> Vec<(&'static str, Cost)> {
    let counter = Counter::new(graph, numbers);
    let node = |op| (crosstune::ops::Op::name(op), counter.node(op, work));
    graph.nodes.iter().map(node).collect()
}

/// K = 4, OC = 6, R = 2, with a bias.
#[test]
fn a_layer_by_hand() {
    let mut g = Graph::new();
    let rows = |c| vec![Dim::Tokens, Dim::N(c)];
    let inp = g.value("inp", rows(4), Role::Frozen);
    let weight = g.value("w", vec![Dim::N(6), Dim::N(4)], Role::Frozen);
    let bias = g.value("b", vec![Dim::N(6)], Role::Frozen);
    let trained = |c, r| vec![Dim::Members, Dim::N(c), Dim::N(r)];
    let lora = LoraLayer {
        lora_a: g.value("lora_A", trained(2, 4), Role::Trainable),
        lora_b: g.value("lora_B", trained(6, 2), Role::Trainable),
        scale: 1.0,
        dropout: None,
    };
    let layer = Layer {
        weight,
        bias: Some(bias),
        lora: Some(lora),
    };
    let out = Linear::push(&mut g, "out", (inp, Rows::Tokens), &[layer], None);
    let seed = g.value("d.out", rows(6), Role::Frozen);
    backward_from(&mut g, &[(out, seed)], &[inp]);
    let want = |bytes: [f64; 2], flops, size: f64, sums: f64| Cost {
        read: bytes[0] * size + sums,
        written: bytes[1] * size + sums,
        flops,
    };
    // inp 40, weight 24, bias 6, A 8, B 12; out 60, u 20. A multiply-add is two.
    let forward = [90.0, 80.0];
    let forward_flops = 2.0 * 10.0 * (6.0 * 4.0 + 2.0 * 4.0 + 6.0 * 2.0);
    // inp 40, dout 60, u 20, B 12; v 20. A's and B's gradients, 20 numbers of f32, are added to.
    let lora_flops = 2.0 * 10.0 * 2.0 * (6.0 + 4.0 + 6.0);
    // dout 60, weight 24, A 8, v 20; dinp 40.
    let input_flops = 2.0 * 10.0 * 4.0 * (6.0 + 2.0);
    for (numbers, size) in [(Numbers::F32, 4.0), (Numbers::F16, 2.0)] {
        let found = costs(&g, numbers, &work(SMALL));
        let all = [
            ("Linear", want(forward, forward_flops, size, 0.0)),
            ("LoraGrad", want([132.0, 20.0], lora_flops, size, 80.0)),
            ("InputGrad", want([112.0, 40.0], input_flops, size, 0.0)),
        ];
        assert_eq!(found, all, "{numbers:?}");
    }
}

/// The published figures of a step of LoRA on query and value, layer norms trained, texts of 20
/// tokens: 0.604 and 0.598 GFLOP a token forward and for the gradients of inputs, 1.213 in all with
/// LoRA's own, and 604 MB of weights, read in each direction.
#[test]
fn the_papers_step() {
    let config = published::find(published::PAPERS).expect("the paper's model");
    let program = TrainProgram::new(&config, true, &Adapter::lora(8), DropoutRates::NONE);
    let bucket = Bucket {
        tokens: 4224,
        seqs: 212,
        items: 106,
        members: 1,
    };
    let graph = &*program.graph;
    let counter = Counter::new(graph, Numbers::F16);
    let total = counter.nodes(&graph.nodes, &work(bucket));
    let a_token = |cost: Cost| cost.flops / 4224.0 / 1e9;
    let near = |found: f64, want: f64, share: f64, what: &str| {
        assert!(
            (found / want - 1.0).abs() < share,
            "{what}: {found}, want {want}"
        );
    };
    // Attention's products (0.4 % a direction and more) are in ours alone.
    near(a_token(total), 1.213, 0.03, "a step");
    let of = |names: &[&str]| {
        let nodes = graph.nodes.iter().filter(|op| names.contains(&op.name()));
        counter.nodes(nodes, &work(bucket))
    };
    near(a_token(of(&["Linear"])), 0.604, 0.01, "forward");
    near(
        a_token(of(&["InputGrad"])),
        0.598,
        0.01,
        "gradients of inputs",
    );
    let one = Bucket {
        tokens: 0,
        ..bucket
    };
    let weights = graph.nodes.iter().filter(|op| op.name() == "Linear");
    near(
        counter.nodes(weights, &work(one)).read,
        604e6,
        0.01,
        "weights",
    );
    // The same operations that `crosstune plan` counts, but for the loss's few.
    let plain: f64 = graph.nodes.iter().map(|n| n.flops(graph, &bucket)).sum();
    near(total.flops, plain, 1e-3, "the plan's");
    assert!(total.flops > plain);
}

/// 16 bytes a parameter are owned; on a device the gradient is read twice and f16 copies written.
#[test]
fn the_optimiser_and_the_loss_by_hand() {
    let config = published::find(published::PAPERS).expect("the paper's model");
    let program = TrainProgram::new(&config, true, &Adapter::lora(8), DropoutRates::NONE);
    let graph = &*program.graph;
    let of = |numbers, name: &str, work: &Work| {
        let all = costs(graph, numbers, work);
        let same = all.into_iter().filter(|(n, _)| *n == name);
        same.map(|(_, cost)| cost).sum::<Cost>()
    };
    let bucket = Bucket {
        items: 7,
        seqs: 14,
        ..SMALL
    };
    let trainable = graph.with_role(Role::Trainable).map(|id| graph.get(id));
    let (loras, norms): (Vec<_>, Vec<_>) = trainable.partition(|v| v.name.contains("lora"));
    let count = |values: &[&crosstune::graph::Value]| -> f64 {
        values.iter().map(|v| v.elements(&bucket) as f64).sum()
    };
    let (loras, all) = (count(&loras), count(&loras) + count(&norms));
    let adam = of(Numbers::F32, "AdamStep", &work(bucket));
    assert_eq!((adam.read, adam.written), (16.0 * all, 12.0 * all));
    let adam = of(Numbers::F16, "AdamStep", &work(bucket));
    assert_eq!(adam.read, 20.0 * all);
    assert_eq!(adam.written, 12.0 * all + 2.0 * loras);
    assert_eq!(of(Numbers::F32, "GradNorm", &work(bucket)).read, 4.0 * all);
    assert_eq!(of(Numbers::F16, "GradNorm", &work(bucket)), Cost::default());
    assert_eq!(
        of(Numbers::F32, "ZeroGrads", &work(bucket)).written,
        4.0 * all
    );
    // One of three pairs is computed: 7 x 7 logits of 768 terms; back the logits and dtext.
    let logits = 2.0 * 7.0 * 7.0 * 768.0;
    let loss = of(Numbers::F32, "Contrastive", &work(bucket));
    assert_eq!(loss.flops, logits);
    assert_eq!(loss.read, 4.0 * 768.0 * (7.0 + 14.0));
    let grad = of(Numbers::F32, "ContrastiveGrad", &work(bucket));
    assert_eq!(grad.flops, 2.0 * logits);
}

/// A table is read by rows, and no more of it than there is.
#[test]
fn an_embedding_reads_the_rows_it_meets() {
    let config = published::find(published::PAPERS).expect("the paper's model");
    let program = TrainProgram::new(&config, true, &Adapter::lora(8), DropoutRates::NONE);
    let embedding = |tokens| {
        let bucket = Bucket { tokens, ..SMALL };
        let all = costs(&program.graph, Numbers::F32, &work(bucket));
        all.iter().find(|(n, _)| *n == "Embedding").expect("one").1
    };
    // Word rows, positions of two texts, one token type, weight and bias; 514 positions at most.
    assert_eq!(embedding(10).read, 4.0 * 1024.0 * (10.0 + 5.0 + 1.0 + 2.0));
    assert_eq!(embedding(1200).read, 4.0 * 1024.0 * (1200.0 + 514.0 + 3.0));
    assert_eq!(embedding(10).written, 4.0 * 1024.0 * 10.0);
}
