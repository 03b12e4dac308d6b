//! NormKD: logits are divided by a multiple of their own standard deviation. Chi, Zheng, Li, Yang, Wu, Lin, Cai 2023,
//! arXiv:2308.00520.
//!
//! loss = ce_weight CE(student, label) + kd_weight mean τ_t² KL(t/τ_t ‖ z/τ_z), τ = norm × unbiased deviation of each row
//!
//! The student's deviation carries gradient. `base = "dkd"`: both parts of decoupled distillation, divided alike.

use crate::check;
use crate::logit_loss::{Base, LogitLoss, Rows};
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, Ramp, Setting, SlotSpec, Spec, Step, Weight};

/// Settings of normalised distillation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct NormKd {
    /// Factor of the deviation. Default 2; ImageNet 1.
    pub norm: f64,
    /// Default 0.1; ImageNet 0.5, with `dkd` 1.
    pub ce_weight: f64,
    /// Default 0.9; ImageNet 0.5, with `dkd` 1.
    pub kd_weight: f64,
    /// Default `kl`.
    pub base: NormBase,
    /// Weights of TCKD and NCKD, for `dkd` only; by pair in methods/7-comparators 7.4. Default 4 and 5.
    pub alpha: f64,
    pub beta: f64,
    /// Linear warm-up of the distillation, as decoupled distillation has it. Default 0.
    pub warmup_epochs: f64,
}

/// The loss whose logits are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormBase {
    Kl,
    Dkd,
}

impl Default for NormKd {
    fn default() -> NormKd {
        let (norm, ce_weight, kd_weight, base) = (2.0, 0.1, 0.9, NormBase::Kl);
        NormKd { norm, ce_weight, kd_weight, base, alpha: 4.0, beta: 5.0, warmup_epochs: 0.0 }
    }
}

impl NormKd {
    fn loss(&self) -> LogitLoss {
        let base = if self.base == NormBase::Kl { Base::Normkd } else { Base::NormDkd };
        LogitLoss { base, temperature: 1.0, norm: self.norm, alpha: self.alpha, beta: self.beta }
    }
}

impl Method for NormKd {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        self.loss().check()?;
        check::weight("ce_weight", self.ce_weight)?;
        check::weight("kd_weight", self.kd_weight)?;
        check::epochs("warmup_epochs", self.warmup_epochs)?;
        if setting.classes < 2 {
            return Err("method.normkd divides by a deviation over classes, which needs 2 classes, got 1".into());
        }
        let slot = SlotSpec { name: "warmup".into(), ramp: Ramp::up(1.0, self.warmup_epochs) };
        Ok(Spec { teachers: 1, slots: vec![slot], ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let teacher = step.teacher(step.image()).logits.detach();
        let (student, label) = (step.student(step.image()).logits, step.label());
        let kd = self.loss().between(teacher, student, label, Rows::ALL);
        Losses::new()
            .term("ce", self.ce_weight, student.cross_entropy(label))
            .term("kd", Weight::from(self.kd_weight).times(step.slot("warmup")), kd)
            .logits(student, label)
            .output("teacher.logits", teacher)
    }
}
