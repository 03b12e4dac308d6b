//! A golden as the files of `retort step`.

use crate::golden::{Golden, distance};
use crate::wave;
use serde_json::Value;
use std::path::Path;
use tensor::safe::{self, Metadata, Tensors};
use tensor::{HostTensor, Shape};
use train::recipe::Recipe;
use train::{ReplayOptions, Warmup};

/// Recipe, weights, teachers and batch; a test may change each before it runs them.
#[derive(Clone)]
pub(crate) struct Replayed {
    pub(crate) recipe: String,
    pub(crate) weights: Tensors,
    pub(crate) teachers: Vec<Tensors>,
    pub(crate) batch: Tensors,
    pub(crate) steps: usize,
    pub(crate) epoch: usize,
    /// Settings changed: `method.alpha=0.5`.
    pub(crate) edits: Vec<String>,
}

impl Replayed {
    pub(crate) fn of(golden: &Golden) -> Replayed {
        let teachers = golden.attr["teachers"].as_array().cloned().unwrap_or_default();
        let number = |key: &str, default| golden.attr[key].as_u64().map_or(default, |n| n as usize);
        Replayed {
            recipe: golden.attr["recipe"].as_str().unwrap().to_string(),
            weights: module("", &golden.attr["weights"]),
            teachers: teachers.iter().enumerate().map(|(i, t)| module(&prefix(i), t)).collect(),
            batch: golden.after("in.").map(|name| (name.to_string(), golden.tensor(&format!("in.{name}")))).collect(),
            steps: number("steps", 1),
            epoch: number("epoch", 0),
            edits: vec![],
        }
    }

    /// The golden of this name.
    pub(crate) fn golden(name: &str) -> Replayed {
        Replayed::of(&Golden::open("methods", name))
    }

    /// The same with settings changed.
    pub(crate) fn with(&self, edits: &[&str]) -> Replayed {
        let mut changed = self.clone();
        changed.edits.extend(edits.iter().map(|e| e.to_string()));
        changed
    }

    /// The same with other steps on the batch.
    pub(crate) fn steps(&self, steps: usize) -> Replayed {
        Replayed { steps, ..self.clone() }
    }

    /// What the steps write.
    pub(crate) fn run(&self, precision: &str) -> Tensors {
        self.try_run(precision).unwrap_or_else(|e| panic!("{e}\n{}", self.recipe))
    }

    pub(crate) fn try_run(&self, precision: &str) -> Result<Tensors, train::TrainError> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, tensors: &Tensors| {
            let path = folder.path().join(name);
            safe::write(&path, tensors, &Metadata::new()).unwrap();
            path
        };
        let teachers =
            self.teachers.iter().enumerate().map(|(i, t)| write(&format!("teacher{i}.safetensors"), t)).collect();
        let options = ReplayOptions {
            weights: write("weights.safetensors", &self.weights),
            teachers,
            batch: write("batch.safetensors", &self.batch),
            out: folder.path().join("out.safetensors"),
            device: None,
            steps: self.steps,
            epoch: self.epoch,
            warmup: Warmup::Off,
        };
        let mut edits = self.edits.clone();
        edits.push(format!("train.precision=\"{precision}\""));
        let loaded = Recipe::parse(self.recipe.clone(), Path::new("golden.toml"), &edits)?;
        train::replay(loaded, &options)
    }
}

/// Floats of these sizes.
pub(crate) fn tensor(dims: &[usize], values: &[f64]) -> HostTensor {
    HostTensor::new(Shape::new(dims), values).unwrap()
}

/// Integers in a row.
pub(crate) fn ints(values: &[i32]) -> HostTensor {
    HostTensor::new(Shape::new(&[values.len()]), values).unwrap()
}

/// Values of a tensor that must be there.
pub(crate) fn values(tensors: &Tensors, name: &str) -> Vec<f64> {
    tensors.get(name).unwrap_or_else(|| panic!("{name}: {:?}", tensors.keys())).to_f64().unwrap()
}

pub(crate) fn scalar(tensors: &Tensors, name: &str) -> f64 {
    values(tensors, name)[0]
}

/// Largest magnitude of a gradient; 0 where it is absent.
pub(crate) fn gradient(tensors: &Tensors, name: &str) -> f64 {
    tensors.get(&format!("grad.{name}")).map_or(0.0, |t| largest(&t.to_f64().unwrap()))
}

pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m: f64, v| m.max(v.abs()))
}

/// Names that begin with a prefix are equal in both, up to `tolerance` of ‖a − b‖ / ‖b‖.
pub(crate) fn same(a: &Tensors, b: &Tensors, prefix: &str, tolerance: f64) {
    let names: Vec<_> = b.keys().filter(|k| k.starts_with(prefix)).collect();
    assert!(!names.is_empty(), "{prefix}: {:?}", b.keys());
    for name in names {
        let off = distance(&values(a, name), &values(b, name));
        assert!(off <= tolerance, "{name}: {off:e}");
    }
}

/// `teacher.`, `teacher2.`, …: what is hashed before the names of a teacher.
pub(crate) fn prefix(i: usize) -> String {
    if i == 0 { "teacher.".to_string() } else { format!("teacher{}.", i + 1) }
}

fn module(prefix: &str, shapes: &Value) -> Tensors {
    let shapes = shapes.as_object().unwrap().iter();
    shapes
        .map(|(name, dims)| {
            let dims: Vec<usize> = dims.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
            let values = wave::weight(prefix, name, &dims);
            (name.clone(), HostTensor::new(Shape::new(&dims), &values).unwrap())
        })
        .collect()
}
