//! Identities and limits of the row losses and targets, named in the chapters of the methods: each belongs to one row or one batch.

use crate::golden::over;
use crate::interpreter::{Buffer, error, launch, noise, scalars};
use cpu::io::{Real, Scalars};
use graph::*;
use tensor::{Dtype, Shape};

fn reals(shape: &[usize], seed: u64, scale: f64) -> Buffer {
    Buffer::real::<f64>(shape, noise(seed).take(shape.iter().product()).map(|x| scale * x))
}

fn row(values: &[f64]) -> Buffer {
    Buffer::real::<f64>(&[1, values.len()], values.iter().copied())
}

fn labels(values: &[i32]) -> Buffer {
    Buffer::i32(&[values.len()], values)
}

fn one<T: Real>(op: &Op, inputs: &[&Buffer], shape: &[usize]) -> Vec<f64> {
    let dtype = if size_of::<T>() == 8 { Dtype::F64 } else { Dtype::F32 };
    launch::<T>(op, inputs, &[(Shape::new(shape), dtype)], &scalars(0.0, 1.0, 0.0))[0].f64s::<T>()
}

/// Sum over rows of the values, and the student's gradient.
fn loss_where(kind: RowKind, mask: RowMask, inputs: &[&Buffer]) -> (f64, Vec<f64>) {
    let term = RowTerm { kind, mask, divisor: over(1) };
    let grad = Op::RowLossGrad { term, side: Side::Student, weight: Weight::from(1.0) };
    (one::<f64>(&Op::RowLoss(term), inputs, &[])[0], one::<f64>(&grad, inputs, inputs[0].shape.dims()))
}

fn loss(kind: RowKind, inputs: &[&Buffer]) -> (f64, Vec<f64>) {
    loss_where(kind, RowMask::All, inputs)
}

fn kl(temperature: f64) -> RowKind {
    RowKind::Kl { target: Target::Logits, temperature: Temperature::Fixed(temperature) }
}

const NORM: RowKind = RowKind::Kl { target: Target::Logits, temperature: Temperature::Std { scale: 2.0 } };

fn changed(buffer: &Buffer, f: impl Fn(usize, f64) -> f64) -> Buffer {
    Buffer::real::<f64>(buffer.shape.dims(), buffer.f64s::<f64>().into_iter().enumerate().map(|(i, x)| f(i, x)))
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max, x| x.abs().max(max))
}

fn softmax(z: &[f64]) -> Vec<f64> {
    one::<f64>(&Op::Softmax { temperature: 1.0 }, &[&row(z)], &[1, z.len()])
}

#[test]
fn kd_is_zero_at_equality_and_tends_to_half_the_squared_distance() {
    let (n, k) = (6, 9);
    let (z, t) = (reals(&[n, k], 1, 4.0), reals(&[n, k], 2, 4.0));
    let (value, grad) = loss(kl(4.0), &[&z, &z]);
    assert_eq!((value, largest(&grad)), (0.0, 0.0));
    // Adding a constant to a row changes nothing.
    let (a, b) = (loss(kl(4.0), &[&z, &t]), loss(kl(4.0), &[&changed(&z, |i, x| x + (i / k) as f64 - 2.5), &t]));
    assert!((a.0 - b.0).abs() < 1e-13 && error(&b.1, &a.1) < 1e-13);
    // T² KL → |zc_s − zc_t|² / (2K), zc the centred rows.
    let temperature: f64 = 1e4;
    let (zs, ts) = (z.f64s::<f64>(), t.f64s::<f64>());
    let difference: Vec<f64> = zs.iter().zip(&ts).map(|(z, t)| z - t).collect();
    let centred = |row: &[f64]| row.iter().map(|d| (d - row.iter().sum::<f64>() / k as f64).powi(2)).sum::<f64>();
    let limit = difference.chunks_exact(k).map(centred).sum::<f64>() / (2.0 * k as f64);
    let value = temperature.powi(2) * loss(kl(temperature), &[&z, &t]).0;
    assert!((value / limit - 1.0).abs() < 1e-3, "{value} for {limit}");
}

#[test]
fn kl_is_tckd_plus_weighted_nckd() {
    for seed in 0..20 {
        let (z, t) = (reals(&[1, 7], seed, 6.0), reals(&[1, 7], seed + 50, 6.0));
        let label = labels(&[(seed % 7) as i32]);
        let temperature = Temperature::Fixed(4.0);
        let q = softmax(&t.f64s::<f64>().iter().map(|t| t / 4.0).collect::<Vec<_>>())[seed as usize % 7];
        let whole = loss(kl(4.0), &[&z, &t]);
        let target = loss(RowKind::TargetKl { temperature }, &[&z, &t, &label]);
        let rest = loss(RowKind::NonTargetKl { temperature }, &[&z, &t, &label]);
        assert!((whole.0 - target.0 - (1.0 - q) * rest.0).abs() < 1e-15, "row {seed}");
        let sum: Vec<f64> = target.1.iter().zip(&rest.1).map(|(a, b)| a + (1.0 - q) * b).collect();
        assert!(error(&sum, &whole.1) < 1e-14, "gradient of row {seed}");
    }
}

#[test]
fn dkd_of_two_classes_and_of_sure_networks() {
    let temperature = Temperature::Fixed(4.0);
    let two = [&row(&[1.0, -3.0]), &row(&[0.3, 2.0]), &labels(&[1])];
    assert_eq!(loss(RowKind::NonTargetKl { temperature }, &two), (0.0, vec![0.0, 0.0]));
    // 1 − p_y is e⁻⁸⁰⁰ and e⁻⁹⁰⁰: the logarithm of 1 − p would be −∞.
    let fixed = Temperature::Fixed(1.0);
    let sure = [&row(&[900.0, 0.0, 1.0]), &row(&[800.0, 0.0, 1.0]), &labels(&[0])];
    let target = loss(RowKind::TargetKl { temperature: fixed }, &sure);
    assert!(target.0 == 0.0 && target.1.iter().all(|d| *d == 0.0), "{target:?}");
    assert_eq!(loss(RowKind::NonTargetKl { temperature: fixed }, &sure), (0.0, vec![0.0; 3]));
    // (1 − q) ln((1 − q)/(1 − p)) in the region where 1 − p is below f64's resolution: e⁻⁴⁰ · 10 + (q ln(q/p) ≈ p̄ − q̄).
    let close = [&row(&[50.0, 0.0, -900.0]), &row(&[40.0, 0.0, -900.0]), &labels(&[0])];
    let target = loss(RowKind::TargetKl { temperature: fixed }, &close).0;
    let [q, p] = [-40.0f64, -50.0].map(f64::exp);
    assert!((target / (q * 10.0 + p - q) - 1.0).abs() < 1e-12, "{target}");
}

#[test]
fn norm_kd_is_invariant_to_scale_and_shift() {
    let (z, t) = (reals(&[3, 7], 1, 4.0), reals(&[3, 7], 2, 4.0));
    let a = loss(NORM, &[&z, &t]);
    for b in [changed(&z, |_, x| 8.0 * x), changed(&z, |_, x| x + 3.0), changed(&z, |_, x| 0.3 * x - 1.0)] {
        let b = loss(NORM, &[&b, &t]);
        // The guard of 1e-8 is all that a scale changes.
        assert!((a.0 / b.0 - 1.0).abs() < 3e-8, "{} and {}", a.0, b.0);
    }
    // So the gradient is orthogonal to the logits and to ones.
    let along = a.1.iter().zip(z.f64s::<f64>()).map(|(d, z)| d * z).sum::<f64>();
    assert!(along.abs() < 1e-7 && a.1.chunks_exact(7).all(|d| d.iter().sum::<f64>().abs() < 1e-13), "{along}");
    // Equal logits divide by the guard.
    let flat = row(&[2.0; 7]);
    let (value, grad) = loss(NORM, &[&flat, &row(&t.f64s::<f64>()[..7])]);
    assert!(value.is_finite() && grad.iter().all(|d| d.is_finite()), "{value} {grad:?}");
}

fn correlation(z: &Buffer, t: &Buffer, over_axis: Axis) -> (f64, Vec<f64>) {
    let divisor = over(z.shape[0]);
    let grad = Op::CorrelationGrad { over: over_axis, divisor, weight: Weight::from(1.0) };
    let value = one::<f64>(&Op::Correlation { over: over_axis, divisor }, &[z, t], &[])[0];
    (value, one::<f64>(&grad, &[z, t], z.shape.dims()))
}

#[test]
fn dist_of_equal_inputs_two_classes_and_one_row() {
    let z = reals(&[5, 7], 1, 4.0);
    let t = reals(&[5, 7], 2, 4.0);
    for axis in [Axis::Batch, Axis::Channel] {
        let (value, grad) = correlation(&z, &z, axis);
        assert!((0.0..1e-5).contains(&value) && largest(&grad) < 1e-5, "{axis:?}: {value}");
        let shifted = correlation(&changed(&z, |i, x| x - (i / 7) as f64), &t, axis);
        assert!((shifted.0 - correlation(&z, &t, axis).0).abs() < 1e-13);
    }
    // Two classes: a row is rising or falling, ρ = ±1; here two of four rows agree.
    let two = Buffer::real::<f64>(&[4, 2], [2.0, 1.0, 0.5, 3.0, 1.0, -1.0, 0.0, 2.0]);
    let other = Buffer::real::<f64>(&[4, 2], [5.0, 1.0, 1.5, 0.0, 1.0, 0.0, 3.0, 2.0]);
    let (value, grad) = correlation(&two, &other, Axis::Batch);
    assert!((value - 1.0).abs() < 1e-6 && largest(&grad) < 1e-6, "{value} {grad:?}");
    // One row: a column has no spread, its term is 1.
    assert_eq!(correlation(&row(&[1.0, 2.0, 0.0]), &row(&[3.0, 2.0, 0.0]), Axis::Channel), (1.0, vec![0.0; 3]));
}

#[test]
fn label_smoothing_without_epsilon_is_ce_and_has_its_entropy_as_minimum() {
    let k = 100;
    let (z, label) = (reals(&[4, k], 1, 4.0), labels(&[3, 99, -1, 0]));
    let smoothed = |eps: f64| RowKind::CrossEntropy {
        target: Target::Label { on: 1.0 - eps, off: eps / (k as f64 - 1.0) },
        temperature: 1.0,
    };
    assert_eq!(loss(smoothed(0.0), &[&z, &label]), loss(RowKind::HARD, &[&z, &label]));
    let best = row(&(0..k).map(|j| if j == 3 { 0.9f64 } else { 0.1 / 99.0 }.ln()).collect::<Vec<_>>());
    let (value, grad) = loss(smoothed(0.1), &[&best, &labels(&[3])]);
    assert!((value - 0.7846).abs() < 5e-5 && largest(&grad) < 1e-14, "{value}");
}

#[test]
fn a_second_softmax_over_a_smoothed_label_is_nearly_uniform() {
    let (k, temperature) = (100, 20.0);
    let u: Vec<f64> = (0..k).map(|j| if j == 7 { 0.99 } else { 0.01 / 99.0 } / temperature).collect();
    let target = softmax(&u);
    assert_eq!([target[7], target[8]].map(|q| (1e6 * q).round()), [10_502.0, 9_995.0]);
    let z = reals(&[1, k], 3, 4.0);
    let kind =
        RowKind::Kl { target: Target::Label { on: target[7], off: target[8] }, temperature: Temperature::Fixed(1.0) };
    let (value, grad) = loss(kind, &[&z, &labels(&[7])]);
    let p = softmax(&z.f64s::<f64>());
    let wanted: Vec<f64> = p.iter().zip(&target).map(|(p, q)| p - q).collect();
    assert!(error(&grad, &wanted) < 1e-13);
    let given = RowKind::Kl { target: Target::Probabilities, temperature: Temperature::Fixed(1.0) };
    assert!((value / loss(given, &[&z, &row(&target)]).0 - 1.0).abs() < 1e-13);
}

#[test]
fn mixed_labels_are_two_cross_entropies() {
    let z = reals(&[4, 5], 1, 4.0);
    let (a, b, lambda) = (labels(&[0, 3, -1, 2]), labels(&[4, 3, 1, -1]), Buffer::real::<f64>(&[], [0.3]));
    let kind = RowKind::CrossEntropy { target: Target::MixedLabel, temperature: 1.0 };
    let (value, grad) = loss(kind, &[&z, &a, &b, &lambda]);
    let (first, second) = (loss(RowKind::HARD, &[&z, &a]), loss(RowKind::HARD, &[&z, &b]));
    assert!((value - 0.3 * first.0 - 0.7 * second.0).abs() < 1e-14);
    let wanted: Vec<f64> = first.1.iter().zip(&second.1).map(|(a, b)| 0.3 * a + 0.7 * b).collect();
    assert!(error(&grad, &wanted) < 1e-14);
    // λ = 1 is plain cross-entropy, bit for bit.
    let whole = loss(kind, &[&z, &a, &b, &Buffer::real::<f64>(&[], [1.0])]);
    let all = labels(&[0, 3, 4, 2]);
    assert_eq!(loss(kind, &[&z, &all, &b, &Buffer::real::<f64>(&[], [1.0])]), loss(RowKind::HARD, &[&z, &all]));
    assert_eq!(whole.0, first.0);
}

#[test]
fn neighbour_targets_are_a_fixed_point() {
    let (n, d, k, temperature) = (24, 6, 10, 4.0);
    let (f, z) = (reals(&[n, d], 1, 2.0), reals(&[n, k], 2, 5.0));
    let solve = |omega| one::<f64>(&Op::NeighbourTargets { omega, temperature }, &[&f, &z], &[n, k]);
    let p = one::<f64>(&Op::Softmax { temperature }, &[&z], &[n, k]);
    assert_eq!(solve(0.0), p);
    // W anew.
    let f = f.f64s::<f64>();
    let dot = |i: usize, j: usize| (0..d).map(|c| f[i * d + c] * f[j * d + c]).sum::<f64>();
    let e = |i: usize, j: usize| if i == j { 0.0 } else { (dot(i, j) / (dot(i, i) * dot(j, j)).sqrt()).exp() };
    for omega in [0.5, 0.9] {
        let q = solve(omega);
        for (i, row) in q.chunks_exact(k).enumerate() {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-14, "row {i} sums to 1");
            let sum = (0..n).map(|j| e(i, j)).sum::<f64>();
            for (c, &q_ic) in row.iter().enumerate() {
                let neighbours = (0..n).map(|j| e(i, j) / sum * q[j * k + c]).sum::<f64>();
                let residual = q_ic - omega * neighbours - (1.0 - omega) * p[i * k + c];
                assert!(residual.abs() < 1e-15, "ω {omega}, row {i}, class {c}: {residual:.1e}");
            }
        }
    }
    // One row alone keeps its softmax; a NaN feature reaches all rows.
    let (f, z) = (reals(&[1, d], 1, 2.0), reals(&[1, k], 2, 5.0));
    let alone = one::<f64>(&Op::NeighbourTargets { omega: 0.5, temperature }, &[&f, &z], &[1, k]);
    assert_eq!(alone, one::<f64>(&Op::Softmax { temperature }, &[&z], &[1, k]));
    let (f, z) = (changed(&reals(&[3, d], 1, 2.0), |i, x| if i == 4 { f64::NAN } else { x }), reals(&[3, k], 2, 5.0));
    let bad = one::<f64>(&Op::NeighbourTargets { omega: 0.5, temperature }, &[&f, &z], &[3, k]);
    assert!(bad.iter().all(|q| q.is_nan()));
}

fn gce(q: f64, z: &Buffer, candidates: &[i32]) -> (f64, Vec<f64>) {
    let candidates = Buffer::i32(&[z.shape[0], candidates.len() / z.shape[0]], candidates);
    loss(RowKind::GeneralizedCrossEntropy { q }, &[z, &candidates])
}

#[test]
fn gce_limits_minimum_and_order_of_candidates() {
    let z = reals(&[3, 6], 4, 4.0);
    let pairs = [0, 5, 3, 1, 2, 4];
    // q → 0 is cross-entropy against (1/2, 1/2).
    let halves: Vec<f64> =
        (0..18).map(|i| if pairs[i / 6 * 2..][..2].contains(&((i % 6) as i32)) { 0.5 } else { 0.0 }).collect();
    let soft = RowKind::CrossEntropy { target: Target::Probabilities, temperature: 1.0 };
    let limit = loss(soft, &[&z, &Buffer::real::<f64>(&[3, 6], halves)]);
    let near = gce(1e-7, &z, &pairs);
    assert!((near.0 / limit.0 - 1.0).abs() < 1e-6 && error(&near.1, &limit.1) < 1e-6, "{} for {}", near.0, limit.0);
    // q = 1: only the candidates' total counts.
    let p: Vec<f64> = z.f64s::<f64>().chunks_exact(6).flat_map(softmax).collect();
    let mass: f64 = (0..3).map(|r| p[6 * r + pairs[2 * r] as usize] + p[6 * r + pairs[2 * r + 1] as usize]).sum();
    assert!((gce(1.0, &z, &pairs).0 - (3.0 - mass / 2.0)).abs() < 1e-14);
    // Minimum at (1/2, 1/2); uniform over 100 classes.
    let minimum = row(&[0.0, -800.0, 0.0, -800.0]);
    let (value, grad) = gce(0.7, &minimum, &[0, 2]);
    assert!((value - 0.549183).abs() < 5e-7 && largest(&grad) < 1e-16, "{value}");
    assert!(gce(0.7, &row(&[0.01, -800.0, 0.0, -800.0]), &[0, 2]).0 > value);
    assert!((gce(0.7, &row(&[0.0; 100]), &[17, 3]).0 - 1.371699).abs() < 5e-7);
    // The order of candidates changes no bit.
    assert_eq!(gce(0.7, &z, &pairs), gce(0.7, &z, &[5, 0, 1, 3, 4, 2]));
}

#[test]
fn a_missing_candidate_makes_its_row_nan() {
    let logits = Buffer::real::<f64>(&[3, 3], [1.0, 3.0, 3.0, f64::NAN, 1.0, 0.0, 2.0, 0.0, 2.0]);
    let op = Op::TopK { k: 2 };
    let top = launch::<f64>(&op, &[&logits], &[(Shape::new(&[3, 2]), Dtype::I32)], &Scalars::default());
    assert_eq!(top[0].f64s::<f64>(), [1.0, 2.0, -1.0, -1.0, 0.0, 2.0]);
    let z = reals(&[3, 3], 1, 2.0);
    let (value, grad) = loss(RowKind::GeneralizedCrossEntropy { q: 0.7 }, &[&z, &top[0]]);
    assert!(value.is_nan());
    assert_eq!(grad.iter().map(|d| d.is_nan()).collect::<Vec<_>>(), (0..9).map(|i| i / 3 == 1).collect::<Vec<_>>());
}

#[test]
fn confidence_exactly_at_the_threshold_is_kept() {
    let (z, t) = (reals(&[2, 4], 1, 4.0), reals(&[2, 4], 2, 4.0));
    // Uniform over four classes, and sure: 1/4 and 1.
    let of = Buffer::real::<f64>(&[2, 4], [3.0, 3.0, 3.0, 3.0, 900.0, 0.0, 0.0, 0.0]);
    let masked = |threshold| loss_where(kl(4.0), RowMask::Confident { threshold }, &[&z, &t, &of]);
    let all = loss(kl(4.0), &[&z, &t]);
    assert_eq!(masked(0.25), all);
    assert_eq!(masked(1.0).1, [&[0.0; 4], &all.1[4..]].concat());
    assert_eq!(masked(0.25f64.next_up()), masked(1.0));
    let count = |of: &Buffer, threshold| {
        let term = RowTerm { kind: RowKind::Count, mask: RowMask::Confident { threshold }, divisor: over(2) };
        one::<f64>(&Op::RowLoss(term), &[&z, of], &[])[0]
    };
    assert_eq!([count(&of, 0.25), count(&of, 0.3)], [1.0, 0.5]);
    // No row over the threshold: zero, not NaN.
    let uniform = Buffer::real::<f64>(&[2, 4], [3.0; 8]);
    assert_eq!(loss_where(kl(4.0), RowMask::Confident { threshold: 0.9 }, &[&z, &t, &uniform]), (0.0, vec![0.0; 8]));
}

#[test]
fn binary_cross_entropy_of_large_logits() {
    let (value, grad) = loss(RowKind::BinaryCrossEntropy { class: 0 }, &[&row(&[-1000.0, 1000.0])]);
    assert_eq!((value, grad), (2000.0, vec![-1.0, 1.0]));
    let (value, grad) = loss(RowKind::BinaryCrossEntropy { class: 0 }, &[&row(&[60.0, -60.0])]);
    let small = (-60.0f64).exp();
    assert!((value / (2.0 * small) - 1.0).abs() < 1e-14 && error(&grad, &[-small, small]) < 1e-14, "{value}");
}
