use crate::harness::{Case, FLOATS, bytes, floats, tolerance};
use graph::{BnArgs, Op, StatsSource};
use tensor::{Dtype, HostTensor, Shape};

/// Shapes of x, groups, multiprocessors.
type Sizes = (&'static [usize], usize, u32);

const SIZES: [Sizes; 12] = [
    (&[2, 8, 8, 16], 1, 1),   // one block, every pack whole
    (&[4, 24, 24, 16], 2, 3), // several blocks a group; unrolled and single packs
    (&[6, 2], 1, 2),          // lines of four rows, the last short; most threads idle
    (&[3, 5, 7, 10], 1, 2),   // channels no multiple of 8: lines of four rows, a short pack at the end
    (&[2, 5, 4, 58], 1, 1),   // as ShuffleNet
    (&[4, 25, 41, 3], 2, 2),  // lines of eight rows; groups of no whole packs: the general kernels
    (&[4, 16, 16, 3], 2, 2),  // the same with whole packs
    (&[70, 264], 2, 2),       // two columns of blocks, the second with idle threads
    (&[1, 2, 2, 2048], 1, 2), // eight columns, fewer rows than a block has
    (&[1, 64], 1, 2),         // one row: the unbiased variance is the biased one
    (&[9, 13, 11, 64], 1, 4), // several blocks, the last short
    (&[5, 24, 24, 64], 1, 1), // several unrolled rounds of a thread
];

/// x with a mean of its own, many deviations from zero, in each channel: what sums of squares lose.
fn shifted(dtype: Dtype, shape: &[usize], seed: u64) -> HostTensor {
    let noise = floats(Dtype::F32, shape, 1.0, seed);
    let noise = noise.view::<f32>().expect("f32");
    let c = shape[shape.len() - 1];
    let values: Vec<f32> = noise.iter().enumerate().map(|(i, v)| v + (i % c % 7) as f32 * 3.0 - 9.0).collect();
    HostTensor::from_f32(dtype, Shape::new(shape), &values).expect("as many values as the shape has")
}

/// Positive f32 numbers.
fn positive(shape: &[usize], seed: u64) -> HostTensor {
    let values: Vec<f32> =
        floats(Dtype::F32, shape, 0.9, seed).view::<f32>().expect("f32").iter().map(|v| 1.0 + v).collect();
    HostTensor::from_f32(Dtype::F32, Shape::new(shape), &values).expect("as many values as the shape has")
}

fn mask(elements: usize) -> HostTensor {
    bytes(&[elements.div_ceil(8)], |i| (i * 89 + 37) as u8)
}

/// A case on an x of each size and dtype.
fn for_sizes(mut f: impl FnMut(&str, Dtype, Sizes, BnArgs)) {
    for dtype in FLOATS {
        for sizes in SIZES {
            let (shape, groups, sms) = sizes;
            f(&format!("{dtype} {shape:?} groups {groups} sms {sms}"), dtype, sizes, BnArgs { eps: 1e-3, groups });
        }
    }
}

fn case(name: &str, op: Op, inputs: Vec<HostTensor>, sms: u32) -> Case {
    Case { sms, ..Case::new(name, op, inputs) }
}

#[test]
fn statistics() {
    for_sizes(|name, dtype, (shape, groups, sms), _| {
        case(&format!("stats {name}"), Op::BnStats { groups }, vec![shifted(dtype, shape, 1)], sms).check(2e-6);
    });
}

#[test]
fn statistics_far_from_zero() {
    // |mean| is a thousand times the deviation: a sum of squares in f32 would have no digit of the variance right.
    let x: Vec<f32> =
        floats(Dtype::F32, &[5000, 8], 1.0, 5).view::<f32>().expect("f32").iter().map(|v| v + 1000.0).collect();
    let x = HostTensor::from_f32(Dtype::F32, Shape::new(&[5000, 8]), &x).expect("as many values as the shape has");
    case("stats far from zero", Op::BnStats { groups: 1 }, vec![x], 1).check(2e-6);
}

#[test]
fn statistics_of_a_nan_stay_visible() {
    let mut x = shifted(Dtype::F32, &[40, 16], 1).view::<f32>().expect("f32").to_vec();
    x[16 * 20 + 3] = f32::NAN;
    let x = HostTensor::from_f32(Dtype::F32, Shape::new(&[40, 16]), &x).expect("as many values as the shape has");
    case("stats of a NaN", Op::BnStats { groups: 1 }, vec![x], 1).check(2e-6);
}

/// mean, var, γ, β.
fn constants(shape: &[usize], groups: usize) -> Vec<HostTensor> {
    let c = shape[shape.len() - 1];
    vec![
        floats(Dtype::F32, &[groups, c], 1.0, 11),
        positive(&[groups, c], 12),
        floats(Dtype::F32, &[c], 2.0, 13),
        floats(Dtype::F32, &[c], 1.0, 14),
    ]
}

#[test]
fn apply() {
    for_sizes(|name, dtype, (shape, groups, sms), bn| {
        let mut inputs = vec![floats(dtype, shape, 2.0, 2)];
        inputs.extend(constants(shape, groups));
        let source = StatsSource::Batch;
        case(&format!("apply {name}"), Op::BnApply { bn, source }, inputs.clone(), sms).check(tolerance(dtype));
        let act = Op::BnAct { bn, source: StatsSource::Running, relu: true, mask: false };
        case(&format!("act {name}"), act, inputs.clone(), sms).check(tolerance(dtype));
        inputs.push(floats(dtype, shape, 2.0, 3));
        let act = Op::BnAct { bn, source, relu: true, mask: true };
        case(&format!("act with shortcut and mask {name}"), act, inputs.clone(), sms).check(tolerance(dtype));
        let act = Op::BnAct { bn, source, relu: false, mask: true };
        case(&format!("add with mask {name}"), act, inputs, sms).check(tolerance(dtype));
    });
}

#[test]
fn relu_lets_a_nan_pass() {
    let mut x = floats(Dtype::F32, &[5, 16], 2.0, 2).view::<f32>().expect("f32").to_vec();
    x[35] = f32::NAN;
    let x = HostTensor::from_f32(Dtype::F32, Shape::new(&[5, 16]), &x).expect("as many values as the shape has");
    let mut inputs = vec![x];
    inputs.extend(constants(&[5, 16], 1));
    let bn = BnArgs { eps: 1e-5, groups: 1 };
    let op = Op::BnAct { bn, source: StatsSource::Batch, relu: true, mask: true };
    case("act of a NaN", op, inputs, 1).check(1e-6);
}

#[test]
fn gradient_sums() {
    for_sizes(|name, dtype, (shape, groups, sms), bn| {
        let stats = constants(shape, groups);
        let x = floats(dtype, shape, 2.0, 2);
        let mut inputs = vec![floats(dtype, shape, 1.0, 4), x, stats[0].clone(), stats[1].clone()];
        case(&format!("sums {name}"), Op::BnGradSums { bn }, inputs.clone(), sms).check(2e-6);
        inputs.push(mask(inputs[0].shape().elements()));
        case(&format!("sums with mask {name}"), Op::BnGradSums { bn }, inputs, sms).check(2e-6);
    });
}

/// dy, x, mean, var, γ, sums.
fn gradient_inputs(dtypes: [Dtype; 2], shape: &[usize], groups: usize) -> Vec<HostTensor> {
    let [mean, var, gamma, _] = constants(shape, groups).try_into().expect("four constants");
    let c = shape[shape.len() - 1];
    let rows = shape.iter().product::<usize>() / c / groups;
    let sums = floats(Dtype::F32, &[groups, 2, c], rows as f64, 6);
    vec![floats(dtypes[0], shape, 1.0, 4), floats(dtypes[1], shape, 2.0, 2), mean, var, gamma, sums]
}

#[test]
fn gradient() {
    for_sizes(|name, dtype, (shape, groups, sms), bn| {
        let mut inputs = gradient_inputs([dtype; 2], shape, groups);
        for source in [StatsSource::Batch, StatsSource::Running] {
            let op = Op::BnGradApply { bn, source, shortcut: false };
            case(&format!("gradient {source:?} {name}"), op, inputs.clone(), sms).check(tolerance(dtype));
        }
        let op = Op::BnGradApply { bn, source: StatsSource::Batch, shortcut: true };
        case(&format!("gradient and shortcut {name}"), op, inputs.clone(), sms).check(tolerance(dtype));
        inputs.push(mask(inputs[0].shape().elements()));
        for (source, shortcut) in
            [(StatsSource::Batch, true), (StatsSource::Running, true), (StatsSource::Batch, false)]
        {
            let op = Op::BnGradApply { bn, source, shortcut };
            case(&format!("masked gradient {source:?} {shortcut} {name}"), op, inputs.clone(), sms)
                .check(tolerance(dtype));
        }
    });
}

#[test]
fn operands_of_several_dtypes() {
    // Features in f32 within a bf16 step: their gradient is bf16. One shape with whole packs, one without.
    for shape in [[6, 16], [7, 10]] {
        let bn = BnArgs { eps: 1e-3, groups: 1 };
        for dtypes in [[Dtype::F32, Dtype::F32], [Dtype::Bf16, Dtype::F32]] {
            let mut inputs = gradient_inputs(dtypes, &shape, 1);
            inputs.push(mask(shape[0] * shape[1]));
            let name = format!("{dtypes:?} {shape:?}");
            let op = Op::BnGradApply { bn, source: StatsSource::Batch, shortcut: true };
            let gradient = case(&format!("gradient {name}"), op, inputs.clone(), 2);
            Case { precision: graph::Precision::Bf16, ..gradient }.check(tolerance(Dtype::Bf16));
            let sums = vec![inputs[0].clone(), inputs[1].clone(), inputs[2].clone(), inputs[3].clone()];
            case(&format!("sums {name}"), Op::BnGradSums { bn }, sums, 2).check(2e-6);
        }
        let mut inputs = vec![floats(Dtype::Bf16, &shape, 2.0, 2)];
        inputs.extend(constants(&shape, 1));
        inputs.push(floats(Dtype::F32, &shape, 2.0, 3));
        let op = Op::BnAct { bn, source: StatsSource::Batch, relu: true, mask: true };
        case(&format!("act with an f32 shortcut {shape:?}"), op, inputs, 2).check(tolerance(Dtype::Bf16));
    }
}

#[test]
fn fold() {
    // A stem, a pointwise layer, a depthwise one of odd sizes.
    for filter in [[16, 7, 7, 3], [40, 1, 1, 24], [13, 3, 3, 1]] {
        let k = filter[0];
        let mut inputs = vec![floats(Dtype::F32, &filter, 1.0, 1), floats(Dtype::F32, &[k], 1.0, 2), positive(&[k], 3)];
        inputs.extend([floats(Dtype::F32, &[k], 1.0, 4), floats(Dtype::F32, &[k], 1.0, 5)]);
        case(&format!("fold {filter:?}"), Op::FoldBn { eps: 1e-5 }, inputs, 2).check(1e-6);
    }
}

/// f32 numbers as they are.
fn given(values: &[f32]) -> HostTensor {
    HostTensor::new(Shape::new(&[values.len()]), values).expect("as many values as the shape has")
}

#[test]
fn what_ranks_exchange() {
    // Alone, a rank gathers its own. 260 and 132 values: blocks of 128, the last nearly empty.
    let own = vec![floats(Dtype::F32, &[2, 130], 1.0, 1), floats(Dtype::F32, &[2, 2, 33], 1.0, 2)];
    case("gather", Op::GatherRanks { world: 1, count: 37 }, own, 2).check(0.0);
    // A rank with fewer rows; one rank; one row in all, whose unbiased variance is the biased one.
    for (rows, c) in [(&[32.0, 32.0, 32.0, 7.0][..], 130), (&[5.0], 3), (&[1.0, 0.0], 64), (&[1e6, 1e6, 1.0], 16)] {
        let world = rows.len();
        let inputs = vec![shifted(Dtype::F32, &[world, 2, c], 3), positive(&[world, 2, c], 4), given(rows)];
        case(&format!("merge {rows:?} {c}"), Op::BnMergeRanks, inputs, 2).check(2e-6);
        let inputs = vec![floats(Dtype::F32, &[world, 2, 2, c], 4.0, 5), given(rows)];
        case(&format!("sum {rows:?} {c}"), Op::BnSumRanks { count: 7 }, inputs, 2).check(2e-6);
    }
}

#[test]
fn a_nan_of_any_rank_stays_visible() {
    let mut means = vec![1.0; 3 * 8];
    means[8 + 3] = f32::NAN;
    let means = HostTensor::new(Shape::new(&[3, 1, 8]), &means).expect("as many values as the shape has");
    let inputs = vec![means, positive(&[3, 1, 8], 4), given(&[4.0, 4.0, 4.0])];
    case("merge of a NaN", Op::BnMergeRanks, inputs, 1).check(2e-6);
}
