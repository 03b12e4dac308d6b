//! Three steps of SGD of each method on resnet8: loss terms, logits, gradients, norms, and the state after one and three.

use crate::engine::{Case, gradients, images, output, state, step};
use crate::golden::{Differences, Golden, names};
use methods::{BnGroups, Ce, Ips, Kd};
use nets::NetworkSpec;
use plan::{Fusion, OptimizerArgs};
use spec::Method;

fn method(golden: &Golden) -> Box<dyn Method> {
    let number = |key: &str| golden.attr[key].as_f64().unwrap();
    match golden.attr["method"].as_str().unwrap() {
        "ce" => Box::new(Ce::default()),
        "kd" => Box::new(Kd {
            temperature: number("temperature"),
            ce_weight: number("ce_weight"),
            kd_weight: number("kd_weight"),
        }),
        "ips" => Box::new(Ips {
            kl: serde_json::from_value(golden.attr["kl"].clone()).unwrap(),
            m: Some(golden.number("cell")),
            bn_groups: if golden.number("bn_groups") == 1 { BnGroups::Joint } else { BnGroups::Split },
            temperature: number("temperature"),
            alpha: number("alpha"),
            ..Ips::default()
        }),
        other => panic!("no method {other}"),
    }
}

fn case(golden: &Golden, fusion: Fusion) -> (Case, f64) {
    let (classes, side, sgd) = (golden.number("classes"), golden.number("side"), &golden.attr["sgd"]);
    let net = || NetworkSpec::new(golden.attr["net"].as_str().unwrap()).build(classes).unwrap();
    let optimizer = OptimizerArgs {
        momentum: sgd["momentum"].as_f64().unwrap(),
        nesterov: sgd["nesterov"].as_bool().unwrap(),
        weight_decay: sgd["weight_decay"].as_f64().unwrap(),
        clip_norm: golden.attr["clip_norm"].as_f64(),
        ..OptimizerArgs::default()
    };
    let teachers = if golden.attr["method"] == "kd" { vec![net()] } else { vec![] };
    let case = Case::new(method(golden), net(), classes, [side, side, 3]);
    (Case { teachers, fusion, optimizer, ..case }, sgd["lr"].as_f64().unwrap())
}

fn check(name: &str, fusion: Fusion) {
    let golden = Golden::open("steps", name);
    let mut found = Differences::new(format!("{name} {fusion:?}"));
    let mut compare = |key: &str, got: &[f64]| found.add(key, (got, &golden.get(key)), golden.tolerance);
    let (case, lr) = case(&golden, fusion);
    let image = golden.tensor("in.image.0").shape();
    let units = golden.tensor("in.label.0").shape()[0];
    let mut engine = case.engine::<f64>(units);
    for i in 0..3 {
        let labels = golden.tensor(&format!("in.label.{i}")).view::<i32>().unwrap().repeat(image[0] / units);
        let mut inputs = images(image.dims(), &golden.get(&format!("in.image.{i}")), &labels);
        if golden.after("in.mask.").next().is_some() {
            inputs.push(("draw.swap_mask".to_string(), golden.tensor(&format!("in.mask.{i}"))));
        }
        let values = step(&mut engine, inputs, lr);
        assert_eq!(values.nonfinite, None);
        compare(&format!("out.loss.{i}"), &[values.loss]);
        for (term, weighted, _) in &values.terms {
            compare(&format!("out.{term}.{i}"), &[*weighted]);
        }
        compare(&format!("out.logits.{i}"), &output(&engine, "logits"));
        if golden.after("out.norm.").next().is_some() {
            compare(&format!("out.norm.{i}"), &[values.grad_norm]);
        }
        if i == 0 {
            let grads = gradients(&engine);
            golden.after("grad.").for_each(|name| compare(&format!("grad.{name}"), &grads[name]));
        }
        let after = format!("out.after{}.", i + 1);
        golden.after(&after).for_each(|name| compare(&format!("{after}{name}"), &state(&engine, name)));
    }
}

macro_rules! steps {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), Fusion::Full);
            check(stringify!($name), Fusion::Off);
        })*

        #[test]
        fn every_golden_of_a_step_is_tested() {
            assert_eq!(names("steps"), [$(stringify!($name)),*]);
        }
    };
}

steps! { ce ce_clip ips_by_confidence ips_one_way_b_to_a ips_split ips_two_way_full ips_two_way_sg kd }
