//! Every method on a small network: node by node in f32 and bf16, and whole steps of two micro-batches.

use crate::machine::{CLASSES, Model};
use crate::{nodes, steps};
use methods::MethodSpec;
use spec::{Precision, Setting};

fn model(name: &str, precision: Precision, side: usize) -> Model {
    let method: MethodSpec = toml::from_str(&format!("name = \"{name}\"")).expect("a method with defaults");
    let method = method.build();
    let spec = method.spec(&Setting::new(CLASSES, [side, side, 3], 64, 1)).unwrap_or_else(|e| panic!("{name}: {e}"));
    Model { method, student: "resnet8", teachers: vec!["resnet8"; spec.teachers], precision, side }
}

#[test]
fn every_node_of_every_method() {
    for name in MethodSpec::names() {
        nodes::compare(&format!("{name} f32"), &model(name, Precision::F32, 8), 1e-4);
        nodes::compare(&format!("{name} bf16"), &model(name, Precision::Bf16, 8), 5e-3);
    }
}

#[test]
fn steps_of_every_method() {
    for name in MethodSpec::names() {
        steps::compare(&format!("{name} f32"), &model(name, Precision::F32, 8), &[4, 4], 1e-3);
    }
}

#[test]
fn steps_of_every_method_in_bf16() {
    let get = |n: &str, d: usize| std::env::var(n).ok().map_or(d, |v| v.parse().unwrap());
    let (side, rows) = (get("SIDE", 16), get("ROWS", 16));
    for name in MethodSpec::names()
        .into_iter()
        .filter(|n| std::env::var("ONLY").map_or(true, |o| o.split(',').any(|x| x == *n)))
    {
        let t = std::time::Instant::now();
        let n: &'static str = if std::env::var_os("TINY").is_some() { "tiny" } else { "resnet8" };
        let m = model(name, Precision::Bf16, side);
        let m = Model { student: n, teachers: vec![n; m.teachers.len()], ..m };
        steps::compare_bf16(&format!("{name} bf16"), &m, rows, [1e9; 3]);
        println!("{:?}", t.elapsed());
    }
}
