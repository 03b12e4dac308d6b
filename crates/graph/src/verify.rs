//! The verifier that runs between passes: what every later part of the program takes for granted.

use crate::graph::{Graph, Section, Source};
use crate::infer::infer;
use crate::op::Op;
use thiserror::Error;

/// A broken invariant of a graph: a bug in a pass.
#[derive(Debug, Error)]
#[error("graph after {pass}: node {node} ({path}): {what}")]
pub struct GraphError {
    pub pass: String,
    pub node: usize,
    pub path: String,
    pub what: String,
}

/// Checks that places ascend, inputs are made before they are read, sections meet only through `Reduce` and `Carry`,
/// and every output has the shape and dtype that its op infers.
pub fn verify(graph: &Graph, pass: &str) -> Result<(), GraphError> {
    for (i, node) in graph.nodes.iter().enumerate() {
        let fail = |what: String| GraphError { pass: pass.to_string(), node: i, path: node.path.clone(), what };
        if i > 0 && graph.nodes[i - 1].place > node.place {
            return Err(fail(format!("{:?} comes after {:?}", node.place, graph.nodes[i - 1].place)));
        }
        let crosses = matches!(node.op, Op::Reduce | Op::Carry);
        for &input in &node.inputs {
            let (from, k) = match graph.value(input).source {
                Source::Node(from, k) => (from, k),
                Source::Batch(_) | Source::State(_) => continue,
                Source::Dropped => return Err(fail(format!("reads {}", graph.name(input)))),
            };
            let producer = graph.node(from);
            if from.0 as usize >= i {
                return Err(fail(format!("reads {} before it is made", graph.name(input))));
            }
            if producer.outputs.get(k as usize) != Some(&input) {
                return Err(fail(format!("{} is not an output of its producer", graph.name(input))));
            }
            let body_to_update = producer.place.section == Section::Body && node.place.section == Section::Update;
            let near = producer.place == node.place || producer.place.section == Section::Prepare;
            if body_to_update != crosses || !(near || producer.place.phase == node.place.phase) {
                return Err(fail(format!("reads {} of {:?} from {:?}", graph.name(input), producer.place, node.place)));
            }
        }
        let inferred = infer(graph, &node.op, &node.inputs).map_err(&fail)?;
        let found: Vec<_> = node.outputs.iter().map(|&o| (graph.value(o).shape, graph.value(o).dtype)).collect();
        if inferred != found {
            return Err(fail(format!("outputs are {found:?}, the op gives {inferred:?}")));
        }
        for (k, &output) in node.outputs.iter().enumerate() {
            let expected = crate::graph::NodeId(i as u32);
            if graph.value(output).source != Source::Node(expected, k as u32) {
                return Err(fail(format!("{} has another producer", graph.name(output))));
            }
        }
    }
    Ok(())
}
