//! CUDA backend: from a plan to kernel launches at device addresses, launch by launch or as captured graphs.
//!
//! Invariant: it knows no network and no method. Everything between a plan's launch and its kernels is a pure function
//! (`bind`), tested without a GPU; the driver is behind one file (`driver`).

mod arena;
pub mod bind;
mod bn;
mod bn_ranks;
mod conv;
mod conv_depthwise;
mod conv_stem;
mod driver;
mod elementwise;
mod error;
mod exchange;
mod executor;
mod facts;
mod image;
mod input;
mod inspect;
mod loss;
mod loss_rows;
mod marks;
mod matmul;
mod measure;
mod module;
mod part;
mod pinned;
mod pool;
mod program;
mod rank;
mod ranks;
mod reduce_rate;
mod replay;
mod rows;
mod run_op;
mod scalars;
mod transfer;
mod update;

pub use bind::Math;
pub use driver::devices;
pub use error::{CudaError, Fault};
pub use executor::Executor;
pub use facts::Facts;
pub use inspect::{Looked, Seen};
pub use measure::{Footprint, footprint, free_memory};
pub use module::{Coverage, archs, coverage, stems};
pub use part::Part;
pub use ranks::{Gradients, Meeting};
pub use reduce_rate::Reduction;
pub use replay::{Mode, Timing};
pub use run_op::OpRun;
