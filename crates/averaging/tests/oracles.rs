//! The numbers of chapter 6.8, by their number there.

use averaging::{
    Block, ClassMap, Labels, Limits, LinearModel, Matrix, Objective, Superclasses, fit, label_shares, one_hot,
    residual, ridge, softmax_rows, solve, spectrum, teaching, top_two, two_hot,
};
use data::{EpochKey, Noise, NoiseKind, Purpose, Stream, draw_labels, transition};

fn stream(name: &str) -> Stream {
    EpochKey { seed: 1, stage: 0, epoch: 0 }.stream(Purpose::named(name), 0, 0)
}

fn normal(name: &str, rows: usize, columns: usize) -> Matrix {
    let mut stream = stream(name);
    Matrix::from_fn(rows, columns, |_, _| stream.normal())
}

fn unit_rows(mut m: Matrix) -> Matrix {
    m.row_iter_mut().for_each(|mut row| row /= row.norm());
    m
}

/// Features whose products are the Gram matrix.
fn realise(gram: Matrix) -> Matrix {
    gram.cholesky().expect("a Gram matrix of this form is positive definite").l()
}

fn sorted_labels(classes: usize, per_class: usize) -> Vec<u32> {
    (0..classes * per_class).map(|i| (i / per_class) as u32).collect()
}

fn noisy(truth: &[u32], classes: usize, rate: f64, seed: u32) -> Vec<u32> {
    draw_labels(truth, &transition(Noise { kind: NoiseKind::Sym, rate, seed }, classes, &[]), seed)
}

/// The chapter's reference run, with labels of our own draw.
struct Reference {
    block: Block,
    features: Matrix,
    given: Vec<u32>,
    truth: Vec<u32>,
}

const REFERENCE: Block = Block { classes: 4, per_class: 100, within: 0.4, across: 0.1 };
const DECAY: f64 = 5e-5;

impl Reference {
    fn new(rate: f64) -> Reference {
        let truth = sorted_labels(4, 100);
        Reference { block: REFERENCE, features: realise(REFERENCE.gram()), given: noisy(&truth, 4, rate, 0), truth }
    }

    fn labels(&self) -> Labels<'_> {
        Labels { given: &self.given, truth: &self.truth }
    }

    /// Logits of the exact solution of a round.
    fn round(&self, objective: Objective<'_>, decay: f64, start: &Matrix) -> (Matrix, Matrix) {
        let limits = Limits { residual: 1e-4, ..Limits::default() };
        let solved = solve(&self.features, objective, decay, start, limits).unwrap();
        (&self.features * solved.weights.transpose(), solved.weights)
    }

    fn teacher(&self, decay: f64) -> (Matrix, Matrix) {
        let targets = one_hot(&self.given, 4).unwrap();
        self.round(Objective::CrossEntropy { targets: &targets }, decay, &Matrix::zeros(4, 400))
    }
}

#[track_caller]
fn near(got: f64, expected: f64, within: f64) {
    assert!((got - expected).abs() <= within, "got {got}, expected {expected} ± {within}");
}

#[test]
fn oracle_3_noise_has_its_rate_and_its_law() {
    let truth: Vec<u32> = (0..20_000).map(|i| i % 100).collect();
    for kind in [NoiseKind::Sym, NoiseKind::Asym, NoiseKind::Cc] {
        // Clusters of five classes.
        let clusters: Vec<usize> = (0..100).map(|k| k / 5).collect();
        for rate in [0.0, 0.3, 0.5, 0.9] {
            let law = transition(Noise { kind, rate, seed: 0 }, 100, &clusters);
            law.iter().for_each(|row| near(row.iter().sum(), 1.0, 1e-12));
            let given = draw_labels(&truth, &law, 3);
            assert_eq!(given, draw_labels(&truth, &law, 3));
            let wrong = given.iter().zip(&truth).filter(|(g, t)| g != t).count() as f64 / truth.len() as f64;
            near(wrong, rate, 4.0 * (rate * (1.0 - rate) / truth.len() as f64).sqrt());
        }
    }
    let law = transition(Noise { kind: NoiseKind::Asym, rate: 0.5, seed: 0 }, 100, &[]);
    near(law[99][0], 0.01, 1e-12);
    near(law[99][50], 0.005, 1e-12);
    let alone = transition(Noise { kind: NoiseKind::Cc, rate: 0.5, seed: 0 }, 3, &[0, 0, 1]);
    assert_eq!(alone[2], [0.0, 0.0, 1.0]);
    assert_eq!(alone[0], [0.5, 0.5, 0.0]);
}

#[test]
fn oracle_4_class_map_by_sums_is_the_mean_cosine() {
    let mut stream = stream("class map");
    let labels: Vec<u32> = (0..90).map(|_| stream.below(4)).collect();
    let rows: Vec<Vec<f32>> =
        labels.iter().map(|&l| (0..7).map(|k| (stream.normal() + f64::from(l * k)) as f32).collect()).collect();
    let map = ClassMap::new(|i| &rows[i], &labels, 4);
    let mean: Vec<f64> = (0..7).map(|k| rows.iter().map(|r| f64::from(r[k])).sum::<f64>() / 90.0).collect();
    let cosine = |i: usize, j: usize| {
        let centred = |i: usize| rows[i].iter().zip(&mean).map(|(&x, m)| f64::from(x) - m).collect::<Vec<_>>();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (a, b) = (centred(i), centred(j));
        dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
    };
    for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
        let pairs = (0..90).flat_map(|i| (0..90).map(move |j| (i, j)));
        let of = |i: usize, class: usize| labels[i] as usize == class;
        let cosines: Vec<f64> =
            pairs.filter(|&(i, j)| i != j && of(i, a) && of(j, b)).map(|(i, j)| cosine(i, j)).collect();
        near(map.get(a, b), cosines.iter().sum::<f64>() / cosines.len() as f64, 1e-5);
        near(map.get(a, b), map.get(b, a), 1e-12);
    }
}

#[test]
fn oracle_5_block_model_is_exact() {
    let eigenvalues = REFERENCE.eigenvalues();
    for ((got, count), (expected, times)) in eigenvalues.into_iter().zip([(0.6, 396), (30.6, 3), (70.6, 1)]) {
        near(got, expected, 1e-12);
        assert_eq!(count, times);
    }
    let run = Reference::new(0.5);
    let found = spectrum(&run.features);
    near(found[0], 70.6, 1e-9);
    found[1..4].iter().for_each(|&g| near(g, 30.6, 1e-9));
    found[4..].iter().for_each(|&g| near(g, 0.6, 1e-9));
    for (got, expected) in REFERENCE.damping(DECAY).into_iter().zip([0.88235, 0.99739, 0.99887]) {
        near(got, expected, 5e-6);
    }
    let mut model = LinearModel::new(&run.features, &one_hot(&run.given, 4).unwrap(), DECAY).unwrap();
    for t in 1..=20 {
        let (closed, solved) =
            (run.block.closed_form(&run.given, &run.truth, DECAY, t).unwrap(), model.outputs(&run.features));
        near((closed - &solved).amax(), 0.0, 1e-10);
        solved.row_iter().for_each(|row| near(row.sum(), 1.0, 1e-10));
        model.advance();
    }
}

#[test]
fn oracle_6_wrong_labels_are_repaired_when_predicted() {
    let run = Reference::new(0.5);
    let shares = label_shares(&run.given, &run.truth, 4).unwrap();
    let expected = Matrix::from_fn(4, 4, |k, j| if k == j { 0.5 } else { 0.5 / 3.0 });
    near(REFERENCE.rounds_to_repair(&expected, DECAY)[(0, 1)], 11.31, 0.01);
    let rounds = REFERENCE.rounds_to_repair(&shares, DECAY);
    let (first, last) = (0..4)
        .flat_map(|k| (0..4).filter(move |&j| j != k).map(move |j| (k, j)))
        .fold((f64::INFINITY, 0.0_f64), |(first, last), at| (first.min(rounds[at]), last.max(rounds[at])));
    let mut model = LinearModel::new(&run.features, &one_hot(&run.given, 4).unwrap(), DECAY).unwrap();
    for t in 1..=20 {
        let fit = fit(&model.outputs(&run.features), run.labels()).unwrap();
        let noisy = fit.accuracy.noisy.unwrap();
        // The unequal frequencies of labels move each threshold by a little.
        match f64::from(t) {
            t if t < first - 0.5 => assert_eq!(noisy, 0.0, "round {t}, first at {first}"),
            t if t > last + 0.5 => assert_eq!(noisy, 1.0, "round {t}, last at {last}"),
            _ => assert!((0.0..=1.0).contains(&noisy)),
        }
        assert_eq!(fit.accuracy.clean, Some(1.0));
        model.advance();
    }
    assert!((8.0..11.0).contains(&first) && (11.0..15.0).contains(&last), "{first} to {last}");
}

#[test]
fn oracle_6_a_wrong_majority_is_never_repaired() {
    let run = Reference::new(0.9);
    let mut model = LinearModel::new(&run.features, &one_hot(&run.given, 4).unwrap(), DECAY).unwrap();
    let mut before = 1.0;
    for t in 1..=60 {
        let fit = fit(&model.outputs(&run.features), run.labels()).unwrap();
        let (clean, noisy) = (fit.accuracy.clean.unwrap(), fit.accuracy.noisy.unwrap());
        assert_eq!(noisy, 0.0, "round {t}");
        assert!(clean <= before, "round {t}");
        before = clean;
        model.advance();
    }
    assert_eq!(before, 0.0);
}

#[test]
fn oracle_7_small_and_large_algebra_agree() {
    let (features, point) = (normal("features", 300, 20), normal("point", 1, 20));
    let labels: Vec<u32> = (0..300).map(|i| i * 7 % 5).collect();
    let decay = 1e-3;
    let targets = one_hot(&labels, 5).unwrap();
    let mut model = LinearModel::new(&features, &targets, decay).unwrap();
    let gram = &features * features.transpose();
    let shifted = (&gram + Matrix::identity(300, 300) * ridge(5, 300, decay)).cholesky().unwrap();
    let mut centred = targets.add_scalar(-0.2);
    for _ in 0..4 {
        // Kernel ridge regression on the outputs of the round before.
        let solved = shifted.solve(&centred);
        let at_point = (&point * features.transpose()) * &solved;
        near((model.outputs(&point).add_scalar(-0.2) - at_point).amax(), 0.0, 1e-8);
        centred = &gram * &solved;
        near((model.outputs(&features).add_scalar(-0.2) - &centred).amax(), 0.0, 1e-8);
        near((&features * model.weights().transpose() / 5.0 - &centred).amax(), 0.0, 1e-8);
        model.advance();
    }
}

#[test]
fn oracle_8_one_round_on_two_candidates_repairs_all() {
    let run = Reference::new(0.5);
    let (logits, weights) = run.teacher(DECAY);
    let before = fit(&logits, run.labels()).unwrap();
    assert_eq!((before.accuracy.clean, before.accuracy.noisy), (Some(1.0), Some(0.0)));
    let held = teaching(&logits, run.labels()).unwrap().truth_in_top2;
    assert_eq!((held.clean, held.noisy), (Some(1.0), Some(1.0)));
    let candidates = top_two(&logits).unwrap();
    let targets = two_hot(&candidates, 4);
    let zero = Matrix::zeros(4, 400);
    let objectives = [
        (Objective::CrossEntropy { targets: &targets }, 0.499),
        (Objective::Partial { candidates: &candidates, q: 0.7 }, 0.63),
    ];
    for (objective, confidence) in objectives {
        for start in [&weights, &zero] {
            let (logits, _) = run.round(objective, DECAY, start);
            let after = fit(&logits, run.labels()).unwrap();
            assert_eq!((after.accuracy.clean, after.accuracy.noisy), (Some(1.0), Some(1.0)), "{objective:?}");
            let all = 0.5 * (after.confidence.clean.unwrap() + after.confidence.noisy.unwrap());
            // The chapter's figures are of another draw of labels.
            near(all, confidence, 0.03);
        }
    }
}

#[test]
fn oracle_8_strong_decay_repairs_in_few_rounds() {
    let run = Reference::new(0.5);
    let (mut logits, mut weights) = run.teacher(5e-4);
    let mut noisy = Vec::new();
    for _ in 0..4 {
        noisy.push(fit(&logits, run.labels()).unwrap().accuracy.noisy.unwrap());
        let targets = softmax_rows(&logits);
        (logits, weights) = run.round(Objective::CrossEntropy { targets: &targets }, 5e-4, &weights);
    }
    assert_eq!(noisy[0], 0.0);
    assert!((0.3..1.0).contains(&noisy[1]), "{noisy:?}");
    assert_eq!(noisy[3], 1.0);
}

#[test]
fn oracle_8_superclasses() {
    let model = Superclasses { classes: 6, group: 3, per_class: 60, within: 0.4, in_group: 0.2, across: 0.05 };
    let features = realise(model.gram());
    let found = spectrum(&features);
    let mut expected: Vec<f64> = model.eigenvalues().iter().flat_map(|&(g, times)| vec![g; times]).collect();
    expected.sort_by(|a, b| b.total_cmp(a));
    found.iter().zip(&expected).for_each(|(&got, &expected)| near(got, expected, 1e-9));
    let truth = sorted_labels(6, 60);
    let clusters: Vec<usize> = (0..6).map(|k| k / 3).collect();
    let given = draw_labels(&truth, &transition(Noise { kind: NoiseKind::Cc, rate: 0.4, seed: 0 }, 6, &clusters), 0);
    assert!(given.iter().zip(&truth).all(|(g, t)| g / 3 == t / 3), "labels stay in their group");
    let (targets, zero) = (one_hot(&given, 6).unwrap(), Matrix::zeros(6, 360));
    let limits = Limits { residual: 1e-4, ..Limits::default() };
    let round = |objective| solve(&features, objective, DECAY, &zero, limits).unwrap().weights;
    let teacher = &features * round(Objective::CrossEntropy { targets: &targets }).transpose();
    let targets = two_hot(&top_two(&teacher).unwrap(), 6);
    let student = &features * round(Objective::CrossEntropy { targets: &targets }).transpose();
    let accuracy = fit(&student, Labels { given: &given, truth: &truth }).unwrap().accuracy;
    assert_eq!((accuracy.clean, accuracy.noisy), (Some(1.0), Some(1.0)));
}

#[test]
fn oracle_9_descent_with_decay_reaches_the_fixed_point() {
    let (samples, size, classes, decay) = (200, 30, 4, 5e-3);
    let features = unit_rows(normal("fixed point", samples, size));
    let labels: Vec<u32> = (0..samples).map(|i| (i * 13 % 7 % 4) as u32).collect();
    let targets = one_hot(&labels, classes).unwrap();
    let (mut weights, mut momentum) = (Matrix::zeros(classes, size), Matrix::zeros(classes, size));
    let mut residuals = Vec::new();
    for step in 1..=5000 {
        let outputs = softmax_rows(&(&features * weights.transpose()));
        // Coupled decay, as the optimizer has it.
        let gradient = (outputs - &targets).tr_mul(&features) / samples as f64 + &weights * decay;
        momentum = momentum * 0.9 + gradient;
        weights -= &momentum * 0.1;
        if [500, 2000, 5000].contains(&step) {
            residuals.push(residual(&features, &targets, decay, &weights));
        }
    }
    assert!(residuals[0] < 2e-2 && residuals[1] < 1e-6 && residuals[2] < 1e-13, "{residuals:?}");
    let start = Matrix::zeros(classes, size);
    let limits = Limits { residual: 1e-11, ..Limits::default() };
    let solved = solve(&features, Objective::CrossEntropy { targets: &targets }, decay, &start, limits).unwrap();
    near((solved.weights - weights).amax(), 0.0, 1e-9);
}

#[test]
fn oracle_10_no_decay_keeps_the_teacher_and_strong_decay_forgets_all() {
    let features = unit_rows(normal("separable", 20, 40));
    let labels: Vec<u32> = (0..20).map(|i| i % 3).collect();
    let zero = Matrix::zeros(3, 40);
    let round = |targets: &Matrix, decay: f64| {
        let objective = Objective::CrossEntropy { targets };
        let solved = solve(&features, objective, decay, &zero, Limits { residual: 1e-6, ..Limits::default() });
        softmax_rows(&(&features * solved.unwrap().weights.transpose()))
    };
    let teacher = round(&one_hot(&labels, 3).unwrap(), 1e-2);
    near((round(&teacher, 1e-7) - &teacher).amax(), 0.0, 1e-4);
    near(round(&teacher, 1e6).add_scalar(-1.0 / 3.0).amax(), 0.0, 1e-6);
    let linear = LinearModel::new(&features, &teacher, 1e6).unwrap();
    near(linear.outputs(&features).add_scalar(-1.0 / 3.0).amax(), 0.0, 1e-6);
    let linear = LinearModel::new(&features, &teacher, 1e-12).unwrap();
    near((linear.outputs(&features) - &teacher).amax(), 0.0, 1e-6);
}
