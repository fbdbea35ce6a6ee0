//! A step whose texts go through the tower in pieces: the gradients of one whose texts go at once,
//! in the memory of a small one.

mod common;

use std::sync::Arc;

use common::golden;
use common::tiny::{self, MemberData};
use common::world::World;
use crosstune::adapter::{Adapter, LINEAR_LAYERS, LoraConfig};
use crosstune::data::Role;
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Adam, Frozen, MemberStep};
use crosstune::model::text::DropoutRates;
use crosstune::text::pack::{Batch, MemberTexts};
use crosstune::train::objective::{Strategy, TextLoss};
use crosstune::train::program::TrainProgram;
use crosstune::train::step::{Measured, Round, StepRunner};
use serde_json::Value;

/// Largest error of a gradient over its tensor's largest entry. Measured: 1.3e-6.
const LIMIT: f32 = 1e-5;

const DROPOUT: DropoutRates = DropoutRates {
    hidden: 0.1,
    attention: 0.1,
};

/// Every text loss, and none.
const KINDS: [(Strategy, TextLoss, bool); 4] = [
    (Strategy::Routine1, TextLoss::Mse, false),
    (Strategy::Routine2, TextLoss::Contrastive, true),
    (Strategy::Routine3, TextLoss::ContrastiveWithImage, false),
    (Strategy::Baseline1, TextLoss::Mse, false),
];

/// A step of the `g`-th kind.
fn step(g: usize, lr: f64) -> MemberStep {
    let (strategy, text_loss, stop_partner) = KINDS[g];
    MemberStep {
        seed: 20 + g as u64,
        step: 2,
        weights: strategy.weights(text_loss, 0.5, stop_partner),
        adam: Adam {
            lr,
            ..Adam::default()
        },
        ..MemberStep::default()
    }
}

/// A program bound to memory.
struct Bench {
    program: Box<dyn Fn() -> TrainProgram>,
    frozen: Arc<Frozen>,
    state: TrainState,
}

impl Bench {
    fn tiny(adapter: &Adapter, seeds: &[u64]) -> Bench {
        let adapter = adapter.clone();
        let program = move || TrainProgram::new(&tiny::config(), true, &adapter, DROPOUT);
        let graph = program().graph;
        Bench {
            frozen: tiny::frozen(&graph),
            state: tiny::state(&graph, seeds),
            program: Box::new(program),
        }
    }

    /// What a step measures, the state after it, and the size of the arena in bytes.
    fn step(&self, rounds: &[Round], max_tokens: Option<usize>) -> (Measured, TrainState, usize) {
        let program = (self.program)();
        let mut state = self.state.clone();
        state.grads.fill(f32::NAN);
        let (graph, frozen) = (program.graph.clone(), self.frozen.clone());
        let exec = CpuExecutor::new(graph, frozen, &state, tiny::pool(2));
        let mut runner = StepRunner::new(program, Box::new(exec), max_tokens);
        let measured = runner.step(&mut state, rounds).expect("ran");
        (measured, state, runner.arena_bytes())
    }

    /// Fails unless gradients, losses and norms are those without a limit; returns the worst error.
    fn compare(&self, rounds: &[Round], max_tokens: usize) -> f32 {
        let (whole, want, _) = self.step(rounds, None);
        let (cut, got, _) = self.step(rounds, Some(max_tokens));
        let mut worst = 0f32;
        for t in 0..want.tensors.len() {
            for g in 0..want.members {
                let range = want.range(t, g);
                let (got, want) = (&got.grads[range.clone()], &want.grads[range]);
                let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                let error = common::max_diff(got, want) / largest.max(f32::MIN_POSITIVE);
                let name = &self.state.tensors[t].name;
                assert!(error <= LIMIT, "{name} of {g}: off by {error:.1e}");
                worst = worst.max(error);
            }
        }
        for (got, want) in cut.terms.iter().zip(&whole.terms) {
            for (got, want) in got.iter().zip(want) {
                common::assert_close("losses", got, want, 1e-6, 1e-5);
            }
        }
        common::assert_close("norms", &cut.norms, &whole.norms, 0.0, 1e-5);
        worst
    }
}

/// Items of each member, in one round.
fn tiny_round(adapter: &Adapter, members: &[usize], items: &[usize], lr: f64) -> Round {
    let c = tiny::config();
    let sizes = (c.vocab, c.embed_dim);
    let data: Vec<MemberData> = members
        .iter()
        .zip(items)
        .map(|(g, n)| {
            let paired = KINDS[*g].0.partner().is_some();
            MemberData::new(50 + *g as u64, (*n, paired), 13, sizes)
        })
        .collect();
    Round {
        batch: tiny::pack(&data.iter().collect::<Vec<_>>(), adapter.layout(&c)),
        steps: members.iter().map(|g| step(*g, lr)).collect(),
    }
}

#[test]
fn gradients_are_those_of_the_whole_step() {
    let adapters = [
        ("everything", tiny::everything(3)),
        ("bottleneck", Adapter::bottleneck(7)),
        ("compacter", tiny::compacter(5, 7)),
        ("prompt", Adapter::prompt(3)),
    ];
    for (name, adapter) in adapters {
        let bench = Bench::tiny(&adapter, &[1, 2, 3, 4]);
        let round = |items: [usize; 4]| tiny_round(&adapter, &[0, 1, 2, 3], &items, 0.0);
        // The second round's first member has nothing, and its last fits.
        let rounds = [round([9, 11, 7, 5]), round([0, 7, 9, 2])];
        for max_tokens in [13, 40, 100] {
            let worst = bench.compare(&rounds, max_tokens);
            println!("{name}, {max_tokens} tokens: within {worst:.1e}");
        }
    }
}

/// The model and the texts of the golden cases, every text loss, LoRA on every linear layer.
#[test]
fn gradients_on_a_golden_model_are_those_of_the_whole_step() {
    let Some(folder) = common::goldens() else {
        return;
    };
    let model = golden::open_model(&folder);
    let data = golden::batches(&folder);
    let lora = LoraConfig {
        rank: 4,
        targets: LINEAR_LAYERS.map(String::from).to_vec(),
        ..LoraConfig::default()
    };
    let adapter = Adapter {
        lora: Some(lora),
        layer_norms: true,
        ..Adapter::default()
    };
    let members = data.iter().cycle().zip(KINDS).map(|(b, (strategy, ..))| {
        let side = |r: Role| golden::texts(&b.texts[r.index()], r.index() as u8);
        let texts = MemberTexts {
            anchors: side(strategy.anchor()),
            partners: strategy.partner().map_or(vec![], side),
        };
        (texts, b.image.clone())
    });
    let (texts, images): (Vec<_>, Vec<_>) = members.unzip();
    let round = Round {
        batch: Batch::pack(&texts, adapter.layout(&model.config), images.concat()),
        steps: (0..KINDS.len()).map(|g| step(g, 0.0)).collect(),
    };
    let (config, head) = (model.config.clone(), model.head);
    let program = move || TrainProgram::new(&config, head, &adapter, DROPOUT);
    let graph = program().graph;
    let bench = Bench {
        frozen: Arc::new(model.bind(&graph).expect("bound")),
        state: tiny::state(&graph, &[1, 2, 3, 4]),
        program: Box::new(program),
    };
    let tokens = round.batch.tokens();
    for max_tokens in [round.batch.longest(), tokens / 7, tokens / 2] {
        let worst = bench.compare(std::slice::from_ref(&round), max_tokens);
        println!("{max_tokens} of {tokens} tokens: within {worst:.1e}");
    }
}

/// Every number of one member.
fn bits(state: &TrainState, g: usize) -> Vec<u32> {
    let arrays = [&state.values, &state.grads, &state.m, &state.v];
    let ranges = (0..state.tensors.len()).map(|t| state.range(t, g));
    ranges
        .flat_map(|r| arrays.map(|a| a[r.clone()].to_vec()).concat())
        .map(f32::to_bits)
        .collect()
}

/// Invariant 1, with members that are cut and members that fit.
#[test]
fn members_in_company_are_cut_as_alone() {
    let items = [9, 11, 7, 5];
    let adapter = tiny::everything(3);
    let seeds = [1, 2, 3, 4];
    let company = Bench::tiny(&adapter, &seeds);
    let rounds = [tiny_round(&adapter, &[0, 1, 2, 3], &items, 1e-3)];
    for max_tokens in [13, 40, 120] {
        let (measured, together, _) = company.step(&rounds, Some(max_tokens));
        for g in 0..4 {
            let own = [tiny_round(&adapter, &[g], &items[g..=g], 1e-3)];
            let bench = Bench::tiny(&adapter, &seeds[g..=g]);
            let (alone, state, _) = bench.step(&own, Some(max_tokens));
            assert!(bits(&state, 0) == bits(&together, g), "{max_tokens}: {g}");
            assert_eq!(alone.norms[0].to_bits(), measured.norms[g].to_bits());
            // One that fits has the bytes of a run without a limit.
            if own[0].batch.tokens() <= max_tokens {
                let (_, free, _) = bench.step(&own, None);
                assert!(bits(&state, 0) == bits(&free, 0), "{max_tokens}: {g}");
            }
        }
    }
    let fits = rounds[0]
        .batch
        .members
        .iter()
        .filter(|m| m.tokens.len() <= 120);
    assert!((1..4).contains(&fits.count()), "the cases are not mixed");
}

/// 4,096 captions against 4,096 images.
#[test]
fn a_large_batch_takes_the_memory_of_a_small_one() {
    let adapter = Adapter::lora(2);
    let bench = Bench::tiny(&adapter, &[1]);
    let arena = |items: usize, max_tokens| {
        let round = tiny_round(&adapter, &[3], &[items], 1e-3);
        let tokens = round.batch.tokens();
        let (measured, _, bytes) = bench.step(&[round], max_tokens);
        assert!(measured.norms[0].is_finite() && measured.norms[0] > 0.0);
        (tokens, bytes)
    };
    let (tokens, large) = arena(4096, Some(512));
    // As many tokens as a piece has, in one pass.
    let (small_tokens, small) = arena(75, None);
    assert!(
        tokens > 20_000 && (400..=512).contains(&small_tokens),
        "{small_tokens}"
    );
    // What is left of the whole are rows of features: a few a text, 23 wide.
    let features = 4096 * 23 * 4;
    println!("arena {large} for {tokens} tokens, {small} for {small_tokens}");
    assert!(large <= small + 8 * features, "{large} {small}");
    let (_, whole) = arena(512, None);
    assert!(large < whole, "512 captions at once take {whole}");
}

fn losses(w: &World, run: &str) -> Vec<f64> {
    let text = w.text(format!("{run}/metrics.jsonl"));
    let rows = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    rows.filter_map(|r| r["loss"].as_f64()).collect()
}

#[test]
fn train_takes_a_limit() {
    let w = World::new();
    let more = ["--strategy=routine1", "--lang=de,ko", "--joint"];
    let with = |limit| [&more[..], &[limit][..]].concat();
    w.train("free", &more).ok();
    w.train("cut", &with("--max-tokens=70")).ok();
    let (free, cut) = (losses(&w, "free"), losses(&w, "cut"));
    assert_eq!((free.len(), cut.len()), (8, 8));
    for (a, b) in free.iter().zip(&cut) {
        assert!((a - b).abs() <= 1e-4 * a.abs(), "{a} {b}");
    }
    // A limit that nothing reaches changes no byte.
    w.train("wide", &with("--max-tokens=100000")).ok();
    for file in ["metrics.jsonl", "adapter_last.safetensors"] {
        let [a, b] = ["free", "wide"].map(|run| w.read(format!("{run}/{file}")));
        assert!(a == b, "{file}");
    }
    let last = w.read("cut/adapter_last.safetensors");
    assert!(w.text("cut/config.toml").contains("max-tokens = 70"));
    let config = w.text("cut/config.toml").replace("\"cut\"", "\"again\"");
    w.write("again.toml", config);
    w.run(["train", "--config=again.toml", "--threads=2"]).ok();
    assert!(last == w.read("again/adapter_last.safetensors"));
    for (limit, says) in [
        ("--max-tokens=0", "max-tokens: found 0, expected at least 1"),
        (
            "--max-tokens=3",
            "max-tokens: found 3, but the longest text to train on has",
        ),
    ] {
        let ran = w.train("bad", &with(limit));
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
        assert!(!w.path("bad").exists());
    }
}

#[test]
fn plan_shows_what_a_limit_saves() {
    let w = World::new();
    let arena = |texts: usize, tokens: usize, more: &[&str]| {
        let sizes = [format!("--texts={texts}"), format!("--tokens={tokens}")];
        let args = ["plan", "--model=model", "--json"].iter().copied();
        let args = args
            .chain(sizes.iter().map(String::as_str))
            .chain(more.iter().copied());
        let plan = w.run(args).ok().json();
        plan["arena_bytes"].as_u64().expect("a number")
    };
    let limit = ["--max-tokens=640"];
    let piece = arena(32, 640, &[]);
    assert_eq!(arena(32, 640, &limit), piece);
    assert!(arena(200, 4000, &limit) <= piece);
    assert!(arena(200, 4000, &[]) > 5 * piece);
    // Rows of features of all texts, where those are more than a piece.
    assert!(arena(100_000, 2_000_000, &limit) > piece);
}
