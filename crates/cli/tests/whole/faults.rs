//! Bad input, damaged files, full disks, numbers that run away: one line that says what, a code, and nothing lost.

use crate::job::{Job, State, set_up, train};
use crate::program::{Ran, command, retort_in, small_fashion};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn fails(folder: &Path, args: &[&str], code: i32, parts: &[&str]) -> Ran {
    let ran = retort_in(folder, &[&["train", "recipe.toml"], args].concat());
    assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {}", ran.err);
    for part in parts {
        assert!(ran.err.contains(part), "{args:?}: no {part} in {}", ran.err);
    }
    ran
}

fn flip_a_bit(file: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 4;
    std::fs::write(file, bytes).unwrap();
}

/// The images of the folder, packed; the file for training.
fn packed(folder: &Path) -> PathBuf {
    std::fs::create_dir_all(folder.join("packed")).unwrap();
    for split in ["train", "test"] {
        let to = format!("packed/{split}.pack");
        let args = ["pack", "--set", "fashion", "--from", "images", "--split", split, "--to", &to, "-q"];
        assert_eq!(retort_in(folder, &args).code, 0);
    }
    folder.join("packed/train.pack")
}

#[test]
fn a_damaged_pack_is_found_before_or_when_it_is_read() {
    let folder = set_up();
    let at = folder.path();
    let flags = ["--set", "data.set=packed", "--set", "data.folder=packed", "--run", "run"];
    let with = |more: &[&'static str]| [&flags[..], more].concat();
    let file = packed(at);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    fails(at, &flags, 65, &["train.pack"]);
    std::fs::write(&file, &whole).unwrap();
    flip_a_bit(&file, |_| 41);
    fails(at, &flags, 65, &["train.pack"]);
    std::fs::write(&file, &whole).unwrap();
    flip_a_bit(&file, |bytes| bytes - 5);
    fails(at, &flags, 65, &["train.pack"]);
    assert!(!at.join("run").exists(), "nothing was begun");
    // One record of 88: the policy decides.
    std::fs::write(&file, &whole).unwrap();
    flip_a_bit(&file, |_| 100);
    fails(at, &with(&["--set", "data.on_bad_sample=fail"]), 65, &["train.pack", "CRC"]);
    let other = |run: &'static str| {
        with(&["--set", "data.max_bad=0.1"]).iter().map(|&f| if f == "run" { run } else { f }).collect::<Vec<_>>()
    };
    fails(at, &with(&[]), 65, &["data.max_bad = 0.001", "CRC"]);
    let flags = other("substituted");
    let first = train(at, &[&flags[..], &["--max-steps", "6"]].concat());
    assert!(
        first.err.contains("warning: unreadable images: 1 more, see substituted/bad_samples.jsonl"),
        "{}",
        first.err
    );
    train(at, &flags);
    let ledger = std::fs::read_to_string(at.join("substituted/bad_samples.jsonl")).unwrap();
    assert_eq!(ledger.lines().count(), 1, "once, however often it is drawn, and after a stop: {ledger}");
}

#[test]
fn a_damaged_checkpoint_is_reported_and_the_one_before_is_taken() {
    let folder = set_up();
    let at = folder.path();
    let flags = |run| ["--set", "output.checkpoint_steps=2", "--run", run];
    train(at, &flags("whole"));
    train(at, &[&flags("run")[..], &["--max-steps", "5"]].concat());
    flip_a_bit(&at.join("run/checkpoints/step-5/model.safetensors"), |bytes| bytes / 2);
    let ended = train(at, &flags("run"));
    let reported = "warning: checkpoint step-5 is not used: model.safetensors: BLAKE3 differs: tensor `";
    assert!(ended.err.contains(reported) && ended.err.contains("resumed at step 4"), "{}", ended.err);
    State::of(&at.join("run")).assert_equals(&State::of(&at.join("whole")), "after damage");

    train(at, &[&flags("lost")[..], &["--max-steps", "1"]].concat());
    flip_a_bit(&at.join("lost/checkpoints/step-1/manifest.json"), |bytes| bytes - 20);
    fails(at, &flags("lost"), 74, &["checkpoint step-1 is not used", "no checkpoint is good", "move the folder away"]);
    assert!(at.join("lost/checkpoints/step-1/manifest.json").exists(), "nothing is deleted");
}

#[test]
fn a_run_of_another_recipe_or_set_is_not_gone_on_with() {
    let folder = set_up();
    let at = folder.path();
    train(at, &["--run", "run", "--max-steps", "2"]);
    fails(at, &["--run", "run", "--lr", "0.1"], 64, &["run holds a run of another recipe", "--run"]);
    small_fashion(at, 90);
    fails(at, &["--run", "run"], 64, &["trained on other samples", "--run"]);
}

#[test]
fn numbers_that_run_away_stop_the_run_at_a_good_checkpoint() {
    let folder = set_up();
    let at = folder.path();
    let ran =
        fails(at, &["--run", "run", "--lr", "1e30"], 79, &["step 2: not finite, first at student/", "optimizer.lr"]);
    assert_eq!(ran.err.lines().filter(|l| l.starts_with("retort: ")).count(), 1, "{}", ran.err);
    let exported = retort_in(at, &["export", "run", "--to", "net.safetensors"]);
    assert!(exported.out.ends_with(" tensors of step 1\n"), "{}{}", exported.out, exported.err);
    // Two ranks agree, and both leave.
    fails(at, &["--run", "two", "--lr", "1e30", "--ranks", "2"], 79, &["first at student/"]);
    let skipping = ["--run", "skip", "--lr", "1e30", "--epochs", "8", "--set", "train.on_nonfinite=skip"];
    fails(at, &skipping, 79, &["step 21: not finite"]);
    // Its evaluations were not finite either, which the checkpoint must hold.
    fails(at, &skipping, 79, &["resumed at step 20", "step 40: not finite"]);
}

#[test]
fn nobody_needs_to_listen() {
    let folder = set_up();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(folder.path(), &["train", "recipe.toml", "--epochs", "1"]);
    let status = command.stdout(writer.try_clone().unwrap()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(State::of(&folder.path().join("runs/recipe")).checkpoint, "step-6");
}

/// A file system in memory; gone when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, options: &str) -> Option<Tmpfs> {
        std::fs::create_dir_all(&at).unwrap();
        mount(&at, options).then_some(Tmpfs(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).stderr(Stdio::null()).status();
    }
}

fn mount(at: &Path, options: &str) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

#[test]
fn a_full_disk_costs_saves_but_no_checkpoint() {
    let folder = set_up();
    let at = folder.path();
    let Some(disk) = Tmpfs::mount(at.join("disk"), "size=1500k") else {
        eprintln!("SKIPPED: no file system can be mounted here, which takes root");
        return;
    };
    let flags = |run| ["--set", "output.checkpoint_steps=2", "--set", "output.keep=100", "--run", run];
    fails(at, &flags("disk/run"), 78, &["bytes free, two checkpoints need", "free some space"]);
    assert!(mount(&disk.0, "remount,size=4m"));
    let ran = fails(
        at,
        &flags("disk/run"),
        74,
        &["the final checkpoint could not be written", "the newest good one is step-"],
    );
    assert_eq!(ran.err.matches("checkpoint not written").count(), 1, "one warning an event: {}", ran.err);
    assert!(ran.err.contains("epoch   3/3"), "training went on: {}", ran.err);
    assert!(mount(&disk.0, "remount,size=64m"));
    train(at, &flags("disk/run"));
    train(at, &flags("whole"));
    State::of(&at.join("disk/run")).assert_equals(&State::of(&at.join("whole")), "after a full disk");
    let again = Job::start(at, &flags("disk/run")).end();
    assert_eq!(again.status.code(), Some(0), "a complete run is no error: {}", again.err);
}
