//! Losses over logits against tests/goldens (PyTorch, f64), value and gradients.

use crate::golden::{Built, Golden, over};
use crate::interpreter::error;
use cpu::io::Real;
use graph::*;

/// A term of a golden's loss: the op, its operands, its weight and the value that the file has of it.
type Part<'a> = (Op, Vec<&'a str>, f64, &'a str);

/// The terms whose weighted sum is `out.loss`.
fn parts<T: Real>(b: &Built<'_, T>) -> Vec<Part<'static>> {
    let golden = b.golden;
    let student = if b.names.contains_key("student") { "student" } else { "logits" };
    let rows = b.names.get(student).map_or(0, |&z| b.case.graph.shape(z)[0]);
    let number = |key: &str| golden.attr[key].as_f64();
    let (temperature, fixed) = (number("temperature").unwrap_or(1.0), number("temperature").map(Temperature::Fixed));
    let scaled = number("c").map(|scale| Temperature::Std { scale });
    let any = fixed.or(scaled).unwrap_or(Temperature::Fixed(1.0));
    let label = Target::Label { on: number("on").unwrap_or(1.0), off: number("off").unwrap_or(0.0) };
    let mask = number("threshold").map_or(RowMask::All, |threshold| RowMask::Confident { threshold });
    let row = |kind: RowKind| Op::RowLoss(RowTerm { kind, mask, divisor: over(rows) });
    let ce = |target: Target| row(RowKind::CrossEntropy { target, temperature });
    let kl = |target: Target| row(RowKind::Kl { target, temperature: any });
    let elements = || over(b.case.graph.shape(b.names["a"]).elements());
    let one = |op: Op, inputs: &[&'static str]| vec![(op, inputs.to_vec(), 1.0, "out.loss")];
    match golden.text("loss") {
        "ce" | "ce_smoothed" => one(ce(label), &["logits", "label"]),
        "ce_mixed" => one(ce(Target::MixedLabel), &["logits", "label", "other", "lambda"]),
        "ce_soft" => one(ce(Target::Probabilities), &["logits", "target"]),
        "ce_logits" => one(ce(Target::Logits), &["logits", "target"]),
        "kl_probabilities" => one(kl(Target::Probabilities), &["logits", "target"]),
        "kl_label" => one(kl(label), &["logits", "label"]),
        "norm_kd" => one(kl(Target::Logits), &["student", "teacher"]),
        "kl" => vec![(kl(Target::Logits), vec!["student", "teacher"], temperature * temperature, "out.loss")],
        "dkd" | "norm_dkd" => {
            let mut operands = vec!["student", "teacher", "label"];
            operands.extend(number("threshold").map(|_| "teacher"));
            let square = fixed.map_or(1.0, |_| temperature * temperature);
            let target = row(RowKind::TargetKl { temperature: any });
            let rest = row(RowKind::NonTargetKl { temperature: any });
            vec![
                (target, operands.clone(), square * golden.number("alpha"), "out.tckd"),
                (rest, operands, square * golden.number("beta"), "out.nckd"),
            ]
        }
        "gce" => one(row(RowKind::GeneralizedCrossEntropy { q: golden.number("q") }), &["logits", "candidates"]),
        "bce" => one(row(RowKind::BinaryCrossEntropy { class: golden.size("class") }), &["logits"]),
        "mse" => one(Op::SquaredError { divisor: elements() }, &["a", "b"]),
        "mean_square" => one(Op::SquaredError { divisor: elements() }, &["a"]),
        "correlation" => {
            let over_axis = if golden.text("over") == "batch" { Axis::Batch } else { Axis::Channel };
            one(Op::Correlation { over: over_axis, divisor: over(rows) }, &["student", "teacher"])
        }
        loss => panic!("{}: unknown loss {loss}", golden.name),
    }
}

fn loss_golden<T: Real>(golden: &Golden) {
    let mut b = Built::<T>::new(golden);
    if golden.text("loss") == "ips" {
        return ips_golden(b);
    }
    let parts = parts(&b);
    // The file's value of a part has no alpha and beta.
    let own = |key: &str| if key == "out.tckd" { "alpha" } else { "beta" };
    let mut losses = vec![];
    let mut sum = 0.0;
    for (op, inputs, weight, key) in parts {
        let value = b.push(op, &inputs)[0];
        let got = weight * b.case.evaluate()[&value].f64s::<T>()[0];
        let unweighted = if key == "out.loss" { got } else { got / golden.number(own(key)) };
        let want = golden.values(key)[0];
        // NCKD of two classes is zero.
        let bound = golden.limit::<T>() * want.abs().max(1e-3);
        assert!((unweighted - want).abs() <= bound, "{} {key}: {unweighted} for {want}", golden.name);
        losses.push((value, Weight::from(weight)));
        sum += got;
    }
    let want = golden.values("out.loss")[0];
    assert!((sum - want).abs() <= golden.limit::<T>() * want.abs(), "{}: {sum} for {want}", golden.name);
    b.compare(&losses);
}

/// Intra-class patch swap: cross-entropy of both images, KL between them in the file's mode.
fn ips_golden<T: Real>(mut b: Built<'_, T>) {
    let (temperature, alpha) = (b.golden.number("temperature"), b.golden.number("alpha"));
    let rows = b.case.graph.shape(b.names["a"])[0];
    for name in ["a", "b"] {
        let detached = b.push(Op::Detach, &[name])[0];
        b.names.insert(format!("{name}.detached"), detached);
    }
    let ce = RowTerm { kind: RowKind::HARD, mask: RowMask::All, divisor: over(rows) };
    let kl = |mask| {
        Op::RowLoss(RowTerm {
            kind: RowKind::Kl { target: Target::Logits, temperature: Temperature::Fixed(temperature) },
            mask,
            divisor: over(rows),
        })
    };
    let full = alpha * temperature * temperature;
    let mut terms =
        vec![(b.push(Op::RowLoss(ce), &["a", "label"])[0], 0.5), (b.push(Op::RowLoss(ce), &["b", "label"])[0], 0.5)];
    match b.golden.text("kl") {
        "two_way_sg" => {
            terms.push((b.push(kl(RowMask::All), &["a", "b.detached"])[0], full / 2.0));
            terms.push((b.push(kl(RowMask::All), &["b", "a.detached"])[0], full / 2.0));
        }
        "two_way_full" => {
            terms.push((b.push(kl(RowMask::All), &["a", "b"])[0], full / 2.0));
            terms.push((b.push(kl(RowMask::All), &["b", "a"])[0], full / 2.0));
        }
        "one_way_b_to_a" => terms.push((b.push(kl(RowMask::All), &["a", "b.detached"])[0], full)),
        "by_confidence" => {
            let (at_least, greater) = (MaskRule::GreaterOrEqual, MaskRule::Greater);
            let (a_teaches, b_teaches) = (RowMask::LabelProb { rule: at_least }, RowMask::LabelProb { rule: greater });
            terms.push((b.push(kl(a_teaches), &["b", "a.detached", "a.detached", "b.detached", "label"])[0], full));
            terms.push((b.push(kl(b_teaches), &["a", "b.detached", "b.detached", "a.detached", "label"])[0], full));
        }
        mode => panic!("{}: unknown mode {mode}", b.golden.name),
    }
    let values = b.case.evaluate();
    let part = |terms: &[(ValueId, f64)]| terms.iter().map(|(id, w)| w * values[id].f64s::<T>()[0]).sum::<f64>();
    let limit = b.golden.limit::<T>();
    for (key, got) in [("out.ce", part(&terms[..2])), ("out.kd", part(&terms[2..])), ("out.loss", part(&terms))] {
        assert!(error(&[got], &b.golden.values(key)) <= limit, "{} {key}: {got}", b.golden.name);
    }
    let losses: Vec<_> = terms.iter().map(|&(id, w)| (id, Weight::from(w))).collect();
    b.compare(&losses);
}

#[test]
fn losses_match_goldens() {
    for golden in Golden::all("losses") {
        loss_golden::<f64>(&golden);
        loss_golden::<f32>(&golden);
    }
}
