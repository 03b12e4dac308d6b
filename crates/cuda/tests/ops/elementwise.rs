use crate::harness::{Case, FLOATS, floats, tolerance};
use graph::{Binary, Op, SlotId, Unary, Weight};

// 1: one element. 7: a tail alone. 8 and 16: no tail. 4099: several blocks and a tail.
const SIZES: [usize; 5] = [1, 7, 8, 16, 4099];

#[test]
fn unary_and_gradient() {
    for kind in [Unary::Relu, Unary::Relu6, Unary::Sigmoid] {
        for dtype in FLOATS {
            for n in SIZES {
                let x = floats(dtype, &[n], 8.0, 1);
                let dy = floats(dtype, &[n], 1.0, 2);
                Case::new(&format!("{kind:?} {dtype} {n}"), Op::Unary(kind), vec![x.clone()]).check(tolerance(dtype));
                Case::new(&format!("{kind:?} grad {dtype} {n}"), Op::UnaryGrad(kind), vec![dy, x])
                    .check(tolerance(dtype));
            }
        }
    }
}

#[test]
fn binary_scale_and_accumulate() {
    for dtype in FLOATS {
        for n in SIZES {
            let (a, b) = (floats(dtype, &[n], 2.0, 3), floats(dtype, &[n], 2.0, 4));
            for kind in [Binary::Add, Binary::Sub, Binary::Mul] {
                Case::new(&format!("{kind:?} {dtype} {n}"), Op::Binary(kind), vec![a.clone(), b.clone()])
                    .check(tolerance(dtype));
            }
            for weight in [Weight::from(-1.5), Weight { factor: 3.0, slot: Some(SlotId(3)) }] {
                Case::new(&format!("scale {dtype} {n}"), Op::Scale(weight), vec![a.clone()]).check(tolerance(dtype));
            }
            Case::new(&format!("accumulate {dtype} {n}"), Op::Accumulate, vec![a, b]).check(tolerance(dtype));
        }
    }
}

#[test]
fn rows_of_a_batch_lie_anywhere() {
    for dtype in FLOATS {
        for n in SIZES {
            let (a, b) = (floats(dtype, &[n], 2.0, 3), floats(dtype, &[n], 2.0, 4));
            let case = Case::new(&format!("add past alignment {dtype} {n}"), Op::Binary(Binary::Add), vec![a, b]);
            Case { shift: 4, ..case }.check(tolerance(dtype));
        }
    }
}
