//! Which units a rank works on in each step: whole micro-batches, dealt in contiguous runs.
//!
//! A step has `global_batch / micro_batch` places for micro-batches ("leaves", as of the tree that sums their gradients). A rank
//! owns the same leaves in every step; a short last step leaves places at the end empty and may have one shorter micro-batch.

use crate::error::DataError;

/// What happens to the last step of an epoch if it has too few units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastBatch {
    Keep,
    Drop,
}

/// One micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Micro {
    /// Number of the step in the epoch.
    pub step: u32,
    /// Place in the step.
    pub leaf: u32,
    /// Global number in the epoch: step × leaves a step + leaf. Keys micro-batch-wide draws.
    pub number: u32,
    /// Global slot of the first unit; the others follow.
    pub first_slot: u32,
    /// At least 1, at most `micro_batch`.
    pub units: u32,
}

/// The division of an epoch's units into steps and micro-batches; the same on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deal {
    units: u32,
    global_batch: u32,
    micro_batch: u32,
    steps: u32,
}

impl Deal {
    /// All counts in units. `micro_batch` must divide `global_batch`, and at least one step must result.
    pub fn new(units: usize, global_batch: usize, micro_batch: usize, last: LastBatch) -> Result<Deal, DataError> {
        let whole = [units, global_batch, micro_batch].map(u32::try_from);
        let [Ok(units), Ok(global_batch), Ok(micro_batch)] = whole else {
            return Err(DataError::Setting(format!(
                "{units} units in batches of {global_batch}; expected less than 2^32"
            )));
        };
        if micro_batch == 0 || global_batch == 0 {
            return Err(DataError::Setting(format!(
                "global_batch {global_batch} and micro_batch {micro_batch} must both be positive"
            )));
        }
        if !global_batch.is_multiple_of(micro_batch) {
            let lower = (global_batch / micro_batch).max(1) * micro_batch;
            return Err(DataError::Setting(format!(
                "global_batch {global_batch} is not divisible by micro_batch {micro_batch}; use {lower} or {}",
                u64::from(lower) + u64::from(micro_batch)
            )));
        }
        let steps = match last {
            LastBatch::Keep => units.div_ceil(global_batch),
            LastBatch::Drop => units / global_batch,
        };
        if steps == 0 {
            return Err(DataError::Setting(format!(
                "an epoch of {units} units has no step of global_batch {global_batch}"
            )));
        }
        Ok(Deal { units, global_batch, micro_batch, steps })
    }

    /// Steps of an epoch.
    pub fn steps(&self) -> usize {
        self.steps as usize
    }

    /// Micro-batches of a full step.
    pub fn leaves(&self) -> usize {
        (self.global_batch / self.micro_batch) as usize
    }

    /// Units of all ranks in `step`: what means divide by.
    pub fn step_units(&self, step: usize) -> usize {
        (self.units - step as u32 * self.global_batch).min(self.global_batch) as usize
    }

    /// The micro-batches of one rank in `step`, in order; empty where a short step leaves the rank without work.
    #[track_caller]
    pub fn deal(&self, step: usize, rank: usize, world: usize) -> Vec<Micro> {
        assert!(rank < world && step < self.steps(), "rank {rank} of {world}, step {step} of {}", self.steps);
        let leaves = self.leaves();
        let (first_slot, units) = (step as u32 * self.global_batch, self.step_units(step) as u32);
        share(leaves, rank, world)
            .map(|leaf| leaf as u32)
            .take_while(|leaf| leaf * self.micro_batch < units)
            .map(|leaf| Micro {
                step: step as u32,
                leaf,
                number: step as u32 * leaves as u32 + leaf,
                first_slot: first_slot + leaf * self.micro_batch,
                units: (units - leaf * self.micro_batch).min(self.micro_batch),
            })
            .collect()
    }
}

/// The micro-batches of a rank, as places in a full global batch of `leaves`: contiguous, as equal as can be.
pub fn share(leaves: usize, rank: usize, world: usize) -> std::ops::Range<usize> {
    leaves * rank / world..leaves * (rank + 1) / world
}
