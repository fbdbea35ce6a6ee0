//! What several test files share: the one comparer, and where the shared data lies.

#![allow(dead_code)] // each test file uses its own part

pub mod adapters;
#[cfg(feature = "cuda")]
pub mod counting;
pub mod golden;
#[cfg(feature = "cuda")]
pub mod kernel_model;
pub mod sweep;
pub mod tiny;
pub mod towers;
pub mod world;

use std::path::PathBuf;

/// The folder of golden files: `CROSSTUNE_GOLDENS`, or `../shared/goldens/open`.
pub fn goldens() -> Option<PathBuf> {
    let folder = match std::env::var_os("CROSSTUNE_GOLDENS") {
        Some(dir) => PathBuf::from(dir),
        None => shared()?.join("goldens/open"),
    };
    if folder.join("manifest.json").is_file() {
        return Some(folder);
    }
    println!("SKIPPED: {} has no manifest.json", folder.display());
    None
}

/// The folder of data that is not part of the project: `CROSSTUNE_SHARED`, or `../shared`.
pub fn shared() -> Option<PathBuf> {
    let folder = match std::env::var_os("CROSSTUNE_SHARED") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    if folder.is_dir() {
        return Some(folder);
    }
    println!(
        "SKIPPED: {} is absent (set CROSSTUNE_SHARED)",
        folder.display()
    );
    None
}

/// Largest difference of two slices; NaN anywhere is infinite, a wrong length fails.
pub fn max_diff(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    got.iter().zip(want).fold(0f32, |m, (g, w)| {
        let d = (g - w).abs();
        if d.is_nan() { f32::INFINITY } else { m.max(d) }
    })
}

/// Fails with the place of the worst difference.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], atol: f32, rtol: f32) -> f32 {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let mut worst = (0, 0f32);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let ratio = (g - w).abs() / (atol + rtol * w.abs());
        let ratio = if ratio.is_nan() { f32::INFINITY } else { ratio };
        if ratio > worst.1 {
            worst = (i, ratio);
        }
    }
    let (i, ratio) = worst;
    if ratio > 1.0 {
        panic!(
            "{what}: at {i} got {}, want {}: {ratio:.3} times the limit",
            got[i], want[i]
        );
    }
    ratio
}

/// The GPU of `CROSSTUNE_TEST_DEVICE=cuda:N`, or a virtual machine whose values lie like that.
#[cfg(feature = "cuda")]
pub fn device(arena: crosstune::device::VmArena) -> crosstune::cuda::device::Device {
    use crosstune::cuda::device::Device;
    match std::env::var("CROSSTUNE_TEST_DEVICE") {
        Ok(name) => {
            let index = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
            let index = index.unwrap_or_else(|| panic!("CROSSTUNE_TEST_DEVICE={name}: not cuda:N"));
            Device::gpu(index).expect("a GPU")
        }
        Err(_) => Device::vm(arena),
    }
}
