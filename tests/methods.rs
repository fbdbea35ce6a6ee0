//! What each method trains and costs, against numbers counted by hand, and the head's own rate.

mod common;

use common::tiny::{self, MemberData};
use common::world::World;
use crosstune::adapter::Adapter;
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::reference::RefExecutor;
use crosstune::exec::{Adam, Executor, MemberStep};
use crosstune::graph::Bucket;
use crosstune::graph::plan::{Plan, Reuse};
use crosstune::model::text::DropoutRates;
use crosstune::train::cost::{Cost, is_the_papers};
use crosstune::train::program::TrainProgram;
use crosstune::weights::config::TextConfig;
use crosstune::weights::published;
use serde_json::Value;

const TOKENS: usize = 960;
const BUCKET: Bucket = Bucket {
    tokens: TOKENS,
    seqs: 64,
    items: 32,
    members: 1,
};

fn cost(model: &TextConfig, adapter: &Adapter) -> Cost {
    let program = TrainProgram::new(model, true, adapter, DropoutRates::NONE);
    let pass = Plan::new(&program.graph, BUCKET, Reuse::Packed);
    Cost::new(&program, adapter, BUCKET, &pass)
}

/// The counts of method.md, and two by hand: BitFit's biases are 4 C of the attention, F + C of the
/// feed-forward network and 2 C of the norms, 24 times; `run_cross` without its pooler's C C + C.
#[test]
fn parameters_are_those_of_the_original() {
    let model = published::find(published::PAPERS).expect("published");
    let total = model.parameters();
    let norms = Adapter {
        layer_norms: true,
        ..Adapter::default()
    };
    let cases = [
        (Adapter::lora(1), 196_608, Some(0.0351)),
        (Adapter::lora(8), 884_736, Some(0.1576)),
        (Adapter::bottleneck(24), 2_507_904, Some(0.4454)),
        (Adapter::compacter(16), 261_120, Some(0.0466)),
        (Adapter::cross(1), 2_131_712 - (1024 * 1024 + 1024), None),
        (
            Adapter::bitfit(),
            24 * (4 * 1024 + 4096 + 1024 + 2 * 1024),
            None,
        ),
        (norms, 24 * 4 * 1024, None),
    ];
    for (adapter, parameters, percent) in cases {
        let c = cost(&model, &adapter);
        assert_eq!(c.trainable_parameters, parameters, "{adapter:?}");
        assert_eq!(c.optimiser_bytes, 16 * parameters);
        if let Some(percent) = percent {
            let share = 100.0 * c.share(total);
            assert!((share - percent).abs() < 0.5e-4, "{adapter:?}: {share} %");
        }
        let paper = parameters == 884_736;
        assert_eq!(is_the_papers(&adapter, &model), paper, "{adapter:?}");
    }
    let smaller_head = published::find("xlm-roberta-large-vit-b-32").expect("published");
    assert!(!is_the_papers(&Adapter::lora(8), &smaller_head));
}

/// Products a token of XLM-R Large, by hand, for texts of 15 tokens.
#[test]
fn operations_are_those_counted_by_hand() {
    let model = published::find(published::PAPERS).expect("published");
    let (c, f, e, l) = (1024.0, 4096.0, 768.0, 24.0);
    let (length, a_text) = (15.0, 64.0 / TOKENS as f64);
    let weights = 4.0 * c * c + 2.0 * c * f;
    let head = a_text * c * e;
    let square = c * length;
    let forward = 2.0 * (l * (weights + 2.0 * square) + head);
    // Frozen weights: what goes back through them, but for the first layer's query, key and value,
    // below which nothing is trained; scores again and four products of the attention.
    let frozen = 2.0 * (l * (weights + 5.0 * square) - 3.0 * c * c + head);
    let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
    let bitfit = cost(&model, &Adapter::bitfit());
    close(bitfit.forward_flops, forward);
    close(bitfit.backward_flops, frozen);
    // LoRA of rank 8 on two layers of each block: A and B forward; v, dA and dB, and v A into the
    // input's gradient, which the first layer does not need.
    let lora = cost(&model, &Adapter::lora(8));
    let r = 8.0;
    close(lora.forward_flops, forward + 2.0 * l * 2.0 * r * 2.0 * c);
    let branch = 2.0 * r * (c + c + c);
    let through = 2.0 * r * c;
    close(
        lora.backward_flops,
        frozen + l * 2.0 * branch + (l - 1.0) * 2.0 * through,
    );
    // Everything trained: a gradient of each weight too, and of the first layer's input.
    let full = cost(&model, &Adapter::full());
    close(full.forward_flops, forward);
    let all = 2.0 * (l * (2.0 * weights + 5.0 * square) + 2.0 * head);
    close(full.backward_flops, all);
    // The head alone: nothing below it has a gradient.
    let only = Adapter {
        head: true,
        ..Adapter::default()
    };
    close(cost(&model, &only).backward_flops, 2.0 * head);
}

#[test]
fn plan_needs_no_weights() {
    let w = World::new();
    let arch = "--arch=XLM-Roberta-Large-Vit-L-14";
    let said = w.run(["plan", arch]).ok().stdout;
    let says = "884736 of 561464064 (0.1576 %): this is the paper's 0.16 %\n";
    assert!(said.contains(says), "{said}");
    let said = w.run(["plan", arch, "--method=cross", "--rank=1"]).ok();
    let says = "1082112 of 560874240 (0.1929 %)\n";
    assert!(said.stdout.contains(says), "{}", said.stdout);
    let says = "--method lora --rank 8 --arch xlm-roberta-large-vit-l-14\n";
    assert!(said.stdout.ends_with(says), "{}", said.stdout);
    let table = w.run(["plan", arch, "--methods"]).ok().stdout;
    assert_eq!(table.matches("this is the paper's 0.16 %").count(), 1);
    let all = w.run(["plan", arch, "--methods", "--json"]).ok().json();
    let rows = all["methods"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().filter_map(|r| r["method"].as_str()).collect();
    for name in [
        "lora",
        "cross",
        "adapter",
        "compacter",
        "bitfit",
        "layernorm",
        "head",
        "full",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let full = rows.iter().find(|r| r["method"] == "full").expect("a row");
    // The pooler is in the model, and never trained.
    assert_eq!(
        full["trainable_parameters"],
        560_677_632 - (1024 * 1024 + 1024)
    );
    let ran = w.run(["plan", "--arch=gpt"]);
    let says = "error: arch: found `gpt`, expected one of xlm-roberta-large-vit-l-14, ";
    assert!(
        ran.code == 2 && ran.stderr.starts_with(says),
        "{}",
        ran.stderr
    );
    let ran = w.run(["plan", arch, "--targets=layer.24.output.dense"]);
    let says = "`layer.24.output.dense` is of no layer; the model's 24 are counted from 0";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
}

/// One step of two members; the head's rate is a member's own.
#[test]
fn the_head_may_have_a_learning_rate_of_its_own() {
    let c = tiny::config();
    let adapter = tiny::everything(2);
    let program = TrainProgram::new(&c, true, &adapter, DropoutRates::NONE);
    let frozen = tiny::frozen(&program.graph);
    let before = tiny::state(&program.graph, &[1, 2]);
    let data = [1, 2].map(|g| MemberData::new(g, (5, true), 7, (c.vocab, c.embed_dim)));
    let batch = tiny::pack(&[&data[0], &data[1]], adapter.layout(&c));
    let step = |lr: f64, head_lr: Option<f64>| MemberStep {
        adam: Adam {
            lr,
            head_lr,
            ..Adam::default()
        },
        ..MemberStep::default()
    };
    let run = |steps: &[MemberStep]| {
        let mut state = before.clone();
        let graph = program.graph.clone();
        let mut exec = CpuExecutor::new(graph, frozen.clone(), &state, tiny::pool(1));
        exec.run(&mut state, &batch, steps).expect("ran");
        state
    };
    let steps = [step(0.0, Some(1e-2)), step(1e-3, Some(0.0))];
    let after = run(&steps);
    let plain = run(&[step(1e-2, None), step(1e-3, None)]);
    let mut reference = RefExecutor::<f32>::new(program.graph.clone(), &frozen, &before);
    let mut by_reference = before.clone();
    reference
        .run(&mut by_reference, &batch, &steps)
        .expect("ran");
    for (t, tensor) in before.tensors.iter().enumerate() {
        let head = tensor.name.starts_with("LinearTransformation.");
        for (g, moves) in [(0, head), (1, !head)] {
            let want = if moves { &plain } else { &before };
            assert_eq!(
                after.value(t, g),
                want.value(t, g),
                "{} of {g}",
                tensor.name
            );
            let (x, y) = (after.value(t, g), by_reference.value(t, g));
            common::assert_close(&tensor.name, x, y, 1e-4, 1e-4);
        }
    }
}

#[test]
fn a_rate_for_a_frozen_head_is_refused() {
    let w = World::new();
    let ran = w.train("run", &["--head-lr=1e-3"]);
    let says = "error: head-lr: the linear head is not trained; add --train-head";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    assert!(!w.path("run").exists());
    w.train("run", &["--head-lr=1e-3", "--train-head"]).ok();
    let config: Value = toml_of(&w.text("run/config.toml"));
    assert_eq!(config["head-lr"], 1e-3);
    let ran = w.run(["plan", "--model=model", "--method=bitfit", "--rank=2"]);
    let says = "error: rank: goes with --method lora or cross alone";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
}

fn toml_of(text: &str) -> Value {
    let table: toml::Table = toml::from_str(text).expect("TOML");
    serde_json::to_value(table).expect("JSON")
}

#[test]
fn options_without_use_are_refused() {
    let w = World::new();
    let cases: [(&[&str], &str); 3] = [
        (
            &["plan", "--model=model", "--method=full", "--train-head"],
            "train-head: goes with --method lora or adapter or",
        ),
        (
            &["plan", "--model=model", "--methods", "--rank=1"],
            "cannot be used with",
        ),
        (
            &["plan", "--model=model", "--methods", "--values"],
            "cannot be used with",
        ),
    ];
    for (args, says) in cases {
        let ran = w.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{args:?}: {}", ran.stderr);
    }
}
