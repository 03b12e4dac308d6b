//! The CUDA column of the op table: every kernel against the CPU's op, on the stand-in GPU, without a driver.
//!
//! `SIMGPU` names the folder of the stand-in (`simgpu/build.sh OUT`); without it these tests are skipped aloud. Each case runs in
//! several schedules (order of threads, early and late copies), which must give the same bits.

mod bn;
mod conv;
mod coverage;
mod elementwise;
mod harness;
mod pool;
mod image;
mod rank;
mod rows;
mod loss;
mod matmul;
mod update;
