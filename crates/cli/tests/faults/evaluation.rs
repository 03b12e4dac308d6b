//! F18: counts of an evaluation do not depend on the number of ranks.

use crate::job::set_up;
use crate::launching::Launch;
use crate::program::{fashion, retort_in};
use crate::table::{Tally, dice, each, runs, turn};
use serde_json::Value;
use std::path::Path;

/// Samples and correct ones of the evaluation in a run's log.
fn counts(run: &Path) -> (Value, Value) {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.rfind(|line| line["kind"] == "eval").expect("an evaluation");
    (line["samples"].clone(), line["correct"].clone())
}

/// Sizes of the validation set of the fault list, and ranks.
const SIZES: std::ops::RangeInclusive<u32> = 1..=997;
const RANKS: std::ops::RangeInclusive<usize> = 2..=8;

#[test]
fn f18_counts_are_equal_for_any_number_of_ranks() {
    let _turn = turn();
    let how =
        "one step, then 1 to 997 images to test with; 1 to 8 threads, 1 to 8 processes: samples and correct ones equal";
    let (mut dice, tally) = (dice(), Tally::new("F18", how));
    // By chance, none twice.
    let mut sizes: Vec<u32> = SIZES.collect();
    let asked = runs(1, sizes.len());
    for i in 0..asked {
        let left = (sizes.len() - i) as u64;
        sizes.swap(i, i + dice.below(left) as usize);
    }
    sizes.truncate(asked);
    each(4, &sizes, |&images| {
        let folder = set_up();
        fashion(folder.path(), 24, images);
        // The batch is of 840 parts, which any number of ranks up to 8 divides; so all train the same weights.
        let step = ["--reproducible", "--micro-batch", "1", "--global-batch", "840", "--epochs", "1"];
        let args = [&step[..], &["--set", "eval.batch=7"]].concat();
        let threads = |ranks: usize| {
            let (run, ranks) = (format!("threads-{ranks}"), ranks.to_string());
            let words = ["train", "recipe.toml", "--run", &run, "-q", "--threads", "1", "--ranks", &ranks];
            let ran = retort_in(folder.path(), &[&words[..], &args].concat());
            assert_eq!(ran.code, 0, "{images} images, {ranks} threads: {}", ran.err);
            counts(&folder.path().join(run))
        };
        let expected = threads(1);
        assert_eq!(expected.0, images);
        for size in RANKS {
            assert_eq!(threads(size), expected, "{images} images, {size} threads");
            let run = format!("processes-{size}");
            let mut world = Launch { folder: folder.path(), run: &run, size, args: &args }.start();
            let (codes, _) = world.ends();
            assert!(codes.iter().all(|&code| code == 0), "{images} images: {}", world.words());
            assert_eq!(counts(&world.run), expected, "{images} images, {size} processes");
        }
        tally.ended(&[0]);
    });
    tally.note(format!("{} of the {} sizes", sizes.len(), SIZES.count()));
    tally.end(0.0, 0.0);
}
