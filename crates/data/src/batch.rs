//! A micro-batch and the draws that belong to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use spec::DrawSpec;

use crate::augment::Augment;
use crate::dataset::Dataset;
use crate::deal::Micro;
use crate::error::DataError;

/// One micro-batch, ready for the step. `units` below are the padded ones: max(micro-batch, `pad_units`).
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Which micro-batch this is; `micro.units` are valid, units behind them are padding.
    pub micro: Micro,
    /// [rows, height, width, channels], rows = units × images a unit, in the order of `Sampler::row`; empty for feature vectors.
    pub images: Vec<u8>,
    /// [rows, 1, 1, channels], feature vectors in the same order; empty for images.
    pub floats: Vec<f32>,
    /// [rows, height, width, channels]
    pub shape: [usize; 4],
    /// [units]: all images of a unit have its label.
    pub labels: Vec<i32>,
    /// [rows]
    pub row_labels: Vec<i32>,
    /// [rows]: data set index of each image (of the substitute, where one was taken).
    pub index: Vec<i32>,
    /// [rows]: 1; 0 for padding and for skipped bad samples, which must not enter a loss or a count.
    pub weight: Vec<f32>,
    /// `crop` i32 [rows, 2] and `flip` i32 [rows] where the augmentation draws them, and the named draws. A row of a strong view is
    /// cropped and flipped already: its crop is the middle and its flip 0.
    pub draws: BTreeMap<String, DrawData>,
    /// Bad samples met in this micro-batch, in order of rows.
    pub bad: Vec<BadSample>,
}

/// Values of one draw.
#[derive(Clone, Debug, PartialEq)]
pub enum DrawData {
    /// []: `Lambda`, `CutShare`.
    F32(f32),
    /// [units]: `Permutation`; and what the augmentation draws.
    I32(Vec<i32>),
    /// [units, cells]: `CellMask`.
    U8(Vec<u8>),
    /// i32 [4], top, left, bottom, right, the last two exclusive: `CutBox`.
    Box([i32; 4]),
    /// i32 [units, 4], the same a unit: `Cutout`, `Erase`. No pixels: an empty box.
    Boxes(Vec<[i32; 4]>),
}

/// What to do with an image that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBad {
    #[default]
    /// Take another image of the class, chosen by the index of the bad one alone; up to eight tries.
    Substitute,
    /// Leave the rows black with weight 0.
    Skip,
    /// End with the error.
    Fail,
}

/// A line of the ledger. Ordered by index, so that ledgers of ranks merge by sorting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BadSample {
    pub index: usize,
    pub epoch: u32,
    /// Path or record.
    pub place: String,
    pub class: String,
    pub reason: String,
}

impl BadSample {
    pub(crate) fn new(dataset: &dyn Dataset, index: usize, error: &DataError) -> BadSample {
        let reason = match error {
            DataError::Sample { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        let class = dataset.classes()[dataset.label(index) as usize].clone();
        BadSample { index, epoch: 0, place: dataset.place(index), class, reason }
    }
}

/// How batches are made, apart from the order of the epoch.
#[derive(Clone, Debug)]
pub struct BatchSpec {
    pub augment: Augment,
    /// What is done to each view of a unit, in the order of `Sampler::view`; the recipe's `augment` to views beyond the list.
    pub views: Vec<spec::Augment>,
    /// Random inputs that a method asks for by name.
    pub draws: Vec<DrawSpec>,
    pub on_bad: OnBad,
    /// Fill short micro-batches up to this many units: black images, label and index 0, weight 0.
    pub pad_units: usize,
}
