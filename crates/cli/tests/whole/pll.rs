//! Label averaging from end to end: a backbone, its features, wrong labels, rounds of probes, and what they came to.

use crate::job::{IMAGES, State, train};
use crate::program::{RECIPE, Ran, retort_in, small_fashion, with_recipe};
use std::path::Path;
use tempfile::TempDir;

/// Probes on features in three stages.
const PROBES: &str = r#"[data]
set = "features"
folder = "features"
augment = "none"
[data.noise]
kind = "sym"
rate = 0.4
seed = 3
[network]
name = "linear"
[method]
name = "ce"
[train]
epochs = 3
global_batch = 16
[optimizer]
name = "sgd"
lr = 0.05
weight_decay = 1e-3
"#;

const STAGES: &str = r#"
[[stage]]
name = "round0"
set = {}
[[stage]]
name = "round1"
set = { method = { name = "pll", targets = "soft" }, teacher = [{ name = "linear", weights = "@round0" }] }
[[stage]]
name = "pll"
set = { method = { name = "pll" }, teacher = [{ name = "linear", weights = "@round0" }], train = { init_weights = "@round0" } }
"#;

fn ok(folder: &Path, args: &[&str]) -> String {
    let ran = retort_in(folder, args);
    assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
    ran.out
}

/// A folder with a trained backbone, its features, and `probes.toml`.
fn set_up(stages: &str) -> TempDir {
    let folder = with_recipe(&RECIPE.replace("ips", "ce"));
    small_fashion(folder.path(), IMAGES);
    ok(folder.path(), &["train", "recipe.toml", "--run", "backbone", "-q"]);
    let made = ok(folder.path(), &["features", "backbone", "--out", "features"]);
    assert_eq!(made.matches("88 features of 64 values, written").count(), 2, "{made}");
    std::fs::write(folder.path().join("probes.toml"), PROBES.to_owned() + stages).unwrap();
    folder
}

#[test]
fn rounds_are_trained_and_analysed() {
    let folder = set_up(STAGES);
    let folder = folder.path();
    let done = retort_in(folder, &["train", "probes.toml", "--run", "run"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let wrong =
        done.err.lines().find_map(|line| line.split("noise: sym, rate 0.4, seed 3: ").nth(1)).expect("the rate");
    let wrong: f64 = wrong.split(' ').next().unwrap().parse().unwrap();
    let told = ok(folder, &["averaging", "run"]);
    for stage in ["round0", "round1", "pll"] {
        assert!(folder.join("run").join(stage).join("noisy_labels.safetensors").is_file());
        assert!(told.lines().any(|line| line.starts_with(&format!("{stage} "))), "{told}");
    }
    let json = std::fs::read_to_string(folder.join("run/averaging.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["noise"], wrong / 88.0);
    assert_eq!(json["spectrum"].as_array().unwrap().len(), 64);
    let probes = json["probes"].as_array().unwrap();
    assert_eq!(probes.iter().map(|p| p["name"].as_str().unwrap()).collect::<Vec<_>>(), ["round0", "round1", "pll"]);
    // What the program measured during training is what the analysis finds.
    for probe in probes {
        let stage = format!("run/{}", probe["name"].as_str().unwrap());
        let eval: serde_json::Value = serde_json::from_str(&ok(folder, &["eval", &stage, "--json"])).unwrap();
        assert_eq!(eval["top1"], probe["test_accuracy"]);
    }
    assert!(std::fs::read_to_string(folder.join("run/averaging.svg")).unwrap().starts_with("<svg"));
    let theory =
        ok(folder, &["averaging", "features", "--rate", "0.4", "--noise-seed", "3", "--rounds", "2", "--out", "."]);
    assert!(theory.lines().any(|line| line.starts_with("round2 ") && line.ends_with("1.0000")), "{theory}");
}

#[test]
fn features_are_used_again_and_made_anew() {
    let folder = set_up("");
    let folder = folder.path();
    let train = folder.join("features/train.safetensors");
    let (first, changed) = (std::fs::read(&train).unwrap(), || std::fs::metadata(&train).unwrap().modified().unwrap());
    let made = changed();
    let again = ok(folder, &["features", "backbone", "--out", "features"]);
    assert_eq!(again.matches("used again").count(), 2, "{again}");
    assert_eq!(changed(), made);
    // Exported weights are the same weights.
    ok(folder, &["export", "backbone", "--to", "w.safetensors"]);
    let exported = ok(folder, &["features", "recipe.toml", "--weights", "w.safetensors", "--out", "features"]);
    assert_eq!(exported.matches("used again").count(), 2, "{exported}");
    let mut damaged = first.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&train, damaged).unwrap();
    let refused = retort_in(folder, &["train", "probes.toml", "--run", "run"]);
    assert_eq!(refused.code, 65, "{}", refused.err);
    assert!(refused.err.contains("the file is damaged"), "{}", refused.err);
    let repaired = ok(folder, &["features", "backbone", "--out", "features"]);
    assert_eq!(repaired.matches("written").count(), 1, "{repaired}");
    assert_eq!(std::fs::read(&train).unwrap(), first, "the same bits");
    let exact = ok(folder, &["features", "backbone", "--out", "exact", "--resize", "exact", "--set", "data.size=32"]);
    assert_eq!(exact.matches("written").count(), 2, "{exact}");
    assert_ne!(std::fs::read(folder.join("exact/train.safetensors")).unwrap(), first);
    // Images that were held out are others than those that the network saw.
    let held = ["--set", "data.validation_per_class=2", "--train-split", "val"];
    let held = ok(folder, &[&["features", "backbone", "--out", "held"], &held[..]].concat());
    assert!(held.contains("20 features of 64 values, written"), "{held}");
}

#[test]
fn a_probe_goes_on_with_the_same_bits() {
    let folder = set_up("");
    let folder = folder.path();
    std::fs::rename(folder.join("probes.toml"), folder.join("recipe.toml")).unwrap();
    train(folder, &["--run", "whole"]);
    train(folder, &["--run", "parts", "--max-steps", "8"]);
    train(folder, &["--run", "parts"]);
    train(folder, &["--run", "ranks", "--ranks", "2"]);
    let weights = |run: &str| State::of(&folder.join(run)).files["model.safetensors"].clone();
    assert!(weights("whole") == weights("parts"), "a stop and a start change nothing");
    let accuracy = |run: &str| ok(folder, &["eval", run, "--json"]);
    assert_eq!(accuracy("whole"), accuracy("parts"));
    assert!(accuracy("ranks").contains("\"samples\":88"));
    let other = retort_in(folder, &["train", "recipe.toml", "--run", "whole", "--set", "data.noise.seed=4"]);
    assert_eq!(other.code, 64, "{}", other.err);
    assert!(other.err.contains("trained on other samples"), "{}", other.err);
}

#[test]
fn what_makes_no_sense_is_refused_with_a_remedy() {
    let folder = set_up("");
    let folder = folder.path();
    let refused = |ran: Ran, parts: &[&str]| {
        assert_ne!(ran.code, 0);
        parts.iter().for_each(|part| assert!(ran.err.contains(part), "no {part:?} in {}", ran.err));
    };
    let train = |set: &str| retort_in(folder, &["train", "probes.toml", "--run", "run", "--dry-run", "--set", set]);
    refused(train("data.augment=pad_crop"), &["data.augment: expected \"none\" with data.set", "got \"pad_crop\""]);
    refused(train("data.noise.rate=1.5"), &["data.noise.rate: expected 0 to 1, got 1.5"]);
    refused(train("data.noise.kind=even"), &["unknown variant `even`", "`sym`"]);
    let images = RECIPE.replace("[network]", "[data.noise]\nkind = \"cc\"\nrate = 0.5\n[network]");
    std::fs::write(folder.join("images.toml"), images).unwrap();
    refused(retort_in(folder, &["train", "images.toml", "--dry-run"]), &["\"cc\" groups classes", "retort features"]);
    ok(folder, &["train", "probes.toml", "--run", "run", "-q", "--max-steps", "1"]);
    refused(retort_in(folder, &["predict", "--run", "run", "x.png"]), &["feature vectors", "predict with the network"]);
    refused(
        retort_in(folder, &["features", "probes.toml", "--weights", "w.safetensors", "--out", "x"]),
        &["got features"],
    );
    refused(retort_in(folder, &["averaging", "backbone"]), &["no stage is complete"]);
    refused(retort_in(folder, &["averaging", "features", "--weight-decay", "0"]), &["weight decay", "above 0"]);
}
