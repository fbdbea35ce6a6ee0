//! PyTorch checkpoints, written: a zip file with the pickle of an OrderedDict of tensors, as
//! `torch.save` makes of a state dict.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use crate::bad_input;
use crate::error::Result;
use crate::weights::pickle::{METADATA, storage_name};
use crate::weights::write::{OutSpec, OutTensor, check_values, unique_size, write_atomic};
use crate::weights::zip_write::{ZipWriter, fits};

/// Writes a file that `torch.load` reads, also with `weights_only=True`; the same input gives the same
/// bytes. `metadata` lies beside the tensors, where PyTorch does not look.
///
/// # Errors
/// [`crate::error::Error::Write`], after which a file that was there before is still there, unchanged;
/// [`crate::error::Error::Input`] for a repeated name, values that do not fill their shape, or 4 GiB
/// and more.
pub fn write_pytorch(
    path: &Path,
    tensors: &[OutTensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut names = HashSet::new();
    for tensor in tensors {
        let spec = OutSpec::of(tensor);
        unique_size(path, &spec, &mut names)?;
        check_values(path, &spec, &tensor.bytes)?;
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let (program, json) = (program(tensors), serde_json::to_vec(metadata));
    let json = json.map_err(|e| bad_input!("{}: its metadata: {e}", path.display()))?;
    let mut entries: Vec<(String, &[u8])> = vec![
        (format!("{stem}/data.pkl"), &program),
        (format!("{stem}/byteorder"), b"little"),
    ];
    for (i, tensor) in tensors.iter().enumerate() {
        entries.push((format!("{stem}/data/{i}"), &tensor.bytes));
    }
    entries.push((format!("{stem}/version"), b"3\n"));
    if !metadata.is_empty() {
        entries.push((format!("{stem}/{METADATA}"), &json));
    }
    if !fits(entries.iter().map(|(name, data)| (name.len(), data.len()))) {
        return Err(bad_input!(
            "{}: would take 4 GiB or more, or 65,535 entries, which a plain zip file cannot hold; \
             safetensors can",
            path.display()
        ));
    }
    write_atomic(path, |out| {
        let mut zip = ZipWriter::new(out);
        entries
            .iter()
            .try_for_each(|(name, data)| zip.add(name, data))?;
        zip.finish()
    })
}

/// The pickle of `OrderedDict` with each tensor in a storage of its own. Source: torch/_utils.py
/// `_rebuild_tensor_v2`, CPython's Lib/pickletools.py for the opcodes.
fn program(tensors: &[OutTensor<'_>]) -> Vec<u8> {
    let mut code = Code(b"\x80\x02".to_vec());
    code.ordered_dict();
    code.op(b'(');
    for (i, tensor) in tensors.iter().enumerate() {
        code.text(tensor.name);
        code.global("torch._utils", "_rebuild_tensor_v2");
        code.op(b'(');
        let numel = tensor.shape.iter().product();
        code.op(b'(');
        code.text("storage");
        code.global("torch", storage_name(tensor.dtype));
        code.text(&i.to_string());
        code.text("cpu");
        code.int(numel);
        // The tuple stands for the storage.
        code.0.extend(b"tQ");
        code.int(0);
        code.ints(&tensor.shape);
        code.ints(&strides(&tensor.shape));
        // No gradient, no hooks.
        code.op(0x89);
        code.ordered_dict();
        code.0.extend(b"tR");
    }
    code.0.extend(b"u.");
    code.0
}

/// Strides of contiguous rows, PyTorch's: an empty dimension counts as one.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

/// A pickle under construction.
struct Code(Vec<u8>);

impl Code {
    fn op(&mut self, opcode: u8) {
        self.0.push(opcode);
    }

    fn text(&mut self, text: &str) {
        self.op(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    /// Calls `OrderedDict()`.
    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.0.extend(b")R");
    }

    fn int(&mut self, n: usize) {
        match (u8::try_from(n), i32::try_from(n)) {
            (Ok(n), _) => self.0.extend([b'K', n]),
            (_, Ok(n)) => {
                self.op(b'J');
                self.0.extend(n.to_le_bytes());
            }
            // Nine bytes: the ninth is the sign.
            _ => {
                self.0.extend([0x8a, 9]);
                self.0.extend((n as u64).to_le_bytes());
                self.op(0);
            }
        }
    }

    fn ints(&mut self, list: &[usize]) {
        self.op(b'(');
        list.iter().for_each(|n| self.int(*n));
        self.op(b't');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;
    use crate::weights::checkpoint::Checkpoint;
    use std::fs;

    fn tensor<'a>(name: &'a str, dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> OutTensor<'a> {
        OutTensor {
            name,
            dtype,
            shape: shape.to_vec(),
            bytes: bytes.into(),
        }
    }

    #[test]
    fn every_type_and_shape_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.ckpt");
        let data = vec![5u8; 70_000];
        let mut tensors = vec![
            tensor("half", Dtype::F16, &[3], &data[..6]),
            tensor("number", Dtype::F32, &[], &data[..4]),
            tensor("none", Dtype::F32, &[0, 5], &[]),
            tensor("long", Dtype::U8, &[70_000], &data),
        ];
        for dtype in [Dtype::F64, Dtype::Bf16, Dtype::I64, Dtype::I32, Dtype::U8] {
            tensors.push(tensor(
                dtype.name(),
                dtype,
                &[2, 3],
                &data[..6 * dtype.size()],
            ));
        }
        let metadata = BTreeMap::from([("a".into(), "\"ü\"\n".into())]);
        write_pytorch(&path, &tensors, &metadata).unwrap();
        let first = fs::read(&path).unwrap();
        write_pytorch(&path, &tensors, &metadata).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first);
        let file = Checkpoint::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        assert!(file.names().eq(tensors.iter().map(|t| t.name)));
        for want in &tensors {
            let got = file.tensor(want.name).unwrap();
            assert_eq!((got.dtype, got.shape), (want.dtype, &want.shape[..]));
            assert_eq!(got.bytes, &want.bytes[..]);
        }
        write_pytorch(&path, &tensors, &BTreeMap::new()).unwrap();
        assert!(Checkpoint::open(&path).unwrap().metadata().is_empty());
    }

    #[test]
    fn long_integers_have_their_own_opcodes() {
        let code = |n| {
            let mut code = Code(vec![]);
            code.int(n);
            code.0
        };
        assert_eq!(code(255), b"K\xff");
        assert_eq!(code(256), b"J\0\x01\0\0");
        assert_eq!(code(1 << 31), b"\x8a\x09\0\0\0\x80\0\0\0\0\0");
        assert_eq!(strides(&[2, 0, 3, 4]), [12, 12, 4, 1]);
    }

    #[test]
    fn bad_tensors_are_named_and_leave_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.ckpt");
        fs::write(&path, "old").unwrap();
        let w = tensor("w", Dtype::F32, &[1], &[0; 4]);
        let twice = write_pytorch(&path, &[w.clone(), w], &BTreeMap::new());
        let text = twice.unwrap_err().to_string();
        assert!(text.contains("two tensors called w"), "{text}");
        let short = tensor("w", Dtype::F32, &[2], &[0; 4]);
        let text = write_pytorch(&path, &[short], &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(
            text.ends_with("w is (2) F32, expected 8 bytes, got 4"),
            "{text}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
