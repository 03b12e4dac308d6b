//! A run from the command line: trained, gone on with, evaluated, exported, asked.

#[path = "support/program.rs"]
mod support;

use std::path::Path;
use support::{RECIPE, retort_in, small_fashion, with_recipe};

fn ok(folder: &Path, args: &[&str]) -> String {
    let ran = retort_in(folder, args);
    assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
    ran.out
}

#[test]
fn a_dry_run_shows_every_key_and_the_plan_and_writes_nothing() {
    let folder = with_recipe(RECIPE);
    small_fashion(folder.path(), 40);
    let shown = ok(folder.path(), &["train", "recipe.toml", "--dry-run", "--lr", "0.25"]);
    for part in ["lr = 0.25", "weight_decay = 0.0", "40 training and 40 test images", "launches a step"] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn a_run_is_gone_on_with_and_its_own_recipe_repeats_it() {
    let folder = with_recipe(RECIPE);
    small_fashion(folder.path(), 40);
    let outcome = |args: &[&str]| -> serde_json::Value {
        let all = [&["train", "--json", "-q"], args].concat();
        serde_json::from_str(&ok(folder.path(), &all)).expect("one JSON object")
    };
    let first = outcome(&["recipe.toml", "--run", "runs/a", "--max-steps", "2"]);
    assert_eq!((&first["steps"], &first["exit"]), (&2.into(), &0.into()));
    let whole = outcome(&["recipe.toml", "--run", "runs/a"]);
    assert_eq!(whole["steps"], 4);
    let again = outcome(&["runs/a/recipe.toml", "--run", "runs/b"]);
    assert_eq!(again["last"], whole["last"], "the same bits with and without a stop");
    let refused = retort_in(folder.path(), &["train", "recipe.toml", "--run", "runs/a", "--resume", "never"]);
    assert_eq!((refused.code, refused.out.as_str()), (64, ""), "{}", refused.err);
}

#[test]
fn a_run_is_evaluated_exported_and_asked() {
    let folder = with_recipe(RECIPE);
    small_fashion(folder.path(), 40);
    let at = folder.path();
    ok(at, &["train", "recipe.toml", "--run", "runs/a", "-q"]);
    let of_run = ok(at, &["eval", "runs/a", "--json", "--per-class"]);
    let result: serde_json::Value = serde_json::from_str(&of_run).expect("one JSON object");
    assert_eq!((&result["samples"], result["classes"].as_array().map(Vec::len)), (&40.into(), Some(10)));
    ok(at, &["export", "runs/a", "--to", "net.safetensors"]);
    assert_eq!(ok(at, &["eval", "recipe.toml", "--weights", "net.safetensors", "--json", "--per-class"]), of_run);
    ok(at, &["import", "--from", "net.safetensors", "--net", "resnet8", "--to", "ours.safetensors"]);
    assert_eq!(ok(at, &["eval", "recipe.toml", "--weights", "ours.safetensors", "--json", "--per-class"]), of_run);
    let wrong = retort_in(at, &["import", "--from", "net.safetensors", "--net", "resnet14", "--to", "x.safetensors"]);
    assert_eq!(wrong.code, 65, "{}", wrong.err);
    assert!(ok(at, &["plan", "recipe.toml"]).contains("conv_stats"));
    assert!(
        ok(at, &["plan", "recipe.toml", "--memory", "--fusion", "off", "--batch", "2"]).contains("launches a step")
    );
}

#[test]
fn a_step_is_measured_without_data() {
    let folder = with_recipe(RECIPE);
    let args = ["bench", "recipe.toml", "--steps", "1", "--windows", "2", "--batch", "4", "--json", "record.json"];
    let shown = ok(folder.path(), &[&args[..], &["--profile", "--precision", "bf16"]].concat());
    for part in ["CPU, ", "bf16, batch 4 (8 images)", "median of 2 windows of 1 steps", "not captured", "(conv_stats)"]
    {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    let record = std::fs::read(folder.path().join("record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).expect("one JSON object");
    assert_eq!((&record["schema"], &record["images"], &record["precision"]), (&1.into(), &8.into(), &"bf16".into()));
    let (launches, profile) = (record["launches_per_step"].as_u64().unwrap(), record["profile"].as_array().unwrap());
    assert_eq!(launches as usize, profile.len());
    let sum = |key: &str| profile.iter().map(|l| l[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(
        (record["bytes_per_step"].as_u64(), record["flops_per_step"].as_u64()),
        (Some(sum("bytes")), Some(sum("flops")))
    );
    assert!(record["images_per_s"]["median"].as_f64().unwrap() > 0.0);
    let refused = retort_in(folder.path(), &["bench", "recipe.toml", "--precision", "f64"]);
    assert_eq!((refused.code, refused.out.as_str()), (64, ""), "{}", refused.err);
    let cpu = ok(folder.path(), &["plan", "recipe.toml", "--memory"]);
    assert!(cpu.contains("on a GPU: ") && cpu.contains(" commands"), "{cpu}");
}
