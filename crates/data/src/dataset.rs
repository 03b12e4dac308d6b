//! What every data set offers: labelled 8-bit images, or feature vectors, by index.

use crate::error::DataError;

/// Largest inputs that are looked at; beyond them an image is a bad sample.
pub mod limits {
    /// Pixels along one side.
    pub const SIDE: usize = 16_384;
    /// Pixels of one image.
    pub const PIXELS: usize = 64 << 20;
    /// Bytes of one image file.
    pub const FILE_BYTES: u64 = 64 << 20;
    /// Classes of a set.
    pub const CLASSES: usize = 1 << 20;
}

/// One decoded image, 8 bits a channel, rows from the top, channels last. Reused as a buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawImage {
    pub height: usize,
    pub width: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// [height, width, channels]
    pub pixels: Vec<u8>,
}

impl RawImage {
    /// Sets the size and leaves a buffer of that length, content unspecified.
    pub(crate) fn reshape(&mut self, height: usize, width: usize, channels: usize) {
        (self.height, self.width, self.channels) = (height, width, channels);
        self.pixels.resize(height * width * channels, 0);
    }
}

/// Whether sides and area are within [`limits`] and not zero.
pub(crate) fn check_size(height: usize, width: usize) -> Result<(), String> {
    let sides = 1..=limits::SIDE;
    if sides.contains(&height) && sides.contains(&width) && height * width <= limits::PIXELS {
        return Ok(());
    }
    Err(format!("{height}×{width} pixels; expected 1 to {} a side and at most {} in all", limits::SIDE, limits::PIXELS))
}

/// Per-channel mean and standard deviation of a set on the scale 0..1, one entry per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
}

impl Stats {
    pub(crate) fn new(mean: &[f64], std: &[f64]) -> Stats {
        Stats { mean: mean.to_vec(), std: std.to_vec() }
    }
}

/// What a set knows without reading an image.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Name of the set and split, for messages and manifests.
    pub name: String,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// 1 or 3, for every image; the length of feature vectors.
    pub channels: usize,
    /// `[height, width]` where all images share it.
    pub size: Option<[usize; 2]>,
    /// Label of each image, below `classes.len()`.
    pub labels: Vec<u32>,
}

/// Labelled images by index. Indices are below `len`; a larger one is the caller's fault and panics.
pub trait Dataset: Send + Sync {
    fn meta(&self) -> &Meta;
    /// Reads image `index` into `image`. Any error makes it a bad sample.
    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError>;
    /// Feature vector `index`, where the set holds those instead of images: an image [1,1,channels] of floats, which `read` refuses.
    fn floats(&self, _index: usize) -> Option<&[f32]> {
        None
    }
    /// Where image `index` comes from, for messages: a path or a record.
    fn place(&self, index: usize) -> String;
    /// The image file's bytes as stored, where there is one (JPEG or PNG); `pack` can keep them.
    fn encoded(&self, _index: usize) -> Result<Option<Vec<u8>>, DataError> {
        Ok(None)
    }
    fn name(&self) -> &str {
        &self.meta().name
    }
    /// Number of images.
    fn len(&self) -> usize {
        self.meta().labels.len()
    }
    /// No set that opens is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn classes(&self) -> &[String] {
        &self.meta().classes
    }
    fn label(&self, index: usize) -> u32 {
        self.meta().labels[index]
    }
    fn labels(&self) -> &[u32] {
        &self.meta().labels
    }
    fn channels(&self) -> usize {
        self.meta().channels
    }
    fn size(&self) -> Option<[usize; 2]> {
        self.meta().size
    }
}

/// A stable fingerprint of the sample list for the run manifest: FNV-1a over count, labels in order, and class names.
pub fn sample_hash(dataset: &dyn Dataset) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    eat(&(dataset.len() as u64).to_le_bytes());
    dataset.labels().iter().for_each(|label| eat(&label.to_le_bytes()));
    for class in dataset.classes() {
        eat(class.as_bytes());
        eat(&[0]);
    }
    hash
}
