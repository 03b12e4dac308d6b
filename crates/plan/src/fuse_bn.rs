//! fuse/bn: BnApply (+ add) (+ ReLU) becomes BnAct, and its backward reads a bit per element instead of the output; a convolution
//! makes the statistics of its own output.
//!
//! The values are the same bit for bit. Only a BnApply read by nothing else is fused, so a tap between them stays.

use crate::fuse::Rewrite;
use crate::step::StepGraph;
use graph::{Binary, Node, NodeId, Op, Unary, Value, ValueId, infer};

pub(crate) fn batch_norms(step: &StepGraph) -> StepGraph {
    let mut rewrite = Rewrite::new(step);
    for (id, node) in step.graph.iter() {
        match node.op {
            Op::Unary(Unary::Relu) => relu_group(&mut rewrite, id),
            Op::Binary(Binary::Add) => add_group(&mut rewrite, id),
            _ => {}
        }
    }
    rewrite.finish()
}

/// The statistics of a convolution's output are made where it is stored.
pub(crate) fn statistics(step: &StepGraph) -> StepGraph {
    let mut rewrite = Rewrite::new(step);
    for (id, node) in step.graph.iter() {
        let Op::BnStats { groups } = node.op else { continue };
        let Some((at, Node { op: Op::Conv(conv), place, .. })) = rewrite.producer(node.inputs[0]) else { continue };
        if *place != node.place {
            continue;
        }
        let op = Op::ConvStats { conv: *conv, groups };
        if let Some(fused) = &mut rewrite.nodes[at.0 as usize] {
            fused.op = op;
            fused.outputs.extend(&node.outputs);
        }
        rewrite.drop_node(id);
    }
    rewrite.finish()
}

/// A BnApply read by `reader` alone.
fn lone_bn(rewrite: &Rewrite<'_>, value: ValueId, reader: NodeId) -> Option<(NodeId, Node)> {
    let (id, node) = rewrite.producer(value)?;
    let lone = rewrite.only_reader(value) == Some(reader);
    (lone && matches!(node.op, Op::BnApply { .. })).then(|| (id, node.clone()))
}

/// The batch norm that feeds `add`, and the other operand.
fn bn_operand(rewrite: &Rewrite<'_>, id: NodeId, add: &Node) -> Option<(NodeId, Node, ValueId)> {
    (0..2).find_map(|k| lone_bn(rewrite, add.inputs[k], id).map(|(at, bn)| (at, bn, add.inputs[1 - k])))
}

fn relu_group(rewrite: &mut Rewrite<'_>, id: NodeId) {
    let relu = rewrite.graph.node(id).clone();
    let group = lone_bn(rewrite, relu.inputs[0], id).map(|(at, bn)| (vec![at], bn, None)).or_else(|| {
        let (add_id, add) = rewrite.producer(relu.inputs[0])?;
        let lone = rewrite.only_reader(relu.inputs[0]) == Some(id) && add.op == Op::Binary(Binary::Add);
        let (at, bn, shortcut) = lone.then(|| bn_operand(rewrite, add_id, add)).flatten()?;
        Some((vec![add_id, at], bn, Some(shortcut)))
    });
    let Some((dropped, bn, shortcut)) = group else { return };
    dropped.into_iter().for_each(|at| rewrite.drop_node(at));
    let y = relu.outputs[0];
    let backward = relu_backward(rewrite, y);
    let node = bn_act(rewrite, &bn, relu, shortcut, backward.is_some());
    if let Some(at) = backward {
        mask_backward(rewrite, at, bn.inputs[0], node.outputs[1]);
    }
    rewrite.nodes[id.0 as usize] = Some(node);
}

fn add_group(rewrite: &mut Rewrite<'_>, id: NodeId) {
    let add = rewrite.graph.node(id).clone();
    let relu = rewrite.only_reader(add.outputs[0]).map(|r| rewrite.graph.node(r).op.clone());
    if relu == Some(Op::Unary(Unary::Relu)) {
        return; // the whole group is made at its ReLU
    }
    let Some((at, bn, shortcut)) = bn_operand(rewrite, id, &add) else { return };
    rewrite.drop_node(at);
    let node = bn_act(rewrite, &bn, add, Some(shortcut), false);
    rewrite.nodes[id.0 as usize] = Some(node);
}

/// The fused node in the place of `last`, whose output it makes.
fn bn_act(rewrite: &mut Rewrite<'_>, bn: &Node, last: Node, shortcut: Option<ValueId>, mask: bool) -> Node {
    let Op::BnApply { bn: args, source } = bn.op else { unreachable!("lone_bn gives a BnApply") };
    let op = Op::BnAct { bn: args, source, relu: last.op == Op::Unary(Unary::Relu), mask };
    let inputs: Vec<_> = bn.inputs.iter().copied().chain(shortcut).collect();
    let mut outputs = last.outputs;
    if mask {
        let inferred = infer(&rewrite.graph, &op, &inputs).expect("the operands of the parts");
        let (shape, dtype) = inferred[1];
        let source = rewrite.graph.value(outputs[0]).source;
        outputs.push(rewrite.graph.add_value(Value { shape, dtype, rows: Default::default(), source }));
    }
    Node { op, inputs, outputs, path: bn.path.clone(), place: last.place }
}

/// The ReLU gradient that reads this output.
fn relu_backward(rewrite: &Rewrite<'_>, y: ValueId) -> Option<NodeId> {
    let is_grad = |id: &&NodeId| {
        let node = rewrite.graph.node(**id);
        node.op == Op::UnaryGrad(Unary::Relu) && node.inputs[1] == y
    };
    rewrite.readers(y).iter().find(is_grad).copied()
}

/// Lets the batch norm's backward read dy under the mask; the masked gradient itself, if others want it (the shortcut),
/// becomes the second output of BnGradApply.
fn mask_backward(rewrite: &mut Rewrite<'_>, relu_grad: NodeId, x: ValueId, mask: ValueId) {
    let grad = rewrite.graph.node(relu_grad).clone();
    let (dy, masked) = (grad.inputs[0], grad.outputs[0]);
    let of_bn = |rewrite: &Rewrite<'_>, id: NodeId| {
        rewrite.nodes[id.0 as usize].as_ref().is_some_and(|n| {
            matches!(n.op, Op::BnGradSums { .. } | Op::BnGradApply { .. }) && n.inputs[..2] == [masked, x]
        })
    };
    let readers = rewrite.readers(masked).to_vec();
    let (own, others): (Vec<_>, Vec<_>) = readers.into_iter().partition(|&r| of_bn(rewrite, r));
    let wanted = !others.is_empty() || rewrite.is_kept(masked);
    let mut made = !wanted;
    for id in own {
        let Some(node) = &mut rewrite.nodes[id.0 as usize] else { continue };
        node.inputs[0] = dy;
        node.inputs.push(mask);
        if let (Op::BnGradApply { shortcut, .. }, false) = (&mut node.op, made) {
            *shortcut = true;
            node.outputs.push(masked);
            made = true;
        }
    }
    if made {
        rewrite.drop_node(relu_grad);
    }
}
