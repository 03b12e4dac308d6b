//! Equal bits: fused ops against chains of plain ones, any number of threads, and storage in bf16.

use crate::golden::over;
use crate::interpreter::{Buffer, Case, launch, noise};
use cpu::io::{Real, Scalars};
use graph::*;
use tensor::{Dtype, Shape, round_bf16};

fn reals<T: Real>(seed: u64, shape: &[usize]) -> Buffer {
    Buffer::real::<T>(shape, noise(seed).take(shape.iter().product()))
}

fn bits(buffer: &Buffer) -> Vec<u32> {
    match buffer.dtype {
        Dtype::I32 => buffer.f64s::<f32>().iter().map(|&i| i as i32 as u32).collect(),
        Dtype::U8 => buffer.get_u8().iter().map(|&b| b.into()).collect(),
        _ => buffer.get::<f32>().iter().map(|x| x.to_bits()).collect(),
    }
}

/// Each pair of values is equal bit for bit.
fn assert_same(case: &Case<f32>, what: &str, pairs: &[(ValueId, ValueId)]) {
    let values = case.evaluate();
    for (i, (fused, plain)) in pairs.iter().enumerate() {
        assert_eq!(bits(&values[fused]), bits(&values[plain]), "{what}, output {i}");
    }
}

/// Rows of two groups that do not end at a byte of the mask, channels past one vector, then an easy size.
const BN_SIZES: [([usize; 4], usize); 3] = [([6, 3, 1, 5], 2), ([2, 5, 7, 19], 1), ([4, 40, 40, 16], 2)];

#[test]
fn bn_act_equals_its_chain() {
    for (shape, groups) in BN_SIZES {
        let c = shape[3];
        let mut case = Case::<f32>::new();
        let [x, shortcut] = [1, 2].map(|seed| case.leaf(reals::<f32>(seed, &shape)));
        let [gamma, beta] = [3, 4].map(|seed| case.leaf(reals::<f32>(seed, &[c])));
        let stats = case.push(Op::BnStats { groups }, &[x]);
        let (bn, source) = (BnArgs { eps: 1e-5, groups }, StatsSource::Batch);
        let operands = [x, stats[0], stats[1], gamma, beta];
        let plain = case.one(Op::BnApply { bn, source }, &operands);
        let sum = case.one(Op::Binary(Binary::Add), &[plain, shortcut]);
        let [relu, relu_sum] = [plain, sum].map(|x| case.one(Op::Unary(Unary::Relu), &[x]));
        for (with_shortcut, relu_on, expected) in
            [(false, false, plain), (false, true, relu), (true, false, sum), (true, true, relu_sum)]
        {
            let inputs = [&operands[..], &[shortcut]].concat();
            let inputs = &inputs[..if with_shortcut { 6 } else { 5 }];
            let fused = case.push(Op::BnAct { bn, source, relu: relu_on, mask: true }, inputs);
            assert_same(&case, "bn_act", &[(fused[0], expected)]);
            let values = case.evaluate();
            let y = values[&fused[0]].get::<f32>();
            for (i, &y) in y.iter().enumerate() {
                assert_eq!(values[&fused[1]].get_u8()[i / 8] >> (i % 8) & 1 == 1, y > 0.0, "mask bit {i}");
            }
        }
    }
}

#[test]
fn bn_gradients_under_a_mask_equal_their_chain() {
    for (shape, groups) in BN_SIZES {
        let c = shape[3];
        let mut case = Case::<f32>::new();
        let [x, dy] = [1, 2].map(|seed| case.leaf(reals::<f32>(seed, &shape)));
        let [gamma, beta] = [3, 4].map(|seed| case.leaf(reals::<f32>(seed, &[c])));
        let stats = case.push(Op::BnStats { groups }, &[x]);
        let (bn, source) = (BnArgs { eps: 1e-5, groups }, StatsSource::Batch);
        let y = case.push(Op::BnAct { bn, source, relu: true, mask: true }, &[x, stats[0], stats[1], gamma, beta]);
        let masked = case.one(Op::UnaryGrad(Unary::Relu), &[dy, y[0]]);
        let plain = case.push(Op::BnGradSums { bn }, &[masked, x, stats[0], stats[1]]);
        let fused = case.push(Op::BnGradSums { bn }, &[dy, x, stats[0], stats[1], y[1]]);
        assert_same(&case, "sums", &[(fused[0], plain[0]), (fused[1], plain[1]), (fused[2], plain[2])]);
        for source in [StatsSource::Batch, StatsSource::Running] {
            let apply = |shortcut| Op::BnGradApply { bn, source, shortcut };
            let dx = case.one(apply(false), &[masked, x, stats[0], stats[1], gamma, plain[2]]);
            let inputs = [dy, x, stats[0], stats[1], gamma, plain[2], y[1]];
            let alone = case.one(apply(false), &inputs);
            let both = case.push(apply(true), &inputs);
            let copied = case.push(apply(true), &[masked, x, stats[0], stats[1], gamma, plain[2]]);
            assert_same(
                &case,
                "dx",
                &[(alone, dx), (both[0], dx), (both[1], masked), (copied[0], dx), (copied[1], masked)],
            );
        }
    }
}

#[test]
fn image_swap_equals_its_chain() {
    let args =
        |crop, flip| ImageArgs { size: [7, 6], pad: 2, mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.25], crop, flip };
    for (c, crop, flip) in [(3, true, true), (1, true, false), (3, false, true), (1, false, false)] {
        let mut case = Case::<f32>::new();
        let pixels: Vec<u8> = noise(1).take(6 * 9 * 8 * c).map(|x| (100.0 * (x + 1.0)) as u8).collect();
        let mut inputs = vec![case.leaf(Buffer::u8(&[6, 9, 8, c], &pixels))];
        if crop {
            inputs.push(case.leaf(Buffer::i32(&[6, 2], &[0, 0, 6, 6, 2, 2, 1, 5, 3, 0, 4, 4])));
        }
        if flip {
            inputs.push(case.leaf(Buffer::i32(&[6], &[1, 0, 1, 1, 0, 0])));
        }
        let mask = case.leaf(Buffer::u8(&[3, 4], &[1, 0, 0, 1, 0, 0, 0, 0, 7, 1, 0, 1]));
        let image = case.one(Op::ImageInput(args(crop, flip)), &inputs);
        let plain = case.one(Op::PatchSwap { cell: 4 }, &[image, mask]);
        inputs.push(mask);
        let fused = case.one(Op::ImageSwap { image: args(crop, flip), cell: 4 }, &inputs);
        let back = case.one(Op::PatchSwap { cell: 4 }, &[fused, mask]);
        let ones = case.leaf(Buffer::u8(&[3, 4], &[1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1]));
        let same = case.one(Op::PatchSwap { cell: 4 }, &[image, ones]);
        assert_same(&case, "image_swap", &[(fused, plain), (back, image), (plain, same)]);
    }
}

#[test]
fn crops_are_central_as_in_torchvision() {
    // CenterCrop of 5 to 2 begins at round(1.5) = 2, of 7 to 2 at round(2.5) = 2, of 4 to 2 at 1.
    for (size, first) in [(5, 2), (7, 2), (4, 1), (2, 0)] {
        let pixels: Vec<u8> = (0..size as u8).collect();
        let pixels = Buffer::u8(&[1, 1, size, 1], &pixels);
        let args = ImageArgs { size: [1, 2], pad: 0, mean: [0.0; 3], std: [1.0; 3], crop: false, flip: false };
        let y = launch::<f64>(
            &Op::ImageInput(args),
            &[&pixels],
            &[(Shape::new(&[1, 1, 2, 1]), Dtype::F64)],
            &Scalars::default(),
        );
        assert_eq!(y[0].f64s::<f64>()[0] * 255.0, f64::from(first), "from {size}");
    }
}

#[test]
fn conv_tails_equal_their_chains() {
    let mut case = Case::<f32>::new();
    let conv = ConvArgs { stride: 1, pad: 1, groups: 1 };
    let [x, shortcut] = [(1, 19), (2, 21)].map(|(seed, c)| case.leaf(reals::<f32>(seed, &[2, 5, 6, c])));
    let (w, bias) = (case.leaf(reals::<f32>(3, &[21, 3, 3, 19])), case.leaf(reals::<f32>(4, &[21])));
    let y = case.one(Op::Conv(conv), &[x, w]);
    let plain = case.one(Op::Binary(Binary::Add), &[y, shortcut]);
    let fused_plain = case.one(Op::Conv(conv), &[x, w, shortcut]);
    let biased = case.one(Op::AddBias, &[y, bias]);
    let sum = case.one(Op::Binary(Binary::Add), &[biased, shortcut]);
    let relu = case.one(Op::Unary(Unary::Relu), &[sum]);
    let fused = case.one(Op::ConvAct { conv, relu: true }, &[x, w, bias, shortcut]);
    let dgrad = Op::ConvDgrad { conv, hw: [5, 6] };
    let dx = case.one(dgrad.clone(), &[shortcut, w]);
    let forked = case.one(Op::Binary(Binary::Add), &[dx, x]);
    let fused_dx = case.one(dgrad, &[shortcut, w, x]);
    assert_same(&case, "conv", &[(fused_plain, plain), (fused, relu), (fused_dx, forked)]);
}

/// Row losses of a swapped pair over one tensor of logits [2n,k]; every kind, mask and side.
fn row_table<T: Real>(limit: f64) {
    let (n, k) = (6, 7);
    let divisor = over(n);
    let mut case = Case::<T>::new();
    let [logits, teacher] = [1, 2].map(|seed| case.leaf(reals::<T>(seed, &[2 * n, k])));
    let probabilities = case.one(Op::Softmax { temperature: 1.0 }, &[teacher]);
    let label = case.leaf(Buffer::i32(&[2 * n], &[0, 3, -1, 6, 2, 2, 0, 3, -1, 6, 2, 2]));
    let candidates = case.leaf(Buffer::i32(&[2 * n, 2], &(0..4 * n as i32).map(|i| i * 3 % 7).collect::<Vec<_>>()));
    let term = |kind, mask| RowTerm { kind, mask, divisor };
    let fixed = Temperature::Fixed(4.0);
    let ce = RowKind::CrossEntropy { target: Target::Label { on: 0.9, off: 0.02 }, temperature: 1.0 };
    let soft = RowKind::CrossEntropy { target: Target::Probabilities, temperature: 1.0 };
    let kl = RowKind::Kl { target: Target::Logits, temperature: fixed };
    let norm = RowKind::NonTargetKl { temperature: Temperature::Std { scale: 2.0 } };
    let masks =
        [RowMask::All, RowMask::Confident { threshold: 0.25 }, RowMask::LabelProb { rule: MaskRule::GreaterOrEqual }];
    // (term, operands as (input, first row), weights of student and target).
    type Line = (RowTerm, Vec<(usize, usize)>, Option<f64>, Option<f64>);
    let lines: Vec<Line> = vec![
        (term(ce, masks[0]), vec![(0, 0), (2, 0)], Some(0.5), None),
        (term(ce, masks[0]), vec![(0, n), (2, n)], Some(0.5), None),
        (term(kl, masks[0]), vec![(0, 0), (0, n)], Some(8.0), Some(8.0)),
        (term(kl, masks[1]), vec![(0, n), (1, 0), (1, n)], Some(2.0), Some(3.0)),
        (term(kl, masks[2]), vec![(0, 0), (1, n), (0, 0), (0, n), (2, 0)], Some(1.0), None),
        (term(soft, masks[0]), vec![(0, 0), (3, 0)], Some(0.25), None),
        (
            term(RowKind::TargetKl { temperature: fixed }, masks[1]),
            vec![(0, n), (1, 0), (2, 0), (1, n)],
            Some(1.0),
            None,
        ),
        (term(norm, masks[0]), vec![(0, 0), (1, 0), (2, n)], Some(0.5), None),
        (term(RowKind::GeneralizedCrossEntropy { q: 0.7 }, masks[0]), vec![(0, n), (4, 0)], Some(1.0), None),
        (term(RowKind::BinaryCrossEntropy { class: 2 }, masks[0]), vec![(0, 0)], Some(0.1), None),
    ];
    let inputs = [logits, teacher, label, probabilities, candidates];
    let table = RowTable {
        terms: lines
            .iter()
            .map(|(term, views, student, target)| RowTableTerm {
                term: *term,
                rows: n,
                views: views.iter().map(|&(input, start)| RowView { input, start }).collect(),
                student_grad: student.map(Weight::from),
                target_grad: target.map(Weight::from),
            })
            .collect(),
        grads: vec![0, 1],
    };
    let fused = case.push(Op::RowLosses(Box::new(table)), &inputs);
    let (mut plain, mut sums) = (vec![], [None; 2]);
    for (term, views, student, target) in &lines {
        let slice = |&(input, start): &(usize, usize), case: &mut Case<T>| {
            case.one(Op::Slice { axis: Axis::Batch, start, len: n }, &[inputs[input]])
        };
        let operands: Vec<_> = views.iter().map(|view| slice(view, &mut case)).collect();
        plain.push(case.one(Op::RowLoss(*term), &operands));
        for (side, weight) in [(Side::Student, student), (Side::Target, target)] {
            let Some(weight) = weight else { continue };
            let (input, start) = views[side as usize];
            let grad = case.one(Op::RowLossGrad { term: *term, side, weight: Weight::from(*weight) }, &operands);
            let wide = case.one(Op::Unslice { axis: Axis::Batch, start, total: 2 * n }, &[grad]);
            sums[input] = Some(match sums[input] {
                Some(sum) => case.one(Op::Binary(Binary::Add), &[sum, wide]),
                None => wide,
            });
        }
    }
    plain.extend(sums.into_iter().flatten());
    let values = case.evaluate();
    assert_eq!(fused.len(), plain.len());
    for (i, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
        let (fused, plain) = (values[fused].f64s::<T>(), values[plain].f64s::<T>());
        let error = crate::interpreter::error(&fused, &plain);
        assert!(error <= limit && plain.iter().any(|&x| x != 0.0), "output {i}: {error:.1e}");
    }
    let untouched = &values[&fused[lines.len() + 1]].f64s::<T>()[n * k..];
    assert!(untouched.iter().all(|&x| x == 0.0), "no term gives the teacher's second half a gradient");
}

#[test]
fn row_losses_equal_their_chain() {
    row_table::<f32>(1e-6);
    row_table::<f64>(1e-13);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let results: Vec<Vec<Vec<u32>>> = [1, 2, 4]
        .map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(large_ops))
        .to_vec();
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

/// Rows of more than one block, of every op over rows of logits.
fn row_ops(case: &mut Case<f32>) {
    let (n, k) = (70, 130);
    let [z, t] = [6, 7].map(|seed| case.leaf(reals::<f32>(seed, &[n, k])));
    let features = case.leaf(reals::<f32>(8, &[n, 24]));
    let label = case.leaf(Buffer::i32(&[n], &(0..n as i32).map(|i| i * 7 % k as i32).collect::<Vec<_>>()));
    let (over, weight) = (over(n), Weight::from(2.0));
    let terms = [
        (RowKind::HARD, vec![z, label]),
        (RowKind::Kl { target: Target::Logits, temperature: Temperature::Std { scale: 2.0 } }, vec![z, t]),
        (RowKind::NonTargetKl { temperature: Temperature::Fixed(4.0) }, vec![z, t, label]),
        (RowKind::BinaryCrossEntropy { class: 3 }, vec![z]),
    ];
    for (kind, inputs) in terms {
        let term = RowTerm { kind, mask: RowMask::All, divisor: over };
        case.one(Op::RowLoss(term), &inputs);
        case.one(Op::RowLossGrad { term, side: Side::Student, weight }, &inputs);
    }
    for axis in [Axis::Batch, Axis::Channel] {
        case.one(Op::Correlation { over: axis, divisor: over }, &[z, t]);
        case.one(Op::CorrelationGrad { over: axis, divisor: over, weight }, &[z, t]);
    }
    case.one(Op::Softmax { temperature: 2.0 }, &[z]);
    case.one(Op::TopK { k: 5 }, &[z]);
    case.one(Op::NeighbourTargets { omega: 0.5, temperature: 4.0 }, &[features, z]);
}

/// Ops over several blocks, with tails: every one that sums or splits.
fn large_ops() -> Vec<Vec<u32>> {
    let mut case = Case::<f32>::new();
    let shape = [6, 37, 29, 19];
    let [x, dy] = [1, 2].map(|seed| case.leaf(reals::<f32>(seed, &shape)));
    let [gamma, beta] = [3, 4].map(|seed| case.leaf(reals::<f32>(seed, &[19])));
    let (bn, source) = (BnArgs { eps: 1e-5, groups: 2 }, StatsSource::Batch);
    let stats = case.push(Op::BnStats { groups: 2 }, &[x]);
    let y = case.push(Op::BnAct { bn, source, relu: true, mask: true }, &[x, stats[0], stats[1], gamma, beta]);
    let sums = case.push(Op::BnGradSums { bn }, &[dy, x, stats[0], stats[1], y[1]]);
    case.push(Op::BnGradApply { bn, source, shortcut: true }, &[dy, x, stats[0], stats[1], gamma, sums[2], y[1]]);
    let pool = PoolArgs { kernel: 3, stride: 2, pad: 1 };
    let pooled = case.push(Op::MaxPool(pool), &[x]);
    case.one(Op::MaxPoolGrad { pool, hw: [37, 29] }, &pooled.clone());
    let average = case.one(Op::AvgPool(pool), &[x]);
    case.one(Op::AvgPoolGrad { pool, hw: [37, 29] }, &[average]);
    case.one(Op::GlobalAvgPool, &[x]);
    case.one(Op::ColumnSum, &[x]);
    case.one(Op::AddBias, &[x, beta]);
    case.one(Op::Binary(Binary::Mul), &[x, dy]);
    case.one(Op::SquaredError { divisor: over(1) }, &[x, dy]);
    case.one(Op::ChannelShuffle { groups: 19 }, &[x]);
    row_ops(&mut case);
    case.push(Op::GradNorm { grads: 1 }, &[x, dy]);
    let conv = ConvArgs { stride: 2, pad: 1, groups: 1 };
    let w = case.leaf(reals::<f32>(5, &[21, 3, 3, 19]));
    let z = case.one(Op::Conv(conv), &[x, w]);
    case.one(Op::ConvDgrad { conv, hw: [37, 29] }, &[z, w]);
    case.one(Op::ConvWgrad { conv, kernel: [3, 3] }, &[x, z]);
    let values = case.evaluate();
    let nodes: Vec<_> = case.graph.nodes.iter().flat_map(|n| n.outputs.clone()).collect();
    nodes.iter().map(|id| bits(&values[id])).collect()
}

#[test]
fn bf16_outputs_and_weights_are_rounded() {
    let round = |b: &Buffer| Buffer::real::<f32>(b.shape.dims(), b.get::<f32>().iter().map(|&x| round_bf16(x).into()));
    let x = round(&reals::<f32>(1, &[2, 4, 4, 8]));
    let (w, rounded) = (reals::<f32>(2, &[8, 3, 3, 8]), round(&reals::<f32>(2, &[8, 3, 3, 8])));
    assert_ne!(bits(&w), bits(&rounded));
    let bf16 = |b: &Buffer| b.clone().named(Dtype::Bf16);
    let conv = ConvArgs { stride: 1, pad: 1, groups: 1 };
    for op in [Op::Conv(conv), Op::ConvDgrad { conv, hw: [4, 4] }] {
        let run = |x: &Buffer, w: &Buffer, dtype| {
            launch::<f32>(&op, &[x, w], &[(x.shape, dtype)], &Scalars::default())[0].clone()
        };
        let exact = run(&x, &rounded, Dtype::F32);
        let stored = run(&bf16(&x), &w, Dtype::Bf16);
        assert_eq!(bits(&bf16(&round(&exact))), bits(&stored), "{op}");
    }
    // A linear layer: bf16 features, f32 weights, f32 logits.
    let (x, w) = (x.shaped(&[32, 8]), reals::<f32>(3, &[5, 8]));
    let op = Op::Matmul(MatmulArgs { ta: false, tb: true, dtype: Dtype::F32 });
    let out = [(Shape::new(&[32, 5]), Dtype::F32)];
    let exact = launch::<f32>(&op, &[&x, &round(&w)], &out, &Scalars::default());
    let stored = launch::<f32>(&op, &[&bf16(&x), &w], &out, &Scalars::default());
    assert_eq!(bits(&exact[0]), bits(&stored[0]));
}

#[test]
fn rows_of_any_dtype_move() {
    let mut case = Case::<f64>::new();
    let (a, b) = (case.leaf(Buffer::i32(&[2], &[7, -1])), case.leaf(Buffer::i32(&[3], &[3, 4, 5])));
    let both = case.one(Op::Concat { axis: Axis::Batch }, &[a, b]);
    let middle = case.one(Op::Slice { axis: Axis::Batch, start: 1, len: 3 }, &[both]);
    let index = case.leaf(Buffer::i32(&[2], &[2, 0]));
    let picked = case.one(Op::GatherRows, &[middle, index]);
    let pixels = case.leaf(Buffer::u8(&[2, 1, 2, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]));
    let green = case.one(Op::Slice { axis: Axis::Channel, start: 1, len: 1 }, &[pixels]);
    let values = case.evaluate();
    assert_eq!(values[&middle].f64s::<f64>(), [-1.0, 3.0, 4.0]);
    assert_eq!(values[&picked].f64s::<f64>(), [4.0, -1.0]);
    assert_eq!(values[&green].f64s::<f64>(), [2.0, 5.0, 8.0, 11.0]);
}

#[test]
fn nan_passes_relu_and_max_pool() {
    // Before, between and after numbers; in vectors of channels and in the tail.
    for at in 0..4 {
        let mut x = reals::<f32>(1, &[1, 2, 2, 19]);
        x.get_mut::<f32>()[19 * at..][..19].fill(f32::NAN);
        let shape = Shape::new(&[1, 1, 1, 19]);
        let pool = Op::MaxPool(PoolArgs { kernel: 2, stride: 2, pad: 0 });
        let pooled = launch::<f32>(&pool, &[&x], &[(shape, Dtype::F32), (shape, Dtype::U8)], &Scalars::default());
        assert!(pooled[0].get::<f32>().iter().all(|y| y.is_nan()), "NaN in pixel {at}");
        assert!(pooled[1].get_u8().iter().all(|&tap| usize::from(tap) == at));
        for kind in [Unary::Relu, Unary::Relu6] {
            let y = launch::<f32>(&Op::Unary(kind), &[&x], &[(x.shape, Dtype::F32)], &Scalars::default());
            assert_eq!(y[0].get::<f32>().iter().filter(|y| y.is_nan()).count(), 19);
        }
    }
}
