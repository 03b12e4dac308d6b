//! IDX files of MNIST and Fashion-MNIST, plain or gzip.
//!
//! `{train,t10k}-images-idx3-ubyte[.gz]`: magic 00 00 08 03, then count, rows, columns as big-endian u32, then pixels;
//! `{train,t10k}-labels-idx1-ubyte[.gz]`: magic 00 00 08 01, count, labels.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use crate::dataset::{Dataset, Meta, RawImage, check_size};
use crate::error::DataError;

/// A grey set held in memory.
pub struct Idx {
    meta: Meta,
    path: PathBuf,
    /// [len, height, width]
    pixels: Vec<u8>,
}

impl Idx {
    /// Opens the files in `folder` that begin with `prefix` ("train" or "t10k"). `name` is for messages and manifests.
    pub fn open(folder: &Path, prefix: &str, name: &str, classes: &[&str]) -> Result<Idx, DataError> {
        let (path, shape, pixels) = read_idx::<3>(folder, &format!("{prefix}-images-idx3-ubyte"))?;
        let (label_path, [count], labels) = read_idx::<1>(folder, &format!("{prefix}-labels-idx1-ubyte"))?;
        let [images, height, width] = shape;
        check_size(height, width).map_err(|detail| DataError::format(&path, detail))?;
        if count != images || images == 0 {
            return Err(DataError::format(
                &label_path,
                format!("{count} labels; expected {images}, one an image, and at least one"),
            ));
        }
        if let Some(at) = labels.iter().position(|&label| usize::from(label) >= classes.len()) {
            let detail = format!("label {at} is {}; expected below {}", labels[at], classes.len());
            return Err(DataError::format(&label_path, detail));
        }
        let classes = classes.iter().map(|c| c.to_string()).collect();
        let labels = labels.into_iter().map(u32::from).collect();
        let meta = Meta { name: name.into(), classes, channels: 1, size: Some([height, width]), labels };
        Ok(Idx { meta, path, pixels })
    }
}

impl Dataset for Idx {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        let [height, width] = self.meta.size.expect("an IDX set has one size");
        let bytes = height * width;
        image.reshape(height, width, 1);
        image.pixels.copy_from_slice(&self.pixels[index * bytes..][..bytes]);
        Ok(())
    }

    fn place(&self, index: usize) -> String {
        format!("{} image {index}", self.path.display())
    }
}

/// Path, shape and bytes of an IDX file of N dimensions, `name` or `name.gz`.
fn read_idx<const N: usize>(folder: &Path, name: &str) -> Result<(PathBuf, [usize; N], Vec<u8>), DataError> {
    let plain = folder.join(name);
    let zipped = folder.join(format!("{name}.gz"));
    let path = if plain.exists() || !zipped.exists() { plain } else { zipped };
    let file = File::open(&path).map_err(DataError::io(&path))?;
    let file_bytes = file.metadata().map_err(DataError::io(&path))?.len();
    let is_zipped = path.extension().is_some_and(|e| e == "gz");
    let reader = BufReader::new(file);
    let parsed = if is_zipped {
        parse(GzDecoder::new(reader), file_bytes.saturating_mul(1032))
    } else {
        parse(reader, file_bytes)
    };
    parsed.map(|(shape, bytes)| (path.clone(), shape, bytes)).map_err(|detail| DataError::format(&path, detail))
}

/// Parses one IDX stream that cannot hold more than `most` bytes, so that a forged count reserves nothing.
fn parse<const N: usize>(mut reader: impl Read, most: u64) -> Result<([usize; N], Vec<u8>), String> {
    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(|e| format!("header: {e}"))?;
    if magic != [0, 0, 8, N as u8] {
        return Err(format!("magic {magic:02x?}; expected [00, 00, 08, 0{N}]: unsigned bytes, {N} dimensions"));
    }
    let mut shape = [0; N];
    for side in &mut shape {
        let mut word = [0; 4];
        reader.read_exact(&mut word).map_err(|e| format!("header: {e}"))?;
        *side = u32::from_be_bytes(word) as usize;
    }
    let expected = shape.iter().try_fold(1_u64, |product, &side| product.checked_mul(side as u64));
    let expected = expected
        .filter(|&bytes| bytes <= most)
        .ok_or_else(|| format!("shape {shape:?} is larger than the file can hold"))?;
    let mut bytes = Vec::new();
    reader.take(expected + 1).read_to_end(&mut bytes).map_err(|e| format!("after {} bytes: {e}", bytes.len()))?;
    if bytes.len() as u64 != expected {
        let found = if bytes.len() as u64 > expected { "more".into() } else { bytes.len().to_string() };
        return Err(format!("shape {shape:?} needs {expected} bytes; found {found}"));
    }
    Ok((shape, bytes))
}
