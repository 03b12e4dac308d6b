//! Features of unit norm with one correlation inside classes and one across: everything in closed form (chapter 6.6).

use crate::Matrix;
use crate::error::{AveragingError, check_labels};
use crate::linear::{damping, ridge};

/// K classes of n samples each; correlation c inside a class, d across classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    pub classes: usize,
    pub per_class: usize,
    /// c
    pub within: f64,
    /// d
    pub across: f64,
}

impl Block {
    /// N = K n.
    pub fn samples(&self) -> usize {
        self.classes * self.per_class
    }

    /// G, [N,N], samples sorted by class; 1 on the diagonal.
    pub fn gram(&self) -> Matrix {
        let same = |i: usize, j: usize| i / self.per_class == j / self.per_class;
        let entry = |i, j| {
            if i == j {
                1.0
            } else if same(i, j) {
                self.within
            } else {
                self.across
            }
        };
        Matrix::from_fn(self.samples(), self.samples(), entry)
    }

    /// Eigenvalues of G with their multiplicities: what differs inside a class, between classes, and the mean of all.
    pub fn eigenvalues(&self) -> [(f64, usize); 3] {
        let (k, n) = (self.classes as f64, self.per_class as f64);
        let inside = 1.0 - self.within;
        let between = inside + n * (self.within - self.across);
        let mean = between + n * k * self.across;
        [(inside, self.samples() - self.classes), (between, self.classes - 1), (mean, 1)]
    }

    /// p, q, r: what one round leaves of each eigenvalue's components.
    pub fn damping(&self, weight_decay: f64) -> [f64; 3] {
        let ridge = ridge(self.classes, self.samples(), weight_decay);
        self.eigenvalues().map(|(g, _)| damping(g, ridge, 1))
    }

    /// Y_t, [N,K]: 1/K + pᵗ (y − class mean) + qᵗ (class mean − mean) + rᵗ (mean − 1/K), means over given labels of a sample's true class.
    ///
    /// Samples in any order; errors if labels are not N or no class.
    pub fn closed_form(
        &self,
        given: &[u32],
        truth: &[u32],
        weight_decay: f64,
        rounds: u32,
    ) -> Result<Matrix, AveragingError> {
        check_labels("true labels", truth, self.samples(), self.classes)?;
        let shares = label_shares(given, truth, self.classes)?;
        let [p, q, r] = self.damping(weight_decay).map(|x| x.powi(rounds as i32));
        let even = 1.0 / self.classes as f64;
        let means: Vec<f64> = (0..self.classes).map(|k| shares.column(k).mean()).collect();
        Ok(Matrix::from_fn(self.samples(), self.classes, |i, k| {
            let (class, label) = (shares[(truth[i] as usize, k)], f64::from(u8::from(given[i] as usize == k)));
            even + p * (label - class) + q * (class - means[k]) + r * (means[k] - even)
        }))
    }

    /// Rounds after which samples of true class k with given label j ≠ k are right, [K,K]: ln(1 + 1/Δ) / ln(q/p) with
    /// Δ = C[k,k] − C[k,j] of the label shares C; infinite where Δ ≤ 0, and 0 on the diagonal.
    pub fn rounds_to_repair(&self, shares: &Matrix, weight_decay: f64) -> Matrix {
        let [p, q, _] = self.damping(weight_decay);
        Matrix::from_fn(self.classes, self.classes, |k, j| {
            let delta = shares[(k, k)] - shares[(k, j)];
            match () {
                () if k == j => 0.0,
                () if delta <= 0.0 => f64::INFINITY,
                () => (1.0 + 1.0 / delta).ln() / (q / p).ln(),
            }
        })
    }
}

/// C, [K,K]: of the samples whose true class is the row, the share that was given the column. A class without samples has zeros.
pub fn label_shares(given: &[u32], truth: &[u32], classes: usize) -> Result<Matrix, AveragingError> {
    check_labels("given labels", given, truth.len(), classes)?;
    check_labels("true labels", truth, given.len(), classes)?;
    let mut counts = Matrix::zeros(classes, classes);
    given.iter().zip(truth).for_each(|(&j, &k)| counts[(k as usize, j as usize)] += 1.0);
    for mut row in counts.row_iter_mut() {
        let sum = row.sum();
        row /= sum.max(1.0);
    }
    Ok(counts)
}

/// Classes in groups of m: correlation c inside a class, d inside a group, e outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Superclasses {
    /// K, a multiple of `group`.
    pub classes: usize,
    /// m
    pub group: usize,
    /// n
    pub per_class: usize,
    pub within: f64,
    pub in_group: f64,
    pub across: f64,
}

impl Superclasses {
    /// G, [Kn,Kn], samples sorted by class, classes by group.
    pub fn gram(&self) -> Matrix {
        let (n, m) = (self.per_class, self.group * self.per_class);
        let entry = |i: usize, j: usize| match () {
            () if i == j => 1.0,
            () if i / n == j / n => self.within,
            () if i / m == j / m => self.in_group,
            () => self.across,
        };
        Matrix::from_fn(self.classes * n, self.classes * n, entry)
    }

    /// Eigenvalues of G with their multiplicities: inside classes, between classes of a group, between groups, and the mean.
    pub fn eigenvalues(&self) -> [(f64, usize); 4] {
        let (n, m, k) = (self.per_class as f64, self.group as f64, self.classes as f64);
        let groups = self.classes / self.group;
        let inside = 1.0 - self.within;
        let classes = inside + n * (self.within - self.in_group);
        let between = classes + n * m * (self.in_group - self.across);
        let all = between + n * k * self.across;
        let samples = self.classes * self.per_class;
        [(inside, samples - self.classes), (classes, self.classes - groups), (between, groups - 1), (all, 1)]
    }
}
