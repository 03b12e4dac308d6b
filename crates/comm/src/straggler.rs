//! Ranks that are slower than the others before the first collective of a step, and why.

use crate::progress::StepTimes;
use std::fmt;
use std::time::Duration;

/// From here a rank is slow: its time against the median of the ranks.
const SLOW: f64 = 1.3;

/// What makes a rank slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The excess is waiting for batches.
    Data,
    /// CPU time grew with wall time.
    Compute,
    /// Wall time grew, CPU time did not.
    Clock,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data (it waits for batches)",
            Self::Compute => "compute (its CPU time grew as well)",
            Self::Clock => "clock (its CPU time did not grow: stopped, starved or throttled)",
        })
    }
}

/// A slow rank.
pub(crate) struct Straggler {
    pub(crate) rank: usize,
    pub(crate) ratio: f64,
    pub(crate) cause: Cause,
}

/// The slow ones among ranks with these times. Of an even number the lower median counts: of two ranks the faster one.
pub(crate) fn find(windows: &[StepTimes]) -> Vec<Straggler> {
    let median = |of: fn(&StepTimes) -> Duration| {
        let mut all: Vec<f64> = windows.iter().map(|w| of(w).as_secs_f64()).collect();
        all.sort_by(f64::total_cmp);
        all[(all.len() - 1) / 2]
    };
    let (total, data, own) = (median(|w| w.data + w.own), median(|w| w.data), median(|w| w.own));
    let cpu = median(|w| w.cpu);
    let cause = |w: &StepTimes| {
        let own_excess = w.own.as_secs_f64() - own;
        // CPU time counts all threads, so growth is compared with growth, not seconds with seconds.
        let (own_growth, cpu_growth) = (own_excess / own, w.cpu.as_secs_f64() / cpu - 1.0);
        if w.data.as_secs_f64() - data > own_excess {
            Cause::Data
        } else if cpu_growth >= own_growth / 2.0 {
            Cause::Compute
        } else {
            Cause::Clock
        }
    };
    let slow = |(rank, w): (usize, &StepTimes)| {
        let ratio = (w.data + w.own).as_secs_f64() / total;
        (ratio >= SLOW && ratio.is_finite()).then(|| Straggler { rank, ratio, cause: cause(w) })
    };
    windows.iter().enumerate().filter_map(slow).collect()
}
