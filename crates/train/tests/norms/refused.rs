//! What is refused before the first step.

use std::path::Path;
use train::recipe::Recipe;
use train::{Device, RunOptions, Session, Verbosity};

const RECIPE: &str = r#"
[data]
set = "fashion"
folder = "FOLDER"
[network]
name = "resnet8"
[method]
name = "ce"
[train]
epochs = 1
global_batch = 32
[optimizer]
name = "sgd"
lr = 0.05
"#;

/// What opening a session of so many ranks says.
fn opens(ranks: usize, sets: &[&str]) -> Result<(), String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/fashion");
    let sets: Vec<_> = sets.iter().map(|s| s.to_string()).collect();
    let loaded = Recipe::parse(RECIPE.replace("FOLDER", folder), Path::new("norms.toml"), &sets).unwrap();
    let options = RunOptions { ranks, device: Some(Device::Cpu), verbosity: Verbosity::Quiet, ..RunOptions::default() };
    Session::open(loaded, options).map(drop).map_err(|e| e.to_string())
}

#[test]
fn what_depends_on_the_number_of_ranks_is_not_reproducible() {
    for bn in ["broadcast", "sync"] {
        let sets = [&format!("train.bn=\"{bn}\""), "train.reproducible=true", "train.micro_batch=8"];
        let error = opens(2, &sets).unwrap_err();
        assert!(error.contains("train.bn: expected \"local\" with train.reproducible and 2 ranks"), "{error}");
        assert!(error.contains("use train.bn = \"local\""), "{error}");
        assert_eq!(opens(1, &sets), Ok(()));
    }
    assert_eq!(opens(2, &["train.bn=\"local\"", "train.reproducible=true", "train.micro_batch=8"]), Ok(()));
    let error = Recipe::parse(RECIPE.to_string(), Path::new("norms.toml"), &["train.bn=\"global\"".into()]);
    let error = error.map(drop).unwrap_err().to_string();
    assert!(error.contains("unknown variant `global`, expected one of `local`, `broadcast`, `sync`"), "{error}");
}

#[test]
fn sync_needs_equally_many_micro_batches_on_all_ranks() {
    // The subset has no multiple of 28 images: the last step leaves ranks without work.
    let uneven = ["train.bn=\"sync\"", "train.global_batch=28"];
    let error = opens(4, &uneven).unwrap_err();
    assert!(
        error.starts_with("train.bn = \"sync\": in step ") && error.contains("set data.keep_last = false"),
        "{error}"
    );
    assert_eq!(opens(4, &[uneven[0], uneven[1], "data.keep_last=false"]), Ok(()));
    assert_eq!(opens(1, &uneven), Ok(()));
    // Three micro-batches for two ranks.
    let error = opens(2, &["train.bn=\"sync\"", "train.global_batch=24", "train.micro_batch=8"]).unwrap_err();
    assert!(
        error.contains("in step 0 of an epoch, of 24 units, the ranks have 1, 2 micro-batches of 8 units"),
        "{error}"
    );
}

#[test]
fn broadcast_needs_work_on_rank_0() {
    let error = opens(4, &["train.bn=\"broadcast\"", "train.micro_batch=16"]).unwrap_err();
    assert!(error.contains("rank 0 of 4 has none of the 2 micro-batches"), "{error}");
}
