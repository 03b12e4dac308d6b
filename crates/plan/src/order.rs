//! order: where frozen networks run. Their activations die at the losses, so they cost least memory either before the
//! student's begin to live or after its last ones were made; the plan takes the order with the smaller peak.
//!
//! In and out: the same nodes. Bits do not depend on the order.

use crate::fuse_frozen::written_states;
use crate::place::{Storage, peak_bytes};
use crate::step::StepGraph;
use graph::{Graph, Node, Section, Source};

pub fn order(step: &StepGraph, storage: Storage) -> StepGraph {
    let frozen = frozen_nodes(&step.graph);
    if !frozen.contains(&true) {
        return step.clone();
    }
    let as_built = step.graph.clone();
    let mut early: Vec<(bool, Node)> = frozen.iter().map(|f| !f).zip(as_built.nodes.iter().cloned()).collect();
    early.sort_by_key(|(late, node)| (node.place, *late));
    let early = as_built.with_nodes(early.into_iter().map(|(_, node)| node).collect());
    // Without the frozen nodes in the list's front, each waits until the first node that needs it.
    let lazy: Vec<Node> = late_order(&as_built, &frozen);
    let late = as_built.with_nodes(lazy);
    let best = [as_built, early, late].into_iter().min_by_key(|g| peak_bytes(g, storage));
    StepGraph { graph: best.unwrap_or_else(|| step.graph.clone()), phases: step.phases.clone() }
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

/// Frozen nodes moved behind the others of their place; `with_nodes` pulls each forward to its first reader.
fn late_order(graph: &Graph, frozen: &[bool]) -> Vec<Node> {
    let mut nodes: Vec<(bool, Node)> = frozen.iter().copied().zip(graph.nodes.iter().cloned()).collect();
    nodes.sort_by_key(|(late, node)| (node.place, *late));
    nodes.into_iter().map(|(_, node)| node).collect()
}
