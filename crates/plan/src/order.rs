//! order: where frozen networks run. Their activations die at the losses, so they cost least memory either before the
//! student's begin to live or after its last ones were made; the plan takes the order with the smaller peak.
//!
//! In and out: the same nodes. Bits do not depend on the order.

use crate::fuse_frozen::written_states;
use crate::live::live_bytes;
use crate::place::Storage;
use crate::step::StepGraph;
use graph::{Graph, Op, Section, Source, ValueId};
use std::collections::HashSet;

pub fn order(step: &StepGraph, storage: Storage) -> StepGraph {
    let frozen = frozen_nodes(&step.graph);
    if !frozen.contains(&true) {
        return step.clone();
    }
    let as_built = step.graph.clone();
    let early: Vec<bool> = frozen.iter().map(|f| !f).collect();
    // These nodes behind the others of their place; `with_nodes` pulls each forward to its first reader.
    let moved = |behind: &[bool]| {
        let mut nodes: Vec<_> = behind.iter().zip(as_built.nodes.iter().cloned()).collect();
        nodes.sort_by_key(|(late, node)| (node.place, **late));
        as_built.with_nodes(nodes.into_iter().map(|n| n.1).collect())
    };
    let (early, late) = (moved(&early), moved(&frozen));
    let best = [as_built, early, late].into_iter().min_by_key(|g| peak_bytes(g, step, storage));
    StepGraph { graph: best.unwrap_or_else(|| step.graph.clone()), phases: step.phases.clone() }
}

/// Most bytes of the work arena alive at once; what is prepared, reduced or carried lies elsewhere.
fn peak_bytes(graph: &Graph, step: &StepGraph, storage: Storage) -> usize {
    let moved = graph.nodes.iter().filter(|n| matches!(n.op, Op::Reduce | Op::Carry));
    let moved: HashSet<ValueId> = moved.map(|n| n.inputs[0]).collect();
    let prepared = |v: ValueId| graph.producer(v).is_some_and(|n| n.place.section == Section::Prepare);
    let size = |v: ValueId| storage.size(graph.shape(v), graph.value(v).dtype);
    let bytes = |v: ValueId| if moved.contains(&v) || prepared(v) { 0 } else { size(v) };
    live_bytes(graph, &step.phases, bytes).into_iter().max().unwrap_or(0)
}

/// Nodes of a body that read frozen parameters, themselves or through others, and no trained ones.
fn frozen_nodes(graph: &Graph) -> Vec<bool> {
    let written = written_states(graph);
    // Per value: depends on a trained state, depends on a frozen one.
    let mut from: Vec<[bool; 2]> = graph
        .values
        .iter()
        .map(|v| match v.source {
            Source::State(s) => [written.contains(&s), !written.contains(&s)],
            _ => [false, false],
        })
        .collect();
    let mut frozen = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let any = |k: usize| node.inputs.iter().any(|v| from[v.0 as usize][k]);
        let flags = [any(0), any(1)];
        node.outputs.iter().for_each(|o| from[o.0 as usize] = flags);
        frozen[i] = node.place.section == Section::Body && flags == [false, true];
    }
    frozen
}
