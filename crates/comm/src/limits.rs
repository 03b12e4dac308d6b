//! How long the watch waits for what.

use std::time::Duration;

/// Limits of time; the defaults are those of the user's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From one heartbeat to the next.
    pub heartbeat: Duration,
    /// Bytes on a control connection that nobody acknowledges for this long: host or link are gone.
    pub link: Duration,
    /// A rank without progress in a step for this long hangs, and so does one without heartbeats. The judge uses ten times
    /// the 99th percentile of the steps after the first where that is longer.
    pub hang: Duration,
    /// As `hang`, in slow phases and in the first step.
    pub slow_phase: Duration,
    /// For the hook that aborts collectives.
    pub abort: Duration,
    /// For the ranks to leave together.
    pub barrier: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            link: Duration::from_secs(10),
            hang: Duration::from_secs(60),
            slow_phase: Duration::from_secs(300),
            abort: Duration::from_secs(10),
            barrier: Duration::from_secs(2),
        }
    }
}
