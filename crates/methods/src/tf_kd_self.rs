//! Teacher-free distillation from a copy of the network that was trained before. Yuan, Tay, Li, Wang, Feng 2020,
//! arXiv:1909.11723, section 4.1.
//!
//! loss = (1 − α) CE(z, y) + α m T² mean over all elements of q (log q − log p) = (1 − α) CE + (α m / K) T² KL(t/T ‖ z/T)

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, Setting, Spec, Step};

/// Settings of self-training; per network in methods/7-comparators 7.7.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TfKdSelf {
    /// α. Default 0.95, of ResNet-18.
    pub alpha: f64,
    /// T. Default 6.
    pub temperature: f64,
    /// m. Default 50.
    pub multiplier: f64,
}

impl Default for TfKdSelf {
    fn default() -> TfKdSelf {
        TfKdSelf { alpha: 0.95, temperature: 6.0, multiplier: 50.0 }
    }
}

impl Method for TfKdSelf {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::probability("alpha", self.alpha)?;
        check::temperature(self.temperature)?;
        check::weight("multiplier", self.multiplier)?;
        Ok(Spec { teachers: 1, ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let teacher = step.teacher(step.image()).logits.detach();
        let (student, label) = (step.student(step.image()).logits, step.label());
        let per_row = self.alpha * self.multiplier / step.setting.classes as f64;
        Losses::new()
            .term("ce", 1.0 - self.alpha, student.cross_entropy(label))
            .term("kd", per_row * self.temperature.powi(2), student.kl(teacher, self.temperature))
            .logits(student, label)
            .output("teacher.logits", teacher)
    }
}
