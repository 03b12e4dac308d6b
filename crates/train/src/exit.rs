//! The documented exit codes.

/// How the program ended. On a verdict all ranks leave with one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// The work is done, perhaps degraded (a save or log failed on the way).
    Done = 0,
    /// A comparison that was asked for found a difference.
    Differs = 1,
    /// Usage or configuration.
    Usage = 64,
    /// Bad data beyond the policy.
    BadData = 65,
    /// Rendezvous or a peer unreachable.
    Unreachable = 69,
    /// A bug: panic or broken invariant.
    Internal = 70,
    /// GPU or NCCL error.
    Device = 71,
    /// I/O error on a checkpoint.
    CheckpointIo = 74,
    /// Preempted, checkpoint good.
    Preempted = 75,
    /// Another rank was lost; this one survived it.
    PeerLost = 76,
    /// A rank hung.
    Hang = 77,
    /// A check before the start failed.
    Preflight = 78,
    /// Loss or gradients not finite, or ranks differ.
    Divergence = 79,
    /// Stopped by INT; with a checkpoint of that step, unless a second signal came.
    Interrupted = 130,
    /// Stopped by TERM; with a checkpoint of that step, unless a second signal came.
    Terminated = 143,
}

impl Exit {
    /// The exit of a code that other ranks, or the rendezvous, decided on; what is not documented is a bug.
    pub fn of_code(code: u8) -> Exit {
        const ALL: [Exit; 15] = [
            Exit::Done,
            Exit::Differs,
            Exit::Usage,
            Exit::BadData,
            Exit::Unreachable,
            Exit::Internal,
            Exit::Device,
            Exit::CheckpointIo,
            Exit::Preempted,
            Exit::PeerLost,
            Exit::Hang,
            Exit::Preflight,
            Exit::Divergence,
            Exit::Interrupted,
            Exit::Terminated,
        ];
        ALL.into_iter().find(|exit| exit.code() == code).unwrap_or(Exit::Internal)
    }

    /// The code that the process returns.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether running the same job again makes sense.
    pub const fn requeue(self) -> bool {
        matches!(self, Self::Unreachable | Self::Preempted | Self::PeerLost | Self::Hang)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn requeue_is_right_for_what_may_go_better_next_time() {
        let again = [69, 75, 76, 77];
        for exit in [
            Exit::Usage,
            Exit::BadData,
            Exit::Unreachable,
            Exit::Preempted,
            Exit::PeerLost,
            Exit::Hang,
            Exit::Preflight,
            Exit::Divergence,
        ] {
            assert_eq!(exit.requeue(), again.contains(&exit.code()), "{exit:?}");
        }
    }
}
