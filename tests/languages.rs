//! Several languages in one run: one adapter for all (joint training: the objective is the mean of
//! theirs), or one adapter each.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::tiny::{self, MemberData};
use common::world::World;
use crosstune::adapter::Adapter;
use crosstune::adapter::file::AdapterFile;
use crosstune::data::features::Features;
use crosstune::data::{self, JsonlFiles, Needs, Protocol, Role, Shots, Source};
use crosstune::engine::{Engine, EngineOptions};
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::{Adam, MemberStep};
use crosstune::model::text::DropoutRates;
use crosstune::train::config::{MemberConfig, Shared};
use crosstune::train::examples::Examples;
use crosstune::train::objective::{Strategy, TextLoss};
use crosstune::train::program::TrainProgram;
use crosstune::train::step::{Round, StepRunner};
use crosstune::train::trainer::{Event, LanguageSet, Member, Trainer};
use serde_json::Value;

/// Largest error over the largest entry. Measured: 5.3e-7.
const LIMIT: f32 = 2e-6;

/// Fails unless `got` is near the mean of `parts`.
#[track_caller]
fn assert_mean(what: &str, got: &[f32], parts: &[Vec<f32>]) {
    let mean: Vec<f32> = (0..got.len())
        .map(|i| parts.iter().map(|p| p[i]).sum::<f32>() / parts.len() as f32)
        .collect();
    let largest = mean.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = common::max_diff(got, &mean) / largest;
    assert!(
        largest > 0.0 && worst <= LIMIT,
        "{what}: off by {worst:.1e}"
    );
    println!("{what}: within {worst:.1e}");
}

/// Two members of unequal sizes over three rounds, with dropout; the second has two rounds only.
#[test]
fn rounds_add_up_to_the_mean_of_their_gradients() {
    let c = tiny::config();
    let rates = DropoutRates {
        hidden: 0.1,
        attention: 0.1,
    };
    let adapter = tiny::everything(3);
    let data = |round: u64, g: u64| {
        let items = match (round, g) {
            (2, 1) => 0,
            _ => 3 + (round + g) as usize,
        };
        MemberData::new(
            70 + 10 * round + g,
            (items, g == 0),
            11,
            (c.vocab, c.embed_dim),
        )
    };
    let round = |r: u64, weight: [f32; 2]| {
        let members = [data(r, 0), data(r, 1)];
        let batch = tiny::pack(&members.iter().collect::<Vec<_>>(), adapter.layout(&c));
        let strategies = [Strategy::Routine1, Strategy::Baseline1];
        let step = |g: usize| MemberStep {
            seed: 9 + g as u64,
            weights: strategies[g]
                .weights(TextLoss::Contrastive, 0.7, false)
                .times(weight[g]),
            adam: Adam {
                lr: 0.0,
                ..Adam::default()
            },
            ..MemberStep::default()
        };
        Round {
            batch,
            steps: vec![step(0), step(1)],
        }
    };
    let gradients = |rounds: &[Round]| {
        let program = TrainProgram::new(&c, true, &adapter, rates);
        let mut state = tiny::state(&program.graph, &[1, 2]);
        let frozen = tiny::frozen(&program.graph);
        let exec = CpuExecutor::new(program.graph.clone(), frozen, &state, tiny::pool(2));
        let mut runner = StepRunner::new(program, Box::new(exec), None);
        // What an earlier step left must not count.
        state.grads.fill(f32::NAN);
        runner.step(&mut state, rounds).expect("ran");
        let of = |g| -> Vec<f32> {
            let tensors = 0..state.tensors.len();
            tensors
                .flat_map(|t| &state.grads[state.range(t, g)])
                .copied()
                .collect()
        };
        [of(0), of(1)]
    };
    let weight = [1.0 / 3.0, 0.5];
    let joint = gradients(&[round(0, weight), round(1, weight), round(2, weight)]);
    let alone = [0, 1, 2].map(|r| gradients(&[round(r, [1.0; 2])]));
    let [a, b] = [0, 1].map(|g| alone.each_ref().map(|x| x[g].clone()));
    assert_mean("three rounds", &joint[0], &a);
    assert_mean("two rounds", &joint[1], &b[..2]);
}

/// A tiny world with an engine, and its languages as examples.
struct Bench {
    world: World,
    engine: Engine,
}

impl Bench {
    fn new() -> Bench {
        let world = World::new();
        let options = EngineOptions {
            threads: Some(2),
            ..EngineOptions::default()
        };
        let engine = Engine::open(&world.path("model"), options).expect("engine");
        Bench { world, engine }
    }

    fn language(&self, name: &str) -> LanguageSet {
        let source = Source::Jsonl(JsonlFiles::One(self.world.path("world.jsonl")));
        let needs = Needs {
            train: &[Role::Target, Role::English],
            eval: &[Role::Target],
        };
        let protocol = Protocol {
            shots: Shots::Few(20),
            ..Protocol::default()
        };
        let loaded = data::load(&source, name, &protocol, needs).expect("loaded");
        let file = self.world.path("features.safetensors");
        let features = Features::load(&file).expect("features");
        let examples = |split| {
            Arc::new(Examples::new(&self.engine, split, &features, &file).expect("examples"))
        };
        LanguageSet {
            train: examples(&loaded.train),
            validation: Some(examples(&loaded.validation)),
        }
    }

    fn member(&self, names: &[&str], batch: usize) -> Member {
        let config = MemberConfig {
            strategy: Strategy::Routine1,
            batch,
            epochs: 1,
            seed: 5,
            eval_every: 2,
            ..MemberConfig::default()
        };
        Member {
            config,
            languages: names.iter().map(|n| self.language(n)).collect(),
        }
    }

    fn trainer(&self, members: Vec<Member>, dropout: f32) -> Trainer<'_> {
        let shared = Shared {
            adapter: Adapter::lora(2),
            hidden_dropout: Some(dropout),
            attention_dropout: Some(dropout),
            max_tokens: None,
        };
        Trainer::new(&self.engine, shared, members).expect("a trainer")
    }

    /// The gradient of the only step, and its loss.
    fn gradient(&self, names: &[&str], dropout: f32) -> (Vec<f32>, f32) {
        let mut trainer = self.trainer(vec![self.member(names, 20)], dropout);
        let mut loss = f32::NAN;
        let ran = trainer.run(&mut |event| {
            if let Event::Step(s) = event {
                loss = s.loss;
            }
            ControlFlow::Continue(())
        });
        ran.expect("ran");
        assert_eq!(trainer.step(), 1);
        (trainer.state().grads.clone(), loss)
    }
}

#[test]
fn a_joint_gradient_is_the_mean_of_its_languages() {
    let bench = Bench::new();
    let names = ["de", "fr", "ko"];
    let (joint, joint_loss) = bench.gradient(&names, 0.0);
    let (alone, losses): (Vec<_>, Vec<_>) = names.iter().map(|n| bench.gradient(&[n], 0.0)).unzip();
    assert_mean("gradients", &joint, &alone);
    let losses: Vec<Vec<f32>> = losses.into_iter().map(|l| vec![l]).collect();
    assert_mean("losses", &[joint_loss], &losses);
}

#[test]
fn dropout_differs_by_language() {
    let bench = Bench::new();
    let twice = |dropout| {
        (
            bench.gradient(&["de", "de"], dropout),
            bench.gradient(&["de"], dropout),
        )
    };
    let (joint, alone) = twice(0.0);
    assert_mean("without dropout", &joint.0, &[alone.0]);
    let (joint, alone) = twice(0.2);
    assert!(
        common::max_diff(&joint.0, &alone.0)
            > 1e-3 * alone.0.iter().fold(0f32, |m, x| m.max(x.abs())),
        "both languages dropped the same numbers"
    );
}

/// What a member leaves, and its evaluations.
fn run(bench: &Bench, members: Vec<Member>) -> Vec<(AdapterFile, AdapterFile, Vec<String>)> {
    let n = members.len();
    let mut evaluated = vec![Vec::new(); n];
    let mut trainer = bench.trainer(members, 0.1);
    let outcomes = trainer
        .run(&mut |event| {
            if let Event::Evaluated {
                member,
                language,
                step,
                recall,
                best,
            } = event
            {
                evaluated[*member].push(format!("{step} {language} {recall:?} {best}"));
            }
            ControlFlow::Continue(())
        })
        .expect("ran");
    let both = outcomes.into_iter().zip(evaluated);
    both.map(|(o, e)| (o.last, o.best.expect("evaluated").0, e))
        .collect()
}

/// Invariant 1, across members of one, two and three languages.
#[test]
fn joint_members_in_company_are_as_alone() {
    let bench = Bench::new();
    let members = [
        bench.member(&["ko", "de"], 6),
        bench.member(&["fr"], 5),
        bench.member(&["de", "es", "tr"], 7),
    ];
    let company = run(&bench, members.to_vec());
    for (g, member) in members.into_iter().enumerate() {
        let languages = member.languages.len();
        let alone = run(&bench, vec![member]);
        assert_eq!(alone[0].2.len() % languages, 0);
        assert!(!alone[0].2.is_empty());
        assert!(alone[0] == company[g], "member {g} differs in company");
    }
}

/// A language with fewer items begins its next epoch while the largest is not done.
#[test]
fn languages_of_unequal_sizes_are_all_trained_on() {
    let bench = Bench::new();
    let mut member = bench.member(&["de", "fr"], 4);
    let few = Examples {
        texts: member.languages[1].train.texts.clone().map(|mut t| {
            t.truncate(6);
            t
        }),
        images: member.languages[1].train.images[..6 * member.languages[1].train.dim].to_vec(),
        dim: member.languages[1].train.dim,
    };
    member.languages[1].train = Arc::new(few);
    let mut trainer = bench.trainer(vec![member], 0.0);
    assert_eq!(trainer.last_step(), 5);
    let mut tokens = Vec::new();
    trainer
        .run(&mut |event| {
            if let Event::Step(s) = event {
                tokens.push(s.tokens);
            }
            ControlFlow::Continue(())
        })
        .expect("ran");
    assert_eq!(tokens.len(), 5);
}

/// The adapters and the best evaluations of a run of one language.
fn results(w: &World, folder: &str) -> [Vec<u8>; 2] {
    ["last", "best"].map(|which| w.read(format!("{folder}/adapter_{which}.safetensors")))
}

/// Lines of metrics.jsonl of one language.
fn metrics(w: &World, run: &str, language: &str) -> Vec<Value> {
    let text = w.text(format!("{run}/metrics.jsonl"));
    let rows = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    let mut rows: Vec<Value> = rows.filter(|r| r["language"] == language).collect();
    // Of a step, the tokens are all members'.
    for row in &mut rows {
        row.as_object_mut().expect("an object").remove("tokens");
    }
    rows
}

#[test]
fn one_run_trains_an_adapter_for_each_language() {
    let w = World::new();
    let names = ["de", "ko", "fr"];
    let ran = w.train("many", &["--lang=de,ko,fr"]).ok();
    assert!(
        ran.stdout.contains("mean R@1 of 3 languages"),
        "{}",
        ran.stdout
    );
    let summary: Value = serde_json::from_str(&w.text("many/summary.json")).expect("JSON");
    let of_languages = summary["languages"].as_array().expect("a list");
    assert_eq!(of_languages.len(), names.len());
    for (name, many) in names.iter().zip(of_languages) {
        let lang = format!("--lang={name}");
        w.train(name, &[&lang]).ok();
        let company = format!("many/{name}");
        assert!(results(&w, name) == results(&w, &company), "{name}");
        assert_eq!(metrics(&w, name, name), metrics(&w, "many", name));
        assert!(!metrics(&w, name, name).is_empty());
        let alone: Value =
            serde_json::from_str(&w.text(format!("{name}/summary.json"))).expect("JSON");
        for (key, value) in many.as_object().expect("an object") {
            assert_eq!(&alone[key], value, "{name}: {key}");
        }
    }
    let ran = w.run(["train", "--resume=many"]).ok();
    assert!(ran.stdout.contains("this run is finished, all 8 steps"));
}

#[test]
fn a_joint_run_leaves_one_adapter() {
    let w = World::new();
    let ran = w
        .train("joint", &["--lang=de,ko", "--joint", "--json"])
        .ok();
    let summary = ran.json();
    assert_eq!(summary["joint"], true);
    let languages = summary["languages"].as_array().expect("a list");
    let names: Vec<&Value> = languages.iter().map(|l| &l["language"]).collect();
    assert_eq!(names, ["de", "ko"]);
    let steps = metrics(&w, "joint", "de,ko");
    assert_eq!(steps.len(), 8);
    let best = w.path("joint/adapter_best.safetensors");
    let file = AdapterFile::load(&best).expect("an adapter");
    assert_eq!(file.origin["language"], "de,ko");
    // The best is the one with the best mean over languages.
    let scores = |step: u64| -> f64 {
        let of = |name| {
            let rows = metrics(&w, "joint", name);
            let row = rows.iter().find(|r| r["step"] == step).expect("evaluated");
            let recall = &row["validation"];
            let at = |side: &str| recall[side][0].as_f64().expect("a number");
            (at("i2t") + at("t2i")) / 2.0
        };
        (of("de") + of("ko")) / 2.0
    };
    let chosen = languages[0]["best"]["step"].as_u64().expect("a step");
    assert!([4, 8].iter().all(|s| scores(*s) <= scores(chosen)));
    let score = languages[0]["best"]["validation_score"].as_f64();
    assert!(score.is_some_and(|s| (s - scores(chosen)).abs() < 1e-4));
    assert!(!w.path("joint/de").exists());
}

#[test]
fn runs_of_several_languages_resume_to_the_byte() {
    for (more, files) in [
        (&["--lang=de,ko", "--joint"][..], &[""][..]),
        (&["--lang=de,ko"][..], &["/de", "/ko"][..]),
    ] {
        let w = World::new();
        let options =
            |epochs| [more, &["--strategy=routine1", "--save-every=3", epochs][..]].concat();
        w.train("whole", &options("--epochs=3")).ok();
        let mut child = w
            .command(common::world::train_args("run", &options("--epochs=3")))
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("started");
        let begin = std::time::Instant::now();
        while !w.path("run/checkpoint.safetensors").exists() {
            assert!(begin.elapsed().as_secs() < 120, "no checkpoint");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("waited");
        w.run(["train", "--resume=run"]).ok();
        for file in files {
            let [whole, run] = ["whole", "run"].map(|r| results(&w, &format!("{r}{file}")));
            assert!(whole == run, "{more:?}{file}");
        }
        assert_eq!(w.text("whole/metrics.jsonl"), w.text("run/metrics.jsonl"));
    }
}

#[test]
fn mistakes_in_languages_are_named() {
    let w = World::new();
    for (more, says) in [
        (
            &["--lang=de,de"][..],
            "lang: `de` is named twice in `de,de`",
        ),
        (&["--lang=de,,ko"], "lang: found an empty name in `de,,ko`"),
        (&["--lang=de,xx"], "xx"),
        (
            &["--lang=de", "--joint"],
            "joint: found one language, `de`; expected several",
        ),
        (
            &["--lang=de,ko", "--method=full"],
            "full training holds one member, found 2; train one language a run, or all of them jointly",
        ),
        (
            &["--lang=de,ko", "--joint", "--batch=600000"],
            "batch: 2 languages of 600000 items are 1200000 a step",
        ),
    ] {
        let mut args = common::world::train_args("run", more);
        if more.contains(&"--method=full") {
            args.retain(|a| !a.starts_with("--rank"));
        }
        let ran = w.run(args);
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{more:?}: {}", ran.stderr);
        assert!(!w.path("run").exists(), "{more:?} left a folder");
    }
}
