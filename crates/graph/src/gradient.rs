//! Gradient rules: for a node and the gradients of its outputs, the nodes that make the gradients of its inputs.

use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::op::*;
use crate::row::*;

/// Gradients that flow into a node.
#[derive(Clone, Debug)]
pub struct Cotangents {
    /// Gradient of each output; `None` where nothing flows.
    pub outputs: Vec<Option<ValueId>>,
    /// For a loss value: the weights of the terms that contain it.
    pub weight: Option<Weight>,
}

struct Rule<'a> {
    graph: &'a mut Graph,
    node: Node,
}

impl Rule<'_> {
    fn push(&mut self, op: Op, inputs: &[ValueId]) -> Vec<ValueId> {
        let path = self.node.path.clone();
        self.graph.push(op, inputs, &path, self.node.place)
    }

    fn one(&mut self, op: Op, inputs: &[ValueId]) -> Option<ValueId> {
        Some(self.push(op, inputs)[0])
    }

    fn hw(&self, input: usize) -> [usize; 2] {
        let shape = self.graph.shape(self.node.inputs[input]);
        [shape.dims()[1], shape.dims()[2]]
    }
}

/// Gradients of the node's inputs where `wants` asks for them; `None` where the op passes none.
pub fn gradient(graph: &mut Graph, id: NodeId, flow: &Cotangents, wants: &[bool]) -> Vec<Option<ValueId>> {
    let node = graph.node(id).clone();
    let (x, count) = (node.inputs.clone(), node.inputs.len());
    let mut rule = Rule { graph, node };
    let mut grads = vec![None; count];
    if let Some(weight) = flow.weight {
        loss_gradient(&mut rule, weight, wants, &mut grads);
        return grads;
    }
    let Some(dy) = flow.outputs.first().copied().flatten() else { return grads };
    let y = rule.node.outputs[0];
    match rule.node.op.clone() {
        Op::PatchSwap { cell } if wants[0] => grads[0] = rule.one(Op::PatchSwap { cell }, &[dy, x[1]]),
        Op::MixRows if wants[0] => grads[0] = rule.one(Op::MixRowsGrad, &[dy, x[1], x[2]]),
        Op::Concat { axis } => {
            let mut start = 0;
            for i in 0..count {
                let shape = rule.graph.shape(x[i]);
                let len = shape.dims()[if axis == Axis::Batch { 0 } else { shape.dims().len() - 1 }];
                if wants[i] {
                    grads[i] = rule.one(Op::Slice { axis, start, len }, &[dy]);
                }
                start += len;
            }
        }
        Op::Slice { axis, start, .. } => {
            let shape = rule.graph.shape(x[0]);
            let total = shape.dims()[if axis == Axis::Batch { 0 } else { shape.dims().len() - 1 }];
            grads[0] = rule.one(Op::Unslice { axis, start, total }, &[dy]);
        }
        Op::GatherRows if wants[0] => {
            let rows = rule.graph.shape(x[0]).dims()[0];
            grads[0] = rule.one(Op::ScatterAddRows { rows }, &[dy, x[1]]);
        }
        Op::Conv(conv) => {
            if wants[1] {
                let w = rule.graph.shape(x[1]);
                let kernel = [w.dims()[1], w.dims()[2]];
                grads[1] = rule.one(Op::ConvWgrad { conv, kernel }, &[x[0], dy]);
            }
            if wants[0] {
                let hw = rule.hw(0);
                grads[0] = rule.one(Op::ConvDgrad { conv, hw }, &[dy, x[1]]);
            }
        }
        Op::Matmul(args) => matmul_gradient(&mut rule, args, dy, wants, &mut grads),
        Op::AddBias => {
            grads[0] = Some(dy);
            if wants[1] {
                grads[1] = rule.one(Op::ColumnSum, &[dy]);
            }
        }
        Op::BnApply { bn, source } => {
            let sums = rule.push(Op::BnGradSums { bn }, &[dy, x[0], x[1], x[2]]);
            (grads[3], grads[4]) = (Some(sums[0]), Some(sums[1]));
            if wants[0] {
                let merged = rule.graph.producer(x[1]).filter(|n| n.op == Op::BnMergeRanks);
                let gather = merged.and_then(|n| rule.graph.producer(n.inputs[0])).map(|n| n.op.clone());
                let sums = match gather {
                    Some(gather @ Op::GatherRanks { count, .. }) => {
                        let all = rule.push(gather, &[sums[2]]);
                        rule.push(Op::BnSumRanks { count }, &all)[0]
                    }
                    _ => sums[2],
                };
                let inputs = [dy, x[0], x[1], x[2], x[3], sums];
                grads[0] = rule.one(Op::BnGradApply { bn, source, shortcut: false }, &inputs);
            }
        }
        Op::Unary(kind) => grads[0] = rule.one(Op::UnaryGrad(kind), &[dy, y]),
        Op::Binary(kind) => binary_gradient(&mut rule, kind, dy, wants, &mut grads),
        Op::ChannelShuffle { groups } => {
            let shape = rule.graph.shape(x[0]);
            let groups = shape.dims()[shape.rank() - 1] / groups;
            grads[0] = rule.one(Op::ChannelShuffle { groups }, &[dy]);
        }
        Op::Scale(weight) => grads[0] = rule.one(Op::Scale(weight), &[dy]),
        Op::MaxPool(pool) => {
            let (hw, argmax) = (rule.hw(0), rule.node.outputs[1]);
            grads[0] = rule.one(Op::MaxPoolGrad { pool, hw }, &[dy, argmax]);
        }
        Op::AvgPool(pool) => {
            let hw = rule.hw(0);
            grads[0] = rule.one(Op::AvgPoolGrad { pool, hw }, &[dy]);
        }
        Op::GlobalAvgPool => {
            let hw = rule.hw(0);
            grads[0] = rule.one(Op::GlobalAvgPoolGrad { hw }, &[dy]);
        }
        // Images, targets and counts pass no gradient; neither does a stop.
        Op::ImageInput(_) | Op::PatchSwap { .. } | Op::MixRows | Op::GatherRows | Op::RollingRows { .. } => {}
        Op::BnStats { .. } | Op::Detach | Op::Softmax { .. } | Op::Correct { .. } | Op::Zero => {}
        Op::RowLoss(_) | Op::SquaredError { .. } | Op::Correlation { .. } => {}
        Op::PasteBox | Op::EraseBoxes { .. } | Op::TopK { .. } | Op::NeighbourTargets { .. } => {}
        // Made by passes, after differentiation, or by these rules: never differentiated.
        Op::CorrelationGrad { .. }
        | Op::ImageSwap { .. }
        | Op::MixRowsGrad
        | Op::Unslice { .. }
        | Op::ScatterAddRows { .. } => {}
        Op::ConvStats { .. } | Op::GatherRanks { .. } | Op::BnMergeRanks | Op::BnSumRanks { .. } => {}
        Op::ConvWgrad { .. } | Op::ConvAct { .. } | Op::ColumnSum | Op::BnAct { .. } | Op::BnGradSums { .. } => {}
        Op::ConvDgrad { .. }
        | Op::BnGradApply { .. }
        | Op::FoldBn { .. }
        | Op::UnaryGrad(_)
        | Op::MaxPoolGrad { .. } => {}
        Op::AvgPoolGrad { .. } | Op::GlobalAvgPoolGrad { .. } | Op::RowLossGrad { .. } | Op::RowLosses(_) => {}
        Op::SquaredErrorGrad { .. } | Op::Reduce | Op::Carry | Op::GradNorm { .. } | Op::Accumulate => {}
        Op::Sgd(_) | Op::Lars(_) | Op::Ema { .. } | Op::BnRunning { .. } => {}
        Op::Assign { .. } | Op::ScatterRows { .. } => {}
    }
    grads
}

fn loss_gradient(rule: &mut Rule<'_>, weight: Weight, wants: &[bool], grads: &mut [Option<ValueId>]) {
    let x = rule.node.inputs.clone();
    match rule.node.op {
        Op::RowLoss(term) => {
            if wants[0] {
                grads[0] = rule.one(Op::RowLossGrad { term, side: Side::Student, weight }, &x);
            }
            if wants.get(1) == Some(&true) && term.kind.has_target_gradient() {
                grads[1] = rule.one(Op::RowLossGrad { term, side: Side::Target, weight }, &x);
            }
        }
        Op::SquaredError { divisor } => {
            if wants[0] {
                grads[0] = rule.one(Op::SquaredErrorGrad { divisor, weight }, &x);
            }
            if wants.get(1) == Some(&true) {
                grads[1] = rule.one(Op::SquaredErrorGrad { divisor, weight }, &[x[1], x[0]]);
            }
        }
        Op::Correlation { over, divisor } if wants[0] => {
            grads[0] = rule.one(Op::CorrelationGrad { over, divisor, weight }, &x);
        }
        Op::Correlation { .. } => {}
        ref op => panic!("{}: {op} is no loss", rule.node.path),
    }
}

fn matmul_gradient(rule: &mut Rule<'_>, args: MatmulArgs, dc: ValueId, wants: &[bool], grads: &mut [Option<ValueId>]) {
    let (a, b) = (rule.node.inputs[0], rule.node.inputs[1]);
    let MatmulArgs { ta, tb, .. } = args;
    let dtype = |rule: &Rule<'_>, of: ValueId| rule.graph.value(of).dtype;
    if wants[0] {
        let dtype = dtype(rule, a);
        let (left, right, ta2, tb2) = if ta { (b, dc, tb, true) } else { (dc, b, false, !tb) };
        grads[0] = rule.one(Op::Matmul(MatmulArgs { ta: ta2, tb: tb2, dtype }), &[left, right]);
    }
    if wants[1] {
        let dtype = dtype(rule, b);
        let (left, right, ta2, tb2) = if tb { (dc, a, true, ta) } else { (a, dc, !ta, false) };
        grads[1] = rule.one(Op::Matmul(MatmulArgs { ta: ta2, tb: tb2, dtype }), &[left, right]);
    }
    if wants.get(2) == Some(&true) {
        grads[2] = rule.one(Op::ColumnSum, &[dc]);
    }
}

fn binary_gradient(rule: &mut Rule<'_>, kind: Binary, dy: ValueId, wants: &[bool], grads: &mut [Option<ValueId>]) {
    let (a, b) = (rule.node.inputs[0], rule.node.inputs[1]);
    match kind {
        Binary::Add => (grads[0], grads[1]) = (Some(dy), Some(dy)),
        Binary::Sub => {
            grads[0] = Some(dy);
            if wants[1] {
                grads[1] = rule.one(Op::Scale(Weight::from(-1.0)), &[dy]);
            }
        }
        Binary::Mul => {
            if wants[0] {
                grads[0] = rule.one(Op::Binary(Binary::Mul), &[dy, b]);
            }
            if wants[1] {
                grads[1] = rule.one(Op::Binary(Binary::Mul), &[dy, a]);
            }
        }
    }
}
