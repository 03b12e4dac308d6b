//! A case of every method whose batch norms see enough images for bf16 (tests/goldens/bf16, PyTorch, f64), run as `retort step` runs it.
//!
//! Files are as those of tests/goldens/methods but hold no images: these, `attr.images` names and shapes, and all weights come from
//! formulas of integers, so that both sides have the same bits.

use crate::each_of;
use crate::golden::{Differences, Golden};
use crate::replayed::{Replayed, prefix, tensor};
use crate::wave::fnv1a;

/// The upper `count` bits of (i + FNV-1a of the name) mod 2³², mixed as in the last step of MurmurHash3.
fn bits(name: &str, count: u32, elements: usize) -> Vec<f64> {
    let mixed = |i: usize| {
        let mut h = (i as u32).wrapping_add(fnv1a(name));
        h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
        h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
        f64::from((h ^ (h >> 16)) >> (32 - count))
    };
    (0..elements).map(mixed).collect()
}

/// A parameter or buffer of this published name and shape, row-major.
fn weight(name: &str, shape: &[usize]) -> Vec<f64> {
    let u = bits(name, 16, shape.iter().product()).into_iter().map(|bits| (bits - 32767.5) / 32768.0);
    let fan_in = shape[1..].iter().product::<usize>() as f64;
    match (name.rsplit('.').next().unwrap(), shape.len()) {
        ("running_var", _) => u.map(|u| 1.0 + 0.5 * u * u).collect(),
        ("running_mean" | "bias", _) => u.map(|u| 0.1 * u).collect(),
        (_, 1) => u.map(|u| 1.0 + 0.1 * u).collect(),
        (_, rank) => u.map(|u| (if rank == 4 { 6.0 } else { 1.0 } / fan_in).sqrt() * u).collect(),
    }
}

/// Images [rows, 3, side, side], NCHW: multiples of 1/64 of at most eight bits, the sum of a level of each image and channel, of cells
/// of 4 × 4 pixels, and of pixels.
fn images(name: &str, shape: &[usize]) -> Vec<f64> {
    let (planes, side) = (shape[0] * shape[1], shape[2]);
    let part = |kind: &str, cell: usize| {
        let cells = side / cell;
        let values = bits(&format!("{name}.{kind}"), 7, planes * cells * cells);
        move |plane: usize, y: usize, x: usize| values[(plane * cells + y / cell) * cells + x / cell] - 64.0
    };
    let (level, cell, pixel) = (part("level", side), part("cell", 4), part("pixel", 1));
    let at = |i: usize| {
        let (plane, y, x) = (i / (side * side), i / side % side, i % side);
        (level(plane, y, x) + cell(plane, y, x) + pixel(plane, y, x)) / 64.0
    };
    (0..planes * side * side).map(at).collect()
}

fn replayed(golden: &Golden) -> Replayed {
    let mut run = Replayed::of(golden);
    let teachers = run.teachers.iter_mut().enumerate().map(|(i, teacher)| (prefix(i), teacher));
    for (prefix, module) in teachers.chain([(String::new(), &mut run.weights)]) {
        for (name, value) in module.iter_mut() {
            let dims = value.shape().dims().to_vec();
            *value = tensor(&dims, &weight(&format!("{prefix}{name}"), &dims));
        }
    }
    for (name, dims) in golden.attr["images"].as_object().unwrap() {
        let dims: Vec<usize> = serde_json::from_value(dims.clone()).unwrap();
        let salted = format!("{}{name}", golden.attr["salt"].as_str().unwrap());
        run.batch.insert(name.clone(), tensor(&dims, &images(&salted, &dims)));
    }
    run
}

/// Compares what the step wrote under the names wanted.
fn check(name: &str, precision: &str, tolerance: f64, wanted: fn(&str) -> bool) {
    let golden = Golden::open("bf16", name);
    let results = replayed(&golden).run(precision);
    let mut found = Differences::new(format!("{name} {precision}"));
    for key in golden.after("out.").filter(|key| wanted(key)) {
        let got = results.get(key).unwrap_or_else(|| panic!("{name}: the step wrote no {key}: {:?}", results.keys()));
        found.add(key, (&got.to_f64().unwrap(), &golden.get(&format!("out.{key}"))), tolerance);
    }
}

#[test]
fn large_goldens_of_methods_in_f64() {
    each_of("bf16", |name| check(name, "f64", 1e-9, |_| true));
}

#[test]
fn large_goldens_of_methods_in_f32() {
    each_of("bf16", |name| check(name, "f32", 1e-4, |_| true));
}

/// Total and every term of each step, and the logits of students and teachers; activations and weights rounded to bf16.
#[test]
fn large_goldens_of_methods_in_bf16() {
    let wanted = |key: &str| key.contains("loss") || key.contains("logits");
    each_of("bf16", |name| check(name, "bf16", 2e-2, wanted));
}

/// Every method of the program has a golden here.
#[test]
fn every_method_has_a_large_golden() {
    let recipes: Vec<_> =
        crate::golden::names("bf16").iter().map(|name| Replayed::of(&Golden::open("bf16", name)).recipe).collect();
    for method in methods::MethodSpec::names() {
        let section = format!("[method]\nname = \"{method}\"\n");
        assert!(recipes.iter().any(|text| text.contains(&section)), "{method}");
    }
}
