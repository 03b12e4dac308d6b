//! Teacher-free distillation from a made-up teacher. Yuan, Tay, Li, Wang, Feng 2020, arXiv:1909.11723, section 4.2.
//!
//! u = 0.99 on the label, 0.01/(K − 1) elsewhere; target = softmax(u/T), nearly uniform;
//! loss = (1 − α) CE(z, y) + α m mean over all elements of target (log target − log softmax(z))
//!
//! `variant = "self_kd_lib"` is what a widely used bench has instead: CE + (1/T) CE(z/T, labels smoothed by 0.1).

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, RowKind, RowMask, Setting, Spec, Step, Target, Temperature};

/// Settings of the regulariser; per network in methods/7-comparators 7.8.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TfKdReg {
    /// α. Default 0.1, of ResNet-18. Not read by `self_kd_lib`.
    pub alpha: f64,
    /// T. Default 20.
    pub temperature: f64,
    /// m. Default 100. Not read by `self_kd_lib`.
    pub multiplier: f64,
    /// u on the label. Default 0.99; `self_kd_lib` has 0.9.
    pub correct: f64,
    /// Default `official`.
    pub variant: TfKdVariant,
}

/// The two programs that exist under the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TfKdVariant {
    Official,
    SelfKdLib,
}

impl Default for TfKdReg {
    fn default() -> TfKdReg {
        let variant = TfKdVariant::Official;
        TfKdReg { alpha: 0.1, temperature: 20.0, multiplier: 100.0, correct: 0.99, variant }
    }
}

impl TfKdReg {
    /// The made-up teacher's probability of the label and of each other class, before the second softmax.
    fn teacher(&self, classes: usize) -> (f64, f64) {
        (self.correct, (1.0 - self.correct) / (classes as f64 - 1.0))
    }

    /// softmax(u/T).
    fn target(&self, classes: usize) -> Target {
        let (on, off) = self.teacher(classes);
        let (on, off) = ((on / self.temperature).exp(), (off / self.temperature).exp());
        let sum = on + off * (classes as f64 - 1.0);
        Target::Label { on: on / sum, off: off / sum }
    }
}

impl Method for TfKdReg {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::probability("alpha", self.alpha)?;
        check::temperature(self.temperature)?;
        check::weight("multiplier", self.multiplier)?;
        check::probability("correct", self.correct)?;
        if setting.classes < 2 {
            return Err("method.correct leaves the rest to the other classes, which needs 2 classes, got 1".into());
        }
        Ok(Spec::default())
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let (logits, label, classes) = (step.student(step.image()).logits, step.label(), step.setting.classes);
        let losses = Losses::new().logits(logits, label);
        let term = |kind| logits.row_loss(kind, &[label], RowMask::All, &[]);
        match self.variant {
            TfKdVariant::Official => {
                let kind = RowKind::Kl { target: self.target(classes), temperature: Temperature::Fixed(1.0) };
                let weight = self.alpha * self.multiplier / classes as f64;
                losses.term("ce", 1.0 - self.alpha, logits.cross_entropy(label)).term("kd", weight, term(kind))
            }
            TfKdVariant::SelfKdLib => {
                let (on, off) = self.teacher(classes);
                let kind = RowKind::CrossEntropy { target: Target::Label { on, off }, temperature: self.temperature };
                losses.term("ce", 1.0, logits.cross_entropy(label)).term("kd", 1.0 / self.temperature, term(kind))
            }
        }
    }
}
