//! Passes, planner and checker: text before and after, equal results on the CPU, random graphs, planted faults.

mod equal;
mod faults;
mod order;
mod passes;
mod random;
mod rng;
mod support;
