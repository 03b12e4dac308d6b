//! F18: counts of an evaluation do not depend on the number of ranks.

use crate::job::set_up;
use crate::launching::Launch;
use crate::program::{retort_in, small_fashion};
use crate::table::{Tally, dice, each, is_long, runs, turn};
use serde_json::Value;
use std::path::Path;

/// Samples and correct ones of the evaluation in a run's log.
fn counts(run: &Path) -> (Value, Value) {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.rfind(|line| line["kind"] == "eval").expect("an evaluation");
    (line["samples"].clone(), line["correct"].clone())
}

#[test]
fn f18_counts_are_equal_for_any_number_of_ranks() {
    let _turn = turn();
    let (mut dice, tally) =
        (dice(), Tally::new("F18", "one epoch on 1 to 997 images; 1 to 8 threads, 1 to 8 processes: counts equal"));
    let sizes: Vec<u64> = (0..runs(1, 30)).map(|_| 1 + dice.below(if is_long() { 997 } else { 300 })).collect();
    each(2, &sizes, |&images| {
        let folder = set_up();
        small_fashion(folder.path(), images as u32);
        // Every batch is of 24 parts, which the ranks share; so all train the same weights.
        let args =
            ["--reproducible", "--micro-batch", "8", "--global-batch", "192", "--epochs", "1", "--set", "eval.batch=7"];
        let expected = {
            let run = ["train", "recipe.toml", "--run", "alone", "-q", "--threads", "1"];
            let ran = retort_in(folder.path(), &[&run[..], &args].concat());
            assert_eq!(ran.code, 0, "{images} images: {}", ran.err);
            counts(&folder.path().join("alone"))
        };
        assert_eq!(expected.0, images);
        for size in [2, 3, 4, 8] {
            let ranks = size.to_string();
            let name = format!("threads-{size}");
            let run = ["train", "recipe.toml", "--run", &name, "-q", "--threads", "1", "--ranks", &ranks];
            let ran = retort_in(folder.path(), &[&run[..], &args].concat());
            assert_eq!(ran.code, 0, "{images} images, {size} threads: {}", ran.err);
            assert_eq!(counts(&folder.path().join(&name)), expected, "{images} images, {size} threads");
            let run = format!("processes-{size}");
            let mut world = Launch { folder: folder.path(), run: &run, size, args: &args }.start();
            let (codes, _) = world.ends();
            assert!(codes.iter().all(|&code| code == 0), "{images} images: {}", world.words());
            assert_eq!(counts(&world.run), expected, "{images} images, {size} processes");
        }
        tally.ended(&[0]);
    });
    let first: Vec<String> = sizes.iter().take(8).map(u64::to_string).collect();
    tally.note(format!("images {}", first.join(", ")));
    tally.end(0.0, 0.0);
}
