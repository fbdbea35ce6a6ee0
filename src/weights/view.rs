//! One tensor inside a mapped file: in place where it can be, converted where it must.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::ops::fast::widen;
use crate::tensor::Dtype;

/// Values converted or scanned by one task.
const CHUNK: usize = 1 << 16;

/// A tensor inside a mapped file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: &'a [usize],
    /// The values, little endian; not necessarily aligned.
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Number of values.
    pub fn elements(self) -> usize {
        self.shape.iter().product()
    }

    /// The values in place, if they are aligned F32.
    pub fn as_f32(self) -> Option<&'a [f32]> {
        match self.dtype {
            Dtype::F32 => bytemuck::try_cast_slice(self.bytes).ok(),
            _ => None,
        }
    }

    /// A copy of the values as f32.
    ///
    /// F64 is rounded; integers, which no weight has, are converted by value.
    pub fn to_f32(self) -> Vec<f32> {
        let bytes = self.bytes;
        match self.dtype {
            Dtype::F32 => convert(bytes, |src: &[f32], out| out.copy_from_slice(src)),
            Dtype::F16 => convert(bytes, |src: &[f16], out| widen(out, src)),
            Dtype::Bf16 => convert(bytes, |src: &[bf16], out| src.convert_to_f32_slice(out)),
            Dtype::F64 => convert(bytes, |src: &[f64], out| each(src, out, |v| v as f32)),
            Dtype::I64 => convert(bytes, |src: &[i64], out| each(src, out, |v| v as f32)),
            Dtype::I32 => convert(bytes, |src: &[i32], out| each(src, out, |v| v as f32)),
            Dtype::U8 => convert(bytes, |src: &[u8], out| each(src, out, f32::from)),
        }
    }

    /// Index of the first NaN or infinity, counted in values from the tensor's start.
    pub fn first_non_finite(self) -> Option<usize> {
        match self.dtype {
            Dtype::F32 => find(self.bytes, |v: u32| v & 0x7f80_0000 == 0x7f80_0000),
            Dtype::F16 => find(self.bytes, |v: u16| v & 0x7c00 == 0x7c00),
            Dtype::Bf16 => find(self.bytes, |v: u16| v & 0x7f80 == 0x7f80),
            Dtype::F64 => find(self.bytes, |v: f64| !v.is_finite()),
            Dtype::I64 | Dtype::I32 | Dtype::U8 => None,
        }
    }
}

fn convert<T: Pod + Sync>(bytes: &[u8], f: impl Fn(&[T], &mut [f32]) + Sync) -> Vec<f32> {
    let size = size_of::<T>();
    let mut out = vec![0f32; bytes.len() / size];
    out.par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * size))
        .for_each(|(out, src)| match bytemuck::try_cast_slice(src) {
            Ok(src) => f(src, out),
            Err(_) => f(
                &src.chunks_exact(size)
                    .map(bytemuck::pod_read_unaligned)
                    .collect::<Vec<T>>(),
                out,
            ),
        });
    out
}

fn each<T: Copy>(src: &[T], out: &mut [f32], f: impl Fn(T) -> f32) {
    for (out, &v) in out.iter_mut().zip(src) {
        *out = f(v);
    }
}

fn find<T: Pod + Sync>(bytes: &[u8], bad: impl Fn(T) -> bool + Sync) -> Option<usize> {
    let size = size_of::<T>();
    let in_chunk = |(i, src): (usize, &[u8])| {
        let values = src
            .chunks_exact(size)
            .map(bytemuck::pod_read_unaligned::<T>);
        // The branch-free pass runs at memory speed; the exact index is rarely asked for.
        let any = values.clone().fold(false, |any, v| any | bad(v));
        if !any {
            return None;
        }
        values
            .enumerate()
            .find(|&(_, v)| bad(v))
            .map(|(at, _)| i * CHUNK + at)
    };
    bytes
        .par_chunks(CHUNK * size)
        .enumerate()
        .find_map_first(in_chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_and_scans_across_chunks_and_off_alignment() {
        let n = 2 * CHUNK + 7;
        let mut values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let mut bytes = vec![0u8];
        bytes.extend_from_slice(bytemuck::cast_slice(&values));
        let view = TensorView {
            dtype: Dtype::F32,
            shape: &[n],
            bytes: &bytes[1..],
        };
        assert!(view.as_f32().is_none() || !(bytes.as_ptr() as usize + 1).is_multiple_of(4));
        assert_eq!(view.to_f32(), values);
        assert_eq!(view.first_non_finite(), None);
        values[CHUNK + 3] = f32::NAN;
        values[n - 1] = f32::INFINITY;
        let view = TensorView {
            dtype: Dtype::F32,
            shape: &[n],
            bytes: bytemuck::cast_slice(&values),
        };
        assert_eq!(view.first_non_finite(), Some(CHUNK + 3));
    }
}
