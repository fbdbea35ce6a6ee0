//! A tiny world on disk: a random model, captions, image features and published lay-outs, all from
//! the demo's generator and the same in every run.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crosstune::data::features::Features;
use crosstune::demo::captions::Language;
use crosstune::demo::tokenizer;
use crosstune::demo::world::{self, Item, WorldConfig};
use crosstune::ops::philox::Stream;
use crosstune::tensor::Dtype;
use crosstune::weights::config::TensorSizes;
use crosstune::weights::text_model::{HEAD_BIAS, HEAD_WEIGHT, encoder_tensors};
use crosstune::weights::write::{OutTensor, write_safetensors};
use serde_json::{Value, json};

use super::tiny::random;

/// Items to train on, to validate on, to test on.
pub const ITEMS: [usize; 3] = [40, 10, 10];
/// Entries of the vocabulary.
const VOCAB: usize = 500;
/// The longest text in tokens.
pub const MAX_TOKENS: usize = 96;
/// Width of the joint space.
const EMBED_DIM: usize = 16;

/// The commands that take a device.
const COMPUTE: [&str; 5] = ["train", "eval", "encode", "sweep", "search"];

/// `train` with everything but --out: 8 steps, evaluated after 4 and 8.
pub const TRAIN: [&str; 17] = [
    "train",
    "--model=model",
    "--jsonl=world.jsonl",
    "--features=features.safetensors",
    "--lang=de",
    "--strategy=baseline1",
    "--shots=20",
    "--batch=5",
    "--epochs=2",
    "--eval-every=4",
    "--rank=2",
    "--lr=1e-3",
    "--weight-decay=0.01",
    "--clip-norm=1",
    "--warmup=2",
    "--seed=3",
    "--threads=1",
];

/// A folder with a tiny world in it; commands run in it, so that paths are short.
pub struct World {
    dir: tempfile::TempDir,
}

/// What a command left.
pub struct Ran {
    /// Exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Runs a command to its end.
    pub fn of(command: &mut assert_cmd::Command) -> Ran {
        let output = command.output().expect("it runs");
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// Fails unless the exit code is 0.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, 0, "{}\n{}", self.stderr, self.stdout);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.stdout);
        parsed.unwrap_or_else(|e| panic!("not JSON: {e}\n{}", self.stdout))
    }
}

impl World {
    /// Writes a world of its own for a test.
    pub fn new() -> World {
        static FILES: OnceLock<BTreeMap<PathBuf, Vec<u8>>> = OnceLock::new();
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (name, bytes) in FILES.get_or_init(generate) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, bytes).expect("written");
        }
        World { dir }
    }

    /// A path in the world.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file's bytes.
    #[track_caller]
    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// A file's text.
    #[track_caller]
    pub fn text(&self, name: impl AsRef<Path>) -> String {
        String::from_utf8(self.read(name)).expect("UTF-8")
    }

    /// Writes a file.
    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("written");
    }

    /// Changes one line of a text file, counted from 1.
    pub fn edit_line(&self, name: &str, line: usize, edit: impl Fn(&str) -> String) {
        let text = self.text(name);
        let lines = text.lines().enumerate();
        let lines: Vec<String> = lines
            .map(|(i, l)| if i + 1 == line { edit(l) } else { l.into() })
            .collect();
        self.write(name, lines.join("\n") + "\n");
    }

    /// Changes the header of a safetensors file; its data stays.
    pub fn edit_header(&self, name: &str, edit: impl Fn(&mut Value)) {
        let bytes = self.read(name);
        let length = u64::from_le_bytes(*bytes.first_chunk().expect("8 bytes")) as usize;
        let (header, data) = bytes[8..].split_at(length);
        let mut header: Value = serde_json::from_slice(header).expect("JSON");
        edit(&mut header);
        let text = header.to_string();
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text.as_bytes());
        out.extend(data);
        self.write(name, out);
    }

    /// Overwrites one f32 of a tensor in the model's weights.
    pub fn spoil_weight(&self, tensor: &str, index: usize, value: f32) {
        let mut bytes = self.read("model/model.safetensors");
        let length = u64::from_le_bytes(*bytes.first_chunk().expect("8 bytes")) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
        let start = header[tensor]["data_offsets"][0].as_u64().expect("tensor") as usize;
        let at = 8 + length + start + 4 * index;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self.write("model/model.safetensors", bytes);
    }

    /// Changes the image features.
    pub fn edit_features(&self, edit: impl Fn(&mut Features)) {
        let path = self.path("features.safetensors");
        let mut features = Features::load(&path).expect("features");
        edit(&mut features);
        features.save(&path).expect("saved");
    }

    /// Every file with its bytes, temporary ones too; folders end in `/`.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        collect(self.dir.path(), Path::new(""), &mut all);
        all
    }

    /// A command that runs the program in this world: on the CPU, whatever GPU the machine has, unless
    /// it names a device or goes on with what named one.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> std::process::Command {
        let mut args: Vec<OsString> = args.into_iter().map(|a| a.as_ref().into()).collect();
        let given = |name: &str| {
            let is = |a: &OsString| a.to_string_lossy().split('=').next() == Some(name);
            args.iter().any(is)
        };
        let computes = args.first().is_some_and(|a| COMPUTE.iter().any(|c| a == c));
        if computes && !["--device", "--resume", "--print"].into_iter().any(given) {
            args.push("--device=cpu".into());
        }
        self.bare_command(args)
    }

    /// The same with no more options than these; the program is that of this build, or `CROSSTUNE_BIN`
    /// where the test was carried to another machine.
    pub fn bare_command<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> std::process::Command {
        let carried = std::env::var_os("CROSSTUNE_BIN");
        let program = carried.unwrap_or_else(|| env!("CARGO_BIN_EXE_crosstune").into());
        let mut command = std::process::Command::new(program);
        command.args(args).current_dir(self.dir.path());
        command
    }

    /// Runs the program in this world.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        self.run_with_stdin(args, b"")
    }

    /// Runs the program in this world, with that as its standard input.
    pub fn run_with_stdin<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Ran {
        let mut command = assert_cmd::Command::from_std(self.command(args));
        Ran::of(command.write_stdin(stdin))
    }

    /// Runs [`TRAIN`] into a folder, with more options; later ones win.
    pub fn train(&self, out: &str, more: &[&str]) -> Ran {
        self.run(train_args(out, more))
    }
}

/// [`TRAIN`] with options replaced by those of the same name in `more`.
pub fn train_args(out: &str, more: &[&str]) -> Vec<String> {
    let name = |arg: &str| arg.split('=').next().unwrap_or_default().to_string();
    let kept = TRAIN
        .iter()
        .filter(|a| !more.iter().any(|m| name(m) == name(a)));
    let mut args: Vec<String> = kept.map(ToString::to_string).collect();
    args.extend(more.iter().map(ToString::to_string));
    if !out.is_empty() {
        args.push(format!("--out={out}"));
    }
    args
}

fn collect(root: &Path, below: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(root.join(below)).expect("a folder") {
        let name = below.join(entry.expect("an entry").file_name());
        let path = root.join(&name);
        if path.is_dir() {
            all.insert(name.join(""), Vec::new());
            collect(root, &name, all);
        } else {
            all.insert(name, fs::read(path).expect("read"));
        }
    }
}

fn generate() -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path();
    let [n_train, n_val, n_test] = ITEMS;
    let world = world::World::new(&WorldConfig {
        seed: 7,
        n_pool: 0,
        n_train,
        n_val,
        n_test,
    });
    model(&root.join("model"), &tokenizer::build(world.texts(), VOCAB));
    world::write_jsonl(&root.join("world.jsonl"), &world.items).expect("written");
    let names: Vec<String> = world.items.iter().map(|i| i.image.clone()).collect();
    let features = Features {
        dim: EMBED_DIM,
        values: Stream::named(7, "images").normal(names.len() * EMBED_DIM, 1.0),
        names,
    };
    features
        .save(&root.join("features.safetensors"))
        .expect("saved");
    xtd10(&root.join("xtd10/XTD10"), &world.items);
    multi30k(&root.join("multi30k/data/task1"), &world.items);
    let mut all = BTreeMap::new();
    collect(root, Path::new(""), &mut all);
    all.retain(|name, _| root.join(name).is_file());
    all
}

/// A model folder in M-CLIP's names with random weights; its settings need no preset.
fn model(folder: &Path, tokenizer: &str) {
    fs::create_dir_all(folder).expect("made");
    let parsed: Value = serde_json::from_str(tokenizer).expect("JSON");
    let sizes = TensorSizes {
        vocab: parsed["model"]["vocab"]
            .as_object()
            .expect("a vocabulary")
            .len(),
        hidden: 32,
        layers: 2,
        ffn: 64,
        max_positions: MAX_TOKENS + 2,
        token_types: 1,
        head: Some(EMBED_DIM),
    };
    let encoder = encoder_tensors(&sizes).into_iter();
    let mut tensors: Vec<_> = encoder
        .map(|(n, s)| (format!("transformer.{n}"), s))
        .collect();
    tensors.push((HEAD_WEIGHT.into(), vec![EMBED_DIM, sizes.hidden]));
    tensors.push((HEAD_BIAS.into(), vec![EMBED_DIM]));
    let values: Vec<_> = tensors.iter().map(|(n, s)| random(7, n, s)).collect();
    let out: Vec<_> = tensors
        .iter()
        .zip(&values)
        .map(|((name, shape), values)| OutTensor {
            name,
            dtype: Dtype::F32,
            shape: shape.clone(),
            bytes: bytemuck::cast_slice::<f32, u8>(values).into(),
        })
        .collect();
    let weights = folder.join("model.safetensors");
    write_safetensors(&weights, &out, &BTreeMap::new()).expect("written");
    let config = json!({
        "model_type": "M-CLIP", "text_model_type": "xlm-roberta", "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers, "num_attention_heads": 4,
        "intermediate_size": sizes.ffn, "max_position_embeddings": sizes.max_positions,
        "vocab_size": sizes.vocab, "type_vocab_size": 1, "numDims": EMBED_DIM,
        "layer_norm_eps": 1e-5, "pad_token_id": 1, "hidden_act": "gelu",
        "position_embedding_type": "absolute", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    fs::write(folder.join("tokenizer.json"), tokenizer).expect("written");
}

fn lines<'a>(items: &'a [Item], line: impl Fn(&'a Item) -> &'a str) -> String {
    items.iter().map(|i| format!("{}\n", line(i))).collect()
}

/// The published lay-out of XTD10, all items in one list.
fn xtd10(folder: &Path, items: &[Item]) {
    fs::create_dir_all(folder).expect("made");
    let write = |name: &str, text: String| fs::write(folder.join(name), text).expect("written");
    write("test_image_names.txt", lines(items, |i| &i.image));
    for language in [Language::En, Language::De, Language::Ko] {
        let name = format!("test_1kcaptions_{}.txt", language.code());
        write(&name, lines(items, |i| i.caption(language)));
    }
}

/// The published lay-out of Multi30K; Czech (in French, here) lacks the split of 2017.
fn multi30k(folder: &Path, items: &[Item]) {
    for sub in ["raw", "image_splits"] {
        fs::create_dir_all(folder.join(sub)).expect("made");
    }
    let [train, val, _] = ITEMS;
    let parts = [
        ("train", &items[..train]),
        ("val", &items[train..train + val]),
        ("test_2016_flickr", &items[train + val..]),
        ("test_2017_flickr", &items[train + val..]),
    ];
    for (split, items) in parts {
        let write =
            |name: String, text: String| fs::write(folder.join(name), text).expect("written");
        write(
            format!("image_splits/{split}.txt"),
            lines(items, |i| &i.image),
        );
        for (code, language) in [
            ("en", Language::En),
            ("de", Language::De),
            ("cs", Language::Fr),
        ] {
            if (split, code) != ("test_2017_flickr", "cs") {
                write(
                    format!("raw/{split}.{code}"),
                    lines(items, |i| i.caption(language)),
                );
            }
        }
    }
}
