//! A run of two stages: a teacher, then a student that learns from it.

use std::path::Path;
use train::recipe::Recipe;
use train::{Exit, RunOptions, Session, Verbosity};

const RECIPE: &str = r#"
[data]
set = "fashion"
folder = "FOLDER"
augment = "pad_crop_flip"
pad = 2

[network]
name = "resnet8"

[method]
name = "ce"

[train]
epochs = 1
global_batch = 32
max_steps = 3

[optimizer]
name = "sgd"
lr = 0.05

[[stage]]
name = "teacher"
set = { network = { name = "resnet14" } }

[[stage]]
name = "student"
set = { method = { name = "kd" }, teacher = [{ name = "resnet14", weights = "@teacher" }], train = { max_steps = 2 } }
"#;

fn run(text: &str, folder: &Path) -> Result<train::Outcome, train::TrainError> {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/fashion");
    let loaded = Recipe::parse(text.replace("FOLDER", data), &folder.join("two.toml"), &[])?;
    let run_dir = Some(folder.join("run"));
    Session::open(loaded, RunOptions { run_dir, verbosity: Verbosity::Quiet, ..RunOptions::default() })?.train()
}

#[test]
fn a_stage_starts_from_what_the_one_before_left() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(RECIPE, folder.path()).unwrap();
    assert_eq!((outcome.exit, outcome.steps), (Exit::Done, 2));
    let weights = |stage: &str| std::fs::read(folder.path().join("run").join(stage).join("final.safetensors")).unwrap();
    let (teacher, student) = (weights("teacher"), weights("student"));
    assert_ne!(teacher, student);
    // A second start finds both complete and changes nothing.
    run(RECIPE, folder.path()).unwrap();
    assert_eq!((teacher, student), (weights("teacher"), weights("student")));
}

#[test]
fn weights_of_a_later_stage_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = RECIPE.replace("@teacher", "@student");
    let error = run(&text, folder.path()).unwrap_err().to_string();
    assert!(error.contains("\"@student\" name no earlier stage") && error.contains("teacher"), "{error}");
}
