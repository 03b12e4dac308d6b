//! A network's evaluation head alone: weights into it once, then batches through it.

use crate::device::Job;
use crate::error::TrainError;
use crate::executor::Executor;
use crate::step::{Compile, Model};
use crate::weights::{published, states_read, write_state};
use plan::{Scalars, StateTable};
use spec::StepInput;
use std::path::Path;
use tensor::HostTensor;
use tensor::safe::Tensors;

/// What a head is made from.
pub(crate) struct Head<'a> {
    pub model: &'a Model,
    /// Images that go through at once.
    pub batch: usize,
    pub input: Option<StepInput>,
    /// By published names, and where they are from.
    pub tensors: &'a Tensors,
    pub path: &'a Path,
}

/// From the inputs of a batch to the head's values, [batch, …].
pub(crate) type Values = Box<dyn FnMut(&[(String, HostTensor)]) -> Result<Vec<f64>, TrainError>>;

impl Job for Head<'_> {
    type Output = Values;

    fn run<E: Executor>(self, make: impl Fn(usize) -> Result<E, TrainError> + Sync) -> Result<Values, TrainError> {
        let fail = |reason: String| TrainError::Weights { path: self.path.to_path_buf(), reason };
        let mut executor = make(0)?;
        let mut states = StateTable::default();
        let compile = Compile::head(self.input).on(executor.storage());
        let plan = compile.evaluation(self.model, self.batch, &mut states)?;
        executor.reserve(&[&plan], &states, 1)?;
        let read = states_read(&plan.graph);
        for entry in states.entries.iter().filter(|e| read.contains(&e.name)) {
            let name = published(&entry.name);
            let tensor =
                self.tensors.get(name).ok_or_else(|| fail(format!("{name} is missing; expected {}", entry.shape)))?;
            write_state(&mut executor, entry, tensor).map_err(|why| fail(format!("{name}: {why}")))?;
        }
        executor.prepare(&plan)?;
        let slots = vec![1.0; plan.graph.slots.len()];
        let scalars = Scalars { slots, micro_units: vec![[self.batch, 0]], ..Scalars::default() };
        Ok(Box::new(move |inputs| {
            for (name, tensor) in inputs {
                executor.set_input(&plan, name, tensor)?;
            }
            executor.body(&plan, 0, 0, &scalars)?;
            executor.read(&plan, plan.phases[0].losses.outputs[0].1)
        }))
    }
}
