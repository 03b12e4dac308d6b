//! Recipes: what they resolve to, and what is said where one is wrong.

use proptest::prelude::*;
use std::path::Path;
use train::recipe::Recipe;
use train::recipe_parse::{Loaded, RecipeError};

const GOOD: &str = r#"# A comment above.
[data]
set = "fashion"
folder = "nowhere/fashion"
[network]
name = "resnet8"
[[teacher]]
name = "resnet20"
weights = "nowhere/teacher.safetensors"
[method]
name = "kd"
temperature = 4.0
[train]
epochs = 10
global_batch = 64
[optimizer]
name = "sgd"
lr = 0.1 # the rate
momentum = 0.9
[schedule]
name = "step"
milestones = [5, 8]
"#;

fn parse(text: &str, sets: &[&str]) -> Result<Loaded, RecipeError> {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::parse(text.to_string(), Path::new("some/recipe.toml"), &sets)
}

fn fails(text: &str, sets: &[&str]) -> String {
    parse(text, sets).expect_err("the recipe is wrong").to_string()
}

#[test]
fn the_resolved_text_is_the_same_recipe_and_knows_what_was_not_set() {
    let loaded = parse(GOOD, &[]).unwrap();
    let again = parse(&loaded.text, &[]).unwrap();
    assert_eq!(again.text, loaded.text);
    assert!(again.unset.is_empty(), "{:?}", again.unset);
    for key in ["data.pad", "optimizer.weight_decay", "method.ce_weight", "eval.batch", "output.keep", "schedule.gamma"]
    {
        assert!(loaded.unset.iter().any(|k| k == key), "{key} is not in {:?}", loaded.unset);
    }
    assert!(!loaded.unset.iter().any(|k| k == "optimizer.momentum" || k == "method.temperature"));
    let annotated = loaded.annotated();
    assert!(
        annotated.contains("weight_decay = 0.0  # default\n") && annotated.contains("momentum = 0.9\n"),
        "{annotated}"
    );
    assert_eq!(parse(&annotated, &[]).unwrap().text, loaded.text);
}

#[test]
fn edits_replace_add_and_take_bare_words() {
    let sets = [
        "train.epochs=3",
        "data.folder=/tmp/with space",
        "eval.every = 2",
        "network.name=resnet14",
        "schedule.milestones=[1,2]",
    ];
    let recipe = parse(GOOD, &sets).unwrap().recipe;
    assert_eq!((recipe.train.epochs, recipe.eval.every, recipe.network.name.as_str()), (3, 2, "resnet14"));
    assert_eq!((recipe.data.folder.to_str(), recipe.schedule.milestones), (Some("/tmp/with space"), vec![1, 2]));
    let scaled = parse(GOOD, &["optimizer.lr_per_256=0.2", "teacher.0.name=resnet32"]).unwrap().recipe;
    assert_eq!((scaled.optimizer.lr, scaled.optimizer.lr_per_256), (None, Some(0.2)));
    assert_eq!(scaled.teacher[0].name, "resnet32");
}

#[test]
fn unknown_keys_show_line_caret_and_nearest_name() {
    let text = GOOD.replace("momentum = 0.9", "momentun = 0.9");
    let error = parse(&text, &[]).unwrap_err();
    assert_eq!(error.place.line_column(), (19, 1));
    let shown = error.to_string();
    assert!(
        shown.starts_with("some/recipe.toml:19:1: unknown field `momentun`, expected one of `name`, `lr`"),
        "{shown}"
    );
    assert!(shown.ends_with("did you mean `momentum`?\n19 | momentun = 0.9\n   | ^^^^^^^^"), "{shown}");
    // An edit elsewhere moves nothing in the file.
    let edited = fails(&text, &["data.pad=2", "train.seed=4"]);
    assert!(edited.starts_with("some/recipe.toml:19:1: unknown field `momentun`"), "{edited}");
}

#[test]
fn settings_of_methods_and_networks_keep_their_place() {
    let shown = fails(&GOOD.replace("temperature = 4.0", "temperatur = 4.0"), &["data.pad=2"]);
    assert!(shown.starts_with("some/recipe.toml:12:1: unknown field `temperatur`"), "{shown}");
    assert!(shown.contains("did you mean `temperature`?"), "{shown}");
    let shown = fails(&GOOD.replace("resnet8", "resnet9"), &[]);
    assert!(
        shown.starts_with("some/recipe.toml:6:8: network.name: there is no network \"resnet9\"; did you mean"),
        "{shown}"
    );
    let shown = fails(&GOOD.replace("\"kd\"", "\"kdd\""), &[]);
    assert!(
        shown.starts_with("some/recipe.toml:11:8: unknown variant `kdd`") && shown.contains("did you mean `kd`?"),
        "{shown}"
    );
    let shown = fails(&GOOD.replace("resnet20", "resnet21"), &[]);
    assert!(shown.starts_with("some/recipe.toml:8:8: "), "{shown}");
}

#[test]
fn edits_that_are_wrong_are_shown_as_given() {
    let cases = [
        ("optimizer.momentun=0.9", "command line:1:7: unknown field `momentun`", "^^^^^^^^^^^^^^^^^^"),
        ("optimiser.lr=0.9", "command line:1:7: unknown field `optimiser`", "^^^^^^^^^^^^"),
        ("optimizer.momentum=fast", "command line:1:26: invalid type: string \"fast\", expected a number", "^^^^"),
        (
            "optimizer.momentum=1.5",
            "command line:1:26: optimizer.momentum: expected at least 0 and below 1, got 1.5",
            "^^^",
        ),
        ("method.temperatur=2", "command line:1:7: unknown field `temperatur`", "^^^^^^^^^^^^^^^^^"),
        ("train.epochs", "command line:1:7: there is no `=`", "^^^^^^^^^^^^"),
        ("train=3", "command line:1:7: `train` is a section", "^^^^^"),
        ("train.epochs=[1", "command line:1:7: [1 is not TOML", "^^^^^^^^^^^^"),
        ("teacher.name=resnet8", "command line:1:7: ", "^^^^^^^^^^^^"),
        ("teacher.7.name=resnet8", "command line:1:7: there is no `7` in `teacher`", "^^^^^^^^^^^^^^"),
        ("a b.c=1", "command line:1:7: \"a b.c\" is not a key", "^^^^^"),
        ("train.epochs.deep=1", "command line:1:7: ", "^^^^^^^^^^^^^^^^^"),
    ];
    for (set, start, carets) in cases {
        let shown = fails(GOOD, &["data.pad=2", set]);
        assert!(shown.starts_with(start), "{set}: {shown}");
        assert!(shown.contains(&format!("1 | --set {set}\n")), "{set}: {shown}");
        assert!(shown.ends_with(&format!(" {carets}")), "{set}: {shown}");
    }
}

#[test]
fn ranges_and_contradictions_say_key_expected_got_remedy_and_place() {
    let cases = [
        ("epochs = 10", "epochs = 0", ":14:10: train.epochs: expected at least 1, got 0"),
        ("epochs = 10", "epochs = -1", ":14:10: invalid value: integer `-1`, expected a whole number"),
        ("global_batch = 64", "", ":13:1: missing field `global_batch` in [train]"),
        ("lr = 0.1", "lr = inf", ":18:6: optimizer.lr: expected a finite number above 0, got inf"),
        (
            "lr = 0.1",
            "lr = 0.1\nlr_per_256 = 0.1",
            ":19:14: optimizer.lr_per_256: expected it without lr, got 0.1; remove one of the two",
        ),
        ("lr = 0.1 # the rate", "", ":16:1: optimizer: expected a learning rate, got none; give lr or lr_per_256"),
        ("momentum = 0.9", "momentum = 1.0", ":19:12: optimizer.momentum: expected at least 0 and below 1, got 1.0"),
        (
            "momentum = 0.9",
            "weight_decay = -1e-4",
            ":19:16: optimizer.weight_decay: expected a finite number of at least 0",
        ),
        ("[5, 8]", "[8, 5]", ":22:14: schedule.milestones: expected ascending epochs, got [8, 5]"),
        (
            "name = \"step\"",
            "name = \"cosine\"",
            ":22:14: schedule.milestones: expected them with name = \"step\" only",
        ),
        ("milestones = [5, 8]", "", ":20:1: schedule: expected milestones with \"step\", got none"),
        ("epochs = 10", "epochs = 10\nema_decay = 1.0", ":15:13: train.ema_decay: expected above 0 and below 1"),
        ("epochs = 10", "epochs = 10\nmicro_batch = 65", ":15:15: train.micro_batch: expected at most global_batch"),
        (
            "epochs = 10",
            "epochs = 10\nmicro_batch = 24",
            ":16:16: global_batch 64 is not divisible by micro_batch 24; use 48 or 72",
        ),
        ("epochs = 10", "epochs = 10\nprecision = \"f16\"", ":15:13: unknown variant `f16`, expected one of `f32`"),
        ("\"fashion\"", "\"fashoin\"", ":3:7: data.set: expected one of fashion, cifar10"),
        ("[schedule]", "[eval]\nsplit = \"val\"\n[schedule]", ":21:9: eval.split: expected \"test\""),
        ("[schedule]", "[eval]\nema = true\n[schedule]", ":21:7: eval.ema: expected it with train.ema_decay, got true"),
        ("[schedule]", "[output]\nkeep = 0\n[schedule]", ":21:8: output.keep: expected at least 1, got 0"),
        ("[train]", "[train", ":13:"),
        ("[train]", "[trian]", ":13:2: unknown field `trian`"),
    ];
    for (old, new, expected) in cases {
        let shown = fails(&GOOD.replacen(old, new, 1), &[]);
        assert!(shown.starts_with(&format!("some/recipe.toml{expected}")), "{old} -> {new}: {shown}");
        assert!(shown.contains("^"), "{shown}");
    }
    assert_eq!(fails("", &[]), "some/recipe.toml: missing field `data`");
}

#[test]
fn ranks_share_the_global_batch() {
    let loaded = parse(GOOD, &["train.global_batch=250"]).unwrap();
    let shown = loaded.check_ranks(8).unwrap_err().to_string();
    assert!(shown.contains("global_batch 250 is not divisible by world_size 8; use 248 or 256"), "{shown}");
    assert!(loaded.check_ranks(2).is_ok());
    let loaded = parse(GOOD, &["train.reproducible=true"]).unwrap();
    assert!(loaded.check_ranks(2).unwrap_err().to_string().contains("for example train.micro_batch = 32"));
    assert!(parse(GOOD, &["train.reproducible=true", "train.micro_batch=32"]).unwrap().check_ranks(2).is_ok());
}

#[test]
fn files_are_looked_for_at_the_recipe_first() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, GOOD).unwrap();
    let loaded = Recipe::load(&recipe, &[]).unwrap();
    let missing = loaded.check_files().unwrap_err().to_string();
    assert!(missing.contains(":4:10: data.folder: there is nothing at"), "{missing}");
    assert!(missing.contains(folder.path().join("nowhere/fashion").to_str().unwrap()), "{missing}");
    std::fs::create_dir_all(folder.path().join("nowhere/fashion")).unwrap();
    std::fs::write(folder.path().join("nowhere/teacher.safetensors"), "").unwrap();
    let loaded = Recipe::load(&recipe, &[]).unwrap();
    assert_eq!(loaded.recipe.data.folder, folder.path().join("nowhere/fashion"));
    loaded.check_files().unwrap();
}

#[test]
fn files_that_are_no_text_are_refused_with_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("r.toml");
    std::fs::write(&recipe, b"[data]\nset = \"\xff\"\n").unwrap();
    let shown = Recipe::load(&recipe, &[]).unwrap_err().to_string();
    assert!(shown.contains("r.toml:2:8: not UTF-8: byte 14 is 0xff"), "{shown}");
    let shown = Recipe::load(Path::new("no/such.toml"), &[]).unwrap_err().to_string();
    assert!(shown.starts_with("no/such.toml: cannot read the recipe"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 3000 }))]

    /// Whatever the bytes: a recipe or an error that can be shown, never a panic.
    #[test]
    fn mutated_recipes_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..8), set in "[a-z0-9.=\"\\[\\]{} -]{0,24}") {
        let mut bytes = GOOD.as_bytes().to_vec();
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.splice(at.., GOOD.bytes().take(usize::from(byte)))),
            }
            if bytes.is_empty() {
                bytes.push(b'[');
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        for sets in [vec![], vec![format!("train.{set}")], vec![set]] {
            match Recipe::parse(text.clone(), Path::new("r.toml"), &sets) {
                Ok(loaded) => drop(loaded.annotated()),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn lars_writes_its_defaults_out_and_leaves_batch_norms_alone() {
    let text = GOOD.replace("name = \"sgd\"", "name = \"lars\"");
    let loaded = parse(&text, &[]).unwrap();
    let o = &loaded.recipe.optimizer;
    assert_eq!((o.trust_coefficient, o.epsilon, o.adapt_bn_bias), (Some(0.001), Some(0.0), Some(false)));
    assert!(!o.decay_bn_bias);
    assert!(loaded.annotated().contains("trust_coefficient = 0.001  # default\n"), "{}", loaded.annotated());
    assert_eq!(parse(&loaded.text, &[]).unwrap().text, loaded.text);
    // What is written counts, and what is adapted decays.
    let decay = |sets: &[&str]| parse(&text, sets).unwrap().recipe.optimizer.decay_bn_bias;
    assert!(decay(&["optimizer.adapt_bn_bias=true"]) && decay(&["optimizer.decay_bn_bias=true"]));
    assert!(!decay(&["optimizer.adapt_bn_bias=true", "optimizer.decay_bn_bias=false"]));
    let sgd = parse(GOOD, &[]).unwrap();
    assert!(sgd.recipe.optimizer.decay_bn_bias && !sgd.text.contains("trust_coefficient"), "{}", sgd.text);
    for (set, said) in [
        ("optimizer.nesterov=true", "optimizer.nesterov: expected it with name = \"sgd\" only, got true"),
        ("train.clip_norm=1.0", "train.clip_norm: expected it with name = \"sgd\" only, got 1.0"),
        ("optimizer.trust_coefficient=0.0", "optimizer.trust_coefficient: expected a finite number above 0, got 0.0"),
        ("optimizer.epsilon=-1.0", "optimizer.epsilon: expected a finite number of at least 0, got -1.0"),
    ] {
        let shown = fails(&text, &[set]);
        assert!(shown.contains(said), "{shown}");
    }
    for set in ["optimizer.trust_coefficient=0.002", "optimizer.epsilon=0.0", "optimizer.adapt_bn_bias=false"] {
        let shown = fails(GOOD, &[set]);
        assert!(shown.contains("expected it with name = \"lars\" only"), "{shown}");
    }
}

#[test]
fn the_rate_and_its_warm_up_are_said_with_their_figures() {
    let rule = |sets: &[&str]| parse(GOOD, sets).unwrap().recipe.lr_rule();
    assert_eq!(rule(&[]), "lr 0.1");
    let scaled = ["optimizer.lr_per_256=0.1", "train.global_batch=1024", "schedule.warmup_epochs=5"];
    assert_eq!(rule(&scaled), "lr 0.1 per 256 × 1024 = 0.4, warm-up over 5 epochs");
    let tenths = ["optimizer.lr_per_256=0.1", "train.global_batch=768", "schedule.warmup_epochs=1"];
    assert_eq!(rule(&tenths), "lr 0.1 per 256 × 768 = 0.3, warm-up over 1 epoch");
    let (rate, _) = parse(GOOD, &scaled).unwrap().recipe.optimizer.base_lr(1024);
    assert_eq!(rate, 0.1 * 1024.0 / 256.0);
}

#[test]
fn a_polynomial_has_a_power_and_an_end() {
    let text = GOOD.replace("name = \"step\"\nmilestones = [5, 8]", "name = \"polynomial\"");
    let schedule = parse(&text, &["schedule.end_lr=0.0001"]).unwrap().recipe.schedule;
    assert_eq!((schedule.power, schedule.end_lr), (2.0, 1e-4));
    for (set, said) in [
        ("schedule.power=0.0", "schedule.power: expected a finite number above 0, got 0.0"),
        ("schedule.end_lr=0.2", "schedule.end_lr: expected at least 0 and at most the base rate, got 0.2"),
    ] {
        assert!(fails(&text, &[set]).contains(said), "{}", fails(&text, &[set]));
    }
    for set in ["schedule.power=3.0", "schedule.end_lr=0.01"] {
        let shown = fails(GOOD, &[set]);
        assert!(shown.contains("expected it with name = \"polynomial\" only"), "{shown}");
    }
}
