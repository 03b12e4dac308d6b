//! Between an engine's states and a checkpoint's tensor groups.
//!
//! `model`: the student under published names; a method's modules, trained teachers and what the evaluation head reads of
//! a frozen one under their own. `ema`: the moving
//! average, published names. `optim`: momenta. `data`: per-sample and rolling state. Frozen teachers are not stored.

use crate::engine::Engine;
use crate::error::TrainError;
use crate::executor::Executor;
use crate::weights::{module_tensors, published, read_state, states_read, write_state};
use plan::{Plan, StateEntry, StateTable};
use spec::{Op, StateKind};
use std::collections::{BTreeMap, HashSet};
use tensor::safe::Tensors;

/// Group and name of a state in checkpoints; `None` for what is made anew at the start.
fn filed<'a>(entry: &'a StateEntry, written: &HashSet<String>) -> Option<(&'static str, &'a str)> {
    let name = entry.name.as_str();
    match entry.kind {
        StateKind::Param | StateKind::Buffer => {
            let kept = name.starts_with("student.") || name.starts_with("method.") || written.contains(name);
            kept.then(|| ("model", published(name)))
        }
        StateKind::Momentum => Some(("optim", name)),
        StateKind::Ema => Some(("ema", published(name.strip_prefix("ema.").unwrap_or(name)))),
        StateKind::Memory => Some(("data", name)),
        StateKind::Anchor => None,
    }
}

/// States that training writes or the evaluation head reads.
fn written<E: Executor>(engine: &Engine<E>) -> HashSet<String> {
    written_by(engine.plan(), engine.eval.as_ref())
}

fn written_by(training: &Plan, eval: Option<&Plan>) -> HashSet<String> {
    let graph = &training.graph;
    let trains = |op: &Op| matches!(op, Op::Sgd(_) | Op::Lars(_) | Op::BnRunning { .. });
    let states = graph.nodes.iter().filter(|n| trains(&n.op)).flat_map(|n| n.op.states());
    let head = eval.into_iter().flat_map(|plan| states_read(&plan.graph));
    states.map(|s| graph.state(s).name.clone()).chain(head).collect()
}

/// Bytes of the states that a checkpoint of a run with these plans holds.
pub(crate) fn stored_bytes(states: &StateTable, training: &Plan, eval: &Plan) -> u64 {
    let written = written_by(training, Some(eval));
    let stored = states.entries.iter().filter(|entry| filed(entry, &written).is_some());
    stored.map(|entry| (entry.shape.elements() * entry.dtype.size()) as u64).sum()
}

/// All states that a resumed run needs; `forwards` counts training micro-batches, for `num_batches_tracked`.
pub(crate) fn groups<E: Executor>(engine: &Engine<E>, forwards: u64) -> Result<BTreeMap<String, Tensors>, TrainError> {
    let written = written(engine);
    let mut groups: BTreeMap<String, Tensors> = BTreeMap::new();
    for entry in &engine.states.entries {
        if let Some((group, name)) = filed(entry, &written) {
            let tensor = read_state(&engine.executor, entry)?;
            groups.entry(group.to_string()).or_default().insert(name.to_string(), tensor);
        }
    }
    let graph = &engine.plan().graph;
    let student = module_tensors(&engine.executor, &engine.states, graph, "student.", forwards)?;
    groups.entry("model".to_string()).or_default().extend(student);
    Ok(groups)
}

/// Puts a checkpoint's tensors into the states. The error lists what is missing or does not fit.
pub(crate) fn restore<E: Executor>(engine: &mut Engine<E>, groups: &BTreeMap<String, Tensors>) -> Result<(), String> {
    let written = written(engine);
    let Engine { executor, states, .. } = engine;
    for entry in &states.entries {
        let Some((group, name)) = filed(entry, &written) else { continue };
        let tensor =
            groups.get(group).and_then(|g| g.get(name)).ok_or_else(|| format!("{group}: {name} is missing"))?;
        write_state(executor, entry, tensor).map_err(|why| format!("{group}: {name}: {why}"))?;
    }
    Ok(())
}

/// Evaluates with the moving average in the student's place: exchanges the two; a second call undoes it.
pub(crate) fn swap_ema<E: Executor>(engine: &mut Engine<E>) -> Result<(), TrainError> {
    let Engine { executor, states, .. } = engine;
    for ema in states.entries.iter().filter(|e| e.kind == StateKind::Ema) {
        let Some(source) = ema.copy_of.as_deref().and_then(|name| states.find(name)) else { continue };
        let len = ema.shape.elements();
        let (a, b) = (executor.state(ema.offset, len)?, executor.state(source.offset, len)?);
        executor.set_state(ema.offset, &b)?;
        executor.set_state(source.offset, &a)?;
    }
    Ok(())
}
