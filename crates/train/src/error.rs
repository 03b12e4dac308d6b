//! Everything that can end a run, each with what, where, expected, got and a remedy.

use crate::checkpoint::CheckpointError;
use std::path::PathBuf;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum TrainError {
    #[error(transparent)]
    Recipe(#[from] crate::recipe_parse::RecipeError),
    /// Settings that only make sense, or not, together with the data, the network or the number of ranks.
    #[error("{0}")]
    Setting(String),
    #[error(transparent)]
    Data(#[from] data::DataError),
    #[error("{bad} of {seen} samples could not be read, more than data.max_bad = {max}; the first: {first}")]
    TooManyBad { bad: usize, seen: usize, max: f64, first: String },
    #[error("{}: {reason}", path.display())]
    Weights { path: PathBuf, reason: String },
    #[error(transparent)]
    Tensor(#[from] tensor::TensorError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("the final checkpoint could not be written: {0}; the newest good one is {1}")]
    FinalSave(String, String),
    #[error(
        "{starts} starts in a row from step {step} ended without progress, so this one does not begin; look for the cause in \
         {0}/logs/verdict.json and exit-*.json beside it, then delete {1} to go on; where the runs are cut short, save more often by output.checkpoint_steps",
        run_dir.display(), note.display()
    )]
    NoProgress { step: u64, starts: u32, run_dir: PathBuf, note: PathBuf },
    #[error(transparent)]
    Comm(#[from] comm::CommError),
    #[error("{}", diverged(*step, ranks))]
    Diverged { step: u64, ranks: Vec<usize> },
    /// The device that was asked for cannot be used.
    #[error("{0}")]
    Device(String),
    #[error(transparent)]
    Cpu(cpu::CpuError),
    #[error(transparent)]
    Cuda(Box<cuda::CudaError>),
    #[error("a bug of this program: {0}")]
    Plan(Box<plan::PlanError>),
    #[error(
        "step {step}: not finite, first at {path} ({op}); nothing of the step was kept. \
         Lower optimizer.lr, set train.clip_norm, or train.on_nonfinite = \"skip\""
    )]
    NonFinite { step: u64, path: String, op: &'static str },
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("rank {rank} panicked: {what}")]
    Panic { rank: usize, what: String },
}

impl TrainError {
    /// Whether it ends all ranks with one code: each meets it at the same place of the loop, or rank 0 decides it for all.
    pub fn is_everyones(&self) -> bool {
        use TrainError::*;
        matches!(self, Diverged { .. } | NonFinite { .. } | TooManyBad { .. } | NoProgress { .. })
    }

    /// The one rank whose fault it is, where that is known.
    pub fn culprit(&self) -> Option<usize> {
        match self {
            TrainError::Diverged { ranks, .. } if ranks.len() == 1 => Some(ranks[0]),
            _ => None,
        }
    }
}

impl From<cuda::CudaError> for TrainError {
    fn from(error: cuda::CudaError) -> TrainError {
        TrainError::Cuda(Box::new(error))
    }
}

impl From<plan::PlanError> for TrainError {
    fn from(error: plan::PlanError) -> TrainError {
        TrainError::Plan(Box::new(error))
    }
}

fn diverged(step: u64, ranks: &[usize]) -> String {
    let names: Vec<_> = ranks.iter().map(usize::to_string).collect();
    let (noun, verb) = if ranks.len() == 1 { ("rank", "holds") } else { ("ranks", "hold") };
    format!(
        "step {step}: {noun} {} {verb} other weights than the rest, expected the same bits on all: a fault of memory or of a device; \
         resume without that host from a checkpoint before the last comparison that was good (ranks.check_every)",
        names.join(", ")
    )
}
