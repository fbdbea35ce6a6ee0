//! What is in a file, as plain data: `crosstune inspect`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::data::feature_file;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::view::TensorView;

/// Parts of names that only adapters have: PEFT, OpenDelta's bottlenecks, compacters and prompts.
const ADAPTER_PARTS: [&str; 7] = [
    "lora_A",
    "lora_B",
    ".adapter.",
    ".parallel_adapter.",
    ".compactor.",
    "soft_embeds",
    "modules_to_save",
];

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A model's weights.
    Checkpoint,
    /// A small set of trained tensors that belongs to a model.
    Adapter,
    /// Image features with their names.
    Features,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// The name in the file.
    pub name: String,
    /// Element type by its safetensors name.
    pub dtype: &'static str,
    /// Dimensions, row-major.
    pub shape: Vec<usize>,
    /// Size of the values in the file.
    pub bytes: usize,
}

/// The contents of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The file that was read.
    pub path: PathBuf,
    /// What it is for.
    pub kind: Kind,
    /// Its tensors in file order.
    pub tensors: Vec<TensorReport>,
    /// Number of values in all floating-point tensors.
    pub parameters: usize,
    /// Size of all values; less than the file, but more where tensors share memory.
    pub tensor_bytes: usize,
    /// Size of the file.
    pub file_bytes: u64,
    /// Number of tensors of each element type.
    pub dtypes: BTreeMap<&'static str, usize>,
    /// The `__metadata__` of a safetensors file.
    pub metadata: BTreeMap<String, String>,
}

/// A value that is NaN or infinite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NonFinite {
    /// The tensor it is in.
    pub tensor: String,
    /// Its place in the tensor, counted in values.
    pub index: usize,
    /// The value itself.
    pub value: f32,
}

/// Lists a checkpoint, adapter or feature file, or the one inside a folder. Reads no tensor data.
///
/// # Errors
/// What [`Checkpoint::open`] fails with.
pub fn inspect(path: &Path) -> Result<Report> {
    Ok(report(&open(path)?))
}

/// Opens what [`inspect`] would list: as [`Checkpoint::open`], and adapter folders too.
///
/// # Errors
/// What [`Checkpoint::open`] fails with.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let inside = ["adapter_model.safetensors", "adapter_model.bin"].map(|f| path.join(f));
    Checkpoint::open(
        inside
            .iter()
            .find(|p| p.is_file())
            .map_or(path, |p| p.as_path()),
    )
}

/// The [`Report`] of an open file.
pub fn report(ckpt: &Checkpoint) -> Report {
    let tensors: Vec<_> = ckpt
        .tensors()
        .map(|(name, view)| TensorReport {
            name: name.to_string(),
            dtype: view.dtype.name(),
            shape: view.shape.to_vec(),
            bytes: view.bytes.len(),
        })
        .collect();
    let mut dtypes = BTreeMap::new();
    for tensor in &tensors {
        *dtypes.entry(tensor.dtype).or_insert(0) += 1;
    }
    let is_float = |d| matches!(d, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    let floats = ckpt.tensors().filter(|(_, view)| is_float(view.dtype));
    Report {
        path: ckpt.path().to_path_buf(),
        kind: kind(ckpt),
        parameters: floats.map(|(_, view)| view.elements()).sum(),
        tensor_bytes: tensors.iter().map(|t| t.bytes).sum(),
        tensors,
        file_bytes: ckpt.file_bytes(),
        dtypes,
        metadata: ckpt.metadata().clone(),
    }
}

/// The first NaN or infinity of each tensor that has one. Reads all tensor data.
pub fn scan(ckpt: &Checkpoint) -> Vec<NonFinite> {
    let first = |(name, view): (&str, TensorView<'_>)| {
        let index = view.first_non_finite()?;
        let size = view.dtype.size();
        let one = &view.bytes[index * size..(index + 1) * size];
        let value = TensorView { bytes: one, ..view }.to_f32()[0];
        Some(NonFinite {
            tensor: name.to_string(),
            index,
            value,
        })
    };
    ckpt.tensors().filter_map(first).collect()
}

fn kind(ckpt: &Checkpoint) -> Kind {
    if ckpt.get(feature_file::TENSOR).is_some() {
        return Kind::Features;
    }
    let is_adapter = |name: &str| ADAPTER_PARTS.iter().any(|part| name.contains(part));
    match ckpt.names().any(is_adapter) {
        true => Kind::Adapter,
        false => Kind::Checkpoint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write::{OutTensor, write_safetensors};

    fn write(path: &Path, name: &str, values: &[f32]) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let shape = vec![1, values.len()];
        let ids = OutTensor {
            name: "ids",
            dtype: Dtype::U8,
            shape: vec![3],
            bytes: (&[0; 3]).into(),
        };
        let w = OutTensor {
            name,
            dtype: Dtype::F32,
            shape,
            bytes: bytes.into(),
        };
        write_safetensors(path, &[w, ids], &BTreeMap::from([("k".into(), "v".into())])).unwrap();
    }

    #[test]
    fn lists_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        write(&path, "w", &[1.0, 2.0]);
        let report = inspect(&path).unwrap();
        assert_eq!(
            (report.kind, report.parameters, report.tensor_bytes),
            (Kind::Checkpoint, 2, 11)
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["kind"], "checkpoint");
        assert_eq!(json["tensors"][0]["shape"], serde_json::json!([1, 2]));
        assert_eq!(
            (&json["dtypes"]["F32"], &json["metadata"]["k"]),
            (&1.into(), &"v".into())
        );
    }

    #[test]
    fn tells_adapters_and_features_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_model.safetensors");
        write(
            &path,
            "encoder.layer.0.attention.self.query.lora_A.weight",
            &[1.0],
        );
        assert_eq!(inspect(dir.path()).unwrap().kind, Kind::Adapter);
        write(&path, feature_file::TENSOR, &[1.0]);
        assert_eq!(inspect(&path).unwrap().kind, Kind::Features);
    }

    #[test]
    fn scan_finds_the_first_of_each_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        write(&path, "w", &[1.0, f32::NEG_INFINITY, f32::NAN]);
        let found = scan(&open(&path).unwrap());
        let expected = NonFinite {
            tensor: "w".into(),
            index: 1,
            value: f32::NEG_INFINITY,
        };
        assert_eq!(found, [expected]);
        write(&path, "w", &[1.0]);
        assert!(scan(&open(&path).unwrap()).is_empty());
    }
}
