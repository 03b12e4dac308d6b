//! Ranks that work together: one trait of collectives, and the worlds that implement it.
//!
//! Invariants: every rank calls the same collectives in the same order; sums are taken in rank order, so they are equal
//! bit for bit on all ranks and in every run; a rank that is gone makes the others' collectives errors, never a hang.
//! Knows no graph and no step; of devices only what NCCL takes, addresses and streams.

mod auth;
mod death;
pub mod discover;
mod door;
mod environment;
mod gpu_word;
mod hosting;
pub mod hostlist;
mod interface;
mod invitation;
mod joining;
pub mod judge;
mod launcher;
mod leaving;
mod limits;
mod log_tail;
pub mod meeting;
pub mod member;
mod message;
pub mod mpi;
mod nccl;
mod nccl_library;
mod phase;
pub mod pmix;
pub mod progress;
mod recorder;
mod rendezvous;
mod roll;
mod shared;
mod sockets;
mod solo;
mod straggler;
mod threads;
pub mod verdict;
mod watch;
mod watched;
pub mod wire;

pub use auth::{Secret, SecretError};
pub use death::Death;
pub use gpu_word::{GpuAt, GpuPlace, GpuWord};
pub use interface::listening_addresses;
pub use invitation::Invitation;
pub use launcher::{Choice, Launcher};
pub use limits::Limits;
pub use log_tail::{LOG_LINES, LogTail};
pub use nccl::{Aborter, Element, Nccl, NcclSettings};
pub use nccl_library::{Library, NcclError, VERSION_WANTED, version_text};
pub use progress::Progress;
pub use recorder::Entry;
pub use roll::name_ranks;
pub use shared::Shared;
pub use sockets::Sockets;
pub use solo::Solo;
pub use straggler::Cause;
pub use threads::Threads;
pub use watch::{Parent, SampleName, Watch, WatchSettings};
pub use watched::Watched;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Why a collective did not complete. After any of these the world is over: every later collective fails as well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// A rank ended, panicked or aborted before this collective. The first one to go is named on all ranks.
    #[error("rank {rank} is gone ({reason}); found in {op} #{sequence}")]
    PeerLost { rank: usize, reason: String, op: Op, sequence: u64 },
    /// The ranks called different collectives, which is a fault of the program or unequal recipes.
    #[error("collective #{sequence}: rank {rank} called {got}, rank 0 called {expected}")]
    Mismatch { rank: usize, sequence: u64, expected: Call, got: Call },
}

/// Name of this host, as the ranks tell each other.
pub fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".to_string(), |name| name.to_string_lossy().into_owned())
}

/// Kind of a collective, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Barrier,
    Broadcast { root: usize },
    AllReduce,
    AllGather,
}

/// What a rank called: all ranks of one collective must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub op: Op,
    pub bytes: usize,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Barrier => f.write_str("barrier"),
            Self::Broadcast { root } => write!(f, "broadcast from rank {root}"),
            Self::AllReduce => f.write_str("all_reduce"),
            Self::AllGather => f.write_str("all_gather"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.op, self.bytes)
    }
}

/// One rank's handle to its world. Dropping the handle says that this rank takes part in nothing more.
pub trait Communicator: Send {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Returns when all ranks have called it.
    fn barrier(&self) -> Result<(), CommError>;

    /// Replaces `data` by that of rank `root`. Equal length on all ranks. Panics if there is no rank `root`.
    fn broadcast(&self, data: &mut [u8], root: usize) -> Result<(), CommError>;

    /// Replaces each element by its sum over the ranks, `((r0 + r1) + r2) + …`. Equal length on all ranks.
    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommError>;

    /// As [`all_reduce_sum`](Self::all_reduce_sum) in f64: exact for counts up to 2^53.
    fn all_reduce_sum_f64(&self, data: &mut [f64]) -> Result<(), CommError>;

    /// The data of all ranks, one after the other in rank order. Equal length on all ranks.
    fn all_gather(&self, data: &[u8]) -> Result<Vec<u8>, CommError>;

    /// Tells all ranks that this one gives up: what they wait in now and call later is [`CommError::PeerLost`] with
    /// this rank and reason, unless another rank was lost before.
    fn abort(&self, reason: &str);

    /// How long, in all, the bytes of this rank's collectives took to arrive once the first of an answer had: what its link took, without
    /// the wait for other ranks. None where the two cannot be told apart.
    fn arriving(&self) -> Option<Duration> {
        None
    }

    /// Bitwise or of the flags of all ranks: how signals and bad values become a decision that all share.
    fn all_reduce_or(&self, flags: u32) -> Result<u32, CommError> {
        let all = self.all_gather(&flags.to_le_bytes())?;
        Ok(all.as_chunks().0.iter().fold(0, |or, &flags| or | u32::from_le_bytes(flags)))
    }

    /// The data of rank `root` on every rank, whose own is ignored; nobody else needs to know its length.
    fn broadcast_varied(&self, data: Vec<u8>, root: usize) -> Result<Vec<u8>, CommError> {
        let mut length = (data.len() as u64).to_le_bytes();
        self.broadcast(&mut length, root)?;
        let mut data = data;
        data.resize(u64::from_le_bytes(length) as usize, 0);
        self.broadcast(&mut data, root)?;
        Ok(data)
    }

    /// The data of each rank, in rank order; lengths may differ.
    fn all_gather_varied(&self, data: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let lengths = self.all_gather(&(data.len() as u64).to_le_bytes())?;
        let lengths: Vec<usize> = lengths.as_chunks().0.iter().map(|&n| u64::from_le_bytes(n) as usize).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![Vec::new(); lengths.len()]);
        }
        let mut padded = data.to_vec();
        padded.resize(longest, 0);
        let all = self.all_gather(&padded)?;
        Ok(all.chunks_exact(longest).zip(lengths).map(|(part, n)| part[..n].to_vec()).collect())
    }
}

impl Communicator for Box<dyn Communicator> {
    fn rank(&self) -> usize {
        (**self).rank()
    }

    fn world_size(&self) -> usize {
        (**self).world_size()
    }

    fn barrier(&self) -> Result<(), CommError> {
        (**self).barrier()
    }

    fn broadcast(&self, data: &mut [u8], root: usize) -> Result<(), CommError> {
        (**self).broadcast(data, root)
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommError> {
        (**self).all_reduce_sum(data)
    }

    fn all_reduce_sum_f64(&self, data: &mut [f64]) -> Result<(), CommError> {
        (**self).all_reduce_sum_f64(data)
    }

    fn all_gather(&self, data: &[u8]) -> Result<Vec<u8>, CommError> {
        (**self).all_gather(data)
    }

    fn abort(&self, reason: &str) {
        (**self).abort(reason);
    }

    fn arriving(&self) -> Option<Duration> {
        (**self).arriving()
    }

    fn all_reduce_or(&self, flags: u32) -> Result<u32, CommError> {
        (**self).all_reduce_or(flags)
    }

    fn all_gather_varied(&self, data: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        (**self).all_gather_varied(data)
    }
}
