//! Recipes and files that cannot be, refused before a step: what, where, expected, got.

use crate::comparators::golden;
use crate::replayed::{ints, tensor};
use std::path::Path;
use train::recipe::Recipe;

/// The error of a golden's step with its text changed.
fn refused(name: &str, from: &str, to: &str) -> String {
    let mut run = golden(name);
    assert!(run.recipe.contains(from), "{}", run.recipe);
    run.recipe = run.recipe.replace(from, to);
    run.try_run("f64").expect_err(name).to_string()
}

fn has(message: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(message.contains(part), "no {part:?} in {message}"));
}

#[test]
fn a_teacher_of_other_classes_is_refused() {
    for name in ["kd", "dkd", "normkd", "dist", "tf_kd_self"] {
        let mut run = golden(name);
        let teacher = &mut run.teachers[0];
        teacher.insert("fc.weight".into(), tensor(&[7, 64], &[0.1; 448]));
        teacher.insert("fc.bias".into(), tensor(&[7], &[0.1; 7]));
        let why = run.try_run("f64").expect_err(name).to_string();
        has(&why, &["teacher0.safetensors", "fc.weight", "[5, 64]", "[7, 64]", "fc.bias", "[5]", "[7]"]);
    }
}

#[test]
fn a_teacher_too_many_or_too_few_is_refused() {
    let teacher = "[[teacher]]\nname = \"resnet8\"\nweights = \"t.safetensors\"\n[method]\n";
    has(&refused("ps_kd", "[method]\n", teacher), &["[[teacher]]", "takes 0", "names 1"]);
    has(&refused("dkd", "[method]\n", teacher), &["[[teacher]]", "takes 1", "names 2"]);
    let mut run = golden("dkd");
    let (start, end) = (run.recipe.find("[[teacher]]").unwrap(), run.recipe.find("[method]").unwrap());
    run.recipe.replace_range(start..end, "");
    has(&run.try_run("f64").unwrap_err().to_string(), &["[[teacher]]", "takes 1", "names 0"]);
}

#[test]
fn branches_need_stages() {
    for method in ["byot", "mixskd"] {
        for network in ["vgg8", "linear", "mobilenetv2"] {
            let text = format!(
                "[data]\nset = \"cifar100\"\nfolder = \".\"\n[network]\nname = \"{network}\"\n[method]\nname = \"{method}\"\n[train]\n\
                 epochs = 1\nglobal_batch = 4\n[optimizer]\nname = \"sgd\"\nlr = 0.05\n"
            );
            let loaded = Recipe::parse(text, Path::new("branches.toml"), &[]).unwrap();
            let why = train::describe(loaded).expect_err(&format!("{method} on {network}")).to_string();
            assert!(why.contains("[method]") && why.contains("stage"), "{method} on {network}: {why}");
        }
    }
}

#[test]
fn settings_that_cannot_be_are_refused_before_a_step() {
    has(&refused("kd", "temperature = 3.0", "temperature = 0.0"), &["method.temperature", "above 0", "got 0"]);
    has(&refused("cutout", "side = 4", "side = 9"), &["method.side", "2 to 8", "8 x 8", "got 9"]);
    has(&refused("bake_m1", "extra_images = 1", "extra_images = 0"), &["method.extra_images", "1 to 254", "got 0"]);
    has(&refused("bake_m1", "omega = 0.9", "omega = 1.0"), &["method.omega", "less than 1", "got 1"]);
    has(&refused("ps_kd", "alpha = 0.7", "alpha = 1.5"), &["method.alpha", "0 to 1", "got 1.5"]);
    has(&refused("byot", "blocks = 1", "blocks = 0"), &["method.blocks", "at least 1", "got 0"]);
}

/// Ranges that follow from images, classes, networks and the optimizer of a run.
#[test]
fn settings_that_do_not_fit_a_run_are_refused_before_a_step() {
    for (name, edit, parts) in [
        ("ips_anchor", "method.m=9", ["method.m", "1 to 8", "got 9"]),
        ("pll_top_linear", "method.candidates=5", ["method.candidates", "1 to 4 for 5 classes", "got 5"]),
        ("atsc", "method.projector_factor=0", ["method.projector_factor", "1 to 64", "got 0"]),
        ("atsc", "method.projector_factor=65", ["method.projector_factor", "1 to 64", "got 65"]),
        ("simkd", "method.projector_factor=129", ["method.projector_factor", "1 to 128", "got 129"]),
        ("atsc", "method.anchor_weight=1e4", ["method.anchor_weight 10000", "diverges", "use at most"]),
        ("mixskd_b", "network.name=\"wrn_16_1\"", ["[method]", "branches", "residual network"]),
    ] {
        has(&golden(name).with(&[edit]).try_run("f64").expect_err(edit).to_string(), &parts);
    }
}

/// A method's own parameters are in the file of weights.
#[test]
fn parameters_of_a_method_that_are_missing_are_named() {
    let mut run = golden("byot");
    run.weights.remove("method.fc_head1.weight").unwrap();
    run.weights.insert("method.fc_head3.bias".into(), tensor(&[5], &[0.0; 5]));
    let why = run.try_run("f64").unwrap_err().to_string();
    has(
        &why,
        &[
            "weights.safetensors",
            "method.fc_head1.weight: missing, expected [5, 64]",
            "method.fc_head3.bias: no tensor",
        ],
    );
}

/// A box or a permutation of the batch that does not fit.
#[test]
fn draws_of_another_shape_are_refused() {
    let short = ints(&[0, 1, 2]);
    let why = golden("mixup").given("draw.permutation", short).try_run("f64").unwrap_err().to_string();
    has(&why, &["draw.permutation", "[4]", "[3]"]);
    let flat = ints(&[0; 4]);
    let why = golden("cutout").given("draw.box", flat).try_run("f64").unwrap_err().to_string();
    has(&why, &["draw.box", "[4, 4]", "[4]"]);
}

/// A batch whose numbers stand for nothing, or whose tensors have no axes, is refused; nothing panics and nothing is allocated for it.
#[test]
fn batches_that_stand_for_nothing_are_refused() {
    let with = |name: &str, key: &str, value| {
        let mut run = golden(name);
        run.batch.insert(key.to_string(), value);
        run.try_run("f64").map(drop).map_err(|e| e.to_string())
    };
    let why = |name: &str, key: &str, value| with(name, key, value).expect_err(key);
    has(&why("mixup", "draw.permutation", ints(&[0, 1, 2, 9])), &["batch", "draw.permutation", "0 to 3", "9"]);
    has(&why("dlb", "previous.label", ints(&[0, 1, 2, 5])), &["previous.label", "less than 5", "got 5"]);
    has(&why("ps_kd", "index", ints(&[0, 1, 2, -4])), &["index", "at least 0", "got -4"]);
    has(&why("kd", "image", tensor(&[], &[1.0])), &["image", "NCHW"]);
    has(&why("kd", "image", tensor(&[4, 3, 0, 8], &[])), &["image", "got"]);
    has(&why("crld", "image.strong", tensor(&[1, 3, 8, 8], &[0.5; 192])), &["image.strong", "expected", "got"]);
    has(&why("dlb", "previous.image", tensor(&[], &[1.0])), &["previous.image"]);
    // Sample numbers of the largest set: memory is made for the batch alone.
    assert_eq!(with("ps_kd", "index", ints(&[4, 0, 7, i32::MAX])), Ok(()));
    let mut run = golden("kd");
    run.weights.insert("fc.weight".into(), tensor(&[], &[1.0]));
    has(&run.try_run("f64").unwrap_err().to_string(), &["fc.weight", "weights"]);
    run.teachers.clear();
    has(&run.try_run("f64").unwrap_err().to_string(), &["--teacher", "1 teacher", "0 files"]);
}
