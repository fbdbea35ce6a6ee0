//! Where a command is to write, and what it is to go on with.

use crate::{MODEL, NOTHING, Row};

pub const ROWS: &[Row] = &[
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
