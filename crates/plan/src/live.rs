//! Liveness: which nodes need the memory of a value.

use crate::place::alias;
use crate::step::Phase;
use graph::{Graph, ValueId};

/// A value and the first and last node that need its memory.
pub(crate) struct Life {
    pub value: ValueId,
    pub start: usize,
    pub end: usize,
}

/// First and last node of every value that `wanted` picks and no other value's memory holds.
pub(crate) fn lifetimes(graph: &Graph, phases: &[Phase], wanted: impl Fn(ValueId) -> bool) -> Vec<Life> {
    let mut root: Vec<ValueId> = (0..graph.values.len()).map(|i| ValueId(i as u32)).collect();
    let mut end = vec![0; graph.values.len()];
    let mut lives = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            end[root[input.0 as usize].0 as usize] = i;
        }
        if let Some((base, _)) = alias(graph, node) {
            root[node.outputs[0].0 as usize] = root[base.0 as usize];
            continue;
        }
        for &output in node.outputs.iter().filter(|&&o| wanted(o)) {
            end[output.0 as usize] = i;
            lives.push((output, i));
        }
    }
    for value in phases.iter().flat_map(Phase::held) {
        end[root[value.0 as usize].0 as usize] = graph.nodes.len();
    }
    lives.into_iter().map(|(value, start)| Life { value, start, end: end[value.0 as usize] }).collect()
}

/// Bytes alive during each node, by the bytes of each value: no placement does with less than the most.
pub(crate) fn live_bytes(graph: &Graph, phases: &[Phase], bytes: impl Fn(ValueId) -> usize) -> Vec<usize> {
    let mut live = vec![0; graph.nodes.len()];
    for life in lifetimes(graph, phases, |_| true) {
        let during = life.start..(life.end + 1).min(live.len());
        live[during].iter_mut().for_each(|l| *l += bytes(life.value));
    }
    live
}
