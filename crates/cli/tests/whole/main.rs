//! The program as a whole, started as users start it: the same bits however it runs, is stopped or killed; signals; faults;
//! predictions.

mod bitwise;
mod faults;
mod job;
mod predictions;
#[path = "../support/program.rs"]
mod program;
mod stops;
