//! Soft prompts as a user meets them: trained, resumed, used, refused.

mod common;

use common::tiny;
use common::world::{MAX_TOKENS, Ran, World};
use crosstune::adapter::Adapter;
use crosstune::adapter::file::AdapterFile;
use crosstune::adapter::prompt::SOFT_EMBEDS;
use crosstune::engine::{Engine, EngineOptions};
use crosstune::exec::state::TrainState;
use crosstune::model::text::{DropoutRates, WORD_EMBEDDINGS};
use crosstune::train::program::TrainProgram;
use crosstune::weights::checkpoint::Checkpoint;
use crosstune::weights::config::TextConfig;
use serde_json::Value;

const ADAPTER: &str = "run/adapter_last.safetensors";
const WORDS: &str = "--prompt-text=ein roter Kreis";

/// `train` with a prompt and these options.
fn train(w: &World, more: &[&str]) -> Ran {
    let mut args = common::world::train_args("run", &[&["--method=prompt"], more].concat());
    args.retain(|a| !a.starts_with("--rank="));
    w.run(args)
}

fn engine(w: &World) -> Engine {
    let options = EngineOptions {
        threads: Some(1),
        ..EngineOptions::default()
    };
    Engine::open(&w.path("model"), options).expect("a model")
}

fn load(w: &World) -> AdapterFile {
    AdapterFile::load(&w.path(ADAPTER)).expect("an adapter")
}

#[test]
fn a_run_trains_the_vectors_alone_and_its_adapter_is_used() {
    let w = World::new();
    let summary = train(&w, &["--json"]).ok().json();
    assert_eq!(summary["trainable_parameters"], 4 * 32);
    let kept = w.text("run/config.toml");
    for line in ["method = \"prompt\"", "prompt-length = 4"] {
        assert!(kept.lines().any(|l| l == line), "{line}\n{kept}");
    }
    let file = load(&w);
    assert_eq!(file.config, Adapter::prompt(4));
    assert_eq!(file.tensors.len(), 1);
    assert_eq!(
        (&*file.tensors[0].0, &file.tensors[0].1[..]),
        (SOFT_EMBEDS, &[4, 32][..])
    );
    let use_it = "--adapter=run/adapter_last.safetensors";
    let eval = |more: &[&str]| {
        let args = ["eval", "--model=model", "--jsonl=world.jsonl", "--json"];
        let data = ["--features=features.safetensors", "--lang=de", "--shots=20"];
        w.run(args.iter().chain(&data).chain(more)).ok().json()
    };
    assert_ne!(eval(&[]), eval(&[use_it]));
    // Encoded by the program as by the library.
    w.write("texts.txt", "ein roter Kreis\nx\n");
    let encode = [
        "encode",
        "--model=model",
        "--texts=texts.txt",
        use_it,
        "--out=f.safetensors",
    ];
    w.run(encode).ok();
    let got = Checkpoint::open(&w.path("f.safetensors")).expect("features");
    let (_, view) = got.tensors().next().expect("features");
    let texts = ["ein roter Kreis", "x"];
    let want = engine(&w).encode(&texts, Some(&file)).expect("features");
    assert_eq!(view.to_f32(), want);
    assert_ne!(want, engine(&w).encode(&texts, None).expect("features"));
}

#[test]
fn layer_norms_and_head_are_trained_by_choice() {
    let w = World::new();
    let more = [
        "--freeze-layer-norms=false",
        "--train-head",
        "--prompt-length=2",
        "--json",
    ];
    let summary = train(&w, &more).ok().json();
    // Two layers with two norms of 32, twice, and the head.
    assert_eq!(summary["trainable_parameters"], 2 * 32 + 8 * 32 + 16 * 33);
}

#[test]
fn words_are_what_the_vectors_begin_as() {
    let w = World::new();
    train(&w, &[WORDS, "--lr=0"]).ok();
    let kept = w.text("run/config.toml");
    assert!(kept.contains("prompt-text = \"ein roter Kreis\""), "{kept}");
    assert!(!kept.contains("prompt-length"), "{kept}");
    let engine = engine(&w);
    let ids = engine.tokenize(&["ein roter Kreis"]).expect("tokens");
    let ids = &ids[0][1..ids[0].len() - 1];
    let file = load(&w);
    let words = file.config.prompt.as_ref().and_then(|p| p.words.as_ref());
    assert_eq!(words.map(|w| &w.ids[..]), Some(ids));
    let model = Checkpoint::open(&w.path("model")).expect("a checkpoint");
    let table = model.tensor(WORD_EMBEDDINGS).expect("the table").to_f32();
    let rows = ids.iter().flat_map(|id| &table[*id as usize * 32..][..32]);
    assert_eq!(file.tensors[0].2, rows.copied().collect::<Vec<f32>>());
}

#[test]
fn a_run_goes_on_with_its_words() {
    let w = World::new();
    train(&w, &[WORDS, "--save-every=3"]).ok();
    let want = w.read(ADAPTER);
    for file in ["run/summary.json", ADAPTER] {
        std::fs::remove_file(w.path(file)).expect("removed");
    }
    w.run(["train", "--resume=run"]).ok();
    assert!(w.read(ADAPTER) == want);
    // Another tokenizer reads other words, which is another run.
    std::fs::remove_file(w.path("run/summary.json")).expect("removed");
    let mut tokenizer: Value =
        serde_json::from_slice(&w.read("model/tokenizer.json")).expect("JSON");
    let vocab = tokenizer["model"]["vocab"]
        .as_object_mut()
        .expect("a vocabulary");
    let ids = engine(&w).tokenize(&["Kreis", "roter"]).expect("tokens");
    let name = |id: u32| {
        vocab
            .iter()
            .find(|(_, v)| **v == id)
            .map(|(k, _)| k.clone())
    };
    let (a, b) = (
        name(ids[0][1]).expect("a word"),
        name(ids[1][1]).expect("a word"),
    );
    vocab.insert(a, ids[1][1].into());
    vocab.insert(b, ids[0][1].into());
    w.write("model/tokenizer.json", tokenizer.to_string());
    let ran = w.run(["train", "--resume=run"]);
    let says = "belongs to a run with another model, other settings or other data";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
}

#[test]
fn mistakes_are_named() {
    let w = World::new();
    let cases: [(&[&str], &str); 9] = [
        (
            &["--prompt-length=0"],
            "prompt-length: found 0, expected at least 1",
        ),
        (
            &["--prompt-length=94"],
            "prompt: has 94 vectors, but the model has 96 positions, of which a text takes at least 3",
        ),
        (
            &["--prompt-length=2", WORDS],
            "prompt-length: the tokens of --prompt-text say it; drop one of the two",
        ),
        (&["--prompt-text= "], "prompt-text: \" \" holds no words"),
        (
            &["--rank=2"],
            "rank: goes with --method lora or cross alone",
        ),
        (
            &["--method=head", WORDS],
            "prompt-text: goes with --method prompt alone",
        ),
        (
            &["--method=lora", "--prompt-length=3"],
            "prompt-length: goes with --method prompt alone",
        ),
        (
            &["--config=bad.toml"],
            "bad.toml: `prompt-length`: invalid type: string",
        ),
        (
            &["--config=both.toml"],
            "prompt-length: the tokens of --prompt-text say it",
        ),
    ];
    w.write("bad.toml", "prompt-length = 'four'\n");
    w.write("both.toml", "prompt-length = 4\nprompt_text = 'Kreis'\n");
    let before = w.snapshot();
    for (more, says) in cases {
        let mut args = common::world::train_args("run", &[&["--method=prompt"], more].concat());
        args.retain(|a| !a.starts_with("--rank=") || more.contains(&a.as_str()));
        if more.iter().any(|m| m.starts_with("--method")) {
            args.retain(|a| a != "--method=prompt");
        }
        let ran = w.run(args);
        assert!(
            ran.code == 2 && ran.stderr.contains(says),
            "{more:?}: {}",
            ran.stderr
        );
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(w.snapshot() == before, "{more:?}");
    }
}

#[test]
fn a_text_and_the_prompt_share_the_positions() {
    let w = World::new();
    let long = "ein ".repeat(MAX_TOKENS - 4);
    w.write("texts.txt", format!("x\n{long}\n"));
    let encode = |more: &[&str]| {
        let args = [
            "encode",
            "--model=model",
            "--texts=texts.txt",
            "--out=f.safetensors",
        ];
        w.run(args.iter().chain(&["--force"]).chain(more))
    };
    let use_it = "--adapter=run/adapter_last.safetensors";
    encode(&[]).ok();
    train(&w, &["--prompt-length=2"]).ok();
    encode(&[use_it]).ok();
    std::fs::remove_dir_all(w.path("run")).expect("removed");
    train(&w, &["--prompt-length=3"]).ok();
    let before = w.snapshot();
    let ran = encode(&[use_it]);
    let says = "text 2 has 94 tokens, expected 1 to 93, the model's 96 positions less the 3 of the \
                prompt; shorten it or leave it out";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    assert!(w.snapshot() == before);
    // In training and validation it is found before the first step.
    std::fs::remove_dir_all(w.path("run")).expect("removed");
    w.edit_line("world.jsonl", 45, |line| {
        let mut row: Value = serde_json::from_str(line).expect("JSON");
        row["captions"]["de"] = long.clone().into();
        row.to_string()
    });
    let ran = train(&w, &["--prompt-length=3"]);
    let says = "has 94 tokens, expected 1 to 93";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("captions `target`: text"),
        "{}",
        ran.stderr
    );
    assert!(!w.path("run").exists());
}

#[test]
fn the_plan_counts_the_vectors() {
    let w = World::new();
    let plan = |more: &[&str]| {
        let args = ["plan", "--model=model", "--method=prompt", "--json"];
        w.run(args.iter().chain(more))
    };
    let count = |more: &[&str]| plan(more).ok().json()["trainable_parameters"].clone();
    assert_eq!(count(&[]), 4 * 32);
    assert_eq!(count(&["--prompt-length=7"]), 7 * 32);
    let ids = engine(&w).tokenize(&["ein roter Kreis"]).expect("tokens");
    assert_eq!(count(&[WORDS]), (ids[0].len() - 2) * 32);
    let ran = plan(&["--prompt-length=94"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("prompt: has 94 vectors"),
        "{}",
        ran.stderr
    );
}

/// The count of the paper's table, XLM-R Large with a prompt of 4.
#[test]
fn four_vectors_of_the_large_model_are_4096_parameters() {
    let large = TextConfig {
        vocab: 250_002,
        hidden: 1024,
        layers: 24,
        heads: 16,
        ffn: 4096,
        max_positions: 514,
        embed_dim: 768,
        ..tiny::config()
    };
    let program = TrainProgram::new(&large, true, &Adapter::prompt(4), DropoutRates::NONE);
    assert_eq!(TrainState::new(&program.graph, 1).parameters(), 4096);
}
