//! Hostile and degenerate input, and the picture.

use averaging::{
    AveragingError, ClassMap, Labels, LinearModel, Matrix, Probe, Record, Role, analyse, clusters, correlations, fit,
    one_hot, svg, teaching, top_two,
};

#[test]
fn bad_input_is_an_error() {
    let features = Matrix::from_row_slice(2, 1, &[1.0, 2.0]);
    let targets = one_hot(&[0, 1], 2).unwrap();
    let no_decay = LinearModel::new(&features, &targets, 0.0).err().unwrap();
    assert!(matches!(no_decay, AveragingError::NotPositive { .. }), "{no_decay}");
    assert!(one_hot(&[0, 2], 2).err().unwrap().to_string().contains("label 2 of sample 1"));
    let nan = Matrix::from_row_slice(1, 2, &[0.0, f64::NAN]);
    assert_eq!(top_two(&nan).err(), Some(AveragingError::NotFinite { what: "logits", index: 1 }));
    let short = Labels { given: &[0], truth: &[0, 1] };
    assert!(matches!(fit(&features, short), Err(AveragingError::Size { .. })));
}

#[test]
fn of_equal_logits_the_lower_class_comes_first() {
    let logits = Matrix::from_row_slice(2, 4, &[1.0, 1.0, 1.0, 0.0, 0.0, 2.0, 3.0, 2.0]);
    assert_eq!(top_two(&logits).unwrap(), [[0, 1], [2, 1]]);
}

#[test]
fn classes_that_name_each_other_are_found() {
    // Classes 0 and 1 name each other, 2 names 0.
    let logits = Matrix::from_row_slice(3, 3, &[3.0, 2.0, 0.0, 2.0, 3.0, 0.0, 2.0, 0.0, 3.0]);
    let found = teaching(&logits, Labels { given: &[0, 1, 2], truth: &[0, 1, 2] }).unwrap();
    assert_eq!(found.identical_pairs, 1.0 / 3.0);
    assert_eq!(found.second_entropy, [0.0; 3]);
    assert_eq!((found.truth_in_top2.clean, found.truth_in_top2.noisy), (Some(1.0), None));
}

/// Two tight pairs of classes and one class apart.
fn grouped() -> (Vec<Vec<f32>>, Vec<u32>) {
    let centres = [[4.0, 1.0, 0.0], [4.0, -1.0, 0.0], [-4.0, 0.0, 1.0], [-4.0, 0.0, -1.0], [0.0, 9.0, 9.0]];
    let labels: Vec<u32> = (0..50).map(|i| i % 5).collect();
    let jitter = |i: u32, k: u32| ((i * 7 + k * 3) % 5) as f32 * 0.1 - 0.2;
    let row = |(i, &l): (usize, &u32)| (0..3).map(|k| centres[l as usize][k] + jitter(i as u32, k as u32)).collect();
    (labels.iter().enumerate().map(row).collect(), labels)
}

#[test]
fn complete_linkage_finds_the_groups() {
    let (rows, labels) = grouped();
    let map = ClassMap::new(|i| &rows[i], &labels, 5);
    assert_eq!(clusters(&map, 0.5), [0, 0, 1, 1, 2]);
    assert_eq!(clusters(&map, 1.0), [0; 5]);
    assert_eq!(clusters(&map, 0.0), [0, 1, 2, 3, 4]);
    let means = correlations(&map, &[0, 0, 1, 1, 2]);
    assert_eq!((means.within.count, means.in_cluster.unwrap().count, means.across.unwrap().count), (5, 2, 8));
    assert!(
        means.within.mean > means.in_cluster.unwrap().mean
            && means.in_cluster.unwrap().mean > means.across.unwrap().mean
    );
}

#[test]
fn an_analysis_predicts_its_own_closed_form() {
    let (rows, labels) = grouped();
    let features = Matrix::from_fn(50, 3, |i, k| f64::from(rows[i][k]));
    let mut given = labels.clone();
    (given[0], given[6]) = (1, 3);
    let record = Record {
        features: &features,
        labels: Labels { given: &given, truth: &labels },
        test_features: &features,
        test_labels: &labels,
        classes: 5,
        weight_decay: 1e-3,
        cut: 0.8,
    };
    let mut model = LinearModel::new(&features, &one_hot(&given, 5).unwrap(), 1e-3).unwrap();
    let first = Probe { name: "round0".into(), role: Role::Given, weights: model.weights() };
    model.advance();
    let second = Probe { name: "round1".into(), role: Role::Soft { teacher: 0 }, weights: model.weights() };
    let third = Probe { name: "pll".into(), role: Role::Top { teacher: 0 }, weights: model.weights() };
    let analysis = analyse(record, &[first, second, third.clone()]).unwrap();
    assert_eq!(analysis.noise, 2.0 / 50.0);
    assert!(analysis.probes[..2].iter().all(|p| p.predicted_correlation > 1.0 - 1e-12));
    assert!(analysis.probes[2].predicted_correlation < 1.0 - 1e-6);
    assert!(analysis.probes[0].teacher.is_none() && analysis.probes[1].teacher.is_some());
    let picture = svg(&analysis);
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n") && picture.contains(">pll</text>"));
    assert_eq!(picture.matches("<rect").count(), 1 + 25);
    assert!(matches!(analyse(record, &[third]), Err(AveragingError::Size { .. })), "a teacher must come first");
}
