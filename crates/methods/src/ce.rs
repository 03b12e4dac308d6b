//! Cross-entropy, plain or with smoothed labels (Szegedy et al. 2015, arXiv:1512.00567, section 7).
//!
//! loss = CE(student, q), q = 1 − ε on the label and ε/(K−1) on the K−1 other classes

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, Setting, Spec, Step};

/// Settings of cross-entropy.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ce {
    /// ε, in [0, 1). Default 0: hard labels. The usual value is 0.1.
    pub label_smoothing: f64,
    /// Classes that share ε. Default `others`.
    pub smoothing_over: SmoothingOver,
}

/// Two conventions: ε over all K classes equals ε (K−1)/K over the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SmoothingOver {
    /// 1 − ε on the label, ε/(K−1) on each other class.
    Others,
    /// 1 − ε + ε/K on the label, ε/K on each other class (torch's `label_smoothing`).
    All,
}

impl Default for Ce {
    fn default() -> Ce {
        Ce { label_smoothing: 0.0, smoothing_over: SmoothingOver::Others }
    }
}

impl Ce {
    /// Target on the label, and on each of the other classes.
    fn target(&self, classes: usize) -> (f64, f64) {
        let (eps, classes) = (self.label_smoothing, classes as f64);
        match self.smoothing_over {
            SmoothingOver::Others => (1.0 - eps, eps / (classes - 1.0)),
            SmoothingOver::All => (1.0 - eps + eps / classes, eps / classes),
        }
    }
}

impl Method for Ce {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::below_one("label_smoothing", self.label_smoothing)?;
        if self.label_smoothing > 0.0 && setting.classes < 2 {
            return Err(format!("method.label_smoothing needs 2 classes, got {}; set it to 0", setting.classes));
        }
        Ok(Spec::default())
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let (logits, label) = (step.student(step.image()).logits, step.label());
        let ce = if self.label_smoothing == 0.0 {
            logits.cross_entropy(label)
        } else {
            let (on, off) = self.target(step.setting.classes);
            logits.cross_entropy_smoothed(label, on, off)
        };
        Losses::new().term("ce", 1.0, ce).logits(logits, label)
    }
}
