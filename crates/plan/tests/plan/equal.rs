//! Fused and unfused plans compute equal losses, gradients, running statistics, momenta and averages.

use crate::support::{CLASSES, assert_equal, launches, options, run};
use methods::{Ips, Kd};
use nets::NetworkSpec;
use plan::{Fusion, StateTable, StepGraph, StepSource, compile};
use spec::{ImageArgs, Method, Precision, Section, Setting, StepInput};

fn step(method: &dyn Method, student: &str, teachers: &[&str], input: Option<StepInput>) -> StepGraph {
    let setting = Setting::new(CLASSES, [8, 8, 3], 64, 1);
    let net = |name: &str| NetworkSpec::new(name).build(CLASSES).unwrap();
    let teachers: Vec<_> = teachers.iter().map(|t| net(t)).collect();
    let (spec, student) = (method.spec(&setting).unwrap(), net(student));
    let source = StepSource {
        method,
        spec: &spec,
        setting: &setting,
        student: student.as_ref(),
        teachers: &teachers,
        input,
        precision: Precision::F64,
        units: [4, 0],
        rolling_units: 8,
    };
    source.training()
}

/// Losses and gradients to 1e-12, states after the step as well.
fn compare(name: &str, step: &StepGraph) {
    let (off, full) = (run(step, Fusion::Off), run(step, Fusion::Full));
    assert!(off.keys().filter(|k| k.contains("/grad/")).count() > 20, "{:?}", off.keys());
    assert_equal(name, &full, &off, 1e-12);
}

#[test]
fn ips_is_the_same_fused() {
    let image = ImageArgs { size: [8, 8], pad: 1, mean: [0.5; 3], std: [0.25; 3], crop: true, flip: true };
    let input = StepInput { pixels: [8, 8], image };
    let step = step(&Ips { m: Some(2), ..Ips::default() }, "resnet8", &[], Some(input));
    compare("ips", &step);
    let plan = compile(step, &options(Fusion::Full), &mut StateTable::default(), None).unwrap();
    let body = launches(&plan, Section::Body);
    let count = |end: &str| body.iter().filter(|l| l.ends_with(end)).count();
    assert_eq!(count(" image_swap"), 1, "{body:?}");
    assert_eq!(count(" row_losses"), 1, "{body:?}");
    assert_eq!(count(" relu") + count(" relu_grad") + count(" add") + count(" row_loss"), 0, "{body:?}");
}

#[test]
fn kd_is_the_same_fused() {
    let step = step(&Kd::default(), "resnet8", &["resnet14"], None);
    compare("kd", &step);
    let plan = compile(step, &options(Fusion::Full), &mut StateTable::default(), None).unwrap();
    let teacher: Vec<_> = launches(&plan, Section::Body).into_iter().filter(|l| l.starts_with("teacher/")).collect();
    assert!(!teacher.iter().any(|l| l.contains("bn_") || l.ends_with("relu") || l.ends_with("add")), "{teacher:?}");
    assert_eq!(teacher.iter().filter(|l| l.ends_with(" conv_act")).count(), 15, "{teacher:?}");
    assert_eq!(plan.section(0, Section::Prepare).len(), 15);
}

#[test]
fn kd_of_a_wide_network_is_the_same_fused() {
    compare("kd wrn", &step(&Kd::default(), "wrn_16_1", &["wrn_16_1"], None));
}
