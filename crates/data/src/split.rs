//! A validation split cut from a training set, and a view of some images of a set.

use crate::dataset::{Dataset, Meta, RawImage};
use crate::draw::{EpochKey, Purpose};
use crate::error::DataError;
use crate::sampler::ClassLists;

/// Splits the indices of `dataset` into (kept, held out), both ascending: `per_class` images of each class are held out,
/// chosen by `seed` alone.
pub fn holdout(dataset: &dyn Dataset, per_class: usize, seed: u64) -> Result<(Vec<u32>, Vec<u32>), DataError> {
    let lists = ClassLists::of(dataset);
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for class in 0..lists.classes() as u32 {
        let mut list = lists.class(class).to_vec();
        if list.len() <= per_class {
            return Err(DataError::Setting(format!(
                "cannot set {per_class} images of class {class} apart: it has {}; lower the number",
                list.len()
            )));
        }
        EpochKey { seed, stage: 0, epoch: 0 }.stream(Purpose::HOLDOUT, class, 0).shuffle(&mut list);
        kept.extend(list.drain(per_class..));
        held.append(&mut list);
    }
    kept.sort_unstable();
    held.sort_unstable();
    Ok((kept, held))
}

/// Some images of a set, renumbered from 0.
pub struct Subset {
    inner: Box<dyn Dataset>,
    meta: Meta,
    index: Vec<u32>,
}

impl Subset {
    /// The images `index` of `inner`, in that order. Indices must be in range and at least one.
    pub fn new(inner: Box<dyn Dataset>, name: String, index: Vec<u32>) -> Result<Subset, DataError> {
        match index.iter().find(|&&i| i as usize >= inner.len()) {
            Some(i) => Err(DataError::Setting(format!("index {i} of a set of {} images", inner.len()))),
            None if index.is_empty() => Err(DataError::Setting(format!("{name} would have no images"))),
            None => {
                let labels = index.iter().map(|&i| inner.label(i as usize)).collect();
                let meta = Meta { name, labels, ..inner.meta().clone() };
                Ok(Subset { inner, meta, index })
            }
        }
    }
}

impl Dataset for Subset {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        self.inner.read(self.index[index] as usize, image)
    }

    fn floats(&self, index: usize) -> Option<&[f32]> {
        self.inner.floats(self.index[index] as usize)
    }

    fn place(&self, index: usize) -> String {
        self.inner.place(self.index[index] as usize)
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>, DataError> {
        self.inner.encoded(self.index[index] as usize)
    }
}
