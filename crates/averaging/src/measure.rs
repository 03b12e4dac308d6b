//! What a probe and a teacher say of training samples, split into those with a right and those with a wrong given label (chapter 6.6).

use crate::Matrix;
use crate::error::{AveragingError, check_labels};
use crate::linear::top_two;
use serde::Serialize;

/// Given and true labels of the training samples.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    pub given: &'a [u32],
    pub truth: &'a [u32],
}

/// A mean over the samples whose given label is right, and over the others; none where there are no such samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parts {
    pub clean: Option<f64>,
    pub noisy: Option<f64>,
}

impl Parts {
    fn of(labels: Labels<'_>, value: impl Fn(usize) -> f64) -> Parts {
        let mean = |clean: bool| {
            let part: Vec<f64> = (0..labels.truth.len())
                .filter(|&i| (labels.given[i] == labels.truth[i]) == clean)
                .map(&value)
                .collect();
            (!part.is_empty()).then(|| part.iter().sum::<f64>() / part.len() as f64)
        };
        Parts { clean: mean(true), noisy: mean(false) }
    }
}

/// How a probe fits training samples. Shares and probabilities, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// Accuracy against true labels.
    pub accuracy: Parts,
    /// Accuracy against given labels, all samples.
    pub accuracy_given: f64,
    /// Mean probability of the true class.
    pub confidence: Parts,
    /// Mean probability of the given label of samples where it is wrong.
    pub confidence_given: Option<f64>,
}

/// What a teacher's two likeliest classes say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Teaching {
    /// Share of samples whose true class is one of the two.
    pub truth_in_top2: Parts,
    /// Entropy in nats of the less likely of the two over the samples of each true class; 0: all have the same one.
    pub second_entropy: Vec<f64>,
    /// Share of pairs of true classes whose samples mostly have the same two candidates: such classes cannot be told apart by them.
    pub identical_pairs: f64,
}

/// Probabilities of each row of logits.
pub fn softmax_rows(logits: &Matrix) -> Matrix {
    let mut out = logits.clone();
    for mut row in out.row_iter_mut() {
        let max = row.max();
        row.apply(|z| *z = (*z - max).exp());
        let sum = row.sum();
        row /= sum;
    }
    out
}

/// Measures logits [n,classes] of training samples. Errors if sizes disagree or a logit is not finite.
pub fn fit(logits: &Matrix, labels: Labels<'_>) -> Result<Fit, AveragingError> {
    check(logits, labels)?;
    let first: Vec<u32> = top_two(logits)?.iter().map(|pair| pair[0]).collect();
    let p = softmax_rows(logits);
    let is = |right: bool| f64::from(u8::from(right));
    let given = (0..first.len()).filter(|&i| first[i] == labels.given[i]).count();
    Ok(Fit {
        accuracy: Parts::of(labels, |i| is(first[i] == labels.truth[i])),
        accuracy_given: given as f64 / first.len().max(1) as f64,
        confidence: Parts::of(labels, |i| p[(i, labels.truth[i] as usize)]),
        confidence_given: Parts::of(labels, |i| p[(i, labels.given[i] as usize)]).noisy,
    })
}

/// Measures a teacher's logits [n,classes] of training samples. Errors as `fit`.
pub fn teaching(logits: &Matrix, labels: Labels<'_>) -> Result<Teaching, AveragingError> {
    check(logits, labels)?;
    let (pairs, classes) = (top_two(logits)?, logits.ncols());
    let holds = |i: usize| f64::from(u8::from(pairs[i].contains(&labels.truth[i])));
    let mut seconds = vec![vec![0_usize; classes]; classes];
    let mut sets = vec![std::collections::BTreeMap::<[u32; 2], usize>::new(); classes];
    for (pair, &class) in pairs.iter().zip(labels.truth) {
        seconds[class as usize][pair[1] as usize] += 1;
        let set = [pair[0].min(pair[1]), pair[0].max(pair[1])];
        *sets[class as usize].entry(set).or_default() += 1;
    }
    let entropy = |counts: &Vec<usize>| {
        let all = counts.iter().sum::<usize>() as f64;
        counts.iter().filter(|&&n| n > 0).map(|&n| -(n as f64 / all) * (n as f64 / all).ln()).sum()
    };
    let usual: Vec<_> = sets.iter().map(|s| s.iter().max_by_key(|(_, count)| **count).map(|(set, _)| *set)).collect();
    let all = (0..classes).flat_map(|i| (0..i).map(move |j| (i, j)));
    let same = all.filter(|&(i, j)| usual[i].is_some() && usual[i] == usual[j]).count();
    Ok(Teaching {
        truth_in_top2: Parts::of(labels, holds),
        second_entropy: seconds.iter().map(entropy).collect(),
        identical_pairs: same as f64 / (classes * (classes - 1) / 2) as f64,
    })
}

fn check(logits: &Matrix, labels: Labels<'_>) -> Result<(), AveragingError> {
    check_labels("given labels", labels.given, logits.nrows(), logits.ncols())?;
    check_labels("true labels", labels.truth, logits.nrows(), logits.ncols())
}
