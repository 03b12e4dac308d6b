//! The packed format: one file, one split, any set. Little endian.
//!
//! ```text
//! 0   magic "RETORTPK"          8  version u32 = 1         12  bytes of the header u32
//! 16  offset of the header u64  24 offset of the index u64 32  number of records u64
//! 40  CRC32 of the header u32   44 CRC32 of the index u32  48  records, one after the other, no gaps
//! header: JSON (`Header`), follows the records     index: 16 bytes a record, follows the header, ends the file
//!   0 bytes of the record u32   4 CRC32 of the stored bytes u32   8 label (low 24 bits), codec (high 8 bits)   12 height u16   14 width u16
//! ```
//!
//! The prefix is written last, so a file that was cut short has no valid one. Memory-mapped; a record's CRC is checked at every read.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::codec::{self, Codec};
use crate::dataset::{Dataset, Meta, RawImage, Stats, check_size, limits};
use crate::error::DataError;

pub(crate) const MAGIC: [u8; 8] = *b"RETORTPK";
pub(crate) const VERSION: u32 = 1;
pub(crate) const PREFIX_BYTES: usize = 48;
pub(crate) const ENTRY_BYTES: usize = 16;
const MAX_HEADER_BYTES: usize = 16 << 20;

/// What the whole file shares.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) classes: Vec<String>,
    pub(crate) channels: usize,
    /// `[height, width]`, if every record has it.
    pub(crate) size: Option<[usize; 2]>,
    pub(crate) mean: Vec<f64>,
    pub(crate) std: Vec<f64>,
}

/// One line of the index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) offset: usize,
    pub(crate) bytes: u32,
    pub(crate) crc: u32,
    pub(crate) codec: Codec,
    pub(crate) height: u16,
    pub(crate) width: u16,
}

impl Entry {
    pub(crate) fn to_bytes(self, label: u32) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[0..4].copy_from_slice(&self.bytes.to_le_bytes());
        out[4..8].copy_from_slice(&self.crc.to_le_bytes());
        out[8..12].copy_from_slice(&(label | (self.codec as u32) << 24).to_le_bytes());
        out[12..14].copy_from_slice(&self.height.to_le_bytes());
        out[14..16].copy_from_slice(&self.width.to_le_bytes());
        out
    }
}

/// A packed file, open for reading.
pub struct Packed {
    path: PathBuf,
    map: Mmap,
    meta: Meta,
    stats: Stats,
    entries: Vec<Entry>,
}

impl Packed {
    /// Maps `path` and checks prefix, header and index; records are checked when read. The file must not change while it is open.
    pub fn open(path: &Path) -> Result<Packed, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let bytes = file.metadata().map_err(DataError::io(path))?.len();
        if bytes < PREFIX_BYTES as u64 {
            return Err(bad(path, format!("{bytes} bytes; expected at least {PREFIX_BYTES}")));
        }
        // SAFETY: the map is read-only and private; nobody shortens or rewrites a packed file in place (`pack` renames a finished
        // one), and no reference into it outlives `self`.
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(path))?;
        let (header, entries, labels) = parse(&map).map_err(|detail| bad(path, detail))?;
        let Header { name, classes, channels, size, mean, std } = header;
        let meta = Meta { name, classes, channels, size, labels };
        Ok(Packed { path: path.to_path_buf(), map, meta, stats: Stats { mean, std }, entries })
    }

    /// Mean and standard deviation stored with the set.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    fn record(&self, index: usize) -> Result<(Entry, &[u8]), DataError> {
        let entry = self.entries[index];
        let bytes = &self.map[entry.offset..entry.offset + entry.bytes as usize];
        if crc32fast::hash(bytes) != entry.crc {
            return Err(self.sample_error(index, "CRC differs; pack the set again".into()));
        }
        Ok((entry, bytes))
    }

    fn sample_error(&self, index: usize, reason: String) -> DataError {
        DataError::Sample { index, place: self.place(index), reason }
    }
}

impl Dataset for Packed {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        let (entry, bytes) = self.record(index)?;
        image.reshape(entry.height.into(), entry.width.into(), self.meta.channels);
        codec::decode(entry.codec, bytes, image).map_err(|reason| self.sample_error(index, reason))
    }

    fn place(&self, index: usize) -> String {
        format!("{} record {index}", self.path.display())
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>, DataError> {
        let (entry, bytes) = self.record(index)?;
        Ok((entry.codec == Codec::File).then(|| bytes.to_vec()))
    }
}

fn bad(path: &Path, detail: String) -> DataError {
    DataError::format(path, format!("{detail}; the file is damaged or not a packed set, pack it again"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn usize_at(bytes: &[u8], at: usize) -> Result<usize, String> {
    let value = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    usize::try_from(value).map_err(|_| format!("value {value} at byte {at} is too large"))
}

/// Header and index of a whole file of at least `PREFIX_BYTES` bytes. The error says what is wrong, without the path.
fn parse(file: &[u8]) -> Result<(Header, Vec<Entry>, Vec<u32>), String> {
    if file[..8] != MAGIC {
        return Err(format!("magic {:02x?}; expected {MAGIC:02x?}", &file[..8]));
    }
    let version = u32_at(file, 8);
    if version != VERSION {
        return Err(format!("format version {version}; this program reads {VERSION}"));
    }
    let header_bytes = u32_at(file, 12) as usize;
    let (header_at, index_at, count) = (usize_at(file, 16)?, usize_at(file, 24)?, usize_at(file, 32)?);
    let index_bytes = count.checked_mul(ENTRY_BYTES).ok_or_else(|| format!("{count} records"))?;
    let fits = header_bytes <= MAX_HEADER_BYTES
        && header_at >= PREFIX_BYTES
        && header_at.checked_add(header_bytes) == Some(index_at)
        && index_at.checked_add(index_bytes) == Some(file.len())
        && u32::try_from(count).is_ok();
    if !fits {
        return Err(format!(
            "header at {header_at} (+{header_bytes}), index at {index_at} (+{index_bytes}), {} bytes in all do not fit together",
            file.len()
        ));
    }
    let (header, index) = (&file[header_at..index_at], &file[index_at..]);
    if crc32fast::hash(header) != u32_at(file, 40) {
        return Err("CRC of the header differs".into());
    }
    if crc32fast::hash(index) != u32_at(file, 44) {
        return Err("CRC of the index differs".into());
    }
    let header: Header = serde_json::from_slice(header).map_err(|e| format!("header: {e}"))?;
    check_header(&header, count)?;
    let (entries, labels) = parse_index(index, &header, header_at)?;
    Ok((header, entries, labels))
}

fn check_header(header: &Header, count: usize) -> Result<(), String> {
    let positive = |values: &[f64]| values.iter().all(|v| v.is_finite() && *v > 0.0);
    if count == 0 || header.classes.is_empty() || header.classes.len() > limits::CLASSES {
        return Err(format!("{count} records of {} classes", header.classes.len()));
    }
    if !matches!(header.channels, 1 | 3) {
        return Err(format!("{} channels; expected 1 or 3", header.channels));
    }
    let per_channel = [header.mean.len(), header.std.len()] == [header.channels; 2];
    if !per_channel || !header.mean.iter().all(|v| v.is_finite()) || !positive(&header.std) {
        return Err(format!(
            "mean {:?}, std {:?}: expected a positive std and a mean a channel",
            header.mean, header.std
        ));
    }
    header.size.map_or(Ok(()), |[height, width]| check_size(height, width))
}

fn parse_index(index: &[u8], header: &Header, records_end: usize) -> Result<(Vec<Entry>, Vec<u32>), String> {
    let (mut entries, mut labels) = (Vec::new(), Vec::new());
    let mut offset = PREFIX_BYTES;
    for (number, line) in index.chunks_exact(ENTRY_BYTES).enumerate() {
        let at = |detail: String| format!("record {number}: {detail}");
        let tag = u32_at(line, 8);
        let codec = Codec::from_number((tag >> 24) as u8).ok_or_else(|| at(format!("codec {}", tag >> 24)))?;
        let entry = Entry {
            offset,
            bytes: u32_at(line, 0),
            crc: u32_at(line, 4),
            codec,
            height: u16::from_le_bytes([line[12], line[13]]),
            width: u16::from_le_bytes([line[14], line[15]]),
        };
        let size = [usize::from(entry.height), usize::from(entry.width)];
        check_size(size[0], size[1]).map_err(at)?;
        if header.size.is_some_and(|all| all != size) {
            return Err(at(format!("size {size:?}; the header says {:?}", header.size)));
        }
        let label = tag & 0xff_ffff;
        if label as usize >= header.classes.len() {
            return Err(at(format!("label {label} of {} classes", header.classes.len())));
        }
        if codec == Codec::File && header.channels != 3 {
            return Err(at("an image file in a set of one channel".into()));
        }
        if !codec::plausible(codec, entry.bytes as usize, size[0] * size[1] * header.channels) {
            return Err(at(format!("{} bytes cannot hold {size:?} pixels", entry.bytes)));
        }
        offset = offset
            .checked_add(entry.bytes as usize)
            .filter(|&end| end <= records_end)
            .ok_or_else(|| at(format!("ends beyond byte {records_end}, where the records end")))?;
        entries.push(entry);
        labels.push(label);
    }
    if offset != records_end {
        return Err(format!("records end at byte {offset}; expected {records_end}"));
    }
    Ok((entries, labels))
}
