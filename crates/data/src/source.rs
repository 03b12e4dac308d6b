//! A set by name: which files, which mean and standard deviation.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::cifar::{Cifar, CifarKind};
use crate::dataset::{Dataset, Stats};
use crate::error::DataError;
use crate::features::Features;
use crate::folder::Folder;
use crate::idx::Idx;
use crate::packed::Packed;
use crate::split::{Subset, holdout};

const FASHION_CLASSES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// Part of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Val,
    Test,
}

impl Split {
    /// The error for a set that has no validation split of its own.
    pub(crate) fn absent(set: &str) -> DataError {
        DataError::Setting(format!(
            "{set} has no validation split of its own; hold images of the training set out per class"
        ))
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Split, DataError> {
        let all = [Split::Train, Split::Val, Split::Test];
        let known = all.into_iter().find(|split| split.to_string() == text);
        known.ok_or_else(|| DataError::Setting(format!("split \"{text}\"; expected train, val or test")))
    }
}

/// The validation split that is cut from the training set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdout {
    /// Images of each class; 0 = none, "val" is then the set's own, if it has one.
    pub per_class: usize,
    pub seed: u64,
}

/// What to open.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// "fashion", "cifar10", "cifar100", "folder" (ImageFolder), "packed" or "features".
    pub set: String,
    pub folder: PathBuf,
    pub split: Split,
    pub holdout: Holdout,
}

/// An open set with the constants that normalise it.
pub struct Source {
    pub dataset: Box<dyn Dataset>,
    pub stats: Stats,
}

impl Source {
    /// Opens a set. With a holdout, "train" is the training set without the held-out images, which are "val".
    ///
    /// Files below the folder: fashion `train.pack`/`test.pack` or the four IDX files; cifar the binary archive; folder
    /// `<split>/<class>/*`; packed `<split>.pack`; features `<split>.safetensors`. Mean and std: the set's usual ones, ImageNet's for a
    /// folder, a pack's own, 0 and 1 for features.
    pub fn open(spec: &SourceSpec) -> Result<Source, DataError> {
        let cut = spec.holdout.per_class > 0 && spec.split != Split::Test;
        let file_split = if cut { Split::Train } else { spec.split };
        let source = open_split(&spec.set, &spec.folder, file_split)?;
        if !cut {
            return Ok(source);
        }
        let Source { dataset, stats } = source;
        let Holdout { per_class, seed } = spec.holdout;
        let (kept, held) = holdout(&*dataset, per_class, seed)?;
        let index = if spec.split == Split::Val { held } else { kept };
        let name = format!("{}/{}", spec.set, spec.split);
        Ok(Source { dataset: Box::new(Subset::new(dataset, name, index)?), stats })
    }
}

fn open_split(set: &str, folder: &Path, split: Split) -> Result<Source, DataError> {
    match set {
        "fashion" if folder.join("train.pack").is_file() => open_packed(folder, split),
        "fashion" => {
            let prefix = match split {
                Split::Train => "train",
                Split::Test => "t10k",
                Split::Val => return Err(Split::absent(set)),
            };
            let idx = Idx::open(folder, prefix, &format!("fashion/{split}"), &FASHION_CLASSES)?;
            Ok(Source { dataset: Box::new(idx), stats: Stats::new(&[0.2860], &[0.3530]) })
        }
        "cifar10" => Ok(Source {
            dataset: Box::new(Cifar::open(folder, CifarKind::Cifar10, split)?),
            stats: Stats::new(&[0.4914, 0.4822, 0.4465], &[0.2023, 0.1994, 0.2010]),
        }),
        "cifar100" => Ok(Source {
            dataset: Box::new(Cifar::open(folder, CifarKind::Cifar100, split)?),
            stats: Stats::new(&[0.5071, 0.4867, 0.4408], &[0.2675, 0.2565, 0.2761]),
        }),
        "folder" => Ok(Source {
            dataset: Box::new(Folder::open(&folder.join(split.to_string()), &format!("folder/{split}"))?),
            stats: Stats::new(&[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225]),
        }),
        "packed" => open_packed(folder, split),
        "features" => Ok(Source {
            dataset: Box::new(Features::open(
                &folder.join(format!("{split}.safetensors")),
                &format!("features/{split}"),
            )?),
            stats: Stats::new(&[0.0], &[1.0]),
        }),
        _ => Err(DataError::Setting(format!(
            "set \"{set}\"; expected fashion, cifar10, cifar100, folder, packed or features"
        ))),
    }
}

fn open_packed(folder: &Path, split: Split) -> Result<Source, DataError> {
    let packed = Packed::open(&folder.join(format!("{split}.pack")))?;
    let stats = packed.stats();
    Ok(Source { dataset: Box::new(packed), stats })
}
