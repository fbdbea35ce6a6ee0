//! Bad input: each mistake ends with its exit code and one sentence that names file or field,
//! and leaves every file of the folder as it was, with none added.

mod common;

use common::world::{MAX_TOKENS, Ran, World, train_args};
use serde_json::{Value, json};

/// A mistake, and what must be said of it.
struct Row {
    /// What is wrong.
    name: &'static str,
    /// Makes it so.
    spoil: fn(&World),
    /// Options that replace or follow those of a good `train`, or a whole command.
    args: &'static [&'static str],
    /// Parts of the message.
    says: &'static [&'static str],
}

const NOTHING: fn(&World) = |_| {};
const MODEL: &str = "model/model.safetensors";
const DENSE: &str = "transformer.encoder.layer.1.output.dense.weight";
const XTD_DE: &str = "xtd10/XTD10/test_1kcaptions_de.txt";

/// Every mistake here is one in the input: exit code 2.
const ROWS: &[Row] = &[
    // Models.
    Row {
        name: "no such checkpoint",
        spoil: NOTHING,
        args: &["--model=nowhere"],
        says: &["nowhere: there is no such file or folder"],
    },
    Row {
        name: "a model that was never downloaded",
        spoil: NOTHING,
        args: &["--model=M-CLIP/None"],
        says: &[
            "M-CLIP/None: is neither a path here nor in the Hugging Face cache",
            "hf download",
        ],
    },
    Row {
        name: "a folder without weights",
        spoil: |w| std::fs::remove_file(w.path(MODEL)).expect("removed"),
        args: &[],
        says: &["model: holds no checkpoint; expected one of model.safetensors"],
    },
    Row {
        name: "truncated safetensors",
        spoil: |w| {
            let bytes = w.read(MODEL);
            w.write(MODEL, &bytes[..bytes.len() - 100]);
        },
        args: &[],
        says: &[
            MODEL,
            "is truncated: tensor LinearTransformation",
            "the file has",
        ],
    },
    Row {
        name: "a header length beyond the file",
        spoil: |w| {
            let mut bytes = w.read(MODEL);
            let length = bytes.len() as u64 + 1000;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            w.write(MODEL, bytes);
        },
        args: &[],
        says: &[MODEL, "is truncated: its header ends at byte"],
    },
    Row {
        name: "overlapping tensors",
        spoil: |w| {
            w.edit_header(MODEL, |h| {
                h["LinearTransformation.bias"]["data_offsets"] = json!([8, 72]);
            });
        },
        args: &[],
        says: &[
            MODEL,
            "inside the tensor before it",
            "the header is damaged",
        ],
    },
    Row {
        name: "a wrong shape",
        spoil: |w| w.edit_header(MODEL, |h| h[DENSE]["shape"] = json!([64, 32])),
        args: &[],
        says: &[
            MODEL,
            "layer.1.output.dense.weight is (64, 32), expected (32, 64)",
        ],
    },
    Row {
        name: "an unknown dtype",
        spoil: |w| w.edit_header(MODEL, |h| h[DENSE]["dtype"] = json!("F8_E4M3")),
        args: &[],
        says: &[MODEL, DENSE, "has dtype F8_E4M3; supported are"],
    },
    Row {
        name: "a pickle with a foreign global",
        spoil: |w| {
            std::fs::remove_file(w.path(MODEL)).expect("removed");
            let program = b"cos\nsystem\n(X\x0e\0\0\0touch executedtR.";
            w.write("model/pytorch_model.bin", stored_zip("m/data.pkl", program));
        },
        args: &[],
        says: &[
            "model/pytorch_model.bin",
            "asks for os.system; only tensors",
        ],
    },
    Row {
        name: "settings that do not fit the tensors",
        spoil: |w| {
            let text = w.text("model/config.json");
            w.write(
                "model/config.json",
                text.replace("\"num_attention_heads\":4", "\"num_attention_heads\":5"),
            );
        },
        args: &[],
        says: &[
            "model/config.json: num_attention_heads is 5, expected a divisor of the hidden size 32",
        ],
    },
    Row {
        name: "a tokenizer of another vocabulary",
        spoil: |w| {
            let texts = w.text("world.jsonl");
            w.write(
                "model/tokenizer.json",
                crosstune::demo::tokenizer::build([&*texts], 2000),
            );
        },
        args: &[],
        says: &[
            "model/tokenizer.json: has ",
            "word embeddings; it is a tokenizer of another vocabulary",
        ],
    },
    Row {
        name: "an adapter that is a model",
        spoil: NOTHING,
        args: &["--init=model/model.safetensors"],
        says: &[
            MODEL,
            "is not an adapter of crosstune; expected metadata format",
        ],
    },
    // Captions.
    Row {
        name: "a caption file one line short",
        spoil: |w| {
            let text = w.text(XTD_DE);
            let lines: Vec<_> = text.lines().take(59).collect();
            w.write(XTD_DE, lines.join("\n"));
        },
        args: &["--jsonl=", "--xtd10=xtd10"],
        says: &[
            XTD_DE,
            "has 59 lines, but",
            "test_image_names.txt names 60 images",
        ],
    },
    Row {
        name: "a language that a split lacks",
        spoil: NOTHING,
        args: &[
            "eval",
            "--model=model",
            "--multi30k=multi30k",
            "--features=features.safetensors",
            "--lang=cs",
            "--split=test_2017_flickr",
        ],
        says: &["split `test_2017_flickr` has no captions in `cs`, it has de, en"],
    },
    Row {
        name: "a split that there is not",
        spoil: NOTHING,
        args: &[
            "eval",
            "--model=model",
            "--multi30k=multi30k",
            "--features=features.safetensors",
            "--lang=cs",
            "--split=test_2020",
        ],
        says: &[
            "no split `test_2020`, expected one of test_2016_flickr, test_2017_flickr, train, val",
        ],
    },
    Row {
        name: "a language that there is not",
        spoil: NOTHING,
        args: &["--lang=xx"],
        says: &[
            "world.jsonl: line ",
            "field `captions`: expected a text in `xx`, found de, en, es, fr, ko, tr",
        ],
    },
    Row {
        name: "invalid UTF-8",
        spoil: |w| {
            let mut bytes = w.read(XTD_DE);
            bytes[0] = 0xe4;
            w.write(XTD_DE, bytes);
        },
        args: &["--jsonl=", "--xtd10=xtd10"],
        says: &[XTD_DE, "line 1 is not UTF-8 (byte 1 of the line is 0xe4)"],
    },
    Row {
        name: "an empty line",
        spoil: |w| w.edit_line(XTD_DE, 4, |_| " ".into()),
        args: &["--jsonl=", "--xtd10=xtd10"],
        says: &[XTD_DE, "line 4 is empty; expected a caption"],
    },
    Row {
        name: "an empty caption",
        spoil: |w| edit_caption(w, 12, ""),
        args: &[],
        says: &["world.jsonl: line 12: field `captions`: the text in `de` is empty"],
    },
    Row {
        name: "a line that is not JSON",
        spoil: |w| w.edit_line("world.jsonl", 7, |l| l[..l.len() - 5].into()),
        args: &[],
        says: &["world.jsonl: line 7, column", "expected {\"image\": NAME"],
    },
    Row {
        name: "a caption longer than the position table",
        spoil: |w| edit_caption(w, 55, &"ein roter Kreis ".repeat(MAX_TOKENS)),
        args: &[],
        says: &[
            "captions `target`, line 55 (image scene_00054.png): (\"ein roter",
            "tokens, the limit is 96",
        ],
    },
    Row {
        name: "a text to encode that is too long",
        spoil: |w| w.edit_line(XTD_DE, 3, |_| "ein roter Kreis ".repeat(MAX_TOKENS)),
        args: &[
            "encode",
            "--model=model",
            "--texts=xtd10/XTD10/test_1kcaptions_de.txt",
            "--out=f.safetensors",
        ],
        says: &[XTD_DE, "text 3 (\"ein roter", "tokens, the limit is 96"],
    },
    Row {
        name: "names that are not as many as texts",
        spoil: |w| w.write("names.txt", "one\ntwo\n"),
        args: &[
            "encode",
            "--model=model",
            "--texts=xtd10/XTD10/test_1kcaptions_de.txt",
            "--names=names.txt",
            "--out=f.safetensors",
        ],
        says: &["names.txt: has 2 names, but", "has 60 texts"],
    },
    Row {
        name: "no text on standard input",
        spoil: NOTHING,
        args: &[
            "encode",
            "--model=model",
            "--texts=-",
            "--out=f.safetensors",
        ],
        says: &["standard input: the file is empty"],
    },
    Row {
        name: "shots beyond the data",
        spoil: NOTHING,
        args: &["--shots=41"],
        says: &["shots: 41 asked for, but the training split of world.jsonl has 40 items"],
    },
    Row {
        name: "shots that leave no test item",
        spoil: NOTHING,
        args: &["--jsonl=", "--xtd10=xtd10", "--shots=30"],
        says: &[
            "shots: 30 of XTD10 need 30 items to train",
            "of 60 items; give a number from 1 to 29",
        ],
    },
    Row {
        name: "shots that are no number",
        spoil: NOTHING,
        args: &["--shots=some"],
        says: &["shots: found `some`, expected a number, `full` or `zero`"],
    },
    Row {
        name: "nothing to train on",
        spoil: NOTHING,
        args: &["--shots=zero"],
        says: &["shots: zero trains nothing; `crosstune eval` measures zero-shot"],
    },
    Row {
        name: "two data sets",
        spoil: NOTHING,
        args: &["--xtd10=xtd10"],
        says: &["data: expected exactly one of --xtd10 DIR, --multi30k DIR and --jsonl FILE"],
    },
    Row {
        name: "translations that were not given",
        spoil: NOTHING,
        args: &["--jsonl=", "--xtd10=xtd10", "--strategy=routine2"],
        says: &["translations: this strategy needs machine translations and no folder was given"],
    },
    // Image features.
    Row {
        name: "a NaN image feature",
        spoil: |w| w.edit_features(|f| f.values[16 * 54 + 2] = f32::NAN),
        args: &[],
        says: &[
            "features.safetensors: image features: row 54 (scene_00054.png) has NaN at place 2",
        ],
    },
    Row {
        name: "an all-zero image feature",
        spoil: |w| w.edit_features(|f| f.values[16 * 41..16 * 42].fill(0.0)),
        args: &[],
        says: &["features.safetensors: image features: row 41 (scene_00041.png) is all zero"],
    },
    Row {
        name: "a missing image feature",
        spoil: |w| w.edit_features(|f| f.names[45] = "other.png".into()),
        args: &[],
        says: &["features.safetensors: no feature for image scene_00045.png (1 of 10 are missing"],
    },
    Row {
        name: "features of another model",
        spoil: |w| {
            w.edit_features(|f| {
                f.dim = 8;
                f.values.truncate(60 * 8);
            });
        },
        args: &[],
        says: &["features.safetensors: features are 8 wide, the model's are 16"],
    },
    Row {
        name: "no features",
        spoil: NOTHING,
        args: &["--features=none.safetensors"],
        says: &["none.safetensors: cannot be read: No such file or directory (os error 2)\n"],
    },
    // Settings.
    Row {
        name: "rank 0",
        spoil: NOTHING,
        args: &["--rank=0"],
        says: &["rank: found 0, expected at least 1"],
    },
    Row {
        name: "an unknown target",
        spoil: NOTHING,
        args: &["--targets=query,q_proj"],
        says: &["targets: no linear layer ends in `q_proj`; there are attention.self.query"],
    },
    Row {
        name: "an unknown strategy",
        spoil: NOTHING,
        args: &["--strategy=routine9"],
        says: &["strategy: found `routine9`, expected baseline1"],
    },
    Row {
        name: "an unknown text loss",
        spoil: NOTHING,
        args: &["--text-loss=cosine"],
        says: &["text loss: found `cosine`, expected mse"],
    },
    Row {
        name: "an unknown selection",
        spoil: NOTHING,
        args: &["--select-by=luck"],
        says: &["select-by: found `luck`, expected mean-r1"],
    },
    Row {
        name: "an unknown method",
        spoil: NOTHING,
        args: &["--method=prefix"],
        says: &[
            "invalid value 'prefix' for '--method <METHOD>'",
            "possible values: lora",
        ],
    },
    Row {
        name: "an option that is not there",
        spoil: NOTHING,
        args: &["--lerning-rate=1"],
        says: &["unexpected argument '--lerning-rate' found"],
    },
    Row {
        name: "a learning rate that is no number",
        spoil: NOTHING,
        args: &["--lr=nan"],
        says: &["invalid value 'nan' for '--lr <LR>': expected a finite number"],
    },
    Row {
        name: "a negative learning rate",
        spoil: NOTHING,
        args: &["--lr=-1"],
        says: &["lr: found -1, expected a number not below 0"],
    },
    Row {
        name: "a seed that no config file can hold",
        spoil: NOTHING,
        args: &["--seed=9223372036854775808"],
        says: &["'--seed <SEED>'", "9223372036854775807"],
    },
    Row {
        name: "a dropout of 1",
        spoil: NOTHING,
        args: &["--dropout=1"],
        says: &["hidden dropout: found 1, expected 0 or more and below 1"],
    },
    Row {
        name: "a batch of one",
        spoil: NOTHING,
        args: &["--batch=1"],
        says: &["batch: a contrastive loss needs at least 2 items"],
    },
    Row {
        name: "no threads",
        spoil: NOTHING,
        args: &["--threads=0"],
        says: &["threads: found 0, expected at least 1"],
    },
    Row {
        name: "no language",
        spoil: NOTHING,
        args: &["train", "--model=model", "--out=run"],
        says: &["lang: missing; give --lang LANGUAGE, such as de"],
    },
    Row {
        name: "an unknown key in a config file",
        spoil: |w| w.write("a.toml", "lang = 'de'\nlernrate = 1\n"),
        args: &["--config=a.toml"],
        says: &["a.toml: unknown option `lernrate`; the options are those of"],
    },
    Row {
        name: "a value of the wrong kind in a config file",
        spoil: |w| w.write("a.toml", "rank = 'eight'\n"),
        args: &["--config=a.toml"],
        says: &["a.toml: `rank`: invalid type: string \"eight\""],
    },
    Row {
        name: "NaN in a config file",
        spoil: |w| w.write("a.toml", "alpha = nan\n"),
        args: &["--config=a.toml"],
        says: &["a.toml: `alpha`: found nan, expected a finite number"],
    },
    Row {
        name: "a config file that is not TOML",
        spoil: |w| w.write("a.toml", "{\"rank\": 1}"),
        args: &["--config=a.toml"],
        says: &["a.toml: is not TOML: "],
    },
    // Output.
    Row {
        name: "an output folder that is not empty",
        spoil: |w| {
            std::fs::create_dir(w.path("run")).expect("made");
            w.write("run/notes.txt", "mine");
        },
        // Told before anything is read.
        args: &["--model=nowhere"],
        says: &[
            "run: already exists and is not empty; choose another --out",
            "--resume",
        ],
    },
    Row {
        name: "an output folder that is a file",
        spoil: |w| w.write("run", "mine"),
        args: &[],
        says: &["run: is a file, expected a folder"],
    },
    Row {
        name: "an output folder under a file",
        spoil: NOTHING,
        args: &["--out=world.jsonl/run"],
        says: &[
            "world.jsonl/run: cannot be made or written to: Not a directory",
            "choose another --out",
        ],
    },
    Row {
        name: "an output folder where none can be made",
        spoil: NOTHING,
        args: &["--out=/proc/crosstune/run"],
        says: &[
            "/proc/crosstune/run: cannot be made or written to: ",
            "choose another --out",
        ],
    },
    Row {
        name: "features over a file that exists",
        spoil: NOTHING,
        args: &[
            "encode",
            "--model=model",
            "--texts=-",
            "--out=features.safetensors",
        ],
        says: &["features.safetensors: already exists; give --force to replace it"],
    },
    Row {
        name: "a converted file in no folder",
        spoil: NOTHING,
        args: &["convert", MODEL, "none/half.safetensors"],
        says: &["none/half.safetensors: cannot be written: none is not a folder"],
    },
    Row {
        name: "an unknown type to convert to",
        spoil: NOTHING,
        args: &["convert", MODEL, "half.safetensors", "--dtype=f8"],
        says: &["dtype: found `f8`, expected f32, f16 or bf16"],
    },
    Row {
        name: "another ending to convert to",
        spoil: NOTHING,
        args: &["convert", MODEL, "half.bin"],
        says: &["half.bin: expected a name that ends in .safetensors"],
    },
    Row {
        name: "a folder without a run to resume",
        spoil: NOTHING,
        args: &["train", "--resume=model"],
        says: &["model: there is no run to resume; it has no config.toml"],
    },
    Row {
        name: "no folder to resume",
        spoil: NOTHING,
        args: &["train", "--resume=none"],
        says: &["none: there is no run to resume; it is no folder"],
    },
    Row {
        name: "an option beside --resume",
        spoil: NOTHING,
        args: &["train", "--resume=none", "--out=other"],
        says: &["out: cannot be given with --resume", "drop --out"],
    },
    Row {
        name: "a config file beside --resume",
        spoil: NOTHING,
        args: &["train", "--resume=none", "--config=a.toml"],
        says: &["config: cannot be given with --resume"],
    },
];

#[test]
fn every_mistake_is_named_and_leaves_nothing() {
    let mut failures = Vec::new();
    for row in ROWS {
        let w = World::new();
        (row.spoil)(&w);
        let before = w.snapshot();
        let ran = run(&w, row.args);
        let mut wrong: Vec<String> = Vec::new();
        if ran.code != 2 {
            wrong.push(format!("exit code {}", ran.code));
        }
        let missing = row.says.iter().filter(|part| !ran.stderr.contains(**part));
        wrong.extend(missing.map(|part| format!("does not say `{part}`")));
        let errors = ran
            .stderr
            .lines()
            .filter(|l| l.starts_with("error: "))
            .count();
        if errors != 1 || ran.stderr.contains("panicked") {
            wrong.push(format!("{errors} errors"));
        }
        if !ran.stdout.is_empty() {
            wrong.push(format!("prints {}", ran.stdout));
        }
        let after = w.snapshot();
        let changed = |p: &&std::path::PathBuf| before.get(*p) != after.get(*p);
        let both = before.keys().chain(after.keys());
        wrong.extend(
            both.filter(changed)
                .map(|p| format!("{} changed", p.display())),
        );
        if !wrong.is_empty() {
            failures.push(format!(
                "{}: {}\n    {}",
                row.name,
                wrong.join(", "),
                ran.stderr.trim()
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}\n{}",
        failures.len(),
        ROWS.len(),
        failures.join("\n")
    );
}

/// A whole command, or a good `train` with some options replaced; `--name=` takes one away.
fn run(w: &World, args: &[&str]) -> Ran {
    if args.first().is_some_and(|a| !a.starts_with('-')) {
        return w.run(args);
    }
    let out = if args.iter().any(|a| a.starts_with("--out=")) {
        ""
    } else {
        "run"
    };
    let mut args = train_args(out, args);
    args.retain(|a| !a.ends_with('='));
    // An unset option lets the config file's through.
    if args.iter().any(|a| a.starts_with("--config=")) {
        args.retain(|a| !a.starts_with("--rank="));
    }
    w.run(args)
}

fn edit_caption(w: &World, line: usize, text: &str) {
    w.edit_line("world.jsonl", line, |l| {
        let mut row: Value = serde_json::from_str(l).expect("JSON");
        row["captions"]["de"] = text.into();
        row.to_string()
    });
}

/// A zip file of one stored entry, as torch.save writes them, without checksums.
fn stored_zip(name: &str, data: &[u8]) -> Vec<u8> {
    let (size, len) = (
        (data.len() as u32).to_le_bytes(),
        (name.len() as u16).to_le_bytes(),
    );
    let mut out = b"PK\x03\x04".to_vec();
    out.extend([0; 14]);
    out.extend([size, size].concat());
    out.extend(len);
    out.extend([0; 2]);
    out.extend(name.as_bytes());
    out.extend(data);
    let start = out.len() as u32;
    out.extend(b"PK\x01\x02");
    out.extend([0; 16]);
    out.extend([size, size].concat());
    out.extend(len);
    out.extend([0; 16]);
    out.extend(name.as_bytes());
    let directory = out.len() as u32 - start;
    out.extend(b"PK\x05\x06");
    out.extend([0, 0, 0, 0, 1, 0, 1, 0]);
    out.extend(directory.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}

#[test]
fn a_nan_weight_ends_the_run_before_it_began() {
    let w = World::new();
    w.spoil_weight("transformer.encoder.layer.1.output.dense.bias", 5, f32::NAN);
    let before = w.snapshot();
    let ran = w.train("run", &[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let says = "error: text 1: its feature is not finite; model/model.safetensors: \
                transformer.encoder.layer.1.output.dense.bias holds NaN at element 5\n";
    assert!(ran.stderr.ends_with(says), "{}", ran.stderr);
    assert!(w.snapshot() == before);
    let encode = [
        "encode",
        "--model=model",
        "--texts=-",
        "--out=f.safetensors",
    ];
    let ran = w.run_with_stdin(encode, b"a red circle\n");
    assert!(
        ran.code == 1 && ran.stderr.ends_with(says),
        "{}",
        ran.stderr
    );
    assert!(w.snapshot() == before);
}

#[test]
fn a_nan_weight_of_the_training_texts_alone_is_named() {
    let w = World::new();
    // The unknown token, which no text but those of the training items holds.
    w.spoil_weight(
        "transformer.embeddings.word_embeddings.weight",
        3 * 32 + 1,
        f32::NAN,
    );
    (1..=40).for_each(|line| edit_caption(&w, line, "ein ж Kreis"));
    let ran = w.train("run", &["--eval-every=0", "--save-every=1"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let says = "word_embeddings.weight holds NaN at element 97";
    assert!(
        ran.stderr
            .contains("is not finite for 3 steps in a row, since step 1"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
    assert!(!w.path("run/adapter_last.safetensors").exists());
}

#[test]
fn a_learning_rate_that_explodes_names_what_it_ruined() {
    for eval_every in ["--eval-every=0", "--eval-every=1"] {
        let w = World::new();
        let more = [
            eval_every,
            "--lr=1e30",
            "--warmup=0",
            "--clip-norm=1e30",
            "--save-every=1",
        ];
        let ran = w.train("run", &more);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        let error = ran.stderr.lines().last().expect("an error");
        assert!(
            error.starts_with("error: ") && error.contains("is not finite"),
            "{error}"
        );
        assert!(
            error.contains("every weight of model/model.safetensors is finite, but transformer.")
        );
        assert!(error.ends_with("try a smaller learning rate"), "{error}");
        assert!(!w.path("run/adapter_last.safetensors").exists());
        assert!(!w.path("run/summary.json").exists());
        let kept = w.path("run/checkpoint.safetensors");
        if kept.exists() {
            w.run(["inspect", "run/checkpoint.safetensors"]).ok();
        }
        assert!(
            w.snapshot()
                .keys()
                .all(|p| !p.to_string_lossy().contains(".tmp"))
        );
    }
}
