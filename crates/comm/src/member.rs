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
    /// NUMA node of the GPU, else that of the cores if they are all of one.
    pub numa: Option<u32>,
    /// NUMA nodes of the cores that the process may use; empty if the system does not tell.
    pub core_nodes: Vec<u32>,
    /// The nearest NIC with a link; empty if none is known.
    pub nic: String,
    /// As NCCL counts them, 22809 for 2.28.9; 0 without.
    pub nccl: u32,
    /// Hashes that must be equal on all ranks.
    pub program: [u8; 32],
    pub recipe: [u8; 32],
    /// Why this rank cannot start, and the code it would end with.
    pub trouble: Option<(u8, String)>,
}

impl Member {
    /// NUMA node of its GPU, if none of its cores is of it.
    pub fn gpu_apart(&self) -> Option<u32> {
        let of_gpu = self.numa.filter(|_| !self.uuid.is_empty() && !self.core_nodes.is_empty())?;
        (!self.core_nodes.contains(&of_gpu)).then_some(of_gpu)
    }
}
