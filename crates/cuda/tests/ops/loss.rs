use crate::harness::{Case, FLOATS, floats, ints, tolerance};
use graph::{Divisor, MaskRule, Op, RowKind, RowMask, RowTable, RowTableTerm, RowTerm, RowView, Side, SlotId};
use graph::{Target, Temperature, Weight};
use tensor::{Dtype, HostTensor, Shape};

const TOLERANCE: f64 = 1e-5;
const UNITS: Divisor = Divisor { constant: 0, per_unit: [1, 0] };
const FIXED: Temperature = Temperature::Fixed(4.0);
const STD: Temperature = Temperature::Std { scale: 2.0 };

fn logits(n: usize, k: usize, seed: u64) -> HostTensor {
    floats(Dtype::F32, &[n, k], 6.0, seed)
}

/// Labels of rows; every fifth row has none.
fn labels(n: usize, k: usize, salt: usize) -> HostTensor {
    ints(&[n], |i| if i % 5 == 4 { -1 } else { ((7 * i + salt) % k) as i32 })
}

/// Rows that sum to about 1, some probabilities zero.
fn probabilities(n: usize, k: usize) -> HostTensor {
    let value = |i: usize| if i.is_multiple_of(3) { 0.0 } else { ((i * 37 % 11 + 1) as f32) / (6.0 * k as f32) };
    HostTensor::new(Shape::new(&[n, k]), &(0..n * k).map(value).collect::<Vec<f32>>()).expect("n k values")
}

fn scalar(x: f32) -> HostTensor {
    HostTensor::new(Shape::new(&[]), &[x]).expect("one value")
}

/// Every kind with its targets' operands, for rows of `k` classes.
fn kinds(n: usize, k: usize) -> Vec<(RowKind, Vec<HostTensor>)> {
    let smoothed = Target::Label { on: 0.9, off: 0.1 / k as f64 };
    let ce = |target, temperature| RowKind::CrossEntropy { target, temperature };
    let kl = |target, temperature| RowKind::Kl { target, temperature };
    let t = || logits(n, k, 77);
    let (label, other) = (labels(n, k, 1), ints(&[n], |i| if i % 4 == 3 { -1 } else { (i % k) as i32 }));
    let mixed = vec![label.clone(), other, scalar(0.3)];
    let candidates = ints(&[n, 2], |i| ((i * 5 + 1) % k) as i32);
    vec![
        (RowKind::HARD, vec![label.clone()]),
        (ce(smoothed, 1.0), vec![label.clone()]),
        (ce(Target::Label { on: 1.0, off: 0.0 }, 3.0), vec![label.clone()]),
        (ce(Target::MixedLabel, 1.0), mixed.clone()),
        (ce(Target::Probabilities, 2.0), vec![probabilities(n, k)]),
        (ce(Target::Logits, 4.0), vec![t()]),
        (kl(smoothed, Temperature::Fixed(1.0)), vec![label.clone()]),
        (kl(Target::MixedLabel, FIXED), mixed),
        (kl(Target::Probabilities, FIXED), vec![probabilities(n, k)]),
        (kl(Target::Probabilities, STD), vec![probabilities(n, k)]),
        (kl(Target::Logits, FIXED), vec![t()]),
        (kl(Target::Logits, STD), vec![t()]),
        (RowKind::TargetKl { temperature: FIXED }, vec![t(), label.clone()]),
        (RowKind::TargetKl { temperature: STD }, vec![t(), label.clone()]),
        (RowKind::NonTargetKl { temperature: FIXED }, vec![t(), label.clone()]),
        (RowKind::NonTargetKl { temperature: STD }, vec![t(), label]),
        (RowKind::GeneralizedCrossEntropy { q: 0.7 }, vec![candidates]),
        (RowKind::BinaryCrossEntropy { class: k - 1 }, vec![]),
        (RowKind::Count, vec![]),
    ]
}

/// Value and gradients of one term.
fn check_term(name: &str, term: RowTerm, inputs: Vec<HostTensor>) {
    // ln(1 − p_y) of a small p_y is the CPU's sum over the other classes in f32, which cancels: on the first DKD line of `table(100)`
    // at T 4 its value is off by 2.4e-5 and the kernel's by 1e-6, against f64.
    let tolerance = if matches!(term.kind, RowKind::TargetKl { .. }) { 5e-4 } else { TOLERANCE };
    Case::new(&format!("{name} {:?} {:?}", term.kind, term.mask), Op::RowLoss(term), inputs.clone()).check(tolerance);
    let sides = [Some(Side::Student), term.kind.has_target_gradient().then_some(Side::Target)];
    for side in sides.into_iter().flatten().filter(|_| term.kind != RowKind::Count) {
        let weight = Weight { factor: 2.5, slot: Some(SlotId(3)) };
        let name = format!("{name} {:?} {:?} by {side:?}", term.kind, term.mask);
        Case::new(&name, Op::RowLossGrad { term, side, weight }, inputs.clone()).check(tolerance);
    }
}

// 2: fewest classes, most lanes idle. 100: a warp, with a tail. 128 and 129: both sides of the launch choice. 300: a tail in a block.
const CLASSES: [usize; 5] = [2, 100, 128, 129, 300];

#[test]
fn row_losses_one_by_one() {
    for k in CLASSES {
        for (kind, targets) in kinds(6, k) {
            let inputs = [vec![logits(6, k, 5)], targets].concat();
            check_term(&format!("{k} classes"), RowTerm { kind, mask: RowMask::All, divisor: UNITS }, inputs);
        }
    }
}

#[test]
fn masks_leave_rows_out() {
    let (n, k) = (9, 40);
    let masks = [
        (RowMask::Confident { threshold: 0.2 }, vec![logits(n, k, 21)]),
        (RowMask::LabelProb { rule: MaskRule::Greater }, vec![logits(n, k, 22), logits(n, k, 23), labels(n, k, 3)]),
        // Equal rows count by the second rule alone.
        (RowMask::LabelProb { rule: MaskRule::Greater }, vec![logits(n, k, 5), logits(n, k, 5), labels(n, k, 3)]),
        (
            RowMask::LabelProb { rule: MaskRule::GreaterOrEqual },
            vec![logits(n, k, 5), logits(n, k, 5), labels(n, k, 3)],
        ),
    ];
    for (mask, operands) in masks {
        for (kind, targets) in [
            (RowKind::Count, vec![]),
            (RowKind::HARD, vec![labels(n, k, 0)]),
            (RowKind::Kl { target: Target::Logits, temperature: FIXED }, vec![logits(n, k, 9)]),
        ] {
            let inputs = [vec![logits(n, k, 5)], targets, operands.clone()].concat();
            check_term("masked", RowTerm { kind, mask, divisor: UNITS }, inputs);
        }
    }
}

/// The tensor with one element replaced.
fn with(x: &HostTensor, at: usize, value: f32) -> HostTensor {
    let mut values = x.view::<f32>().expect("f32").to_vec();
    values[at] = value;
    HostTensor::new(x.shape(), &values).expect("as many values as before")
}

#[test]
fn not_a_number_stays_visible() {
    // One row of either side; an infinite logit makes its row NaN too; a mask on such a row keeps it.
    for k in [5, 200] {
        for (kind, targets) in kinds(3, k) {
            for value in [f32::NAN, f32::INFINITY] {
                let z = with(&logits(3, k, 5), k + 1, value);
                let inputs = [vec![z.clone()], targets.clone()].concat();
                let infinite = kind == RowKind::BinaryCrossEntropy { class: k - 1 } && value == f32::INFINITY;
                if !infinite {
                    let term = RowTerm { kind, mask: RowMask::All, divisor: UNITS };
                    check_term(&format!("{value} {k}"), term, inputs);
                }
                if targets.first().is_some_and(|t| t.dtype() == Dtype::F32) {
                    let bad = with(&targets[0], k + 2, value);
                    let inputs = [vec![logits(3, k, 5), bad], targets[1..].to_vec()].concat();
                    let term = RowTerm { kind, mask: RowMask::All, divisor: UNITS };
                    check_term(&format!("target {value} {k}"), term, inputs);
                }
                let mask = RowMask::Confident { threshold: 0.99 };
                let inputs = [vec![logits(3, k, 5)], targets.clone(), vec![z]].concat();
                check_term(&format!("mask {value} {k}"), RowTerm { kind, mask, divisor: UNITS }, inputs);
            }
        }
    }
    // A teacher's NaN row has no candidates.
    let kind = RowKind::GeneralizedCrossEntropy { q: 0.7 };
    let inputs = vec![logits(3, 5, 5), ints(&[3, 2], |i| if i / 2 == 1 { -1 } else { i as i32 % 5 })];
    check_term("no candidate", RowTerm { kind, mask: RowMask::All, divisor: UNITS }, inputs);
}

/// A line of a table over views (input, first row).
fn line(kind: RowKind, mask: RowMask, rows: usize, views: &[(usize, usize)]) -> RowTableTerm {
    let views = views.iter().map(|&(input, start)| RowView { input, start }).collect();
    let term = RowTerm { kind, mask, divisor: UNITS };
    RowTableTerm { term, rows, views, student_grad: None, target_grad: None }
}

fn student(line: RowTableTerm, weight: f64) -> RowTableTerm {
    RowTableTerm { student_grad: Some(weight.into()), ..line }
}

fn by_slot(line: RowTableTerm, factor: f64) -> RowTableTerm {
    RowTableTerm { student_grad: Some(Weight { factor, slot: Some(SlotId(3)) }), ..line }
}

fn both(line: RowTableTerm, weight: f64) -> RowTableTerm {
    RowTableTerm { target_grad: Some(weight.into()), ..student(line, weight) }
}

/// Two students of 9 and 6 rows, a teacher, labels; views that begin and end in the middle, and rows that no term reads.
fn table(k: usize) -> (RowTable, Vec<HostTensor>) {
    let kl = RowKind::Kl { target: Target::Logits, temperature: FIXED };
    // At the temperature of the hard labels, whose statistics they share.
    let one = Temperature::Fixed(1.0);
    let dkd = [RowKind::TargetKl { temperature: one }, RowKind::NonTargetKl { temperature: one }];
    let smoothed = RowKind::CrossEntropy { target: Target::Label { on: 0.9, off: 0.05 }, temperature: 1.0 };
    let all = RowMask::All;
    let confident = RowMask::Confident { threshold: 1.5 / k as f64 };
    let terms = vec![
        student(line(RowKind::HARD, all, 6, &[(0, 0), (3, 0)]), 1.0),
        by_slot(line(kl, all, 6, &[(0, 0), (2, 3)]), 16.0),
        student(line(dkd[0], all, 4, &[(0, 2), (2, 0), (3, 1)]), 1.0),
        student(line(dkd[1], confident, 4, &[(0, 2), (2, 0), (3, 1), (2, 2)]), 8.0),
        // Mutual: both sides take a gradient, of other rows.
        both(line(kl, all, 3, &[(1, 1), (0, 4)]), 0.5),
        // Halves of one tensor, the target's side in the same one.
        both(line(kl, all, 2, &[(0, 0), (0, 5)]), 0.25),
        student(line(smoothed, all, 2, &[(1, 4), (3, 4)]), 1.0),
        // Logged only; then a line whose input has no gradient, which asks for one in vain.
        line(RowKind::HARD, all, 6, &[(1, 0), (3, 0)]),
        student(line(RowKind::HARD, all, 6, &[(2, 0), (3, 0)]), 1.0),
        line(RowKind::Count, confident, 6, &[(0, 0), (0, 0)]),
    ];
    let inputs = vec![logits(9, k, 31), logits(6, k, 32), logits(9, k, 33), labels(6, k, 2)];
    (RowTable { terms, grads: vec![0, 1] }, inputs)
}

#[test]
fn row_losses_of_a_step() {
    for k in [7, 100, 150] {
        let (table, inputs) = table(k);
        Case::new(&format!("table of {k}"), Op::RowLosses(Box::new(table)), inputs).check(TOLERANCE);
    }
}

#[test]
fn tables_of_other_shapes() {
    // Heads of other widths, one with no term; the same tensor listed for two gradients.
    let bce = RowKind::BinaryCrossEntropy { class: 1 };
    let terms = vec![
        student(line(RowKind::HARD, RowMask::All, 4, &[(0, 0), (3, 0)]), 1.0),
        student(line(bce, RowMask::All, 5, &[(1, 1)]), 2.0),
        student(line(RowKind::HARD, RowMask::All, 4, &[(4, 0), (3, 0)]), 0.5),
    ];
    let z = logits(4, 140, 41);
    let inputs = vec![z.clone(), logits(6, 3, 42), logits(2, 5, 43), labels(4, 140, 2), z];
    Case::new("widths", Op::RowLosses(Box::new(RowTable { terms, grads: vec![1, 0, 2, 4] })), inputs).check(TOLERANCE);
    // No gradient at all: an evaluation.
    let terms = vec![line(RowKind::HARD, RowMask::All, 300, &[(0, 0), (1, 0)])];
    let inputs = vec![logits(300, 4, 44), labels(300, 4, 1)];
    Case::new("values", Op::RowLosses(Box::new(RowTable { terms, grads: vec![] })), inputs).check(TOLERANCE);
}

#[test]
fn rows_wider_than_shared_memory() {
    let kl = RowKind::Kl { target: Target::Logits, temperature: FIXED };
    // 5,000: two rows of three are staged. 22,000: none.
    for k in [5_000, 22_000] {
        let terms = vec![
            student(line(RowKind::HARD, RowMask::All, 2, &[(0, 0), (3, 0)]), 1.0),
            both(line(kl, RowMask::All, 2, &[(0, 0), (1, 0)]), 16.0),
            student(line(kl, RowMask::All, 2, &[(0, 0), (2, 0)]), 2.0),
        ];
        let inputs = vec![logits(2, k, 51), logits(2, k, 52), logits(2, k, 53), labels(2, k, 4)];
        let table = RowTable { terms, grads: vec![0, 1] };
        Case::new(&format!("{k} classes"), Op::RowLosses(Box::new(table)), inputs).check(TOLERANCE);
    }
}

#[test]
fn softmax_of_rows() {
    for k in CLASSES {
        for temperature in [1.0, 4.0] {
            let x = with(&logits(3, k, 61), k, f32::NAN);
            Case::new(&format!("softmax {k}"), Op::Softmax { temperature }, vec![x]).check(1e-6);
        }
    }
}

// 1: one element. 8: one pack. 4099: a tail. 40,000: several blocks, several packs a thread.
const SIZES: [usize; 4] = [1, 8, 4099, 40_000];

#[test]
fn squared_error_and_gradient() {
    let (divisor, weight) = (UNITS, Weight { factor: 3.0, slot: Some(SlotId(3)) });
    for n in SIZES {
        for (a, b) in FLOATS.iter().flat_map(|&a| [(a, None), (a, Some(Dtype::F32)), (a, Some(Dtype::Bf16))]) {
            let inputs: Vec<_> =
                [Some(floats(a, &[n], 2.0, 71)), b.map(|b| floats(b, &[n], 2.0, 72))].into_iter().flatten().collect();
            let name = format!("squared {a} {b:?} {n}");
            Case::new(&name, Op::SquaredError { divisor }, inputs.clone()).check(1e-6);
            Case::new(&name, Op::SquaredErrorGrad { divisor, weight }, inputs).check(tolerance(a));
        }
    }
}
