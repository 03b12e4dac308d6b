//! How a list of steps runs: one by one with a wait after each, or recorded once as a graph and replayed.

use crate::driver::{Event, EventKind, Graph, Stream, WAITING};
use crate::error::CudaError;
use crate::program::Step;
use plan::Cost;
use std::collections::HashMap;

/// How an executor runs its lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Launch by launch, waiting after each: an error names the node that launched.
    Stepped,
    /// Each list is a captured graph, from its second run on.
    Captured,
}

impl Mode {
    /// Captured; launch by launch where the variable RETORT_STEPPED is set, to find the node of an error.
    pub fn from_env() -> Mode {
        if std::env::var_os("RETORT_STEPPED").is_some_and(|v| !v.is_empty()) { Mode::Stepped } else { Mode::Captured }
    }
}

/// A list of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum List {
    Prepare,
    Body(usize),
    Update(usize),
    /// Body of the first micro-batch, then update.
    Phase(usize),
}

/// What a node took.
#[derive(Clone, Debug)]
pub struct Timing {
    pub path: String,
    pub op: &'static str,
    /// Its kernels (or `zero`, `copy`) and their milliseconds, on the GPU's clock.
    pub commands: Vec<(&'static str, f32)>,
    pub cost: Cost,
}

#[derive(Debug)]
pub(crate) struct Replay {
    pub mode: Mode,
    /// By plan and list; `None` after the first run, in which modules load.
    graphs: HashMap<(u64, List), Option<Graph>>,
    pub profile: Option<Vec<Timing>>,
}

impl Replay {
    pub(crate) fn new(mode: Mode) -> Replay {
        Replay { mode, graphs: HashMap::new(), profile: None }
    }

    pub(crate) fn forget(&mut self) {
        self.graphs.clear();
    }

    /// Captured lists.
    pub(crate) fn graphs(&self) -> usize {
        self.graphs.values().flatten().count()
    }

    /// An error of a wait: some launch before it failed, which one is known launch by launch alone.
    pub(crate) fn late(&self, error: CudaError) -> CudaError {
        match error {
            CudaError::Driver { what, fault } if self.mode == Mode::Captured && what == WAITING => {
                let what = "something that was launched failed (RETORT_STEPPED=1 finds out what)".to_string();
                CudaError::Driver { what, fault }
            }
            other => other,
        }
    }

    pub(crate) fn run(&mut self, key: (u64, List), steps: &[&[Step]], stream: &Stream) -> Result<(), CudaError> {
        let steps = || steps.iter().copied().flatten();
        if self.profile.is_some() {
            for step in steps() {
                let timing = timed(step, stream)?;
                self.profile.iter_mut().for_each(|p| p.push(timing.clone()));
            }
            return Ok(());
        }
        if self.mode == Mode::Stepped {
            return steps().try_for_each(|step| stepped(step, stream));
        }
        let issue = || steps().try_for_each(|s| s.commands.iter().try_for_each(|c| c.issue(stream, s)));
        match self.graphs.get_mut(&key) {
            None => {
                issue()?;
                self.graphs.insert(key, None);
            }
            Some(Some(graph)) => stream.launch_graph(graph)?,
            Some(_) if steps().all(|s| s.commands.is_empty()) => {} // a graph of nothing is none
            Some(place) => {
                let graph = place.insert(stream.capture(issue)?);
                stream.launch_graph(graph)?;
            }
        }
        Ok(())
    }
}

/// Runs the commands of a step one by one.
pub(crate) fn stepped(step: &Step, stream: &Stream) -> Result<(), CudaError> {
    for command in &step.commands {
        command.issue(stream, step)?;
        stream.synchronize().map_err(|e| named(e, command, step))?;
    }
    Ok(())
}

fn named(error: CudaError, command: &crate::program::Ready, step: &Step) -> CudaError {
    match error {
        CudaError::Driver { fault, .. } => command.failed(step, fault),
        other => other,
    }
}

fn timed(step: &Step, stream: &Stream) -> Result<Timing, CudaError> {
    let [begin, end] = [(); 2].map(|()| Event::new(&stream.gpu, EventKind::Time));
    let (begin, end) = (begin?, end?);
    let mut commands = Vec::with_capacity(step.commands.len());
    for command in &step.commands {
        begin.record(stream)?;
        command.issue(stream, step)?;
        end.record(stream)?;
        end.synchronize().map_err(|e| named(e, command, step))?;
        commands.push((command.name(), begin.elapsed_ms(&end)?));
    }
    Ok(Timing { path: step.path.clone(), op: step.op, commands, cost: step.cost })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Gpu;
    use crate::program::Ready;

    /// Memory at 8 is no one's: the driver refuses.
    #[test]
    fn an_error_names_the_node_and_what_it_launched() {
        let gpu = match Gpu::open(0) {
            Ok(gpu) => gpu,
            Err(e) => return println!("skipped: {e}"),
        };
        let stream = Stream::new(&gpu).unwrap();
        let commands = vec![Ready::Zero { to: 8, bytes: 16 }];
        let step = Step { path: "student/conv1".into(), op: "zero", cost: Cost::default(), commands };
        for mode in [Mode::Stepped, Mode::Captured] {
            let run = Replay::new(mode).run((0, List::Body(0)), &[std::slice::from_ref(&step)], &stream);
            let text = run.unwrap_err().to_string();
            assert!(text.starts_with("GPU: student/conv1 (zero), zero: CUDA_ERROR_"), "{mode:?}: {text}");
        }
    }
}
