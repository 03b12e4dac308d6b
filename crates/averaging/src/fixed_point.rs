//! The fixed point of one round with the true softmax, solved exactly (chapter 6.6).
//!
//! minimise (1/N) Σ loss(W φ_i) + (λ/2) |W|². With cross-entropy it is strongly convex, and stationarity reads
//! W = (T − Y) Φᵀ / (N λ), hence Y = softmax((T − Y) G / (N λ)). Accelerated gradient descent that restarts where its momentum points
//! uphill: with convexity λ and curvature |Cov|/(2N) + λ it needs about √(|Cov|/(2Nλ)) steps for each factor e. The loss over candidates
//! is not convex; the same steps then find the minimum next to their start.

use crate::Matrix;
use crate::error::{AveragingError, check_positive};
use crate::measure::softmax_rows;

/// What a round minimises.
#[derive(Clone, Copy, Debug)]
pub enum Objective<'a> {
    /// Cross-entropy against distributions [n,classes].
    CrossEntropy { targets: &'a Matrix },
    /// (1 − p_c^q)/q, mean over the two candidates of each sample.
    Partial { candidates: &'a [[u32; 2]], q: f64 },
}

/// When the solver stops.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest difference of a logit from what stationarity asks for.
    pub residual: f64,
    pub steps: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { residual: 1e-9, steps: 200_000 }
    }
}

/// A solution.
#[derive(Clone, Debug)]
pub struct Solved {
    /// [classes,d]
    pub weights: Matrix,
    /// As in `Limits`.
    pub residual: f64,
    pub steps: usize,
}

/// Solves a round from `start` [classes,d], or from zero. Errors if sizes disagree, λ is not above 0, or the limit of steps is passed.
pub fn solve(
    features: &Matrix,
    objective: Objective<'_>,
    weight_decay: f64,
    start: &Matrix,
    limits: Limits,
) -> Result<Solved, AveragingError> {
    check_positive("weight decay", weight_decay)?;
    let (samples, size) = features.shape();
    let rows = match objective {
        Objective::CrossEntropy { targets } => targets.nrows(),
        Objective::Partial { candidates, .. } => candidates.len(),
    };
    if rows != samples {
        return Err(AveragingError::Size { what: "targets", expected: samples, got: rows });
    }
    if start.ncols() != size {
        return Err(AveragingError::Size { what: "columns of the start", expected: size, got: start.ncols() });
    }
    // The largest row sum bounds the largest eigenvalue.
    let covariance = features.tr_mul(features);
    let bound = covariance.row_iter().map(|row| row.iter().map(|x| x.abs()).sum::<f64>()).fold(0.0, f64::max);
    let curvature = bound / (2.0 * samples as f64) + weight_decay;
    let ratio = (curvature / weight_decay).sqrt();
    let momentum = (ratio - 1.0) / (ratio + 1.0);
    let (mut now, mut ahead) = (start.clone(), start.clone());
    let mut residual = f64::INFINITY;
    for step in 0..limits.steps {
        let gradient = gradient(features, objective, weight_decay, &ahead);
        if step % 20 == 0 {
            residual = (features * gradient.transpose()).amax() / weight_decay;
            if residual <= limits.residual {
                return Ok(Solved { weights: ahead, residual, steps: step });
            }
        }
        let next = &ahead - &gradient / curvature;
        let moved = &next - &now;
        let uphill = gradient.dot(&moved) > 0.0;
        ahead = if uphill { next.clone() } else { &next + moved * momentum };
        now = next;
    }
    Err(AveragingError::NotConverged { residual, steps: limits.steps, expected: limits.residual })
}

/// Gradient of the objective with decay at weights [classes,d].
fn gradient(features: &Matrix, objective: Objective<'_>, weight_decay: f64, weights: &Matrix) -> Matrix {
    let mut slope = softmax_rows(&(features * weights.transpose()));
    match objective {
        Objective::CrossEntropy { targets } => slope -= targets,
        Objective::Partial { candidates, q } => {
            for (mut row, pair) in slope.row_iter_mut().zip(candidates) {
                let pulls = pair.map(|c| (c as usize, row[c as usize].powf(q) / 2.0));
                row *= pulls[0].1 + pulls[1].1;
                pulls.iter().for_each(|&(c, pull)| row[c] -= pull);
            }
        }
    }
    slope.tr_mul(features) / features.nrows() as f64 + weights * weight_decay
}

/// Largest |Y − softmax((T − Y) G / (N λ))| of weights [classes,d]: how far they are from the fixed point of cross-entropy.
pub fn residual(features: &Matrix, targets: &Matrix, weight_decay: f64, weights: &Matrix) -> f64 {
    let outputs = softmax_rows(&(features * weights.transpose()));
    let implied = (targets - &outputs).tr_mul(features) / (features.nrows() as f64 * weight_decay);
    (outputs - softmax_rows(&(features * implied.transpose()))).amax()
}
