//! Captions, languages, splits and shots.

use crate::common::world::MAX_TOKENS;
use crate::{NOTHING, Row, edit_caption};

const XTD_DE: &str = "xtd10/XTD10/test_1kcaptions_de.txt";

pub const ROWS: &[Row] = &[
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
];
