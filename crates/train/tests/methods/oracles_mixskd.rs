//! The oracles of MixSKD by number (methods, chapter 3.8).

use crate::bench::{Bench, Leaves, Parts, STAGES, Watched, last_of};
use crate::probe::softmax;
use crate::replayed::{Replayed, gradient, ints, same, scalar, tensor, values};
use methods::{MixSkd, MixSkdLoss};
use tensor::safe::Tensors;
use tensor::{HostTensor, Shape};
use train::engine::StepValues;

const TERMS: [&str; 7] = ["cls", "mixcls", "stcls", "kl_st", "kl_pair", "fea", "gan"];

/// The golden of loss B with this draw.
fn drawn(lambda: f64, permutation: &[i32]) -> Replayed {
    let mut replayed = Replayed::golden("mixskd_b").steps(1);
    replayed.batch.insert("draw.lambda".into(), tensor(&[], &[lambda]));
    replayed.batch.insert("draw.permutation".into(), ints(permutation));
    replayed
}

/// All terms but these have weight 0.
fn only(replayed: &Replayed, terms: &[&str]) -> Tensors {
    let others = TERMS.iter().filter(|t| !terms.contains(t)).map(|t| format!("method.{t}_weight=0.0"));
    let others: Vec<_> = others.collect();
    replayed.with(&others.iter().map(String::as_str).collect::<Vec<_>>()).run("f64")
}

/// Largest gradient of all parameters that begin so.
fn largest_gradient(tensors: &Tensors, prefix: &str) -> f64 {
    let names = tensors.keys().filter_map(|k| k.strip_prefix("grad.")).filter(|k| k.starts_with(prefix));
    names.fold(0.0, |m: f64, name| m.max(gradient(tensors, name)))
}

/// Both sides are equal: features, logits, and the self-teacher's, whose two outputs then teach alike.
fn sides_agree(replayed: &Replayed) {
    let got = replayed.run("f64");
    assert!(scalar(&got, "loss.fea") < 1e-24, "{:e}", scalar(&got, "loss.fea"));
    assert!(scalar(&got, "loss.kl_pair").abs() < 1e-12, "{:e}", scalar(&got, "loss.kl_pair"));
    let idle = only(replayed, &["fea", "kl_pair"]);
    assert!(largest_gradient(&idle, "") < 1e-11, "{:e}", largest_gradient(&idle, ""));
    assert!(largest_gradient(&got, "") > 1e-2);
}

/// The self-teacher's logits of plain and mixed rows on resnet8, interpolated and mixed.
fn self_teacher_sides(lambda: f64, permutation: &[i32]) -> (Vec<f64>, Vec<f64>) {
    let show: fn(&spec::Graph) -> Vec<_> = |g| vec![("s", last_of(g, "method.final_aux_classifier/fc"))];
    let student = nets::NetworkSpec::new("resnet8").build(5).unwrap();
    let method = Box::new(Watched { of: Box::new(MixSkd::default()), show });
    let (image, units) = ([8, 8, 3], permutation.len());
    let mut bench = Bench::new(Parts { method, student, teachers: vec![], classes: 5, image, units });
    let pixels: Vec<f64> = (0..units * 192).map(|i| (0.37 * i as f64).sin()).collect();
    bench.step(&draws(tensor(&[units, 8, 8, 3], &pixels), lambda, permutation, &vec![1; units]));
    let s: Vec<Vec<f64>> = bench.output("s").chunks(5).map(<[f64]>::to_vec).collect();
    let mixed = |i: usize, k: usize| lambda * s[i][k] + (1.0 - lambda) * s[permutation[i] as usize][k];
    let interpolated = (0..units * 5).map(|i| mixed(i / 5, i % 5)).collect();
    (interpolated, s[units..].concat())
}

fn draws(image: HostTensor, lambda: f64, permutation: &[i32], label: &[i32]) -> Vec<(&'static str, HostTensor)> {
    let (lambda, permutation) = (tensor(&[], &[lambda]), ints(permutation));
    vec![("image", image), ("label", ints(label)), ("draw.lambda", lambda), ("draw.permutation", permutation)]
}

fn near(got: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(got.len(), wanted.len());
    assert!(got.iter().zip(wanted).all(|(g, w)| (g - w).abs() < tolerance), "{got:?}, expected {wanted:?}");
}

/// 3.8, oracle 1.
#[test]
fn oracle_1_at_lambda_one_mixed_images_are_the_plain_ones() {
    sides_agree(&drawn(1.0, &[2, 0, 1, 3]));
    let (e, e_mixed) = self_teacher_sides(1.0, &[2, 0, 1, 3]);
    near(&e, &e_mixed, 1e-13);
}

/// 3.8, oracle 2.
#[test]
fn oracle_2_at_lambda_zero_mixed_images_are_the_permuted_ones() {
    let replayed = drawn(0.0, &[2, 0, 1, 3]);
    sides_agree(&replayed);
    let (e, e_mixed) = self_teacher_sides(0.0, &[2, 0, 1, 3]);
    near(&e, &e_mixed, 1e-13);
    let rows: Vec<_> = values(&replayed.run("f64"), "logits").chunks(5).map(<[f64]>::to_vec).collect();
    near(&[2, 0, 1, 3].map(|i: usize| rows[i].clone()).concat(), &rows[4..].concat(), 1e-13);
    let (e, e_mixed) = self_teacher_sides(0.4, &[2, 0, 1, 3]);
    assert!(e.iter().zip(&e_mixed).any(|(a, b)| (a - b).abs() > 1e-3), "sides differ elsewhere");
}

/// 3.8, oracle 3; a batch of one has no other permutation.
#[test]
fn oracle_3_the_identity_mixes_images_with_themselves() {
    for lambda in [0.3, 0.77] {
        let all = drawn(lambda, &[0, 1, 2, 3]);
        let mut one = drawn(lambda, &[0]);
        let image = one.batch["image"].to_f64().unwrap();
        one.batch.insert("image".into(), tensor(&[1, 3, 8, 8], &image[..192]));
        one.batch.insert("label".into(), ints(&[2]));
        for replayed in [all, one] {
            sides_agree(&replayed);
            let got = replayed.run("f64");
            assert!((scalar(&got, "loss.mixcls") - scalar(&got, "loss.cls")).abs() < 1e-12);
        }
    }
}

/// 3.8, oracle 5: cross-entropy alone; mixed rows still enter the statistics.
#[test]
fn oracle_5_cross_entropy_alone_differs_from_training_without_mixed_images() {
    let replayed = drawn(0.3, &[2, 0, 1, 3]);
    let got = only(&replayed, &["cls"]);
    assert!((scalar(&got, "loss") - scalar(&got, "loss.cls")).abs() < 1e-14);
    let mut ce = replayed.clone();
    let (head, tail) = replayed.recipe.split_once("[method]").unwrap();
    let (_, tail) = tail.split_once("[train]").unwrap();
    ce.recipe = format!("{head}[method]\nname = \"ce\"\n[train]{tail}");
    ce.weights.retain(|name, _| !name.starts_with("method."));
    ce.batch.retain(|name, _| !name.starts_with("draw."));
    let ce = ce.run("f64");
    let apart = |name: &str| {
        let (a, b) = (values(&got, name), values(&ce, name));
        a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3)
    };
    assert!(apart("grad.fc.weight") && apart("after.bn1.running_var"));
    // At the logits: four times softmax less label over the plain rows, nothing on mixed ones.
    let mut leaves = Chapter::new(Some(4), &MixSkd { mixcls_weight: 0.0, ..weights(0.0) });
    leaves.step();
    for (s, got) in leaves.at_own_logits().chunks(5).enumerate() {
        let z: Vec<f64> = (0..5).map(|k| 2.0 * g(5 * s + k, 4.0)).collect();
        let hot = |k: usize| f64::from(s < 3 && LABEL[s % 3] as usize == k);
        let share = if s < 3 { 1.0 / 3.0 } else { 0.0 };
        let wanted: Vec<f64> = (0..5).map(|k| share * (softmax(&z, 1.0)[k] - hot(k))).collect();
        near(got, &wanted, 1e-14);
    }
}

/// cls alone, other weights `w`.
fn weights(w: f64) -> MixSkd {
    MixSkd { stcls_weight: w, kl_st_weight: w, kl_pair_weight: w, fea_weight: w, gan_weight: w, ..MixSkd::default() }
}

/// 3.8, oracle 6: decay and momentum do not touch what has no gradient.
#[test]
fn oracle_6_some_modules_stay_as_they_began() {
    for (loss, stay, moves) in [
        ("a", &["final_aux_classifier", "discriminator"][..], "auxiliary_classifier"),
        ("b", &["discriminator"][..], "final_aux_classifier"),
    ] {
        let replayed = Replayed::golden("mixskd_b").with(&[&format!("method.loss=\"{loss}\"")]).steps(4);
        let end = replayed.run("f64");
        let is = |name: &str, of: &str| name.strip_prefix("method.").is_some_and(|n| n.starts_with(of));
        for (name, start) in &replayed.weights {
            let after = values(&end, &format!("after.{name}"));
            if stay.iter().any(|of| is(name, of)) {
                assert_eq!(after, start.to_f64().unwrap(), "{loss}: {name}");
            } else if is(name, moves) {
                assert_ne!(after, start.to_f64().unwrap(), "{loss}: {name}");
            }
        }
    }
}

/// 3.8, oracle 7.
#[test]
fn oracle_7_gradients_reach_what_the_table_says() {
    let replayed = drawn(0.3, &[2, 0, 1, 3]);
    let heads =
        ["fc.weight", "fc.bias", "method.auxiliary_classifier.fc1.weight", "method.auxiliary_classifier.fc2.bias"];
    for term in TERMS {
        let got = only(&replayed, &[term]);
        let at = |name: &str| gradient(&got, name);
        let own_teacher = largest_gradient(&got, "method.final_aux_classifier");
        assert_eq!(own_teacher > 0.0, term == "stcls", "{term}: only stcls trains the self-teacher");
        assert_eq!(largest_gradient(&got, "method.discriminator"), 0.0, "{term}: frozen");
        let (main, branch) = (at(heads[0]).max(at(heads[1])), at(heads[2]).max(at(heads[3])));
        match term {
            "fea" | "gan" | "stcls" => assert_eq!((main, branch), (0.0, 0.0), "{term}"),
            "kl_st" => assert!(main > 0.0 && branch == 0.0, "{term}"),
            "kl_pair" => assert!(main == 0.0 && branch > 0.0, "{term}"),
            _ => assert!(main > 0.0 && branch > 0.0, "{term}"),
        }
        assert!(at("conv1.weight") > 0.0, "{term} reaches the stem");
    }
    let mut trained = drawn(0.3, &[2, 0, 1, 3]);
    trained.edits.push("method.discriminators=\"trained\"".into());
    let mut reversed = drawn(0.3, &[2, 0, 1, 3]);
    reversed.edits.push("method.discriminators=\"reversed\"".into());
    let [trained, reversed] = [trained, reversed].map(|r| only(&r, &["gan"]));
    same(&trained, &reversed, "grad.method.discriminator", 1e-13);
    assert!(largest_gradient(&trained, "method.discriminator1") > 0.0);
    let turned: Vec<f64> = values(&reversed, "grad.conv1.weight").iter().map(|g| -g).collect();
    near(&values(&trained, "grad.conv1.weight"), &turned, 1e-12);
}

/// 3.8, oracle 9.
#[test]
fn oracle_9_numbering_of_the_batch_does_not_matter() {
    let replayed = drawn(0.3, &[2, 0, 1, 3]);
    let order = [3, 1, 0, 2]; // new row i is old row order[i]
    let mut other = replayed.clone();
    let image = replayed.batch["image"].to_f64().unwrap();
    let label = replayed.batch["label"].view::<i32>().unwrap().to_vec();
    other.batch.insert("image".into(), tensor(&[4, 3, 8, 8], &order.map(|i| &image[i * 192..][..192]).concat()));
    other.batch.insert("label".into(), ints(&order.map(|i| label[i])));
    let place = |old: usize| order.iter().position(|&i| i == old).unwrap() as i32;
    other.batch.insert("draw.permutation".into(), ints(&order.map(|i| place([2, 0, 1, 3][i]))));
    let (a, b) = (replayed.run("f64"), other.run("f64"));
    same(&a, &b, "loss", 1e-12);
    same(&a, &b, "grad.", 1e-10);
}

/// g_i(s) of oracle 10.
fn g(i: usize, s: f64) -> f64 {
    (0.37 * i as f64 + s).sin()
}

fn wave(n: usize, factor: f64, s: f64) -> Vec<f64> {
    (0..n).map(|i| factor * g(i, s)).collect()
}

const LABEL: [i32; 3] = [0, 3, 4];
const PI: [usize; 3] = [2, 0, 1];
const PIXELS: usize = 4;
const INPUTS: usize = 3 * PIXELS;

/// Where a row of [plain; mixed] and a pixel are among the one-hot channels.
fn channel(row: usize, pixel: usize) -> usize {
    if row < 3 { 3 * pixel + row } else { INPUTS + 3 * pixel + PI[row - 3] }
}

/// Oracle 10's problem: B = 3, K = 5, C = 4, 2 × 2 maps, λ = 0.3. Features are the weights of 1 × 1 convolutions on one-hot rows.
/// With `channels` absent the maps are the one-hot rows themselves and the heads' weights the logits.
struct Chapter {
    bench: Bench,
}

impl Chapter {
    fn new(channels: Option<usize>, method: &MixSkd) -> Chapter {
        let show: fn(&spec::Graph) -> Vec<_> = |g| vec![("s", last_of(g, "method.final_aux_classifier/fc"))];
        let method = Box::new(Watched { of: Box::new(method.clone()), show });
        let student = Box::new(Leaves { classes: 5, channels });
        let parts = Parts { method, student, teachers: vec![], classes: 5, image: [2, 2, INPUTS], units: 3 };
        let mut bench = Bench::new(parts);
        // p = relu(4x − 3) is 1 at x = 1; q = relu(x − 0.5) is 0.5 there and 0.2 at x = 0.7: mixed = 5 q − 2.5 p.
        let n = 2 * INPUTS;
        let row = |i: usize| i / INPUTS;
        let entries = |rows: usize, columns: usize, at: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..rows * columns).map(|i| at(i / columns, i % columns)).collect()
        };
        let detect = entries(n, INPUTS, &|o, i| if o % INPUTS == i { [4.0, 1.0][row(o)] } else { 0.0 });
        bench.set("student.detect.weight", &detect);
        bench.set("student.detect.bias", &entries(n, 1, &|o, _| [-3.0, -0.5][row(o)]));
        let code = |o: usize, i: usize| {
            if o % INPUTS == i % INPUTS { [[1.0, 0.0], [-2.5, 5.0]][row(o)][row(i)] } else { 0.0 }
        };
        bench.set("student.code.weight", &entries(n, n, &code));
        for s in 0..STAGES {
            let name = if s == 3 {
                "student.leaf.weight".into()
            } else {
                format!("method.auxiliary_classifier.block_extractor{}.{}.leaf.weight", s + 1, 2 - s)
            };
            if let Some(c) = channels {
                bench.set(&name, &by_channel(c, |row, pixel, c| g((row * 4 + c) * PIXELS + pixel, 2.0 + s as f64)));
            }
            let z = |row: usize, _: usize, k: usize| 2.0 * g(5 * row + k, 1.0 + s as f64);
            let (head, from) = if s == 3 {
                ("student.fc".into(), n)
            } else {
                (format!("method.auxiliary_classifier.fc{}", s + 1), channels.unwrap_or(n))
            };
            // Over features, heads say nothing: z and F are independent in the chapter.
            let weight = if s == 3 || channels.is_none() { by_channel(5, z) } else { vec![0.0; 5 * from] };
            bench.set(&format!("{head}.weight"), &weight);
            bench.set(&format!("{head}.bias"), &[0.0; 5]);
        }
        if let Some(c) = channels {
            Chapter::heads(&mut bench, c);
        }
        Chapter { bench }
    }

    /// Self-teacher and discriminators; these have 128 hidden units, of which the chapter's 8 count.
    fn heads(bench: &mut Bench, c: usize) {
        bench.set("method.final_aux_classifier.conv.weight", &wave(c * 4 * c, 0.5, 7.0));
        bench.set("method.final_aux_classifier.fc.weight", &wave(5 * c, 0.5, 8.0));
        bench.set("method.final_aux_classifier.fc.bias", &wave(5, 0.1, 9.0));
        for s in 0..STAGES {
            let (name, at) = (format!("method.discriminator{}", s + 1), s as f64);
            let mut hidden = wave(8 * c, 0.5, 3.0 + at);
            hidden.resize(128 * c, 0.0);
            let mut bias = wave(8, 0.1, 4.0 + at);
            bias.resize(128, 0.0);
            let narrow = wave(16, 0.5, 5.0 + at);
            let wide: Vec<f64> =
                (0..256).map(|i| if i % 128 < 8 { narrow[i / 128 * 8 + i % 128] } else { 0.0 }).collect();
            bench.set(&format!("{name}.0.weight"), &hidden);
            bench.set(&format!("{name}.0.bias"), &bias);
            bench.set(&format!("{name}.2.weight"), &wide);
            bench.set(&format!("{name}.2.bias"), &wave(2, 0.1, 6.0 + at));
        }
    }

    fn step(&mut self) -> StepValues {
        let hot = |i: usize| f64::from(u8::from(i % INPUTS == 3 * (i / INPUTS % PIXELS) + i / (INPUTS * PIXELS)));
        let image: Vec<f64> = (0..3 * PIXELS * INPUTS).map(hot).collect();
        self.bench.step(&draws(tensor(&[3, 2, 2, INPUTS], &image), 0.3, &PI.map(|p| p as i32), &LABEL))
    }

    /// Gradient at the logits [6, 5] of a head that reads pooled one-hot rows: each of 4 channels carries a quarter of it.
    fn at_logits(&self, head: &str) -> Vec<f64> {
        let weight = self.bench.gradient(&format!("{head}.weight"));
        let of = |row: usize, k: usize| (0..PIXELS).map(|p| weight[k * 2 * INPUTS + channel(row, p)]).sum::<f64>();
        (0..30).map(|i| of(i / 5, i % 5)).collect()
    }

    fn at_own_logits(&self) -> Vec<f64> {
        self.at_logits("student.fc")
    }

    /// Gradient at feature s, [6, 4, 2, 2].
    fn at_feature(&self, s: usize) -> impl Fn([usize; 3]) -> f64 {
        let name = if s == 3 {
            "student.leaf.weight".into()
        } else {
            format!("method.auxiliary_classifier.block_extractor{}.{}.leaf.weight", s + 1, 2 - s)
        };
        let weight = self.bench.gradient(&name);
        move |[row, c, pixel]| weight[c * 2 * INPUTS + channel(row, pixel)]
    }
}

/// Weights [out, 2·INPUTS] of a layer on one-hot rows, from its value for each row, pixel and output.
fn by_channel(out: usize, value: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    let mut weight = vec![0.0; out * 2 * INPUTS];
    for row in 0..6 {
        for pixel in 0..PIXELS {
            for o in 0..out {
                weight[o * 2 * INPUTS + channel(row, pixel)] = value(row, pixel, o);
            }
        }
    }
    weight
}

fn term(values: &StepValues, name: &str) -> f64 {
    values.terms.iter().find(|t| t.0 == name).unwrap().1
}

/// F_s of oracle 10.
fn feature(s: usize, row: usize, c: usize, pixel: usize) -> f64 {
    g((row * 4 + c) * PIXELS + pixel, 2.0 + s as f64)
}

/// 3.8, oracle 4: the self-teacher on whole interpolated maps is its interpolated output.
#[test]
fn oracle_4_the_self_teacher_commutes_with_mixing() {
    let mut chapter = Chapter::new(Some(4), &MixSkd::default());
    chapter.step();
    let s = chapter.bench.output("s");
    let (conv, fc, bias) = (wave(64, 0.5, 7.0), wave(20, 0.5, 8.0), wave(5, 0.1, 9.0));
    for row in 0..3 {
        let a = |f: usize, c: usize, p: usize| 0.3 * feature(f, row, c, p) + 0.7 * feature(f, PI[row], c, p);
        let h = |o: usize| {
            let at = |p: usize| (0..16).map(|i| conv[o * 16 + i] * a(i / 4, i % 4, p)).sum::<f64>();
            (0..PIXELS).map(at).sum::<f64>() / PIXELS as f64
        };
        let whole: Vec<f64> = (0..5).map(|k| bias[k] + (0..4).map(|o| fc[4 * k + o] * h(o)).sum::<f64>()).collect();
        let mixed: Vec<f64> = (0..5).map(|k| 0.3 * s[5 * row + k] + 0.7 * s[5 * PI[row] + k]).collect();
        near(&mixed, &whole, 1e-12);
        if row == 0 {
            near(&whole, &[-1.107045, 1.050144, 1.306697, -0.865371, -1.570154], 5e-7); // printed as e[0] in oracle 10
        }
    }
}

/// 3.8, oracle 8.
#[test]
fn oracle_8_undecided_discriminators_and_doubled_features() {
    let mut chapter = Chapter::new(Some(4), &MixSkd::default());
    let before = term(&chapter.step(), "fea");
    for s in 1..=STAGES {
        chapter.bench.set(&format!("method.discriminator{s}.2.weight"), &[0.0; 256]);
        chapter.bench.set(&format!("method.discriminator{s}.2.bias"), &[0.0; 2]);
    }
    for name in [chapter.bench.names("student.leaf"), chapter.bench.names("method.auxiliary_classifier.block")].concat()
    {
        let doubled: Vec<f64> = chapter.bench.state(&name).iter().map(|w| 2.0 * w).collect();
        chapter.bench.set(&name, &doubled);
    }
    let after = chapter.step();
    assert!((term(&after, "gan") - 4.0 * 2f64.ln()).abs() < 1e-14);
    assert!((term(&after, "gan") - 2.772589).abs() < 5e-7);
    assert!((term(&after, "fea") / before - 4.0).abs() < 1e-13);
}

/// 3.8, oracle 10: values printed in the chapter. Features and logits are independent there, so two networks show them: one has the
/// chapter's features and main logits, the other its branch logits.
#[test]
fn oracle_10_values_of_the_chapter() {
    for (loss, dz, df) in [
        (MixSkdLoss::A, -0.012712321, [0.013657610, 0.021928132]),
        (MixSkdLoss::B, 0.036347328, [-0.005412628, 0.043622330]),
    ] {
        let method = MixSkd { loss, ..MixSkd::default() };
        let mut features = Chapter::new(Some(4), &method);
        let on_features = features.step();
        let mut logits = Chapter::new(None, &method);
        let on_logits = logits.step();
        let printed = [("kl_st", 1.323283384), ("fea", 2.236340528), ("gan", 2.749852731)];
        near(&printed.map(|p| term(&on_features, p.0)), &printed.map(|p| p.1), 6e-10);
        let printed = [("cls", 5.799437801), ("kl_pair", 0.956775417)];
        near(&printed.map(|p| term(&on_logits, p.0)), &printed.map(|p| p.1), 6e-10);
        let sum = ["cls", "kl_pair"].map(|t| term(&on_logits, t)).iter().sum::<f64>()
            + ["kl_st", "fea", "gan"].map(|t| term(&on_features, t)).iter().sum::<f64>();
        if loss == MixSkdLoss::A {
            near(&[sum], &[13.065689861], 1e-9);
        } else {
            near(&[term(&on_logits, "mixcls"), term(&on_features, "stcls")], &[6.884464192, 5.526083115], 6e-10);
            let sum = sum + term(&on_logits, "mixcls") + term(&on_features, "stcls");
            near(&[sum], &[25.476237168], 1e-9);
            let fc = features.bench.gradient("method.final_aux_classifier.fc.weight")[0];
            let conv = features.bench.gradient("method.final_aux_classifier.conv.weight")[0];
            near(&[fc, conv], &[0.239571164, -0.661879547], 6e-10);
        }
        near(&[features.at_own_logits()[0]], &[-0.237517015], 6e-10);
        near(&[logits.at_logits("method.auxiliary_classifier.fc1")[4 * 5 + 2]], &[dz], 6e-10);
        near(&[features.at_feature(0)([0, 0, 0]), features.at_feature(2)([5, 3, 3])], &df, 6e-10);
    }
    assert_eq!(Shape::new(&[6, 5]).elements(), 30);
}
