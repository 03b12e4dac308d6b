//! CIFAR-10 and CIFAR-100 in their binary versions.
//!
//! A record is the label byte (CIFAR-100: coarse, then fine; the fine one is used) and 3072 pixels, planes R, G, B of 32×32.

use std::path::{Path, PathBuf};

use crate::dataset::{Dataset, Meta, RawImage};
use crate::error::DataError;
use crate::source::Split;

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
/// Larger than any file of the sets; keeps a wrong path from filling the memory.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Which of the two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CifarKind {
    Cifar10,
    Cifar100,
}

/// A CIFAR set held in memory.
pub struct Cifar {
    meta: Meta,
    folder: PathBuf,
    /// [len, 3, 32, 32]
    planes: Vec<u8>,
}

impl Cifar {
    /// Opens the train or test files; `folder` is the archive's own folder or the one it was unpacked in.
    pub fn open(folder: &Path, kind: CifarKind, split: Split) -> Result<Cifar, DataError> {
        let (name, inner, names, class_count, label_bytes) = match kind {
            CifarKind::Cifar10 => ("cifar10", "cifar-10-batches-bin", "batches.meta.txt", 10, 1),
            CifarKind::Cifar100 => ("cifar100", "cifar-100-binary", "fine_label_names.txt", 100, 2),
        };
        let files: &[&str] = match (kind, split) {
            (_, Split::Val) => return Err(Split::absent(name)),
            (CifarKind::Cifar10, Split::Train) => {
                &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"]
            }
            (CifarKind::Cifar10, Split::Test) => &["test_batch.bin"],
            (CifarKind::Cifar100, Split::Train) => &["train.bin"],
            (CifarKind::Cifar100, Split::Test) => &["test.bin"],
        };
        let inside = folder.join(inner);
        let folder = if inside.is_dir() { inside } else { folder.to_path_buf() };
        let classes = read_names(&folder.join(names), class_count)?;
        let name = format!("{name}/{split}");
        let meta = Meta { name, classes, channels: 3, size: Some([SIDE, SIDE]), labels: Vec::new() };
        let mut set = Cifar { meta, folder, planes: Vec::new() };
        for file in files {
            set.append(file, label_bytes)?;
        }
        Ok(set)
    }

    fn append(&mut self, file: &str, label_bytes: usize) -> Result<(), DataError> {
        let path = self.folder.join(file);
        let record_bytes = label_bytes + 3 * PLANE;
        let file_bytes = std::fs::metadata(&path).map_err(DataError::io(&path))?.len();
        if file_bytes == 0 || file_bytes > MAX_FILE_BYTES || !file_bytes.is_multiple_of(record_bytes as u64) {
            let detail = format!("{file_bytes} bytes; expected a multiple of {record_bytes}, the size of a record");
            return Err(DataError::format(&path, detail));
        }
        let bytes = std::fs::read(&path).map_err(DataError::io(&path))?;
        for (number, record) in bytes.chunks_exact(record_bytes).enumerate() {
            let label = record[label_bytes - 1];
            if usize::from(label) >= self.meta.classes.len() {
                let detail = format!("record {number}: label {label}; expected below {}", self.meta.classes.len());
                return Err(DataError::format(&path, detail));
            }
            self.meta.labels.push(label.into());
            self.planes.extend_from_slice(&record[label_bytes..]);
        }
        Ok(())
    }
}

/// One class name a line, blank lines skipped.
fn read_names(path: &Path, count: usize) -> Result<Vec<String>, DataError> {
    let text = std::fs::read_to_string(path).map_err(DataError::io(path))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    if names.len() != count {
        return Err(DataError::format(path, format!("{} class names; expected {count}, one a line", names.len())));
    }
    Ok(names)
}

impl Dataset for Cifar {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        image.reshape(SIDE, SIDE, 3);
        let planes = &self.planes[index * 3 * PLANE..][..3 * PLANE];
        for (i, pixel) in image.pixels.chunks_exact_mut(3).enumerate() {
            pixel.copy_from_slice(&[planes[i], planes[PLANE + i], planes[2 * PLANE + i]]);
        }
        Ok(())
    }

    fn place(&self, index: usize) -> String {
        format!("{} {} image {index}", self.folder.display(), self.meta.name)
    }
}
