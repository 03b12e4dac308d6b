//! The oracles of cross-view consistency by number (methods, chapter 5.9); 10 to 12 are about images and lie with the data side.

use crate::golden::distance;
use crate::probe::{Probe, Rows, cross_entropy, kl, off, softmax, wavy};
use crate::replayed::{Replayed, largest, same, values};

const CLASSES: usize = 4;
const LABELS: [i32; 3] = [0, 3, 1];

/// Teacher confidences 0.98, 0.37, 0.83 on weak and 0.46, 0.31, 0.96 on strong views.
fn teacher() -> Rows {
    let weak = [vec![5.0, 0.0, 1.0, -1.0], vec![0.0, 0.5, 0.2, 0.1], vec![0.5, 3.0, 0.5, -0.5]];
    let strong = [vec![1.0, 0.5, 0.0, -0.5], vec![0.3, 0.2, 0.1, 0.0], vec![0.0, -1.0, 4.0, 0.2]];
    [weak, strong].concat()
}

/// Default weights, T = 4, settings added.
fn crld(settings: &str) -> Probe {
    Probe {
        method: format!("name = \"crld\"\n{settings}"),
        views: &["weak", "strong"],
        student: wavy(6, CLASSES, 0.4),
        teacher: Some(teacher()),
        labels: LABELS.to_vec(),
    }
}

const HALF_OPEN: &str = "tau_weak = 0.5\ntau_strong = 0.4";

fn confidence(t: &[f64]) -> f64 {
    softmax(t, 1.0).into_iter().fold(0.0, f64::max)
}

/// 5.9, oracle 1: against the chapter's formulas and against central differences.
#[test]
fn oracle_1_gradients_at_the_logits() {
    for (settings, ce, v, x, t) in [(HALF_OPEN, 1.0, 2.0, 0.5, 4.0), (IMAGENET, 2.0, 2.0, 0.5, 1.0)] {
        let probe = crld(settings);
        let (tw, ts) = (&teacher()[..3], &teacher()[3..]);
        let row = |b: usize, own: &[Vec<f64>], other: &[Vec<f64>], z: &[f64]| -> Vec<f64> {
            let (mw, ms) = (f64::from(confidence(&tw[b]) >= 0.5), f64::from(confidence(&ts[b]) >= 0.4));
            let (p, p_t) = (softmax(z, 1.0), softmax(z, t));
            let (q_own, q_other) = (softmax(&own[b], t), softmax(&other[b], t));
            let at = |k: usize| {
                let hot = f64::from(LABELS[b] as usize == k);
                let distil = v * mw * (p_t[k] - q_own[k]) + x * ms * (p_t[k] - q_other[k]);
                (ce * (p[k] - hot) + t * distil) / 3.0
            };
            (0..CLASSES).map(at).collect()
        };
        let z = &probe.student;
        let mut wanted: Rows = (0..3).map(|b| row(b, tw, ts, &z[b])).collect();
        wanted.extend((0..3).map(|b| row(b, ts, tw, &z[3 + b])));
        let got = probe.run().gradient;
        assert!(off(&got, &wanted) < 1e-14, "{:e}", off(&got, &wanted));
        let largest = largest(&got.concat());
        assert!(off(&got, &probe.differences(1e-5)) < 1e-8 * largest);
    }
}

const IMAGENET: &str = "tau_weak = 0.5\ntau_strong = 0.4\ntemperature = 1.0\nce_weight = 2.0";

/// 5.9, oracle 2.
#[test]
fn oracle_2_thresholds_above_one_leave_cross_entropy() {
    let shut = "tau_weak = 2.0\ntau_strong = 2.0";
    let probe = crld(shut);
    let got = probe.run();
    let ce: f64 = (0..6).map(|r| cross_entropy(&probe.student[r], LABELS[r % 3]) / 3.0).sum();
    assert!((got.get("loss") - ce).abs() < 1e-14);
    assert_eq!([got.get("loss.within"), got.get("loss.cross")], [0.0; 2]);
    assert_eq!([got.get("monitor.kept_weak"), got.get("monitor.kept_strong")], [0.0; 2]);
    let without = crld(&format!("{shut}\nce_weight = 0.0")).run();
    assert_eq!(largest(&without.gradient.concat()), 0.0);
}

/// 5.9, oracle 3.
#[test]
fn oracle_3_equal_views_make_both_groups_twice_the_divergence() {
    let mut probe = crld("tau_weak = 0.0\ntau_strong = 0.0\nwithin_weight = 3.0\ncross_weight = 0.7");
    let t = teacher()[..3].to_vec();
    let z = probe.student[..3].to_vec();
    probe.student = [z.clone(), z.clone()].concat();
    probe.teacher = Some([t.clone(), t.clone()].concat());
    let got = probe.run();
    let twice = 2.0 * (0..3).map(|b| kl(&t[b], &z[b], 4.0)).sum::<f64>() / 3.0;
    assert!((got.get("loss.within") / 3.0 - twice).abs() < 1e-13);
    assert!((got.get("loss.cross") / 0.7 - twice).abs() < 1e-13);
}

/// 5.9, oracle 4.
#[test]
fn oracle_4_a_perfect_student_differs_across_views_only() {
    let mut probe = crld(&format!("ce_weight = 0.0\n{HALF_OPEN}"));
    probe.student = teacher();
    let got = probe.run();
    assert!(got.get("loss.within").abs() < 1e-15);
    assert!(got.get("loss.cross") > 1e-3);
    let mut within = probe.clone();
    within.method += "\ncross_weight = 0.0";
    assert!(largest(&within.run().gradient.concat()) < 1e-15);
    // Views agree on images 0 and 2, which are kept; image 1 is not.
    let mut t = teacher();
    (t[3], t[5]) = (t[0].clone(), t[2].clone());
    probe.student = t.clone();
    probe.teacher = Some(t);
    assert!(probe.run().get("loss.cross").abs() < 1e-15);
}

/// Rows of both views of these images.
fn taken(rows: &Rows, images: &[usize]) -> Rows {
    images.iter().map(|&i| rows[i].clone()).chain(images.iter().map(|&i| rows[3 + i].clone())).collect()
}

fn with_images(probe: &Probe, images: &[usize]) -> Probe {
    Probe {
        student: taken(&probe.student, images),
        teacher: probe.teacher.as_ref().map(|t| taken(t, images)),
        labels: images.iter().map(|&i| LABELS[i]).collect(),
        ..probe.clone()
    }
}

/// 5.9, oracle 5.
#[test]
fn oracle_5_means_are_over_all_images() {
    let probe = crld(HALF_OPEN);
    let (once, twice) = (probe.run(), with_images(&probe, &[0, 1, 2, 0, 1, 2]).run());
    let without = with_images(&probe, &[0, 2]).run(); // image 1 is kept by no mask
    for term in ["loss.ce", "loss.within", "loss.cross"] {
        assert!((once.get(term) - twice.get(term)).abs() < 1e-14, "{term}");
    }
    for term in ["loss.within", "loss.cross"] {
        assert!((once.get(term) * 1.5 - without.get(term)).abs() < 1e-13, "{term}");
    }
}

/// The roles of the views exchanged, thresholds too.
fn exchanged(probe: &Probe, settings: &str) -> Probe {
    let swap = |rows: &Rows| [&rows[3..], &rows[..3]].concat();
    Probe {
        method: crld(settings).method,
        student: swap(&probe.student),
        teacher: probe.teacher.as_ref().map(swap),
        ..probe.clone()
    }
}

/// 5.9, oracle 6.
#[test]
fn oracle_6_views_are_symmetric_where_masks_agree() {
    let probe = crld("tau_weak = 0.5\ntau_strong = 0.9");
    let other = exchanged(&probe, "tau_weak = 0.9\ntau_strong = 0.5");
    assert!((probe.loss() - other.loss()).abs() > 1e-3, "masks {{0, 2}} and {{2}}");
    let same_masks = crld("tau_weak = 0.5\ntau_strong = 0.4");
    let sure = |tau: f64, rows: &[Vec<f64>]| rows.iter().map(|t| confidence(t) >= tau).collect::<Vec<_>>();
    assert_eq!(sure(0.5, &teacher()[..3]), sure(0.4, &teacher()[3..]));
    let (a, b) = (same_masks.run(), exchanged(&same_masks, "tau_weak = 0.4\ntau_strong = 0.5").run());
    for term in ["loss.ce", "loss.within", "loss.cross"] {
        assert!((a.get(term) - b.get(term)).abs() < 1e-14, "{term}");
    }
}

/// 5.9, oracle 7.
#[test]
fn oracle_7_a_lost_strong_view_closes_the_cross_terms_only() {
    let mut t = teacher();
    t[3] = vec![0.0; CLASSES];
    let one = |rule: &str| {
        let settings = format!("tau_weak = 0.5\ntau_strong = 0.3\nwithin_weight = 1.0\ncross_weight = 1.0\n{rule}");
        let probe = Probe { teacher: Some(t.clone()), ..crld(&settings) };
        with_images(&probe, &[0])
    };
    let (probe, got) = (one(""), one("").run());
    let z = &probe.student;
    let [ww, ss, ws] = [kl(&t[0], &z[0], 4.0), kl(&t[3], &z[1], 4.0), kl(&t[0], &z[1], 4.0)];
    assert!((got.get("loss.within") - ww - ss).abs() < 1e-14);
    assert_eq!(got.get("loss.cross"), 0.0);
    let got = one("mask_rule = \"by_label\"").run();
    assert!((got.get("loss.within") - ww).abs() < 1e-14);
    assert!((got.get("loss.cross") - ws).abs() < 1e-14);
}

/// 5.9, oracle 8: confidence 1/4 is exact.
#[test]
fn oracle_8_a_confidence_at_the_threshold_is_kept() {
    let kept = |tau: f64| {
        let mut probe = crld(&format!("tau_weak = {tau:?}\ntau_strong = {tau:?}"));
        probe.teacher = Some(vec![vec![0.0; CLASSES]; 6]);
        let got = probe.run();
        (got.get("monitor.kept_weak"), got.get("monitor.kept_strong"), got.get("loss.within") > 0.0)
    };
    assert_eq!(kept(0.25), (1.0, 1.0, true));
    assert_eq!(kept(0.250000001), (0.0, 0.0, false));
}

/// 5.9, oracle 9: what one view does by itself comes from plain training on it.
#[test]
fn oracle_9_running_statistics_move_by_the_weak_view_and_then_by_the_strong() {
    let golden = Replayed::golden("crld_all").with(&["optimizer.lr=1e-300"]).steps(1);
    let both = golden.run("f64");
    let alone = |view: &str| {
        let mut ce = golden.clone();
        let (head, _) = golden.recipe.split_once("[[teacher]]").unwrap();
        let (_, tail) = golden.recipe.split_once("[train]").unwrap();
        ce.recipe = format!("{head}[method]\nname = \"ce\"\n[train]{tail}");
        ce.teachers.clear();
        let image = golden.batch[&format!("image.{view}")].clone();
        ce.batch.retain(|name, _| name == "label");
        ce.batch.insert("image".into(), image);
        ce.run("f64")
    };
    let (weak, strong) = (alone("weak"), alone("strong"));
    for name in ["bn1.running_mean", "layer3.0.bn2.running_mean", "layer2.0.bn1.running_var"] {
        let after = format!("after.{name}");
        let r = golden.weights[name].to_f64().unwrap();
        let statistic = |moved: Vec<f64>| moved.iter().zip(&r).map(|(m, r)| (m - 0.9 * r) / 0.1).collect::<Vec<_>>();
        let (sw, ss) = (statistic(values(&weak, &after)), statistic(values(&strong, &after)));
        let wanted: Vec<f64> = (0..r.len()).map(|i| 0.81 * r[i] + 0.09 * sw[i] + 0.1 * ss[i]).collect();
        let distance = distance(&values(&both, &after), &wanted);
        assert!(distance < 1e-13, "{name}: {distance:e}");
    }
    let teacher = golden.teachers[0].iter().map(|(k, t)| (format!("after.teacher.{k}"), t.clone())).collect();
    let kept: tensor::safe::Tensors = both.into_iter().filter(|(k, _)| k.starts_with("after.teacher.")).collect();
    same(&teacher, &kept, "after.teacher.", 0.0);
}
