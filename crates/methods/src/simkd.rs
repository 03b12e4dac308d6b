//! SimKD: the student's features are projected onto a frozen teacher's, and the teacher's classifier reads them. Chen et al.
//! 2022, arXiv:2203.14001.
//!
//! loss = β MSE(P(f_S), f_T); evaluation: W_T GAP(P(f_S)) + b_T. The student's own classifier gets a gradient of zero, so it decays.

use crate::check;
use crate::projector::{aligned, last_map, maps_fit, project};
use serde::{Deserialize, Serialize};
use spec::{Expr, Losses, Method, Setting, Spec, Step};

/// Settings of the reused classifier.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimKd {
    /// β. Default 1.
    pub mse_weight: f64,
    /// The projector's middle has 1/f of the teacher's channels. Default 2.
    pub projector_factor: usize,
}

impl Default for SimKd {
    fn default() -> SimKd {
        SimKd { mse_weight: 1.0, projector_factor: 2 }
    }
}

impl SimKd {
    /// Projected features of the student and what they are compared with.
    fn features<'g>(&self, step: &Step<'g>, student: Expr<'g>, teacher: Expr<'g>) -> (Expr<'g>, Expr<'g>) {
        let (student, teacher) = aligned(student, teacher);
        let channels = teacher.shape().dims()[3];
        (project(step, "projector", student, channels, self.projector_factor), teacher)
    }
}

impl Method for SimKd {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::weight("mse_weight", self.mse_weight)?;
        Ok(Spec { teachers: 1, ..Spec::default() })
    }

    fn fits<'g>(&self, step: &Step<'g>) -> Result<(), String> {
        maps_fit(step, 0, &step.student(step.image()), self.projector_factor)
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let teacher = step.teacher(step.image());
        let (student, label) = (step.student(step.image()), step.label());
        let (projected, target) = self.features(step, last_map(&student), last_map(&teacher).detach());
        let shared = step.teacher_classifier(0, projected.mean_hw());
        Losses::new()
            .term("mse", self.mse_weight, projected.mse(target))
            .term("ce", 0.0, student.logits.cross_entropy(label))
            .accuracy("top1", shared, label)
            .output("logits", shared)
            .output("teacher.logits", teacher.logits)
    }

    fn head<'g>(&self, step: &Step<'g>) -> Expr<'g> {
        let teacher = step.teacher(step.image());
        let student = step.student(step.image());
        let (projected, _) = self.features(step, last_map(&student), last_map(&teacher));
        step.teacher_classifier(0, projected.mean_hw())
    }
}
