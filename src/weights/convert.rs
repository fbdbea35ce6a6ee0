//! Any readable checkpoint to safetensors: `crosstune convert`.

use std::borrow::Cow;
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::bad_input;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::view::TensorView;
use crate::weights::write::{OutSpec, write_safetensors_streamed};

/// Writes the tensors of `input` to the safetensors file `output`, one at a time.
///
/// Names and metadata are kept. With `dtype` (F32, F16 or BF16), floating-point tensors are cast to
/// it and integers stay as they are. Tensors that share memory in `input` are written out each.
///
/// # Errors
/// What [`Checkpoint::open`] and [`write_safetensors_streamed`] fail with, and
/// [`Error::Input`](crate::error::Error::Input) for a value that the new type cannot hold.
pub fn convert(input: &Path, output: &Path, dtype: Option<Dtype>) -> Result<()> {
    if let Some(to) = dtype.filter(|d| !matches!(d, Dtype::F32 | Dtype::F16 | Dtype::Bf16)) {
        return Err(bad_input!(
            "cannot convert weights to {to}, expected F32, F16 or BF16"
        ));
    }
    if output.extension().is_none_or(|e| e != "safetensors") {
        return Err(bad_input!(
            "{}: expected a name that ends in .safetensors, the only format written",
            output.display()
        ));
    }
    let ckpt = Checkpoint::open(input)?;
    let tensors: Vec<_> = ckpt.tensors().collect();
    let specs: Vec<_> = tensors
        .iter()
        .map(|&(name, view)| OutSpec {
            name,
            dtype: target(view.dtype, dtype),
            shape: view.shape,
        })
        .collect();
    write_safetensors_streamed(output, &specs, ckpt.metadata(), |i| {
        let (name, view) = tensors[i];
        let bytes = cast(view, specs[i].dtype).map_err(|at| {
            bad_input!(
                "{}: value {at} of {name} is too large for {}; convert to BF16 or F32",
                ckpt.path().display(),
                specs[i].dtype
            )
        })?;
        Ok(bytes)
    })
}

fn target(from: Dtype, to: Option<Dtype>) -> Dtype {
    match from {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 => to.unwrap_or(from),
        Dtype::I64 | Dtype::I32 | Dtype::U8 => from,
    }
}

/// The values as `to`; the error is the index of a finite value that became infinite.
pub(crate) fn cast(view: TensorView<'_>, to: Dtype) -> std::result::Result<Cow<'_, [u8]>, usize> {
    if view.dtype == to {
        return Ok(Cow::Borrowed(view.bytes));
    }
    let values = view.to_f32();
    let overflow = |is_infinite: &dyn Fn(usize) -> bool| {
        (0..values.len())
            .find(|&i| values[i].is_finite() && is_infinite(i))
            .map_or(Ok(()), Err)
    };
    let bytes = match to {
        Dtype::F16 => {
            let mut out = vec![f16::ZERO; values.len()];
            out.convert_from_f32_slice(&values);
            overflow(&|i| out[i].is_infinite())?;
            bytemuck::cast_slice(&out).to_vec()
        }
        Dtype::Bf16 => {
            let mut out = vec![bf16::ZERO; values.len()];
            out.convert_from_f32_slice(&values);
            overflow(&|i| out[i].is_infinite())?;
            bytemuck::cast_slice(&out).to_vec()
        }
        _ => bytemuck::cast_slice(&values).to_vec(),
    };
    Ok(Cow::Owned(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write::{OutTensor, write_safetensors};
    use std::collections::BTreeMap;
    use std::fs;

    const TORCH_FILE: &[u8] = include_bytes!("testdata/nested.pt");

    #[test]
    fn a_torch_file_becomes_safetensors_with_the_same_values() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a.pt"), dir.path().join("a.safetensors"));
        fs::write(&from, TORCH_FILE).unwrap();
        convert(&from, &to, None).unwrap();
        let (old, new) = (
            Checkpoint::open(&from).unwrap(),
            Checkpoint::open(&to).unwrap(),
        );
        assert_eq!(old.len(), new.len());
        for (name, view) in old.tensors() {
            let copy = new.tensor(name).unwrap();
            assert_eq!(
                (copy.dtype, copy.shape, copy.bytes),
                (view.dtype, view.shape, view.bytes)
            );
        }
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            convert(&from, &to, Some(dtype)).unwrap();
            let new = Checkpoint::open(&to).unwrap();
            assert_eq!(new.tensor("rows").unwrap().dtype, dtype);
            assert_eq!(new.tensor("position_ids").unwrap().dtype, Dtype::I64);
            for (name, view) in old.tensors() {
                assert_eq!(new.tensor(name).unwrap().to_f32(), view.to_f32(), "{name}");
            }
        }
    }

    #[test]
    fn what_cannot_be_converted_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (
            dir.path().join("a.safetensors"),
            dir.path().join("b.safetensors"),
        );
        let bytes: &[u8] = bytemuck::cast_slice(&[f32::INFINITY, 7e4]);
        let w = OutTensor {
            name: "w",
            dtype: Dtype::F32,
            shape: vec![2],
            bytes: bytes.into(),
        };
        write_safetensors(&from, &[w], &BTreeMap::new()).unwrap();
        let message = |to: &Path, dtype| convert(&from, to, dtype).unwrap_err().to_string();
        let text = message(&to, Some(Dtype::F16));
        assert!(
            text.ends_with("value 1 of w is too large for F16; convert to BF16 or F32"),
            "{text}"
        );
        assert!(!to.exists());
        assert!(message(&to, Some(Dtype::I32)).contains("cannot convert weights to I32"));
        assert!(message(&dir.path().join("b.bin"), None).contains("ends in .safetensors"));
        convert(&from, &from, Some(Dtype::Bf16)).unwrap();
        assert_eq!(
            Checkpoint::open(&from).unwrap().tensor("w").unwrap().dtype,
            Dtype::Bf16
        );
    }
}
