//! Learning rates over time (chapter 0.4).

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    #[default]
    Constant,
    /// × `gamma` at each milestone.
    Step,
    /// lr/2 (1 + cos(π e / E)), e and E counted after the warm-up.
    Cosine,
    /// × `gamma` every epoch.
    Exponential,
    /// (lr − end_lr) (1 − e / E)^power + end_lr, e and E counted after the warm-up. MLPerf's with LARS: power 2, per step.
    Polynomial,
}

/// `[schedule]`. Epochs count from 0; a milestone m acts from epoch m on (publications that count from 1 mean the same).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    pub name: ScheduleName,
    /// Epochs, counted with the warm-up; only for `step`.
    pub milestones: Vec<usize>,
    /// Default 0.1.
    pub gamma: f64,
    /// Linear warm-up per step: lr (1 + step) / (warmup_epochs × steps). Default 0.
    pub warmup_epochs: usize,
    /// Whether cosine and polynomial move every step instead of every epoch. Default false.
    pub per_step: bool,
    /// Only for `polynomial`. Default 2.
    pub power: f64,
    /// Only for `polynomial`: the rate that it falls to. Default 0.
    pub end_lr: f64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            name: ScheduleName::Constant,
            milestones: vec![],
            gamma: 0.1,
            warmup_epochs: 0,
            per_step: false,
            power: 2.0,
            end_lr: 0.0,
        }
    }
}

/// A moment of training.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub epoch: usize,
    /// Step within the epoch.
    pub step: usize,
    pub steps_per_epoch: usize,
    pub epochs: usize,
}

impl Schedule {
    /// The learning rate at a moment, for a base rate.
    pub fn lr(&self, base: f64, at: Moment) -> f64 {
        if at.epoch < self.warmup_epochs {
            let done = (1 + at.step + at.epoch * at.steps_per_epoch) as f64;
            return base * done / (self.warmup_epochs * at.steps_per_epoch) as f64;
        }
        let epoch = (at.epoch - self.warmup_epochs) as f64;
        let within = if self.per_step { at.step as f64 / at.steps_per_epoch as f64 } else { 0.0 };
        let total = at.epochs.saturating_sub(self.warmup_epochs).max(1) as f64;
        match self.name {
            ScheduleName::Constant => base,
            ScheduleName::Step => {
                let passed = self.milestones.iter().filter(|&&m| m <= at.epoch).count();
                base * self.gamma.powi(passed as i32)
            }
            ScheduleName::Exponential => base * self.gamma.powi(epoch as i32),
            ScheduleName::Cosine => base / 2.0 * (1.0 + (std::f64::consts::PI * (epoch + within) / total).cos()),
            ScheduleName::Polynomial => {
                let left = (1.0 - (epoch + within) / total).max(0.0);
                (base - self.end_lr) * left.powf(self.power) + self.end_lr
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: usize, step: usize) -> Moment {
        Moment { epoch, step, steps_per_epoch: 10, epochs: 205 }
    }

    #[test]
    fn step_schedule_acts_from_its_milestone_on() {
        let s = Schedule { name: ScheduleName::Step, milestones: vec![150, 180], ..Schedule::default() };
        assert_eq!(s.lr(0.05, at(149, 9)), 0.05);
        assert!((s.lr(0.05, at(150, 0)) - 0.005).abs() < 1e-15);
        assert!((s.lr(0.05, at(180, 0)) - 0.0005).abs() < 1e-15);
    }

    #[test]
    fn warm_up_ends_at_the_base_rate_and_cosine_starts_there() {
        let s = Schedule { name: ScheduleName::Cosine, warmup_epochs: 5, ..Schedule::default() };
        assert!((s.lr(0.1, at(0, 0)) - 0.1 / 50.0).abs() < 1e-15);
        assert_eq!(s.lr(0.1, at(4, 9)), 0.1);
        assert_eq!(s.lr(0.1, at(5, 3)), 0.1);
        // Chapter 3.5: the last of 300 epochs runs at 2.7e-6.
        let long = Moment { epoch: 304, step: 0, steps_per_epoch: 10, epochs: 305 };
        assert!((s.lr(0.1, long) - 2.74e-6).abs() < 1e-8);
    }

    #[test]
    fn polynomial_falls_from_the_base_rate_to_its_end() {
        // MLPerf's closed division: power 2, end 0.0001, after 5 epochs of warm-up.
        let name = ScheduleName::Polynomial;
        let s = Schedule { name, warmup_epochs: 5, per_step: true, end_lr: 1e-4, ..Schedule::default() };
        assert_eq!(s.lr(10.0, at(4, 9)), 10.0);
        assert_eq!(s.lr(10.0, at(5, 0)), 10.0);
        // Half of 200 epochs: a quarter of the difference is left. The last step: a 2,000th is left.
        assert!((s.lr(10.0, at(105, 0)) - (0.25 * (10.0 - 1e-4) + 1e-4)).abs() < 1e-12);
        assert!((s.lr(10.0, at(204, 9)) - ((10.0 - 1e-4) / 4e6 + 1e-4)).abs() < 1e-12);
        let by_epoch = Schedule { per_step: false, power: 1.0, ..s };
        assert_eq!(by_epoch.lr(10.0, at(105, 9)), by_epoch.lr(10.0, at(105, 0)));
        assert!((by_epoch.lr(10.0, at(155, 0)) - (0.25 * (10.0 - 1e-4) + 1e-4)).abs() < 1e-12);
    }
}
