//! The safetensors header: an eight-byte length, JSON, then the tensors back to back.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::bad_input;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::weights::checkpoint::{Entry, shape_text};

/// Headers beyond this size are damage: the format's own library has the same limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Tensors in the header's order, and `__metadata__`.
///
/// # Errors
/// [`crate::error::Error::Input`] that names the file, the tensor, what was expected and found.
pub fn read(path: &Path, bytes: &[u8]) -> Result<(Vec<Entry>, BTreeMap<String, String>)> {
    let file = path.display();
    let Some(length) = bytes.first_chunk().map(|b| u64::from_le_bytes(*b)) else {
        return Err(bad_input!(
            "{file}: has {} bytes, expected at least 8 in a safetensors file; copy it again",
            bytes.len()
        ));
    };
    if length > MAX_HEADER_BYTES {
        return Err(bad_input!(
            "{file}: its first 8 bytes say that the header has {length} bytes; it is damaged or \
             not a safetensors file"
        ));
    }
    // Cannot overflow: the length was just bounded.
    let data_start = 8 + length as usize;
    let Some(header) = bytes.get(8..data_start) else {
        return Err(bad_input!(
            "{file}: is truncated: its header ends at byte {data_start}, the file has {} bytes; \
             copy or download it again",
            bytes.len()
        ));
    };
    let fields: Fields = serde_json::from_slice(header)
        .map_err(|e| bad_input!("{file}: its safetensors header is not valid: {e}"))?;

    let mut metadata = BTreeMap::new();
    let mut entries = Vec::with_capacity(fields.0.len());
    for (name, value) in fields.0 {
        if name == "__metadata__" {
            metadata = serde_json::from_value(value)
                .map_err(|e| bad_input!("{file}: its __metadata__ must map text to text: {e}"))?;
        } else {
            entries.push(
                entry(&name, &value, data_start)
                    .map_err(|why| bad_input!("{file}: tensor {name} {why}"))?,
            );
        }
    }
    check_layout(path, &entries, data_start, bytes.len())?;
    Ok((entries, metadata))
}

/// The header's JSON object in order; a repeated key is an error.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Fields, A::Error> {
                let (mut fields, mut seen) = (Vec::new(), HashSet::new());
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name} stands in it twice")));
                    }
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// One field of the header; the error is the rest of a sentence that begins "tensor NAME".
fn entry(name: &str, value: &Value, data_start: usize) -> std::result::Result<Entry, String> {
    let numbers = |field: &str| -> std::result::Result<Vec<usize>, String> {
        let list = value.get(field).and_then(Value::as_array);
        let list = list.and_then(|l| l.iter().map(|v| v.as_u64().map(|v| v as usize)).collect());
        list.ok_or_else(|| format!("has no valid {field}, expected a list of whole numbers"))
    };
    let Some(dtype_name) = value.get("dtype").and_then(Value::as_str) else {
        return Err("has no dtype".into());
    };
    let Some(dtype) = dtype(dtype_name) else {
        return Err(format!(
            "has dtype {dtype_name}; supported are F64, F32, F16, BF16, I64, I32, U8 and BOOL"
        ));
    };
    let shape = numbers("shape")?;
    let &[start, end] = &numbers("data_offsets")?[..] else {
        return Err("has no valid data_offsets, expected [begin, end]".into());
    };
    let size = byte_size(dtype, &shape)
        .ok_or_else(|| format!("has shape {}, which is too large", shape_text(&shape)))?;
    if end.checked_sub(start) != Some(size) {
        return Err(format!(
            "is {} {dtype}, which takes {size} bytes, but its data_offsets are [{start}, {end}]",
            shape_text(&shape)
        ));
    }
    let at = |offset: usize| {
        offset
            .checked_add(data_start)
            .ok_or_else(|| format!("has the offset {offset}"))
    };
    Ok(Entry {
        name: name.to_string(),
        dtype,
        shape,
        range: at(start)?..at(end)?,
    })
}

/// Tensors must lie back to back from the header to the end of the file.
fn check_layout(path: &Path, entries: &[Entry], data_start: usize, file_len: usize) -> Result<()> {
    let file = path.display();
    let mut by_place: Vec<&Entry> = entries.iter().collect();
    by_place.sort_by_key(|e| (e.range.start, e.range.end));
    let mut end = data_start;
    for entry in by_place {
        let (name, at) = (&entry.name, &entry.range);
        if at.end > file_len {
            return Err(bad_input!(
                "{file}: is truncated: tensor {name} ends at byte {}, the file has {file_len} \
                 bytes; copy or download it again",
                at.end
            ));
        }
        if at.start < end {
            return Err(bad_input!(
                "{file}: tensor {name} begins at byte {}, inside the tensor before it, which ends \
                 at byte {end}; the header is damaged",
                at.start
            ));
        }
        if at.start > end {
            return Err(bad_input!(
                "{file}: tensor {name} begins at byte {}, expected {end}: no tensor owns the bytes \
                 between; the header is damaged",
                at.start
            ));
        }
        end = at.end;
    }
    if end != file_len {
        return Err(bad_input!(
            "{file}: its tensors end at byte {end}, but the file has {file_len} bytes; copy or \
             download it again"
        ));
    }
    Ok(())
}

/// BOOL is read as one byte a value.
fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "F64" => Dtype::F64,
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        "I64" => Dtype::I64,
        "I32" => Dtype::I32,
        "U8" | "BOOL" => Dtype::U8,
        _ => return None,
    })
}

/// Bytes that a tensor takes, or `None` where the count does not fit a machine word.
pub(crate) fn byte_size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data_bytes, 0);
        bytes
    }

    fn message(bytes: &[u8]) -> String {
        read(Path::new("dir/m.safetensors"), bytes)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn keeps_the_order_of_the_header() {
        let header = r#"{"z":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "__metadata__":{"k":"v"},"a":{"dtype":"I64","shape":[],"data_offsets":[8,16]},
            "e":{"dtype":"F16","shape":[0,3],"data_offsets":[8,8]}}"#;
        let (entries, metadata) = read(Path::new("m"), &file(header, 16)).unwrap();
        assert_eq!(
            entries.iter().map(|e| &e.name[..]).collect::<Vec<_>>(),
            ["z", "a", "e"]
        );
        assert_eq!(metadata["k"], "v");
        assert_eq!(entries[1].range.len(), 8);
    }

    #[test]
    fn every_kind_of_damage_is_named() {
        let one = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut cut = file(one, 8);
        cut.truncate(20);
        let with = |tensors: &str, n| file(&format!("{{{tensors}}}"), n);
        let cases = [
            (vec![1, 2, 3], "has 3 bytes, expected at least 8"),
            (
                cut,
                "is truncated: its header ends at byte 62, the file has 20 bytes",
            ),
            (vec![255; 40], "damaged or not a safetensors file"),
            (file("{\"w\":", 0), "header is not valid: EOF"),
            (file("[]", 0), "expected an object of tensors"),
            (
                file(one, 7),
                "is truncated: tensor w ends at byte 70, the file has 69 bytes",
            ),
            (
                file(one, 9),
                "its tensors end at byte 70, but the file has 71 bytes",
            ),
            (
                file(r#"{"__metadata__":{"a":1}}"#, 0),
                "__metadata__ must map text to text",
            ),
            (
                with(
                    r#""w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}"#,
                    2,
                ),
                "tensor w has dtype F8_E4M3; supported are",
            ),
            (
                with(r#""w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, 8),
                "tensor w is (3) F32, which takes 12 bytes, but its data_offsets are [0, 8]",
            ),
            (
                with(
                    r#""w":{"dtype":"F32","shape":[-3],"data_offsets":[0,8]}"#,
                    8,
                ),
                "tensor w has no valid shape",
            ),
            (
                with(r#""w":{"dtype":"F32","shape":[9e9],"data_offsets":[0]}"#, 8),
                "tensor w has no valid shape",
            ),
            (
                with(
                    r#""w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#,
                    8,
                ),
                "which is too large",
            ),
            (
                with(
                    r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                       "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}"#,
                    6,
                ),
                "inside the tensor before it, which ends at byte",
            ),
            (
                with(
                    r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                       "b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}"#,
                    6,
                ),
                "no tensor owns the bytes between",
            ),
            (
                with(
                    r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                       "a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#,
                    1,
                ),
                "a stands in it twice",
            ),
        ];
        for (bytes, expected) in cases {
            let text = message(&bytes);
            assert!(text.starts_with("dir/m.safetensors: "), "{text}");
            assert!(text.contains(expected), "{text}\nexpected: {expected}");
        }
    }
}
