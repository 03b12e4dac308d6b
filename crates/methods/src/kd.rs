//! Knowledge distillation from a frozen teacher. Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
//!
//! loss = ce_weight CE(student, label) + kd_weight T² KL(teacher/T ‖ student/T)

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, Setting, Spec, Step};

/// Settings of distillation from a teacher.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kd {
    /// T, softens both distributions. Default 4, of the CIFAR-100 benches; theirs for ImageNet is 1.
    pub temperature: f64,
    /// Default 0.1 (ImageNet: 0.5; SimKD's bench: 1).
    pub ce_weight: f64,
    /// Default 0.9 (ImageNet: 0.5; SimKD's bench: 1).
    pub kd_weight: f64,
}

impl Default for Kd {
    fn default() -> Kd {
        Kd { temperature: 4.0, ce_weight: 0.1, kd_weight: 0.9 }
    }
}

impl Method for Kd {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::temperature(self.temperature)?;
        check::weight("ce_weight", self.ce_weight)?;
        check::weight("kd_weight", self.kd_weight)?;
        Ok(Spec { teachers: 1, ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        // Teacher first: its activations are dead before the student's begin to live.
        let teacher = step.teacher(step.image()).logits.detach();
        let (student, label) = (step.student(step.image()).logits, step.label());
        Losses::new()
            .term("ce", self.ce_weight, student.cross_entropy(label))
            .term("kd", self.kd_weight * self.temperature.powi(2), student.kl(teacher, self.temperature))
            .logits(student, label)
            .output("teacher.logits", teacher)
    }
}
