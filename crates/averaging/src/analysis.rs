//! Everything the chapter asks to log of a sequence of probes (6.6, diagnostics).

use crate::error::check_labels;
use crate::linear::{LinearModel, damping, logit_correlation, one_hot, ridge, spectrum, top_two, two_hot};
use crate::measure::{Fit, Labels, Teaching, fit, teaching};
use crate::{AveragingError, Correlations, Matrix, correlations};
use data::{ClassMap, clusters};
use serde::Serialize;

/// What a probe learned from. A teacher is the place of an earlier probe in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The given labels: round 0.
    Given,
    /// A teacher's probabilities: a further round.
    Soft { teacher: usize },
    /// A teacher's two likeliest classes.
    Top { teacher: usize },
}

/// A trained probe.
#[derive(Clone, Debug)]
pub struct Probe {
    pub name: String,
    pub role: Role,
    /// [classes,d]
    pub weights: Matrix,
}

/// Data that the probes saw.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// [n,d], and of the test samples.
    pub features: &'a Matrix,
    pub labels: Labels<'a>,
    pub test_features: &'a Matrix,
    pub test_labels: &'a [u32],
    pub classes: usize,
    /// λ of the probes' optimizer.
    pub weight_decay: f64,
    /// Clusters of classes are cut at this share of the largest merge height.
    pub cut: f64,
}

/// What one probe came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub name: String,
    pub role: Role,
    pub test_accuracy: f64,
    pub train: Fit,
    /// What its teacher's two likeliest classes say; none for round 0.
    pub teacher: Option<Teaching>,
    /// Test accuracy of the closed form with the same targets.
    pub predicted_test_accuracy: f64,
    /// Correlation of the closed form's and the probe's logits of training samples.
    pub predicted_correlation: f64,
}

/// All measurements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Analysis {
    pub samples: usize,
    pub classes: usize,
    /// Share of training samples whose given label is wrong.
    pub noise: f64,
    /// S₀ = K N λ
    pub ridge: f64,
    /// Eigenvalues of ΦΦᵀ, largest first, and what one round leaves of each.
    pub spectrum: Vec<f64>,
    pub damping: Vec<f64>,
    /// Cluster of each class, and mean correlations under it.
    pub clusters: Vec<usize>,
    pub correlations: Correlations,
    /// Mean correlation of each pair of classes, row by row.
    pub class_map: Vec<Vec<f64>>,
    pub probes: Vec<Measured>,
    pub warnings: Vec<String>,
}

/// Measures probes in the order of training. Errors if sizes disagree, a label is no class or a number is not finite.
pub fn analyse(record: Record<'_>, probes: &[Probe]) -> Result<Analysis, AveragingError> {
    let Record { features, labels, classes, weight_decay, .. } = record;
    check_labels("true labels", labels.truth, features.nrows(), classes)?;
    check_labels("given labels", labels.given, features.nrows(), classes)?;
    check_labels("test labels", record.test_labels, record.test_features.nrows(), classes)?;
    let rows: Vec<Vec<f32>> = features.row_iter().map(|row| row.iter().map(|&x| x as f32).collect()).collect();
    let map = ClassMap::new(|i| &rows[i], labels.truth, classes);
    let clusters = clusters(&map, record.cut);
    let mut state = State { record, models: Vec::new(), logits: Vec::new(), warnings: Vec::new() };
    let measured = probes.iter().map(|probe| state.measure(probe)).collect::<Result<Vec<_>, _>>()?;
    let (spectrum, ridge) = (spectrum(features), ridge(classes, features.nrows(), weight_decay));
    let wrong = labels.given.iter().zip(labels.truth).filter(|(given, truth)| given != truth).count();
    Ok(Analysis {
        samples: features.nrows(),
        classes,
        noise: wrong as f64 / features.nrows().max(1) as f64,
        ridge,
        damping: spectrum.iter().map(|&g| damping(g, ridge, 1)).collect(),
        spectrum,
        correlations: correlations(&map, &clusters),
        clusters,
        class_map: (0..classes).map(|i| (0..classes).map(|j| map.get(i, j)).collect()).collect(),
        probes: measured,
        warnings: state.warnings,
    })
}

/// What earlier probes leave for their students.
struct State<'a> {
    record: Record<'a>,
    /// The closed form of each probe.
    models: Vec<LinearModel>,
    /// Each probe's logits of training samples.
    logits: Vec<Matrix>,
    warnings: Vec<String>,
}

impl State<'_> {
    fn measure(&mut self, probe: &Probe) -> Result<Measured, AveragingError> {
        let Record { features, labels, test_features, test_labels, classes, .. } = self.record;
        if probe.weights.shape() != (classes, features.ncols()) {
            let expected = classes * features.ncols();
            return Err(AveragingError::Size { what: "weights of a probe", expected, got: probe.weights.len() });
        }
        let logits = features * probe.weights.transpose();
        let model = self.closed_form(probe.role)?;
        let teacher = match probe.role {
            Role::Given => None,
            Role::Soft { teacher } | Role::Top { teacher } => Some(teaching(&self.logits[teacher], labels)?),
        };
        self.warn(probe, teacher.as_ref());
        let measured = Measured {
            name: probe.name.clone(),
            role: probe.role,
            test_accuracy: accuracy(&(test_features * probe.weights.transpose()), test_labels)?,
            train: fit(&logits, labels)?,
            teacher,
            predicted_test_accuracy: accuracy(&model.outputs(test_features), test_labels)?,
            predicted_correlation: logit_correlation(&model.outputs(features), &logits)?,
        };
        self.models.push(model);
        self.logits.push(logits);
        Ok(measured)
    }

    fn closed_form(&self, role: Role) -> Result<LinearModel, AveragingError> {
        let Record { features, labels, classes, weight_decay, .. } = self.record;
        let earlier = |teacher: usize| {
            let got = self.models.len();
            self.models.get(teacher).ok_or(AveragingError::Size { what: "earlier probes", expected: teacher + 1, got })
        };
        match role {
            Role::Given => LinearModel::new(features, &one_hot(labels.given, classes)?, weight_decay),
            Role::Soft { teacher } => {
                let mut model = earlier(teacher)?.clone();
                model.advance();
                Ok(model)
            }
            Role::Top { teacher } => {
                earlier(teacher)?;
                let targets = two_hot(&top_two(&self.logits[teacher])?, classes);
                LinearModel::new(features, &targets, weight_decay)
            }
        }
    }

    fn warn(&mut self, probe: &Probe, teacher: Option<&Teaching>) {
        if let (Role::Top { .. }, Some(teaching)) = (probe.role, teacher)
            && teaching.identical_pairs > 0.0
        {
            self.warnings.push(format!(
                "{}: in {:.1} % of the pairs of classes both mostly have the same two candidates; the student tells such \
                 classes apart only by what it starts from",
                probe.name,
                100.0 * teaching.identical_pairs
            ));
        }
    }
}

/// Share of rows whose largest logit, of equal ones the first, is at the label.
fn accuracy(logits: &Matrix, labels: &[u32]) -> Result<f64, AveragingError> {
    let right = top_two(logits)?.iter().zip(labels).filter(|(pair, label)| pair[0] == **label).count();
    Ok(right as f64 / labels.len().max(1) as f64)
}
