//! Intra-class patch swap. Choi, Jeon, Shukla, Turaga 2025, arXiv:2505.14124.
//!
//! n pairs (a, b) of one class each exchange random cells of a grid; one network sees both, each teaches the other:
//! loss = ½ [CE(a, y) + CE(b, y)] + α T² ½ [KL(sg(b)/T ‖ a/T) + KL(sg(a)/T ‖ b/T)]
//!
//! No code of the authors can be read: what the paper leaves open is a setting here, its default our choice (methods/2-ips).
//! Two readings of its exchange probability p: a gate per pair (`gate = p`, `cell_prob = 0.5`, default) or a
//! probability per cell (`gate = 1`, `cell_prob = p`).

use crate::check;
use crate::ips_settings::{BnGroups, CeOn, CeReduce, CellCount, Direction, Ips, Spread};
use spec::{
    CellRule, DrawKind, DrawSpec, Expr, Loss, Losses, MaskRule, Method, Ramp, RowMask, Sampler, Setting, SlotSpec,
    Spec, Step, Weight,
};

impl Method for Ips {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::probability("gate", self.gate)?;
        check::probability("cell_prob", self.cell_prob.unwrap_or(0.5))?;
        check::temperature(self.temperature)?;
        check::weight("alpha", self.alpha)?;
        check::epochs("alpha_rampup_epochs", self.alpha_rampup_epochs)?;
        let (cells, rule) = self.cells(setting)?;
        let kind = DrawKind::CellMask { cells, gate: self.gate, rule };
        let ramp = Ramp::up(self.alpha, self.alpha_rampup_epochs);
        let ramps = self.alpha_rampup_epochs > 0.0;
        Ok(Spec {
            sampler: Sampler::Pairs { rule: self.pair.rule(), partners: 1 },
            draws: vec![DrawSpec { name: "swap_mask".into(), kind }],
            slots: ramps.then(|| SlotSpec { name: "alpha".into(), ramp }).into_iter().collect(),
            ..Spec::default()
        })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let (image, label, units) = (step.image(), step.label(), step.units()); // [a_1..a_n, b_1..b_n]
        let swapped = image.patch_swap(step.draw("swap_mask"), self.side(step.setting));
        let fed = if self.feed_originals { swapped.concat_rows(&[image]) } else { swapped };
        let groups = match self.bn_groups {
            BnGroups::Joint => 1,
            BnGroups::Split => fed.rows() / units,
        };
        let fed_logits = step.student_grouped(fed, groups).logits;
        let (a, b) = (fed_logits.slice_rows(0, units), fed_logits.slice_rows(units, units));
        // Runs of n rows: a, b, and with the originals a and b as they were. Cross-entropy is a mean over the rows it is on.
        let runs = fed.rows() / units;
        let (on, ce) = match self.ce_on {
            CeOn::Both if self.feed_originals => (runs, fed_logits.cross_entropy(label.concat_rows(&[label]))),
            CeOn::Both => (runs, fed_logits.cross_entropy(label)),
            CeOn::Anchor if self.feed_originals => {
                let (label, original) = (step.unit_label(), fed_logits.slice_rows(2 * units, units));
                (2, 0.5 * (a.cross_entropy(label) + original.cross_entropy(label)))
            }
            CeOn::Anchor => (1, a.cross_entropy(step.unit_label())),
        };
        let ce_weight = match self.ce_reduce {
            CeReduce::Mean => 1.0,
            CeReduce::Sum => on as f64,
        };
        let alpha = if self.alpha_rampup_epochs > 0.0 { step.slot("alpha") } else { self.alpha.into() };
        Losses::new()
            .term("ce", ce_weight, ce)
            .term("kd", Weight::from(self.temperature.powi(2)).times(alpha), self.distillation(a, b, step.unit_label()))
            .logits(fed_logits.slice_rows(0, 2 * units), label)
    }
}

impl Ips {
    /// KL part without α T².
    fn distillation(&self, a: Expr<'_>, b: Expr<'_>, label: Expr<'_>) -> Loss {
        let t = self.temperature;
        match self.kl {
            Direction::TwoWaySg => 0.5 * (a.kl(b.detach(), t) + b.kl(a.detach(), t)),
            Direction::TwoWayFull => 0.5 * (a.kl(b, t) + b.kl(a, t)),
            Direction::OneWayBToA => a.kl(b.detach(), t),
            Direction::ByConfidence => {
                let surer = |rule| RowMask::LabelProb { rule };
                let (fixed_a, fixed_b) = (a.detach(), b.detach());
                a.kl_where(fixed_b, t, surer(MaskRule::Greater), &[fixed_b, fixed_a, label])
                    + b.kl_where(fixed_a, t, surer(MaskRule::GreaterOrEqual), &[fixed_a, fixed_b, label])
            }
        }
    }

    /// Cells of the grid, and how many of them are exchanged.
    fn cells(&self, setting: &Setting) -> Result<(usize, CellRule), String> {
        let (m, [h, w, _]) = (self.side(setting), setting.image);
        if m == 0 || m > h.max(w) {
            return Err(format!(
                "method.m is the side of a cell in pixels, expected 1 to {} for images of {h} x {w}, got {m}; a larger \
                 cell exchanges whole images, which changes nothing: remove the line for a quarter of the side",
                h.max(w)
            ));
        }
        let cells = h.div_ceil(m) * w.div_ceil(m);
        let rule = match (self.cell_count, self.cell_prob) {
            (None, p) => CellRule::Probability(p.unwrap_or(0.5)),
            (Some(_), Some(_)) => {
                return Err("method.cell_prob and method.cell_count exclude each other; remove one".into());
            }
            (Some(CellCount::Exactly(k)), None) if k > cells => {
                return Err(format!(
                    "method.cell_count: expected at most the {cells} cells of {m} pixels that {h} x {w} has, got {k}"
                ));
            }
            (Some(CellCount::Exactly(k)), None) => CellRule::Count(k),
            (Some(CellCount::Spread(_)), None) if cells < 2 => {
                return Err(format!(
                    "method.cell_count = \"uniform\" needs 2 cells, and {h} x {w} is one cell of {m}; use a smaller m"
                ));
            }
            (Some(CellCount::Spread(Spread::Uniform)), None) => CellRule::UniformCount,
        };
        Ok((cells, rule))
    }
}
