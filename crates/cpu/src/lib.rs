//! CPU backend in f32: convolution and matrix products.

mod arena;
mod bn;
pub mod conv;
mod conv_depthwise;
mod conv_direct;
pub mod conv_reference;
mod conv_task;
mod conv_wgrad;
mod conv_winograd;
mod correlation;
mod elementwise;
mod executor;
pub mod gemm;
mod image;
pub mod io;
pub mod linear;
mod neighbours;
mod pool;
mod rank;
mod ranks;
mod row_kind;
mod row_loss;
mod rows;
mod run;
mod scratch;
pub mod simd;
mod simd_rows;
mod simd_vector;
mod simd_winograd;
mod update;

pub use executor::{CpuError, Executor};
pub use io::{Real, Scalars};
pub use ranks::Gather;
