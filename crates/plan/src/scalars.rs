//! What changes from step to step, and what an executor says of a step that failed.

use graph::{Divisor, SlotId, Weight};

/// What the host writes before each step.
#[derive(Clone, Debug, Default)]
pub struct Scalars {
    /// By `SlotId`.
    pub slots: Vec<f64>,
    /// Units of each micro-batch of the global batch, per role.
    pub micro_units: Vec<[usize; 2]>,
    /// The micro-batch that a body is run for, counted over the global batch.
    pub micro: usize,
    /// Running statistics move by so many micro-batches, the first ones.
    pub running: usize,
}

impl Scalars {
    pub fn get(&self, slot: SlotId) -> f64 {
        self.slots[slot.0 as usize]
    }

    pub fn weight(&self, weight: Weight) -> f64 {
        weight.factor * weight.slot.map_or(1.0, |s| self.get(s))
    }

    /// The count that a mean divides by.
    pub fn divisor(&self, divisor: Divisor) -> f64 {
        let units = |role: usize| divisor.per_unit[role] as f64 * self.get(SlotId::UNITS[role]);
        divisor.constant as f64 + units(0) + units(1)
    }

    /// Units of a role in the micro-batches before this one: where its rows of a rolling state begin.
    pub fn units_before(&self, role: usize) -> usize {
        self.micro_units[..self.micro].iter().map(|u| u[role]).sum()
    }

    /// Valid rows of a carried value of `rows` rows in micro-batch `m`: fewer where the micro-batch is short (role 0).
    pub fn valid_rows(&self, rows: usize, m: usize) -> usize {
        let full = self.micro_units.iter().map(|u| u[0]).max().unwrap_or(0).max(1);
        rows.min(self.micro_units[m][0] * (rows / full).max(1))
    }
}

/// A launch whose output is not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// Path of its node.
    pub path: String,
    pub op: &'static str,
}
