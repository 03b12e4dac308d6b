//! F8, F9: killed at random moments and gone on with, also by another number of ranks: the bits of the uninterrupted run.

use crate::job::{EPOCH, State, set_up};
use crate::launching::{Launch, signal};
use crate::program::retort_in;
use crate::table::{Dice, Tally, dice, each, runs, turn};
use std::path::Path;
use tensor::safe::SafeFile;

/// What a run came to. What the watch tells of slow ranks depends on the machine.
pub(crate) fn state(run: &Path) -> State {
    let mut state = State::of(run);
    state.metrics.retain(|line| line["event"] != "straggler");
    state
}

pub(crate) fn assert_equal(run: &Path, expected: &State, what: &str) {
    state(run).assert_equals(expected, what);
}

/// What the uninterrupted run of so many ranks and epochs comes to.
pub(crate) fn whole(folder: &Path, size: usize, epochs: u64) -> State {
    let mut world = Launch { folder, run: "whole", size, args: &["--epochs", &epochs.to_string()] }.start();
    assert!(world.ends().0.iter().all(|&code| code == 0), "{}", world.words());
    state(&world.run)
}

#[test]
fn f08_killed_and_gone_on_with_bits_are_equal() {
    let _turn = turn();
    let mut dice = dice();
    for size in [1, 2] {
        let folder = set_up();
        let expected = whole(folder.path(), size, 4);
        let how = format!(
            "kill -9 of one of {size} at a random step, twice; gone on with, bits and metrics as uninterrupted"
        );
        let tally = Tally::new("F8", &how);
        let kills = |dice: &mut Dice| {
            let first = 1 + dice.below(4 * EPOCH - 2);
            let second = first + 1 + dice.below(4 * EPOCH - 1 - first);
            [first, second].map(|step| (step, dice.below(size as u64) as usize))
        };
        let cases: Vec<_> = (0..runs(2, 200)).map(|_| kills(&mut dice)).collect();
        each(4, &cases, |kills| {
            let folder = set_up();
            let args = ["--epochs", "4", "--set", "output.checkpoint_every=1"];
            let launch = Launch { folder: folder.path(), run: "run", size, args: &args };
            for &(step, victim) in kills {
                let mut world = launch.start();
                world.at_step(step);
                signal(world.processes[victim].id(), "KILL");
                let (codes, _) = world.ends();
                let code = |rank: usize| if rank == victim { 137 } else { 76 };
                tally.named(codes.iter().enumerate().all(|(rank, &got)| got == code(rank)));
            }
            let mut world = launch.start();
            let (codes, _) = world.ends();
            assert!(codes.iter().all(|&code| code == 0), "{}", world.words());
            tally.ended(&codes);
            assert_equal(&world.run, &expected, &how);
        });
        tally.end(0.0, 0.0);
    }
}

#[test]
fn f09_the_number_of_ranks_may_change_and_bits_stay() {
    let _turn = turn();
    let tally = Tally::new(
        "F9",
        "ranks 1 → 2 → 4 → 8 → 1, 3 steps each, reproducible: bits and metrics as one rank uninterrupted",
    );
    for _ in 0..runs(1, 5) {
        let folder = set_up();
        let reproducible = ["--reproducible", "--micro-batch", "4", "--global-batch", "32", "--epochs", "5"];
        let alone = [&["train", "recipe.toml", "--run", "whole", "-q"][..], &reproducible].concat();
        assert_eq!(retort_in(folder.path(), &alone).code, 0);
        let mut all = vec![];
        for (size, to) in [(1, "3"), (2, "6"), (4, "9"), (8, "12"), (1, "15")] {
            let args = [&reproducible[..], &["--max-steps", to]].concat();
            let mut world = Launch { folder: folder.path(), run: "run", size, args: &args }.start();
            let (codes, _) = world.ends();
            assert!(codes.iter().all(|&code| code == 0), "{}", world.words());
            all.extend(codes);
        }
        tally.ended(&all);
        assert_equal(&folder.path().join("run"), &state(&folder.path().join("whole")), "1 → 2 → 4 → 8 → 1");
    }
    tally.end(0.0, 0.0);
}

/// All floating-point values of the weights of a run.
fn weights(run: &Path) -> Vec<f64> {
    let file = "model.safetensors";
    let tensors =
        SafeFile::from_bytes(state(run).files.remove(file).expect(file), file).and_then(|file| file.tensors());
    tensors.expect("a good file").values().filter_map(|tensor| tensor.to_f64().ok()).flatten().collect()
}

/// Ranks that need not be reproducible sum in another order. Later steps make more of that, by way of what is not continuous.
#[test]
fn f09_without_reproducibility_the_next_step_differs_by_rounding() {
    let _turn = turn();
    let tally = Tally::new("F9", "ranks 1 → 2, 4 or 8 at step 3, not reproducible: weights a step later as one rank's");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let mut most = 0.0f64;
    for _ in 0..runs(1, 5) {
        let folder = set_up();
        let train = |run: &str, size: usize, to: &str| {
            let args = ["--micro-batch", "4", "--global-batch", "32", "--epochs", "5", "--max-steps", to];
            let mut world = Launch { folder: folder.path(), run, size, args: &args }.start();
            let (codes, _) = world.ends();
            assert!(codes.iter().all(|&code| code == 0), "{}", world.words());
            codes
        };
        train("whole", 1, "4");
        let whole = weights(&folder.path().join("whole"));
        for size in [2, 4, 8] {
            let run = format!("run-{size}");
            train(&run, 1, "3");
            tally.ended(&train(&run, size, "4"));
            let other = weights(&folder.path().join(run));
            assert_eq!(other.len(), whole.len());
            let apart = norm(&mut other.iter().zip(&whole).map(|(a, b)| a - b)) / norm(&mut whole.iter().copied());
            most = most.max(apart);
        }
    }
    tally.note(format!("at most {most:.1e} of their norm apart"));
    assert!(most > 0.0 && most <= 1e-6, "{most:e} of their norm apart");
    tally.end(0.0, 0.0);
}
