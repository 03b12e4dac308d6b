//! What goes over a control connection, one frame each. Both ends are the same program.

use crate::death::Death;
use crate::progress::Seen;
use crate::recorder::Entry;
use crate::verdict::Verdict;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    Beat(Seen),
    Dying(Death),
    Failed {
        code: u8,
        text: String,
    },
    Agreed {
        culprit: Option<u32>,
        code: u8,
        text: String,
    },
    Lost,
    Bye,
    /// From rank 0: this ended the run.
    Verdict(Verdict),
    /// To rank 0 after a verdict: the last collectives.
    Tail(Vec<Entry>),
    /// To rank 0: collectives are aborted, this rank can leave.
    Ready,
    /// From rank 0: leave now; the verdict with its whole report.
    Leave(Verdict),
}
