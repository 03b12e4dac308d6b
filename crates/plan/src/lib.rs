//! From the graph of a step to a list of launches at fixed addresses, in eight passes.
//!
//! Invariant: a pass knows ops, never a method or a network; only passes here create fused ops.

mod bucket;
mod check;
mod cost;
mod differentiate;
mod fuse;
mod fuse_bn;
mod fuse_frozen;
mod fuse_rows;
mod live;
mod lower;
mod optimize;
mod order;
mod place;
mod print;
mod scalars;
mod step;
mod stored;

pub use bucket::{Bucket, ReduceLayout, bucket};
pub use check::{CheckError, check};
pub use cost::{Cost, cost};
pub use differentiate::differentiate;
pub use fuse::{Fusion, fuse};
pub use lower::{Arg, Launch, Plan, lower};
pub use optimize::{Lars, OptimizerArgs, optimize};
pub use order::order;
pub use place::{Arena, Layout, Loc, Placement, StateEntry, StateTable, Storage, place};
pub use print::summary;
pub use scalars::{NonFinite, Scalars};
pub use step::{Grad, Phase, StepGraph, StepSource};

use graph::GraphError;
use thiserror::Error;

/// What can go wrong between a recipe's graph and a plan: bugs of passes, found before anything runs.
#[derive(Debug, Error)]
pub enum PlanError {
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Check(#[from] CheckError),
}

/// How a step is compiled.
#[derive(Clone, Debug)]
pub struct Options {
    pub fusion: Fusion,
    pub optimizer: OptimizerArgs,
    pub storage: Storage,
    /// Gradient bytes after which a bucket is closed.
    pub bucket_bytes: usize,
    /// Values to keep until the end of a body, by name (`logits`), for `retort step`.
    pub keep_outputs: bool,
}

/// Runs all passes. `states` is the table of the run's state: plans of one run share it. `layout`, when given, is that
/// of the full-size step, so that bodies of another shape reduce into the same arena.
pub fn compile(
    step: StepGraph,
    options: &Options,
    states: &mut StateTable,
    layout: Option<&Layout>,
) -> Result<Plan, PlanError> {
    let verified = |step: StepGraph, pass: &str| graph::verify(&step.graph, pass).map(|()| step);
    let step = verified(differentiate(&step), "differentiate")?;
    let step = verified(optimize(&step, &options.optimizer, options.keep_outputs), "optimize")?;
    let step = verified(fuse(&step, options.fusion), "fuse")?;
    let step = verified(order(&step, options.storage), "order")?;
    let reduce = bucket(&step, options);
    let placement = place(&step, &reduce, options.storage, states, layout);
    let plan = lower(step, placement, reduce);
    check(&plan)?;
    Ok(plan)
}
