//! Per-image losses between a teacher's logits t and a student's z, as one setting that several methods share.

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Expr, Loss, RowKind, RowMask, Target, Temperature};

/// What is put in the place of T² KL(t/T ‖ z/T).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// T² KL(t/T ‖ z/T).
    Kl,
    /// T² [α TCKD + β NCKD] (methods/7-comparators 7.3).
    Dkd,
    /// As `kl`, each row divided by `norm` times its own standard deviation in place of T (7.4).
    Normkd,
    /// As `dkd`, divided alike.
    NormDkd,
}

/// A base and its constants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogitLoss {
    pub(crate) base: Base,
    pub(crate) temperature: f64,
    /// Factor of the standard deviation.
    pub(crate) norm: f64,
    /// Of TCKD and NCKD.
    pub(crate) alpha: f64,
    pub(crate) beta: f64,
}

/// Rows that count, and what decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a, 'g> {
    pub(crate) mask: RowMask,
    pub(crate) of: &'a [Expr<'g>],
}

impl LogitLoss {
    pub(crate) fn check(&self) -> Result<(), String> {
        check::temperature(self.temperature)?;
        check::positive("norm", self.norm)?;
        check::weight("alpha", self.alpha)?;
        check::weight("beta", self.beta)
    }

    fn normed(&self) -> bool {
        matches!(self.base, Base::Normkd | Base::NormDkd)
    }

    /// Softens by a fixed T, or by each row's deviation; the square of the latter is in the row already.
    fn softened(&self) -> (Temperature, f64) {
        if self.normed() {
            (Temperature::Std { scale: self.norm }, 1.0)
        } else {
            (Temperature::Fixed(self.temperature), self.temperature.powi(2))
        }
    }

    /// Mean over all rows of the loss of those that count, T² included.
    pub(crate) fn between<'g>(&self, t: Expr<'g>, z: Expr<'g>, label: Expr<'g>, rows: Rows<'_, 'g>) -> Loss {
        if matches!(self.base, Base::Kl | Base::Normkd) {
            let (temperature, square) = self.softened();
            let kind = RowKind::Kl { target: Target::Logits, temperature };
            return square * z.row_loss(kind, &[t], rows.mask, rows.of);
        }
        let [target, others] = self.decoupled(t, z, label, rows);
        self.alpha * target + self.beta * others
    }

    /// TCKD and NCKD, T² included, without their weights.
    pub(crate) fn decoupled<'g>(&self, t: Expr<'g>, z: Expr<'g>, label: Expr<'g>, rows: Rows<'_, 'g>) -> [Loss; 2] {
        let (temperature, square) = self.softened();
        [RowKind::TargetKl { temperature }, RowKind::NonTargetKl { temperature }]
            .map(|kind| square * z.row_loss(kind, &[t, label], rows.mask, rows.of))
    }
}

impl Rows<'_, '_> {
    pub(crate) const ALL: Rows<'static, 'static> = Rows { mask: RowMask::All, of: &[] };
}
