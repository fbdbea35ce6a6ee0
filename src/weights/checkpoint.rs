//! Memory-mapped named tensors: the one way in which weights reach the rest of the program.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use crate::bad_input;
use crate::error::{Error, Result};
use crate::tensor::Dtype;
pub use crate::weights::view::TensorView;
use crate::weights::{pickle, safetensors};

#[cfg(target_endian = "big")]
compile_error!("checkpoints are little endian and are read in place: big-endian hosts need work");

/// Files that a checkpoint folder may hold, best first.
const FOLDER_FILES: [&str; 4] = [
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
];

/// Pages are released in multiples of this: the largest page size in common use.
const RELEASE_UNIT: usize = 64 * 1024;

/// A file of named tensors, mapped read-only into memory.
///
/// Opening reads the file's table of contents and none of its tensor data.
pub struct Checkpoint {
    path: PathBuf,
    map: Arc<Mmap>,
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

/// One tensor of a file: what a format's reader hands to [`Checkpoint`].
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: Vec<usize>,
    /// Bytes of the file that hold the values; checked by the reader against shape and file.
    pub range: Range<usize>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, a PyTorch zip file (`.bin`, `.pt`, `.ckpt`), or a folder that
    /// holds one under its usual name. The content decides the format, not the file's ending.
    ///
    /// # Errors
    /// [`Error::Read`] when there is no such file; [`Error::Input`] when it is damaged, of another
    /// format, or holds what is not understood.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let path = if path.is_dir() {
            file_in_folder(path)?
        } else {
            path.to_path_buf()
        };
        let map = map_file(&path)?;
        let (entries, metadata) = match sniff(&path, &map)? {
            Format::Safetensors => safetensors::read(&path, &map)?,
            Format::PytorchZip => {
                // Each storage has a little header in front of it: no read-ahead of its data.
                let _ = map.advise(memmap2::Advice::Random);
                let read = pickle::read(&path, &map)?;
                let _ = map.advise(memmap2::Advice::Normal);
                read
            }
        };
        let mut index = HashMap::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            if index.insert(entry.name.clone(), i).is_some() {
                return Err(bad_input!(
                    "{}: tensor {} stands in it twice, expected each name once",
                    path.display(),
                    entry.name
                ));
            }
        }
        Ok(Checkpoint {
            path,
            map: Arc::new(map),
            entries,
            index,
            metadata,
        })
    }

    /// The names in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|e| e.name.as_str())
    }

    /// Names and tensors in file order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.entries.iter().map(|e| (e.name.as_str(), self.view(e)))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True for a file without tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The tensor of that name, if the file has it.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.index.get(name).map(|&i| self.view(&self.entries[i]))
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Input`] that names the file and the nearest name it has.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.get(name).ok_or_else(|| {
            let hint = match nearest(name, self.names()) {
                Some(near) => format!("the nearest name in it is {near}"),
                None => format!("none of its {} names is like it", self.entries.len()),
            };
            bad_input!("{}: has no tensor {name}; {hint}", self.path.display())
        })
    }

    /// The `__metadata__` of a safetensors file, or what crosstune wrote beside a PyTorch file's tensors;
    /// empty where there is none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The mapped file (inside the folder, where a folder was opened).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// The map itself, for those who keep tensors alive longer than the checkpoint.
    pub fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// Where in the file (and in [`Checkpoint::map`]) a tensor's values lie.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        self.index.get(name).map(|&i| self.entries[i].range.clone())
    }

    /// Gives the physical pages that lie wholly inside a tensor back to the system, after a private
    /// copy of it was made. The tensor stays readable: a later access reads the file again.
    ///
    /// A hint: an unknown name or a refusal by the system changes nothing.
    #[allow(unsafe_code)]
    pub fn page_advise_release(&self, name: &str) {
        let Some(range) = self.range(name) else {
            return;
        };
        let base = self.map.as_ptr() as usize;
        let start = (base + range.start).next_multiple_of(RELEASE_UNIT);
        let end = (base + range.end) / RELEASE_UNIT * RELEASE_UNIT;
        if start >= end {
            return;
        }
        // SAFETY: the map is a shared, read-only map of a file (`map_file`), so a dropped page is
        // read from the file again at its next access and no slice changes its content.
        // start..end lies inside the tensor's range, which the reader checked to lie in the map.
        let _ = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start - base, end - start)
        };
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        let bytes = &self.map[entry.range.clone()];
        TensorView {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes,
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Checkpoint({}, {} tensors)",
            self.path.display(),
            self.entries.len()
        )
    }
}

/// `(64, 128)`: how every message writes a shape.
pub fn shape_text(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("({})", dims.join(", "))
}

/// The name most like `wanted`, unless more than half of it would have to change.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, name) = names
        .map(|name| (edit_distance(wanted, name), name))
        .min_by_key(|&(d, _)| d)?;
    (2 * distance <= wanted.len().max(name.len())).then_some(name)
}

enum Format {
    Safetensors,
    PytorchZip,
}

fn file_in_folder(folder: &Path) -> Result<PathBuf> {
    if let Some(path) = FOLDER_FILES
        .iter()
        .map(|f| folder.join(f))
        .find(|p| p.is_file())
    {
        return Ok(path);
    }
    let shards = [
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ];
    if let Some(index) = shards.iter().find(|f| folder.join(f).is_file()) {
        return Err(bad_input!(
            "{}: its weights are split over several files ({index}); save them as one \
             model.safetensors, in Python: model.save_pretrained(folder, max_shard_size=\"100GB\")",
            folder.display()
        ));
    }
    Err(bad_input!(
        "{}: holds no checkpoint; expected one of {}",
        folder.display(),
        FOLDER_FILES.join(", ")
    ))
}

/// Maps a whole file, which must not be empty.
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::read(path))?;
    if file.metadata().map_err(Error::read(path))?.len() == 0 {
        return Err(bad_input!(
            "{}: is empty; copy or download it again",
            path.display()
        ));
    }
    // SAFETY: the map is read-only and this program never writes to a file in place (write.rs
    // replaces files by rename, which leaves the mapped one as it was). That no other program
    // truncates or rewrites a checkpoint while it is in use is asked of the user in the README.
    unsafe { Mmap::map(&file) }.map_err(Error::read(path))
}

fn sniff(path: &Path, bytes: &[u8]) -> Result<Format> {
    let file = path.display();
    if bytes.starts_with(b"PK\x03\x04") {
        return Ok(Format::PytorchZip);
    }
    if bytes.get(8) == Some(&b'{') {
        return Ok(Format::Safetensors);
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(bad_input!(
            "{file}: is a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
        ));
    }
    if bytes.starts_with(b"\x89HDF") {
        return Err(bad_input!(
            "{file}: is an HDF5 file (TensorFlow weights); expected safetensors or PyTorch weights"
        ));
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return Ok(Format::Safetensors);
    }
    if bytes.starts_with(b"\x80") || bytes.get(257..262) == Some(b"ustar") {
        return Err(bad_input!(
            "{file}: is in PyTorch's format from before version 1.6; convert it: {}",
            pickle::convert_command(path)
        ));
    }
    Err(bad_input!(
        "{file}: is neither a safetensors file nor a PyTorch zip file; if it was downloaded, the \
         download may have failed"
    ))
}

fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write::{OutTensor, write_safetensors};
    use half::{bf16, f16};
    use std::borrow::Cow;
    use std::fs;

    fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
        let out: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| OutTensor {
                name,
                dtype: *dtype,
                shape: shape.to_vec(),
                bytes: Cow::Borrowed(bytes),
            })
            .collect();
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write_safetensors(path, &out, &metadata).unwrap();
    }

    fn message(path: &Path) -> String {
        Checkpoint::open(path).unwrap_err().to_string()
    }

    #[test]
    fn reads_every_float_type_and_finds_what_is_not_finite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let f32s = [1.5f32, -2.0, f32::NEG_INFINITY];
        let halves = [1.5f32, -2.0, f32::NAN].map(f16::from_f32);
        let brains = [1.5f32, -2.0, 3.0].map(bf16::from_f32);
        write(
            &path,
            &[
                (
                    "h",
                    Dtype::F16,
                    &[3],
                    bytemuck::cast_slice(&halves).to_vec(),
                ),
                (
                    "f",
                    Dtype::F32,
                    &[3, 1],
                    bytemuck::cast_slice(&f32s).to_vec(),
                ),
                (
                    "b",
                    Dtype::Bf16,
                    &[3],
                    bytemuck::cast_slice(&brains).to_vec(),
                ),
                (
                    "d",
                    Dtype::F64,
                    &[2],
                    bytemuck::cast_slice(&[0.5f64, f64::NAN]).to_vec(),
                ),
                (
                    "i",
                    Dtype::I64,
                    &[1, 2],
                    bytemuck::cast_slice(&[7i64, -1]).to_vec(),
                ),
            ],
        );
        let ckpt = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(ckpt.path(), path);
        assert_eq!(ckpt.metadata()["format"], "pt");
        assert_eq!(ckpt.file_bytes(), fs::metadata(&path).unwrap().len());
        assert_eq!(ckpt.names().collect::<Vec<_>>(), ["d", "i", "f", "h", "b"]);
        let f = ckpt.tensor("f").unwrap();
        assert_eq!((f.shape, f.elements()), (&[3usize, 1][..], 3));
        assert_eq!(f.as_f32().unwrap(), f32s);
        assert_eq!(f.first_non_finite(), Some(2));
        assert_eq!(ckpt.get("h").unwrap().first_non_finite(), Some(2));
        assert_eq!(ckpt.get("h").unwrap().to_f32()[..2], [1.5, -2.0]);
        assert_eq!(ckpt.get("b").unwrap().to_f32(), [1.5, -2.0, 3.0]);
        assert_eq!(ckpt.get("b").unwrap().first_non_finite(), None);
        assert_eq!(ckpt.get("d").unwrap().first_non_finite(), Some(1));
        assert_eq!(ckpt.get("i").unwrap().to_f32(), [7.0, -1.0]);
        assert!(ckpt.get("i").unwrap().as_f32().is_none());
    }

    #[test]
    fn released_pages_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let values: Vec<f32> = (0..200_000).map(|i| i as f32).collect();
        write(
            &path,
            &[(
                "w",
                Dtype::F32,
                &[200_000],
                bytemuck::cast_slice(&values).to_vec(),
            )],
        );
        let ckpt = Checkpoint::open(&path).unwrap();
        let copy = ckpt.tensor("w").unwrap().to_f32();
        ckpt.page_advise_release("w");
        ckpt.page_advise_release("nothing");
        assert_eq!(ckpt.tensor("w").unwrap().as_f32().unwrap(), copy);
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_nearest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        write(&path, &[("encoder.bias", Dtype::U8, &[0], vec![])]);
        let ckpt = Checkpoint::open(&path).unwrap();
        let text = ckpt.tensor("encoder.bais").unwrap_err().to_string();
        assert!(
            text.ends_with("has no tensor encoder.bais; the nearest name in it is encoder.bias")
        );
        let text = ckpt.tensor("x").unwrap_err().to_string();
        assert!(text.ends_with("none of its 1 names is like it"), "{text}");
    }

    #[test]
    fn what_is_not_a_checkpoint_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(message(dir.path()).contains("holds no checkpoint; expected one of model.safe"));
        assert!(matches!(
            Checkpoint::open(&dir.path().join("no")),
            Err(Error::Read { .. })
        ));
        let cases: [(&[u8], &str); 5] = [
            (b"", "is empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "git lfs pull",
            ),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (
                b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
                "from before version 1.6; convert it",
            ),
            (b"<!DOCTYPE html>", "neither a safetensors file nor"),
        ];
        for (bytes, expected) in cases {
            let path = dir.path().join("pytorch_model.bin");
            fs::write(&path, bytes).unwrap();
            let text = message(&path);
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("pytorch_model.bin: is "), "{text}");
        }
        fs::remove_file(dir.path().join("pytorch_model.bin")).unwrap();
        fs::write(dir.path().join("model.safetensors.index.json"), "{}").unwrap();
        assert!(message(dir.path()).contains("split over several files"));
    }
}
