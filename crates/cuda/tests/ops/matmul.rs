use crate::harness::{Case, FLOATS, floats, tolerance};
use cuda::Math;
use graph::{MatmulArgs, Op};
use tensor::{Dtype, HostTensor, Shape};

const F32: Dtype = Dtype::F32;
const BF16: Dtype = Dtype::Bf16;

/// Whether a bias is added.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bias {
    Absent,
    Present,
}

/// A product of [m,k] and [k,n], of dtypes of a, b and c.
fn product([m, k, n]: [usize; 3], [ta, tb]: [bool; 2], [a, b, dtype]: [Dtype; 3], bias: Bias) -> Case {
    let oriented = |rows, columns, turned| if turned { [columns, rows] } else { [rows, columns] };
    let mut inputs = vec![floats(a, &oriented(m, k, ta), 1.0, 1), floats(b, &oriented(k, n, tb), 1.0, 2)];
    if bias == Bias::Present {
        inputs.push(floats(F32, &[n], 4.0, 3));
    }
    let name = format!("{m}x{k}x{n} ta {ta} tb {tb} {a} {b} -> {dtype} {bias:?}");
    Case::new(&name, Op::Matmul(MatmulArgs { ta, tb, dtype }), inputs)
}

const ORIENTATIONS: [[bool; 2]; 4] = [[false, true], [false, false], [true, false], [true, true]];

// 1: one element. 5x7x3: tails alone. 64x32x64: one tile, one step, vectors alone. 72x40x136: vectors and tails in both layouts,
// two rows and three columns of tiles. 65x300x130: odd rows, ten steps, which few tiles cut into slices.
const SIZES: [[usize; 3]; 5] = [[1, 1, 1], [5, 7, 3], [64, 32, 64], [72, 40, 136], [65, 300, 130]];

/// Two devices: one that the tiles fill, and one that asks for slices of k where k allows.
const SMS: [u32; 2] = [1, 40];

#[test]
fn f32_products() {
    for (size, turned) in SIZES.iter().flat_map(|s| ORIENTATIONS.map(|o| (*s, o))) {
        for (sms, math, limit) in [(SMS[0], Math::F32, 1e-5), (SMS[1], Math::F32, 1e-5), (SMS[1], Math::Tf32, 2e-3)] {
            let bias = if turned[0] == turned[1] { Bias::Present } else { Bias::Absent };
            Case { sms, math, ..product(size, turned, [F32; 3], bias) }.check(limit);
        }
    }
    Case { sms: 1, math: Math::Tf32, ..product(SIZES[4], [true, false], [F32; 3], Bias::Present) }.check(2e-3);
}

#[test]
fn bf16_products() {
    for (size, turned) in SIZES.iter().flat_map(|s| ORIENTATIONS.map(|o| (*s, o))) {
        for (i, dtypes) in [[BF16; 3], [BF16, F32, F32], [F32, BF16, F32], [F32, F32, BF16]].into_iter().enumerate() {
            let bias = if i % 2 == 0 { Bias::Present } else { Bias::Absent };
            let limit = if dtypes[2] == BF16 { tolerance(BF16) } else { 1e-5 };
            Case { sms: SMS[i / 2], ..product(size, turned, dtypes, bias) }.check(limit);
        }
    }
}

// Rows of a batch slice that begin past 16-byte alignment: no vectors, and stores of single columns.
#[test]
fn products_past_alignment() {
    for (shift, dtypes, limit) in [(4, [F32; 3], 1e-5), (2, [BF16; 3], tolerance(BF16)), (8, [BF16, BF16, F32], 1e-5)] {
        for turned in ORIENTATIONS {
            Case { shift, ..product([9, 40, 24], turned, dtypes, Bias::Absent) }.check(limit);
        }
    }
}

// Classifiers as they are: CIFAR's and ImageNet's forward, both gradients, and 22,016 features in each role.
#[test]
fn classifiers() {
    let (nt, nn, tn) = ([false, true], [false, false], [true, false]);
    for (size, turned, dtypes) in [
        ([8, 512, 100], nt, [BF16, F32, F32]),
        ([3, 2048, 1000], nt, [BF16, F32, F32]),
        ([3, 1000, 2048], nn, [F32, F32, BF16]),
        ([1000, 3, 512], tn, [F32, BF16, F32]),
        ([4, 22_016, 10], nt, [BF16, F32, F32]),
        ([10, 4, 22_016], tn, [F32, BF16, F32]),
    ] {
        let limit = if dtypes[2] == BF16 { tolerance(BF16) } else { 1e-5 };
        let bias = if turned == nt { Bias::Present } else { Bias::Absent };
        Case { sms: 132, ..product(size, turned, dtypes, bias) }.check(limit);
    }
}

// A NaN of a factor reaches its row and no other, whatever lies beyond the sizes.
#[test]
fn nan_in_a_factor() {
    for (dtype, math) in [(F32, Math::F32), (F32, Math::Tf32), (BF16, Math::F32)] {
        let mut case = product([5, 40, 9], [false, true], [dtype; 3], Bias::Absent);
        let mut values = vec![0.5f32; 5 * 40];
        values[3 * 40 + 39] = f32::NAN;
        case.inputs[0] = HostTensor::from_f32(dtype, Shape::new(&[5, 40]), &values).expect("200 values");
        Case { math, ..case }.check(tolerance(BF16));
    }
}

// 10: no vectors. 8 and 64: one pack and one block of columns. 72: a block and a tail. 1000: many. 300 rows: slices where the
// device has room; four axes: a conv's bias. 5 rows: fewer than a block's threads reach down.
// Shift 4: no vectors.
const COLUMNS: [usize; 5] = [10, 8, 64, 72, 1000];

#[test]
fn biases_and_their_gradients() {
    for dtype in FLOATS {
        for c in COLUMNS {
            for (rows, sms, shift) in [(5, 2, 0), (300, 8, 0), (300, 1, 0), (129, 8, 4)] {
                let name = format!("{dtype} {rows}x{c}, {sms} SMs, shift {shift}");
                let x = floats(dtype, &[rows, c], 1.0, 1);
                let case = Case::new(&format!("column sum {name}"), Op::ColumnSum, vec![x.clone()]);
                Case { sms, shift, ..case }.check(1e-5);
                let bias = Case::new(&format!("bias {name}"), Op::AddBias, vec![x, floats(F32, &[c], 1.0, 2)]);
                Case { sms, shift, ..bias }.check(tolerance(dtype));
            }
        }
        let x = floats(dtype, &[2, 5, 7, 16], 1.0, 3);
        Case::new(&format!("column sum of a map {dtype}"), Op::ColumnSum, vec![x.clone()]).check(1e-5);
        Case::new(&format!("bias of a map {dtype}"), Op::AddBias, vec![x, floats(F32, &[16], 1.0, 4)])
            .check(tolerance(dtype));
    }
}
