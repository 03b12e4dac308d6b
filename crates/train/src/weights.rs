//! Weights between states and files: published names, filters as KCRS in files and KRSC in memory.

use crate::error::TrainError;
use crate::executor::Executor;
use cpu::Real;
use nets::{EntryValue, state_dict};
use plan::{StateEntry, StateTable};
use spec::{Graph, Source, StateKind};
use std::collections::HashSet;
use std::path::Path;
use tensor::safe::{self, Metadata, Tensors};
use tensor::{HostTensor, KCRS_TO_KRSC, KRSC_TO_KCRS, Shape};

/// Name of a state in files: the student's without its module, others as they are.
pub(crate) fn published(state: &str) -> &str {
    state.strip_prefix("student.").unwrap_or(state)
}

/// A state's values under the published layout.
pub(crate) fn read_state<E: Executor>(executor: &E, entry: &StateEntry) -> Result<HostTensor, TrainError> {
    let values = executor.state(entry.offset, entry.shape.elements())?;
    let tensor = host_tensor(entry.shape, &values)?;
    Ok(if entry.shape.rank() == 4 { tensor.permute4(KRSC_TO_KCRS)? } else { tensor })
}

/// Values in an executor's float type.
pub(crate) fn host_tensor<T: Real>(shape: Shape, values: &[T]) -> Result<HostTensor, TrainError> {
    Ok(if size_of::<T>() == 8 {
        HostTensor::new::<f64>(shape, bytemuck::cast_slice(values))?
    } else {
        HostTensor::new::<f32>(shape, bytemuck::cast_slice(values))?
    })
}

/// Writes a published tensor into a state. `Err` says what does not fit.
pub(crate) fn write_state<E: Executor>(
    executor: &mut E,
    entry: &StateEntry,
    tensor: &HostTensor,
) -> Result<(), String> {
    let expected = published_shape(entry.shape);
    if tensor.shape() != expected {
        return Err(format!("expected {expected}, got {}", tensor.shape()));
    }
    let tensor = if entry.shape.rank() == 4 {
        tensor.permute4(KCRS_TO_KRSC).map_err(|e| e.to_string())?
    } else {
        tensor.clone()
    };
    let values = tensor.to_f64().map_err(|e| e.to_string())?;
    let values: Vec<_> = values.into_iter().map(E::Real::of).collect();
    executor.set_state(entry.offset, &values).map_err(|e| e.to_string())
}

/// Sizes as files have them: filters are KCRS.
pub(crate) fn published_shape(shape: Shape) -> Shape {
    if shape.rank() == 4 { Shape::new(&KRSC_TO_KCRS.map(|axis| shape[axis])) } else { shape }
}

/// Names of the states that some node of the graph reads.
pub(crate) fn states_read(graph: &Graph) -> HashSet<String> {
    let inputs = graph.nodes.iter().flat_map(|n| &n.inputs);
    let read = inputs.filter_map(|&v| if let Source::State(s) = graph.value(v).source { Some(s) } else { None });
    read.map(|s| graph.state(s).name.clone()).collect()
}

/// A module's parameters and buffers with `num_batches_tracked`, under published names; `prefix` is that of the states
/// (`student.`, `ema.student.`), `forwards` the training forwards so far.
pub(crate) fn module_tensors<E: Executor>(
    executor: &E,
    table: &StateTable,
    graph: &Graph,
    prefix: &str,
    forwards: u64,
) -> Result<Tensors, TrainError> {
    let mut tensors = Tensors::new();
    for entry in state_dict(graph, "student") {
        let tensor = match entry.value {
            EntryValue::Counter { moves } => HostTensor::new(entry.shape, &[(forwards * moves as u64) as i64])?,
            EntryValue::State(_) => match table.find(&format!("{prefix}{}", entry.name)) {
                Some(state) => read_state(executor, state)?,
                None => continue,
            },
        };
        tensors.insert(entry.name, tensor);
    }
    Ok(tensors)
}

/// Fills the parameters and buffers of `module` (`student.`, `teacher.`) from a file. Every name must be there, and no other but those
/// of a method's modules and trained teachers, which go to the states of their names if there are any.
pub(crate) fn load_module<E: Executor>(
    executor: &mut E,
    table: &StateTable,
    module: &str,
    path: &Path,
) -> Result<Metadata, TrainError> {
    let (mut tensors, metadata) = safe::read(path)?;
    let fail = |reason: String| TrainError::Weights { path: path.to_path_buf(), reason };
    let mut wrong = Vec::new();
    let wanted = table.entries.iter().filter(|e| matches!(e.kind, StateKind::Param | StateKind::Buffer));
    for entry in wanted {
        let Some(name) = entry.name.strip_prefix(module) else { continue };
        match tensors.remove(name) {
            None => wrong.push(format!("{name}: missing, expected {}", published_shape(entry.shape))),
            Some(tensor) => {
                if let Err(why) = write_state(executor, entry, &tensor) {
                    wrong.push(format!("{name}: {why}"));
                }
            }
        }
    }
    for (name, tensor) in tensors.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked")) {
        match table.find(name).filter(|_| name.starts_with("method.") || name.starts_with("teacher")) {
            Some(entry) => wrong.extend(write_state(executor, entry, tensor).err().map(|why| format!("{name}: {why}"))),
            None if name.starts_with("method.") || name.starts_with("teacher") => {}
            None => wrong.push(format!("{name}: not a tensor of this network")),
        }
    }
    if wrong.is_empty() {
        return Ok(metadata);
    }
    let more = if wrong.len() > 8 { format!("\n  … and {} more", wrong.len() - 8) } else { String::new() };
    wrong.truncate(8);
    Err(fail(format!(
        "the weights do not fit the network; check its name and class count\n  {}{more}",
        wrong.join("\n  ")
    )))
}
