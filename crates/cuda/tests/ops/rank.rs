use crate::harness::{Case, FLOATS, floats, ints};
use graph::{Axis, Divisor, Op, SlotId, Weight};
use tensor::{Dtype, HostTensor, Shape};

const UNITS: Divisor = Divisor { constant: 0, per_unit: [1, 0] };

/// Logits of few levels, so that many are equal; row 2 has a NaN and row 3 infinities.
fn ties(n: usize, k: usize) -> HostTensor {
    let value = |i: usize| match (i / k, i % k) {
        (2, 1) => f32::NAN,
        (3, 0) => f32::NEG_INFINITY,
        (3, 1) => f32::INFINITY,
        _ => ((i * 7919 + i / 3) % 5) as f32 - 2.0,
    };
    HostTensor::new(Shape::new(&[n, k]), &(0..n * k).map(value).collect::<Vec<f32>>()).expect("n k values")
}

// 3: all are asked for. 100: a warp. 129: a block. 13,000: not staged.
const CLASSES: [(usize, usize); 4] = [(3, 3), (100, 5), (129, 2), (13_000, 2)];

#[test]
fn top_k_and_correct() {
    for (k, first) in CLASSES {
        let n = if k > 1000 { 4 } else { 9 };
        let random = floats(Dtype::F32, &[n, k], 5.0, 1);
        for (name, logits) in [("ties", ties(n, k)), ("random", random)] {
            let name = format!("{name} {k}");
            Case::new(&name, Op::TopK { k: first }, vec![logits.clone()]).check(0.0);
            // Labels: absent, the class of the NaN, the first and the last.
            let label = ints(&[n], |i| [0, -1, 1, 1, k as i32 - 1][i % 5]);
            Case::new(&name, Op::Correct { k: first }, vec![logits, label]).check(0.0);
        }
    }
    // More rows than the summing block has threads.
    let inputs = vec![floats(Dtype::F32, &[301, 4], 5.0, 2), ints(&[301], |i| i as i32 % 4)];
    Case::new("many rows", Op::Correct { k: 2 }, inputs).check(0.0);
}

#[test]
fn targets_from_neighbours() {
    // 1: a row alone. 2: each other's only neighbour. 33 rows, 35 features: tails of tiles. 70: several tiles; ω 0.9: eight steps.
    for (n, d, k, omega) in [(1, 4, 5, 0.5), (2, 3, 4, 0.5), (33, 35, 10, 0.5), (70, 20, 130, 0.9), (5, 8, 3, 0.0)] {
        for dtype in FLOATS {
            let inputs = vec![floats(dtype, &[n, d], 2.0, 3), floats(Dtype::F32, &[n, k], 6.0, 4)];
            let op = Op::NeighbourTargets { omega, temperature: 4.0 };
            Case::new(&format!("neighbours {n} {d} {k} {dtype}"), op, inputs).check(1e-5);
        }
    }
}

#[test]
fn neighbours_of_odd_features() {
    // A zero row has no direction; a NaN in a row must reach every target.
    for bad in [0.0, f32::NAN] {
        let mut values = floats(Dtype::F32, &[6, 4], 2.0, 5).view::<f32>().expect("f32").to_vec();
        values[4..8].fill(bad);
        let features = HostTensor::new(Shape::new(&[6, 4]), &values).expect("24 values");
        let op = Op::NeighbourTargets { omega: 0.5, temperature: 1.0 };
        Case::new(&format!("row of {bad}"), op, vec![features, floats(Dtype::F32, &[6, 3], 4.0, 6)]).check(1e-5);
    }
}

#[test]
fn correlation_and_gradient() {
    let weight = Weight { factor: 2.0, slot: Some(SlotId(3)) };
    // 2 classes; a warp with a tail and more rows than warps; a block with a tail.
    for (n, k) in [(3, 2), (19, 37), (5, 300)] {
        let z = floats(Dtype::F32, &[n, k], 4.0, 7);
        let near = z
            .view::<f32>()
            .expect("f32")
            .iter()
            .enumerate()
            .map(|(i, x)| x + 0.1 * (i % 7) as f32)
            .collect::<Vec<f32>>();
        let near = HostTensor::new(Shape::new(&[n, k]), &near).expect("n k values");
        for (name, t) in [("apart", floats(Dtype::F32, &[n, k], 4.0, 8)), ("near", near)] {
            for over in [Axis::Batch, Axis::Channel] {
                let (name, inputs) = (format!("correlation {name} {n} {k} {over:?}"), vec![z.clone(), t.clone()]);
                Case::new(&name, Op::Correlation { over, divisor: UNITS }, inputs.clone()).check(1e-5);
                Case::new(&name, Op::CorrelationGrad { over, divisor: UNITS, weight }, inputs).check(1e-5);
            }
        }
    }
}

#[test]
fn correlation_of_equal_numbers_and_not_a_number() {
    for value in [1.0, f32::NAN] {
        let z = HostTensor::new(Shape::new(&[3, 4]), &[value; 12]).expect("12 values");
        for over in [Axis::Batch, Axis::Channel] {
            let inputs = vec![z.clone(), floats(Dtype::F32, &[3, 4], 4.0, 9)];
            let weight = Weight::from(1.0);
            let name = format!("all {value} {over:?}");
            Case::new(&name, Op::Correlation { over, divisor: UNITS }, inputs.clone()).check(1e-5);
            Case::new(&name, Op::CorrelationGrad { over, divisor: UNITS, weight }, inputs).check(1e-5);
        }
    }
}
