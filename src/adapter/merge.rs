//! An adapter folded into its model: `crosstune merge`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use half::{bf16, f16};

use super::file::AdapterFile;
use crate::bad_input;
use crate::error::{Error, Result};
use crate::tensor::Dtype;
use crate::text::clip_bpe::MERGES_FILES;
use crate::train::program::TextModel;
use crate::weights::text_model::TextModelFiles;
use crate::weights::view::TensorView;
use crate::weights::write::{OutSpec, write_folder, write_safetensors_streamed};

/// What goes with the weights, where the model has it.
const BESIDE: [&str; 11] = [
    "config.json",
    "preprocessor_config.json",
    MERGES_FILES[0],
    MERGES_FILES[1],
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "README.md",
];

/// Writes the folder `out`: the model of `folder` with the adapter in its weights, and the files
/// that lie beside them. Tensors keep their names, order and element types; those that the adapter
/// does not touch keep their bytes.
///
/// A linear layer becomes `W + scale * B A`, computed in f64 and rounded once; layer norms and the
/// head are replaced by the trained ones.
///
/// # Errors
/// Those of [`TextModelFiles::open`], [`AdapterFile::check_model`] and [`write_folder`];
/// [`Error::Input`] for a value that the element type cannot hold, and for an adapter with layers or
/// tokens of its own.
pub fn merge(folder: &Path, adapter: &AdapterFile, out: &Path) -> Result<()> {
    let files = TextModelFiles::open(folder)?;
    let prefix = files.prefix.clone();
    let model = TextModel::new(files);
    adapter.check_model(&model)?;
    if let Some(what) = adapter.config.own_layers() {
        return Err(bad_input!(
            "adapter: has {what}, which are layers of their own: no weight of the model can \
             take them in"
        ));
    }
    if adapter.config.prompt.is_some() {
        return Err(bad_input!(
            "adapter: has a soft prompt, which is tokens of its own in every text: no weight of the \
             model can take it in"
        ));
    }
    let trained: HashMap<&str, &[f32]> = adapter
        .tensors
        .iter()
        .map(|(name, _, values)| (name.as_str(), values.as_slice()))
        .collect();
    let ckpt = model.weights();
    // What the file has fused or transposed can't take a factor of its own.
    let in_file: HashSet<String> = ckpt
        .names()
        .map(|name| graph_name(name, &prefix).into_owned())
        .collect();
    let weight = |name: &str| match name.split_once(".lora.") {
        Some((module, _)) => format!("{module}.weight"),
        None => name.to_string(),
    };
    if let Some((name, ..)) = (adapter.tensors.iter()).find(|(n, ..)| !in_file.contains(&weight(n)))
    {
        return Err(bad_input!(
            "{}: has no tensor {} that {name} could be folded into; only towers with M-CLIP's or \
             Hugging Face's names can take an adapter in",
            ckpt.path().display(),
            weight(name)
        ));
    }
    write_folder(out, |temp| {
        let tensors: Vec<_> = ckpt.tensors().collect();
        let specs: Vec<_> = tensors
            .iter()
            .map(|&(name, view)| OutSpec {
                name,
                dtype: view.dtype,
                shape: view.shape,
            })
            .collect();
        let mut metadata = ckpt.metadata().clone();
        // transformers reads no safetensors file without it.
        metadata.insert("format".into(), "pt".into());
        metadata.insert("merged".into(), origin_text(&adapter.origin));
        write_safetensors_streamed(&temp.join("model.safetensors"), &specs, &metadata, |i| {
            let (name, view) = tensors[i];
            let own = graph_name(name, &prefix);
            merged(&own, view, adapter, &trained).map_err(|at| {
                bad_input!(
                    "{}: value {at} of {name} with the adapter is too large for {}; convert the \
                     model to F32 first",
                    ckpt.path().display(),
                    view.dtype
                )
            })
        })?;
        for name in BESIDE {
            let (from, to) = (folder.join(name), temp.join(name));
            if from.is_file() {
                fs::copy(&from, &to).map_err(Error::write(&to))?;
            }
        }
        Ok(())
    })
}

/// Where the adapter came from, in one line.
fn origin_text(origin: &BTreeMap<String, String>) -> String {
    let parts: Vec<_> = origin.iter().map(|(k, v)| format!("{k} {v}")).collect();
    match parts.is_empty() {
        true => "an adapter of crosstune".into(),
        false => format!("an adapter of crosstune: {}", parts.join(", ")),
    }
}

/// The adapter's name for a tensor of the file.
fn graph_name<'a>(name: &'a str, prefix: &str) -> Cow<'a, str> {
    match name.strip_prefix(prefix) {
        Some(inner) if inner.starts_with("encoder.") || inner.starts_with("embeddings.") => {
            Cow::Owned(format!("transformer.{inner}"))
        }
        _ => Cow::Borrowed(name),
    }
}

/// The values of a tensor with the adapter in it; the error is the index of one that overflowed.
fn merged<'a>(
    name: &str,
    view: TensorView<'a>,
    adapter: &AdapterFile,
    trained: &HashMap<&str, &[f32]>,
) -> std::result::Result<Cow<'a, [u8]>, usize> {
    if let Some(values) = trained.get(name) {
        let values = values.iter().map(|&v| f64::from(v));
        return encode(values, view.dtype).map(Cow::Owned);
    }
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let factor = |which| trained.get(format!("{module}.lora.{which}").as_str());
    match (
        factor("lora_A"),
        factor("lora_B"),
        adapter.config.lora_at(module),
    ) {
        (Some(lora_a), Some(lora_b), Some(branch)) => {
            let scale = f64::from(branch.scale);
            let sum = add_product(&to_f64(view), (lora_a, lora_b), branch.rank, scale);
            encode(sum.into_iter(), view.dtype).map(Cow::Owned)
        }
        _ => Ok(Cow::Borrowed(view.bytes)),
    }
}

/// `weight + scale * lora_b lora_a`. Shapes: weight (OC, K), lora_a (R, K), lora_b (OC, R).
fn add_product(
    weight: &[f64],
    (lora_a, lora_b): (&[f32], &[f32]),
    rank: usize,
    scale: f64,
) -> Vec<f64> {
    let k = lora_a.len() / rank;
    let rows = weight.chunks_exact(k).zip(lora_b.chunks_exact(rank));
    let mut out = Vec::with_capacity(weight.len());
    for (row, b) in rows {
        let mut product = vec![0f64; k];
        for (b, a) in b.iter().zip(lora_a.chunks_exact(k)) {
            let b = f64::from(*b);
            product
                .iter_mut()
                .zip(a)
                .for_each(|(p, a)| *p += b * f64::from(*a));
        }
        out.extend(row.iter().zip(&product).map(|(w, p)| w + scale * p));
    }
    out
}

fn to_f64(view: TensorView<'_>) -> Vec<f64> {
    match view.dtype {
        Dtype::F64 => view
            .bytes
            .chunks_exact(8)
            .map(bytemuck::pod_read_unaligned)
            .collect(),
        // Exact: every other type of a weight fits f32.
        _ => view.to_f32().into_iter().map(f64::from).collect(),
    }
}

/// The bytes of values rounded once to a type of weights; the error is the index of a finite value
/// that became infinite.
fn encode(values: impl Iterator<Item = f64>, dtype: Dtype) -> std::result::Result<Vec<u8>, usize> {
    let mut out = Vec::new();
    for (i, x) in values.enumerate() {
        let infinite = match dtype {
            Dtype::F64 => {
                out.extend(x.to_le_bytes());
                false
            }
            Dtype::F16 => {
                let y = f16::from_f32(round_to_odd(x));
                out.extend(y.to_le_bytes());
                y.is_infinite()
            }
            Dtype::Bf16 => {
                let y = bf16::from_f32(round_to_odd(x));
                out.extend(y.to_le_bytes());
                y.is_infinite()
            }
            // The model was checked: its weights have no integer types.
            _ => {
                let y = x as f32;
                out.extend(y.to_le_bytes());
                y.is_infinite()
            }
        };
        if infinite && x.is_finite() {
            return Err(i);
        }
    }
    Ok(out)
}

/// The f32 on the way to a half: cut off, with its last bit set where something was lost. Rounding
/// it again then gives what rounding `x` once gives, because f32 has more than two bits to spare
/// (Boldo and Melquiond, 2008). `f16::from_f64` itself rounds twice where the processor converts.
fn round_to_odd(x: f64) -> f32 {
    let y = x as f32;
    if f64::from(y) == x || !y.is_finite() {
        return y;
    }
    let cut = match f64::from(y).abs() > x.abs() {
        true => y.to_bits() - 1,
        false => y.to_bits(),
    };
    f32::from_bits(cut | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_once() {
        // Just above the middle of two halves: f32 rounds it to the middle, and then to even.
        let x = 1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40);
        let up = f16::from_f32(1.0 + f32::powi(2.0, -10));
        assert_eq!(f16::from_f32(x as f32), f16::ONE);
        assert_eq!(f16::from_f32(round_to_odd(x)), up);
        assert_eq!(f16::from_f32(round_to_odd(-x)), -up);
        let x = 1.0 + f64::powi(2.0, -8) + f64::powi(2.0, -40);
        let up = bf16::from_f32(1.0 + f32::powi(2.0, -7));
        assert_eq!(bf16::from_f32(round_to_odd(x)), up);
        // Just below a middle, and what f32 holds exactly.
        let x = 1.0 + f64::powi(2.0, -11) - f64::powi(2.0, -40);
        assert_eq!(f16::from_f32(round_to_odd(x)), f16::ONE);
        assert_eq!(round_to_odd(0.25), 0.25);
        assert_eq!(encode([1.0, 7e4].into_iter(), Dtype::F16), Err(1));
        assert_eq!(encode([1e39].into_iter(), Dtype::F32), Err(0));
        assert!(encode([f64::INFINITY].into_iter(), Dtype::F16).is_ok());
    }

    #[test]
    fn the_product_is_added_with_its_scale() {
        let sum = add_product(
            &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            (&[1.0, 0.0, 2.0, 0.0, 1.0, 0.0], &[1.0, 2.0, 3.0, 4.0]),
            2,
            0.5,
        );
        assert_eq!(sum, [1.5, 3.0, 4.0, 5.5, 7.0, 9.0]);
    }
}
