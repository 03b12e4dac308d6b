//! Wrong training labels with a known law (chapter 6.3): a class's labels are drawn from its row of a transition matrix.
//!
//! Bit-compatible with NumPy's legacy generator: for class 0, 1, … and its samples in index order, one 53-bit uniform u of MT19937, and
//! the label is the number of entries of the row's cumulative sums, divided by the last of them, that are at most u.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::class_map::{ClassMap, clusters};
use crate::dataset::{Dataset, Meta, RawImage};
use crate::error::DataError;

/// Clusters of classes are cut at this share of the largest merge height.
pub const CLUSTER_CUT: f64 = 0.8;

/// The recipe's `[data.noise]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    pub kind: NoiseKind,
    /// η: the probability that a label is replaced, 0 to 1.
    pub rate: f64,
    /// Keys the draws; independent of the run's seed. Default 0.
    #[serde(default)]
    pub seed: u32,
}

/// Where wrong labels go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseKind {
    /// η/(K−1) to every other class.
    Sym,
    /// η/K to every other class, and another η/K to the next one.
    Asym,
    /// η/(m−1) to each of the m−1 other classes of the same cluster; a class that is alone keeps its labels.
    Cc,
}

/// C, [classes, classes]: the row of a true class holds the probabilities of its given labels. `clusters` as [`clusters`] gives them; only
/// `Cc` reads it.
pub fn transition(noise: Noise, classes: usize, clusters: &[usize]) -> Vec<Vec<f64>> {
    let (rate, k) = (noise.rate, classes as f64);
    let alike = |i: usize| clusters.iter().filter(|&&c| c == clusters[i]).count();
    let entry = |i: usize, j: usize| match noise.kind {
        _ if classes == 1 => 1.0,
        NoiseKind::Cc if alike(i) == 1 => f64::from(u8::from(i == j)),
        _ if i == j => 1.0 - rate,
        NoiseKind::Sym => rate / (k - 1.0),
        NoiseKind::Asym if j == (i + 1) % classes => 2.0 * rate / k,
        NoiseKind::Asym => rate / k,
        NoiseKind::Cc if clusters[i] == clusters[j] => rate / (alike(i) - 1) as f64,
        NoiseKind::Cc => 0.0,
    };
    (0..classes).map(|i| (0..classes).map(|j| entry(i, j)).collect()).collect()
}

/// Draws a given label for each true one.
pub fn draw_labels(truth: &[u32], transition: &[Vec<f64>], seed: u32) -> Vec<u32> {
    let mut generator = Mt19937::new(seed);
    let mut given = truth.to_vec();
    for (class, row) in transition.iter().enumerate() {
        let mut sums: Vec<f64> = row.to_vec();
        (1..sums.len()).for_each(|k| sums[k] += sums[k - 1]);
        let last = sums.last().copied().unwrap_or(1.0);
        sums.iter_mut().for_each(|s| *s /= last);
        for (label, _) in given.iter_mut().zip(truth).filter(|(_, t)| **t as usize == class) {
            let u = generator.f64();
            *label = sums.iter().filter(|&&s| s <= u).count().min(row.len() - 1) as u32;
        }
    }
    given
}

/// A training set whose labels were drawn anew; images are the inner set's.
pub struct NoisyLabels {
    inner: Box<dyn Dataset>,
    meta: Meta,
    truth: Arc<[u32]>,
    noise: Noise,
    clusters: Vec<usize>,
}

impl NoisyLabels {
    /// Draws labels. Errors: a rate outside 0 to 1, and `cc` for a set without feature vectors.
    pub fn new(inner: Box<dyn Dataset>, noise: Noise) -> Result<NoisyLabels, DataError> {
        if !(0.0..=1.0).contains(&noise.rate) {
            let what = format!("data.noise.rate: expected 0 to 1, got {}; 0.5 replaces half of the labels", noise.rate);
            return Err(DataError::Setting(what));
        }
        let classes = inner.classes().len();
        let clusters = match noise.kind {
            NoiseKind::Cc if inner.floats(0).is_none() => {
                return Err(DataError::Setting(format!(
                    "data.noise.kind: \"cc\" groups classes by their features, and {} holds images; make a set of features with \
                     `retort features` and use data.set = \"features\", or use \"sym\" or \"asym\"",
                    inner.name()
                )));
            }
            NoiseKind::Cc => {
                let row = |i| inner.floats(i).unwrap_or_default();
                clusters(&ClassMap::new(row, inner.labels(), classes), CLUSTER_CUT)
            }
            NoiseKind::Sym | NoiseKind::Asym => Vec::new(),
        };
        let labels = draw_labels(inner.labels(), &transition(noise, classes, &clusters), noise.seed);
        let truth = inner.labels().into();
        let meta = Meta { labels, ..inner.meta().clone() };
        Ok(NoisyLabels { inner, meta, truth, noise, clusters })
    }

    /// The labels before the noise.
    pub fn truth(&self) -> Arc<[u32]> {
        self.truth.clone()
    }

    /// What happened, in words: the realised rate, and the classes that `cc` left clean.
    pub fn describe(&self) -> String {
        let wrong = self.meta.labels.iter().zip(self.truth.iter()).filter(|(given, truth)| given != truth).count();
        let share = 100.0 * wrong as f64 / self.truth.len() as f64;
        let Noise { kind, rate, seed } = self.noise;
        let kind = format!("{kind:?}").to_lowercase();
        let mut text = format!(
            "noise: {kind}, rate {rate}, seed {seed}: {wrong} of {} training labels are wrong ({share:.2} %)",
            self.truth.len()
        );
        let alone = |k: &usize| self.clusters.iter().filter(|&&c| c == self.clusters[*k]).count() == 1;
        let clean: Vec<&str> = (0..self.clusters.len()).filter(alone).map(|k| self.meta.classes[k].as_str()).collect();
        if !clean.is_empty() {
            text.push_str(&format!(
                "; {} classes are alone in their cluster and stay clean: {}",
                clean.len(),
                clean.join(", ")
            ));
        }
        text
    }
}

impl Dataset for NoisyLabels {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        self.inner.read(index, image)
    }

    fn floats(&self, index: usize) -> Option<&[f32]> {
        self.inner.floats(index)
    }

    fn place(&self, index: usize) -> String {
        self.inner.place(index)
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>, DataError> {
        self.inner.encoded(index)
    }
}

/// Mersenne Twister of Matsumoto and Nishimura 1998, seeded by their `init_genrand`.
struct Mt19937 {
    state: [u32; 624],
    at: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Mt19937 {
        let mut state = [seed; 624];
        for i in 1..624 {
            let before = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Mt19937 { state, at: 624 }
    }

    fn u32(&mut self) -> u32 {
        if self.at == 624 {
            for i in 0..624 {
                let bits = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let twist = if bits & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (bits >> 1) ^ twist;
            }
            self.at = 0;
        }
        let mut word = self.state[self.at];
        self.at += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// Uniform in [0, 1) on a grid of 2⁻⁵³: 27 and 26 bits of two words.
    fn f64(&mut self) -> f64 {
        let (high, low) = (self.u32() >> 5, self.u32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }
}
