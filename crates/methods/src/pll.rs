//! Self-distillation as label averaging, and its one-round substitute with partial labels. Jeong, Chung 2025, arXiv:2402.10482.
//!
//! The teacher is the probe of the round before, frozen; given labels are not used.
//! A plain round (`targets = "soft"`): loss = CE(z, softmax(teacher)). The student with partial labels (`targets = "top"`):
//! loss = mean over the teacher's two likeliest classes c of (1 − p_c^q)/q, p = softmax(z), started from the teacher's weights.
//!
//! Round 0 is cross-entropy on the given labels: the method `ce`. The authors train a linear probe on frozen features; with a whole
//! network and augmented images the same loss is our extension.

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, RowKind, RowMask, Setting, Spec, Step, Target};

/// Settings of a round.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pll {
    /// Default `top`.
    pub targets: Targets,
    /// Candidates of `top`. Default 2.
    pub candidates: usize,
    /// q of `top`: 0 tends to cross-entropy with equal weights, 1 counts only the candidates' total. Default 0.7.
    pub q: f64,
}

/// What the student learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Targets {
    /// The teacher's probabilities.
    Soft,
    /// The teacher's likeliest classes, equally; of equal logits the lower class.
    Top,
}

impl Default for Pll {
    fn default() -> Pll {
        Pll { targets: Targets::Top, candidates: 2, q: 0.7 }
    }
}

impl Method for Pll {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::probability("q", self.q)?;
        let (k, classes) = (self.candidates, setting.classes);
        if self.targets == Targets::Top && self.q == 0.0 {
            return Err("method.q divides, expected more than 0 and at most 1, got 0; 0.7 is the default".into());
        }
        if self.targets == Targets::Top && !(1..classes).contains(&k) {
            return Err(format!(
                "method.candidates: expected 1 to {} for {classes} classes, got {k}; candidates that are all classes say nothing",
                classes - 1
            ));
        }
        Ok(Spec { teachers: 1, ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let teacher = step.teacher(step.image()).logits.detach();
        let (logits, label) = (step.student(step.image()).logits, step.label());
        let (name, kind, target) = match self.targets {
            Targets::Soft => ("ce", RowKind::CrossEntropy { target: Target::Logits, temperature: 1.0 }, teacher),
            Targets::Top => ("gce", RowKind::GeneralizedCrossEntropy { q: self.q }, teacher.top_k(self.candidates)),
        };
        Losses::new()
            .term(name, 1.0, logits.row_loss(kind, &[target], RowMask::All, &[]))
            .logits(logits, label)
            .output("teacher.logits", teacher)
    }
}
