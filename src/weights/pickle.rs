//! PyTorch checkpoints: a zip file whose pickle describes the tensors.
//!
//! A pickle is a program. `pickle_machine.rs` runs it, but can build only tensors and
//! plain containers: it calls nothing, and a file that asks for anything else is refused by name.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

use crate::bad_input;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::weights::checkpoint::{Entry, shape_text};
use crate::weights::pickle_machine::run;
use crate::weights::pickle_values::{Heap, RawTensor, Value};
use crate::weights::safetensors::byte_size;
use crate::weights::zip::Archive;

/// Training checkpoints keep the model's tensors one level down, under one of these.
const NESTED: [&str; 2] = ["state_dict", "model_state_dict"];

/// What crosstune puts beside the tensors of a file that it writes: a JSON object of texts.
pub(super) const METADATA: &str = "crosstune.json";

/// The tensors of a PyTorch zip file, in the order of its dictionary, and what crosstune wrote beside
/// them.
///
/// A nested `state_dict` is unwrapped; values that are not tensors are passed over. Of a TorchScript
/// program (OpenAI's CLIP is published as such) the tensors of its modules are read, by the names that
/// its `state_dict()` would have, and nothing of its code.
///
/// # Errors
/// [`crate::error::Error::Input`] for a damaged file, a pickle that asks for anything but tensors
/// and plain containers, and tensors that are not contiguous.
pub fn read(path: &Path, bytes: &[u8]) -> Result<(Vec<Entry>, BTreeMap<String, String>)> {
    let file = path.display();
    let zip = Archive::read(path, bytes)?;
    let Some(pickle_name) = zip.names().filter(|n| is_pickle(n)).min_by_key(|n| n.len()) else {
        return Err(bad_input!(
            "{file}: is a zip file without data.pkl, expected one written by torch.save"
        ));
    };
    let prefix = pickle_name.trim_end_matches("data.pkl");
    let entry = |name: &str| {
        zip.get(&format!("{prefix}{name}"))
            .map_err(|why| bad_input!("{file}: {why}"))
    };
    if entry("byteorder")?.is_some_and(|r| bytes[r].starts_with(b"big")) {
        return Err(bad_input!(
            "{file}: was written on a big-endian machine; load it there and save it as safetensors"
        ));
    }
    let metadata = match entry(METADATA)? {
        None => BTreeMap::new(),
        Some(range) => serde_json::from_slice(&bytes[range])
            .map_err(|e| bad_input!("{file}: its entry {prefix}{METADATA}: {e}"))?,
    };
    let program = entry("data.pkl")?.unwrap_or_default();
    let (heap, root) =
        run(&bytes[program]).map_err(|why| bad_input!("{file}: {pickle_name} {why}"))?;
    let tensors = collect(&heap, root).map_err(|why| bad_input!("{file}: {why}"))?;
    let entries: Result<Vec<Entry>> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let key = heap.text(tensor.key);
            let storage = entry(&format!("data/{key}"))?;
            place(&name, tensor, key, storage)
                .map_err(|why| bad_input!("{file}: tensor {name} {why}"))
        })
        .collect();
    Ok((entries?, metadata))
}

/// A command that turns a file that `torch.load` understands into a safetensors file.
pub fn convert_command(path: &Path) -> String {
    let to = path.with_extension("safetensors");
    format!(
        "python -c \"import torch, safetensors.torch as s; d = torch.load('{}', 'cpu'); s.save_file(\
         {{k: v.clone().contiguous() for k, v in d.items()}}, '{}')\"",
        path.display(),
        to.display()
    )
}

fn is_pickle(name: &str) -> bool {
    name == "data.pkl" || name.ends_with("/data.pkl")
}

type Named<'h> = Vec<(String, &'h RawTensor)>;

fn collect(heap: &Heap, root: Value) -> std::result::Result<Named<'_>, String> {
    let mut dict = match root {
        Value::Dict(dict) => dict,
        Value::Module(module) => return Ok(of_modules(heap, module)),
        _ => {
            return Err(format!(
                "holds {}, expected a dictionary of tensors",
                root.kind()
            ));
        }
    };
    let tensors = |dict| {
        heap.dict(dict)
            .iter()
            .filter_map(|(key, value)| match (key, value) {
                (Value::Str(key), Value::Tensor(id)) => {
                    Some((heap.text(*key).to_string(), heap.tensor(*id)))
                }
                _ => None,
            })
    };
    if tensors(dict).next().is_none() {
        let nested = heap
            .dict(dict)
            .iter()
            .find_map(|(key, value)| match (key, value) {
                (Value::Str(key), Value::Dict(d)) if NESTED.contains(&heap.text(*key)) => Some(*d),
                _ => None,
            });
        dict = nested.ok_or_else(|| {
            format!(
                "holds no tensors, expected a dictionary from names to tensors, or one under {}",
                NESTED.join(" or ")
            )
        })?;
    }
    Ok(tensors(dict).collect())
}

/// The tensors of a module and of those that it holds, a name's parts joined by dots. A module that is
/// held twice counts once, so a file that ties modules in a circle ends too.
fn of_modules(heap: &Heap, root: usize) -> Named<'_> {
    let (mut out, mut seen) = (vec![], HashSet::from([root]));
    let mut open = vec![(String::new(), root)];
    while let Some((prefix, module)) = open.pop() {
        for (key, value) in heap.dict(module) {
            let Value::Str(key) = key else { continue };
            let name = format!("{prefix}{}", heap.text(*key));
            match value {
                Value::Tensor(id) => out.push((name, heap.tensor(*id))),
                Value::Module(id) if seen.insert(*id) => open.push((format!("{name}."), *id)),
                _ => {}
            }
        }
    }
    out
}

/// Where the values lie in the file; the error is the rest of a sentence.
fn place(
    name: &str,
    tensor: &RawTensor,
    key: &str,
    storage: Option<Range<usize>>,
) -> std::result::Result<Entry, String> {
    let RawTensor {
        dtype,
        numel,
        offset,
        shape,
        strides,
        ..
    } = tensor;
    let shape_str = shape_text(shape);
    let Some(storage) = storage else {
        return Err(format!(
            "needs the entry data/{key}, which the file does not have"
        ));
    };
    if numel.checked_mul(dtype.size()) != Some(storage.len()) {
        return Err(format!(
            "has a storage of {numel} {dtype} values, but data/{key} has {} bytes",
            storage.len()
        ));
    }
    if !is_contiguous(shape, strides) {
        return Err(format!(
            "is {shape_str} with strides {}, expected contiguous rows; save it after \
             .contiguous()",
            shape_text(strides)
        ));
    }
    let size = byte_size(*dtype, shape).ok_or_else(|| format!("is {shape_str}: too large"))?;
    let begin = offset
        .checked_mul(dtype.size())
        .and_then(|b| b.checked_add(storage.start));
    let end = begin.and_then(|b| b.checked_add(size));
    match (begin, end) {
        (Some(begin), Some(end)) if end <= storage.end => Ok(Entry {
            name: name.into(),
            dtype: *dtype,
            shape: shape.clone(),
            range: begin..end,
        }),
        _ => Err(format!(
            "is {shape_str} from value {offset} on, but its storage has {numel} values"
        )),
    }
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    let empty = shape.contains(&0);
    shape.len() == strides.len()
        && (empty
            || shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
                let fits = dim == 1 || stride == expected;
                expected = expected.saturating_mul(dim);
                fits
            }))
}

/// The element type of `torch.<name>`; bool is read as one byte a value.
pub(crate) fn storage_dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::Bf16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ByteStorage" | "BoolStorage" => Dtype::U8,
        _ => return None,
    })
}

/// What PyTorch calls a storage of that element type.
pub(super) fn storage_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::Bf16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::U8 => "ByteStorage",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::checkpoint::Checkpoint;
    use crate::weights::zip::tests::archive;
    use std::fs;

    // Written by PyTorch 2.15: see the names for what is in them.
    const NESTED_FILE: &[u8] = include_bytes!("testdata/nested.pt");
    const LINEAR_FILE: &[u8] = include_bytes!("testdata/linear.bin");
    const TRANSPOSED_FILE: &[u8] = include_bytes!("testdata/transposed.pt");
    /// `torch.jit.script` of modules, lists, dictionaries and numbers within modules, in f16.
    const SCRIPT_FILE: &[u8] = include_bytes!("testdata/script.pt");

    fn message(bytes: &[u8]) -> String {
        read(Path::new("dir/a.bin"), bytes).unwrap_err().to_string()
    }

    fn message_of(program: &[u8]) -> String {
        message(&archive(&[("a/data.pkl", program)], false))
    }

    /// `{name: tensor}` with one f32 storage of 4 values.
    fn one_tensor(offset: u8, shape: &[u8], strides: &[u8], numel: u8) -> Vec<u8> {
        let ints = |list: &[u8]| {
            let mut code = vec![b'('];
            list.iter().for_each(|&n| code.extend([b'K', n]));
            code.push(b't');
            code
        };
        let mut code = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        code.extend(b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu");
        code.extend([b'K', numel]);
        code.extend(b"tQ");
        code.extend([b'K', offset]);
        code.extend(ints(shape));
        code.extend(ints(strides));
        code.extend(b"\x89}tRs.");
        code
    }

    #[test]
    fn reads_what_torch_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nested.pt");
        fs::write(&path, NESTED_FILE).unwrap();
        let ckpt = Checkpoint::open(&path).unwrap();
        let names: Vec<_> = ckpt.names().collect();
        assert_eq!(names, ["w", "rows", "h", "b", "position_ids", "p", "mask"]);
        let w = ckpt.tensor("w").unwrap();
        assert_eq!(w.shape, [3, 4]);
        assert_eq!(w.as_f32().unwrap()[11], 11.0);
        // A view of the same storage.
        let rows = ckpt.tensor("rows").unwrap();
        assert_eq!((rows.shape, rows.to_f32()[0]), (&[2usize, 4][..], 4.0));
        assert_eq!(
            ckpt.range("rows").unwrap().end,
            ckpt.range("w").unwrap().end
        );
        assert_eq!(ckpt.tensor("h").unwrap().to_f32(), [1.5, -2.0]);
        assert_eq!(ckpt.tensor("b").unwrap().to_f32(), [1.5, -2.0]);
        assert_eq!(ckpt.tensor("position_ids").unwrap().dtype, Dtype::I64);
        assert_eq!(ckpt.tensor("p").unwrap().to_f32(), [2.5]);
        assert!(ckpt.tensor("p").unwrap().shape.is_empty());
        assert_eq!(ckpt.tensor("mask").unwrap().bytes, [1, 0]);

        fs::write(dir.path().join("pytorch_model.bin"), LINEAR_FILE).unwrap();
        let linear = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(linear.names().collect::<Vec<_>>(), ["weight", "bias"]);
    }

    #[test]
    fn reads_the_tensors_of_a_torchscript_program() {
        let (entries, _) = read(Path::new("a"), SCRIPT_FILE).unwrap();
        let value = |entry: &Entry| {
            let first = SCRIPT_FILE[entry.range.start..][..2].try_into().unwrap();
            half::f16::from_le_bytes(first).to_f32()
        };
        let mut found: Vec<(&str, &[usize], f32)> = entries
            .iter()
            .map(|e| (&*e.name, &*e.shape, value(e)))
            .collect();
        found.sort_by_key(|(name, ..)| *name);
        // As its state_dict() has them.
        let want: [(&str, &[usize], f32); 6] = [
            ("logit_scale", &[], 4.5),
            ("visual.class_embedding", &[2], 0.0),
            ("visual.resblocks.0.attn.bias", &[3], 20.0),
            ("visual.resblocks.0.attn.weight", &[3, 2], 10.0),
            ("visual.resblocks.1.attn.bias", &[3], 40.0),
            ("visual.resblocks.1.attn.weight", &[3, 2], 30.0),
        ];
        assert_eq!(found, want);
        assert!(entries.iter().all(|e| e.dtype == Dtype::F16));
    }

    #[test]
    fn a_hand_made_tensor_is_placed_in_its_storage() {
        let pickle = one_tensor(1, &[3, 1], &[1, 7], 4);
        let files: [(&str, &[u8]); 2] = [("a/data.pkl", &pickle), ("a/data/0", &[9; 16])];
        let bytes = archive(&files, true);
        let (entries, _) = read(Path::new("a"), &bytes).unwrap();
        assert_eq!(
            (&entries[0].name[..], &entries[0].shape[..]),
            ("w", &[3, 1][..])
        );
        assert_eq!(bytes[entries[0].range.clone()], [9; 12]);
    }

    #[test]
    fn tensors_that_do_not_fit_are_named() {
        let cases = [
            (
                one_tensor(0, &[2, 2], &[1, 2], 4),
                "w is (2, 2) with strides (1, 2), expected",
            ),
            (
                one_tensor(0, &[2, 2], &[2], 4),
                "with strides (2), expected contiguous",
            ),
            (
                one_tensor(2, &[3], &[1], 4),
                "w is (3) from value 2 on, but its storage has 4",
            ),
            (
                one_tensor(0, &[3], &[1], 5),
                "w has a storage of 5 F32 values, but data/0 has 16",
            ),
        ];
        for (pickle, expected) in cases {
            let files: [(&str, &[u8]); 2] = [("a/data.pkl", &pickle), ("a/data/0", &[0; 16])];
            let text = message(&archive(&files, false));
            assert!(text.starts_with("dir/a.bin: tensor w "), "{text}");
            assert!(text.contains(expected), "{text}");
        }
        let text = message_of(&one_tensor(0, &[4], &[1], 4));
        assert!(
            text.contains("needs the entry data/0, which the file does not have"),
            "{text}"
        );
        let text = message(TRANSPOSED_FILE);
        assert!(
            text.contains("tensor t is (4, 3) with strides (1, 4)"),
            "{text}"
        );
    }

    #[test]
    fn nothing_but_tensors_is_built() {
        let cases: [(&[u8], &str); 12] = [
            (
                b"cos\nsystem\n(X\x02\0\0\0lstR.",
                "asks for os.system; only tensors",
            ),
            (
                b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
                "asks for builtins.eval",
            ),
            (b"ctorch\nCharStorage\n.", "asks for torch.CharStorage"),
            (
                b"(ios\nsystem\n.",
                "has the opcode 0x69 at byte 1, not allowed",
            ),
            (b"\x80\x02}X\xff\0\0\0", "is truncated"),
            (b"}q\x00", "is truncated"),
            (b"0.", "takes a value that is not there"),
            (b"K\x01(0t.", "takes a value that is not there"),
            (b"h\x05.", "reads a memo that was never written"),
            (
                b"K\x01.",
                "holds a plain value, expected a dictionary of tensors",
            ),
            (
                b"}.",
                "holds no tensors, expected a dictionary from names to tensors",
            ),
            (b"X\x01\0\0\0xQ.", "refers to a storage in an unknown way"),
        ];
        for (program, expected) in cases {
            let text = message_of(program);
            assert!(text.contains(expected), "{text}\nexpected: {expected}");
        }
    }

    #[test]
    fn deep_and_tied_values_do_no_harm() {
        let mut deep = b"]".repeat(1 << 20);
        deep.extend(b"\x85".repeat(1 << 20));
        deep.push(b'.');
        assert!(message_of(&deep).contains("holds a list"));
        // A dictionary that holds itself under state_dict.
        let zip = archive(
            &[("a/data.pkl", b"}q\x00X\x0a\0\0\0state_dicth\x00s.")],
            false,
        );
        assert!(read(Path::new("a"), &zip).unwrap().0.is_empty());
        // A module that holds itself.
        let tied = b"c__torch__\nM\n)\x81q\x00}X\x01\0\0\0ah\x00sb.";
        let zip = archive(&[("a/data.pkl", tied)], false);
        assert!(read(Path::new("a"), &zip).unwrap().0.is_empty());
    }

    #[test]
    fn archives_of_other_kinds_are_named() {
        let pickle = one_tensor(0, &[4], &[1], 4);
        let with = |name: &str, content: &[u8]| {
            message(&archive(&[("a/data.pkl", &pickle), (name, content)], false))
        };
        assert!(with("a/byteorder", b"big").contains("big-endian"));
        let text = message(&archive(&[("a/word.xml", b"")], false));
        assert!(text.contains("is a zip file without data.pkl"), "{text}");
        let text = with("a/crosstune.json", b"[1]");
        assert!(
            text.contains("a.bin: its entry a/crosstune.json: "),
            "{text}"
        );
    }

    #[test]
    fn no_damaged_byte_panics() {
        for file in [NESTED_FILE, SCRIPT_FILE] {
            for at in 0..file.len() {
                let mut bytes = file.to_vec();
                bytes[at] ^= 0x55;
                let _ = read(Path::new("a"), &bytes);
            }
        }
    }
}
