//! Ranks that are slower than the others before the first collective of a step, or by their link in collectives, and why.

use crate::progress::StepTimes;
use std::fmt;
use std::time::Duration;

/// From here a rank is slow: its time against the median of the ranks. In the middle between 1.1, which is nobody's fault, and 1.3, which
/// is to be told of whatever noise there is.
const SLOW: f64 = 1.2;

/// At least as slow it is in each half of the window.
const SLOW_IN_HALF: f64 = 1.1;

/// What makes a rank slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The excess is waiting for batches.
    Data,
    /// CPU time grew with wall time.
    Compute,
    /// Wall time grew, CPU time did not.
    Clock,
    /// The bytes of its collectives take longer to arrive.
    Network,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data (it waits for batches)",
            Self::Compute => "compute (its CPU time grew as well)",
            Self::Clock => "clock (its CPU time did not grow: stopped, starved or throttled)",
            Self::Network => "network (the bytes of its collectives take longer to arrive)",
        })
    }
}

/// A slow rank.
pub(crate) struct Straggler {
    pub(crate) rank: usize,
    pub(crate) ratio: f64,
    pub(crate) cause: Cause,
}

/// The slow ones among ranks with these times of two halves of a window. A rank that was held up once is slow in one half only.
pub(crate) fn find(windows: &[[StepTimes; 2]]) -> Vec<Straggler> {
    let half = |i: usize| compare(&windows.iter().map(|w| w[i]).collect::<Vec<_>>(), SLOW_IN_HALF);
    let halves = [half(0), half(1)];
    let in_both = |slow: &Straggler| halves.iter().all(|half| half.iter().any(|other| other.rank == slow.rank));
    let mut whole = compare(&windows.iter().map(|w| w[0] + w[1]).collect::<Vec<_>>(), SLOW);
    whole.retain(in_both);
    whole
}

/// Those among ranks with these times that take at least `limit` times as long as the median. Of an even number the lower median counts: of two ranks the faster one.
///
/// A rank is compared by its time before the first collective, and by that and the time of its link together. In a collective all wait
/// for the slowest, so the time in it is no rank's own; the link's is counted from the first byte of an answer on, which comes when
/// all have arrived. A rank whose link tells nothing counts as having a usual one.
fn compare(windows: &[StepTimes], limit: f64) -> Vec<Straggler> {
    let median = |of: &dyn Fn(&StepTimes) -> Duration| {
        let mut all: Vec<f64> = windows.iter().map(|w| of(w).as_secs_f64()).collect();
        all.sort_by(f64::total_cmp);
        all[(all.len() - 1) / 2]
    };
    let (total, data, own) = (median(&|w| w.data + w.own), median(&|w| w.data), median(&|w| w.own));
    let cpu = median(&|w| w.cpu);
    let usual = usual_link(windows);
    let link = |w: &StepTimes| if w.link.is_zero() { usual } else { w.link };
    let whole = median(&|w| w.data + w.own + link(w));
    let cause = |w: &StepTimes| {
        let own_excess = w.own.as_secs_f64() - own;
        let data_excess = w.data.as_secs_f64() - data;
        // CPU time counts all threads, so growth is compared with growth, not seconds with seconds.
        let (own_growth, cpu_growth) = (own_excess / own, w.cpu.as_secs_f64() / cpu - 1.0);
        if link(w).as_secs_f64() - usual.as_secs_f64() > data_excess.max(own_excess) {
            Cause::Network
        } else if data_excess > own_excess {
            Cause::Data
        } else if cpu_growth >= own_growth / 2.0 {
            Cause::Compute
        } else {
            Cause::Clock
        }
    };
    let slow = |(rank, w): (usize, &StepTimes)| {
        let alone = (w.data + w.own).as_secs_f64() / total;
        let ratio = alone.max((w.data + w.own + link(w)).as_secs_f64() / whole);
        (ratio >= limit && ratio.is_finite()).then(|| Straggler { rank, ratio, cause: cause(w) })
    };
    windows.iter().enumerate().filter_map(slow).collect()
}

/// The lower median of the links that tell something.
fn usual_link(windows: &[StepTimes]) -> Duration {
    let mut links: Vec<Duration> = windows.iter().map(|w| w.link).filter(|link| !link.is_zero()).collect();
    links.sort();
    links.get(links.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}
