//! Class-wise self-knowledge distillation. Yun, Park, Lee, Shin 2020, arXiv:2003.13964.
//!
//! For an anchor a and a partner b of its class: loss = CE(a, y) + λ T² KL(sg(b)/T ‖ a/T)
//!
//! The partner is forwarded on its own after the anchor, in training mode and without gradient, so running statistics move twice a
//! step (methods/7-comparators 7.9). Its label gives no cross-entropy.

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, PairRule, Sampler, Setting, Spec, Step};

/// Settings of class-wise self-distillation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CsKd {
    /// T. Default 4.
    pub temperature: f64,
    /// λ. Default 1 (CIFAR-100); the paper's fine-grained sets take 3.
    pub kd_weight: f64,
}

impl Default for CsKd {
    fn default() -> CsKd {
        CsKd { temperature: 4.0, kd_weight: 1.0 }
    }
}

impl Method for CsKd {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::temperature(self.temperature)?;
        check::weight("kd_weight", self.kd_weight)?;
        Ok(Spec { sampler: Sampler::Pairs { rule: PairRule::WithSelf, partners: 1 }, ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let (anchors, partners) = step.image().halves();
        let anchor = step.student(anchors).logits;
        let partner = step.student(partners).logits.detach();
        let label = step.unit_label();
        Losses::new()
            .term("ce", 1.0, anchor.cross_entropy(label))
            .term("kd", self.kd_weight * self.temperature.powi(2), anchor.kl(partner, self.temperature))
            .accuracy("top1", anchor, label)
            .output("logits", anchor.concat_rows(&[partner]))
    }
}
