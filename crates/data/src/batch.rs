//! A micro-batch and the draws that belong to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::augment::Augment;
use crate::dataset::Dataset;
use crate::deal::Micro;
use crate::draw::{EpochKey, Purpose, Stream};
use crate::error::DataError;

/// One micro-batch, ready for the step. `units` below are the padded ones: max(micro-batch, `pad_units`).
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Which micro-batch this is; `micro.units` are valid, units behind them are padding.
    pub micro: Micro,
    /// [rows, height, width, channels], rows = units × images a unit, in the order of `Sampler::row`.
    pub images: Vec<u8>,
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
    /// `crop` i32 [rows, 2] and `flip` i32 [rows] where the augmentation draws them, and the named draws.
    pub draws: BTreeMap<String, DrawData>,
    /// Bad samples met in this micro-batch, in order of rows.
    pub bad: Vec<BadSample>,
}

/// Values of one draw.
#[derive(Clone, Debug, PartialEq)]
pub enum DrawData {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U8(Vec<u8>),
}

/// A random input that a method asks for by name.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawSpec {
    pub name: String,
    pub kind: DrawKind,
}

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DrawKind {
    /// U8 [units, cells]: 1 = the cell is exchanged. With probability `gate` a unit has a mask, else zeros; the mask's numbers are
    /// consumed either way. Keyed by the unit's slot.
    CellMask { cells: usize, gate: f64, rule: CellRule },
    /// I32 [units]: a permutation of the units. Keyed by the micro-batch's number, as the next one.
    Permutation,
    /// F32 [1]: Beta(alpha, alpha); 1 if alpha is 0.
    Lambda { alpha: f64 },
}

/// Which cells of an open mask are set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CellRule {
    /// Each with this probability.
    Probability(f64),
    /// Exactly this many.
    Count(usize),
    /// A number uniform in 1..=cells - 1, then that many.
    UniformCount,
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
    pub draws: Vec<DrawSpec>,
    pub on_bad: OnBad,
    /// Fill short micro-batches up to this many units: black images, label and index 0, weight 0.
    pub pad_units: usize,
}

impl BatchSpec {
    /// Checks names and ranges of the draws.
    pub(crate) fn check(&self) -> Result<(), DataError> {
        for (number, draw) in self.draws.iter().enumerate() {
            let wrong = |detail: &str| Err(DataError::Setting(format!("draw \"{}\": {detail}", draw.name)));
            if matches!(draw.name.as_str(), "crop" | "flip") {
                return wrong("the name belongs to the augmentation");
            }
            if self.draws[..number].iter().any(|other| Purpose::named(&other.name) == Purpose::named(&draw.name)) {
                return wrong("the name, or a name with the same hash, is taken; choose another");
            }
            match draw.kind {
                DrawKind::CellMask { gate, .. } if !(0.0..=1.0).contains(&gate) => {
                    return wrong("gate is not in 0..=1");
                }
                DrawKind::CellMask { cells, rule, .. } => {
                    let fits = match rule {
                        CellRule::Probability(p) => cells > 0 && (0.0..=1.0).contains(&p),
                        CellRule::Count(count) => cells > 0 && count <= cells,
                        CellRule::UniformCount => cells > 1,
                    };
                    if !fits {
                        return wrong(&format!("{rule:?} does not go with {cells} cells"));
                    }
                }
                DrawKind::Lambda { alpha } if !(alpha >= 0.0 && alpha.is_finite()) => {
                    return wrong("alpha is negative");
                }
                DrawKind::Lambda { .. } | DrawKind::Permutation => {}
            }
        }
        Ok(())
    }
}

impl DrawSpec {
    /// The values for `micro`, padded to `units`: empty masks, and a permutation that leaves padding where it is.
    pub(crate) fn draw(&self, key: EpochKey, micro: &Micro, units: usize) -> DrawData {
        let purpose = Purpose::named(&self.name);
        match self.kind {
            DrawKind::CellMask { cells, gate, rule } => {
                let mut mask = vec![0; units * cells];
                for (slot, row) in (micro.first_slot..).take(micro.units as usize).zip(mask.chunks_exact_mut(cells)) {
                    let mut stream = key.stream(purpose, slot, 0);
                    let open = stream.bernoulli(gate);
                    fill_cells(&mut stream, rule, row);
                    if !open {
                        row.fill(0);
                    }
                }
                DrawData::U8(mask)
            }
            DrawKind::Permutation => {
                let mut order = key.stream(purpose, micro.number, 0).permutation(micro.units as usize);
                order.extend(micro.units..units as u32);
                DrawData::I32(order.into_iter().map(|i| i as i32).collect())
            }
            DrawKind::Lambda { alpha } => {
                let mut stream = key.stream(purpose, micro.number, 0);
                DrawData::F32(vec![if alpha == 0.0 { 1.0 } else { stream.beta(alpha, alpha) as f32 }])
            }
        }
    }
}

fn fill_cells(stream: &mut Stream, rule: CellRule, cells: &mut [u8]) {
    let count = match rule {
        CellRule::Probability(p) => return cells.iter_mut().for_each(|cell| *cell = u8::from(stream.bernoulli(p))),
        CellRule::Count(count) => count,
        CellRule::UniformCount => 1 + stream.below(cells.len() as u32 - 1) as usize,
    };
    for cell in stream.distinct(count, cells.len()) {
        cells[cell as usize] = 1;
    }
}
