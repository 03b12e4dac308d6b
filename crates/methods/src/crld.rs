//! Cross-view consistency regularisation. arXiv:2412.16493 (2024).
//!
//! A weak and a strong view of each image go through student (z) and frozen teacher (t). With ℓ(t → z) = T² KL(t/T ‖ z/T) per image:
//! loss = c [CE(z_w, y) + CE(z_s, y)] + v mean m_w [ℓ(t_w → z_w) + ℓ(t_s → z_s)] + x mean m_s [ℓ(t_w → z_s) + ℓ(t_s → z_w)]
//! m_w = 1 where max softmax(t_w) ≥ τ_w, m_s where max softmax(t_s) ≥ τ_s; means are over all images.
//!
//! Each view has batch-norm statistics of its own, the weak one first. `base` puts another loss in the place of ℓ (methods/5-crld 5.5).

use crate::check;
use crate::logit_loss::{Base, LogitLoss, Rows};
use serde::{Deserialize, Serialize};
use spec::{
    Augment, Expr, Losses, Measure, Method, Ramp, RowKind, RowMask, Setting, SlotSpec, Spec, Step, View, Weight,
};

/// Settings of cross-view consistency.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crld {
    /// T. Default 4; Tiny-ImageNet 2, ImageNet 1.
    pub temperature: f64,
    /// c. Default 1; ImageNet 2.
    pub ce_weight: f64,
    /// v, within views. Default 2; Tiny-ImageNet 4.
    pub within_weight: f64,
    /// x, across views. Default 0.5; Tiny-ImageNet 1.
    pub cross_weight: f64,
    /// τ_w and τ_s; above 1 no image counts. Default 0.9 and 0.2.
    pub tau_weak: f64,
    pub tau_strong: f64,
    /// Default `by_term`.
    pub mask_rule: CrldMask,
    /// ℓ. Default `kl`.
    pub base: Base,
    /// Of `normkd` and `norm_dkd`. Default 2.
    pub norm: f64,
    /// Weights of TCKD and NCKD, of `dkd` and `norm_dkd`. Default 1 and 8.
    pub alpha: f64,
    pub beta: f64,
    /// Linear warm-up of both distillation terms, as decoupled distillation has it. Default 0.
    pub warmup_epochs: f64,
}

/// Whose confidence decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CrldMask {
    /// m_w for terms within views, m_s for terms across, as in the authors' program.
    ByTerm,
    /// m_w wherever t_w teaches, m_s wherever t_s does.
    ByLabel,
}

impl Default for Crld {
    fn default() -> Crld {
        Crld {
            temperature: 4.0,
            ce_weight: 1.0,
            within_weight: 2.0,
            cross_weight: 0.5,
            tau_weak: 0.9,
            tau_strong: 0.2,
            mask_rule: CrldMask::ByTerm,
            base: Base::Kl,
            norm: 2.0,
            alpha: 1.0,
            beta: 8.0,
            warmup_epochs: 0.0,
        }
    }
}

impl Crld {
    fn loss(&self) -> LogitLoss {
        let Crld { base, temperature, norm, alpha, beta, .. } = *self;
        LogitLoss { base, temperature, norm, alpha, beta }
    }
}

impl Method for Crld {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        self.loss().check()?;
        for (key, weight) in [
            ("ce_weight", self.ce_weight),
            ("within_weight", self.within_weight),
            ("cross_weight", self.cross_weight),
            ("tau_weak", self.tau_weak),
            ("tau_strong", self.tau_strong),
        ] {
            check::weight(key, weight)?;
        }
        check::epochs("warmup_epochs", self.warmup_epochs)?;
        let view = |name: &str, augment| View { name: name.into(), augment };
        Ok(Spec {
            views: vec![view("weak", Augment::Recipe), view("strong", Augment::Strong)],
            slots: vec![SlotSpec { name: "warmup".into(), ramp: Ramp::up(1.0, self.warmup_epochs) }],
            teachers: 1,
            ..Spec::default()
        })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        // Frozen and on running statistics, so both views at once give what each gives by itself.
        let (tw, ts) = step.teacher(step.image()).logits.detach().halves();
        let (zw, zs) = step.student_grouped(step.image(), 2).logits.halves();
        let (label, warmup) = (step.unit_label(), step.slot("warmup"));
        let (weak, strong) =
            (RowMask::Confident { threshold: self.tau_weak }, RowMask::Confident { threshold: self.tau_strong });
        let (by_weak, by_strong) = (Rows { mask: weak, of: &[tw] }, Rows { mask: strong, of: &[ts] });
        let [within_weak, within_strong, cross_weak, cross_strong] = match self.mask_rule {
            CrldMask::ByTerm => [by_weak, by_weak, by_strong, by_strong],
            CrldMask::ByLabel => [by_weak, by_strong, by_weak, by_strong],
        };
        let of = |t: Expr<'g>, z: Expr<'g>, rows: Rows<'_, 'g>| self.loss().between(t, z, label, rows);
        let kept = |rows: Rows<'_, 'g>| zw.detach().row_loss(RowKind::Count, &[], rows.mask, rows.of).parts[0].1;
        Losses::new()
            .term("ce", self.ce_weight, zw.cross_entropy(label) + zs.cross_entropy(label))
            .term(
                "within",
                Weight::from(self.within_weight).times(warmup),
                of(tw, zw, within_weak) + of(ts, zs, within_strong),
            )
            .term(
                "cross",
                Weight::from(self.cross_weight).times(warmup),
                of(tw, zs, cross_weak) + of(ts, zw, cross_strong),
            )
            .accuracy("top1", zw, label)
            .monitor("kept_weak", kept(by_weak), spec::Divisor::ONE, Measure::Value)
            .monitor("kept_strong", kept(by_strong), spec::Divisor::ONE, Measure::Value)
            .output("logits.weak", zw)
            .output("logits.strong", zs)
            .output("teacher.logits.weak", tw)
            .output("teacher.logits.strong", ts)
    }
}
