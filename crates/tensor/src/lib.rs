//! Element types, shapes, host tensors, bf16 rounding and safetensors files.
//!
//! Invariant: a `HostTensor` always holds exactly `shape.elements() * dtype.size()` bytes, aligned for any element type,
//! and nothing read from a file can break that. Knows no device, no graph and no network.

mod dtype;
mod host;
pub mod safe;
mod shape;

pub use dtype::{Dtype, Element, bf16, round_bf16};
pub use host::{HostTensor, KCRS_TO_KRSC, KRSC_TO_KCRS};
pub use safe::SafeFile;
pub use shape::{MAX_RANK, Shape};

use std::path::PathBuf;

/// What can be wrong with a tensor or a tensor file.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// More dimensions than [`MAX_RANK`], or a size that overflows.
    #[error("shape {dims:?}: at most {MAX_RANK} dimensions and 2^47 elements are supported")]
    Shape { dims: Vec<usize> },
    /// The data does not fill the shape.
    #[error("{dtype} tensor of shape {shape} needs {expected} bytes, got {got}")]
    Length { dtype: Dtype, shape: Shape, expected: usize, got: usize },
    /// A view or conversion that the element type does not allow.
    #[error("expected a tensor of type {expected}, got {got}")]
    Dtype { expected: &'static str, got: Dtype },
    /// A permutation that does not fit.
    #[error(
        "cannot permute a tensor of shape {shape} by {order:?}: four dimensions and each of 0 to 3 once are needed"
    )]
    Permutation { shape: Shape, order: [usize; 4] },
    /// A name that is none of `f64 f32 bf16 u8 i32 i64`.
    #[error("unknown element type `{0}`; expected one of f64, f32, bf16, u8, i32, i64")]
    UnknownDtype(String),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Not a valid safetensors file.
    #[error("{file}: not a valid safetensors file: {detail}")]
    Format { file: String, detail: String },
    /// The file lacks a tensor.
    #[error("{file}: has no tensor `{name}`")]
    Missing { file: String, name: String },
    /// Pickles run code when opened.
    #[error("{file}: pickle is never opened; see `retort import --help`")]
    Pickle { file: String },
}
