//! Values and gradients at the logits against goldens and the identities of the papers' formulas.

use crate::evaluate::{bare, log_softmax, softmax};
use methods::*;
use std::collections::BTreeMap;
use std::path::Path;
use tensor::SafeFile;

type Batch = BTreeMap<&'static str, Vec<f64>>;

fn ips(kl: Direction) -> Ips {
    Ips { kl, m: Some(1), ..Ips::default() }
}

/// Pairs without exchange.
fn pairs(a: &[f64], b: &[f64], label: &[f64]) -> Batch {
    BTreeMap::from([
        ("image", [a, b].concat()),
        ("label", [label, label].concat()),
        ("draw.swap_mask", vec![0.0; label.len()]),
    ])
}

fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(expected).map(|(g, e)| g - e));
    let scale = norm(&mut expected.iter().copied()).max(1e-3);
    assert!(off <= tolerance * scale, "off by {off:e} of {scale:e}:\n{got:?}\n{expected:?}");
}

struct Golden(SafeFile);

impl Golden {
    fn open(name: &str) -> Golden {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/losses");
        Golden(SafeFile::open(&folder.join(format!("{name}.safetensors"))).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f64> {
        let tensor = self.0.tensor(name).unwrap();
        if name == "in.label" {
            tensor.view::<i32>().unwrap().iter().map(|&l| f64::from(l)).collect()
        } else {
            tensor.to_f64().unwrap()
        }
    }

    fn classes(&self, name: &str) -> usize {
        self.0.tensor(name).unwrap().shape()[1]
    }
}

/// Gradients are differences: 1e-8 is far below what a missing factor, side or sign would do.
const DIFFERENCES: f64 = 1e-8;

#[test]
fn ips_goldens() {
    for (name, kl) in [
        ("two_way_sg", Direction::TwoWaySg),
        ("two_way_full", Direction::TwoWayFull),
        ("one_way_b_to_a", Direction::OneWayBToA),
        ("by_confidence", Direction::ByConfidence),
    ] {
        for size in ["", "_small"] {
            let golden = Golden::open(&format!("ips_{name}{size}"));
            let label = golden.get("in.label");
            let built = bare(&ips(kl), golden.classes("in.a"), label.len());
            let batch = pairs(&golden.get("in.a"), &golden.get("in.b"), &label);
            close(&[built.term("ce", &batch)], &golden.get("out.ce"), 1e-12);
            close(&[built.term("kd", &batch)], &golden.get("out.kd"), 1e-12);
            let grad = [golden.get("grad.a"), golden.get("grad.b")].concat();
            close(&built.image_gradient(|_| true, &batch), &grad, DIFFERENCES);
        }
    }
}

/// The values printed in chapter 2.6, made another way than the files.
#[test]
fn ips_values_of_the_chapter() {
    let g = |scale: f64| (0..8).map(|i| 2.0 * (0.37 * f64::from(i) + scale).sin()).collect::<Vec<_>>();
    let batch = pairs(&g(0.5), &g(1.7), &[1.0, 3.0]);
    let built = bare(&ips(Direction::TwoWaySg), 4, 2);
    close(&[built.term("ce", &batch)], &[1.904680050], 1e-9);
    close(&[built.term("kd", &batch)], &[0.198256678], 3e-9);
    let gradient = built.image_gradient(|_| true, &batch);
    close(&gradient[0..4], &[-0.042586608, -0.220728253, 0.105878716, 0.157436144], DIFFERENCES);
    close(&gradient[8..12], &[0.170933259, -0.147189508, 0.021044530, -0.044788282], DIFFERENCES);
    let full = bare(&ips(Direction::TwoWayFull), 4, 2).image_gradient(|_| true, &batch);
    close(&full[0..4], &[-0.110660107, -0.250456680, 0.128785691, 0.232331096], DIFFERENCES);
    close(&full[8..12], &[0.248780131, -0.127402826, -0.011044662, -0.110332643], DIFFERENCES);
}

fn logits(rows: usize, classes: usize, seed: f64) -> Vec<f64> {
    (0..rows * classes).map(|i| 3.0 * (1.3 * i as f64 * seed + seed).sin()).collect()
}

#[test]
fn ips_exchanging_all_or_nothing_is_the_same_loss() {
    let (a, b, label) = (logits(3, 5, 0.7), logits(3, 5, 1.9), [0.0, 4.0, 2.0]);
    let nothing = pairs(&a, &b, &label);
    let mut all = nothing.clone();
    all.insert("draw.swap_mask", vec![1.0; 3]);
    for kl in [Direction::TwoWaySg, Direction::TwoWayFull, Direction::ByConfidence] {
        let built = bare(&ips(kl), 5, 3);
        for term in ["ce", "kd"] {
            close(&[built.term(term, &all)], &[built.term(term, &nothing)], 1e-14);
        }
    }
    let one_way = bare(&ips(Direction::OneWayBToA), 5, 3);
    assert_ne!(one_way.term("kd", &all), one_way.term("kd", &nothing));
}

#[test]
fn ips_without_distillation_is_cross_entropy_on_all_rows() {
    let (a, b, label) = (logits(3, 5, 0.7), logits(3, 5, 1.9), [0.0, 4.0, 2.0]);
    let batch = pairs(&a, &b, &label);
    let built = bare(&Ips { alpha: 0.0, ..ips(Direction::TwoWaySg) }, 5, 3);
    let ce = bare(&Ce::default(), 5, 6);
    assert_eq!((built.term("kd", &batch), built.term("ce", &batch)), (0.0, ce.term("ce", &batch)));
    close(&built.image_gradient(|_| true, &batch), &ce.image_gradient(|_| true, &batch), DIFFERENCES);
    // Fed twice, the mean is the same and the sum four times a run's mean.
    let fed =
        |ce_reduce| bare(&Ips { feed_originals: true, ce_reduce, ..ips(Direction::TwoWaySg) }, 5, 3).term("ce", &batch);
    close(&[fed(CeReduce::Mean), fed(CeReduce::Sum)], &[ce.term("ce", &batch), 4.0 * ce.term("ce", &batch)], 1e-14);
}

#[test]
fn ips_distillation_gradients_balance() {
    let (a, b, label) = (logits(3, 5, 0.7), logits(3, 5, 1.9), [0.0, 4.0, 2.0]);
    let kd = |kl, a: &[f64], b: &[f64]| bare(&ips(kl), 5, 3).image_gradient(|t| t == "kd", &pairs(a, b, &label));
    for kl in [Direction::TwoWaySg, Direction::TwoWayFull, Direction::OneWayBToA, Direction::ByConfidence] {
        for row in kd(kl, &a, &b).chunks(5) {
            assert!(row.iter().sum::<f64>().abs() < 1e-10, "rows sum to 0");
        }
        assert!(kd(kl, &a, &a).iter().all(|g| g.abs() < 1e-10), "equal logits teach nothing");
    }
    let gradient = kd(Direction::TwoWaySg, &a, &b);
    let (da, db) = gradient.split_at(15);
    assert!(da.iter().zip(db).all(|(a, b)| (a + b).abs() < 1e-10), "exact negatives");
    // (α T / 2n)(p_a − p_b)
    let formula = (0..3).flat_map(|r| {
        let (pa, pb) = (softmax(&a[5 * r..5 * r + 5], 4.0), softmax(&b[5 * r..5 * r + 5], 4.0));
        pa.into_iter().zip(pb).map(|(p, q)| 4.0 / 6.0 * (p - q)).collect::<Vec<_>>()
    });
    close(da, &formula.collect::<Vec<_>>(), DIFFERENCES);
    // CS-KD's side: the partner teaches and gets nothing.
    assert!(kd(Direction::OneWayBToA, &a, &b)[15..].iter().all(|g| *g == 0.0));
    // One side of each pair gets nothing when the surer teaches.
    let by_confidence = kd(Direction::ByConfidence, &a, &b);
    for r in 0..3 {
        let label = label[r] as usize;
        let a_teaches = softmax(&a[5 * r..5 * r + 5], 1.0)[label] >= softmax(&b[5 * r..5 * r + 5], 1.0)[label];
        let teacher = if a_teaches { 5 * r } else { 15 + 5 * r };
        assert!(by_confidence[teacher..teacher + 5].iter().all(|g| *g == 0.0));
    }
}

#[test]
fn ips_equally_sure_images_learn_from_a() {
    let (a, b) = ([1.0, 2.0, 0.5], [2.0, 1.0, 0.5]);
    let gradient = bare(&ips(Direction::ByConfidence), 3, 1).image_gradient(|t| t == "kd", &pairs(&a, &b, &[2.0]));
    assert_eq!(gradient[..3], [0.0; 3]);
    let (p, q) = (softmax(&b, 4.0), softmax(&a, 4.0));
    close(&gradient[3..], &(0..3).map(|c| 4.0 * (p[c] - q[c])).collect::<Vec<_>>(), DIFFERENCES);
}

#[test]
fn ips_distillation_ignores_offsets_and_has_a_flat_limit() {
    let (mut a, b, label) = (logits(2, 5, 0.7), logits(2, 5, 1.9), [0.0, 4.0]);
    let limit: Vec<f64> = (0..10)
        .map(|i| {
            let mean = |z: &[f64]| z[i / 5 * 5..i / 5 * 5 + 5].iter().sum::<f64>() / 5.0;
            (a[i] - mean(&a) - b[i] + mean(&b)) / (2.0 * 2.0 * 5.0)
        })
        .collect();
    let hot = bare(&Ips { temperature: 1e3, ..ips(Direction::TwoWaySg) }, 5, 2);
    close(&hot.image_gradient(|t| t == "kd", &pairs(&a, &b, &label))[..10], &limit, 5e-3);
    let built = bare(&ips(Direction::TwoWaySg), 5, 2);
    let before = built.term("kd", &pairs(&a, &b, &label));
    a[..5].iter_mut().for_each(|z| *z += 7.0);
    close(&[built.term("kd", &pairs(&a, &b, &label))], &[before], 1e-12);
}

#[test]
fn ce_goldens() {
    for (name, ce) in [
        ("ce", Ce::default()),
        ("ce_two_classes", Ce::default()),
        ("ce_wide", Ce::default()),
        ("ce_large", Ce::default()),
        ("ce_smoothed_others", Ce { label_smoothing: 0.1, smoothing_over: SmoothingOver::Others }),
        ("ce_smoothed_all", Ce { label_smoothing: 0.1, smoothing_over: SmoothingOver::All }),
    ] {
        let golden = Golden::open(name);
        let label = golden.get("in.label");
        let built = bare(&ce, golden.classes("in.logits"), label.len());
        let batch = BTreeMap::from([("image", golden.get("in.logits")), ("label", label)]);
        close(&[built.term("ce", &batch)], &golden.get("out.loss"), 1e-12);
        close(&built.image_gradient(|_| true, &batch), &golden.get("grad.logits"), DIFFERENCES);
    }
}

#[test]
fn smoothed_ce_is_least_at_its_target() {
    // 100 classes, ε 0.1: the loss there is the target's entropy.
    let target: Vec<f64> = (0..100).map(|c| if c == 7 { 0.9 } else { 0.1 / 99.0 }).collect();
    let batch = BTreeMap::from([("image", target.iter().map(|q| q.ln()).collect()), ("label", vec![7.0])]);
    let built = bare(&Ce { label_smoothing: 0.1, ..Ce::default() }, 100, 1);
    let entropy: f64 = target.iter().map(|q| -q * q.ln()).sum();
    close(&[built.term("ce", &batch), entropy], &[entropy, 0.7846], 1e-4);
    assert!(built.image_gradient(|_| true, &batch).iter().all(|g| g.abs() < 1e-10));
    // ε over all K classes is ε (K − 1)/K over the others.
    let all = Ce { label_smoothing: 0.1, smoothing_over: SmoothingOver::All };
    let others = Ce { label_smoothing: 0.1 * 0.99, smoothing_over: SmoothingOver::Others };
    close(&[bare(&all, 100, 1).term("ce", &batch)], &[bare(&others, 100, 1).term("ce", &batch)], 1e-14);
}

/// Student and teacher logits in one image, a row each.
fn both(student: &[f64], teacher: &[f64], classes: usize, label: Vec<f64>) -> Batch {
    let rows = student.chunks(classes).zip(teacher.chunks(classes));
    BTreeMap::from([("image", rows.flat_map(|(s, t)| [s, t].concat()).collect()), ("label", label)])
}

#[test]
fn kd_goldens() {
    for name in ["kl_t4", "kl_t1", "kl_wide", "kl_large"] {
        let golden = Golden::open(name);
        let classes = golden.classes("in.student");
        let (student, teacher) = (golden.get("in.student"), golden.get("in.teacher"));
        let n = student.len() / classes;
        let temperature = if name == "kl_t4" || name == "kl_wide" { 4.0 } else { 1.0 };
        let built = bare(&Kd { temperature, ce_weight: 0.0, kd_weight: 1.0 }, classes, n);
        let batch = both(&student, &teacher, classes, vec![0.0; n]);
        close(&[built.term("kd", &batch)], &golden.get("out.loss"), 1e-12);
        assert_eq!(built.term("ce", &batch), 0.0);
        let gradient = built.image_gradient(|_| true, &batch);
        let side = |start: usize| {
            gradient.chunks(2 * classes).flat_map(|row| row[start..start + classes].to_vec()).collect::<Vec<_>>()
        };
        close(&side(0), &golden.get("grad.student"), DIFFERENCES);
        assert!(side(classes).iter().all(|g| *g == 0.0), "a frozen teacher");
    }
}

#[test]
fn kd_identities() {
    let (student, teacher) = (logits(2, 5, 0.7), logits(2, 5, 1.9));
    let at = |kd: &Kd, student: &[f64]| bare(kd, 5, 2).term("kd", &both(student, &teacher, 5, vec![1.0, 2.0]));
    let kd = Kd { kd_weight: 1.0, ..Kd::default() };
    assert!(at(&kd, &teacher).abs() < 1e-15, "a student that equals its teacher");
    let moved: Vec<_> = student.iter().map(|z| z - 11.0).collect();
    close(&[at(&kd, &moved)], &[at(&kd, &student)], 1e-12);
    // T → ∞: mean |z'_s − z'_t|² / 2K of row-centred logits.
    let centred = |z: &[f64]| {
        z.chunks(5)
            .flat_map(|r| r.iter().map(|x| x - r.iter().sum::<f64>() / 5.0).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    let square: f64 = centred(&student).iter().zip(centred(&teacher)).map(|(s, t)| (s - t).powi(2)).sum();
    close(&[at(&Kd { temperature: 1e3, ..kd }, &student)], &[square / 2.0 / (2.0 * 5.0)], 1e-2);
    // Both weights, and cross-entropy of the student alone.
    let built = bare(&Kd::default(), 5, 2);
    let batch = both(&student, &teacher, 5, vec![1.0, 2.0]);
    let ce = -(log_softmax(&student[..5], 1.0)[1] + log_softmax(&student[5..], 1.0)[2]) / 2.0;
    close(&[built.term("ce", &batch)], &[0.1 * ce], 1e-14);
}

/// 7.7: (1 − α) CE + (α m / K) KL_T.
#[test]
fn tf_kd_self_is_distillation_with_other_weights() {
    let own = TfKdSelf { alpha: 0.6, temperature: 6.0, multiplier: 3.0 };
    let kd = Kd { temperature: 6.0, ce_weight: 0.4, kd_weight: 0.6 * 3.0 / 5.0 };
    let (own, kd) = (bare(&own, 5, 2), bare(&kd, 5, 2));
    let batch = both(&logits(2, 5, 0.7), &logits(2, 5, 1.9), 5, vec![1.0, 2.0]);
    for term in ["ce", "kd"] {
        close(&[own.term(term, &batch)], &[kd.term(term, &batch)], 1e-14);
    }
}

/// 7.8: the official term's gradient is (m α/(K B))(softmax(z) − target); for T 20 and 100 classes the target is 0.010502 on the label
/// and 0.009995 elsewhere. The bench's gradient is (1/T²)(softmax(z/T) − s)/B.
#[test]
fn tf_kd_reg_gradients() {
    let z = logits(2, 100, 0.7);
    let batch = BTreeMap::from([("image", z.clone()), ("label", vec![7.0, 30.0])]);
    let target = |r: usize, on: f64, off: f64| (0..100).map(move |c| if c == [7, 30][r] { on } else { off });
    let official = bare(&TfKdReg::default(), 100, 2).image_gradient(|t| t == "kd", &batch);
    for (r, row) in official.chunks(100).enumerate() {
        let p = softmax(&z[100 * r..100 * (r + 1)], 1.0);
        let expected: Vec<_> = p.iter().zip(target(r, 0.010502, 0.009995)).map(|(p, q)| 0.1 / 2.0 * (p - q)).collect();
        close(row, &expected, 1e-5);
    }
    let lib = TfKdReg { correct: 0.9, variant: TfKdVariant::SelfKdLib, ..TfKdReg::default() };
    let lib = bare(&lib, 100, 2).image_gradient(|t| t == "kd", &batch);
    for (r, row) in lib.chunks(100).enumerate() {
        let p = softmax(&z[100 * r..100 * (r + 1)], 20.0);
        let smoothed = target(r, 0.9, 0.1 / 99.0);
        let expected: Vec<_> = p.iter().zip(smoothed).map(|(p, q)| (p - q) / 800.0).collect();
        close(row, &expected, 1e-6);
    }
}

/// 0.3: mean over both candidates of (1 − p^q)/q, its gradient −(1/2B) Σ p_c^q (onehot(c) − p). Given labels are not read.
#[test]
fn pll_learns_the_teachers_two_likeliest_classes() {
    let (z, t) = (logits(2, 5, 0.7), logits(2, 5, 1.9));
    let built = bare(&Pll::default(), 5, 2);
    let batch = both(&z, &t, 5, vec![1.0, 2.0]);
    let mut expected = (0.0, vec![]);
    for (z, t) in z.chunks(5).zip(t.chunks(5)) {
        let p = softmax(z, 1.0);
        let mut order: Vec<usize> = (0..5).collect();
        order.sort_by(|&a, &b| t[b].total_cmp(&t[a]));
        expected.0 += order[..2].iter().map(|&c| (1.0 - p[c].powf(0.7)) / 0.7).sum::<f64>() / 4.0;
        let slope = |k: usize| {
            let each = |&c: &usize| p[c].powf(0.7) * (f64::from(u8::from(c == k)) - p[k]);
            -order[..2].iter().map(each).sum::<f64>() / 4.0
        };
        expected.1.extend((0..5).map(slope));
    }
    close(&[built.term("gce", &batch)], &[expected.0], 1e-14);
    let gradient = built.image_gradient(|_| true, &batch);
    let student: Vec<f64> = gradient.chunks(10).flat_map(|row| row[..5].to_vec()).collect();
    close(&student, &expected.1, DIFFERENCES);
    let others = both(&z, &t, 5, vec![0.0, 4.0]);
    assert_eq!(built.term("gce", &others), built.term("gce", &batch));
}
