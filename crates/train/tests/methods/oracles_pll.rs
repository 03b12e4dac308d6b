//! The oracles of label averaging that concern its losses (methods, chapter 6.8); those of noise, class maps and the closed form lie
//! with the data side and the theory.

use crate::probe::{Probe, Rows, off, softmax, wavy};
use crate::replayed::{Replayed, largest, values};

const CLASSES: usize = 5;
const ROWS: usize = 4;

/// Candidates are the first two numbers of each teacher row.
fn teacher() -> Rows {
    let rows =
        [[3.0, 2.0, 0.0, -1.0, 0.5], [0.1, 0.7, 2.5, 0.0, 1.5], [-1.0, 4.0, 0.0, 3.5, 0.0], [0.0, 0.5, 0.4, 0.3, 2.0]];
    rows.map(|row| row.to_vec()).to_vec()
}

const PAIRS: [[usize; 2]; ROWS] = [[0, 1], [2, 4], [1, 3], [4, 1]];

fn pll(settings: &str) -> Probe {
    Probe {
        method: format!("name = \"pll\"\n{settings}"),
        views: &[],
        student: wavy(ROWS, CLASSES, 0.9),
        teacher: Some(teacher()),
        labels: vec![0; ROWS],
    }
}

fn top(q: f64) -> Probe {
    pll(&format!("q = {q:?}"))
}

/// 6.8, oracle 1: formula and gradient of 6.5, against central differences too.
#[test]
fn oracle_1_generalised_cross_entropy_and_its_gradient() {
    for q in [0.3, 0.7, 1.0] {
        let probe = top(q);
        let got = probe.run();
        let p: Rows = probe.student.iter().map(|z| softmax(z, 1.0)).collect();
        let pairs = || (0..ROWS).flat_map(|b| PAIRS[b].map(|c| (b, c)));
        let loss: f64 = pairs().map(|(b, c)| (1.0 - p[b][c].powf(q)) / q).sum::<f64>() / (2.0 * ROWS as f64);
        assert!((got.get("loss.gce") - loss).abs() < 1e-14, "q = {q}");
        let mut wanted = vec![vec![0.0; CLASSES]; ROWS];
        for (b, c) in pairs() {
            for k in 0..CLASSES {
                let hot = f64::from(k == c);
                wanted[b][k] -= p[b][c].powf(q) * (hot - p[b][k]) / (2.0 * ROWS as f64);
            }
        }
        assert!(off(&got.gradient, &wanted) < 1e-15, "q = {q}");
        assert!(off(&got.gradient, &probe.differences(1e-5)) < 1e-9, "q = {q}");
        assert!(largest(&got.gradient.concat()) <= 1.0 / ROWS as f64, "|dz| is at most 1/B");
    }
}

/// 6.8, oracle 1: q → 0 is cross-entropy with weights one half, q = 1 counts the candidates' total only.
#[test]
fn oracle_1_limits_of_q() {
    let p: Rows = wavy(ROWS, CLASSES, 0.9).iter().map(|z| softmax(z, 1.0)).collect();
    let halves: f64 = (0..ROWS).map(|b| -PAIRS[b].map(|c| p[b][c].ln()).iter().sum::<f64>() / 2.0).sum();
    assert!((top(1e-7).loss() - halves / ROWS as f64).abs() < 1e-5);
    let totals: f64 = (0..ROWS).map(|b| 1.0 - PAIRS[b].map(|c| p[b][c]).iter().sum::<f64>() / 2.0).sum();
    assert!((top(1.0).loss() - totals / ROWS as f64).abs() < 1e-14);
    // Within the pair probability may move freely at q = 1.
    let mut uneven = top(1.0);
    for (z, [c, d]) in uneven.student.iter_mut().zip(PAIRS) {
        (z[c], z[d]) = (z[d], z[c]);
    }
    assert!((uneven.loss() - top(1.0).loss()).abs() < 1e-15);
}

/// 6.8, oracle 1: the least value is (1 − 2^−q)/q at one half each; 1.371699 at uniform p of 100 classes.
#[test]
fn oracle_1_the_minimum_is_one_half_each() {
    let with = |z: &[f64]| Probe {
        student: vec![z.to_vec(); ROWS],
        teacher: Some(vec![teacher()[0].clone(); ROWS]),
        ..top(0.7)
    };
    let least = with(&[40.0, 40.0, 0.0, 0.0, 0.0]).run();
    assert!((least.get("loss") - 0.549183).abs() < 5e-7);
    assert!(((1.0 - 2f64.powf(-0.7)) / 0.7 - least.get("loss")).abs() < 1e-14);
    assert!(largest(&least.gradient.concat()) < 1e-15);
    for other in [[40.0, 39.5, 0.0, 0.0, 0.0], [39.0, 40.0, 0.0, 0.0, 0.0], [40.0, 40.0, 37.0, 0.0, 0.0]] {
        assert!(with(&other).loss() > least.get("loss"), "{other:?}");
    }
    let mut hundred = vec![0.0; 100];
    hundred[7] = 1.0;
    let uniform = Probe { student: vec![vec![0.0; 100]], teacher: Some(vec![hundred]), labels: vec![0], ..top(0.7) };
    assert!((uniform.loss() - 1.371699).abs() < 5e-7);
}

/// 6.8, oracle 1: which candidate the teacher likes better does not matter, bit for bit; of equal logits the lower class counts (6.9).
#[test]
fn oracle_1_order_in_the_pair_does_not_matter() {
    let probe = top(0.7);
    let mut swapped = probe.clone();
    let rows = swapped.teacher.as_mut().unwrap();
    for (row, [c, d]) in rows.iter_mut().zip(PAIRS) {
        (row[c], row[d]) = (row[d], row[c]);
    }
    let (a, b) = (probe.run(), swapped.run());
    assert_eq!(a.get("loss"), b.get("loss"));
    assert_eq!(a.gradient, b.gradient);
    let tied = |row: [f64; 5]| Probe { teacher: Some(vec![row.to_vec(); ROWS]), ..top(0.7) }.loss();
    assert_eq!(tied([0.0, 2.0, 1.0, 1.0, 1.0]), tied([0.0, 2.0, 1.0, 0.0, 0.0]));
    assert_ne!(tied([0.0, 2.0, 1.0, 1.0, 1.0]), tied([0.0, 2.0, 0.0, 1.0, 0.0]));
}

/// 6.8, oracle 2.
#[test]
fn oracle_2_one_hot_targets_are_labels_and_a_copy_learns_nothing() {
    let labels = [3, 0, 4, 4];
    let mut soft = pll("targets = \"soft\"");
    let sure = |label: i32| (0..CLASSES as i32).map(|k| if k == label { 2000.0 } else { 0.0 }).collect();
    soft.teacher = Some(labels.map(sure).to_vec());
    let ce = Probe { method: "name = \"ce\"".into(), teacher: None, labels: labels.to_vec(), ..soft.clone() };
    let (soft, ce) = (soft.run(), ce.run());
    assert!((soft.get("loss") - ce.get("loss")).abs() < 1e-14);
    assert!(off(&soft.gradient, &ce.gradient) < 1e-16);
    let copy = Probe { student: teacher(), ..pll("targets = \"soft\"") }.run();
    assert!(largest(&copy.gradient.concat()) < 1e-16);
    let entropy: f64 = teacher().iter().flat_map(|t| softmax(t, 1.0)).map(|q| -q * q.ln()).sum();
    assert!((copy.get("loss") - entropy / ROWS as f64).abs() < 1e-14, "the value is the teacher's entropy");
}

/// Logits of the student after so many steps of a plain round on separable features.
fn trained(edits: &[&str], steps: usize) -> (Rows, Rows) {
    let golden = Replayed::golden("pll_soft_linear").with(edits).steps(steps);
    let end = golden.run("f64");
    let mut after = golden.steps(1);
    after.weights.insert("fc.weight".into(), end["after.fc.weight"].clone());
    let shown = after.run("f64");
    let rows = |name: &str| values(&shown, name).chunks(CLASSES).map(|row| softmax(row, 1.0)).collect();
    (rows("logits"), rows("teacher.logits"))
}

/// 6.8, oracle 10: weak decay reaches the teacher's outputs, strong decay the uniform ones.
#[test]
fn oracle_10_decay_decides_between_the_teacher_and_uniform() {
    let (student, teacher) = trained(&["optimizer.weight_decay=0.0", "optimizer.lr=0.1"], 3000);
    assert!(off(&student, &teacher) < 1e-5, "{:e}", off(&student, &teacher));
    let (student, _) = trained(&["optimizer.weight_decay=100.0", "optimizer.lr=0.01"], 500);
    let uniform = vec![vec![1.0 / CLASSES as f64; CLASSES]; student.len()];
    assert!(off(&student, &uniform) < 0.05, "{:e}", off(&student, &uniform));
}
