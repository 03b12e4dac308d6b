//! fuse/frozen: in a network that nothing in the plan changes, a convolution and its batch norm become one convolution
//! with bias (+ add) (+ ReLU). The folded weights are made once, in `prepare`.

use crate::fuse::Rewrite;
use crate::step::StepGraph;
use graph::{Binary, Graph, Node, NodeId, Op, Place, Section, Source, StateId, StatsSource, Unary, ValueId};
use std::collections::HashSet;

/// States that some op of the graph writes.
pub(crate) fn written_states(graph: &Graph) -> HashSet<StateId> {
    graph.nodes.iter().flat_map(|n| n.op.states()).collect()
}

pub(crate) fn frozen_groups(step: &StepGraph) -> StepGraph {
    let written = written_states(&step.graph);
    let mut rewrite = Rewrite::new(step);
    let mut prepared = Vec::new();
    for (id, node) in step.graph.iter() {
        let Op::BnApply { bn, source: StatsSource::Running } = node.op else { continue };
        let Some((conv_id, conv)) = rewrite.producer(node.inputs[0]) else { continue };
        let (Op::Conv(args), true) = (&conv.op, rewrite.only_reader(node.inputs[0]) == Some(id)) else { continue };
        let frozen = |v: &ValueId| matches!(step.graph.value(*v).source, Source::State(s) if !written.contains(&s));
        if !conv.inputs[1..].iter().chain(&node.inputs[1..]).all(frozen) {
            continue;
        }
        let (args, x, w) = (*args, conv.inputs[0], conv.inputs[1]);
        let (last, shortcut, relu) = tail(&rewrite, id, node);
        let place = Place { phase: 0, section: Section::Prepare };
        let inputs = [&[w], &node.inputs[1..]].concat();
        let folded = rewrite.graph.push(Op::FoldBn { eps: bn.eps }, &inputs, &node.path, place);
        prepared.push(rewrite.graph.nodes.pop().expect("the node just pushed"));
        let inputs = [x, folded[0], folded[1]].into_iter().chain(shortcut).collect();
        let outputs = rewrite.graph.node(last).outputs.clone();
        let place = rewrite.graph.node(last).place;
        let fused = Node {
            op: Op::ConvAct { conv: args, relu },
            inputs,
            outputs,
            path: step.graph.node(conv_id).path.clone(),
            place,
        };
        rewrite.drop_node(conv_id);
        rewrite.drop_node(id);
        if shortcut.is_some() && relu {
            let add = rewrite.only_reader(node.outputs[0]).expect("the add of the group");
            rewrite.drop_node(add);
        }
        rewrite.nodes[last.0 as usize] = Some(fused);
    }
    rewrite.nodes.extend(prepared.into_iter().map(Some));
    rewrite.finish()
}

/// How the group ends: its last node, the other operand of an add, and whether a ReLU closes it.
fn tail(rewrite: &Rewrite<'_>, id: NodeId, bn: &Node) -> (NodeId, Option<ValueId>, bool) {
    let live = |at: NodeId| rewrite.nodes[at.0 as usize].as_ref();
    let next = |value: ValueId| rewrite.only_reader(value).and_then(|at| live(at).map(|n| (at, n)));
    match next(bn.outputs[0]) {
        Some((at, n)) if n.op == Op::Unary(Unary::Relu) => (at, None, true),
        Some((at, add)) if add.op == Op::Binary(Binary::Add) && add.inputs[0] != add.inputs[1] => {
            let other = add.inputs[usize::from(add.inputs[0] == bn.outputs[0])];
            // The other operand must not wait for this group: the first of two batch norms stays by itself.
            let waits = rewrite.producer(other).is_some_and(|(o, _)| o > id);
            match next(add.outputs[0]) {
                _ if waits => (id, None, false),
                Some((relu, n)) if n.op == Op::Unary(Unary::Relu) => (relu, Some(other), true),
                _ => (at, Some(other), false),
            }
        }
        _ => (id, None, false),
    }
}
