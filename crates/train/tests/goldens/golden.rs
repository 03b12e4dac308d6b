//! The files of `tests/goldens`, and the comparison with them.

use serde_json::Value;
use std::path::PathBuf;
use tensor::{HostTensor, SafeFile};

pub(crate) fn folder(part: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(part)
}

/// Names of the files of a part, sorted.
pub(crate) fn names(part: &str) -> Vec<String> {
    let paths = std::fs::read_dir(folder(part)).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
    let mut names: Vec<_> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string()).collect();
    names.sort();
    names
}

/// A file and its attributes.
pub(crate) struct Golden {
    file: SafeFile,
    pub(crate) attr: Value,
    pub(crate) tolerance: f64,
}

impl Golden {
    pub(crate) fn open(part: &str, name: &str) -> Golden {
        let file = SafeFile::open(&folder(part).join(format!("{name}.safetensors"))).unwrap();
        let attr = serde_json::from_str(&file.metadata()["attr"]).unwrap();
        let tolerance = file.metadata()["tolerance"].parse().unwrap();
        Golden { file, attr, tolerance }
    }

    pub(crate) fn tensor(&self, name: &str) -> HostTensor {
        self.file.tensor(name).unwrap()
    }

    pub(crate) fn get(&self, name: &str) -> Vec<f64> {
        self.tensor(name).to_f64().unwrap()
    }

    /// What follows `prefix` in the names that begin with it.
    pub(crate) fn after<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.file.names().filter_map(move |name| name.strip_prefix(prefix))
    }

    pub(crate) fn number(&self, key: &str) -> usize {
        self.attr[key].as_u64().unwrap() as usize
    }
}

/// ‖a − b‖ / ‖b‖.
pub(crate) fn distance(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(expected).map(|(g, e)| g - e));
    let scale = norm(&mut expected.iter().copied());
    if scale > 0.0 { off / scale } else { off }
}

/// Differences found, so that a failure shows all of them.
pub(crate) struct Differences {
    of: String,
    /// The largest share of a tolerance, and whose it is.
    worst: (f64, String),
    beyond: Vec<String>,
}

impl Differences {
    pub(crate) fn new(of: String) -> Differences {
        Differences { of, worst: (0.0, String::new()), beyond: vec![] }
    }

    pub(crate) fn add(&mut self, what: &str, (got, expected): (&[f64], &[f64]), tolerance: f64) {
        let distance = distance(got, expected);
        let text = format!("{what}: {distance:.1e}, tolerance {tolerance:.0e}");
        if distance / tolerance > self.worst.0 {
            self.worst = (distance / tolerance, text.clone());
        }
        // Not `>`: NaN is beyond any tolerance.
        if !matches!(distance.partial_cmp(&tolerance), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            self.beyond.push(text);
        }
    }
}

impl Drop for Differences {
    fn drop(&mut self) {
        println!("{}: worst {}", self.of, self.worst.1);
        if !std::thread::panicking() {
            assert!(self.beyond.is_empty(), "{}:\n{}", self.of, self.beyond.join("\n"));
        }
    }
}
