//! What can go wrong between the host and a GPU.

use std::fmt::{Display, Formatter};
use thiserror::Error;

/// An answer of the driver that is not success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// CUresult.
    pub code: u32,
    /// `CUDA_ERROR_…`
    pub name: String,
    pub text: String,
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.code, self.text)
    }
}

/// Errors of the CUDA backend. Those before `Driver` mean that this machine, or this build, cannot run it at all.
#[derive(Debug, Error)]
pub enum CudaError {
    #[error("no CUDA driver: libcuda.so.1 was not found; install NVIDIA driver 580 or newer, or use --device cpu")]
    NoDriver,
    #[error(
        "the CUDA driver is for CUDA {major}.{minor}, expected 13.0 or newer; install NVIDIA driver 580 or newer, or use --device cpu"
    )]
    OldDriver { major: i32, minor: i32 },
    #[error("the CUDA driver lacks the function {0}; install NVIDIA driver 580 or newer, or use --device cpu")]
    MissingSymbol(&'static str),
    #[error("the CUDA driver does not start: {0}; nvidia-smi may say more, --device cpu goes on without")]
    Init(Fault),
    #[error("the CUDA driver finds no GPU (CUDA_VISIBLE_DEVICES may hide them); use --device cpu")]
    NoDevice,
    #[error("no GPU {ordinal}: this machine has {count} (numbered from 0)")]
    Ordinal { ordinal: usize, count: usize },
    #[error("no embedded kernels; run tools/fetch-nvcc.sh and build again")]
    NoKernels,
    #[error("GPU {gpu}: the kernels were built for {archs}: {fault}; build again with RETORT_CUDA_ARCHS=\"{wanted}\"")]
    Arch { gpu: String, archs: &'static str, wanted: String, fault: Fault },

    #[error("GPU: {what}: {fault}")]
    Driver { what: String, fault: Fault },
    /// A launch that the driver refused, or, launch by launch, one that failed.
    #[error("GPU: {path} ({op}), {command}: {fault}")]
    Launch { path: String, op: &'static str, command: String, fault: Fault },
    #[error("{path} ({op}): no kernel {kernel} in the program; build again, and report it if that does not help")]
    NoKernel { path: String, op: &'static str, kernel: &'static str },
    #[error(
        "{path} ({op}): the arguments of kernel {kernel} have {got} bytes, it takes {expected}: kernels and program are of two versions; build again"
    )]
    Arguments { path: String, op: &'static str, kernel: &'static str, expected: usize, got: usize },
    #[error("GPU {gpu}: the run needs {need}, {free} of {total} are free; {remedy}")]
    Memory { gpu: String, need: String, free: String, total: String, remedy: String },
    /// A collective of the ranks' GPUs.
    #[error("{what}: {source}")]
    Ranks { what: String, source: Box<comm::NcclError> },
    #[error("{name}: expected {expected}, got {got}")]
    Tensor { name: String, expected: String, got: String },
}

impl CudaError {
    /// Whether another rank is to blame.
    pub fn is_peer(&self) -> bool {
        matches!(self, CudaError::Ranks { source, .. } if source.is_peer())
    }

    /// Whether it says that there is no GPU that this program can use, rather than that one failed.
    pub fn is_absence(&self) -> bool {
        use CudaError::*;
        match self {
            NoDriver | OldDriver { .. } | MissingSymbol(_) | Init(_) | NoDevice | Ordinal { .. } | NoKernels => true,
            Arch { .. } => true,
            Driver { .. } | Launch { .. } | NoKernel { .. } | Arguments { .. } | Memory { .. } | Tensor { .. } => false,
            Ranks { source, .. } => source.is_absence(),
        }
    }
}

/// Bytes for people: `1.50 GiB`.
pub(crate) fn size(bytes: usize) -> String {
    let units = [(1usize << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|u| bytes >= u.0) {
        Some(&(unit, name)) => format!("{:.2} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}
