//! Evaluation of a whole split: every image once, in one padded shape, at any number of ranks.

use crate::engine::Engine;
use crate::error::TrainError;
use crate::executor::Executor;
use crate::feed::{Rank, Set, warned_of_stalls};
use crate::inputs::eval_inputs;
use data::{Deal, Epoch, EpochKey, LastBatch, Prefetch, Sampler};
use std::sync::Arc;

/// Counts over a split.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    pub samples: u64,
    pub top1: u64,
    pub top5: u64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Images that the method's other heads name rightly.
    pub others: Vec<(String, u64)>,
    /// Class name, correct, images; only when asked for.
    pub per_class: Vec<(String, u64, u64)>,
}

impl Evaluation {
    /// Share of images whose class is ranked first, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        self.top1 as f64 / self.samples.max(1) as f64
    }

    pub fn accuracy5(&self) -> f64 {
        self.top5 as f64 / self.samples.max(1) as f64
    }
}

/// Evaluates the engine's head on a split. All ranks call it and get the same counts.
pub(crate) fn evaluate<E: Executor>(
    engine: &mut Engine<E>,
    set: &Set,
    batch: usize,
    workers: usize,
) -> Result<Evaluation, TrainError> {
    let epoch = Arc::new(Epoch::new(Sampler::Sequential, set.lists.clone(), EpochKey { seed: 0, stage: 0, epoch: 0 })?);
    let (samples, classes) = (epoch.units(), set.lists.classes());
    let deal = Deal::new(samples, batch, batch, LastBatch::Keep)?;
    let (rank, world) = (engine.comm().rank(), engine.comm().world_size());
    let micros = (0..deal.steps()).filter(|s| s % world == rank).flat_map(|s| deal.deal(s, 0, 1)).collect();
    let others = engine.other_heads();
    // Per class: correct, images. Then top-5, the loss, and correct ones of other heads. Counts are exact in f64.
    let mut sums = vec![0.0f64; 2 * classes + 2 + others.len()];
    let micros = Prefetch::new(set.loader.clone(), epoch, micros, workers, 2)?;
    for batch in warned_of_stalls(micros, Rank { rank, world }, "the evaluation".to_string()) {
        let batch = batch?;
        let values = engine.evaluate(&eval_inputs(&batch)?)?;
        sums[2 * classes] += values.top5 as f64;
        sums[2 * classes + 1] += values.loss_sum;
        values.others.iter().enumerate().for_each(|(i, other)| sums[2 * classes + 2 + i] += other.1 as f64);
        let mut top1 = 0;
        for row in 0..batch.micro.units as usize {
            let class = batch.row_labels[row] as usize;
            let right = batch.weight[row] > 0.0 && first(&values.logits[row * classes..(row + 1) * classes]) == class;
            top1 += u64::from(right);
            sums[2 * class] += f64::from(u8::from(right));
            sums[2 * class + 1] += 1.0;
        }
        debug_assert_eq!(top1, values.top1, "the head's count and the logits agree");
    }
    engine.end_evaluation();
    engine.comm().all_reduce_sum_f64(&mut sums)?;
    let names = set.loader.dataset().classes();
    let per_class =
        (0..classes).map(|c| (names[c].clone(), sums[2 * c] as u64, sums[2 * c + 1] as u64)).collect::<Vec<_>>();
    Ok(Evaluation {
        samples: samples as u64,
        top1: per_class.iter().map(|c| c.1).sum(),
        top5: sums[2 * classes] as u64,
        loss: sums[2 * classes + 1] / samples as f64,
        others: others.into_iter().zip(sums[2 * classes + 2..].iter().map(|&n| n as u64)).collect(),
        per_class,
    })
}

/// The class of the largest logit; of equal ones the first.
fn first(logits: &[f64]) -> usize {
    (1..logits.len()).fold(0, |best, k| if logits[k] > logits[best] { k } else { best })
}
