//! Forward and gradient of every op against tests/goldens (PyTorch, f64): f64 to the file's tolerance, f32 to 1e-5.

use crate::interpreter::{Buffer, Case, error, scalars};
use cpu::io::Real;
use graph::*;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tensor::{Dtype, HostTensor, SafeFile};

/// A golden file: attributes and tensors.
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) attr: Json,
    pub(crate) tolerance: f64,
    pub(crate) tensors: BTreeMap<String, HostTensor>,
}

impl Golden {
    pub(crate) fn read(path: &str) -> Golden {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(path);
        let safe = SafeFile::open(&file).unwrap();
        Golden {
            name: path.to_string(),
            attr: serde_json::from_str(&safe.metadata()["attr"]).unwrap(),
            tolerance: safe.metadata()["tolerance"].parse().unwrap(),
            tensors: safe.tensors().unwrap(),
        }
    }

    /// All files of a folder.
    pub(crate) fn all(folder: &str) -> Vec<Golden> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
        let mut names: Vec<_> = std::fs::read_dir(root.join(folder))
            .unwrap()
            .map(|entry| format!("{folder}/{}", entry.unwrap().file_name().into_string().unwrap()))
            .collect();
        names.sort();
        assert!(!names.is_empty(), "no goldens in {folder}");
        names.iter().map(|name| Golden::read(name)).collect()
    }

    pub(crate) fn values(&self, key: &str) -> Vec<f64> {
        let tensor = self.tensors.get(key).unwrap_or_else(|| panic!("{}: no {key}", self.name));
        match tensor.dtype() {
            Dtype::I32 => tensor.view::<i32>().unwrap().iter().map(|&x| x.into()).collect(),
            Dtype::U8 => tensor.view::<u8>().unwrap().iter().map(|&x| x.into()).collect(),
            _ => tensor.to_f64().unwrap(),
        }
    }

    pub(crate) fn buffer<T: Real>(&self, key: &str) -> Buffer {
        let tensor = &self.tensors[key];
        let shape = tensor.shape();
        match tensor.dtype() {
            Dtype::I32 => Buffer::i32(shape.dims(), tensor.view().unwrap()),
            Dtype::U8 => Buffer::u8(shape.dims(), tensor.view().unwrap()),
            _ => Buffer::real::<T>(shape.dims(), self.values(key)),
        }
    }

    pub(crate) fn number(&self, key: &str) -> f64 {
        self.attr[key].as_f64().unwrap_or_else(|| panic!("{}: no attribute {key}", self.name))
    }

    pub(crate) fn size(&self, key: &str) -> usize {
        self.number(key) as usize
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.attr[key].as_str().unwrap_or_default()
    }

    fn array<const N: usize>(&self, key: &str) -> [f64; N] {
        std::array::from_fn(|i| self.attr[key][i].as_f64().unwrap())
    }

    /// The file's in f64 and 1e-5 in f32, except where a case is ill-conditioned.
    fn tolerance<T: Real>(&self) -> f64 {
        let wider: &[(&str, [f64; 2])] = &[
            // x̂ is ±1 and dx the difference of nearly equal numbers.
            ("ops/bn_train_pair.safetensors", [1e-9, 2e-2]),
            // Logits of ±500: rounding them to f32 moves probabilities by 3e-5.
            ("ops/softmax_large.safetensors", [1e-12, 1e-4]),
            // The golden's teacher gradient is a difference of numbers near 500: 5e-12 from 60 digits, ours 3e-15.
            ("losses/kl_large.safetensors", [1e-11, 1e-4]),
        ];
        let column = usize::from(size_of::<T>() == 4);
        let limit = wider.iter().find(|case| case.0 == self.name).map_or([1e-12, 1e-5], |case| case.1)[column];
        limit.max(self.tolerance)
    }
}

/// A golden as a graph: leaves by short name.
struct Built<'a, T> {
    case: Case<T>,
    golden: &'a Golden,
    names: BTreeMap<String, ValueId>,
}

impl<'a, T: Real> Built<'a, T> {
    fn new(golden: &'a Golden) -> Built<'a, T> {
        let mut case = Case::new();
        let inputs = golden.tensors.keys().filter(|k| k.starts_with("in.") || k.starts_with("w."));
        let names = inputs
            .map(|key| (key.split_once('.').unwrap().1.to_string(), case.leaf(golden.buffer::<T>(key))))
            .collect();
        Built { case, golden, names }
    }

    fn push(&mut self, op: Op, inputs: &[&str]) -> Vec<ValueId> {
        let ids: Vec<_> = inputs.iter().map(|name| self.names[*name]).collect();
        self.case.push(op, &ids)
    }

    /// Pushes the op and names its outputs for comparison with `out.NAME`.
    fn op(&mut self, op: Op, inputs: &[&str], outputs: &[&str]) -> Vec<ValueId> {
        let ids = self.push(op, inputs);
        self.names.extend(outputs.iter().map(|name| format!("out.{name}")).zip(ids.iter().copied()));
        ids
    }

    /// Runs forward and backward and compares everything the file has. `losses`: weighted terms; else `y` has a cotangent.
    fn compare(mut self, losses: &[(ValueId, Weight)]) {
        let mut wanted: Vec<(String, ValueId)> =
            self.names.iter().filter(|n| n.0.starts_with("out.")).map(|(k, &v)| (k.clone(), v)).collect();
        let has_gradient = self.golden.tensors.keys().any(|k| k.starts_with("grad."));
        if has_gradient && self.golden.text("op") != "softmax" {
            let seeds: Vec<_> = self.names.get("cotangent").map(|&dy| (self.names["out.y"], dy)).into_iter().collect();
            let grads = self.case.backward(&seeds, losses);
            for key in self.golden.tensors.keys().filter(|k| k.starts_with("grad.")) {
                let leaf = self.names[key.strip_prefix("grad.").unwrap()];
                wanted
                    .push((key.clone(), *grads.get(&leaf).unwrap_or_else(|| panic!("{}: no {key}", self.golden.name))));
            }
        }
        let values = self.case.evaluate();
        for (key, id) in wanted {
            let error = error(&values[&id].f64s::<T>(), &self.golden.values(&key));
            let limit = self.golden.tolerance::<T>();
            assert!(
                error <= limit,
                "{} {key} {}: error {error:.1e}, limit {limit:.0e}",
                self.golden.name,
                size_of::<T>()
            );
        }
    }
}

/// Ops that networks of the later chapters need and the graph does not have; their goldens wait.
const NO_OP: [&str; 1] = ["channel_shuffle"];
const NO_LOSS: [&str; 4] = ["bce", "dkd", "gce", "norm_kd"];

fn op_golden<T: Real>(golden: &Golden) {
    let mut b = Built::<T>::new(golden);
    let op = golden.text("op");
    let pool = || PoolArgs { kernel: golden.size("kernel"), stride: golden.size("stride"), pad: golden.size("pad") };
    let axis = if golden.text("axis") == "batch" { Axis::Batch } else { Axis::Channel };
    match op {
        "conv" => {
            let args =
                ConvArgs { stride: golden.size("stride"), pad: golden.size("pad"), groups: golden.size("groups") };
            b.op(Op::Conv(args), &["x", "w"], &["y"]);
        }
        "linear" => {
            let dtype = b.case.graph.precision.acc();
            b.op(Op::Matmul(MatmulArgs { ta: false, tb: true, dtype }), &["x", "w", "bias"], &["y"]);
        }
        "add_bias" => drop(b.op(Op::AddBias, &["x", "bias"], &["y"])),
        "bn_train" | "bn_frozen" => batch_norm(&mut b),
        "fold_bn" => {
            let args = ConvArgs { stride: golden.size("stride"), pad: golden.size("pad"), groups: 1 };
            let stats = ["w", "running_mean", "running_var", "scale", "bias"];
            let folded = b.op(Op::FoldBn { eps: golden.number("eps") }, &stats, &["w", "bias"]);
            b.names.extend(["folded", "shift"].map(String::from).into_iter().zip(folded));
            b.op(Op::ConvAct { conv: args, relu: false }, &["x", "folded", "shift"], &["y"]);
        }
        "relu" => drop(b.op(Op::Unary(Unary::Relu), &["x"], &["y"])),
        "relu6" => drop(b.op(Op::Unary(Unary::Relu6), &["x"], &["y"])),
        "sigmoid" => drop(b.op(Op::Unary(Unary::Sigmoid), &["x"], &["y"])),
        "add" => drop(b.op(Op::Binary(Binary::Add), &["a", "b"], &["y"])),
        "sub" => drop(b.op(Op::Binary(Binary::Sub), &["a", "b"], &["y"])),
        "mul" => drop(b.op(Op::Binary(Binary::Mul), &["a", "b"], &["y"])),
        "scale" => drop(b.op(Op::Scale(Weight::from(golden.number("factor"))), &["x"], &["y"])),
        "max_pool" => drop(b.op(Op::MaxPool(pool()), &["x"], &["y", "argmax"])),
        "avg_pool" => drop(b.op(Op::AvgPool(pool()), &["x"], &["y"])),
        "global_avg_pool" => drop(b.op(Op::GlobalAvgPool, &["x"], &["y"])),
        "concat" => drop(b.op(Op::Concat { axis }, &["a", "b", "c"], &["y"])),
        "slice" => drop(b.op(Op::Slice { axis, start: golden.size("start"), len: golden.size("len") }, &["x"], &["y"])),
        "gather_rows" => drop(b.op(Op::GatherRows, &["x", "index"], &["y"])),
        "mix_rows" => drop(b.op(Op::MixRows, &["x", "permutation", "lambda"], &["y"])),
        "patch_swap" => drop(b.op(Op::PatchSwap { cell: golden.size("cell") }, &["x", "mask"], &["y"])),
        "image_input" => {
            let (size, pad) = (golden.array("size").map(|x: f64| x as usize), golden.size("pad"));
            let args =
                ImageArgs { size, pad, mean: golden.array("mean"), std: golden.array("std"), crop: true, flip: true };
            b.op(Op::ImageInput(args), &["pixels", "crop", "flip"], &["y"]);
        }
        "softmax" => drop(b.op(Op::Softmax { temperature: golden.number("temperature") }, &["x"], &["y"])),
        "correct" => {
            for k in [2, 5] {
                let counts = b.push(Op::Correct { k }, &["logits", "label"])[0];
                let values = b.case.evaluate()[&counts].f64s::<T>();
                assert_eq!(
                    values,
                    [golden.values("out.top1")[0], golden.values(&format!("out.top{k}"))[0]],
                    "{}",
                    golden.name
                );
            }
        }
        "sgd" | "clip_norm" | "ema" => return, // in state.rs
        _ if NO_OP.contains(&op) => return eprintln!("{}: no such op, skipped", golden.name),
        _ => panic!("{}: unknown op {op}", golden.name),
    }
    b.compare(&[]);
}

fn batch_norm<T: Real>(b: &mut Built<'_, T>) {
    let golden = b.golden;
    let eps = golden.number("eps");
    if golden.text("op") == "bn_frozen" {
        let op = Op::BnApply { bn: BnArgs { eps, groups: 1 }, source: StatsSource::Running };
        return drop(b.op(op, &["x", "running_mean", "running_var", "scale", "bias"], &["y"]));
    }
    let groups = golden.size("groups");
    let stats = b.op(Op::BnStats { groups }, &["x"], &["mean", "var"]);
    b.names.extend([("mean".to_string(), stats[0]), ("var".to_string(), stats[1])]);
    let op = Op::BnApply { bn: BnArgs { eps, groups }, source: StatsSource::Batch };
    b.op(op, &["x", "mean", "var", "scale", "bias"], &["y"]);
}

#[test]
fn ops_match_goldens() {
    for golden in Golden::all("ops") {
        op_golden::<f64>(&golden);
        op_golden::<f32>(&golden);
    }
}

/// Mean over `n` rows.
pub(crate) fn over(n: usize) -> Divisor {
    Divisor { constant: n as u64, per_unit: [0, 0] }
}

fn loss_golden<T: Real>(golden: &Golden) {
    let mut b = Built::<T>::new(golden);
    let loss = golden.text("loss");
    let rows = |b: &Built<T>, name: &str| over(b.case.graph.shape(b.names[name])[0]);
    let mask = RowMask::All;
    let (op, inputs, weight) = match loss {
        "ce" | "ce_smoothed" => {
            let kind = match loss {
                "ce" => RowKind::CrossEntropy { on: 1.0, off: 0.0 },
                _ => RowKind::CrossEntropy { on: golden.number("on"), off: golden.number("off") },
            };
            (Op::RowLoss(RowTerm { kind, mask, divisor: rows(&b, "logits") }), ["logits", "label"], 1.0)
        }
        "ce_soft" => {
            let term = RowTerm { kind: RowKind::SoftCrossEntropy, mask, divisor: rows(&b, "logits") };
            (Op::RowLoss(term), ["logits", "target"], 1.0)
        }
        "kl" => {
            let temperature = golden.number("temperature");
            let term = RowTerm { kind: RowKind::Kl { temperature }, mask, divisor: rows(&b, "student") };
            (Op::RowLoss(term), ["student", "teacher"], temperature * temperature)
        }
        "mse" => {
            let divisor = over(b.case.graph.shape(b.names["a"]).elements());
            (Op::SquaredError { divisor }, ["a", "b"], 1.0)
        }
        "ips" => return ips_golden(b),
        _ if NO_LOSS.contains(&loss) => return eprintln!("{}: no such loss, skipped", golden.name),
        _ => panic!("{}: unknown loss {loss}", golden.name),
    };
    let value = b.push(op, &inputs)[0];
    let got = weight * b.case.evaluate()[&value].f64s::<T>()[0];
    let (want, limit) = (golden.values("out.loss")[0], golden.tolerance::<T>());
    assert!((got - want).abs() <= limit * want.abs(), "{}: {got} for {want}", golden.name);
    b.compare(&[(value, Weight::from(weight))]);
}

/// Intra-class patch swap: cross-entropy of both images, KL between them in the file's mode.
fn ips_golden<T: Real>(mut b: Built<'_, T>) {
    let (temperature, alpha) = (b.golden.number("temperature"), b.golden.number("alpha"));
    let rows = b.case.graph.shape(b.names["a"])[0];
    for name in ["a", "b"] {
        let detached = b.push(Op::Detach, &[name])[0];
        b.names.insert(format!("{name}.detached"), detached);
    }
    let ce = RowTerm { kind: RowKind::CrossEntropy { on: 1.0, off: 0.0 }, mask: RowMask::All, divisor: over(rows) };
    let kl = |mask| Op::RowLoss(RowTerm { kind: RowKind::Kl { temperature }, mask, divisor: over(rows) });
    let full = alpha * temperature * temperature;
    let mut terms =
        vec![(b.push(Op::RowLoss(ce), &["a", "label"])[0], 0.5), (b.push(Op::RowLoss(ce), &["b", "label"])[0], 0.5)];
    match b.golden.text("kl") {
        "two_way_sg" => {
            terms.push((b.push(kl(RowMask::All), &["a", "b.detached"])[0], full / 2.0));
            terms.push((b.push(kl(RowMask::All), &["b", "a.detached"])[0], full / 2.0));
        }
        "two_way_full" => {
            terms.push((b.push(kl(RowMask::All), &["a", "b"])[0], full / 2.0));
            terms.push((b.push(kl(RowMask::All), &["b", "a"])[0], full / 2.0));
        }
        "one_way_b_to_a" => terms.push((b.push(kl(RowMask::All), &["a", "b.detached"])[0], full)),
        "by_confidence" => {
            let (at_least, greater) = (MaskRule::GreaterOrEqual, MaskRule::Greater);
            let (a_teaches, b_teaches) = (RowMask::LabelProb { rule: at_least }, RowMask::LabelProb { rule: greater });
            terms.push((b.push(kl(a_teaches), &["b", "a.detached", "a.detached", "b.detached", "label"])[0], full));
            terms.push((b.push(kl(b_teaches), &["a", "b.detached", "b.detached", "a.detached", "label"])[0], full));
        }
        mode => panic!("{}: unknown mode {mode}", b.golden.name),
    }
    let values = b.case.evaluate();
    let part = |terms: &[(ValueId, f64)]| terms.iter().map(|(id, w)| w * values[id].f64s::<T>()[0]).sum::<f64>();
    let limit = b.golden.tolerance::<T>();
    for (key, got) in [("out.ce", part(&terms[..2])), ("out.kd", part(&terms[2..])), ("out.loss", part(&terms))] {
        assert!(error(&[got], &b.golden.values(key)) <= limit, "{} {key}: {got}", b.golden.name);
    }
    let losses: Vec<_> = terms.iter().map(|&(id, w)| (id, Weight::from(w))).collect();
    b.compare(&losses);
}

#[test]
fn losses_match_goldens() {
    for golden in Golden::all("losses") {
        loss_golden::<f64>(&golden);
        loss_golden::<f32>(&golden);
    }
}

#[test]
fn running_statistics_match_goldens() {
    for name in ["bn_train", "bn_train_groups2", "bn_train_groups3", "bn_train_rows"] {
        let golden = Golden::read(&format!("ops/{name}.safetensors"));
        let mut b = Built::<f64>::new(&golden);
        let stats = b.push(Op::BnStats { groups: golden.size("groups") }, &["x"]);
        let values = b.case.evaluate();
        let finite = Buffer::real::<f64>(&[], [1.0]);
        let inputs = [&finite, &values[&stats[0]], &values[&stats[2]]].map(Buffer::input).to_vec();
        let layer = BnRunningLayer { mean: StateId(0), var: StateId(1), updates: 1, forwards: 1 };
        let op = Op::BnRunning { momentum: golden.number("momentum"), layers: vec![layer] };
        let mut states = ["w.running_mean", "w.running_var"].map(|key| golden.buffer::<f64>(key));
        crate::interpreter::update::<f64>(&op, inputs, &mut states, &scalars(0.0, 1.0, 0.0));
        for (state, key) in states.iter().zip(["out.running_mean", "out.running_var"]) {
            assert!(error(&state.f64s::<f64>(), &golden.values(key)) < 1e-12, "{name} {key}");
        }
    }
}
