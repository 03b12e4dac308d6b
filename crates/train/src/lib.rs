//! From a recipe to a result: the loop, evaluation, checkpoints, logs.
//!
//! Invariant: only this crate knows epochs. It runs lists of phases and names no method and no network.

pub mod checkpoint;
mod deploy;
mod device;
pub mod disk;
pub mod disk_sim;
pub mod engine;
mod error;
mod evaluate;
pub mod executor;
mod executor_cuda;
mod exit;
mod features;
mod feed;
mod head;
mod init;
mod inputs;
mod journal;
pub mod manifest;
pub mod metrics;
mod offline;
pub mod progress;
mod ranks;
pub mod recipe;
pub mod recipe_parse;
mod replay;
mod replay_files;
mod report;
mod resume;
pub mod schedule;
mod session;
pub mod signals;
mod snapshot;
mod stages;
pub mod step;
pub mod tensorboard;
mod trainer;
mod tree;
mod weights;

pub use deploy::{EvalOptions, PlanOptions, Prediction, Predictor, Weights, evaluate, export, import, plan_of};
pub use device::Device;
pub use error::TrainError;
pub use evaluate::Evaluation;
pub use exit::Exit;
pub use features::{Extracted, FeatureOptions, Resize, extract_features};
pub use journal::Verbosity;
pub use replay::{ReplayOptions, Warmup, compute, describe, replay};
pub use replay_files::{Wanted, WantedTensor};
pub use session::{Outcome, Resume, RunOptions, Session};
pub use stages::final_folder;
pub use trainer::Score;
