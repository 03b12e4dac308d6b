//! Theory of repeated self-distillation as label averaging. Jeong, Chung 2025, arXiv:2402.10482; formulas as derived in chapter 6.6.
//!
//! A linear probe on fixed features Φ, trained against targets T with coupled weight decay λ, ends at outputs
//! Y = softmax((T − Y) ΦᵀΦ / (N λ)). With softmax(v) ≈ (1 + v)/K each round multiplies the labels by G (G + S₀ I)⁻¹,
//! G = ΦᵀΦ and S₀ = K N λ: what clusters share survives, what single samples say dies.
//!
//! Invariant: pure functions of numbers. Nothing here reads a file, trains a network or draws a random number.
//!
//! Layout everywhere: a sample is a row. Features [n,d], outputs and targets [n,classes], probe weights as a file has them, [classes,d].

mod analysis;
mod block;
mod correlation;
mod error;
mod fixed_point;
mod linear;
mod measure;
mod plot;

pub use analysis::{Analysis, Measured, Probe, Record, Role, analyse};
pub use block::{Block, Superclasses, label_shares};
pub use correlation::{Correlations, Spread, correlations};
pub use data::{ClassMap, clusters};
pub use error::AveragingError;
pub use fixed_point::{Limits, Objective, Solved, residual, solve};
pub use linear::{LinearModel, damping, logit_correlation, one_hot, ridge, spectrum, top_two, two_hot};
pub use measure::{Fit, Labels, Parts, Teaching, fit, softmax_rows, teaching};
pub use plot::svg;

/// Dense matrix, column-major in memory, addressed as (row, column).
pub type Matrix = nalgebra::DMatrix<f64>;
