//! Whole networks and steps through graph, plan and executor, against the goldens and against identities of the formulas.

mod engine;
mod golden;
mod lars;
mod micro_batches;
mod nets;
mod networks;
mod oracles_ips;
mod steps;
#[path = "../../../nets/tests/support/wave.rs"]
mod wave;
