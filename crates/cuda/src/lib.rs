//! CUDA backend: from a plan to kernel launches at device addresses, launch by launch or as captured graphs.
//!
//! Invariant: it knows no network and no method. Everything between a plan's launch and its kernels is a pure function
//! (`bind`), tested without a GPU; the driver is behind two files (`driver`, `pinned`).

mod arena;
mod bind;
mod binding;
mod bn;
mod bn_ranks;
mod command;
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

pub use bind::bind;
pub use binding::{Addresses, Bound, Math};
pub use command::{Address, Command, Gathered, Kernel};
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
pub use scalars::encode as encode_scalars;
