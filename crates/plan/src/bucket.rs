//! bucket: the layout of what is reduced. One arena holds, per phase, the loss values and monitors, then the gradients in
//! the order in which the body makes them; a bucket is a slice of it that is ready after one node.
//!
//! In: an ordered graph. Out: offsets; the graph is unchanged. No gradient is ever packed or copied.

use crate::Options;
use crate::step::StepGraph;
use graph::{NodeId, Op, Source, ValueId};
use std::ops::Range;

/// A slice of the reduce arena, in elements, and the node after which it is complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    pub phase: usize,
    pub range: Range<usize>,
    pub ready_after: NodeId,
}

/// Where each reduced value lies.
#[derive(Clone, Debug, Default)]
pub struct ReduceLayout {
    /// Name, body value, elements, offset in elements.
    pub entries: Vec<(String, ValueId, Range<usize>)>,
    /// Elements of each phase.
    pub phases: Vec<Range<usize>>,
    pub buckets: Vec<Bucket>,
    pub elements: usize,
}

/// Offsets are multiples of this many elements, so that every gradient is aligned.
const ALIGN: usize = 64;

pub fn bucket(step: &StepGraph, options: &Options) -> ReduceLayout {
    let mut layout = ReduceLayout::default();
    for p in 0..step.phases.len() {
        let begin = layout.elements;
        for (value, made_by) in reduced_in_order(step, p) {
            let start = layout.elements;
            let end = start + step.graph.shape(value).elements();
            layout.entries.push((name_of(step, p, value), value, start..end));
            layout.elements = end.next_multiple_of(ALIGN);
            let open = layout.buckets.last().filter(|b| b.phase == p).map(|b| b.range.len() * 4 < options.bucket_bytes);
            match (open, layout.buckets.last_mut()) {
                (Some(true), Some(bucket)) => (bucket.range.end, bucket.ready_after) = (layout.elements, made_by),
                _ => layout.buckets.push(Bucket { phase: p, range: start..layout.elements, ready_after: made_by }),
            }
        }
        layout.phases.push(begin..layout.elements);
    }
    layout
}

/// Values that the phase reduces, in the order in which they are made, each once.
fn reduced_in_order(step: &StepGraph, phase: usize) -> Vec<(ValueId, NodeId)> {
    let graph = &step.graph;
    let reduces = graph.nodes.iter().filter(|n| n.op == Op::Reduce && n.place.phase as usize == phase);
    let mut values: Vec<_> = reduces
        .map(|n| match graph.value(n.inputs[0]).source {
            Source::Node(id, _) => (n.inputs[0], id),
            _ => unreachable!("only values of the body are reduced"),
        })
        .collect();
    values.sort_by_key(|&(value, id)| (id, value));
    values.dedup();
    values
}

/// A name that does not depend on the shape of the micro-batch: bodies of other shapes find their place by it.
fn name_of(step: &StepGraph, p: usize, value: ValueId) -> String {
    let phase = &step.phases[p];
    for term in &phase.losses.terms {
        if let Some(i) = term.loss.parts.iter().position(|part| part.1 == value) {
            return format!("{p}/loss/{}/{i}", term.name);
        }
    }
    if let Some(monitor) = phase.losses.monitors.iter().find(|m| m.value == value) {
        return format!("{p}/monitor/{}", monitor.name);
    }
    let of = |grad: &crate::Grad| matches!(grad, crate::Grad::Value { body: Some(b), .. } if *b == value);
    let param = phase.grads.iter().find(|g| of(&g.2)).map(|g| step.graph.state(g.0).name.clone());
    format!("{p}/grad/{}", param.expect("what is reduced is a loss, a monitor or a gradient"))
}
