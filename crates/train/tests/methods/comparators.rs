//! Oracles of chapter 7 that need a whole step: run on the goldens' weights and batches, the recipe or batch changed.

use crate::golden::distance;
use crate::replayed::{Replayed, ints, scalar, tensor, values};
use crate::wave;
use comm::Solo;
use methods::MethodSpec;
use nets::NetworkSpec;
use spec::{Precision, Setting};
use tensor::{HostTensor, Shape};
use train::engine::{Engine, Sizes};
use train::step::{Compile, Model};

pub(crate) fn golden(name: &str) -> Replayed {
    Replayed::golden(name)
}

impl Replayed {
    /// With other text in `[method]`.
    pub(crate) fn method(mut self, settings: &str) -> Replayed {
        let start = self.recipe.find("[method]\n").unwrap() + "[method]\n".len();
        let end = start + self.recipe[start..].find("[train]").unwrap();
        self.recipe.replace_range(start..end, &format!("{settings}\n"));
        self
    }

    /// Without teachers.
    fn untaught(mut self) -> Replayed {
        self.teachers.clear();
        if let Some(start) = self.recipe.find("[[teacher]]") {
            let end = self.recipe.find("[method]").unwrap();
            self.recipe.replace_range(start..end, "");
        }
        self
    }

    /// A rate that moves no weight.
    fn still(mut self) -> Replayed {
        self.recipe = self.recipe.replace("lr = 0.05", "lr = 1e-300");
        self
    }

    pub(crate) fn given(mut self, name: &str, tensor: HostTensor) -> Replayed {
        self.batch.insert(name.into(), tensor);
        self
    }

    fn without(mut self, names: &[&str]) -> Replayed {
        names.iter().for_each(|name| drop(self.batch.remove(*name)));
        self
    }

    /// Cross-entropy on the same images and labels.
    fn plainly(self) -> Replayed {
        let mut plain = self.untaught().method("name = \"ce\"");
        plain.batch.retain(|name, _| name == "image" || name == "label");
        plain.weights.retain(|name, _| !name.starts_with("method."));
        plain
    }
}

fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * b.abs().max(1e-3), "{a} and {b}");
}

/// Rows `range` of a tensor.
fn rows(tensor: &HostTensor, range: std::ops::Range<usize>) -> HostTensor {
    let dims = tensor.shape().dims().to_vec();
    let width = tensor.bytes().len() / dims[0];
    let shape = Shape::new(&[&[range.len()], &dims[1..]].concat());
    HostTensor::from_bytes(tensor.dtype(), shape, &tensor.bytes()[range.start * width..range.end * width]).unwrap()
}

fn twice(tensor: &HostTensor) -> HostTensor {
    let dims = tensor.shape().dims().to_vec();
    let shape = Shape::new(&[&[2 * dims[0]], &dims[1..]].concat());
    HostTensor::from_bytes(tensor.dtype(), shape, &[tensor.bytes(), tensor.bytes()].concat()).unwrap()
}

/// Everything of `expected` is in `found` bit for bit, in f64 and f32.
fn equal_bits(found: &Replayed, expected: &Replayed) {
    for precision in ["f64", "f32"] {
        let (found, expected) = (found.run(precision), expected.run(precision));
        let own = |name: &&String| !name.contains("term.") && !name.contains("loss.") && !name.contains("method.");
        let mut compared = 0;
        for name in expected.keys().filter(own) {
            assert_eq!(values(&found, name), values(&expected, name), "{name} in {precision}");
            compared += 1;
        }
        assert!(compared > 60, "logits, gradients and states: {compared}");
    }
}

/// 7.7: (1 − α) CE + (α m / K) KL_T.
#[test]
fn tf_kd_self_is_distillation_with_other_weights() {
    let own = golden("tf_kd_self");
    let kd = own.clone().method("name = \"kd\"\nce_weight = 0.4\nkd_weight = 0.24\ntemperature = 6.0");
    let (own, kd) = (own.run("f64"), kd.run("f64"));
    for name in own.keys().filter(|name| !name.contains("term.")) {
        assert!(distance(&values(&own, name), &values(&kd, name)) < 1e-13, "{name}");
    }
}

/// 7.9: anchors and partners of the same pixels have the same batch statistics.
#[test]
fn cs_kd_of_identical_pixels_teaches_nothing() {
    let own = golden("cs_kd");
    let anchors = rows(&own.batch["image"], 0..3);
    let (plain, own) = (own.clone().given("image", anchors.clone()).plainly(), own.given("image", twice(&anchors)));
    for precision in ["f64", "f32"] {
        let (found, ce) = (own.run(precision), plain.run(precision));
        assert_eq!((scalar(&found, "loss.kd"), scalar(&found, "step1.loss.kd")), (0.0, 0.0), "{precision}");
        for name in ce.keys().filter(|name| name.starts_with("grad.") || name.ends_with(".weight")) {
            assert_eq!(values(&found, name), values(&ce, name), "{name} in {precision}");
        }
    }
}

/// 7.9: with a still network and pixels of one kind, k updates leave 0.9^k r + (1 − 0.9^k) of the batch's own statistic.
#[test]
fn cs_kd_moves_running_statistics_twice_a_step() {
    let own = golden("cs_kd");
    let anchors = rows(&own.batch["image"], 0..3);
    let once = own.clone().given("image", anchors.clone()).plainly().still().steps(1).run("f64");
    let steps = 3;
    let found = own.given("image", twice(&anchors)).still().steps(steps);
    let moved = found.run("f64");
    let mut seen = 0;
    for name in once.keys().filter_map(|name| name.strip_prefix("after.")).filter(|name| name.contains("running_")) {
        let before = found.weights[name].to_f64().unwrap();
        let (after, one) = (values(&moved, &format!("after.{name}")), values(&once, &format!("after.{name}")));
        let kept = 0.9f64.powi(2 * steps as i32);
        for i in 0..before.len() {
            let batch = (one[i] - 0.9 * before[i]) / 0.1;
            close(after[i], kept * before[i] + (1.0 - kept) * batch, 1e-9);
        }
        seen += 1;
    }
    assert_eq!(seen, 2 * 9, "running statistics of resnet8");
}

/// 7.9: the label of a pair is its anchor's; a label for each image that says so is the same.
#[test]
fn cs_kd_has_no_use_for_a_partners_label() {
    let own = golden("cs_kd");
    let label = own.batch["label"].view::<i32>().unwrap().to_vec();
    let other: Vec<i32> = label.iter().map(|l| (l + 1) % 5).collect();
    let (both, others) = (ints(&[&label[..], &label].concat()), ints(&[label, other].concat()));
    let loss = |run: Replayed| scalar(&run.run("f64"), "loss");
    let expected = loss(own.clone());
    assert_eq!(loss(own.clone().given("label", both)), expected);
    assert_eq!(loss(own.given("label", others)), expected, "cross-entropy is of anchors alone");
}

/// 7.10: without trust in the memory it is plain cross-entropy.
#[test]
fn ps_kd_without_trust_is_cross_entropy() {
    let own = golden("ps_kd").method("name = \"ps_kd\"\nalpha = 0.0").steps(3);
    equal_bits(&own, &own.clone().plainly());
    // So is epoch 0, whatever the memory holds.
    let first = golden("ps_kd_first").steps(3);
    equal_bits(&first, &first.clone().plainly());
}

/// 7.10: what is remembered is a distribution, and that of the first pass where one step is made.
#[test]
fn ps_kd_remembers_probabilities() {
    let found = golden("ps_kd").steps(1).run("f64");
    let (memory, logits) = (values(&found, "after.memory"), values(&found, "logits"));
    for (p, z) in memory.chunks(5).zip(logits.chunks(5)) {
        close(p.iter().sum(), 1.0, 1e-14);
        let sum: f64 = z.iter().map(|x| x.exp()).sum();
        p.iter().zip(z).for_each(|(p, z)| close(*p, z.exp() / sum, 1e-12));
    }
}

/// 7.11: without neighbours Q is P, and P teaches itself nothing. Q's rows always sum to 1.
#[test]
fn bake_without_neighbours_is_cross_entropy() {
    for name in ["bake_m1", "bake_m3"] {
        let extra = if name == "bake_m1" { 1 } else { 3 };
        let settings =
            |omega: f64| format!("name = \"bake\"\nomega = {omega}\nextra_images = {extra}\ntemperature = 4");
        let found = golden(name).method(&settings(0.0)).run("f64");
        assert!(scalar(&found, "loss.kd").abs() < 1e-14, "{name}: {}", scalar(&found, "loss.kd"));
        let (q, z) = (values(&found, "targets"), values(&found, "logits"));
        for (q, z) in q.chunks(5).zip(z.chunks(5)) {
            let sum: f64 = z.iter().map(|x| (x / 4.0).exp()).sum();
            q.iter().zip(z).for_each(|(q, z)| close(*q, (z / 4.0).exp() / sum, 1e-12));
        }
        let mut plain = golden(name).plainly();
        let label = plain.batch["label"].view::<i32>().unwrap().to_vec();
        let partners = label.iter().flat_map(|&l| vec![l; extra]);
        let all: Vec<i32> = label.iter().copied().chain(partners).collect();
        plain = plain.given("label", ints(&all));
        let ce = plain.run("f64");
        for key in ce.keys().filter(|key| key.starts_with("grad.")) {
            assert!(distance(&values(&found, key), &values(&ce, key)) < 1e-11, "{name}: {key}");
        }
        let far = golden(name).method(&settings(0.9)).run("f64");
        values(&far, "targets").chunks(5).for_each(|q| close(q.iter().sum(), 1.0, 1e-14));
        assert!(scalar(&far, "loss.kd") > 1e-6);
    }
}

/// 7.12: a still network says of the last batch what it said before.
#[test]
fn dlb_of_a_still_network_teaches_nothing() {
    for precision in ["f64", "f32"] {
        let first = golden("dlb_first").still();
        let before = first.run(precision);
        let second = golden("dlb")
            .still()
            .given("previous.image", first.batch["image"].clone())
            .given("previous.label", first.batch["label"].clone())
            .given("previous.logits", before["after.previous.logits"].clone());
        let found = second.run(precision);
        assert_eq!(values(&found, "logits.previous"), values(&before, "logits"), "{precision}");
        assert_eq!(scalar(&found, "loss.kd"), 0.0, "{precision}");
        assert_eq!(values(&found, "after.previous.logits"), values(&found, "logits"), "{precision}");
    }
}

/// 7.12: cross-entropy of step 2 is the mean over the images of batches 1 and 2.
#[test]
fn dlb_has_cross_entropy_of_both_batches() {
    for (name, previous) in [("dlb", 4.0), ("dlb_uneven", 2.0)] {
        let own = golden(name);
        let ce = |image: &str, label: &str| {
            let one = own.clone().given("image", own.batch[image].clone()).given("label", own.batch[label].clone());
            scalar(&one.plainly().run("f64"), "loss")
        };
        let (now, before) = (ce("image", "label"), ce("previous.image", "previous.label"));
        let found = own.run("f64");
        close(scalar(&found, "loss.ce"), (4.0 * now + previous * before) / (4.0 + previous), 1e-13);
        // The first step has this batch alone.
        let first = own.clone().without(&["previous.image", "previous.label", "previous.logits"]);
        equal_bits(&first, &first.clone().plainly());
    }
}

/// 7.14: what the deepest head says is a target: its gradient, and that of its own stage, is of its cross-entropy alone.
#[test]
fn byot_teaches_the_deepest_head_nothing() {
    let with = |kd: f64, hint: f64| {
        golden("byot").method(&format!("name = \"byot\"\nkd_weight = {kd}\nhint_weight = {hint}")).run("f64")
    };
    let (alone, taught) = (with(0.0, 0.0), with(3.0, 7.0));
    let plain = golden("byot").plainly().run("f64");
    let mut own = 0;
    for key in alone.keys().filter(|key| key.starts_with("grad.fc.") || key.starts_with("grad.layer3.")) {
        assert_eq!(values(&alone, key), values(&taught, key), "{key}");
        assert!(distance(&values(&taught, key), &values(&plain, key)) < 1e-14, "{key}");
        own += 1;
    }
    assert_eq!(own, 2 + 9, "classifier, and a block with projection");
    for key in ["grad.conv1.weight", "grad.method.fc_head1.weight", "grad.method.layer3_head2.0.conv1.weight"] {
        assert!(distance(&values(&alone, key), &values(&taught, key)) > 1e-3, "{key}");
    }
}

/// 7.17: λ = 1, or a box without pixels, is plain cross-entropy.
#[test]
fn mixing_nothing_is_cross_entropy() {
    let one = || tensor(&[], &[1.0]);
    let empty = ints(&[3, 5, 3, 5]);
    let mixup = golden("mixup").given("draw.lambda", one()).steps(3);
    equal_bits(&mixup, &mixup.clone().plainly());
    let cutmix = golden("cutmix").given("draw.lambda", one()).given("draw.box", empty).steps(3);
    equal_bits(&cutmix, &cutmix.clone().plainly());
    // Painting nothing, too.
    let none = HostTensor::new(Shape::new(&[4, 4]), &[0i32; 16]).unwrap();
    for name in ["cutout", "erasing"] {
        let own = golden(name).given("draw.box", none.clone()).steps(3);
        equal_bits(&own, &own.clone().plainly());
    }
}

/// 7.17: images that mix with themselves keep their cross-entropy, so the weights of the two labels sum to 1.
#[test]
fn label_weights_sum_to_one() {
    let own = || ints(&[0, 1, 2, 3]);
    for name in ["mixup", "cutmix"] {
        let plain = scalar(&golden(name).plainly().run("f64"), "loss");
        for lambda in [0.0, 0.3, 0.875] {
            let lambda = tensor(&[], &[lambda]);
            let found = golden(name).given("draw.permutation", own()).given("draw.lambda", lambda).run("f64");
            close(scalar(&found, "loss"), plain, 1e-12);
        }
    }
}

/// 7.6: no smoothing is cross-entropy, and the conventions differ by a factor of ε.
#[test]
fn smoothing_conventions() {
    let with = |epsilon: f64, over: &str| {
        golden("ls_all").method(&format!("name = \"ce\"\nlabel_smoothing = {epsilon}\nsmoothing_over = \"{over}\""))
    };
    equal_bits(&with(0.0, "all"), &golden("ls_all").plainly());
    let (all, others) = (with(0.2, "all").run("f64"), with(0.2 * 4.0 / 5.0, "others").run("f64"));
    for name in all.keys() {
        assert!(distance(&values(&all, name), &values(&others, name)) < 1e-12, "{name}");
    }
}

/// 7.3: the weight rises over 20 epochs that count from 1, then stays.
#[test]
fn dkd_warms_up() {
    let at = |epoch: usize| {
        let mut own = golden("dkd");
        own.epoch = epoch;
        let found = own.run("f64");
        (scalar(&found, "loss.ce"), scalar(&found, "loss.tckd"), scalar(&found, "loss.nckd"))
    };
    let full = at(39);
    for (epoch, factor) in [(0, 0.05), (9, 0.5), (18, 0.95), (19, 1.0), (20, 1.0)] {
        let found = at(epoch);
        assert_eq!(found.0, full.0);
        close(found.1, factor * full.1, 1e-14);
        close(found.2, factor * full.2, 1e-14);
    }
}

/// Logits of the evaluation head of a method on resnet8 with the weights of the formula, and the method's own parameters in its state.
fn evaluated(section: &str) -> (Vec<f64>, usize) {
    let method = toml::from_str::<MethodSpec>(section).unwrap().build();
    let setting = Setting::new(5, [8, 8, 3], 10, 10);
    let (spec, student) = (method.spec(&setting).unwrap(), NetworkSpec::new("resnet8").build(5).unwrap());
    let model = Model { method, spec, setting, student, teachers: vec![], precision: Precision::F32 };
    let sizes = Sizes { full: [4, 0], others: vec![], leaves: 1, eval_batch: 4, reproducible: true };
    let executor = cpu::Executor::<f32>::new(1).unwrap();
    let mut engine = Engine::new(&model, &Compile::head(None), &sizes, executor, Box::new(Solo::default())).unwrap();
    engine.initialise(3).unwrap();
    for entry in engine.states.entries.clone() {
        let Some(name) = entry.name.strip_prefix("student.") else { continue };
        let state = engine.executor.state_mut(entry.offset, entry.shape.elements());
        state.iter_mut().zip(wave::weight("", name, entry.shape.dims())).for_each(|(s, w)| *s = w as f32);
    }
    engine.loaded().unwrap();
    let image: Vec<f32> = wave::wave("image", 4 * 8 * 8 * 3).into_iter().map(|x| x as f32).collect();
    let image = HostTensor::new(Shape::new(&[4, 8, 8, 3]), &image).unwrap();
    let inputs = [("image".to_string(), image), ("label".to_string(), ints(&[0, 1, 2, 3]))];
    let own = engine.states.entries.iter().filter(|e| e.name.starts_with("method.")).count();
    (engine.evaluate(&inputs).unwrap().logits, own)
}

/// 7.14: what is evaluated is the plain network, and only training has the branches' parameters.
#[test]
fn byot_is_evaluated_as_the_plain_network() {
    let (plain, none) = evaluated("name = \"ce\"");
    let (byot, branches) = evaluated("name = \"byot\"");
    assert_eq!((plain.len(), none), (4 * 5, 0));
    assert!(branches > 0 && plain.iter().any(|z| *z != 0.0));
    assert_eq!(byot, plain);
}
