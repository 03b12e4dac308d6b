//! Networks whose logits are their weights: linear probes on one-hot rows, so that losses and gradients are those at the logits.

use crate::replayed::{Replayed, ints, scalar, tensor, values};
use std::collections::BTreeMap;
use tensor::safe::Tensors;

/// Logits, a row per image.
pub(crate) type Rows = Vec<Vec<f64>>;

/// A student's logits, a teacher's and labels. Views follow each other: row `v n + i` is image i of view v.
#[derive(Clone)]
pub(crate) struct Probe {
    /// The recipe's `[method]`, TOML.
    pub(crate) method: String,
    pub(crate) views: &'static [&'static str],
    pub(crate) student: Rows,
    pub(crate) teacher: Option<Rows>,
    pub(crate) labels: Vec<i32>,
}

/// What a probe's step computed.
pub(crate) struct Probed {
    pub(crate) all: Tensors,
    /// Gradient at the student's logits.
    pub(crate) gradient: Rows,
}

impl Probe {
    pub(crate) fn replayed(&self) -> Replayed {
        let rows = self.student.len();
        let teacher = if self.teacher.is_some() { "[[teacher]]\nname = \"linear\"\nweights = \"t\"\n" } else { "" };
        let recipe = format!(
            "[data]\nset = \"cifar100\"\nfolder = \".\"\n[network]\nname = \"linear\"\n{teacher}[method]\n{}\n\
             [train]\nepochs = 1\nglobal_batch = {rows}\n[optimizer]\nname = \"sgd\"\nlr = 0.1\n",
            self.method
        );
        let one_hot = |from: usize, n: usize| -> Vec<f64> {
            (0..n * rows).map(|i| f64::from(u8::from(i % rows == from + i / rows))).collect()
        };
        let mut batch: Tensors = BTreeMap::from([("label".to_string(), ints(&self.labels))]);
        let n = rows / self.views.len().max(1);
        if self.views.is_empty() {
            batch.insert("feature".into(), tensor(&[rows, rows], &one_hot(0, rows)));
        }
        for (v, view) in self.views.iter().enumerate() {
            batch.insert(format!("image.{view}"), tensor(&[n, rows, 1, 1], &one_hot(v * n, n)));
        }
        let (weights, teachers) = (weight(&self.student), self.teacher.iter().map(weight).collect());
        Replayed { recipe, weights, teachers, batch, steps: 1, epoch: 0, edits: vec![] }
    }

    pub(crate) fn run(&self) -> Probed {
        let all = self.replayed().run("f64");
        let (rows, classes) = (self.student.len(), self.student[0].len());
        // Absent where every term is.
        let flat =
            if all.contains_key("grad.fc.weight") { values(&all, "grad.fc.weight") } else { vec![0.0; rows * classes] };
        let gradient = (0..rows).map(|r| (0..classes).map(|c| flat[c * rows + r]).collect()).collect();
        Probed { all, gradient }
    }

    pub(crate) fn loss(&self) -> f64 {
        self.run().get("loss")
    }

    /// Central differences of the loss, for every logit of the student.
    pub(crate) fn differences(&self, h: f64) -> Rows {
        let moved = |row: usize, class: usize, by: f64| {
            let mut probe = self.clone();
            probe.student[row][class] += by;
            probe.loss()
        };
        let slope = |row, class| (moved(row, class, h) - moved(row, class, -h)) / (2.0 * h);
        (0..self.student.len()).map(|r| (0..self.student[0].len()).map(|c| slope(r, c)).collect()).collect()
    }
}

impl Probed {
    pub(crate) fn get(&self, name: &str) -> f64 {
        scalar(&self.all, name)
    }
}

/// Weights [classes, rows] that show these logits.
fn weight(rows: &Rows) -> Tensors {
    let (n, classes) = (rows.len(), rows[0].len());
    let flat: Vec<f64> = (0..classes * n).map(|i| rows[i % n][i / n]).collect();
    BTreeMap::from([("fc.weight".to_string(), tensor(&[classes, n], &flat))])
}

/// Some logits: 3 sin(0.37 i + start).
pub(crate) fn wavy(rows: usize, classes: usize, start: f64) -> Rows {
    let at = |i: usize| 3.0 * (0.37 * i as f64 + start).sin();
    (0..rows).map(|r| (0..classes).map(|c| at(r * classes + c)).collect()).collect()
}

pub(crate) fn softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let all: Vec<f64> = z.iter().map(|x| (x / temperature).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.into_iter().map(|e| e / sum).collect()
}

/// T² KL(t/T ‖ z/T).
pub(crate) fn kl(t: &[f64], z: &[f64], temperature: f64) -> f64 {
    let (q, p) = (softmax(t, temperature), softmax(z, temperature));
    temperature.powi(2) * q.iter().zip(&p).map(|(q, p)| q * (q / p).ln()).sum::<f64>()
}

pub(crate) fn cross_entropy(z: &[f64], label: i32) -> f64 {
    -softmax(z, 1.0)[label as usize].ln()
}

/// Largest difference of any two entries.
pub(crate) fn off(a: &Rows, b: &Rows) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()))
}
