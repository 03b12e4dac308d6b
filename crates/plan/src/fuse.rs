//! fuse: groups of ops become one kernel each. Elementwise fusions keep every bit, and so do additions inside convolutions, but
//! that a bf16 sum is rounded once; folding a frozen batch norm does not, and its order of operations is fixed too.
//!
//! In: a graph with updates. Out: the same losses, gradients and commits with fewer nodes; values keep their ids.
//! Patterns: input (crop, flip, normalise, patch swap), frozen conv+BN(+add)(+ReLU), BN(+add)+ReLU both ways with bit
//! masks, sums inside the convolution that ends a branch (shortcuts) and inside dgrad (fork gradients), batch statistics of a
//! convolution's output, and all row losses of a phase with their gradients.

use crate::step::{Phase, StepGraph};
use crate::{fuse_bn, fuse_frozen, fuse_rows};
use graph::{Axis, Binary, Graph, Node, NodeId, Op, ValueId};
use std::collections::HashMap;

/// How far to fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fusion {
    /// Every op by itself (design a of the roofline count).
    Off,
    /// All of the above (design bs).
    Full,
}

pub fn fuse(step: &StepGraph, fusion: Fusion) -> StepGraph {
    let step = strip_detach(step);
    if fusion == Fusion::Off {
        return step;
    }
    let step = image_swap(&step);
    let step = fuse_frozen::frozen_groups(&step);
    let step = fuse_bn::batch_norms(&step);
    let step = fuse_bn::statistics(&conv_adds(&step));
    fuse_rows::row_losses(&step)
}

/// Nodes being replaced. Values that someone outside the graph holds are `kept`: they must go on being made.
pub(crate) struct Rewrite<'a> {
    pub graph: Graph,
    pub nodes: Vec<Option<Node>>,
    readers: Vec<Vec<NodeId>>,
    kept: Vec<bool>,
    step: &'a StepGraph,
}

impl<'a> Rewrite<'a> {
    pub(crate) fn new(step: &'a StepGraph) -> Rewrite<'a> {
        let graph = step.graph.clone();
        let nodes = graph.nodes.iter().cloned().map(Some).collect();
        let mut kept = vec![false; graph.values.len()];
        step.phases.iter().flat_map(Phase::held).for_each(|v| kept[v.0 as usize] = true);
        Rewrite { readers: graph.readers(), nodes, kept, graph, step }
    }

    /// The only reader of a value, if there is just one and nobody outside holds the value.
    pub(crate) fn only_reader(&self, value: ValueId) -> Option<NodeId> {
        match &self.readers[value.0 as usize][..] {
            [one] if !self.kept[value.0 as usize] => Some(*one),
            _ => None,
        }
    }

    pub(crate) fn readers(&self, value: ValueId) -> &[NodeId] {
        self.readers.get(value.0 as usize).map_or(&[], |r| r)
    }

    pub(crate) fn is_kept(&self, value: ValueId) -> bool {
        self.kept[value.0 as usize]
    }

    /// The node of a value, unless it was dropped or replaced already.
    pub(crate) fn producer(&self, value: ValueId) -> Option<(NodeId, &Node)> {
        let graph::Source::Node(id, _) = self.graph.value(value).source else { return None };
        self.nodes[id.0 as usize].as_ref().filter(|n| n.outputs.contains(&value)).map(|n| (id, n))
    }

    pub(crate) fn drop_node(&mut self, id: NodeId) {
        self.nodes[id.0 as usize] = None;
    }

    pub(crate) fn finish(self) -> StepGraph {
        let nodes = self.nodes.into_iter().flatten().collect();
        StepGraph { graph: self.graph.with_nodes(nodes), phases: self.step.phases.clone() }
    }
}

/// A detached value is the value itself once gradients are made.
fn strip_detach(step: &StepGraph) -> StepGraph {
    let mut same: HashMap<ValueId, ValueId> = HashMap::new();
    let mut nodes = Vec::with_capacity(step.graph.nodes.len());
    for node in &step.graph.nodes {
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|i| *i = *same.get(i).unwrap_or(i));
        if node.op == Op::Detach {
            same.insert(node.outputs[0], node.inputs[0]);
        } else {
            nodes.push(node);
        }
    }
    let mut step = StepGraph { graph: step.graph.with_nodes(nodes), phases: step.phases.clone() };
    for phase in &mut step.phases {
        let losses = &mut phase.losses;
        let parts = losses.terms.iter_mut().flat_map(|t| t.loss.parts.iter_mut().map(|p| &mut p.1));
        let monitors = losses.monitors.iter_mut().map(|m| &mut m.value);
        let outputs = losses.outputs.iter_mut().map(|o| &mut o.1);
        let held = parts.chain(monitors).chain(outputs).chain(phase.reduced.iter_mut().map(|r| &mut r.0));
        held.for_each(|value| *value = *same.get(value).unwrap_or(value));
    }
    step
}

fn image_swap(step: &StepGraph) -> StepGraph {
    let mut rewrite = Rewrite::new(step);
    for (id, node) in step.graph.iter() {
        let Op::PatchSwap { cell } = node.op else { continue };
        let Some((from, input)) = rewrite.producer(node.inputs[0]) else { continue };
        let (Op::ImageInput(image), Some(_)) = (&input.op, rewrite.only_reader(node.inputs[0])) else { continue };
        let inputs = [&input.inputs[..], &node.inputs[1..]].concat();
        let fused = Node { op: Op::ImageSwap { image: *image, cell }, inputs, ..node.clone() };
        rewrite.drop_node(from);
        rewrite.nodes[id.0 as usize] = Some(fused);
    }
    rewrite.finish()
}

/// A sum of branches or of a fork's gradients: the later of the two convolutions adds its share to the other's.
fn conv_adds(step: &StepGraph) -> StepGraph {
    let mut rewrite = Rewrite::new(step);
    for (id, node) in step.graph.iter() {
        if node.op != Op::Binary(Binary::Add) {
            continue;
        }
        let candidate = |&k: &usize| {
            let (at, conv) = rewrite.producer(node.inputs[k])?;
            let plain = matches!(conv.op, Op::Conv(_) | Op::ConvDgrad { .. })
                && conv.inputs.len() == 2
                && conv.place == node.place;
            (plain && rewrite.only_reader(node.inputs[k]).is_some()).then_some((at, k))
        };
        let Some((at, k)) = [0, 1].iter().filter_map(candidate).max() else { continue };
        let mut conv = step.graph.node(at).clone();
        conv.inputs.push(node.inputs[1 - k]);
        conv.outputs = node.outputs.clone();
        rewrite.drop_node(at);
        rewrite.nodes[id.0 as usize] = Some(conv);
    }
    rewrite.finish()
}

/// The tensor that a value is a run of rows of, and where the run begins.
pub(crate) fn base_of(graph: &Graph, mut value: ValueId) -> (ValueId, usize) {
    let mut at = 0;
    while let Some(Node { op: Op::Slice { axis: Axis::Batch, start, .. }, inputs, .. }) = graph.producer(value) {
        at += start;
        value = inputs[0];
    }
    (value, at)
}
