//! The one error type of the crate.

/// Numbers that the theory has nothing to say about.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AveragingError {
    /// Two inputs disagree in size.
    #[error("{what}: expected {expected}, got {got}")]
    Size { what: &'static str, expected: usize, got: usize },
    /// A label is no class.
    #[error("label {label} of sample {sample}: expected below {classes}, the number of classes")]
    Label { sample: usize, label: u32, classes: usize },
    /// A number that must be positive and finite is not.
    #[error("{what}: expected a finite number above 0, got {got}; the fixed point exists only with weight decay")]
    NotPositive { what: &'static str, got: f64 },
    /// The solver ran out of steps.
    #[error(
        "the fixed point was not reached: residual {residual:.1e} after {steps} steps, expected {expected:.1e}; allow more steps"
    )]
    NotConverged { residual: f64, steps: usize, expected: f64 },
    /// A feature or weight is NaN or infinite.
    #[error("{what}: value {index} is not finite; train the probe again or make the features anew")]
    NotFinite { what: &'static str, index: usize },
}

/// Checks labels against a number of classes and of samples.
pub(crate) fn check_labels(
    what: &'static str,
    labels: &[u32],
    samples: usize,
    classes: usize,
) -> Result<(), AveragingError> {
    if labels.len() != samples {
        return Err(AveragingError::Size { what, expected: samples, got: labels.len() });
    }
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(sample) => Err(AveragingError::Label { sample, label: labels[sample], classes }),
        None => Ok(()),
    }
}

pub(crate) fn check_positive(what: &'static str, got: f64) -> Result<(), AveragingError> {
    if got > 0.0 && got.is_finite() { Ok(()) } else { Err(AveragingError::NotPositive { what, got }) }
}
