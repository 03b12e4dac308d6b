//! Writes any data set as one packed file: temporary file, fsync, rename, fsync of the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::augment::resize_short_side;
use crate::batch::BadSample;
use crate::codec::{Codec, encode_shortest};
use crate::dataset::{Dataset, RawImage, Stats};
use crate::error::DataError;
use crate::packed::{ENTRY_BYTES, Entry, Header, MAGIC, PREFIX_BYTES, VERSION};

/// Images that are read and encoded at a time, in parallel; bounds the memory.
const CHUNK: usize = 64;

/// How records are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackCodec {
    /// Pixels: the fastest to read.
    Raw,
    /// The shortest lossless coding, image by image.
    Deflate,
    /// JPEG and PNG files as they are; sets without files fall back to `Deflate`.
    File,
}

/// Settings of [`pack`].
#[derive(Clone, Debug)]
pub struct PackSettings {
    pub codec: PackCodec,
    /// Resize so that the shorter side has this many pixels (bilinear with antialias); not with `PackCodec::File`.
    pub short_side: Option<usize>,
    /// Stored with the set, one entry a channel.
    pub stats: Stats,
}

/// What [`pack`] did.
#[derive(Debug)]
pub struct PackReport {
    pub packed: usize,
    /// Size of the file.
    pub bytes: u64,
    /// Images that could not be read, in order; they are not in the file.
    pub bad: Vec<BadSample>,
}

/// Packs `dataset` into the file `to`, replacing it only when all is written. `progress` gets (images done, images in all).
///
/// Unreadable images are left out and listed; an I/O error or a set without a good image is an error and leaves no file.
pub fn pack(
    dataset: &dyn Dataset,
    settings: &PackSettings,
    to: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<PackReport, DataError> {
    check(dataset, settings)?;
    let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = to.file_name().ok_or_else(|| DataError::Setting(format!("{} is not a file name", to.display())))?;
    let temporary = Temporary(folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())));
    let file =
        OpenOptions::new().write(true).create_new(true).open(&temporary.0).map_err(DataError::io(&temporary.0))?;
    let mut writer = Writer::new(file).map_err(DataError::io(&temporary.0))?;
    let mut bad = Vec::new();
    let total = dataset.len();
    for start in (0..total).step_by(CHUNK) {
        let end = total.min(start + CHUNK);
        let encoded: Vec<_> = (start..end).into_par_iter().map(|index| encode(dataset, settings, index)).collect();
        for (index, record) in (start..end).zip(encoded) {
            match record {
                Ok(record) => writer.push(&record).map_err(DataError::io(&temporary.0))?,
                Err(error) => bad.push(BadSample::new(dataset, index, &error)),
            }
        }
        progress(end, total);
    }
    if bad.len() == total {
        return Err(DataError::Format {
            path: to.to_path_buf(),
            detail: format!("none of {total} images could be read"),
        });
    }
    let bytes = writer.finish(dataset, &settings.stats).map_err(DataError::io(&temporary.0))?;
    fs::rename(&temporary.0, to).map_err(DataError::io(to))?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(DataError::io(folder))?;
    Ok(PackReport { packed: total - bad.len(), bytes, bad })
}

fn check(dataset: &dyn Dataset, settings: &PackSettings) -> Result<(), DataError> {
    if [settings.stats.mean.len(), settings.stats.std.len()] != [dataset.channels(); 2] {
        return Err(DataError::Setting(format!("mean and std need {} entries, one a channel", dataset.channels())));
    }
    if settings.short_side == Some(0) || settings.short_side.is_some() && settings.codec == PackCodec::File {
        return Err(DataError::Setting(
            "a short side must be positive, and goes with codec raw or deflate only".into(),
        ));
    }
    Ok(())
}

/// Removes the temporary file if it was not renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing to remove; a failure to clean up must not hide the first error.
        let _ = fs::remove_file(&self.0);
    }
}

/// One record ready to be written.
struct Record {
    label: u32,
    codec: Codec,
    size: [usize; 2],
    bytes: Vec<u8>,
}

fn encode(dataset: &dyn Dataset, settings: &PackSettings, index: usize) -> Result<Record, DataError> {
    let mut image = RawImage::default();
    // Also where the file is kept as it is: what cannot be decoded is listed now, not in the middle of a training.
    dataset.read(index, &mut image)?;
    if let Some(short_side) = settings.short_side {
        image = resize_short_side(&image, short_side);
    }
    let size = [image.height, image.width];
    let file = if settings.codec == PackCodec::File { dataset.encoded(index)? } else { None };
    let (codec, bytes) = match (settings.codec, file) {
        (_, Some(file)) => (Codec::File, file),
        (PackCodec::Raw, None) => (Codec::Raw, image.pixels),
        (PackCodec::Deflate | PackCodec::File, None) => encode_shortest(&image),
    };
    Ok(Record { label: dataset.label(index), codec, size, bytes })
}

/// The file under construction.
struct Writer {
    file: BufWriter<File>,
    index: Vec<u8>,
    offset: usize,
    first_size: Option<[usize; 2]>,
    sizes_agree: bool,
}

impl Writer {
    fn new(file: File) -> std::io::Result<Writer> {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&[0; PREFIX_BYTES])?;
        Ok(Writer { file, index: Vec::new(), offset: PREFIX_BYTES, first_size: None, sizes_agree: true })
    }

    fn push(&mut self, record: &Record) -> std::io::Result<()> {
        let entry = Entry {
            offset: self.offset,
            bytes: record.bytes.len() as u32,
            crc: crc32fast::hash(&record.bytes),
            codec: record.codec,
            height: record.size[0] as u16,
            width: record.size[1] as u16,
        };
        self.index.extend_from_slice(&entry.to_bytes(record.label));
        self.offset += record.bytes.len();
        self.sizes_agree &= *self.first_size.get_or_insert(record.size) == record.size;
        self.file.write_all(&record.bytes)
    }

    /// Writes header, index and, last, the prefix; returns the size of the file.
    fn finish(mut self, dataset: &dyn Dataset, stats: &Stats) -> std::io::Result<u64> {
        let header = Header {
            name: dataset.name().into(),
            classes: dataset.classes().to_vec(),
            channels: dataset.channels(),
            size: self.first_size.filter(|_| self.sizes_agree),
            mean: stats.mean.clone(),
            std: stats.std.clone(),
        };
        let header = serde_json::to_vec(&header)?;
        self.file.write_all(&header)?;
        self.file.write_all(&self.index)?;
        let mut prefix = Vec::with_capacity(PREFIX_BYTES);
        prefix.extend_from_slice(&MAGIC);
        prefix.extend_from_slice(&VERSION.to_le_bytes());
        prefix.extend_from_slice(&(header.len() as u32).to_le_bytes());
        for value in [self.offset, self.offset + header.len(), self.index.len() / ENTRY_BYTES] {
            prefix.extend_from_slice(&(value as u64).to_le_bytes());
        }
        prefix.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        prefix.extend_from_slice(&crc32fast::hash(&self.index).to_le_bytes());
        let mut file = self.file.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&prefix)?;
        file.sync_all()?;
        Ok((self.offset + header.len() + self.index.len()) as u64)
    }
}
