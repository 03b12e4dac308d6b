//! CutMix as a baseline. Yun, Han, Oh, Chun, Choe, Yoo 2019, arXiv:1905.04899.
//!
//! x̃ = x with a box taken from x[π], loss = λ CE(z̃, y) + (1 − λ) CE(z̃, y[π]), λ the share of pixels outside the box; one box and
//! one π a micro-batch (methods/7-comparators 7.17)

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{DrawKind, DrawSpec, Losses, Method, Setting, Spec, Step};

/// Settings of CutMix.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cutmix {
    /// The box covers 1 − λ of the image, λ ~ Beta(α, α). Default 1.
    pub alpha: f64,
}

impl Default for Cutmix {
    fn default() -> Cutmix {
        Cutmix { alpha: 1.0 }
    }
}

impl Method for Cutmix {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::weight("alpha", self.alpha)?;
        let (alpha, [h, w, _]) = (self.alpha, setting.image);
        let draw = |name: &str, kind| DrawSpec { name: name.into(), kind };
        let draws = vec![
            draw("permutation", DrawKind::Permutation),
            draw("box", DrawKind::CutBox { alpha, size: [h, w] }),
            draw("lambda", DrawKind::CutShare { alpha, size: [h, w] }),
        ];
        Ok(Spec { draws, ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let mix = [step.draw("permutation"), step.draw("lambda")];
        let image = step.image().paste_box(mix[0], step.draw("box"));
        let (logits, label) = (step.student(image).logits, step.label());
        Losses::new().term("ce", 1.0, logits.cross_entropy_mixed(label, mix)).logits(logits, label)
    }
}
