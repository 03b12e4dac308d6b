//! The linearised model: closed form of every round by d×d algebra (chapter 6.6).
//!
//! Cov = Φ Φᵀ (here `features`ᵀ `features`); W_t = K Ȳ_{t−1} Φᵀ (Cov + S₀ I)⁻¹; Ȳ_t = W_t Φ / K, where Ȳ = Y − 1/K. In rows:
//! B₁ = (Cov + S₀ I)⁻¹ Φ Ȳ₀ᵀ, B_{t+1} = (Cov + S₀ I)⁻¹ Cov B_t, and any sample φ, of the training set or not, has Y_t = 1/K + φᵀ B_t.

use nalgebra::Dyn;
use nalgebra::linalg::Cholesky;

use crate::Matrix;
use crate::error::{AveragingError, check_labels, check_positive};

/// S₀ = K N λ.
pub fn ridge(classes: usize, samples: usize, weight_decay: f64) -> f64 {
    classes as f64 * samples as f64 * weight_decay
}

/// [n,classes]: 1 at the label. Errors if a label is no class.
pub fn one_hot(labels: &[u32], classes: usize) -> Result<Matrix, AveragingError> {
    check_labels("labels", labels, labels.len(), classes)?;
    Ok(Matrix::from_fn(labels.len(), classes, |i, k| f64::from(u8::from(labels[i] as usize == k))))
}

/// The two largest logits of each row, the larger first; of equal ones the lower class. Errors if a logit is not finite.
pub fn top_two(logits: &Matrix) -> Result<Vec<[u32; 2]>, AveragingError> {
    if let Some(index) = logits.iter().position(|z| !z.is_finite()) {
        return Err(AveragingError::NotFinite { what: "logits", index });
    }
    if logits.ncols() < 2 {
        return Err(AveragingError::Size { what: "classes", expected: 2, got: logits.ncols() });
    }
    let best = |row: usize, but: Option<usize>| {
        let others = (0..logits.ncols()).filter(|&k| Some(k) != but);
        others.reduce(|best, k| if logits[(row, k)] > logits[(row, best)] { k } else { best }).unwrap_or_default()
    };
    Ok((0..logits.nrows())
        .map(|row| {
            let first = best(row, None);
            [first as u32, best(row, Some(first)) as u32]
        })
        .collect())
}

/// [n,classes]: one half at each of the two candidates.
pub fn two_hot(candidates: &[[u32; 2]], classes: usize) -> Matrix {
    let half = |i: usize, k: usize| candidates[i].iter().filter(|&&c| c as usize == k).count() as f64 / 2.0;
    Matrix::from_fn(candidates.len(), classes, half)
}

/// Eigenvalues of Φ Φᵀ, largest first: those of G = ΦᵀΦ that are not 0 by rank.
pub fn spectrum(features: &Matrix) -> Vec<f64> {
    let gram =
        if features.nrows() < features.ncols() { features * features.transpose() } else { features.tr_mul(features) };
    let mut values: Vec<f64> = gram.symmetric_eigenvalues().iter().map(|&g| g.max(0.0)).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// What is left after `rounds` of a component with eigenvalue `g`: (g / (g + S₀))^rounds.
pub fn damping(g: f64, ridge: f64, rounds: u32) -> f64 {
    (g / (g + ridge)).powi(rounds as i32)
}

/// The model at some round; round 1 is the teacher.
#[derive(Clone)]
pub struct LinearModel {
    /// [d,d]
    covariance: Matrix,
    shifted: Cholesky<f64, Dyn>,
    /// B_t, [d,classes]
    coefficients: Matrix,
}

impl LinearModel {
    /// Round 1 on `targets` [n,classes], whose rows sum to 1. Errors if sizes disagree or `weight_decay` is not above 0.
    pub fn new(features: &Matrix, targets: &Matrix, weight_decay: f64) -> Result<LinearModel, AveragingError> {
        check_positive("weight decay", weight_decay)?;
        let (samples, classes) = targets.shape();
        if features.nrows() != samples {
            return Err(AveragingError::Size { what: "rows of features", expected: samples, got: features.nrows() });
        }
        let covariance = features.tr_mul(features);
        let mut shifted = covariance.clone();
        (0..shifted.nrows()).for_each(|i| shifted[(i, i)] += ridge(classes, samples, weight_decay));
        let index = covariance.iter().position(|x| !x.is_finite()).unwrap_or_default();
        let shifted = shifted.cholesky().ok_or(AveragingError::NotFinite { what: "features", index })?;
        let centred = targets.add_scalar(-1.0 / classes as f64);
        let coefficients = shifted.solve(&features.tr_mul(&centred));
        Ok(LinearModel { covariance, shifted, coefficients })
    }

    /// The next round: this one's outputs are its targets.
    pub fn advance(&mut self) {
        self.coefficients = self.shifted.solve(&(&self.covariance * &self.coefficients));
    }

    /// W_t as a probe's weights, [classes,d].
    pub fn weights(&self) -> Matrix {
        self.coefficients.transpose() * self.coefficients.ncols() as f64
    }

    /// Y_t of samples [n,d], in training or not: [n,classes], rows sum to 1.
    pub fn outputs(&self, features: &Matrix) -> Matrix {
        (features * &self.coefficients).add_scalar(1.0 / self.coefficients.ncols() as f64)
    }
}

/// Pearson correlation of two sets of logits [n,classes]; each row is centred first, since a shift of a row changes no output.
pub fn logit_correlation(a: &Matrix, b: &Matrix) -> Result<f64, AveragingError> {
    if a.shape() != b.shape() {
        return Err(AveragingError::Size { what: "logits", expected: a.len(), got: b.len() });
    }
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.row_iter().zip(b.row_iter()) {
        let (mx, my) = (x.mean(), y.mean());
        for (x, y) in x.iter().zip(y.iter()) {
            let (x, y) = (x - mx, y - my);
            (ab, aa, bb) = (ab + x * y, aa + x * x, bb + y * y);
        }
    }
    Ok(if aa * bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 })
}
