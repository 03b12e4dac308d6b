//! Every op on the CPU: against goldens of PyTorch, gradients against finite differences, fused against plain forms,
//! equal bits for any number of threads, and the update section. A new golden of an unknown op is an error.

mod exact;
mod finite;
mod finite_losses;
mod golden;
mod golden_losses;
mod interpreter;
mod oracles;
mod state;
