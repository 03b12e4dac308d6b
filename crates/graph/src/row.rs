//! Losses over rows of logits: what is measured, against what, which rows count. One table-driven kernel runs them all.

use crate::op::{Divisor, Weight};

/// Which side of a loss receives a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Student,
    Target,
}

/// Where the target distribution q of a row comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// label i32 [n]: `on` at the label, `off` elsewhere (1 and 0 when hard).
    Label { on: f64, off: f64 },
    /// label i32 [n], another label i32 [n], λ []: λ on the first, 1 − λ on the second.
    MixedLabel,
    /// Rows of probabilities [n,k].
    Probabilities,
    /// softmax of logits [n,k] over the temperature.
    Logits,
}

/// What logits are divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperature {
    Fixed(f64),
    /// `scale` times the unbiased standard deviation of each row, of its own logits on either side; the row value is multiplied by
    /// the square of the target's (NormKD, chapter 7.4).
    Std {
        scale: f64,
    },
}

/// What is measured on a row of logits z; p = softmax(z/T). No T² for a fixed temperature: a method's formula shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowKind {
    /// −Σ q log p
    CrossEntropy { target: Target, temperature: f64 },
    /// Σ q (log q − log p)
    Kl { target: Target, temperature: Temperature },
    /// Logits t [n,k], label: KL between (q_y, 1 − q_y) and (p_y, 1 − p_y), q = softmax(t/T) (TCKD, chapter 7.3).
    TargetKl { temperature: Temperature },
    /// Logits t [n,k], label: KL between q and p renormalised over the other classes (NCKD).
    NonTargetKl { temperature: Temperature },
    /// Candidates i32 [n,m]: mean over them of (1 − p_c^q)/q (chapter 0.3).
    GeneralizedCrossEntropy { q: f64 },
    /// No target: Σ_k softplus(z_k) − z_class.
    BinaryCrossEntropy { class: usize },
    /// No target, no gradient: 1, so that the sum counts the rows that the mask keeps.
    Count,
}

impl RowKind {
    /// Cross-entropy with hard labels.
    pub const HARD: RowKind = RowKind::CrossEntropy { target: Target::Label { on: 1.0, off: 0.0 }, temperature: 1.0 };

    /// Operands after the logits: the target's, before those of the mask.
    pub fn targets(self) -> usize {
        match self {
            RowKind::CrossEntropy { target, .. } | RowKind::Kl { target, .. } => match target {
                Target::MixedLabel => 3,
                Target::Label { .. } | Target::Probabilities | Target::Logits => 1,
            },
            RowKind::TargetKl { .. } | RowKind::NonTargetKl { .. } => 2,
            RowKind::GeneralizedCrossEntropy { .. } => 1,
            RowKind::BinaryCrossEntropy { .. } | RowKind::Count => 0,
        }
    }

    /// Whether the target takes a gradient: the other side of a KL between logits over a fixed temperature.
    pub fn has_target_gradient(self) -> bool {
        matches!(self, RowKind::Kl { target: Target::Logits, temperature: Temperature::Fixed(_) })
    }
}

/// Which rows of a term count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowMask {
    All,
    /// Rows where max softmax(m) ≥ threshold, m being the mask's logits.
    Confident {
        threshold: f64,
    },
    /// Rows where softmax(m)[label] compares to softmax(other)[label] as the rule says; inputs m, other, label.
    LabelProb {
        rule: MaskRule,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskRule {
    Greater,
    GreaterOrEqual,
}

impl RowMask {
    /// Values that the mask reads, after those of the kind.
    pub fn inputs(self) -> usize {
        match self {
            RowMask::All => 0,
            RowMask::Confident { .. } => 1,
            RowMask::LabelProb { .. } => 3,
        }
    }
}

/// One row loss: Σ over counted rows / divisor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowTerm {
    pub kind: RowKind,
    pub mask: RowMask,
    pub divisor: Divisor,
}

impl RowTerm {
    /// Operands: logits, the target's, the mask's.
    pub fn operands(&self) -> usize {
        1 + self.kind.targets() + self.mask.inputs()
    }
}

/// Rows `start..start + rows` of an input of a fused row loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowView {
    pub input: usize,
    pub start: usize,
}

/// One line of a fused row loss: the term, its operands, and its part in the gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct RowTableTerm {
    pub term: RowTerm,
    pub rows: usize,
    /// Operands in the order of `Op::RowLoss`: logits, target's, mask's.
    pub views: Vec<RowView>,
    /// Weight of the gradient, per side; a side without one is detached.
    pub student_grad: Option<Weight>,
    pub target_grad: Option<Weight>,
}

/// All row losses of a step that share their rows: one kernel. Outputs: a value per term, then a gradient for
/// each input listed in `grads`.
#[derive(Clone, Debug, PartialEq)]
pub struct RowTable {
    pub terms: Vec<RowTableTerm>,
    /// Inputs that get a gradient of their own shape.
    pub grads: Vec<usize>,
}
