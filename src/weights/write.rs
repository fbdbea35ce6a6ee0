//! Writing without half-written files: temporary file, fsync, rename.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::bad_input;
use crate::error::{Error, Result};
use crate::tensor::Dtype;
use crate::weights::checkpoint::shape_text;
use crate::weights::safetensors::byte_size;

/// A tensor to be written, with its values.
#[derive(Clone, Debug)]
pub struct OutTensor<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// Element type of `bytes`.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: Vec<usize>,
    /// The values, little endian.
    pub bytes: Cow<'a, [u8]>,
}

/// A tensor to be written whose values are produced later.
#[derive(Clone, Debug)]
pub struct OutSpec<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: &'a [usize],
}

impl<'a> OutSpec<'a> {
    /// What a tensor says of itself.
    pub(super) fn of(tensor: &'a OutTensor<'_>) -> OutSpec<'a> {
        OutSpec {
            name: tensor.name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
        }
    }
}

/// Writes a safetensors file; the same input gives the same bytes.
///
/// Tensors keep their order, but wider element types come first, so that all values are aligned.
///
/// # Errors
/// [`Error::Write`], after which a file that was there before is still there, unchanged;
/// [`Error::Input`] for a repeated name or values that do not fill their shape.
pub fn write_safetensors(
    path: &Path,
    tensors: &[OutTensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let specs: Vec<_> = tensors.iter().map(OutSpec::of).collect();
    write_safetensors_streamed(path, &specs, metadata, |i| {
        Ok(Cow::Borrowed(&*tensors[i].bytes))
    })
}

/// [`write_safetensors`] that asks for one tensor's values at a time: `bytes_of(i)` gives the values
/// of `specs[i]` and is called once for each, in the order of the file.
///
/// # Errors
/// As [`write_safetensors`], and whatever `bytes_of` fails with.
pub fn write_safetensors_streamed<'a>(
    path: &Path,
    specs: &[OutSpec<'_>],
    metadata: &BTreeMap<String, String>,
    mut bytes_of: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(specs[i].dtype.size()));
    let header = header(path, specs, &order, metadata)?;
    // What `bytes_of` fails with is not an I/O error; it is carried past the writer's signature.
    let mut failed = None;
    let written = write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for &i in &order {
            match bytes_of(i).and_then(|b| check_values(path, &specs[i], &b).map(|()| b)) {
                Ok(bytes) => out.write_all(&bytes)?,
                Err(e) => {
                    failed = Some(e);
                    return Err(io::Error::other("no values"));
                }
            }
        }
        Ok(())
    });
    failed.map_or(written, Err)
}

/// Replaces `path` by what `body` writes, or leaves it as it was: a temporary file in the same
/// folder is written, synced to disk and renamed, and the folder is synced.
///
/// # Errors
/// [`Error::Write`]; the temporary file is removed.
pub fn write_atomic(
    path: &Path,
    body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    replace(path, body).map_err(Error::write(path))
}

/// Makes the folder `path` with what `body` puts into it, or nothing: a temporary folder beside it is
/// filled, synced to disk and renamed.
///
/// # Errors
/// [`Error::Input`] if `path` exists, [`Error::Write`], and whatever `body` fails with; the temporary
/// folder is removed.
pub fn write_folder(path: &Path, body: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Err(bad_input!("{}: already exists", path.display()));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".crosstune-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o777));
    }
    let parent = parent(path);
    let temp = builder.tempdir_in(parent).map_err(Error::write(path))?;
    body(temp.path())?;
    let place = || -> io::Result<()> {
        for entry in std::fs::read_dir(temp.path())? {
            File::open(entry?.path())?.sync_all()?;
        }
        sync_folder(temp.path())?;
        std::fs::rename(temp.path(), path)?;
        sync_folder(parent)
    };
    place().map_err(Error::write(path))?;
    // It has another name now: nothing is left to remove.
    let _ = temp.keep();
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn replace(path: &Path, body: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let folder = parent(path);
    if path.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a folder"));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".crosstune-").suffix(".tmp");
    #[cfg(unix)]
    {
        // Temporary files are private by default; this one becomes the user's file.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut temp = builder.tempfile_in(folder)?;
    let mut out = BufWriter::with_capacity(1 << 20, temp.as_file_mut());
    body(&mut out)?;
    out.flush()?;
    drop(out);
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|e| e.error)?;
    sync_folder(folder)
}

/// Makes the rename itself durable, where the file system has a way to.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn header(
    path: &Path,
    specs: &[OutSpec<'_>],
    order: &[usize],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut fields = Map::new();
    if !metadata.is_empty() {
        fields.insert("__metadata__".into(), json!(metadata));
    }
    let (mut names, mut start) = (HashSet::from(["__metadata__"]), 0usize);
    for &i in order {
        let OutSpec { name, dtype, shape } = &specs[i];
        let end = start.saturating_add(unique_size(path, &specs[i], &mut names)?);
        let field = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [start, end] });
        fields.insert((*name).into(), field);
        start = end;
    }
    let mut header = Value::Object(fields).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// The size of a tensor's values, of which there is no other by its name in `names`.
pub(super) fn unique_size<'a>(
    path: &Path,
    spec: &OutSpec<'a>,
    names: &mut HashSet<&'a str>,
) -> Result<usize> {
    let (file, name) = (path.display(), spec.name);
    if !names.insert(name) {
        return Err(bad_input!(
            "{file}: would hold two tensors called {name}; names must differ"
        ));
    }
    byte_size(spec.dtype, spec.shape).ok_or_else(|| {
        let shape = shape_text(spec.shape);
        bad_input!("{file}: tensor {name} of shape {shape} is too large")
    })
}

/// Fails unless the values fill the shape.
pub(super) fn check_values(path: &Path, spec: &OutSpec<'_>, bytes: &[u8]) -> Result<()> {
    match byte_size(spec.dtype, spec.shape) {
        Some(size) if size == bytes.len() => Ok(()),
        size => Err(bad_input!(
            "{}: tensor {} is {} {}, expected {} bytes, got {}",
            path.display(),
            spec.name,
            shape_text(spec.shape),
            spec.dtype,
            size.unwrap_or(usize::MAX),
            bytes.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::checkpoint::Checkpoint;
    use std::fs;

    fn tensor<'a>(name: &'a str, shape: &[usize], bytes: &'a [u8]) -> OutTensor<'a> {
        OutTensor {
            name,
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: bytes.into(),
        }
    }

    fn only_file(folder: &Path) -> bool {
        fs::read_dir(folder).unwrap().count() == 1
    }

    #[test]
    fn the_same_input_gives_the_same_aligned_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (
            dir.path().join("a.safetensors"),
            dir.path().join("b.safetensors"),
        );
        let metadata = BTreeMap::from([("z".into(), "1".into()), ("a".into(), "\"ü\"".into())]);
        let byte = OutTensor {
            name: "u",
            dtype: Dtype::U8,
            shape: vec![3],
            bytes: (&[1, 2, 3]).into(),
        };
        let tensors = [
            byte,
            tensor("w", &[1, 2], &[7; 8]),
            tensor("empty", &[0, 5], &[]),
        ];
        write_safetensors(&a, &tensors, &metadata).unwrap();
        write_safetensors(&b, &tensors, &metadata).unwrap();
        let bytes = fs::read(&a).unwrap();
        assert_eq!(bytes, fs::read(&b).unwrap());
        assert_eq!(u64::from_le_bytes(*bytes.first_chunk().unwrap()) % 8, 0);
        let ckpt = Checkpoint::open(&a).unwrap();
        assert_eq!(ckpt.metadata(), &metadata);
        assert_eq!(ckpt.names().collect::<Vec<_>>(), ["w", "empty", "u"]);
        assert!(ckpt.get("w").unwrap().as_f32().is_some());
        assert_eq!(ckpt.get("u").unwrap().bytes, [1, 2, 3]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write_atomic(&path, |out| {
            out.write_all(b"new")?;
            Err(io::Error::other("disk on fire"))
        });
        assert!(matches!(failed, Err(Error::Write { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let short = write_safetensors(&path, &[tensor("w", &[3], &[0; 8])], &BTreeMap::new());
        let text = short.unwrap_err().to_string();
        assert!(
            text.ends_with("tensor w is (3) F32, expected 12 bytes, got 8"),
            "{text}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert!(only_file(dir.path()));
    }

    #[test]
    fn bad_targets_and_names_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such/file");
        let text = write_atomic(&missing, |_| Ok(())).unwrap_err().to_string();
        assert!(text.contains("no/such/file: cannot be written"), "{text}");
        assert!(matches!(
            write_atomic(dir.path(), |_| Ok(())),
            Err(Error::Write { .. })
        ));
        let twice = [tensor("w", &[1], &[0; 4]), tensor("w", &[1], &[0; 4])];
        let path = dir.path().join("w");
        let text = write_safetensors(&path, &twice, &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(text.contains("two tensors called w"), "{text}");
        assert!(!path.exists());
    }

    #[cfg(unix)]
    #[test]
    fn the_written_file_has_ordinary_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        fs::write(&plain, "x").unwrap();
        let path = dir.path().join("atomic");
        write_atomic(&path, |out| out.write_all(b"x")).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
}
