//! The parts of a run.

use serde::{Deserialize, Serialize};

/// Part of the run that a rank is in.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Start,
    Resume,
    /// Waiting for a batch.
    Load,
    /// The bodies: forward and backward.
    Forward,
    #[serde(rename = "all_reduce")]
    Reduce,
    Update,
    Evaluate,
    Checkpoint,
    End,
}

impl Phase {
    const ALL: [Self; 9] = [
        Self::Start,
        Self::Resume,
        Self::Load,
        Self::Forward,
        Self::Reduce,
        Self::Update,
        Self::Evaluate,
        Self::Checkpoint,
        Self::End,
    ];

    pub(crate) fn from_number(number: u64) -> Self {
        Self::ALL[(number as usize).min(Self::ALL.len() - 1)]
    }

    /// As reports say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Resume => "resume",
            Self::Load => "load",
            Self::Forward => "forward",
            Self::Reduce => "all_reduce",
            Self::Update => "update",
            Self::Evaluate => "evaluate",
            Self::Checkpoint => "checkpoint",
            Self::End => "end",
        }
    }

    /// Takes minutes without being stuck.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::Start | Self::Resume | Self::Evaluate | Self::Checkpoint | Self::End)
    }
}
