//! A method's step on networks that show their logits in the image, and its value, straight from the formulas in f64.

use spec::*;
use std::collections::BTreeMap;

/// Logits are channels `start..start + classes` of a 1×1 image.
#[derive(Debug)]
pub(crate) struct Bare {
    pub(crate) start: usize,
    pub(crate) classes: usize,
}

impl Network for Bare {
    fn build<'g>(&self, _net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let pooled = image.mean_hw();
        Taps { stages: vec![], pooled, logits: pooled.slice_channels(self.start, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}

/// Convolution, batch norm, linear: for the shape of the graph.
#[derive(Debug)]
pub(crate) struct Small {
    pub(crate) classes: usize,
}

impl Network for Small {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let x = net.bn("bn1", net.conv("conv1", image, 4, 3, 1)).relu();
        let pooled = x.mean_hw();
        Taps { stages: vec![x], pooled, logits: net.linear("fc", pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}

pub(crate) fn setting(classes: usize, image: [usize; 3]) -> Setting {
    Setting { lr: 0.05, momentum: 0.9, teachers: vec!["fc"], ..Setting::new(classes, image, 100, 10) }
}

/// What a method made of its only phase.
pub(crate) struct Built {
    pub(crate) graph: Graph,
    pub(crate) losses: Losses,
}

/// The step of `units` units on `student` and, if the method wants one, a teacher.
pub(crate) fn build(method: &dyn Method, setting: &Setting, units: usize, nets: [Box<dyn Network>; 2]) -> Built {
    let spec = method.spec(setting).unwrap();
    assert_eq!(spec.phases.len(), 1);
    let builder = Builder::new(Graph::new(Precision::F64, [units, 0]));
    let [student, teacher] = nets;
    let teachers = [teacher];
    let bn = BnMode::Train { groups: 1 };
    let losses = {
        let student = student.as_ref();
        let teachers = &teachers[..spec.teachers];
        let step = Step { builder: &builder, spec: &spec, setting, student, teachers, input: None, bn };
        method.losses(0, &step)
    };
    let graph = builder.finish();
    verify(&graph, "build").unwrap();
    Built { graph, losses }
}

/// On networks that show logits in the image.
pub(crate) fn bare(method: &dyn Method, classes: usize, units: usize) -> Built {
    let channels =
        if method.spec(&setting(classes, [1, 1, classes])).unwrap().teachers > 0 { 2 * classes } else { classes };
    let setting = setting(classes, [1, 1, channels]);
    build(method, &setting, units, [Box::new(Bare { start: 0, classes }), Box::new(Bare { start: classes, classes })])
}

/// On a network with parameters.
pub(crate) fn small(method: &dyn Method, setting: &Setting, units: usize) -> Built {
    let net = || Box::new(Small { classes: setting.classes });
    build(method, setting, units, [net(), net()])
}

/// Values of the graph by `ValueId`; labels and masks are numbers too.
type Values = Vec<Vec<f64>>;

impl Built {
    /// Term `name` with its weight; slots hold 1.
    pub(crate) fn term(&self, name: &str, batch: &BTreeMap<&str, Vec<f64>>) -> f64 {
        self.sum(&self.run(batch, None), |term| term == name)
    }

    /// Gradient of the terms that `wanted` takes with respect to the image, by central differences. What is detached
    /// keeps its value.
    pub(crate) fn image_gradient(
        &self,
        wanted: impl Fn(&str) -> bool + Copy,
        batch: &BTreeMap<&str, Vec<f64>>,
    ) -> Vec<f64> {
        let held = self.run(batch, None);
        let h = 1e-4;
        let at = |i: usize, delta: f64| {
            let mut moved = batch.clone();
            moved.get_mut("image").unwrap()[i] += delta;
            self.sum(&self.run(&moved, Some(&held)), wanted)
        };
        // Fourth order: the error is that of rounding, about 1e-12.
        let slope = |i| (8.0 * (at(i, h) - at(i, -h)) - (at(i, 2.0 * h) - at(i, -2.0 * h))) / (12.0 * h);
        (0..batch["image"].len()).map(slope).collect()
    }

    fn sum(&self, values: &Values, wanted: impl Fn(&str) -> bool) -> f64 {
        let terms = self.losses.terms.iter().filter(|t| wanted(&t.name));
        let parts = terms
            .flat_map(|t| t.loss.parts.iter().map(move |(w, v)| t.weight.factor * w.factor * values[v.0 as usize][0]));
        parts.sum()
    }

    fn run(&self, batch: &BTreeMap<&str, Vec<f64>>, held: Option<&Values>) -> Values {
        let mut values: Values = vec![vec![]; self.graph.values.len()];
        for input in &self.graph.batch {
            let given = &batch[input.name.as_str()];
            assert_eq!(given.len(), self.graph.shape(input.value).elements(), "{}", input.name);
            values[input.value.0 as usize] = given.clone();
        }
        for node in &self.graph.nodes {
            let x: Vec<&[f64]> = node.inputs.iter().map(|i| &values[i.0 as usize][..]).collect();
            let (out, dims) = (node.outputs[0], self.graph.shape(node.inputs[0]).dims().to_vec());
            let made = match (&node.op, held) {
                (Op::Detach, Some(held)) => held[out.0 as usize].clone(),
                (Op::Detach, None) => x[0].to_vec(),
                (Op::GlobalAvgPool, _) if dims[1] * dims[2] == 1 => x[0].to_vec(),
                (Op::PatchSwap { .. }, _) => swap(x[0], x[1]),
                (Op::Concat { axis: Axis::Batch }, _) => x.concat(),
                (Op::Slice { axis: Axis::Batch, start, len }, _) => {
                    let row = x[0].len() / dims[0];
                    x[0][start * row..(start + len) * row].to_vec()
                }
                (Op::Slice { axis: Axis::Channel, start, len }, _) => {
                    let rows = x[0].chunks(*dims.last().unwrap());
                    rows.flat_map(|row| row[*start..start + len].to_vec()).collect()
                }
                (Op::RowLoss(term), _) => vec![row_loss(term, &x, dims[0]) / self.divisor(term.divisor)],
                (Op::TopK { k }, _) => {
                    let rows = x[0].chunks(*dims.last().unwrap());
                    rows.flat_map(|row| top(row, *k)).collect()
                }
                (Op::Correct { .. }, _) => vec![0.0; 2],
                (op, _) => panic!("{op} is not among the ops of these tests"),
            };
            values[out.0 as usize] = made;
        }
        values
    }

    fn divisor(&self, divisor: Divisor) -> f64 {
        let units = self.graph.units;
        (divisor.constant as usize + (0..2).map(|r| divisor.per_unit[r] as usize * units[r]).sum::<usize>()) as f64
    }
}

/// Classes of the `k` largest logits, the lower class first among equals.
fn top(row: &[f64], k: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    order[..k].iter().map(|&c| c as f64).collect()
}

/// Images of one cell each.
fn swap(image: &[f64], mask: &[f64]) -> Vec<f64> {
    let (n, mut out) = (mask.len(), image.to_vec());
    let row = image.len() / (2 * n);
    for (i, _) in mask.iter().enumerate().filter(|(_, m)| **m != 0.0) {
        for c in 0..row {
            out.swap(i * row + c, (n + i) * row + c);
        }
    }
    out
}

pub(crate) fn softmax(row: &[f64], t: f64) -> Vec<f64> {
    log_softmax(row, t).into_iter().map(f64::exp).collect()
}

pub(crate) fn log_softmax(row: &[f64], t: f64) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let norm = row.iter().map(|z| ((z - max) / t).exp()).sum::<f64>().ln();
    row.iter().map(|z| (z - max) / t - norm).collect()
}

/// The target distribution of row `r`.
fn target(target: Target, x: &[&[f64]], r: usize, classes: usize, t: f64) -> Vec<f64> {
    match target {
        Target::Label { on, off } => (0..classes).map(|c| if c == x[1][r] as usize { on } else { off }).collect(),
        Target::Logits => softmax(&x[1][r * classes..(r + 1) * classes], t),
        Target::MixedLabel | Target::Probabilities => panic!("no method of these tests asks for {target:?}"),
    }
}

/// Σ over counted rows. Methods whose loss is of another kind have goldens of whole steps.
fn row_loss(term: &RowTerm, x: &[&[f64]], n: usize) -> f64 {
    let k = x[0].len() / n;
    let row = |i: usize, r: usize| &x[i][r * k..(r + 1) * k];
    let mask = 1 + term.kind.targets();
    let counted = |r: usize| match term.mask {
        RowMask::All => true,
        RowMask::LabelProb { rule } => {
            let label = x[mask + 2][r] as usize;
            let (m, other) = (softmax(row(mask, r), 1.0)[label], softmax(row(mask + 1, r), 1.0)[label]);
            match rule {
                MaskRule::Greater => m > other,
                MaskRule::GreaterOrEqual => m >= other,
            }
        }
        RowMask::Confident { .. } => panic!("no method of these tests asks for confident rows"),
    };
    let value = |r: usize| match term.kind {
        RowKind::CrossEntropy { target: kind, temperature: t } => {
            let q = target(kind, x, r, k, t);
            q.iter().zip(log_softmax(row(0, r), t)).map(|(q, log_p)| -q * log_p).sum::<f64>()
        }
        RowKind::Kl { target: kind, temperature: Temperature::Fixed(t) } => {
            let q = target(kind, x, r, k, t);
            q.iter().zip(log_softmax(row(0, r), t)).map(|(q, log_p)| q * (q.ln() - log_p)).sum::<f64>()
        }
        RowKind::GeneralizedCrossEntropy { q } => {
            let (p, m) = (softmax(row(0, r), 1.0), x[1].len() / n);
            let candidates = x[1][r * m..(r + 1) * m].iter();
            candidates.map(|&c| (1.0 - p[c as usize].powf(q)) / q).sum::<f64>() / m as f64
        }
        kind => panic!("no method of these tests asks for {kind:?}"),
    };
    (0..n).filter(|r| counted(*r)).map(value).sum()
}
