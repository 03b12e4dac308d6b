//! Small data sets in memory for the tests.
#![allow(dead_code)] // each test file uses a part of it

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use data::{
    Augment, BatchSpec, ClassLists, DataError, Dataset, Epoch, EpochKey, Holdout, Meta, OnBad, RawImage, Sampler,
    Source, SourceSpec, Split,
};

/// Images whose pixels follow from their index; some are bad, sizes may vary.
pub(crate) struct Memory {
    pub(crate) meta: Meta,
    pub(crate) size: [usize; 2],
    pub(crate) grows: usize,
    pub(crate) bad: BTreeMap<usize, &'static str>,
    /// Calls of `read` so far.
    pub(crate) reads: Arc<AtomicUsize>,
}

impl Memory {
    pub(crate) fn new(labels: &[u32], channels: usize, size: [usize; 2]) -> Memory {
        let classes = labels.iter().max().map_or(1, |&c| c as usize + 1);
        let classes = (0..classes).map(|c| format!("class {c}")).collect();
        let meta = Meta { name: "memory".into(), classes, channels, size: Some(size), labels: labels.to_vec() };
        Memory { meta, size, grows: 0, bad: BTreeMap::new(), reads: Arc::default() }
    }

    /// Sizes vary with the index, in `grows + 1` steps.
    pub(crate) fn growing(labels: &[u32], channels: usize, size: [usize; 2], grows: usize) -> Memory {
        let mut set = Memory { grows, ..Memory::new(labels, channels, size) };
        set.meta.size = set.meta.size.filter(|_| grows == 0);
        set
    }

    pub(crate) fn image(&self, index: usize) -> RawImage {
        let grow = index % (self.grows + 1);
        let (height, width, channels) = (self.size[0] + grow, self.size[1] + 2 * grow, self.meta.channels);
        let pixels = (0..height * width * channels).map(|i| (index * 31 + i * 7 + i * i / 5) as u8).collect();
        RawImage { height, width, channels, pixels }
    }
}

impl Dataset for Memory {
    fn meta(&self) -> &Meta {
        &self.meta
    }
    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some(reason) = self.bad.get(&index) {
            return Err(DataError::Sample { index, place: self.place(index), reason: reason.to_string() });
        }
        *image = self.image(index);
        Ok(())
    }
    fn place(&self, index: usize) -> String {
        format!("memory {index}")
    }
}

/// 3 classes of unequal size, in mixed order.
pub(crate) fn labels() -> Vec<u32> {
    (0..41).map(|i| if i == 17 { 2 } else { (i * 7 % 5 % 2) as u32 }).collect()
}

pub(crate) fn spec(augment: Augment) -> BatchSpec {
    BatchSpec { augment, views: Vec::new(), draws: Vec::new(), on_bad: OnBad::Fail, pad_units: 0 }
}

pub(crate) fn key(epoch: u32) -> EpochKey {
    EpochKey { seed: 0x0123_4567_89ab_cdef, stage: 0, epoch }
}

pub(crate) fn epoch(dataset: &dyn Dataset, sampler: Sampler, number: u32) -> Epoch {
    Epoch::new(sampler, Arc::new(ClassLists::of(dataset)), key(number)).unwrap()
}

pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn open(set: &str, folder: impl Into<PathBuf>, split: Split) -> Result<Source, DataError> {
    Source::open(&SourceSpec { set: set.into(), folder: folder.into(), split, holdout: Holdout::default() })
}

/// The message of the error that `result` must be.
pub(crate) fn error<T>(result: Result<T, DataError>) -> String {
    result.err().expect("an error was expected").to_string()
}
