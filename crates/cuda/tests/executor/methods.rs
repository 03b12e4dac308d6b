//! Every method on a small network: node by node in f32 and bf16, and whole steps of two micro-batches.

use crate::machine::{CLASSES, Model};
use crate::{nodes, steps};
use methods::MethodSpec;
use spec::{Precision, Setting};

fn model(name: &str, precision: Precision) -> Model {
    let method: MethodSpec = toml::from_str(&format!("name = \"{name}\"")).expect("a method with defaults");
    let method = method.build();
    let spec = method.spec(&Setting::new(CLASSES, [8, 8, 3], 64, 1)).unwrap_or_else(|e| panic!("{name}: {e}"));
    Model { method, student: "resnet8", teachers: vec!["resnet8"; spec.teachers], precision, side: 8 }
}

#[test]
fn every_node_of_every_method() {
    for name in MethodSpec::names() {
        nodes::compare(&format!("{name} f32"), &model(name, Precision::F32), 1e-4);
        nodes::compare(&format!("{name} bf16"), &model(name, Precision::Bf16), 5e-3);
    }
}

#[test]
fn steps_of_every_method() {
    for name in MethodSpec::names() {
        steps::compare(&format!("{name} f32"), &model(name, Precision::F32), &[4, 4], 1e-3);
    }
}

/// On sixteen images of 16 × 16 and four layers, where batch norms amplify roundings little.
#[test]
fn three_steps_of_every_method_in_bf16() {
    for name in MethodSpec::names() {
        let model = model(name, Precision::Bf16);
        let teachers = vec!["tiny"; model.teachers.len()];
        steps::compare_three(name, &Model { student: "tiny", teachers, side: 16, ..model }, 16);
    }
}
