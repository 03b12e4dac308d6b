//! What a rank tells the others about itself before anything starts.

use serde::{Deserialize, Serialize};

/// A rank of a job, as it introduces itself. Everything is known before data and networks are opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub rank: u32,
    pub world_size: u32,
    /// Place among the ranks of its host, if the launcher says so; the meeting fills it in otherwise.
    pub local_rank: Option<u32>,
    pub host: String,
    pub pid: u32,
    /// Cores that the process may use.
    pub cores: u32,
    /// What computes, for people: `cpu`, `GPU 1 NVIDIA H200`.
    pub device: String,
    /// Of the GPU; empty on a CPU.
    pub uuid: String,
    /// As NCCL counts them, 22809 for 2.28.9; 0 without.
    pub nccl: u32,
    /// Hashes that must be equal on all ranks.
    pub program: [u8; 32],
    pub recipe: [u8; 32],
    /// Why this rank cannot start, and the code it would end with.
    pub trouble: Option<(u8, String)>,
}
