//! Every network with a golden: evaluation with folded batch norms, and the training step of cross-entropy with taps,
//! gradients of all parameters and running statistics. In f64 unfused and fused, in f32, and in bf16.

use crate::engine::{Case, Inputs, gradients, images, output, state, step};
use crate::golden::{Differences, Golden, names};
use crate::wave::wave;
use cpu::Real;
use nets::{NetworkSpec, WrnBn};
use plan::Fusion;
use serde_json::Value;
use spec::{Losses, Method, Precision, Setting, Spec, Step};
use std::collections::BTreeMap;
use tensor::{HostTensor, KCRS_TO_KRSC, Shape};
use train::engine::{Engine, EvalValues};

/// Cross-entropy that shows the taps, averaged over height and width.
#[derive(Debug)]
struct Tapped;

impl Method for Tapped {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        Ok(Spec::default())
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let (taps, label) = (step.student(step.image()), step.label());
        let losses = Losses::new().term("ce", 1.0, taps.logits.cross_entropy(label)).logits(taps.logits, label);
        let stages = taps.stages.iter().map(|stage| stage.detach().mean_hw());
        let shown = stages.chain([taps.pooled]).enumerate();
        shown.fold(losses, |losses, (i, tap)| losses.output(&format!("tap.{i}"), tap))
    }
}

/// Of a golden network: its engine, and image and labels.
fn build<T: Real>(golden: &Golden, precision: Precision, fusion: Fusion) -> (Engine<cpu::Executor<T>>, Inputs) {
    // The goldens' wide networks move all running statistics once.
    let wide = golden.attr["net"].as_str().unwrap().starts_with("wrn_");
    build_with(golden, (precision, fusion), wide.then_some(WrnBn::Once))
}

fn build_with<T: Real>(
    golden: &Golden,
    (precision, fusion): (Precision, Fusion),
    wrn_bn: Option<WrnBn>,
) -> (Engine<cpu::Executor<T>>, Inputs) {
    let name = golden.attr["net"].as_str().unwrap();
    let classes = golden.number("classes");
    let published = name.strip_prefix("imagenet_").unwrap_or(name);
    let student = NetworkSpec { wrn_bn, ..NetworkSpec::new(published) }.build(classes).unwrap();
    let shape: Vec<usize> =
        golden.attr["image"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let labels = labels(golden);
    let image = HostTensor::new(Shape::new(&shape), &wave("image", shape.iter().product())).unwrap();
    let image = image.permute4(KCRS_TO_KRSC).unwrap();
    let inputs = images(image.shape().dims(), image.view().unwrap(), &labels);
    let [n, h, w, c] = [0, 1, 2, 3].map(|axis| image.shape()[axis]);
    let case = Case { precision, fusion, ..Case::new(Box::new(Tapped), student, classes, [h, w, c]) };
    (case.engine(n), inputs)
}

fn labels(golden: &Golden) -> Vec<i32> {
    golden.attr["labels"].as_array().unwrap().iter().map(|l| l.as_i64().unwrap() as i32).collect()
}

fn tolerance(golden: &Golden, kind: &str) -> f64 {
    golden.attr["tolerance"][kind].as_f64().unwrap()
}

/// A large tensor as the file has it: every stride-th element.
fn sampled(golden: &Golden, values: &[f64]) -> Vec<f64> {
    let stride = values.len().div_ceil(golden.number("sample"));
    values.iter().copied().step_by(stride.max(1)).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

fn evaluation(golden: &Golden, found: &mut Differences, values: &EvalValues, tolerance: f64) {
    let expected = golden.get("out.logits");
    found.add("out.logits", (&values.logits, &expected), tolerance);
    let classes = golden.number("classes");
    let rows = expected.chunks(classes).zip(labels(golden));
    let loss = rows.map(|(row, label)| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + row.iter().map(|z| (z - max).exp()).sum::<f64>().ln() - row[label as usize]
    });
    found.add("loss of out.logits", (&[values.loss_sum], &[loss.sum()]), tolerance * 10.0);
    let rank = |(row, label): (&[f64], i32)| row.iter().filter(|z| **z > row[label as usize]).count();
    let within = |k: usize| expected.chunks(classes).zip(labels(golden)).filter(|row| rank(*row) < k).count() as u64;
    assert_eq!((values.top1, values.top5), (within(1), within(5)));
}

fn gradient(found: &mut Differences, golden: &Golden, grads: &BTreeMap<String, Vec<f64>>) {
    let tolerance = tolerance(golden, "gradient");
    // Biases that a batch norm takes away again: their gradient is rounding alone.
    let none: &Vec<Value> = golden.attr["zero"].as_array().unwrap_or(const { &Vec::new() });
    let mut checked = 0;
    for (name, grad) in grads {
        if none.iter().any(|zero| zero == name) {
            let weight = &grads[&format!("{}.weight", name.strip_suffix(".bias").unwrap())];
            let share = norm(grad.iter().copied()) / norm(weight.iter().copied());
            found.add(&format!("grad.{name} against its weight's"), (&[1.0 + share], &[1.0]), 1e-9);
            continue;
        }
        let mark = wave(&format!("mark.{name}"), grad.len());
        let marked = norm(grad.iter().zip(mark).map(|(g, u)| g * (1.5 + u)));
        for (key, value) in [("gradnorm", norm(grad.iter().copied())), ("gradmark", marked)] {
            let key = format!("{key}.{name}");
            found.add(&key, (&[value], &golden.get(&key)), tolerance);
            checked += 1;
        }
    }
    assert_eq!(checked, golden.after("gradnorm.").chain(golden.after("gradmark.")).count(), "every parameter");
    for name in golden.after("grad.") {
        found.add(
            &format!("grad.{name}"),
            (&sampled(golden, &grads[name]), &golden.get(&format!("grad.{name}"))),
            tolerance,
        );
    }
}

fn in_f64(name: &str, fusion: Fusion) {
    let golden = Golden::open("nets", name);
    let mut found = Differences::new(format!("{name} f64 {fusion:?}"));
    let (mut engine, inputs) = build::<f64>(&golden, Precision::F64, fusion);
    let values = engine.evaluate(&inputs).unwrap();
    evaluation(&golden, &mut found, &values, tolerance(&golden, "eval"));
    engine.end_evaluation();
    let values = step(&mut engine, inputs, 0.0);
    let train = tolerance(&golden, "train");
    let mut compare = |key: &str, got: &[f64]| found.add(key, (&sampled(&golden, got), &golden.get(key)), train);
    compare("out.loss", &[values.loss]);
    compare("out.logits_train", &output(&engine, "logits"));
    for tap in golden.after("out.tap.") {
        compare(&format!("out.tap.{tap}"), &output(&engine, &format!("tap.{tap}")));
    }
    for bn in golden.attr["bn"].as_array().unwrap().iter().map(|bn| bn.as_str().unwrap()) {
        for field in ["running_mean", "running_var"] {
            compare(&format!("out.{bn}.{field}"), &state(&engine, &format!("{bn}.{field}")));
        }
    }
    let grads = gradients(&engine);
    gradient(&mut found, &golden, &grads);
    let norms = norm(grads.values().map(|g| norm(g.iter().copied())));
    found.add("global gradient norm", (&[values.grad_norm], &[norms]), 1e-10);
}

/// Evaluation within 1e-5. A training forward amplifies roundings: the file's tolerance is a hundred times what those of f64
/// do, and f32's are 2²⁹ larger; a twentieth of that, where it means anything.
fn in_f32(name: &str) {
    let golden = Golden::open("nets", name);
    let mut found = Differences::new(format!("{name} f32"));
    let (mut engine, inputs) = build::<f32>(&golden, Precision::F32, Fusion::Full);
    let values = engine.evaluate(&inputs).unwrap();
    evaluation(&golden, &mut found, &values, 1e-5);
    let train = tolerance(&golden, "train") * f64::from(1 << 29) / 20.0;
    if train < 0.05 {
        engine.end_evaluation();
        let values = step(&mut engine, inputs, 0.0);
        found.add("out.loss", (&[values.loss], &golden.get("out.loss")), train);
        found.add("out.logits_train", (&output(&engine, "logits"), &golden.get("out.logits_train")), train);
    }
}

/// Networks that take long in f64 are not run unfused too; their families are, by others.
const LARGE: [&str; 15] = [
    "resnet110",
    "resnet32x4",
    "cifar_resnet18",
    "cifar_resnet34",
    "cifar_resnet50",
    "imagenet_resnet34",
    "imagenet_resnext50_32x4d",
    "resnet10x2_imagenet",
    "skl_resnet50",
    "mixskd_resnet18",
    "vgg11",
    "vgg13",
    "preact_resnet18",
    "mobilenetv2_tinyimagenet",
    "cifar_densenet121",
];

macro_rules! networks {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let name = stringify!($name);
            in_f64(name, Fusion::Full);
            if !LARGE.contains(&name) {
                in_f64(name, Fusion::Off);
            }
            in_f32(name);
        })*

        #[test]
        fn every_network_with_a_golden_is_tested() {
            assert_eq!(names("nets"), [$(stringify!($name)),*]);
        }
    };
}

networks! {
    cifar_densenet121 cifar_resnet18 cifar_resnet34 cifar_resnet50 densenet121 densenet40_12 imagenet_resnet18
    imagenet_resnet34 imagenet_resnet50 imagenet_resnext50_32x4d linear mixskd_resnet18 mobilenet_v2 mobilenetv1
    mobilenetv2 mobilenetv2_tinyimagenet preact_resnet10 preact_resnet18 resnet10x2_imagenet resnet110 resnet14
    resnet20 resnet32 resnet32x4 resnet44 resnet56 resnet8 resnet8x4 shufflenet_v2_x1_0 shufflev1 shufflev2
    skl_resnet50 vgg11 vgg13 vgg8 wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2
}

#[test]
fn fusion_takes_launches_away() {
    let golden = Golden::open("nets", "resnet8");
    let launches = |fusion| build::<f64>(&golden, Precision::F64, fusion).0.plan().launches.len();
    assert!(launches(Fusion::Full) < launches(Fusion::Off));
}

/// A training forward of cifar_resnet18 amplifies roundings of bf16 to nonsense (f32's, 2¹⁵ smaller, are at 1e-4 there).
#[test]
fn bf16_is_near_f64() {
    // The last three evaluate depthwise and grouped convolutions, shuffles, concatenations, and a convolution as classifier.
    for name in ["resnet8", "cifar_resnet18", "shufflev1", "densenet40_12", "mobilenetv2_tinyimagenet"] {
        let golden = Golden::open("nets", name);
        let mut found = Differences::new(format!("{name} bf16"));
        let (mut engine, inputs) = build::<f32>(&golden, Precision::Bf16, Fusion::Full);
        let values = engine.evaluate(&inputs).unwrap();
        evaluation(&golden, &mut found, &values, 2e-2);
        if name == "resnet8" {
            engine.end_evaluation();
            let values = step(&mut engine, inputs, 0.0);
            found.add("out.loss", (&[values.loss], &golden.get("out.loss")), 2e-2);
            found.add("out.logits_train", (&output(&engine, "logits"), &golden.get("out.logits_train")), 4e-2);
            let norms: Vec<_> = golden.after("gradnorm.").flat_map(|p| golden.get(&format!("gradnorm.{p}"))).collect();
            found.add("gradient norm", (&[values.grad_norm], &[norm(norms.into_iter())]), 4e-2);
        }
    }
}

/// r ← 0.9 r + 0.1 s once is the golden's; twice is that of it again.
#[test]
fn wide_networks_move_the_last_running_statistics_twice() {
    let golden = Golden::open("nets", "wrn_16_1");
    let mut found = Differences::new("wrn_16_1 twice".to_string());
    let (mut engine, inputs) = build_with::<f64>(&golden, (Precision::F64, Fusion::Full), Some(WrnBn::Twice));
    let before = ["running_mean", "running_var"].map(|field| state(&engine, &format!("bn1.{field}")));
    step(&mut engine, inputs, 0.0);
    for (field, before) in ["running_mean", "running_var"].iter().zip(before) {
        let once = golden.get(&format!("out.bn1.{field}"));
        let twice: Vec<f64> = once.iter().zip(before).map(|(once, before)| 1.9 * once - 0.9 * before).collect();
        found.add(field, (&state(&engine, &format!("bn1.{field}")), &twice), tolerance(&golden, "train"));
        let first = format!("block1.layer.0.bn1.{field}");
        found.add(&first, (&state(&engine, &first), &golden.get(&format!("out.{first}"))), tolerance(&golden, "train"));
    }
}
