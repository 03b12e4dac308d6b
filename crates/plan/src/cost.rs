//! What a launch costs: bytes moved if each distinct input is read once and each output written once, and FLOPs of
//! matrix products. Counted in the dtypes of the graph, whatever an executor stores, and in the shapes of values in memory.

use graph::{ConvArgs, Graph, Node, Op, Precision};
use tensor::{Dtype, Shape};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub read: u64,
    pub written: u64,
    pub flops: u64,
}

pub fn cost(graph: &Graph, node: &Node, stored: &[Shape]) -> Cost {
    let bytes = |v: &graph::ValueId| (stored[v.0 as usize].elements() * graph.value(*v).dtype.size()) as u64;
    // Bytes of its image that a convolution touches: a strided 1×1 skips the rest.
    let touched = |kernel: usize, a: ConvArgs| {
        let (d, skip) = (stored[node.inputs[0].0 as usize].dims(), if kernel == 1 { a.stride } else { 1 });
        (d[0] * d[1].div_ceil(skip) * d[2].div_ceil(skip) * d[3] * graph.value(node.inputs[0]).dtype.size()) as u64
    };
    let mut inputs = node.inputs.clone();
    inputs.sort();
    inputs.dedup();
    let mut cost = Cost {
        read: inputs.iter().map(bytes).sum(),
        written: node.outputs.iter().map(bytes).sum(),
        flops: flops(graph, node),
    };
    match &node.op {
        Op::Conv(a) | Op::ConvStats { conv: a, .. } | Op::ConvAct { conv: a, .. } => {
            cost.read -= bytes(&node.inputs[0]) - touched(graph.shape(node.inputs[1]).dims()[1], *a);
            cost.read -= half_weight(graph, bytes(&node.inputs[1]));
        }
        Op::ConvDgrad { .. } => cost.read -= half_weight(graph, bytes(&node.inputs[1])),
        Op::ConvWgrad { conv, .. } => {
            cost.read -= bytes(&node.inputs[0]) - touched(graph.shape(node.outputs[0]).dims()[1], *conv);
        }
        Op::Sgd(_) | Op::Lars(_) => {
            let each = |f: fn(&graph::SgdParam) -> graph::StateId| -> u64 {
                node.op.trained().iter().map(|p| graph.state(f(p)).shape.elements() as u64).sum()
            };
            let (params, momenta) = (each(|p| p.param), each(|p| p.momentum));
            cost.read += 4 * (params + momenta);
            cost.written += 4 * (params + momenta) + if graph.precision == Precision::Bf16 { 2 * params } else { 0 };
        }
        Op::Ema { pairs, .. } => {
            let elements: u64 = pairs.iter().map(|p| graph.state(p.0).shape.elements() as u64).sum();
            cost.read += 8 * elements;
            cost.written += 4 * elements;
        }
        Op::RollingRows { .. } | Op::GatherRows => cost.read = cost.written,
        _ => {}
    }
    cost
}

/// What reading a weight's bf16 copy saves over its f32 master.
fn half_weight(graph: &Graph, bytes: u64) -> u64 {
    if graph.precision.act() == Dtype::Bf16 { bytes / 2 } else { 0 }
}

fn flops(graph: &Graph, node: &Node) -> u64 {
    let elements = |v: graph::ValueId| graph.shape(v).elements() as u64;
    let conv = |y, w| 2 * elements(y) * (elements(w) / graph.shape(w).dims()[0] as u64);
    match &node.op {
        Op::Conv(_) | Op::ConvStats { .. } | Op::ConvAct { .. } => conv(node.outputs[0], node.inputs[1]),
        Op::ConvDgrad { .. } => conv(node.inputs[0], node.inputs[1]),
        Op::ConvWgrad { .. } => conv(node.inputs[1], node.outputs[0]),
        Op::Matmul(a) => {
            let d = graph.shape(node.inputs[0]);
            let k = d.dims()[if a.ta { 0 } else { 1 }] as u64;
            2 * elements(node.outputs[0]) * k
        }
        _ => 0,
    }
}
