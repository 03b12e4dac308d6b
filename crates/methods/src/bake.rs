//! BAKE: targets from the batch's own neighbours. Ge et al. 2021, arXiv:2104.13298.
//!
//! f = normalised pooled features, P = softmax(z/T), W = row softmax of f fᵀ without the diagonal, Q = (1 − ω)(I − ωW)⁻¹ P;
//! loss = CE(z, y) + λ T² mean KL(Q ‖ softmax(z/T)), Q without gradient
//!
//! A step sees `units` anchors and M more images of each anchor's class, all with both terms.

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, PairRule, RowKind, RowMask, Sampler, Setting, Spec, Step, Target, Temperature};

/// Settings of batch knowledge ensembling.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bake {
    /// T. Default 4.
    pub temperature: f64,
    /// λ. Default 1.
    pub kd_weight: f64,
    /// ω, how far targets travel. Default 0.5; 0.9 for Tiny-ImageNet.
    pub omega: f64,
    /// M. Default 3: `global_batch = 32` anchors are 128 images.
    pub extra_images: usize,
}

impl Default for Bake {
    fn default() -> Bake {
        Bake { temperature: 4.0, kd_weight: 1.0, omega: 0.5, extra_images: 3 }
    }
}

impl Method for Bake {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::temperature(self.temperature)?;
        check::weight("kd_weight", self.kd_weight)?;
        check::below_one("omega", self.omega)?;
        if !(1..=254).contains(&self.extra_images) {
            return Err(format!(
                "method.extra_images is the number of images beside each anchor, expected 1 to 254, got {}; 3 is the default",
                self.extra_images
            ));
        }
        let sampler = Sampler::Pairs { rule: PairRule::WithoutSelf, partners: self.extra_images };
        Ok(Spec { sampler, ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let (taps, label) = (step.student(step.image()), step.label());
        let logits = taps.logits;
        let targets = taps.pooled.detach().neighbour_targets(logits.detach(), self.omega, self.temperature);
        let kind = RowKind::Kl { target: Target::Probabilities, temperature: Temperature::Fixed(self.temperature) };
        Losses::new()
            .term("ce", 1.0, logits.cross_entropy(label))
            .term("kd", self.kd_weight * self.temperature.powi(2), logits.row_loss(kind, &[targets], RowMask::All, &[]))
            .logits(logits, label)
            .output("targets", targets)
    }
}
