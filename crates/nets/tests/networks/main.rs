//! Built networks against what is published of them. No executor: numbers are tests of the CPU.

mod build;
mod networks;
mod quirks;
#[path = "../support/wave.rs"]
mod wave;
