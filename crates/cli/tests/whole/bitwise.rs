//! The same bits for any number of threads and ranks, and however often a run is stopped or killed.

use crate::job::{Dice, EPOCH, Job, State, set_up, train};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn threads_change_no_bit() {
    let folder = set_up();
    let state = |threads: &str| {
        train(folder.path(), &["--run", threads, "--threads", threads, "--epochs", "2", "-q"]);
        State::of(&folder.path().join(threads))
    };
    let one = state("1");
    assert_eq!(one.checkpoint, "step-12");
    for threads in ["2", "4"] {
        state(threads).assert_equals(&one, &format!("{threads} threads"));
    }
}

#[test]
fn ranks_change_no_bit_of_reproducible_runs() {
    let folder = set_up();
    let state = |run: &str, ranks: &str, more: &[&str]| {
        let all = [&["--run", run, "--ranks", ranks, "--reproducible", "--micro-batch", "4", "-q"], more].concat();
        train(folder.path(), &all);
        State::of(&folder.path().join(run))
    };
    let one = state("1", "1", &[]);
    state("2", "2", &[]).assert_equals(&one, "2 ranks");
    state("4", "4", &[]).assert_equals(&one, "4 ranks");
    state("mixed", "2", &["--max-steps", "4"]);
    state("mixed", "1", &["--max-steps", "11"]);
    state("mixed", "4", &[]).assert_equals(&one, "2, then 1, then 4 ranks");
}

#[test]
fn a_run_that_ended_early_goes_on_as_if_it_had_not() {
    let folder = set_up();
    let every = ["output.checkpoint_steps=5", "output.checkpoint_every=2", "output.keep=100"];
    let flags: Vec<&str> = every.iter().flat_map(|set| ["--set", set]).chain(["-q", "--run"]).collect();
    let run = |more: &[&str]| train(folder.path(), &[&flags[..], more].concat());
    run(&["whole"]);
    let whole = State::of(&folder.path().join("whole"));
    assert_eq!(whole.checkpoint, format!("step-{}", 3 * EPOCH));
    // The first step, mid-epoch, at a scheduled checkpoint, the end of an epoch twice, the step behind it.
    for steps in ["1", "4", "5", "6", "12", "13", "1000", "1000"] {
        run(&["parts", "--max-steps", steps]);
    }
    let parts = folder.path().join("parts");
    State::of(&parts).assert_equals(&whole, "in parts");
    // Who is killed at the end of a save leaves the older name there.
    std::fs::write(parts.join("checkpoints/latest"), "step-13\n").unwrap();
    run(&["parts"]);
    State::of(&parts).assert_equals(&whole, "with the name of an older checkpoint");
    run(&["parts", "--resume", "parts/checkpoints/step-5"]);
    State::of(&parts).assert_equals(&whole, "again from an older checkpoint");
}

/// Trains into `whole`, then into `parts`, preempted first at once, then at random moments; how often.
fn preempted(folder: &Path) -> usize {
    let begin = Instant::now();
    train(folder, &["--run", "whole", "-q"]);
    let whole_ms = begin.elapsed().as_millis() as u64;
    let mut dice = Dice::new("RETORT_TEST_SEED");
    for times in 0.. {
        let mut job = Job::start(folder, &["--run", "parts"]);
        job.wait_for("device:");
        let moment_ms = if times == 0 { 0 } else { dice.below(whole_ms) };
        if times < 8 && !job.ends_within(Duration::from_millis(moment_ms)) {
            job.signal("USR2");
        }
        let ended = job.end();
        match ended.status.code() {
            Some(0) => return times,
            code => assert_eq!(code, Some(75), "{}", ended.err),
        }
    }
    unreachable!("the ninth run is left alone")
}

#[test]
fn preemption_at_random_moments_changes_no_bit() {
    let folder = set_up();
    let times = preempted(folder.path());
    assert!(times > 0);
    let whole = State::of(&folder.path().join("whole"));
    State::of(&folder.path().join("parts")).assert_equals(&whole, &format!("preempted {times} times"));
}

#[test]
fn preemption_changes_no_bit_of_any_stage() {
    let folder = set_up();
    let recipe = folder.path().join("recipe.toml");
    let stages = r#"
[[stage]]
name = "taught"
set = { method = { name = "ce" } }
[[stage]]
name = "student"
set = { method = { name = "kd", temperature = 4.0, ce_weight = 0.1, kd_weight = 0.9 }, teacher = [{ name = "resnet8", weights = "@taught" }] }
"#;
    std::fs::write(&recipe, std::fs::read_to_string(&recipe).unwrap() + stages).unwrap();
    let times = preempted(folder.path());
    for stage in ["taught", "student"] {
        let state = |run: &str| State::of(&folder.path().join(run).join(stage));
        state("parts").assert_equals(&state("whole"), &format!("{stage}, preempted {times} times"));
    }
}

#[test]
fn twenty_kills_at_random_moments_change_no_bit() {
    let folder = set_up();
    let flags = ["--epochs", "5", "--set", "output.checkpoint_steps=2", "-q", "--run"];
    train(folder.path(), &[&flags[..], &["whole"]].concat());
    let whole = State::of(&folder.path().join("whole"));
    let mut dice = Dice::new("RETORT_TEST_SEED");
    let (mut kills, mut runs) = (0, 0);
    loop {
        let run = format!("killed{runs}");
        let mut job = Job::start(folder.path(), &[&flags[..], &[&run]].concat());
        if kills < 20 && !job.ends_within(Duration::from_millis(dice.below(500))) {
            job.signal("KILL");
            job.end();
            // Without it the fourth kill before a first checkpoint would end the run for lack of progress.
            let _ = std::fs::remove_file(folder.path().join(&run).join("starts.json"));
            kills += 1;
            continue;
        }
        let ended = job.end();
        assert_eq!(ended.status.code(), Some(0), "after {kills} kills: {}", ended.err);
        State::of(&folder.path().join(&run)).assert_equals(&whole, &format!("{run} after {kills} kills"));
        runs += 1;
        if kills == 20 {
            break;
        }
    }
}
