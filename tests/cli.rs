//! The command line from end to end, on a tiny world: what each command writes and prints.

mod common;

use std::io::Write;

use common::world::{TRAIN, World};
use crosstune::data::features::Features;
use flate2::{Compression, write::GzEncoder};
use half::f16;
use serde_json::Value;

const DATA: [&str; 2] = ["--jsonl=world.jsonl", "--features=features.safetensors"];

fn rows(world: &World, name: &str) -> Vec<Value> {
    let text = world.text(name);
    text.lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect()
}

#[test]
fn train_leaves_a_whole_run_folder() {
    for strategy in ["--strategy=baseline1", "--strategy=routine1"] {
        let w = World::new();
        let ran = w.train("runs/a", &[strategy]).ok();
        assert!(ran.stdout.contains("zero-shot") && ran.stdout.contains("last step"));
        let mut files: Vec<_> = w
            .snapshot()
            .into_keys()
            .filter(|p| p.starts_with("runs/a"))
            .collect();
        files.retain(|p| w.path(p).is_file());
        let names = [
            "adapter_best.safetensors",
            "adapter_last.safetensors",
            "checkpoint.safetensors",
            "config.toml",
            "metrics.jsonl",
            "summary.json",
        ];
        assert_eq!(files, names.map(|n| std::path::Path::new("runs/a").join(n)));

        let metrics = rows(&w, "runs/a/metrics.jsonl");
        let (evaluated, steps): (Vec<_>, Vec<_>) =
            metrics.iter().partition(|r| r.get("validation").is_some());
        let numbers = |rows: &[&Value]| rows.iter().map(|r| r["step"].as_u64()).collect::<Vec<_>>();
        assert_eq!(numbers(&steps), (1..=8).map(Some).collect::<Vec<_>>());
        assert_eq!(numbers(&evaluated), [Some(4), Some(8)]);
        assert!(
            steps
                .iter()
                .all(|r| r["loss"].as_f64().is_some_and(f64::is_finite))
        );
        let with_text = steps.iter().any(|r| r["text_loss"].as_f64() > Some(0.0));
        assert_eq!(with_text, strategy.ends_with("routine1"));

        let summary: Value = serde_json::from_str(&w.text("runs/a/summary.json")).expect("JSON");
        assert_eq!(
            (&summary["steps"], &summary["shots"]),
            (&8.into(), &20.into())
        );
        assert_eq!(summary["test_items"], 10);
        // The settings are complete: the same run again from them alone, to the same bytes.
        let config = w.text("runs/a/config.toml").replace("runs/a", "runs/b");
        w.write("again.toml", config);
        w.run(["train", "--config=again.toml", "--threads=2"]).ok();
        for file in [
            "adapter_best.safetensors",
            "adapter_last.safetensors",
            "metrics.jsonl",
        ] {
            let [a, b] = ["runs/a", "runs/b"].map(|run| w.read(format!("{run}/{file}")));
            assert_eq!(a, b, "{file}");
        }
    }
}

#[test]
fn the_seed_decides_the_bytes_and_threads_do_not() {
    let w = World::new();
    let bytes = |out: &str, more: &[&str]| {
        w.train(out, more).ok();
        [
            "adapter_last.safetensors",
            "adapter_best.safetensors",
            "metrics.jsonl",
        ]
        .map(|file| w.read(format!("{out}/{file}")))
    };
    let first = bytes("t1", &["--strategy=routine1"]);
    for threads in ["--threads=2", "--threads=3"] {
        let again = bytes(&threads[2..], &["--strategy=routine1", threads]);
        assert!(first == again, "{threads}");
    }
    let other = bytes("other", &["--strategy=routine1", "--seed=4"]);
    assert_ne!(first[0], other[0]);
}

#[test]
fn eval_measures_with_and_without_an_adapter() {
    let w = World::new();
    let summary = w.train("run", &["--json", "--lr=1e-2"]).ok().json();
    let eval = |more: &[&str]| {
        let args = ["eval", "--model=model", "--json"]
            .iter()
            .chain(&DATA)
            .chain(more);
        w.run(args).ok().json()
    };
    let recalls = |r: &Value| [r["i2t"].clone(), r["t2i"].clone()];
    let plain = eval(&["--lang=de"]);
    assert_eq!(
        recalls(&plain["languages"][0]),
        recalls(&summary["zero_shot"])
    );
    let adapted = eval(&["--lang=de", "--adapter=run/adapter_last.safetensors"]);
    assert_eq!(
        recalls(&adapted["languages"][0]),
        recalls(&summary["last"]["test"])
    );
    let all = eval(&["--lang=all"]);
    assert_eq!(all["languages"].as_array().map(Vec::len), Some(6));
    assert!(all["disparity"]["spread"].is_number());
    let train = eval(&["--lang=de,ko", "--split=train", "--shots=7"]);
    assert_eq!(train["languages"][1]["n"], 7);
    let text = w
        .run(["eval", "--model=model", "--lang=ko"].iter().chain(&DATA))
        .ok();
    assert!(
        text.stdout.contains("ko") && text.stdout.contains("R@10"),
        "{}",
        text.stdout
    );
}

#[test]
fn eval_reads_the_published_lay_outs() {
    let w = World::new();
    let run = |more: &[&str]| {
        let args = [
            "eval",
            "--model=model",
            "--features=features.safetensors",
            "--json",
        ];
        w.run(args.iter().chain(more)).ok().json()
    };
    let xtd = run(&["--xtd10=xtd10", "--shots=20", "--lang=all"]);
    assert_eq!(
        (
            xtd["languages"].as_array().map(Vec::len),
            &xtd["languages"][0]["n"]
        ),
        (Some(3), &20.into())
    );
    let cs = run(&["--multi30k=multi30k", "--lang=cs"]);
    assert_eq!(cs["languages"][0]["n"], 10);
    let named = run(&[
        "--multi30k=multi30k",
        "--lang=de",
        "--split=test_2017_flickr",
    ]);
    assert_eq!(named["languages"][0]["n"], 10);
}

#[test]
fn eval_warns_of_the_items_that_it_measured_alone() {
    let w = World::new();
    // Line 2 trains, line 55 tests.
    for line in [2, 55] {
        w.edit_line("world.jsonl", line, |l| {
            let mut row: Value = serde_json::from_str(l).expect("JSON");
            row["captions"]["de"] = "?".into();
            row.to_string()
        });
    }
    let warnings = |split: &str| {
        let args = [
            "eval",
            "--model=model",
            "--lang=de",
            "--json",
            "--shots=full",
            split,
        ];
        let ran = w.run(args.iter().chain(&DATA)).ok();
        let json = ran.json();
        let all: Vec<String> = serde_json::from_value(json["warnings"].clone()).expect("texts");
        assert!(all.iter().all(|text| ran.stderr.contains(text)));
        all.into_iter()
            .filter(|t| t.contains("failed translation"))
            .collect::<Vec<_>>()
    };
    for (split, line) in [("train", "line 2"), ("test", "line 55")] {
        let found = warnings(&format!("--split={split}"));
        let want = format!("de: {split}, target: 1 caption is");
        assert!(
            matches!(&found[..], [one] if one.starts_with(&want) && one.ends_with(line)),
            "{found:?}"
        );
    }
    assert!(warnings("--split=validation").is_empty());
}

#[test]
fn encode_makes_features_that_stand_in_for_images() {
    let w = World::new();
    let texts = w.text("xtd10/XTD10/test_1kcaptions_en.txt");
    let mut gz = GzEncoder::new(Vec::new(), Compression::default());
    gz.write_all(texts.as_bytes()).expect("packed");
    w.write("en.txt.gz", gz.finish().expect("packed"));
    let names = "--names=xtd10/XTD10/test_image_names.txt";
    let encode = |from: &str, out: &str, stdin: &[u8]| {
        let (from, to) = (format!("--texts={from}"), format!("--out={out}"));
        w.run_with_stdin(["encode", "--model=model", names, &from, &to], stdin)
            .ok();
        w.read(out)
    };
    let file = encode(
        "xtd10/XTD10/test_1kcaptions_en.txt",
        "file.safetensors",
        b"",
    );
    assert_eq!(file, encode("en.txt.gz", "gz.safetensors", b""));
    assert_eq!(file, encode("-", "stdin.safetensors", texts.as_bytes()));
    let eval = [
        "eval",
        "--model=model",
        "--jsonl=world.jsonl",
        "--lang=en",
        "--json",
    ];
    let same = w
        .run(eval.iter().chain(&["--features=file.safetensors"]))
        .ok()
        .json();
    // A text finds itself.
    assert_eq!(same["languages"][0]["t2i"][0], 1.0);

    let normal = [
        "encode",
        "--model=model",
        "--texts=-",
        "--out=n.safetensors",
        "--normalize",
        "--json",
    ];
    let report = w
        .run_with_stdin(normal, b"a red circle\r\n a blue square \n")
        .ok()
        .json();
    assert_eq!((&report["texts"], &report["dim"]), (&2.into(), &16.into()));
    let features = Features::load(&w.path("n.safetensors")).expect("features");
    let length: f32 = features.row(1).iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5 && features.names.is_empty());

    let half = [normal.as_slice(), &["--f16", "--force"]].concat();
    w.run_with_stdin(half, b"a red circle\r\n a blue square \n")
        .ok();
    let halves = Features::load(&w.path("n.safetensors")).expect("features");
    let rounded = |x: &f32| f16::from_f32(*x).to_f32();
    let rounded: Vec<f32> = features.values.iter().map(rounded).collect();
    assert_eq!(halves.values, rounded);
    assert_ne!(halves.values, features.values);
}

#[test]
fn convert_and_inspect_and_scan() {
    let w = World::new();
    let said = w
        .run([
            "convert",
            "model/model.safetensors",
            "half.safetensors",
            "--dtype=f16",
        ])
        .ok();
    assert_eq!(said.stdout, "half.safetensors: written\n");
    let report = w.run(["inspect", "half.safetensors", "--json"]).ok().json();
    let whole = w.run(["inspect", "model", "--json"]).ok().json();
    assert_eq!(
        report["report"]["parameters"],
        whole["report"]["parameters"]
    );
    assert_eq!(report["report"]["dtypes"]["F16"], 39);
    let said = w.run([
        "convert",
        "--json",
        "half.safetensors",
        "back.safetensors",
        "--dtype=f32",
    ]);
    assert_eq!(said.ok().json()["output"], "back.safetensors");
    let scan = w.run(["inspect", "model", "--scan"]).ok();
    assert!(
        scan.stdout.contains("every value is finite")
            && scan.stdout.contains("LinearTransformation")
    );
    w.spoil_weight("LinearTransformation.bias", 3, f32::INFINITY);
    let scan = w.run(["inspect", "model", "--scan", "--json"]);
    assert_eq!(
        (scan.code, &scan.json()["not_finite"][0]["index"]),
        (1, &3.into())
    );
    let says = "error: model/model.safetensors: not finite: LinearTransformation.bias holds inf at element 3\n";
    assert_eq!(scan.stderr, says);
}

#[test]
fn plan_shows_costs_nodes_and_places() {
    let w = World::new();
    let plan = |more: &[&str]| {
        w.run(["plan", "--model=model", "--rank=2"].iter().chain(more))
            .ok()
    };
    let short = plan(&[]).stdout;
    assert!(
        short.contains("trainable parameters") && short.contains("private copies         none")
    );
    let long = plan(&["--nodes", "--values"]).stdout;
    assert!(long.starts_with(&short) && long.lines().count() > short.lines().count() + 50);
    assert!(
        long.contains("lora_A") && long.contains("AdamStep"),
        "{long}"
    );
    let json = plan(&["--json", "--nodes", "--values"]).json();
    // Two layers: four layer-norm vectors of 32, and A (2, 32) and B (32, 2) twice.
    assert_eq!(json["trainable_parameters"], 2 * (4 * 32 + 2 * 2 * 64));
    assert_eq!(
        json["node_list"].as_array().map(Vec::len),
        json["nodes"].as_u64().map(|n| n as usize)
    );
    assert!(json["value_list"].as_array().is_some_and(|l| l.len() > 10));
    assert!(plan(&["--json"]).json().get("node_list").is_none());
}

#[test]
fn the_command_line_wins_over_the_config_file() {
    let w = World::new();
    let toml = "model = 'model'\njsonl = 'world.jsonl'\nfeatures = 'features.safetensors'\n\
                lang = 'ko'\nshots = 10\nepochs = 1\nrank = 3\nsave_every = 2\ntargets = ['key']\n";
    w.write("run.toml", toml);
    let args = [
        "train",
        "--config=run.toml",
        "--rank=1",
        "--shots=full",
        "--batch=20",
        "--out=run",
    ];
    let summary = w.run(args.iter().chain(&["--json"])).ok().json();
    assert_eq!(
        (&summary["language"], &summary["shots"], &summary["steps"]),
        (&"ko".into(), &40.into(), &2.into())
    );
    let kept = w.text("run/config.toml");
    for line in [
        "rank = 1",
        "shots = \"full\"",
        "save-every = 2",
        "eval-every = 2",
        "lang = \"ko\"",
    ] {
        assert!(kept.lines().any(|l| l == line), "{line}\n{kept}");
    }
}

#[test]
fn quiet_and_json_keep_their_streams_clean() {
    let w = World::new();
    let only_warnings = |text: &str| text.lines().all(|l| l.starts_with("warning: "));
    let ran = w
        .train("run", &["--json", "--quiet", "--strategy=routine1"])
        .ok();
    ran.json();
    assert!(only_warnings(&ran.stderr), "{}", ran.stderr);
    let again = w.run(["train", "--resume=run", "--quiet", "--json"]).ok();
    assert_eq!(again.json(), ran.json());
    let commands: [&[&str]; 4] = [
        &["eval", "--model=model", "--lang=all", DATA[0], DATA[1]],
        &[
            "encode",
            "--model=model",
            "--texts=xtd10/XTD10/test_1kcaptions_de.txt",
            "--out=f.safetensors",
        ],
        &["plan", "--model=model"],
        &["inspect", "run/adapter_last.safetensors"],
    ];
    for args in commands {
        let ran = w.run(args.iter().chain(&["--json", "--quiet"])).ok();
        ran.json();
        assert!(only_warnings(&ran.stderr), "{args:?}: {}", ran.stderr);
    }
    let loud = w.train("loud", &[]).ok();
    assert!(loud.stderr.contains("8/8 loss") && loud.stderr.contains("trainable parameters"));
}

#[test]
fn every_help_teaches_by_an_example() {
    let w = World::new();
    let top = w.run(["--help"]).ok().stdout;
    for command in [
        "train", "sweep", "eval", "encode", "search", "plan", "inspect", "convert", "merge",
        "export", "import",
    ] {
        assert!(top.contains(command), "{top}");
        let help = w.run([command, "--help"]).ok().stdout;
        let example = format!("crosstune {command} ");
        assert!(
            help.contains("Example") && help.contains(&example),
            "{help}"
        );
    }
    w.run(["demo", "--help"]).ok();
    assert!(top.contains("Exit codes: 0 done"));
    assert!(w.run(["--version"]).ok().stdout.starts_with("crosstune "));
}

#[test]
fn a_reader_that_goes_away_ends_the_program() {
    use std::os::unix::process::ExitStatusExt;
    let w = World::new();
    let commands: [&[&str]; 6] = [
        &["inspect", "model"],
        &["inspect", "model", "--json"],
        &["plan", "--model=model"],
        &["doctor"],
        &["--help"],
        &["eval", "--model=model", "--lang=all", DATA[0], DATA[1]],
    ];
    for args in commands {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = w.command(args.iter().chain(&["--quiet"]));
        let child = command
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn();
        // It holds the writing end too.
        drop(command);
        let ended = child.and_then(|c| c.wait_with_output()).expect("it ends");
        // By SIGPIPE, which a shell reports as 141.
        assert_eq!(ended.status.signal(), Some(13), "{args:?}");
        let stderr = String::from_utf8(ended.stderr).expect("UTF-8");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

/// With and without the feature `cuda`, on a machine without an eighth GPU.
#[test]
fn a_device_that_is_not_here_is_one_sentence() {
    let w = World::new();
    for device in ["cuda:7", "gpu"] {
        let device = format!("--device={device}");
        let ran = w.run(TRAIN.iter().copied().chain(["--out=run", &device]));
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        let expected = match device.ends_with('7') {
            true => "cuda:7",
            false => "expected auto, cpu, cuda:N",
        };
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
        assert!(!w.path("run").exists(), "{device}: nothing was begun");
    }
}
