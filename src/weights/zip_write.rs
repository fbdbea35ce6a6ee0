//! Zip files as PyTorch writes them: stored entries, each one's data at a multiple of 64 bytes.
//!
//! Source: PKWARE's APPNOTE.TXT for the records, caffe2/serialize/inline_container.cc for the padding
//! in the local headers' extra field.

use std::io::{self, Write};

use flate2::Crc;

use crate::weights::zip::{DIRECTORY_ENTRY, END_OF_DIRECTORY, LOCAL_HEADER};

/// Where the data of an entry may begin: tensors can be used where they lie.
const ALIGNMENT: usize = 64;
/// PyTorch's name for an extra field that is there for its length alone.
const PADDING_ID: &[u8; 2] = b"FB";
/// Names are UTF-8.
const FLAGS: u16 = 1 << 11;
/// The version of the format that has stored entries and folders.
const VERSION: u16 = 20;
/// 1 January 1980, the format's first day: the same input gives the same bytes.
const DATE: u16 = 0x21;
/// Local header with its padding, and directory entry, without the name.
const MOST_OVERHEAD: u64 = 30 + 4 + ALIGNMENT as u64 + 46;

/// Whether entries with names and data of these lengths fit into a zip file without zip64's longer
/// fields: below 65,536 entries and 4 GiB.
pub(super) fn fits(entries: impl Iterator<Item = (usize, usize)>) -> bool {
    let (mut count, mut bytes) = (0u64, 22u64);
    for (name, data) in entries {
        count += 1;
        bytes = bytes
            .saturating_add(2 * name as u64 + MOST_OVERHEAD)
            .saturating_add(data as u64);
    }
    count < u64::from(u16::MAX) && bytes < u64::from(u32::MAX)
}

/// Writes entry after entry, and last the directory.
pub(super) struct ZipWriter<'w> {
    out: &'w mut dyn Write,
    /// Bytes written.
    at: usize,
    directory: Vec<u8>,
    count: u16,
}

impl<'w> ZipWriter<'w> {
    /// An empty zip file, whose entries [`fits`] has accepted.
    pub(super) fn new(out: &'w mut dyn Write) -> ZipWriter<'w> {
        ZipWriter {
            out,
            at: 0,
            directory: Vec::new(),
            count: 0,
        }
    }

    /// Adds an entry.
    pub(super) fn add(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        let start = self.at + 30 + name.len() + 4;
        let padding = start.next_multiple_of(ALIGNMENT) - start;
        let mut crc = Crc::new();
        crc.update(data);
        let both = both_headers(name, crc.sum(), data.len());

        let mut header = LOCAL_HEADER.to_le_bytes().to_vec();
        header.extend(&both);
        header.extend((4 + padding as u16).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(PADDING_ID);
        header.extend((padding as u16).to_le_bytes());
        header.resize(header.len() + padding, b'Z');

        self.directory.extend(DIRECTORY_ENTRY.to_le_bytes());
        self.directory.extend(VERSION.to_le_bytes());
        self.directory.extend(&both);
        // No extra field, no comment, disk 0, no attributes.
        self.directory.extend([0; 12]);
        self.directory.extend((self.at as u32).to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.count += 1;

        self.out.write_all(&header)?;
        self.out.write_all(data)?;
        self.at += header.len() + data.len();
        Ok(())
    }

    /// Ends the file.
    pub(super) fn finish(self) -> io::Result<()> {
        self.out.write_all(&self.directory)?;
        let mut end = END_OF_DIRECTORY.to_le_bytes().to_vec();
        // Disk 0 of one.
        end.extend([0; 4]);
        end.extend(self.count.to_le_bytes());
        end.extend(self.count.to_le_bytes());
        end.extend((self.directory.len() as u32).to_le_bytes());
        end.extend((self.at as u32).to_le_bytes());
        end.extend([0; 2]);
        self.out.write_all(&end)
    }
}

/// The fields that local header and directory entry share, from the version needed to the length of
/// the name.
fn both_headers(name: &str, crc: u32, size: usize) -> Vec<u8> {
    let mut out = VERSION.to_le_bytes().to_vec();
    out.extend(FLAGS.to_le_bytes());
    // Stored, at midnight.
    out.extend([0; 4]);
    out.extend(DATE.to_le_bytes());
    out.extend(crc.to_le_bytes());
    out.extend((size as u32).to_le_bytes());
    out.extend((size as u32).to_le_bytes());
    out.extend((name.len() as u16).to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::zip::Archive;
    use std::path::Path;

    #[test]
    fn entries_come_back_and_are_aligned() {
        let entries: [(&str, &[u8]); 4] = [
            ("a/data.pkl", b"123456789"),
            ("a/ü", b""),
            ("a/data/0", &[7; 300]),
            ("a/version", b"3\n"),
        ];
        let mut bytes = Vec::new();
        let mut zip = ZipWriter::new(&mut bytes);
        for (name, data) in entries {
            zip.add(name, data).unwrap();
        }
        zip.finish().unwrap();
        let archive = Archive::read(Path::new("a.pt"), &bytes).unwrap();
        assert_eq!(archive.names().count(), entries.len());
        for (name, data) in entries {
            let range = archive.get(name).unwrap().unwrap();
            assert_eq!(range.start % ALIGNMENT, 0, "{name}");
            assert_eq!(&bytes[range], data, "{name}");
        }
        // The check value of CRC-32, in the first header.
        assert_eq!(bytes[14..18], 0xcbf4_3926u32.to_le_bytes());
    }

    #[test]
    fn what_needs_zip64_does_not_fit() {
        let gib = 1 << 30;
        assert!(fits([(10, 3 * gib), (10, gib / 2)].into_iter()));
        assert!(!fits([(10, 3 * gib), (10, gib)].into_iter()));
        assert!(!fits([(10, usize::MAX), (10, usize::MAX)].into_iter()));
        assert!(fits(std::iter::repeat_n((10, 1), 60_000)));
        assert!(!fits(std::iter::repeat_n((10, 1), 65_535)));
    }
}
