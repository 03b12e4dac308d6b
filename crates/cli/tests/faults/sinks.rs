//! F23: nobody listens, or the logs cannot be written: training does not notice.

use crate::job::set_up;
use crate::launching::Launch;
use crate::resumes::{assert_equal, whole};
use crate::slowness::seconds;
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

#[test]
fn f23_nobody_needs_to_listen() {
    let _turn = turn();
    let folder = set_up();
    let expected = whole(folder.path(), 2, 3);
    let tally = Tally::new("F23", "stdout and stderr of 2 ranks are closed pipes: weights and metrics as ever");
    for _ in 0..runs(1, 10) {
        let _ = std::fs::remove_dir_all(folder.path().join("run"));
        let run = folder.path().join("run");
        let start = |rank: usize| {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let args = ["train", "recipe.toml", "--threads", "1", "--epochs", "3", "--run", run.to_str().unwrap()];
            let mut command = crate::program::command(folder.path(), &args);
            command.env("RETORT_RANK", rank.to_string()).env("RETORT_WORLD_SIZE", "2");
            command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap()
        };
        let ranks = [start(0), start(1)];
        let codes = ranks.map(|mut rank| rank.wait().unwrap().code().unwrap_or(-1));
        assert_eq!(codes, [0, 0]);
        tally.ended(&codes);
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

#[test]
fn f23_logs_that_cannot_be_written_cost_nothing() {
    let _turn = turn();
    let pairs = runs(0, 400);
    if pairs == 0 {
        eprintln!("in the long form only: a difference of 1 % takes many pairs to see");
        return;
    }
    let full = || {
        let folder = set_up();
        let logs =
            Tmpfs::mount(folder.path().join("run/logs"), "size=4k").expect("a file system in memory, which takes root");
        std::fs::write(logs.0.join("full"), [0; 4096]).expect("the disk takes that much");
        seconds(folder.path(), &[])
    };
    let (median, error) = in_pairs(pairs, full, || seconds(set_up().path(), &[]));
    let tally = Tally::new("F23", "199 steps of 2 ranks with logs on a full disk against good logs, in pairs");
    (0..pairs).for_each(|_| tally.ended(&[0, 0]));
    tally.note(format!("time of a step × {median:.4} ± {error:.4} (median, standard error)"));
    tally.end(0.0, 0.0);
    assert!(median - 2.0 * error <= 1.01, "{median} ± {error}");
}
