//! Decoupled knowledge distillation. Zhao, Cui, Song, Qiu, Liang 2022, arXiv:2203.08679, equation 7.
//!
//! loss = CE(student, label) + w T² [α TCKD + β NCKD], w = min((epoch + 1)/warm-up, 1) with epochs from 0
//!
//! TCKD: KL between (q_y, 1 − q_y) and (p_y, 1 − p_y); NCKD: KL between q and p renormalised over the other classes.

use crate::check;
use crate::logit_loss::{Base, LogitLoss, Rows};
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, Ramp, Setting, SlotSpec, Spec, Step, Weight};

/// Settings of decoupled distillation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dkd {
    /// T. Default 4; ImageNet 1.
    pub temperature: f64,
    /// Weight of cross-entropy. Default 1.
    pub ce_weight: f64,
    /// α. Default 1.
    pub alpha: f64,
    /// β: 2, 6 or 8 by pair on CIFAR-100 (methods/7-comparators 7.3); ImageNet 0.5 or 2. Default 8.
    pub beta: f64,
    /// Default 20; ImageNet 1.
    pub warmup_epochs: f64,
}

impl Default for Dkd {
    fn default() -> Dkd {
        Dkd { temperature: 4.0, ce_weight: 1.0, alpha: 1.0, beta: 8.0, warmup_epochs: 20.0 }
    }
}

impl Dkd {
    fn loss(&self) -> LogitLoss {
        let Dkd { temperature, alpha, beta, .. } = *self;
        LogitLoss { base: Base::Dkd, temperature, norm: 1.0, alpha, beta }
    }
}

impl Method for Dkd {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        self.loss().check()?;
        check::weight("ce_weight", self.ce_weight)?;
        check::epochs("warmup_epochs", self.warmup_epochs)?;
        let slot = SlotSpec { name: "warmup".into(), ramp: Ramp::up(1.0, self.warmup_epochs) };
        Ok(Spec { teachers: 1, slots: vec![slot], ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let teacher = step.teacher(step.image()).logits.detach();
        let (student, label, warmup) = (step.student(step.image()).logits, step.label(), step.slot("warmup"));
        let [target, others] = self.loss().decoupled(teacher, student, label, Rows::ALL);
        Losses::new()
            .term("ce", self.ce_weight, student.cross_entropy(label))
            .term("tckd", Weight::from(self.alpha).times(warmup), target)
            .term("nckd", Weight::from(self.beta).times(warmup), others)
            .logits(student, label)
            .output("teacher.logits", teacher)
    }
}
