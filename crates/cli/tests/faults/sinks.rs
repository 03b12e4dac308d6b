//! F23: nobody listens, or the logs cannot be written: training does not notice.

use crate::job::set_up;
use crate::launching::Launch;
use crate::program::small_fashion;
use crate::resumes::{assert_equal, whole};
use crate::slowness::{TIMED, TIMED_IMAGES, seconds, seconds_of};
use crate::table::{Tally, in_pairs, runs, turn};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system in memory; gone when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, options: &str) -> Option<Tmpfs> {
        std::fs::create_dir_all(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Tmpfs(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// Trains two ranks; the weights are those of a run that nothing happened to.
fn trains(folder: &Path, tally: &Tally) {
    let mut world = Launch { folder, run: "run", size: 2, args: &["--epochs", "3"] }.start();
    let (codes, _) = world.ends();
    assert_eq!(codes, [0, 0], "{}", world.words());
    tally.ended(&codes);
}

/// Two ranks whose stdout and stderr are pipes that nobody reads from; their run folder.
fn unheard(folder: &Path, args: &[&str]) -> PathBuf {
    let run = folder.join("run");
    let start = |rank: usize| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let train = ["train", "recipe.toml", "--threads", "1", "--run", run.to_str().unwrap()];
        let mut command = crate::program::command(folder, &[&train, args].concat());
        command.env("RETORT_RANK", rank.to_string()).env("RETORT_WORLD_SIZE", "2");
        command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap()
    };
    let codes = [start(0), start(1)].map(|mut rank| rank.wait().unwrap().code().unwrap_or(-1));
    assert_eq!(codes, [0, 0]);
    run
}

#[test]
fn f23_nobody_needs_to_listen() {
    let _turn = turn();
    let folder = set_up();
    let expected = whole(folder.path(), 2, 3);
    let tally = Tally::new("F23", "stdout and stderr of 2 ranks are closed pipes: weights and metrics as ever");
    for _ in 0..runs(1, 10) {
        let _ = std::fs::remove_dir_all(folder.path().join("run"));
        let run = unheard(folder.path(), &["--epochs", "3"]);
        tally.ended(&[0, 0]);
        assert_equal(&run, &expected, "closed pipes");
    }
    tally.end(0.0, 0.0);
}

#[test]
fn f23_logs_that_cannot_be_written_stop_nothing() {
    let _turn = turn();
    for (how, options) in [("on a read-only disk", "ro"), ("on a full disk", "size=4k")] {
        let tally = Tally::new("F23", &format!("the folder of logs is {how}: weights and metrics as ever"));
        for _ in 0..runs(1, 10) {
            let folder = set_up();
            let expected = whole(folder.path(), 2, 3);
            let Some(logs) = Tmpfs::mount(folder.path().join("run/logs"), options) else {
                eprintln!("SKIPPED: no file system can be mounted here, which takes root");
                return;
            };
            let _ = std::fs::write(logs.0.join("full"), [0; 4096]);
            trains(folder.path(), &tally);
            assert_equal(&folder.path().join("run"), &expected, how);
        }
        tally.end(0.0, 0.0);
    }
}

/// Runs in pairs with ordinary ones; in the long form only, since a difference of 1 % takes many pairs to see.
fn costs_nothing(how: &str, fault: impl Fn() -> f64) {
    let _turn = turn();
    let pairs = runs(0, 400);
    if pairs == 0 {
        eprintln!("in the long form only");
        return;
    }
    let (median, error) = in_pairs(pairs, fault, || seconds(set_up().path(), &[]));
    let tally = Tally::new("F23", &format!("199 steps of 2 ranks with {how}, in pairs"));
    (0..pairs).for_each(|_| tally.ended(&[0, 0]));
    tally.note(format!("time of a step × {median:.4} ± {error:.4} (median, standard error)"));
    tally.end(0.0, 0.0);
    assert!(median - 2.0 * error <= 1.01, "{median} ± {error}");
}

#[test]
fn f23_logs_that_cannot_be_written_cost_nothing() {
    costs_nothing("logs on a full disk against good logs", || {
        let folder = set_up();
        let logs =
            Tmpfs::mount(folder.path().join("run/logs"), "size=4k").expect("a file system in memory, which takes root");
        std::fs::write(logs.0.join("full"), [0; 4096]).expect("the disk takes that much");
        seconds(folder.path(), &[])
    });
}

#[test]
fn f23_pipes_that_nobody_reads_cost_nothing() {
    costs_nothing("closed pipes for stdout and stderr against good ones", || {
        let folder = set_up();
        small_fashion(folder.path(), TIMED_IMAGES);
        seconds_of(&unheard(folder.path(), &TIMED))
    });
}
