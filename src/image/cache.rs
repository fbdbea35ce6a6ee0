//! Image features computed once: a file of them for each tower and preprocessing, found by what is in
//! a picture's file, not by its name.
//!
//! The file only grows. What a kill leaves half-written at its end is cut off when it is opened again;
//! the key in its name and in its head is a digest of all that a feature depends on, so no other
//! tower's can be taken for it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::Crc;
use memmap2::Mmap;
use sha2::{Digest as _, Sha256};

use super::preprocess::Preprocess;
use crate::bad_input;
use crate::device::DeviceChoice;
use crate::engine::vision::VisionEngine;
use crate::error::{Error, Result};
use crate::weights::vision::VisionFiles;

/// SHA-256.
pub type Digest = [u8; 32];

/// What such a file begins with.
const MAGIC: &[u8; 20] = b"crosstune features1\n";
/// Magic, width, key.
const HEAD: usize = 20 + 4 + 32;

/// The digest of some bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// The digest of all that the feature of a picture depends on: the tower's file and settings, the
/// preprocessing, and whether it is computed in f32 or, on a device, in f16.
pub fn key(tower: &VisionEngine, preprocess: &Preprocess) -> Result<Digest> {
    let json = |value: serde_json::Result<String>| {
        value.map_err(|e| Error::Run(format!("settings can't be written as JSON: {e}")))
    };
    let mut all = Sha256::new();
    all.update(MAGIC);
    all.update(&tower.files().weights.checkpoint().map()[..]);
    all.update(json(serde_json::to_string(tower.config()))?);
    all.update(json(serde_json::to_string(preprocess))?);
    all.update(match tower.device() {
        DeviceChoice::Cpu | DeviceChoice::Auto => "f32",
        DeviceChoice::Cuda(_) | DeviceChoice::Vm(_) => "f16",
    });
    Ok(all.finalize().into())
}

/// Metadata of a feature file: where its features are from.
///
/// # Errors
/// None that is known: the settings are plain numbers.
pub fn origin(
    tower: &VisionFiles,
    preprocess: &Preprocess,
    key: &Digest,
) -> Result<BTreeMap<String, String>> {
    let settings = serde_json::to_string(preprocess)
        .map_err(|e| Error::Run(format!("settings can't be written as JSON: {e}")))?;
    let entries = [
        ("vision", tower.path.display().to_string()),
        ("preprocess", settings),
        ("key", key.iter().map(|b| format!("{b:02x}")).collect()),
    ];
    Ok(entries.map(|(name, text)| (name.to_string(), text)).into())
}

/// Features of one tower, by the digests of pictures' files.
pub struct FeatureCache {
    path: PathBuf,
    file: File,
    dim: usize,
    rows: HashMap<Digest, Box<[f32]>>,
    /// Cut off when it was opened, in bytes.
    torn: u64,
}

impl FeatureCache {
    /// Opens the file of a key in `folder`, or begins it. Another process that has it open is waited
    /// for; `waiting` is called before that, with the file.
    ///
    /// # Errors
    /// A folder or file that can't be made or read; a file of that name that is something else.
    pub fn open(
        folder: &Path,
        key: &Digest,
        dim: usize,
        waiting: impl FnOnce(&Path),
    ) -> Result<FeatureCache> {
        fs::create_dir_all(folder).map_err(Error::write(folder))?;
        let name: String = key[..16].iter().map(|b| format!("{b:02x}")).collect();
        let path = folder.join(format!("features-{name}.bin"));
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(Error::write(&path))?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                waiting(&path);
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        locked.map_err(Error::write(&path))?;
        let mut head = MAGIC.to_vec();
        head.extend((dim as u32).to_le_bytes());
        head.extend(key);
        let mut cache = FeatureCache {
            path,
            file,
            dim,
            rows: HashMap::new(),
            torn: 0,
        };
        cache.read(&head)?;
        Ok(cache)
    }

    fn read(&mut self, head: &[u8]) -> Result<()> {
        let len = self.file.metadata().map_err(Error::read(&self.path))?.len();
        let mut good = 0;
        if len > 0 {
            let map = map(&self.file).map_err(Error::read(&self.path))?;
            let begins = &map[..map.len().min(HEAD)];
            if !head.starts_with(begins) {
                return Err(bad_input!(
                    "{}: is no cache of these features; remove it, or name another folder with \
                     --cache",
                    self.path.display()
                ));
            }
            if map.len() >= HEAD {
                good = HEAD;
                for record in map[HEAD..].chunks_exact(self.record_len()) {
                    let Some((digest, row)) = parse(record) else {
                        break;
                    };
                    self.rows.insert(digest, row);
                    good += record.len();
                }
            }
        }
        if good == 0 {
            let written = self
                .file
                .set_len(0)
                .and_then(|()| self.file.write_all(head));
            written.map_err(Error::write(&self.path))?;
            good = HEAD;
        }
        self.torn = len.saturating_sub(good as u64);
        self.file
            .set_len(good as u64)
            .and_then(|()| self.file.seek(SeekFrom::End(0)))
            .map_err(Error::write(&self.path))?;
        Ok(())
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Features in it.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True for a new one.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes at the end that were no whole feature when it was opened, and are gone.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// The pictures that it has features of.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.rows.keys().copied()
    }

    /// The feature (E) of the picture whose file has that digest.
    pub fn get(&self, picture: &Digest) -> Option<&[f32]> {
        self.rows.get(picture).map(|row| &row[..])
    }

    /// Adds features; what is there already stays. They are on the disk when this returns.
    ///
    /// # Errors
    /// A disk that is full or fails; what was there before is kept.
    pub fn add(&mut self, rows: &[(Digest, &[f32])]) -> Result<()> {
        let mut out = Vec::with_capacity(rows.len() * self.record_len());
        let mut new = HashMap::with_capacity(rows.len());
        for (digest, row) in rows {
            assert_eq!(row.len(), self.dim, "width of a feature");
            if self.rows.contains_key(digest) || new.contains_key(digest) {
                continue;
            }
            let start = out.len();
            out.extend(digest);
            out.extend_from_slice(bytemuck::cast_slice(row));
            let sum = checksum(&out[start..]);
            out.extend(sum);
            new.insert(*digest, (*row).into());
        }
        let end = self
            .file
            .stream_position()
            .map_err(Error::write(&self.path))?;
        let written = self
            .file
            .write_all(&out)
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What was written of it would hide what is added later. The error told is the first.
            let _ = self.file.set_len(end);
            let _ = self.file.seek(SeekFrom::Start(end));
            return Err(Error::write(&self.path)(error));
        }
        self.rows.extend(new);
        Ok(())
    }

    /// Digest, feature, checksum.
    fn record_len(&self) -> usize {
        32 + 4 * self.dim + 4
    }
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// A whole record; nothing where its checksum says otherwise.
fn parse(record: &[u8]) -> Option<(Digest, Box<[f32]>)> {
    let (content, sum) = record.split_at(record.len() - 4);
    if sum != checksum(content) {
        return None;
    }
    let (digest, row) = content.split_at(32);
    let row = row.chunks_exact(4).map(bytemuck::pod_read_unaligned);
    Some((digest.try_into().ok()?, row.collect()))
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the file is locked against other processes of this program while it is mapped, and this
    // one writes to it only after the map is gone. That no other program truncates it is asked of the
    // user in the README, as for checkpoints.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(cache: &FeatureCache) -> Vec<(Digest, Vec<f32>)> {
        let mut all: Vec<_> = cache.rows.iter().map(|(d, r)| (*d, r.to_vec())).collect();
        all.sort_by_key(|(d, _)| *d);
        all
    }

    #[test]
    fn what_was_added_is_there_and_a_torn_end_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let key = digest(b"tower");
        let mut cache = FeatureCache::open(dir.path(), &key, 3, |_| ()).unwrap();
        let (a, b) = (digest(b"a"), digest(b"b"));
        cache.add(&[(a, &[1.0, 2.0, 3.0])]).unwrap();
        cache
            .add(&[(b, &[4.0, 5.0, f32::MIN_POSITIVE]), (a, &[0.0; 3])])
            .unwrap();
        let (path, whole) = (cache.path().to_path_buf(), rows(&cache));
        drop(cache);
        let bytes = fs::read(&path).unwrap();
        let reopened = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            FeatureCache::open(dir.path(), &key, 3, |_| ()).unwrap()
        };
        assert_eq!(rows(&reopened(&bytes)), whole);
        for cut in 0..bytes.len() {
            let mut cache = reopened(&bytes[..cut]);
            let kept = cut.saturating_sub(HEAD) / (32 + 12 + 4);
            assert_eq!(cache.len(), kept, "{cut}");
            assert!(cache.get(&a).is_none_or(|row| row == [1.0, 2.0, 3.0]));
            // It goes on from there.
            cache
                .add(&[(b, &[4.0, 5.0, f32::MIN_POSITIVE]), (a, &[1.0, 2.0, 3.0])])
                .unwrap();
            drop(cache);
            let cache = FeatureCache::open(dir.path(), &key, 3, |_| ()).unwrap();
            assert_eq!((rows(&cache), cache.torn()), (whole.clone(), 0), "{cut}");
        }
        let mut damaged = bytes.clone();
        damaged[HEAD + 40] ^= 1;
        assert!(reopened(&damaged).is_empty());
        // Another key has another file; a file of another key is refused.
        assert!(
            FeatureCache::open(dir.path(), &digest(b"x"), 3, |_| ())
                .unwrap()
                .is_empty()
        );
        fs::write(&path, b"something else").unwrap();
        let text = match FeatureCache::open(dir.path(), &key, 3, |_| ()) {
            Ok(_) => panic!("opened"),
            Err(e) => e.to_string(),
        };
        assert!(text.contains("is no cache of these features"), "{text}");
    }

    #[test]
    fn a_second_process_waits() {
        let dir = tempfile::tempdir().unwrap();
        let key = digest(b"tower");
        let mut first =
            FeatureCache::open(dir.path(), &key, 1, |_| panic!("nobody has it")).unwrap();
        let (waits, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                FeatureCache::open(dir.path(), &key, 1, |path| {
                    waits.send(path.to_owned()).unwrap()
                })
                .unwrap()
                .len()
            });
            assert_eq!(told.recv().unwrap(), first.path());
            first.add(&[(digest(b"a"), &[1.0])]).unwrap();
            drop(first);
            assert_eq!(second.join().unwrap(), 1);
        });
    }

    /// A file that may not be written stands in for a full disk.
    #[test]
    fn a_write_that_fails_adds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let key = digest(b"tower");
        let mut cache = FeatureCache::open(dir.path(), &key, 2, |_| {}).unwrap();
        let (a, b) = (digest(b"a"), digest(b"b"));
        cache.add(&[(a, &[1.0, 2.0])]).unwrap();
        let readable = File::open(cache.path()).unwrap();
        let own = std::mem::replace(&mut cache.file, readable);
        let error = cache.add(&[(b, &[3.0, 4.0])]).unwrap_err().to_string();
        assert!(error.contains("cannot be written"), "{error}");
        assert!(cache.get(&b).is_none() && cache.len() == 1);
        cache.file = own;
        cache.add(&[(b, &[3.0, 4.0])]).unwrap();
        let whole = rows(&cache);
        drop(cache);
        let cache = FeatureCache::open(dir.path(), &key, 2, |_| {}).unwrap();
        assert_eq!((rows(&cache), cache.torn()), (whole, 0));
    }
}
