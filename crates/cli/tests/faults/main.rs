//! The fault list of RELIABILITY.md, section 9, for runs of several processes: ranks that are killed, stopped, slow, misled or
//! damaged, launchers that die, signals, and what a run comes to in spite of all that.
//!
//! A short form of each by default; with RETORT_FAULT_RUNS=N the long form, at most N runs of a fault and limits without
//! allowance for a busy machine. RETORT_FAULT_SEED repeats the random choices, which are printed. A line of the table for
//! every fault goes to stderr, and to the file RETORT_FAULT_TABLE. `tests/faults.sh` sets all three.
//!
//! Not here, since nothing outside a process can make it happen: a rank that exits 0 early, panics or overflows its stack (tests
//! of the watch, `crates/comm/tests/watch`); noise and strangers at the meeting (`crates/comm/tests/meeting.rs`).

mod damage;
mod deaths;
mod evaluation;
mod hangs;
#[allow(dead_code)] // another test uses the rest
#[path = "../whole/job.rs"]
mod job;
mod launches;
mod launching;
mod network;
mod pace;
#[allow(dead_code)] // another test uses the rest
#[path = "../support/program.rs"]
mod program;
mod resumes;
mod sinks;
mod slowness;
mod starts;
mod stops;
mod table;
