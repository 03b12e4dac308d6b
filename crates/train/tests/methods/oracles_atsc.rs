//! The oracles of adaptive teaching by number (methods, chapter 4.13).

use crate::bench::{Bench, Parts, Strided, Watched};
use crate::golden::distance;
use crate::replayed::{Replayed, gradient, ints, largest, same, scalar, tensor, values};
use methods::Atsc;
use nets::NetworkSpec;
use plan::StepSource;
use spec::{Method, Network, Op, Precision, Setting, StateKind};
use tensor::HostTensor;
use tensor::safe::Tensors;

fn atsc(edits: &[&str]) -> Replayed {
    Replayed::golden("atsc").with(edits)
}

/// The golden's recipe with another `[method]`.
fn with_method(replayed: &Replayed, method: &str) -> Replayed {
    let (head, tail) = replayed.recipe.split_once("[method]").unwrap();
    let (_, tail) = tail.split_once("[train]").unwrap();
    Replayed { recipe: format!("{head}[method]\n{method}\n[train]{tail}"), edits: vec![], ..replayed.clone() }
}

/// 4.13, oracle 1.
#[test]
fn oracle_1_with_a_frozen_teacher_it_is_simkd() {
    let frozen = Replayed::golden("atsc_frozen").with(&["method.ce_weight=0.0", "method.kd_weight=0.0"]);
    let (ours, simkd) = (frozen.run("f64"), with_method(&frozen, "name = \"simkd\"").run("f64"));
    for prefix in ["loss.mse", "step1.loss", "step2.loss.mse", "logits", "grad.", "after."] {
        same(&ours, &simkd, prefix, 0.0);
    }
    let alone = frozen.with(&["method.anchor_weight=0.0"]).run("f64");
    same(&ours, &alone, "after.", 0.0);
}

/// Parameters of the teacher, as they begin and as they are after the steps.
fn teacher_pairs(replayed: &Replayed, end: &Tensors) -> Vec<(String, Vec<f64>, Vec<f64>)> {
    let start = replayed.teachers[0].iter().filter(|(name, _)| !name.contains("running"));
    start.map(|(k, t)| (k.clone(), t.to_f64().unwrap(), values(end, &format!("after.teacher.{k}")))).collect()
}

/// 4.13, oracle 2: nothing pulls at the start.
#[test]
fn oracle_2_the_anchor_is_zero_where_training_begins() {
    for anchor_bn in ["true", "false"] {
        let edits = [&format!("method.anchor_bn={anchor_bn}"), "method.mse_weight=0.0", "method.bias_step=false"];
        let still = atsc(&edits).with(&["optimizer.weight_decay=0.0"]);
        let end = still.run("f64");
        assert_eq!([0, 1, 2].map(|s| scalar(&end, &format!("step{s}.loss.anchor"))), [0.0; 3]);
        for (name, before, after) in teacher_pairs(&still, &end) {
            assert_eq!(before, after, "{name}");
            assert_eq!(gradient(&end, &format!("teacher.{name}")), 0.0, "{name}");
        }
    }
}

/// 4.13, oracle 2: by anchor and decay alone, W = ρ W⁰ with ρ of a scalar heavy ball, which ends at 2w / (2w + decay).
#[test]
fn oracle_2_anchored_weights_are_a_heavy_ball() {
    let (lr, w, decay, momentum) = (0.3, 0.8, 0.3, 0.5);
    // What becomes of a weight of 1 that is pulled by w.
    let ball = |w: f64, steps: usize| {
        let (mut share, mut speed) = (1.0_f64, 0.0);
        for _ in 0..steps {
            speed = momentum * speed + 2.0 * w * (share - 1.0) + decay * share;
            share -= lr * speed;
        }
        share
    };
    assert!((ball(w, 40) - 2.0 * w / (2.0 * w + decay)).abs() < 1e-5, "{}", ball(w, 40));
    for (anchor_bn, steps) in [(false, 1), (false, 5), (true, 5), (true, 40)] {
        let settings = [
            format!("method.anchor_bn={anchor_bn}"),
            format!("method.anchor_weight={w}"),
            format!("optimizer.weight_decay={decay}"),
            format!("optimizer.lr={lr}"),
            format!("optimizer.momentum={momentum}"),
        ];
        let mut replayed = atsc(&["method.mse_weight=0.0", "method.bias_step=false"]).steps(steps);
        replayed.edits.extend(settings);
        let end = replayed.run("f64");
        for (name, before, after) in teacher_pairs(&replayed, &end) {
            let rank = replayed.teachers[0][&name].shape().rank();
            let anchored = rank > 1 || anchor_bn && name != "fc.bias";
            let share = ball(if anchored { w } else { 0.0 }, steps);
            let wanted: Vec<f64> = before.iter().map(|w| share * w).collect();
            let off = distance(&after, &wanted);
            assert!(off < 1e-12, "{name}: {off:e}");
        }
    }
}

/// 4.13, oracle 3.
#[test]
fn oracle_3_the_shared_matrix_never_moves_without_decay() {
    let replayed = atsc(&["optimizer.weight_decay=0.0"]).steps(5);
    for (name, before, after) in teacher_pairs(&replayed, &replayed.run("f64")) {
        assert_eq!(before == after, name == "fc.weight", "{name}");
    }
}

/// 4.13, oracle 4.
#[test]
fn oracle_4_the_bias_step_moves_the_bias_alone_and_keeps_its_sum() {
    let [with, without] = ["true", "false"].map(|on| {
        let edit = format!("method.bias_step={on}");
        atsc(&["optimizer.weight_decay=0.0", &edit, "optimizer.lr=0.05"]).steps(1)
    });
    let (start, on, off) = (values(&with.teachers[0], "fc.bias"), with.run("f64"), without.run("f64"));
    for name in off.keys().filter(|k| k.starts_with("after.")) {
        let second_forward = name.starts_with("after.teacher.") && name.contains("running");
        let equal = values(&on, name) == values(&off, name);
        assert_eq!(equal, name != "after.teacher.fc.bias" && !second_forward, "{name}");
    }
    let (before, after) = (start.iter().sum::<f64>(), values(&on, "after.teacher.fc.bias").iter().sum::<f64>());
    assert_eq!(start, values(&off, "after.teacher.fc.bias"));
    assert!((before - after).abs() < 1e-15, "{before} {after}");
}

/// Gradients at projected features A and at the teacher's map, with A, target and the divisor of the mean; the teacher's map is the
/// weight of a convolution on one-hot pixels.
fn at_maps(student_stride: usize) -> [Vec<f64>; 3] {
    let (n, side, channels, hidden) = (2, 4, 3, 2);
    let pixels = n * side * side;
    let show: fn(&spec::Graph) -> Vec<_> = |g| {
        let mse = g.nodes.iter().find(|n| matches!(n.op, Op::SquaredError { .. }) && n.inputs.len() == 2).unwrap();
        vec![("projected", mse.inputs[0]), ("target", mse.inputs[1])]
    };
    let method = Box::new(Watched { of: Box::new(Atsc { projector_factor: 1, ..Atsc::default() }), show });
    let student: Box<dyn Network> = Box::new(Strided { channels: hidden, stride: student_stride, classes: 3 });
    let teachers: Vec<Box<dyn Network>> = vec![Box::new(Strided { channels, stride: 1, classes: 3 })];
    let mut bench = Bench::new(Parts { method, student, teachers, classes: 3, image: [side, side, pixels], units: n });
    let one_hot: Vec<f64> = (0..pixels * pixels).map(|i| f64::from(u8::from(i / pixels == i % pixels))).collect();
    bench.step(&[("image", tensor(&[n, side, side, pixels], &one_hot)), ("label", ints(&[0, 2]))]);
    let (a, target) = (bench.output("projected"), bench.output("target"));
    let scale = 2.0 / a.len() as f64;
    let da = a.iter().zip(&target).map(|(a, g)| scale * (a - g)).collect();
    let weight = bench.gradient("teacher.conv.weight"); // [channels, pixels]
    let at_map = (0..pixels * channels).map(|i| weight[i % channels * pixels + i / channels]).collect();
    [da, at_map, a]
}

/// 4.13, oracle 5.
#[test]
fn oracle_5_the_teacher_is_pulled_as_the_student_is_pushed() {
    let [da, dg, a] = at_maps(1);
    assert_eq!(dg, da.iter().map(|d| -d).collect::<Vec<_>>());
    assert!(largest(&dg) > 1e-3 && largest(&a) > 0.0);
    let [da, dg, _] = at_maps(2); // the teacher's map is pooled by 2
    assert_eq!(dg.len(), 4 * da.len());
    let (over, under) = (dg.iter().sum::<f64>(), -da.iter().sum::<f64>());
    assert!((over - under).abs() < 1e-14, "{over} {under}");
    let pixel = |image: usize, row: usize, column: usize, c: usize| ((image * 4 + row) * 4 + column) * 3 + c;
    for (i, push) in da.iter().enumerate() {
        let (image, row, column, c) = (i / 12, i / 6 % 2, i / 3 % 2, i % 3);
        for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let got = dg[pixel(image, 2 * row + down, 2 * column + right, c)];
            assert!((got + push / 4.0).abs() < 1e-16);
        }
    }
}

/// 4.13, oracle 6: statistics of a batch come from steps of one forward.
#[test]
fn oracle_6_running_statistics_move_twice() {
    let name = "layer2.0.bn1.running_mean";
    let after = format!("after.teacher.{name}");
    let once = |replayed: &Replayed| {
        let r = values(&replayed.teachers[0], name);
        let moved = values(&replayed.with(&["method.bias_step=false"]).run("f64"), &after);
        r.iter().zip(moved).map(|(r, m)| (m - 0.9 * r) / 0.1).collect::<Vec<_>>()
    };
    for (lr, moves) in [("1e-300", false), ("0.002", true)] {
        let lr = format!("optimizer.lr={lr}");
        let start = atsc(&[&lr]).steps(1);
        let (r, end) = (values(&start.teachers[0], name), start.run("f64"));
        let mut updated = start.clone();
        for (key, tensor) in updated.teachers[0].iter_mut().filter(|(key, _)| !key.contains("running")) {
            *tensor = end[&format!("after.teacher.{key}")].clone();
        }
        let (first, second) = (once(&start), once(&updated));
        assert_eq!(distance(&first, &second) > 1e-9, moves);
        let wanted: Vec<f64> = (0..r.len()).map(|i| 0.81 * r[i] + 0.09 * first[i] + 0.1 * second[i]).collect();
        let off = distance(&values(&end, &after), &wanted);
        assert!(off < 1e-12, "{off:e}");
        if !moves {
            let wanted: Vec<f64> = (0..r.len()).map(|i| 0.81 * r[i] + 0.19 * first[i]).collect();
            assert!(distance(&values(&end, &after), &wanted) < 1e-12);
        }
    }
}

/// Anchored tensors and elements, and parameters of the projector, of a student and a teacher.
fn sizes(method: &Atsc, names: [&str; 2], classes: usize, image: [usize; 3]) -> [usize; 3] {
    let [student, teacher] = names.map(|name| NetworkSpec::new(name).build(classes).unwrap());
    let teachers = [teacher];
    let mut setting = Setting::new(classes, image, 100, 10);
    setting.teachers = vec![teachers[0].classifier()];
    let spec = method.spec(&setting).unwrap();
    let source = StepSource {
        method,
        spec: &spec,
        setting: &setting,
        student: student.as_ref(),
        teachers: &teachers,
        input: None,
        precision: Precision::F32,
        units: [2, 0],
        rolling_units: 2,
    };
    let states = source.training().graph.states;
    let anchors: Vec<_> = states.iter().filter(|s| s.kind == StateKind::Anchor).collect();
    let projector = states.iter().filter(|s| s.kind == StateKind::Param && s.name.starts_with("method.projector."));
    let elements = |s: &spec::State| s.shape.elements();
    [anchors.len(), anchors.iter().map(|s| elements(s)).sum(), projector.map(elements).sum()]
}

/// 4.13, oracle 7, and the table of projectors in 4.2.
#[test]
fn oracle_7_anchored_tensors_and_projectors_have_the_sizes_of_the_chapter() {
    let reference = Atsc { anchor_bn: false, ..Atsc::default() };
    let factor = |projector_factor| Atsc { projector_factor, ..reference.clone() };
    let small = [32, 32, 3];
    assert_eq!(sizes(&reference, ["resnet8x4", "resnet32x4"], 100, small), [35, 7_423_840, 214_016]);
    let large = [224, 224, 3];
    assert_eq!(sizes(&reference, ["resnet18", "resnet34"], 1000, large), [37, 21_779_648, 854_016]);
    assert_eq!(sizes(&factor(2), ["resnet18", "resnet50"], 1000, large), [54, 25_502_912, 12_066_816]);
    for (projector_factor, elements) in [(1, 787_968), (2, 246_784), (4, 86_784), (8, 34_432)] {
        assert_eq!(sizes(&factor(projector_factor), ["vgg8", "resnet32x4"], 100, small)[2], elements);
    }
    for (student, elements) in
        [("shufflev2", 240_640), ("shufflev2_1_5", 271_360), ("shufflev1", 304_128), ("mobilenetv2", 201_728)]
    {
        assert_eq!(sizes(&factor(2), [student, "resnet32x4"], 100, small)[2], elements, "{student}");
    }
}

/// 4.13, oracle 8.
#[test]
fn oracle_8_nothing_on_the_teachers_way_is_detached() {
    let replayed = Replayed::golden("atsc_ce_kd").steps(1);
    let main = |index: usize, by: f64| {
        let mut moved = replayed.clone();
        let stem = moved.teachers[0].get_mut("conv1.weight").unwrap();
        let mut values = stem.to_f64().unwrap();
        values[index] += by;
        *stem = HostTensor::new(stem.shape(), &values).unwrap();
        let got = moved.run("f64");
        scalar(&got, "loss") - scalar(&got, "loss.bias")
    };
    let wanted = values(&replayed.run("f64"), "grad.teacher.conv1.weight");
    for index in [0, 40, 200] {
        let slope = (main(index, 1e-6) - main(index, -1e-6)) / 2e-6;
        assert!((slope - wanted[index]).abs() < 1e-6 * wanted[index].abs().max(1.0), "{slope} {}", wanted[index]);
        assert!(wanted[index].abs() > 1e-3);
    }
}

/// 4.13, oracle 9.
#[test]
fn oracle_9_labels_enter_through_the_bias_alone() {
    let first = atsc(&[]).steps(1);
    let mut second = first.clone();
    let labels: Vec<i32> = first.batch["label"].view::<i32>().unwrap().iter().map(|l| (l + 2) % 5).collect();
    second.batch.insert("label".into(), ints(&labels));
    let (a, b) = (first.run("f64"), second.run("f64"));
    assert_ne!(values(&a, "loss.bias"), values(&b, "loss.bias"));
    for name in
        b.keys().filter(|k| !k.contains("top1") && !["loss", "loss.bias", "term.bias", "term.ce"].contains(&k.as_str()))
    {
        let of_bias = name.ends_with("teacher.fc.bias") && values(&b, name) != values(&a, name);
        assert!(of_bias || values(&a, name) == values(&b, name), "{name}");
    }
    assert_ne!(values(&a, "after.teacher.fc.bias"), values(&b, "after.teacher.fc.bias"));
}

/// 4.13, oracles 10 and 11: evaluation reads the student's trunk, the projector and the shared classifier.
#[test]
fn oracles_10_and_11_the_head_needs_no_teacher_trunk() {
    let [student, teacher] = ["resnet8", "resnet14"].map(|name| NetworkSpec::new(name).build(5).unwrap());
    let method = Box::new(Atsc::default());
    let mut bench =
        Bench::new(Parts { method, student, teachers: vec![teacher], classes: 5, image: [8, 8, 3], units: 3 });
    let pixels: Vec<f64> = (0..3 * 192).map(|i| (0.37 * i as f64).sin()).collect();
    let batch = [("image", tensor(&[3, 8, 8, 3], &pixels)), ("label", ints(&[0, 1, 2]))];
    let before = bench.evaluate(&batch);
    let trunk = bench.names("teacher.").into_iter().filter(|name| !name.starts_with("teacher.fc."));
    for name in trunk.chain(["student.fc.weight", "student.fc.bias"].map(String::from)).collect::<Vec<_>>() {
        let broken = vec![f64::NAN; bench.state(&name).len()];
        bench.set(&name, &broken);
    }
    assert_eq!(bench.evaluate(&batch), before, "neither the teacher's trunk nor the student's own classifier counts");
    let bias: Vec<f64> = bench.state("teacher.fc.bias").iter().map(|b| b + 1.0).collect();
    bench.set("teacher.fc.bias", &bias);
    let moved = bench.evaluate(&batch);
    assert!(moved.iter().zip(&before).all(|(m, b)| (m - b - 1.0).abs() < 1e-12));
    for name in ["student.conv1.weight", "method.projector.conv3.weight", "teacher.fc.weight"] {
        let kept = bench.state(name);
        bench.set(name, &kept.iter().map(|w| 0.5 * w).collect::<Vec<_>>());
        assert!(distance(&bench.evaluate(&batch), &moved) > 1e-6, "{name}");
        bench.set(name, &kept);
    }
}
