//! Mixup as a baseline. Zhang, Cisse, Dauphin, Lopez-Paz 2018, arXiv:1710.09412.
//!
//! x̃ = λ x + (1 − λ) x[π] on normalised images, loss = λ CE(z̃, y) + (1 − λ) CE(z̃, y[π]); one λ and one π a micro-batch

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{DrawKind, DrawSpec, Losses, Method, Setting, Spec, Step};

/// Settings of mixup.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mixup {
    /// λ ~ Beta(α, α). Default 0.4.
    pub alpha: f64,
}

impl Default for Mixup {
    fn default() -> Mixup {
        Mixup { alpha: 0.4 }
    }
}

impl Method for Mixup {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::weight("alpha", self.alpha)?;
        let draw = |name: &str, kind| DrawSpec { name: name.into(), kind };
        let draws =
            vec![draw("permutation", DrawKind::Permutation), draw("lambda", DrawKind::Lambda { alpha: self.alpha })];
        Ok(Spec { draws, ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let mix = [step.draw("permutation"), step.draw("lambda")];
        let (logits, label) = (step.student(step.image().mix(mix[0], mix[1])).logits, step.label());
        Losses::new().term("ce", 1.0, logits.cross_entropy_mixed(label, mix)).logits(logits, label)
    }
}
