//! The CUDA column of the op table: every kernel against the CPU's op; and the wrappers of instructions against their definitions.
//!
//! `SIMGPU` names the folder of the stand-in (`simgpu/build.sh OUT`), which runs without a driver: each case in several schedules
//! (order of threads, early and late copies), which must give the same bits. Without it the same cases run through the driver on the
//! first GPU; this program needs nothing else there, `tests/gpu.sh` carries it. Without a GPU they are skipped aloud.

mod bn;
mod conv;
mod coverage;
mod elementwise;
mod hardware;
mod harness;
mod image;
mod loss;
mod matmul;
mod pool;
mod rank;
mod rows;
mod stand_in;
mod update;
mod wrappers;
