//! stored: how values lie in memory. On a device, pixels of three-channel images take four channels, the last of zeros, so that a
//! pixel is one aligned copy for convolutions. All images of a step are padded, or none where something else reads or holds one.

use crate::{place::Storage, step::StepGraph};
use graph::{Axis, Op, ValueId};
use tensor::Shape;

/// The shape of every value in memory.
pub(crate) fn stored(step: &StepGraph, storage: Storage) -> Vec<Shape> {
    let plain: Vec<Shape> = step.graph.values.iter().map(|v| v.shape).collect();
    let mut shapes = plain.clone();
    for node in step.graph.nodes.iter().filter(|_| storage == Storage::Device) {
        let wide = |v: &ValueId| shapes[v.0 as usize] != plain[v.0 as usize];
        let (first, rest) = (node.inputs.first().is_some_and(wide), node.inputs.iter().skip(1).any(wide));
        let padded = match &node.op {
            Op::ImageInput(_) | Op::ImageSwap { .. } => plain[node.outputs[0].0 as usize].dims()[3] == 3,
            Op::Concat { axis: Axis::Batch } if node.inputs.iter().all(wide) => first,
            _ if rest => return plain,
            Op::PatchSwap { .. } | Op::MixRows | Op::PasteBox | Op::EraseBoxes { .. } => first,
            Op::GatherRows | Op::Detach | Op::Slice { axis: Axis::Batch, .. } => first,
            Op::Conv(a) | Op::ConvStats { conv: a, .. } | Op::ConvAct { conv: a, .. } if a.groups == 1 => false,
            Op::ConvWgrad { conv, .. } if conv.groups == 1 => false,
            _ if first => return plain,
            _ => false,
        };
        if padded {
            let image = node.outputs[0].0 as usize;
            let [n, h, w, _] = *plain[image].dims() else { return plain };
            shapes[image] = Shape::new(&[n, h, w, 4]);
        }
    }
    let held = step.phases.iter().flat_map(|p| p.held()).any(|v| shapes[v.0 as usize] != plain[v.0 as usize]);
    if held { plain } else { shapes }
}
