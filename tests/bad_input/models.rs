//! Models and adapters.

use serde_json::json;

use crate::{MODEL, NOTHING, Row};

const DENSE: &str = "transformer.encoder.layer.1.output.dense.weight";

pub const ROWS: &[Row] = &[
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
];

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
