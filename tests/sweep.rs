//! `crosstune sweep` on a tiny world: what it expands, packs, leaves and refuses.

mod common;

use common::sweep::{FILE, assert_same, results, sweep, world};
use common::world::{World, train_args};
use serde_json::Value;

const ADAPTERS: [&str; 2] = ["adapter_last.safetensors", "adapter_best.safetensors"];

fn members(w: &World, out: &str) -> Vec<Value> {
    let text = w.text(format!("{out}/results.jsonl"));
    text.lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect()
}

#[test]
fn a_dry_run_shows_members_and_groups() {
    let w = world(FILE);
    let before = w.snapshot();
    let json = sweep(&w, &["--dry-run", "--json"]).ok().json();
    assert_eq!((&json["members"], &json["left"]), (&12.into(), &12.into()));
    assert_eq!(json["steps"], 12 * 8);
    let group = &json["groups"][0];
    assert_eq!(json["groups"].as_array().map(Vec::len), Some(1));
    let names: Vec<&str> = group["members"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let want = [
        "de-baseline1-lr0.001-seed3",
        "de-baseline1-lr0.003-seed3",
        "de-routine1-lr0.001-ratio0.1-seed3",
        "de-routine1-lr0.003-ratio0.1-seed3",
    ];
    assert_eq!(names[..4], want);
    assert_eq!(names.len(), 12);
    let three = sweep(&w, &["--dry-run", "--json", "--max-members=5"])
        .ok()
        .json();
    let sizes: Vec<usize> = three["groups"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|g| Some(g["members"].as_array()?.len()))
        .collect();
    assert_eq!(sizes, [5, 5, 2]);
    // Half of what the whole group needs holds fewer members, and each group says what it needs.
    let all = group["memory_bytes"].as_u64().expect("bytes");
    let memory = format!("--memory={}", all as f64 / (1u64 << 31) as f64);
    let halves = sweep(&w, &["--dry-run", "--json", &memory]).ok().json();
    let groups = halves["groups"].as_array().expect("a list");
    assert!(groups.len() > 1);
    assert!(
        groups
            .iter()
            .all(|g| g["memory_bytes"].as_u64() <= Some(all / 2))
    );
    let text = sweep(&w, &["--dry-run"]).ok().stdout;
    assert!(
        text.contains("12 members, 12 of them to run, in 1 groups; 96 steps in all"),
        "{text}"
    );
    assert!(w.snapshot() == before, "a dry run writes nothing");
}

#[test]
fn options_without_a_use_make_no_members() {
    let file = "model = 'model'\njsonl = 'world.jsonl'\nfeatures = 'features.safetensors'\n\
        lang = 'de'\nstrategy = 'baseline1'\nmethod = ['lora', 'adapter', 'layernorm', 'full']\n\
        rank = [1, 2]\nbottleneck = 3\nshots = 20\ntargets = [['query'], ['query', 'value']]\n";
    let w = world(file);
    let json = sweep(&w, &["--dry-run", "--json"]).ok().json();
    let groups = json["groups"].as_array().expect("a list");
    let names: Vec<&str> = groups
        .iter()
        .flat_map(|g| g["members"].as_array().expect("a list"))
        .filter_map(Value::as_str)
        .collect();
    let want = [
        "de-baseline1-lora-rank1-targetsquery-lr2e-4-seed1",
        "de-baseline1-lora-rank1-targetsquery+value-lr2e-4-seed1",
        "de-baseline1-lora-rank2-targetsquery-lr2e-4-seed1",
        "de-baseline1-lora-rank2-targetsquery+value-lr2e-4-seed1",
        "de-baseline1-adapter-lr2e-4-seed1",
        "de-baseline1-layernorm-lr2e-4-seed1",
        "de-baseline1-full-lr2e-4-seed1",
    ];
    assert_eq!(names, want);
    assert_eq!(groups.len(), 7, "none of them may share a step");
}

#[test]
fn a_member_in_company_gives_the_bytes_of_a_run_alone() {
    let w = world(FILE);
    let ran = sweep(&w, &["--out=sweep"]).ok();
    assert!(
        ran.stderr
            .contains("12 members share a step from step 0 of 8 on"),
        "{}",
        ran.stderr
    );
    for (lang, strategy, lr, ratio) in [
        ("de", "baseline1", "1e-3", ""),
        ("ko", "routine1", "3e-3", "0.1"),
        ("ko", "routine1", "1e-3", "1"),
    ] {
        let (l, s) = (format!("--lang={lang}"), format!("--strategy={strategy}"));
        let (r, ratio_arg) = (format!("--lr={lr}"), format!("--ratio={ratio}"));
        let mut more = vec![&*l, &*s, &*r];
        let mut name = format!(
            "{lang}-{strategy}-lr{}",
            lr.replace("1e-3", "0.001").replace("3e-3", "0.003")
        );
        if !ratio.is_empty() {
            more.push(&ratio_arg);
            name += &format!("-ratio{ratio}");
        }
        name += "-seed3";
        let out = format!("alone/{name}");
        let summary: Value = w
            .run(train_args(&out, &[&more[..], &["--json"]].concat()))
            .ok()
            .json();
        for file in ADAPTERS {
            let [a, b] = [&out, &format!("sweep/{name}")].map(|d| w.read(format!("{d}/{file}")));
            assert!(a == b, "{name}/{file}");
        }
        let result: Value =
            serde_json::from_str(&w.text(format!("sweep/{name}/result.json"))).expect("JSON");
        assert_eq!(
            result["languages"][0]["last"], summary["last"]["test"],
            "{name}"
        );
        assert_eq!(
            result["languages"][0]["best"], summary["best"]["test"],
            "{name}"
        );
        assert_eq!(
            result["score"], summary["best"]["validation_score"],
            "{name}"
        );
        assert_eq!(result["best_step"], summary["best"]["step"], "{name}");
        assert_eq!(
            result["parameters"], summary["trainable_parameters"],
            "{name}"
        );
    }
}

/// A member's texts are cut where they are cut alone, so its bytes are those of `train` with the same
/// limit; and memory is counted for passes, not for the step.
#[test]
fn a_limit_of_tokens_is_all_members_own() {
    let file = FILE.replace("lr = [1e-3, 3e-3]", "lr = 3e-3");
    let w = world(&file.replace("ratio = [0.1, 1.0]", "ratio = 1.0"));
    let limit = "--max-tokens=70";
    let bytes = |more: &[&str]| {
        let json = sweep(&w, &[&["--dry-run", "--json"], more].concat())
            .ok()
            .json();
        assert_eq!(json["groups"].as_array().map(Vec::len), Some(1));
        assert!(json["groups"][0]["tokens"].as_u64() > Some(200), "{json}");
        json["groups"][0]["memory_bytes"].as_u64().expect("bytes")
    };
    let (whole, cut) = (bytes(&[]), bytes(&[limit]));
    println!("{whole} bytes, with a limit {cut}");
    assert!(2 * cut < whole, "{cut} {whole}");
    // What the limit leaves room for is a group.
    let memory = format!("--memory={}", cut as f64 / f64::from(1 << 30));
    sweep(&w, &["--out=cut", limit, &memory]).ok();
    assert!(w.text("cut/config.toml").contains("max-tokens = 70"));
    sweep(&w, &["--out=free"]).ok();
    for (lang, strategy, name) in [
        ("de", "baseline1", "de-baseline1-lr0.003-seed3"),
        ("ko", "routine1", "ko-routine1-lr0.003-ratio1-seed3"),
    ] {
        let (l, s) = (format!("--lang={lang}"), format!("--strategy={strategy}"));
        let more = [&*l, &*s, "--lr=3e-3", "--ratio=1", limit];
        w.run(train_args(name, &more)).ok();
        for file in ADAPTERS {
            let of = |folder: &str| w.read(format!("{folder}/{file}"));
            assert!(of(name) == of(&format!("cut/{name}")), "{name}/{file}");
            let cut = strategy == "routine1";
            assert!(
                !cut || of(name) != of(&format!("free/{name}")),
                "{name} is not cut"
            );
        }
    }
    // It decides rounding, so a sweep goes on with its own limit only.
    let ran = sweep(&w, &["--out=cut"]);
    assert!(
        ran.stderr.contains("cut: holds another sweep"),
        "{}",
        ran.stderr
    );
}

#[test]
fn how_members_are_packed_changes_no_byte() {
    // Runs of three lengths, so that members leave their group one after another.
    let file = FILE
        .replace("epochs = 2", "epochs = [1, 2, 3]")
        .replace("lr = [1e-3, 3e-3]", "lr = 1e-3");
    let w = world(&file);
    sweep(&w, &["--out=all", "--max-members=100"]).ok();
    let want = results(&w, "all");
    assert_eq!(members(&w, "all").len(), 18);
    for (out, more) in [("one", "--max-members=1"), ("five", "--max-members=5")] {
        sweep(&w, &[&format!("--out={out}"), more, "--threads=2"]).ok();
        assert_same(&w, out, &want);
    }
    let name = "de-baseline1-epochs1-lr0.001-seed3/adapter_last.safetensors";
    let header = String::from_utf8_lossy(&want[name]).into_owned();
    assert!(header.contains("\"step\":\"4\""), "its own last step");
}

#[test]
fn a_member_that_fails_is_given_up_alone() {
    let w = world(&FILE.replace("lr = [1e-3, 3e-3]", "lr = [1e-3, 1e30]"));
    let ran = sweep(&w, &["--out=bad"]).ok();
    let given_up = "warning: de-baseline1-lr1000000000000000000000000000000-seed3: ";
    assert!(ran.stderr.contains(given_up), "{}", ran.stderr);
    w.write("sweep.toml", FILE.replace("lr = [1e-3, 3e-3]", "lr = 1e-3"));
    sweep(&w, &["--out=good"]).ok();
    let (mut bad, mut good) = (results(&w, "bad"), results(&w, "good"));
    good.remove("results.jsonl");
    bad.retain(|name, _| good.contains_key(name));
    assert!(bad == good, "the others did not notice");
    let failed: Vec<Value> = members(&w, "bad")
        .into_iter()
        .filter(|m| m["config"]["lr"] == 1e30)
        .collect();
    assert_eq!(failed.len(), 6);
    assert!(
        failed
            .iter()
            .all(|m| m["failed"].is_string() && m["languages"][0]["last"].is_null())
    );
}

#[test]
fn a_joint_member_has_all_languages() {
    let file = FILE
        .replace(
            "strategy = ['baseline1', 'routine1']",
            "strategy = 'baseline1'\njoint = [false, true]",
        )
        .replace("ratio = [0.1, 1.0]\n", "")
        .replace("lr = [1e-3, 3e-3]", "lr = 3e-3");
    let w = world(&file);
    sweep(&w, &["--out=sweep", "--quiet"]).ok();
    let all = members(&w, "sweep");
    let names: Vec<&str> = all.iter().filter_map(|m| m["name"].as_str()).collect();
    let joint = "de+ko-baseline1-joint-lr0.003-seed3";
    let want = [
        "de-baseline1-lr0.003-seed3",
        joint,
        "ko-baseline1-lr0.003-seed3",
    ];
    assert_eq!(names, want);
    let more = ["--joint", "--lang=de,ko", "--lr=3e-3", "--json"];
    let alone = w.run(train_args("alone", &more)).ok().json();
    for file in ADAPTERS {
        let [a, b] = ["alone", &format!("sweep/{joint}")].map(|d| w.read(format!("{d}/{file}")));
        assert!(a == b, "{file}");
    }
    for (i, lang) in ["de", "ko"].iter().enumerate() {
        let tested = &all[1]["languages"][i];
        assert_eq!(tested["language"], *lang);
        assert_eq!(tested["last"], alone["languages"][i]["last"]["test"]);
    }
    // Its score is that of both languages: it has a row of its own, and wins none.
    let text = w.text("sweep/table.md");
    assert!(
        text.lines()
            .any(|l| l.starts_with("| baseline1, joint | 0.")),
        "{text}"
    );
    assert!(
        text.lines().any(|l| l.starts_with("| de | de-baseline1-")),
        "{text}"
    );
    w.write("sweep.toml", file.replace("['de', 'ko']", "'de'"));
    let ran = sweep(&w, &["--out=one"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("joint: found one language, `de`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_table_shows_who_won() {
    let w = world(FILE);
    let json = sweep(&w, &["--out=sweep", "--json", "--quiet"]).ok().json();
    let all = members(&w, "sweep");
    assert_eq!(all.len(), 12);
    let mean = |r: &Value| (r["i2t"][0].as_f64().unwrap() + r["t2i"][0].as_f64().unwrap()) / 2.0;
    for (column, lang) in ["de", "ko"].iter().enumerate() {
        let mut best: Option<&Value> = None;
        for m in all
            .iter()
            .filter(|m| m["languages"][0]["language"] == *lang)
        {
            if best.is_none_or(|b| m["score"].as_f64() > b["score"].as_f64()) {
                best = Some(m);
            }
        }
        let (best, winner) = (best.expect("a member"), &json["table"]["winners"][column]);
        assert_eq!(
            (&winner["language"], &winner["name"]),
            (&(*lang).into(), &best["name"])
        );
        assert_eq!(
            (&winner["last"], &winner["best"]),
            (&best["languages"][0]["last"], &best["languages"][0]["best"])
        );
        let rows = json["table"]["best"].as_array().expect("rows");
        let row = rows
            .iter()
            .find(|r| r["name"] == best["row"])
            .expect("its row");
        assert_eq!(
            row["cells"][column].as_f64(),
            Some(mean(&best["languages"][0]["best"]))
        );
    }
    let args = [
        "eval",
        "--model=model",
        "--jsonl=world.jsonl",
        "--features=features.safetensors",
        "--lang=de,ko,en",
        "--shots=20",
        "--json",
    ];
    let eval = w.run(args).ok().json();
    let zero = &json["table"]["last"][0];
    assert_eq!(zero["name"], "zero-shot");
    for i in 0..2 {
        assert_eq!(zero["cells"][i], eval["languages"][i]["mean_r1"]);
    }
    assert_eq!(json["table"]["english"], eval["languages"][2]["mean_r1"]);
    assert!(json["table"]["last"][1]["disparity"]["std_to_english"].is_number());
    let text = w.text("sweep/table.md");
    for line in [
        "| | de | ko | spread | deviation from English |",
        "| zero-shot |",
        "| baseline1 |",
        "| routine1 |",
    ] {
        assert!(text.lines().any(|l| l.starts_with(line)), "{line}\n{text}");
    }
    // Nothing is left to do: the same table, and no file is touched.
    let before = w.snapshot();
    let again = sweep(&w, &["--out=sweep"]).ok();
    assert_eq!(again.stdout, text);
    assert_eq!(
        sweep(&w, &["--out=sweep", "--json", "--quiet"]).ok().json(),
        json
    );
    assert!(w.snapshot() == before);
}

#[test]
fn presets_hold_the_runs_of_the_original() {
    let w = World::new();
    let count = |name: &str| -> usize {
        let text = w.run(["sweep", "--preset", name, "--print"]).ok().stdout;
        let table: toml::Table = toml::from_str(&text).expect("TOML");
        let length = |key: &str| {
            table
                .get(key)
                .and_then(|v| v.as_array())
                .map_or(1, Vec::len)
        };
        ["lang", "strategy", "lr", "ratio"]
            .map(length)
            .iter()
            .product()
    };
    let counts = ["baseline1", "baseline2", "method1", "method2", "method3"]
        .map(|n| count(&format!("grid_{n}")));
    assert_eq!(counts, [33, 33, 150, 150, 150]);
    // The rest of its 725 runs is not in these folders.
    assert_eq!(counts.iter().sum::<usize>(), 516);
    let data = [
        "--model=model",
        "--jsonl=world.jsonl",
        "--features=features.safetensors",
        "--lang=de",
    ];
    let dry = |name: &str, more: &[&str]| {
        let args = ["sweep", "--preset", name, "--dry-run", "--json"];
        w.run(args.iter().chain(&data).chain(more)).ok().json()
    };
    assert_eq!(dry("grid_method1", &["--set=shots=20"])["members"], 15);
    assert_eq!(dry("grid_baseline1", &["--set=shots=20"])["members"], 3);
    assert_eq!(
        dry("full", &["--set", "strategy=['baseline1','routine1']"])["members"],
        2
    );
    let printed = w
        .run(["sweep", "--preset=grid_method2", "--lang=de", "--print"])
        .ok()
        .stdout;
    assert!(
        printed.starts_with("# PECTVLM's scripts/grid_method2: "),
        "{printed}"
    );
    assert!(printed.contains("lang = [\"de\"]\n") && printed.contains("strategy = \"routine2\"\n"));
    // The model as it is.
    let args = [
        "sweep",
        "--preset=zero-shot",
        "--out=zero",
        "--json",
        "--quiet",
    ];
    let zero = w.run(args.iter().chain(&data)).ok().json();
    assert_eq!(zero["members"], serde_json::json!([]));
    assert!(zero["table"]["last"][0]["cells"][0].is_number());
    assert!(w.text("zero/table.md").contains("without training"));
}
