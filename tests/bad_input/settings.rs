//! Options and config files.

use crate::{NOTHING, Row};

pub const ROWS: &[Row] = &[
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
];
