use crate::harness::{Case, FLOATS, floats, ints, tolerance};
use graph::{BnRunningLayer, LarsArgs, Op, SgdArgs, SgdParam, SlotId, StateId};
use tensor::{Dtype, HostTensor, Shape};

fn scalar(x: f32) -> HostTensor {
    HostTensor::from_f32(Dtype::F32, Shape::new(&[]), &[x]).expect("one value")
}

fn vector(values: &[f32]) -> HostTensor {
    HostTensor::from_f32(Dtype::F32, Shape::new(&[values.len()]), values).expect("as many values as the shape has")
}

// 1: one element. 7: a tail alone. 64: packs alone. 16384 and 8192: one chunk of the norm and of SGD. 40001: several and a tail.
const SIZES: [usize; 6] = [1, 7, 64, 8192, 16384, 40001];

#[test]
fn gradient_norm() {
    let grads: Vec<HostTensor> = (0..6).map(|i| floats(Dtype::F32, &[SIZES[i]], 3.0, i as u64)).collect();
    let values = [scalar(1e20), vector(&[0.5, -2.0, 7.0])];
    let inputs = [&grads[..], &values[..]].concat();
    for shift in [0, 4] {
        let case = Case::new(&format!("norm, {shift} past alignment"), Op::GradNorm { grads: 6 }, inputs.clone());
        Case { shift, ..case }.check(1e-6);
    }
    Case::new("norm of no gradient", Op::GradNorm { grads: 0 }, values.to_vec()).check(1e-6);
}

// More than 512 chunks: the second stage loops.
#[test]
fn gradient_norm_of_many() {
    let grads: Vec<HostTensor> = (0..700).map(|i| floats(Dtype::F32, &[3], 1.0, i)).collect();
    Case::new("norm of 700 gradients", Op::GradNorm { grads: 650 }, grads).check(1e-6);
}

#[test]
fn finite_flag() {
    let good = || vec![floats(Dtype::F32, &[20_003], 1.0, 1), vector(&[1.0, 2.0])];
    for (what, input, at, bad) in [
        ("NaN in a gradient's tail", 0, 20_002, f32::NAN),
        ("infinity in a gradient", 0, 17, f32::NEG_INFINITY),
        ("NaN in a loss value", 1, 0, f32::NAN),
        ("infinity in a loss value", 1, 1, f32::INFINITY),
        ("squares beyond f32, which are finite", 0, 5, 1e25),
        ("squares below f32", 0, 5, 1e-30),
    ] {
        let mut inputs = good();
        let mut values = inputs[input].view::<f32>().expect("f32").to_vec();
        values[at] = bad;
        inputs[input] = vector(&values);
        Case::new(what, Op::GradNorm { grads: 1 }, inputs).check(1e-6);
    }
}

fn sgd_case(name: &str, args: SgdArgs, norm2: f32, finite: f32) -> Case {
    let shapes: Vec<Vec<usize>> = SIZES.iter().take(args.params.len()).map(|&n| vec![n]).collect();
    let grads = shapes.iter().enumerate().map(|(i, s)| floats(Dtype::F32, s, 2.0, i as u64));
    let inputs = [scalar(norm2), scalar(finite)].into_iter().chain(grads).collect();
    let states = shapes.iter().flat_map(|s| [floats(Dtype::F32, s, 1.0, 21), floats(Dtype::F32, s, 0.5, 22)]).collect();
    Case { states, ..Case::new(name, Op::Sgd(Box::new(args)), inputs) }
}

fn sgd_args(momentum: f64, nesterov: bool, clip_norm: Option<f64>) -> SgdArgs {
    let param = |i: u32| SgdParam {
        param: StateId(2 * i),
        momentum: StateId(2 * i + 1),
        weight_decay: [5e-4, 0.0, 0.1][i as usize % 3],
        lr_factor: [1.0, 10.0, 0.0][i as usize % 3],
    };
    SgdArgs { params: (0..SIZES.len() as u32).map(param).collect(), momentum, nesterov, clip_norm }
}

#[test]
fn sgd() {
    for (name, args, norm2, finite) in [
        ("plain", sgd_args(0.0, false, None), 4.0, 1.0),
        ("momentum", sgd_args(0.9, false, None), 4.0, 1.0),
        ("nesterov", sgd_args(0.9, true, None), 4.0, 1.0),
        ("clipped", sgd_args(0.9, true, Some(0.5)), 4.0, 1.0),
        ("below the clip norm", sgd_args(0.9, false, Some(5.0)), 4.0, 1.0),
        ("norm beyond f32, clipped to nothing", sgd_args(0.9, false, Some(5.0)), f32::INFINITY, 1.0),
        ("not finite: nothing moves", sgd_args(0.9, false, None), f32::NAN, 0.0),
    ] {
        sgd_case(name, args, norm2, finite).check(1e-6);
    }
    let case = sgd_case("gradients past alignment", sgd_args(0.9, true, None), 4.0, 1.0);
    Case { shift: 4, ..case }.check(1e-6);
}

/// Large and small weights, zero weights, gradients of one value.
fn lars_case(name: &str, epsilon: f64, finite: f32) -> Case {
    let params = sgd_args(0.9, false, None).params;
    let adapts = params.iter().map(|p| p.weight_decay > 0.0).collect();
    let weights = |(i, &n): (usize, &usize)| floats(Dtype::F32, &[n], [1.0, 100.0, 0.0][i % 3], 21);
    let states = SIZES.iter().enumerate().flat_map(|s| [weights(s), floats(Dtype::F32, &[*s.1], 0.5, 22)]).collect();
    let grads = SIZES.iter().zip(0..).map(|(&n, seed)| floats(Dtype::F32, &[n], 2.0, seed));
    let inputs = [scalar(finite)].into_iter().chain(grads).collect();
    let args = LarsArgs { params, adapts, momentum: 0.9, trust: 0.02, epsilon };
    Case { states, ..Case::new(name, Op::Lars(Box::new(args)), inputs) }
}

#[test]
fn lars() {
    for (name, epsilon, finite) in
        [("lars", 0.0, 1.0), ("lars with an epsilon", 3.0, 1.0), ("lars, not finite: nothing moves", 0.0, 0.0)]
    {
        lars_case(name, epsilon, finite).check(1e-6);
    }
    Case { shift: 4, ..lars_case("lars, gradients past alignment", 0.0, 1.0) }.check(1e-6);
    // No gradient at all: the ratio is 1 and weights decay by the rate alone.
    let mut case = lars_case("lars of zero gradients", 0.0, 1.0);
    let grads = SIZES.iter().map(|&n| vector(&vec![0.0; n]));
    case.inputs = [scalar(1.0)].into_iter().chain(grads).collect();
    case.check(1e-6);
}

// 301 chunks of one tensor: more than the threads that add its partial sums. Between two others, whose partials lie around.
#[test]
fn lars_of_a_large_tensor() {
    let sizes = [5, 300 * 8192 + 3, 9000];
    let params = sgd_args(0.9, false, None).params[..3].to_vec();
    let args = LarsArgs { params, adapts: vec![true; 3], momentum: 0.5, trust: 0.001, epsilon: 0.0 };
    let grads = sizes.iter().zip(0..).map(|(&n, seed)| floats(Dtype::F32, &[n], 0.01, seed));
    let inputs = [scalar(1.0)].into_iter().chain(grads).collect();
    let states = sizes.iter().flat_map(|&n| [1.0, 0.5].map(|x| floats(Dtype::F32, &[n], x, 7))).collect();
    Case { states, ..Case::new("lars of 2.5 million", Op::Lars(Box::new(args)), inputs) }.check(1e-6);
}

#[test]
fn moving_average() {
    let pairs: Vec<_> = (0..SIZES.len() as u32).map(|i| (StateId(2 * i), StateId(2 * i + 1))).collect();
    let states: Vec<_> = SIZES.iter().flat_map(|&n| [1, 2].map(|seed| floats(Dtype::F32, &[n], 1.0, seed))).collect();
    for finite in [1.0, 0.0] {
        let op = Op::Ema { pairs: pairs.clone(), decay: SlotId::EMA_DECAY };
        let case = Case::new(&format!("ema, finite {finite}"), op, vec![scalar(finite)]);
        Case { states: states.clone(), ..case }.check(1e-6);
    }
}

/// What lies in the carry arena: a value of each micro-batch every `stride` bytes.
fn carry(values: &[HostTensor], stride: usize) -> Vec<u8> {
    let slot = |v: &HostTensor| {
        let mut bytes = v.bytes().to_vec();
        bytes.resize(stride, 0xff);
        bytes
    };
    values.iter().flat_map(slot).collect()
}

/// A case whose inputs from 1 on are carried: given per input, each with its micro-batches.
fn carried(name: &str, op: Op, finite: f32, values: &[Vec<HostTensor>], states: Vec<HostTensor>) -> Case {
    let stride = values.iter().flatten().map(HostTensor::byte_len).max().unwrap_or(0).next_multiple_of(16);
    let inputs = [scalar(finite)].into_iter().chain(values.iter().map(|v| v[0].clone())).collect();
    let carried = values.iter().enumerate().map(|(i, v)| (i + 1, carry(v, stride))).collect();
    Case { states, slots: values[0].len(), carried, ..Case::new(name, op, inputs) }
}

#[test]
fn running_statistics() {
    // 130 channels: two blocks, one of them nearly empty. 5: one. Forwards of the first layer have 2 groups and 1.
    let layer =
        |i: u32, updates, forwards| BnRunningLayer { mean: StateId(2 * i), var: StateId(2 * i + 1), updates, forwards };
    let layers = vec![layer(0, 2, 2), layer(1, 1, 1)];
    let micros = |groups: usize, c: usize, seed: u64| -> Vec<HostTensor> {
        (0..3).map(|m| floats(Dtype::F32, &[groups, c], 2.0, seed + 100 * m)).collect()
    };
    let shapes = [(2, 130), (2, 130), (1, 130), (1, 130), (1, 5), (1, 5)];
    let values: Vec<_> = shapes.iter().zip(0..).map(|(&(groups, c), seed)| micros(groups, c, seed)).collect();
    let states: Vec<_> = [130, 130, 5, 5].iter().map(|&c| floats(Dtype::F32, &[c], 1.0, 77)).collect();
    for finite in [1.0, 0.0] {
        let op = Op::BnRunning { momentum: 0.1, layers: layers.clone() };
        let mut case = carried(&format!("running, finite {finite}"), op, finite, &values, states.clone());
        case.scalars.micro_units = vec![[8, 8], [8, 8], [3, 3]];
        // All of them, some, and more than there are.
        for micros in [3, 2, 0, 5] {
            case.scalars.running = micros;
            case.check(1e-6);
        }
    }
}

#[test]
fn assigned_rows() {
    // Rows of 33: a warp and one lane. 8 rows of 8 units; 16 of 8, two a unit. 300 rows: more than the warps of one SM's grid.
    for (rows, width, units, full) in [(8, 10, 5, 8), (16, 33, 3, 8), (300, 4, 300, 300)] {
        for (state, carries) in [(Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::Bf16), (Dtype::F32, Dtype::Bf16)] {
            for finite in [1.0, 0.0] {
                let name = format!("assign {rows}x{width} {carries} to {state}, finite {finite}");
                let values = vec![(0..3).map(|m| floats(carries, &[rows, width], 1.0, m)).collect()];
                let states = vec![floats(state, &[3 * rows, width], 1.0, 9)];
                let mut case = carried(&name, Op::Assign { state: StateId(0) }, finite, &values, states);
                case.scalars.micro_units = vec![[full, full], [full, full], [units, units]];
                Case { sms: 1, ..case }.check(tolerance(state));
            }
        }
    }
}

#[test]
fn scattered_rows() {
    // Of 8 rows a micro-batch and 20 of the state many indices repeat, within a micro-batch and between them; every fifth is
    // padding. 200 rows: more than the warps of the grid, and more than a warp looks at once.
    for (count, width, units, full) in [(8, 10, 5, 8), (200, 33, 77, 200)] {
        for dtype in FLOATS {
            for finite in [1.0, 0.0] {
                let name = format!("scatter {count}x{width} {dtype}, finite {finite}");
                let index = |m: usize| {
                    ints(&[count], move |i| if i % 5 == 4 { -1 } else { ((i * i + 7 * i + 3 * m) % 20) as i32 })
                };
                let values =
                    vec![(0..3).map(index).collect(), (0..3).map(|m| floats(dtype, &[count, width], 1.0, m)).collect()];
                let states = vec![floats(dtype, &[20, width], 1.0, 9)];
                let mut case = carried(&name, Op::ScatterRows { state: StateId(0) }, finite, &values, states);
                case.scalars.micro_units = vec![[full, full], [full, full], [units, units]];
                Case { sms: 1, ..case }.check(tolerance(dtype));
            }
        }
    }
}
