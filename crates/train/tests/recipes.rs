//! Every shipped recipe: its step can be described, and it takes a finite step on a cut-down batch of made-up images and weights.

#[path = "../../nets/tests/support/wave.rs"]
mod wave;

use std::path::{Path, PathBuf};
use tensor::safe::{self, Metadata, Tensors};
use tensor::{HostTensor, Shape};
use train::recipe::Recipe;
use train::{ReplayOptions, WantedTensor, Warmup, describe};

/// Units of the batch.
const UNITS: usize = 2;
/// Largest side of the images: networks pool globally, so what is built for 224 pixels also runs on 32.
const SIDE: usize = 32;

/// All recipes below a folder.
fn recipes(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { recipes(&path) } else { vec![path] }).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    found.sort();
    found
}

/// The sizes of a wanted tensor for `UNITS` units, image sides cut to `side`.
fn sizes(wanted: &WantedTensor, side: usize) -> Vec<usize> {
    let image = wanted.name.contains("image");
    let size = |(axis, text): (usize, &String)| {
        let number = |text: &str| if text.is_empty() { 1 } else { text.parse().unwrap() };
        match text.strip_suffix(['n', 'm']) {
            Some(rows) => UNITS * number(rows),
            None if image && axis >= 2 => number(text).min(side),
            None => number(text),
        }
    };
    wanted.shape.iter().enumerate().map(size).collect()
}

fn parameter(prefix: &str, wanted: &WantedTensor) -> HostTensor {
    let dims = sizes(wanted, SIDE);
    HostTensor::new(Shape::new(&dims), &wave::weight(prefix, &wanted.name, &dims)).unwrap()
}

fn batch_tensor(wanted: &WantedTensor, side: usize) -> HostTensor {
    let dims = sizes(wanted, side);
    let (shape, elements) = (Shape::new(&dims), dims.iter().product::<usize>());
    if wanted.dtype == "int" {
        let most = if wanted.name == "draw.swap_mask" { 2 } else { UNITS as i32 };
        let values: Vec<i32> = (0..elements as i32).map(|i| i % most).collect();
        return HostTensor::new(shape, &values).unwrap();
    }
    let values = wave::wave(&wanted.name, elements);
    let share = |u: f64| if wanted.name.starts_with("draw.") { 0.5 + 0.2 * u } else { u };
    HostTensor::new(shape, &values.into_iter().map(share).collect::<Vec<_>>()).unwrap()
}

fn take_a_step(path: &Path) -> Result<Tensors, Box<dyn std::error::Error>> {
    let load = || Recipe::load(path, &["train.precision=\"f32\"".to_string()]);
    let wanted = describe(load()?)?;
    // The cells of a swap mask are those of the full image.
    let side = if wanted.batch.iter().any(|w| w.name == "draw.swap_mask") { usize::MAX } else { SIDE };
    let folder = tempfile::tempdir()?;
    let write = |name: String, tensors: Tensors| {
        let path = folder.path().join(name);
        safe::write(&path, &tensors, &Metadata::new()).map(|()| path)
    };
    let module = |prefix: &str, list: &[WantedTensor]| -> Tensors {
        list.iter().map(|w| (w.name.clone(), parameter(prefix, w))).collect()
    };
    let teachers = wanted.teachers.iter().enumerate().map(|(i, t)| write(format!("teacher{i}"), module("teacher.", t)));
    let options = ReplayOptions {
        weights: write("weights".to_string(), module("", &wanted.weights))?,
        teachers: teachers.collect::<Result<_, _>>()?,
        batch: write(
            "batch".to_string(),
            wanted.batch.iter().map(|w| (w.name.clone(), batch_tensor(w, side))).collect(),
        )?,
        out: folder.path().join("out"),
        device: None,
        steps: 1,
        epoch: 0,
        warmup: Warmup::Off,
    };
    Ok(train::replay(load()?, &options)?)
}

/// Steps of all recipes in a folder of `configs`.
fn all_of(folder: &str, least: usize) {
    let configs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let all = recipes(&configs.join(folder));
    assert!(all.len() >= least, "{} recipes in {folder}", all.len());
    let mut wrong = Vec::new();
    for path in all {
        let name = path.strip_prefix(&configs).unwrap().display().to_string();
        match take_a_step(&path) {
            Ok(results) => {
                let loss = results["loss"].to_f64().unwrap()[0];
                println!("{name}: {loss:.4}");
                let moved = results.keys().any(|key| key.starts_with("grad."));
                if !loss.is_finite() || !moved {
                    wrong.push(format!("{name}: loss {loss}, gradients {moved}"));
                }
            }
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_recipe_of_fashion_takes_a_step() {
    all_of("fashion", 24);
}

#[test]
fn every_recipe_of_cifar100_takes_a_step() {
    all_of("cifar100", 44);
}

#[test]
fn every_recipe_of_tiny_imagenet_takes_a_step() {
    all_of("tiny-imagenet", 4);
}

#[test]
fn every_recipe_of_imagenet_takes_a_step() {
    all_of("imagenet", 13);
}

#[test]
fn no_recipe_is_left_out() {
    let configs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let count = |folder: &str| recipes(&configs.join(folder)).len();
    let tested: usize = ["fashion", "cifar100", "tiny-imagenet", "imagenet"].map(count).iter().sum();
    assert_eq!(tested + 1, recipes(&configs).len(), "the quickstart alone lies beside the folders");
}
