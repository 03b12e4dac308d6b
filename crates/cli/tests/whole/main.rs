//! The program as a whole, started as users start it: the same bits however it runs, is stopped or killed; signals; faults;
//! predictions; label averaging.

mod bitwise;
mod faults;
mod job;
mod pll;
mod predictions;
#[path = "../support/program.rs"]
mod program;
mod stages;
mod stops;
