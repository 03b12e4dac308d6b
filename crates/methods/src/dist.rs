//! DIST: correlations instead of divergences. Huang, You, Wang, Qian, Xu 2022, arXiv:2205.10536.
//!
//! With a = softmax(z), b = softmax(t):
//! loss = CE(z, y) + w [β (1 − mean over images ρ(a_i, b_i)) + γ (1 − mean over classes ρ(a_·k, b_·k))], ρ Pearson's correlation
//!
//! The class term is over a micro-batch, as the authors' is over a rank's batch.

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Axis, Losses, Method, Setting, Spec, Step};

/// Settings of distillation by correlation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dist {
    /// w. Default 1.
    pub kd_weight: f64,
    /// β, between classes of an image. Default 1.
    pub beta: f64,
    /// γ, between images of a class. Default 1.
    pub gamma: f64,
}

impl Default for Dist {
    fn default() -> Dist {
        Dist { kd_weight: 1.0, beta: 1.0, gamma: 1.0 }
    }
}

impl Method for Dist {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::weight("kd_weight", self.kd_weight)?;
        check::weight("beta", self.beta)?;
        check::weight("gamma", self.gamma)?;
        Ok(Spec { teachers: 1, ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let teacher = step.teacher(step.image()).logits.detach();
        let (student, label) = (step.student(step.image()).logits, step.label());
        Losses::new()
            .term("ce", 1.0, student.cross_entropy(label))
            .term("inter", self.kd_weight * self.beta, student.decorrelation(teacher, Axis::Batch))
            .term("intra", self.kd_weight * self.gamma, student.decorrelation(teacher, Axis::Channel))
            .logits(student, label)
            .output("teacher.logits", teacher)
    }
}
