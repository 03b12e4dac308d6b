//! What signals do to a training, and how soon.

use crate::job::{Job, set_up, train};
use crate::program::{retort_in, small_fashion};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Far more steps than happen.
const LONG: [&str; 4] = ["--epochs", "200", "--run", "run"];

/// Signals a long training after its first step; the outcome and the time to the end.
fn stopped_by(folder: &Path, signal: &str, more: &[&str]) -> (serde_json::Value, Duration) {
    let mut job = Job::start(folder, &[&LONG[..], &["--json"], more].concat());
    job.wait_for("ep 1/200");
    let begin = Instant::now();
    job.signal(signal);
    let ended = job.end();
    let took = begin.elapsed();
    let outcome: serde_json::Value = serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{}", ended.err));
    assert_eq!(outcome["exit"], ended.status.code().expect("a code"), "{}", ended.err);
    let steps = outcome["steps"].as_u64().unwrap();
    assert!(steps >= 1 && folder.join(format!("run/checkpoints/step-{steps}/manifest.json")).exists(), "{outcome}");
    (outcome, took)
}

#[test]
fn each_signal_has_its_code_and_every_one_saves_in_time() {
    let cases = [("USR2", 75, "1"), ("USR1", 75, "2"), ("TERM", 143, "1"), ("TERM", 143, "2"), ("INT", 130, "1")];
    for (signal, code, ranks) in cases {
        let folder = set_up();
        let (outcome, took) = stopped_by(folder.path(), signal, &["--ranks", ranks]);
        assert_eq!(outcome["exit"], code, "{signal}");
        assert!(took < Duration::from_millis(1800), "{signal} at {ranks} ranks took {took:?}");
        let steps = outcome["steps"].as_u64().unwrap();
        let on = train(folder.path(), &[&LONG[..], &["--max-steps", &(steps + 1).to_string()]].concat());
        assert!(on.err.contains(&format!("resumed at step {steps} from ")), "{}", on.err);
    }
}

#[test]
fn a_second_term_kills_and_the_last_checkpoint_stands() {
    let folder = set_up();
    small_fashion(folder.path(), 1600);
    // A step lasts long enough for many signals.
    let flags = ["--run", "run", "--global-batch", "400"];
    train(folder.path(), &[&flags[..], &["--max-steps", "1"]].concat());
    let mut job = Job::start(folder.path(), &flags);
    job.wait_for("ep 1/3 it 2/4");
    while !job.ends_within(Duration::from_millis(15)) {
        job.signal("TERM");
    }
    let ended = job.end();
    assert_eq!((ended.status.signal(), ended.out.as_str()), (Some(15), ""), "{:?} {}", ended.status, ended.err);
    let exported = retort_in(folder.path(), &["export", "run", "--to", "net.safetensors"]);
    assert!(exported.out.ends_with(" tensors of step 1\n"), "{}{}", exported.out, exported.err);
}

#[test]
fn hup_reopens_the_log() {
    let folder = set_up();
    let mut job = Job::start(folder.path(), &LONG);
    job.wait_for("ep 1/200");
    let (log, moved) = (folder.path().join("run/metrics.jsonl"), folder.path().join("run/metrics.1"));
    std::fs::rename(&log, &moved).unwrap();
    job.signal("HUP");
    // Twice, since the first end of an epoch may have been on its way.
    job.wait_for("epoch ");
    job.wait_for("epoch ");
    job.signal("TERM");
    assert_eq!(job.end().status.code(), Some(143));
    let text = std::fs::read_to_string(moved).unwrap() + &std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let steps: Vec<u64> = lines.filter(|l| l["kind"] == "step").map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
}
