//! The part of the zip format that PyTorch writes: stored (uncompressed) entries, zip64 included.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::bad_input;
use crate::error::Result;

pub(super) const END_OF_DIRECTORY: u32 = 0x0605_4b50;
const ZIP64_LOCATOR: u32 = 0x0706_4b50;
const ZIP64_END: u32 = 0x0606_4b50;
pub(super) const DIRECTORY_ENTRY: u32 = 0x0201_4b50;
pub(super) const LOCAL_HEADER: u32 = 0x0403_4b50;
/// In a 32-bit field: look into the zip64 extra field.
const IN_ZIP64: u64 = 0xffff_ffff;
const ZIP64_EXTRA: u16 = 1;
const ENCRYPTED: u16 = 1;
/// The end record without its comment.
const END_BYTES: usize = 22;

/// Where the entries of a zip file lie, by name.
///
/// An entry that cannot be read (a compressed one) is an error only to those who ask for it.
pub struct Archive {
    entries: Entries,
}

impl Archive {
    /// Reads the central directory and each entry's local header; no entry's data is touched.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] for a file whose directory is missing or damaged.
    pub fn read(path: &Path, bytes: &[u8]) -> Result<Archive> {
        let file = path.display();
        let Some(end) = find_end(bytes) else {
            return Err(bad_input!(
                "{file}: is a truncated zip file: its directory, which stands at the end, is \
                 missing; copy or download it again"
            ));
        };
        read_directory(bytes, end)
            .map(|entries| Archive { entries })
            .map_err(|why| bad_input!("{file}: is a zip file that cannot be read: {why}"))
    }

    /// The bytes of the file that are this entry's data; `None` when there is no such entry.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the file, for an entry that is compressed,
    /// encrypted, or not where the directory says.
    pub fn get(&self, name: &str) -> std::result::Result<Option<Range<usize>>, String> {
        match self.entries.get(name) {
            None => Ok(None),
            Some(Ok(range)) => Ok(Some(range.clone())),
            Some(Err(why)) => Err(format!("its entry {name} {why}")),
        }
    }

    /// Whether there is an entry of that name, readable or not.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names of all entries, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

/// The end record, searched from behind because a comment of any content may follow it.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let last = bytes.len().checked_sub(END_BYTES)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    (first..=last).rev().find(|&at| {
        u32_at(bytes, at) == Some(END_OF_DIRECTORY)
            && u16_at(bytes, at + 20).map(usize::from) == Some(bytes.len() - at - END_BYTES)
    })
}

/// Where each entry's data lies, or why it cannot be read.
type Entries = HashMap<String, std::result::Result<Range<usize>, String>>;

fn read_directory(bytes: &[u8], end: usize) -> std::result::Result<Entries, String> {
    const CUT: &str = "its directory is damaged";
    let (count, mut at) = directory_place(bytes, end).ok_or(CUT)?;
    let mut entries = HashMap::new();
    for _ in 0..count {
        if u32_at(bytes, at) != Some(DIRECTORY_ENTRY) {
            return Err(CUT.into());
        }
        let lengths = [28, 30, 32].map(|field| u16_at(bytes, at + field).map(usize::from));
        let [Some(name_len), Some(extra_len), Some(comment_len)] = lengths else {
            return Err(CUT.into());
        };
        let name_at = at + 46;
        let name = bytes.get(name_at..name_at + name_len).ok_or(CUT)?;
        let name = String::from_utf8_lossy(name).into_owned();
        let extra_at = name_at + name_len;
        let extra = bytes.get(extra_at..extra_at + extra_len).ok_or(CUT)?;
        if entries
            .insert(name.clone(), entry_data(bytes, at, extra))
            .is_some()
        {
            return Err(format!("its entry {name} stands in it twice"));
        }
        at = extra_at + extra_len + comment_len;
    }
    Ok(entries)
}

/// Number of entries and start of the central directory.
fn directory_place(bytes: &[u8], end: usize) -> Option<(u64, usize)> {
    let locator = end
        .checked_sub(20)
        .filter(|&at| u32_at(bytes, at) == Some(ZIP64_LOCATOR));
    let (count, start) = match locator {
        Some(locator) => {
            let at = usize::try_from(u64_at(bytes, locator + 8)?).ok()?;
            if u32_at(bytes, at)? != ZIP64_END {
                return None;
            }
            (
                u64_at(bytes, at.checked_add(32)?)?,
                u64_at(bytes, at.checked_add(48)?)?,
            )
        }
        None => (
            u64::from(u16_at(bytes, end + 10)?),
            u64::from(u32_at(bytes, end + 16)?),
        ),
    };
    Some((count, usize::try_from(start).ok()?))
}

/// Where the data of the directory entry at `at` lies; the error is the rest of a sentence.
fn entry_data(bytes: &[u8], at: usize, extra: &[u8]) -> std::result::Result<Range<usize>, String> {
    let cut = || "has a damaged directory entry".to_string();
    let flags = u16_at(bytes, at + 8).ok_or_else(cut)?;
    let method = u16_at(bytes, at + 10).ok_or_else(cut)?;
    if flags & ENCRYPTED != 0 {
        return Err("is encrypted".into());
    }
    if method != 0 {
        return Err(format!(
            "is compressed (method {method}), expected stored as PyTorch writes it; load and save \
             the file again with torch.load and torch.save"
        ));
    }
    let [packed, size, header] = sizes_and_offset(bytes, at, extra).ok_or_else(cut)?;
    if packed != size {
        return Err(format!("has {packed} stored bytes but a size of {size}"));
    }
    let header = usize::try_from(header).map_err(|_| cut())?;
    if u32_at(bytes, header) != Some(LOCAL_HEADER) {
        return Err(format!(
            "has no header at byte {header}; the file is damaged"
        ));
    }
    let name_len = usize::from(u16_at(bytes, header + 26).ok_or_else(cut)?);
    let extra_len = usize::from(u16_at(bytes, header + 28).ok_or_else(cut)?);
    let start = header + 30 + name_len + extra_len;
    match usize::try_from(size)
        .ok()
        .and_then(|size| start.checked_add(size))
    {
        Some(end) if end <= bytes.len() => Ok(start..end),
        _ => Err(format!(
            "has {size} bytes from byte {start} on, the file ends before that"
        )),
    }
}

/// Stored size, size and place of the local header, with what zip64 moved to the extra field.
fn sizes_and_offset(bytes: &[u8], at: usize, mut extra: &[u8]) -> Option<[u64; 3]> {
    let field = |offset| u32_at(bytes, at + offset).map(u64::from);
    let (mut packed, mut size, mut header) = (field(20)?, field(24)?, field(42)?);
    if ![packed, size, header].contains(&IN_ZIP64) {
        return Some([packed, size, header]);
    }
    loop {
        let (id, len) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let body = extra.get(4..4 + len)?;
        if id == ZIP64_EXTRA {
            let mut wide = body.chunks_exact(8).filter_map(|b| u64_at(b, 0));
            // The order is the format's: only fields that are full in the entry are here.
            for value in [&mut size, &mut packed, &mut header] {
                if *value == IN_ZIP64 {
                    *value = wide.next()?;
                }
            }
            return Some([packed, size, header]);
        }
        extra = &extra[4 + len..];
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A zip file of stored entries; with `zip64`, every size and offset is in an extra field.
    pub(crate) fn archive(entries: &[(&str, &[u8])], zip64: bool) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for (name, data) in entries {
            let header = out.len() as u64;
            let size = data.len() as u64;
            out.extend(LOCAL_HEADER.to_le_bytes());
            out.extend([0; 22]);
            out.extend((name.len() as u16).to_le_bytes());
            out.extend(3u16.to_le_bytes());
            out.extend(name.as_bytes());
            out.extend([0; 3]);
            out.extend(*data);

            directory.extend(DIRECTORY_ENTRY.to_le_bytes());
            directory.extend([0; 16]);
            let short = |v: u64| if zip64 { u32::MAX } else { v as u32 };
            directory.extend(short(size).to_le_bytes());
            directory.extend(short(size).to_le_bytes());
            directory.extend((name.len() as u16).to_le_bytes());
            directory.extend((if zip64 { 34u16 } else { 0 }).to_le_bytes());
            directory.extend([0; 10]);
            directory.extend(short(header).to_le_bytes());
            directory.extend(name.as_bytes());
            if zip64 {
                directory.extend([9, 9, 2, 0, 0, 0]);
                directory.extend([1, 0, 24, 0]);
                for value in [size, size, header] {
                    directory.extend(value.to_le_bytes());
                }
            }
        }
        let start = out.len() as u64;
        let n = entries.len() as u64;
        out.extend(&directory);
        if zip64 {
            let at = out.len() as u64;
            out.extend(ZIP64_END.to_le_bytes());
            out.extend([0; 28]);
            for value in [n, directory.len() as u64, start] {
                out.extend(value.to_le_bytes());
            }
            out.extend(ZIP64_LOCATOR.to_le_bytes());
            out.extend([0; 4]);
            out.extend(at.to_le_bytes());
            out.extend([1, 0, 0, 0]);
        }
        out.extend(END_OF_DIRECTORY.to_le_bytes());
        out.extend([0; 4]);
        let short = if zip64 { u16::MAX } else { n as u16 };
        out.extend(short.to_le_bytes());
        out.extend(short.to_le_bytes());
        out.extend((directory.len() as u32).to_le_bytes());
        out.extend((if zip64 { u32::MAX } else { start as u32 }).to_le_bytes());
        out.extend([0; 2]);
        out
    }

    fn message(bytes: &[u8]) -> String {
        match Archive::read(Path::new("a.bin"), bytes) {
            Ok(zip) => zip.get("one").unwrap_err(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn finds_entries_with_and_without_zip64() {
        for zip64 in [false, true] {
            let bytes = archive(&[("a/one", b"hello"), ("a/two", b""), ("b", b"xy")], zip64);
            let zip = Archive::read(Path::new("a.bin"), &bytes).unwrap();
            assert_eq!(zip.names().count(), 3);
            assert_eq!(&bytes[zip.get("a/one").unwrap().unwrap()], b"hello");
            assert_eq!(&bytes[zip.get("a/two").unwrap().unwrap()], b"");
            assert_eq!(&bytes[zip.get("b").unwrap().unwrap()], b"xy");
            assert_eq!(zip.get("c"), Ok(None));
        }
    }

    #[test]
    fn damage_and_compression_are_named() {
        let good = archive(&[("one", b"hello")], false);
        let directory = good.len() - END_BYTES - 46 - 3;
        assert!(message(&good[..good.len() - 1]).contains("is a truncated zip file"));
        let edit = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            message(&bytes)
        };
        assert!(edit(directory + 10, 8).contains("entry one is compressed (method 8)"));
        assert!(edit(directory + 8, 1).contains("entry one is encrypted"));
        assert!(edit(directory, 0).contains("its directory is damaged"));
        assert!(edit(directory + 24, 6).contains("has 5 stored bytes but a size of 6"));
        assert!(edit(directory + 42, 9).contains("has no header at byte 9"));
        let mut long = good.clone();
        long[directory + 21] = 200;
        long[directory + 25] = 200;
        assert!(message(&long).contains("the file ends before that"));
        assert!(
            message(&archive(&[("a", b""), ("a", b"")], false)).contains("a stands in it twice")
        );
    }

    #[test]
    fn no_prefix_of_a_file_panics() {
        for zip64 in [false, true] {
            let good = archive(&[("one", b"hello"), ("two", b"x")], zip64);
            for at in 0..good.len() {
                assert!(Archive::read(Path::new("a"), &good[..at]).is_err());
                for value in [0, 0x7f, 0xff] {
                    let mut bytes = good.clone();
                    bytes[at] = value;
                    let _ = Archive::read(Path::new("a"), &bytes);
                }
            }
        }
    }
}
