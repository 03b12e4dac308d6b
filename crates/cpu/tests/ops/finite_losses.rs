//! Gradients of losses against central differences in f64, through the rules of the graph.

use crate::finite::{Make, Of, Row, check};
use crate::golden::over;
use crate::interpreter::{Buffer, LR, noise};
use graph::*;

fn loss(m: &mut Make, kind: RowKind, mask: RowMask, inputs: &[ValueId]) -> Of {
    let divisor = over(m.case.graph.shape(inputs[0])[0]);
    let term = RowTerm { kind, mask, divisor };
    Of::Losses(vec![(m.case.one(Op::RowLoss(term), inputs), Weight::from(0.7))])
}

const KL: RowKind = RowKind::Kl { target: Target::Logits, temperature: Temperature::Fixed(4.0) };
const SCALED: Temperature = Temperature::Std { scale: 2.0 };

/// Logits times three, differentiated; noise alone is nearly uniform.
fn logits(m: &mut Make, shape: [usize; 2]) -> ValueId {
    let z = m.real(&shape);
    m.case.one(Op::Scale(Weight::from(3.0)), &[z])
}

fn teacher(m: &mut Make, shape: [usize; 2]) -> ValueId {
    m.constant(&shape, noise(8).take(shape[0] * shape[1]).map(|x| 2.0 * x))
}

fn label_loss(m: &mut Make, kind: RowKind) -> Of {
    let (z, label) = (logits(m, [4, 5]), m.i32(&[3, -1, 0, 4]));
    loss(m, kind, RowMask::All, &[z, label])
}

fn decoupled(m: &mut Make, kind: RowKind) -> Of {
    let (z, t, label) = (logits(m, [5, 4]), teacher(m, [5, 4]), m.i32(&[3, 2, -1, 1, 0]));
    loss(m, kind, RowMask::All, &[z, t, label])
}

fn correlation(m: &mut Make, over_axis: Axis, shape: [usize; 2]) -> Of {
    let (z, t) = (logits(m, shape), teacher(m, shape));
    let op = Op::Correlation { over: over_axis, divisor: over(shape[0] + 1) };
    Of::Losses(vec![(m.case.one(op, &[z, t]), Weight { factor: 7.0, slot: Some(LR) })])
}

const TABLE: &[Row] = &[
    ("cross-entropy", "a padded row", |m| label_loss(m, RowKind::HARD)),
    ("smoothed cross-entropy, T 4", "on + (k − 1) off is not 1", |m| {
        label_loss(m, RowKind::CrossEntropy { target: Target::Label { on: 0.8, off: 0.1 }, temperature: 4.0 })
    }),
    ("mixed labels", "one label twice, one part or both missing", |m| {
        let (z, lambda) = (logits(m, [5, 4]), m.constant(&[], [0.3]));
        let (a, b) = (m.i32(&[1, 2, -1, 3, -1]), m.i32(&[1, 0, 2, -1, -1]));
        let kind = RowKind::CrossEntropy { target: Target::MixedLabel, temperature: 2.0 };
        loss(m, kind, RowMask::All, &[z, a, b, lambda])
    }),
    ("soft cross-entropy", "probabilities from a softmax", |m| {
        let (z, t) = (logits(m, [3, 5]), teacher(m, [3, 5]));
        let q = m.case.one(Op::Softmax { temperature: 2.0 }, &[t]);
        loss(m, RowKind::CrossEntropy { target: Target::Probabilities, temperature: 1.0 }, RowMask::All, &[z, q])
    }),
    ("cross-entropy with logits", "both over the temperature", |m| {
        let (z, t) = (logits(m, [3, 5]), teacher(m, [3, 5]));
        loss(m, RowKind::CrossEntropy { target: Target::Logits, temperature: 3.0 }, RowMask::All, &[z, t])
    }),
    ("KL, both sides", "a target that is not detached", |m| {
        let (z, t) = (m.real(&[3, 5]), m.real(&[3, 5]));
        loss(m, KL, RowMask::All, &[z, t])
    }),
    ("KL where confident", "some rows count", |m| {
        let (z, t) = (m.real(&[6, 3]), m.real(&[6, 3]));
        let of = m.constant(&[6, 3], noise(3).take(18).map(|x| 3.0 * x));
        loss(m, KL, RowMask::Confident { threshold: 0.7 }, &[z, t, of])
    }),
    ("KL where the label is likelier", "a padded row", |m| {
        let (z, t) = (m.real(&[6, 3]), m.real(&[6, 3]));
        let (a, b) = (m.constant(&[6, 3], noise(3).take(18)), m.constant(&[6, 3], noise(4).take(18)));
        let label = m.i32(&[0, 2, 1, -1, 0, 1]);
        loss(m, KL, RowMask::LabelProb { rule: MaskRule::Greater }, &[z, t, a, b, label])
    }),
    ("KL with a label", "no class, a hard one, a smoothed one", |m| {
        let target = Target::Label { on: 1.0, off: 0.0 };
        label_loss(m, RowKind::Kl { target, temperature: Temperature::Fixed(1.0) })
    }),
    ("KL with a smoothed label", "", |m| {
        let target = Target::Label { on: 0.9, off: 0.025 };
        label_loss(m, RowKind::Kl { target, temperature: Temperature::Fixed(2.0) })
    }),
    ("KL with probabilities", "one row without a total of 1", |m| {
        let (z, q) = (logits(m, [2, 3]), m.constant(&[2, 3], [0.2, 0.0, 0.8, 0.5, 0.3, 0.1]));
        let kind = RowKind::Kl { target: Target::Probabilities, temperature: Temperature::Fixed(4.0) };
        loss(m, kind, RowMask::All, &[z, q])
    }),
    ("KL by deviation", "through the student's deviation", |m| {
        let (z, t) = (logits(m, [4, 5]), teacher(m, [4, 5]));
        loss(m, RowKind::Kl { target: Target::Logits, temperature: SCALED }, RowMask::All, &[z, t])
    }),
    ("TCKD", "a padded row", |m| decoupled(m, RowKind::TargetKl { temperature: Temperature::Fixed(4.0) })),
    ("NCKD", "a padded row", |m| decoupled(m, RowKind::NonTargetKl { temperature: Temperature::Fixed(4.0) })),
    ("TCKD by deviation", "", |m| decoupled(m, RowKind::TargetKl { temperature: SCALED })),
    ("NCKD by deviation", "", |m| decoupled(m, RowKind::NonTargetKl { temperature: SCALED })),
    ("NCKD where confident", "label before the mask's logits", |m| {
        let (z, t, label) = (logits(m, [5, 4]), teacher(m, [5, 4]), m.i32(&[3, 2, -1, 1, 0]));
        let kind = RowKind::NonTargetKl { temperature: Temperature::Fixed(2.0) };
        loss(m, kind, RowMask::Confident { threshold: 0.6 }, &[z, t, label, t])
    }),
    ("GCE, three candidates", "one class twice", |m| {
        let z = logits(m, [3, 5]);
        let candidates = m.case.leaf(Buffer::i32(&[3, 3], &[0, 4, 2, 1, 1, 3, 2, 0, 1]));
        loss(m, RowKind::GeneralizedCrossEntropy { q: 0.7 }, RowMask::All, &[z, candidates])
    }),
    ("BCE", "", |m| {
        let z = logits(m, [4, 3]);
        loss(m, RowKind::BinaryCrossEntropy { class: 1 }, RowMask::All, &[z])
    }),
    ("correlation of rows", "", |m| correlation(m, Axis::Batch, [4, 5])),
    ("correlation of columns", "more rows than columns", |m| correlation(m, Axis::Channel, [6, 3])),
    ("correlation of columns", "fewer rows than columns", |m| correlation(m, Axis::Channel, [3, 7])),
    ("squared error", "both sides", |m| {
        let (a, b) = (m.real(&[3, 5]), m.real(&[3, 5]));
        let loss = m.case.one(Op::SquaredError { divisor: over(15) }, &[a, b]);
        Of::Losses(vec![(loss, Weight::from(0.5))])
    }),
    ("square", "against zero", |m| {
        let a = m.real(&[3, 5]);
        let loss = m.case.one(Op::SquaredError { divisor: over(15) }, &[a]);
        Of::Losses(vec![(loss, Weight::from(0.5))])
    }),
];

#[test]
fn gradients_of_losses_match_finite_differences() {
    for (name, why, build) in TABLE {
        eprintln!("{name}: {why}");
        check(name, *build);
    }
}
