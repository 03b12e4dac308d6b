//! Shapes and dtypes of an op's outputs. `Err` says what was expected and what was found.

use crate::graph::{Graph, ValueId};
use crate::op::{Axis, ConvArgs, Op, PoolArgs};
use crate::row::{RowKind, RowTerm, Target};
use tensor::{Dtype, Shape};

type Outputs = Vec<(Shape, Dtype)>;

/// Output size of a convolution or pooling axis: floor((size + 2 pad − kernel) / stride) + 1.
pub fn conv_out(size: usize, kernel: usize, stride: usize, pad: usize) -> Option<usize> {
    Some((size + 2 * pad).checked_sub(kernel)? / stride + 1)
}

/// Shapes and dtypes of the outputs of `op` on `inputs`.
pub fn infer(graph: &Graph, op: &Op, inputs: &[ValueId]) -> Result<Outputs, String> {
    let (least, most) = arity(op);
    if inputs.len() < least || inputs.len() > most {
        return Err(format!("expected {least} to {most} inputs, got {}", inputs.len()));
    }
    let at = |i: usize| graph.value(inputs[i]).shape;
    let dtype = |i: usize| graph.value(inputs[i]).dtype;
    let (act, acc) = (graph.precision.act(), graph.precision.acc());
    let dims = |i: usize, rank: usize| {
        let shape = at(i);
        if shape.dims().len() == rank { Ok(shape) } else { Err(format!("input {i} must have {rank} axes")) }
    };
    let one = |shape: &[usize], dtype| Ok(vec![(Shape::new(shape), dtype)]);
    let same = |i: usize| Ok(vec![(at(i), dtype(i))]);
    let convolved = |a: ConvArgs| conv(four(dims(0, 4)?), four(dims(1, 4)?), a);
    match op {
        Op::ImageInput(a) | Op::ImageSwap { image: a, .. } => {
            let [n, _, _, c] = four(dims(0, 4)?);
            one(&[n, a.size[0], a.size[1], c], act)
        }
        Op::PatchSwap { .. } => {
            let [n, ..] = four(dims(0, 4)?);
            if n % 2 == 0 { same(0) } else { Err("rows must be pairs".into()) }
        }
        Op::MixRows | Op::MixRowsGrad | Op::Scale(_) | Op::Detach | Op::Unary(_) => same(0),
        Op::PasteBox | Op::EraseBoxes { .. } => dims(0, 4).and_then(|_| same(0)),
        Op::ChannelShuffle { groups } if !last(at(0)).is_multiple_of(*groups) => {
            Err(format!("{} channels in {groups} groups", last(at(0))))
        }
        Op::ChannelShuffle { .. } => same(0),
        Op::TopK { k } if *k > last(at(0)) => Err(format!("the first {k} of {} classes", last(at(0)))),
        Op::TopK { k } => one(&[dims(0, 2)?.dims()[0], *k], Dtype::I32),
        Op::NeighbourTargets { .. } => one(dims(1, 2)?.dims(), acc),
        Op::Correlation { .. } => equal(dims(0, 2)?, at(1)).and_then(|()| one(&[], acc)),
        Op::CorrelationGrad { .. } => equal(dims(0, 2)?, at(1)).and_then(|()| one(at(0).dims(), acc)),
        Op::UnaryGrad(_) | Op::Binary(_) => equal(at(0), at(1)).and_then(|()| same(0)),
        Op::Zero => same(0),
        Op::Concat { axis } => concat(graph, *axis, inputs),
        Op::Slice { axis, start, len } => {
            if start + len > *along(&mut at(0).dims().to_vec(), *axis) {
                return Err(format!("slice {start}..{} is outside", start + len));
            }
            Ok(vec![(resized(at(0), *axis, *len), dtype(0))])
        }
        Op::Unslice { axis, start, total } => {
            if start + *along(&mut at(0).dims().to_vec(), *axis) > *total {
                return Err(format!("{start} + input exceeds {total}"));
            }
            Ok(vec![(resized(at(0), *axis, *total), dtype(0))])
        }
        Op::GatherRows => Ok(vec![(resized(at(0), Axis::Batch, at(1).elements()), dtype(0))]),
        Op::ScatterAddRows { rows } => Ok(vec![(resized(at(0), Axis::Batch, *rows), dtype(0))]),
        Op::Conv(a) => convolved(*a).and_then(|y| one(&y, act)),
        Op::ConvStats { conv: a, groups } => {
            let y = convolved(*a)?;
            if y[0] % groups != 0 {
                return Err(format!("{} rows in {groups} groups", y[0]));
            }
            let stats = (Shape::new(&[*groups, y[3]]), acc);
            Ok(vec![(Shape::new(&y), act), stats, stats, stats])
        }
        Op::ConvAct { conv: a, .. } => convolved(*a).and_then(|y| one(&y, act)),
        Op::ConvDgrad { conv: a, hw } => {
            let ([n, p, q, k], [wk, r, s, c]) = (four(dims(0, 4)?), four(dims(1, 4)?));
            let x = [n, hw[0], hw[1], c * a.groups];
            let y = conv(x, [wk, r, s, c], *a)?;
            if y == [n, p, q, k] { one(&x, act) } else { Err(format!("dy should be {y:?}")) }
        }
        Op::ConvWgrad { conv: a, kernel } => {
            let ([n, h, w, c], [.., k]) = (four(dims(0, 4)?), four(dims(1, 4)?));
            let dw = [k, kernel[0], kernel[1], c / a.groups];
            let y = conv([n, h, w, c], dw, *a)?;
            if y == four(at(1)) { one(&dw, acc) } else { Err(format!("dy should be {y:?}")) }
        }
        Op::Matmul(a) => {
            let ([m, k], [k2, n]) = (oriented(dims(0, 2)?, a.ta), oriented(dims(1, 2)?, a.tb));
            if k == k2 { one(&[m, n], a.dtype) } else { Err(format!("inner sizes {k} and {k2}")) }
        }
        Op::AddBias => {
            if last(at(0)) == at(1).elements() {
                same(0)
            } else {
                Err("bias length".into())
            }
        }
        Op::ColumnSum => one(&[last(at(0))], acc),
        Op::BnStats { groups } => {
            let n = at(0).dims()[0];
            if n % groups != 0 {
                return Err(format!("{n} rows in {groups} groups"));
            }
            Ok(vec![(Shape::new(&[*groups, last(at(0))]), acc); 3])
        }
        Op::BnApply { .. } => bn_channels(at(0), at(1)).and_then(|()| same(0)),
        Op::BnAct { mask, .. } => {
            bn_channels(at(0), at(1))?;
            let mut out = vec![(at(0), dtype(0))];
            if *mask {
                out.push((Shape::new(&[at(0).elements().div_ceil(8)]), Dtype::U8));
            }
            Ok(out)
        }
        Op::BnGradSums { bn } => {
            let c = last(at(0));
            Ok(vec![(Shape::new(&[c]), acc), (Shape::new(&[c]), acc), (Shape::new(&[bn.groups, 2, c]), acc)])
        }
        Op::BnGradApply { shortcut, .. } => Ok(vec![(at(1), act); if *shortcut { 2 } else { 1 }]),
        Op::GatherRanks { world, .. } => {
            let all = |&v: &ValueId| (Shape::new(&[&[*world], graph.shape(v).dims()].concat()), graph.value(v).dtype);
            Ok(inputs.iter().map(all).chain([(Shape::new(&[*world]), acc)]).collect())
        }
        Op::BnMergeRanks => equal(dims(0, 3)?, at(1)).map(|()| vec![(Shape::new(&at(0).dims()[1..]), acc); 3]),
        Op::BnSumRanks { .. } => one(&dims(0, 4)?.dims()[1..], acc),
        Op::FoldBn { .. } => Ok(vec![(at(0), dtype(0)), (Shape::new(&[at(0).dims()[0]]), acc)]),
        Op::MaxPool(a) => pool(four(dims(0, 4)?), *a).map(|s| vec![(s, dtype(0)), (s, Dtype::U8)]),
        Op::AvgPool(a) => pool(four(dims(0, 4)?), *a).map(|s| vec![(s, dtype(0))]),
        Op::MaxPoolGrad { hw, .. } | Op::AvgPoolGrad { hw, .. } => {
            let [n, _, _, c] = four(dims(0, 4)?);
            one(&[n, hw[0], hw[1], c], dtype(0))
        }
        Op::GlobalAvgPool => {
            let [n, _, _, c] = four(dims(0, 4)?);
            one(&[n, c], dtype(0))
        }
        Op::GlobalAvgPoolGrad { hw } => {
            let [n, c] = oriented(dims(0, 2)?, false);
            one(&[n, hw[0], hw[1], c], act)
        }
        Op::RollingRows { rows } => Ok(vec![(resized(at(0), Axis::Batch, *rows), dtype(0))]),
        Op::Softmax { .. } => one(dims(0, 2)?.dims(), acc),
        Op::RowLoss(term) => row_loss(graph, term, inputs).and_then(|()| one(&[], acc)),
        Op::RowLossGrad { term, side, .. } => {
            row_loss(graph, term, inputs)?;
            Ok(vec![(at(*side as usize), acc)])
        }
        Op::RowLosses(table) => {
            let mut out = vec![(Shape::new(&[]), acc); table.terms.len()];
            out.extend(table.grads.iter().map(|&i| (at(i), acc)));
            Ok(out)
        }
        Op::SquaredError { .. } => equal(at(0), at(inputs.len() - 1)).and_then(|()| one(&[], acc)),
        Op::SquaredErrorGrad { .. } => equal(at(0), at(inputs.len() - 1)).and_then(|()| same(0)),
        Op::Correct { .. } => one(&[2], acc),
        Op::Reduce => same(0),
        Op::Carry => same(0),
        Op::GradNorm { .. } => Ok(vec![(Shape::new(&[]), acc), (Shape::new(&[]), acc)]),
        Op::Accumulate => equal(at(0), at(1)).map(|()| vec![(at(0), dtype(0))]),
        Op::Sgd(_) | Op::Lars(_) | Op::Ema { .. } | Op::BnRunning { .. } => Ok(vec![]),
        Op::Assign { .. } | Op::ScatterRows { .. } => Ok(vec![]),
    }
}

/// Least and most inputs of an op.
fn arity(op: &Op) -> (usize, usize) {
    const ANY: usize = usize::MAX;
    match op {
        Op::ImageInput(a) => (1 + usize::from(a.crop) + usize::from(a.flip), 3),
        Op::ImageSwap { image: a, .. } => (2 + usize::from(a.crop) + usize::from(a.flip), 4),
        Op::Unslice { .. } | Op::ScatterAddRows { .. } => (1, 2),
        Op::Slice { .. } | Op::ColumnSum | Op::BnStats { .. } | Op::Unary(_) | Op::Scale(_) | Op::Zero | Op::Detach => {
            (1, 1)
        }
        Op::MaxPool(_) | Op::AvgPool(_) | Op::AvgPoolGrad { .. } | Op::GlobalAvgPool | Op::GlobalAvgPoolGrad { .. } => {
            (1, 1)
        }
        Op::Softmax { .. } | Op::RollingRows { .. } | Op::Reduce | Op::Carry => (1, 1),
        Op::ChannelShuffle { .. } | Op::TopK { .. } => (1, 1),
        Op::EraseBoxes { .. } | Op::NeighbourTargets { .. } | Op::Correlation { .. } | Op::CorrelationGrad { .. } => {
            (2, 2)
        }
        Op::SquaredError { .. } | Op::SquaredErrorGrad { .. } => (1, 2),
        Op::PatchSwap { .. } | Op::GatherRows | Op::ConvWgrad { .. } | Op::AddBias => (2, 2),
        Op::UnaryGrad(_) | Op::Binary(_) | Op::MaxPoolGrad { .. } | Op::Correct { .. } | Op::Accumulate => (2, 2),
        Op::Assign { .. } => (2, 2),
        Op::MixRows | Op::MixRowsGrad | Op::PasteBox | Op::ScatterRows { .. } => (3, 3),
        Op::Conv(_) | Op::ConvStats { .. } | Op::ConvDgrad { .. } | Op::Matmul(_) => (2, 3),
        Op::ConvAct { .. } => (3, 4),
        Op::BnApply { .. } | Op::FoldBn { .. } => (5, 5),
        Op::BnMergeRanks => (3, 3),
        Op::BnSumRanks { .. } => (2, 2),
        Op::BnAct { .. } => (5, 6),
        Op::BnGradSums { .. } => (4, 5),
        Op::BnGradApply { .. } => (6, 7),
        Op::RowLoss(term) | Op::RowLossGrad { term, .. } => (term.operands(), term.operands()),
        Op::GatherRanks { .. } | Op::Concat { .. } | Op::RowLosses(_) | Op::GradNorm { .. } => (1, ANY),
        Op::Ema { .. } | Op::BnRunning { .. } => (1, ANY),
        Op::Sgd(args) => (2 + args.params.len(), 2 + args.params.len()),
        Op::Lars(args) => (1 + args.params.len(), 1 + args.params.len()),
    }
}

fn four(shape: Shape) -> [usize; 4] {
    let d = shape.dims();
    [d[0], d[1], d[2], d[3]]
}

fn last(shape: Shape) -> usize {
    shape.dims().last().copied().unwrap_or(1)
}

fn oriented(shape: Shape, transposed: bool) -> [usize; 2] {
    let d = shape.dims();
    if transposed { [d[1], d[0]] } else { [d[0], d[1]] }
}

fn equal(a: Shape, b: Shape) -> Result<(), String> {
    if a == b { Ok(()) } else { Err("shapes differ".into()) }
}

fn along(dims: &mut [usize], axis: Axis) -> &mut usize {
    let i = if axis == Axis::Batch { 0 } else { dims.len() - 1 };
    &mut dims[i]
}

fn resized(shape: Shape, axis: Axis, len: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    *along(&mut dims, axis) = len;
    Shape::new(&dims)
}

fn bn_channels(x: Shape, stats: Shape) -> Result<(), String> {
    if last(x) == last(stats) { Ok(()) } else { Err(format!("{} channels, statistics of {}", last(x), last(stats))) }
}

fn conv(x: [usize; 4], w: [usize; 4], a: ConvArgs) -> Result<[usize; 4], String> {
    let ([n, h, wd, c], [k, r, s, cg]) = (x, w);
    if c != cg * a.groups || k % a.groups != 0 {
        return Err(format!("{c} channels, filters of {cg} × {} groups", a.groups));
    }
    let p = conv_out(h, r, a.stride, a.pad).ok_or("kernel is larger than the image")?;
    let q = conv_out(wd, s, a.stride, a.pad).ok_or("kernel is larger than the image")?;
    Ok([n, p, q, k])
}

fn pool(x: [usize; 4], a: PoolArgs) -> Result<Shape, String> {
    let p = conv_out(x[1], a.kernel, a.stride, a.pad).ok_or("window is larger than the image")?;
    let q = conv_out(x[2], a.kernel, a.stride, a.pad).ok_or("window is larger than the image")?;
    Ok(Shape::new(&[x[0], p, q, x[3]]))
}

fn concat(graph: &Graph, axis: Axis, inputs: &[ValueId]) -> Result<Outputs, String> {
    let first = graph.shape(inputs[0]);
    let mut total = 0;
    for &i in inputs {
        total += *along(&mut graph.shape(i).dims().to_vec(), axis);
        equal(resized(graph.shape(i), axis, 1), resized(first, axis, 1))?;
    }
    Ok(vec![(resized(first, axis, total), graph.value(inputs[0]).dtype)])
}

fn row_loss(graph: &Graph, term: &RowTerm, inputs: &[ValueId]) -> Result<(), String> {
    let logits = graph.shape(inputs[0]);
    if logits.dims().len() != 2 {
        return Err("logits must be [n, k]".into());
    }
    let labels = |i: usize| {
        let value = graph.value(inputs[i]);
        let fits = value.dtype == Dtype::I32 && value.shape.elements() == logits.dims()[0];
        if fits { Ok(()) } else { Err("labels must be i32 [n]".to_string()) }
    };
    match term.kind {
        RowKind::CrossEntropy { target, .. } | RowKind::Kl { target, .. } => match target {
            Target::Label { .. } => labels(1),
            Target::MixedLabel => labels(1).and_then(|()| labels(2)),
            Target::Probabilities | Target::Logits => equal(logits, graph.shape(inputs[1])),
        },
        RowKind::TargetKl { .. } | RowKind::NonTargetKl { .. } => {
            equal(logits, graph.shape(inputs[1])).and_then(|()| labels(2))
        }
        RowKind::GeneralizedCrossEntropy { .. } => {
            let candidates = graph.shape(inputs[1]);
            if candidates.dims()[0] == logits.dims()[0] { Ok(()) } else { Err("candidates must be [n, m]".into()) }
        }
        RowKind::BinaryCrossEntropy { class } if class >= logits.dims()[1] => Err(format!("no class {class}")),
        RowKind::BinaryCrossEntropy { .. } | RowKind::Count => Ok(()),
    }
}
