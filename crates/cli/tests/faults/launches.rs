//! F14, F15, F16: ranks that never come, launches that are wrong, many jobs at once.

use crate::job::set_up;
use crate::launching::{Launch, World};
use crate::program::command;
use crate::table::{Tally, is_long, runs, turn};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Starts `size` ranks, changed by `edit`; all end with this code, rank 0 says one line with these words, in time.
fn refused(
    folder: &Path,
    size: usize,
    (code, words): (i32, &[&str]),
    edit: &dyn Fn(usize, &mut Command),
) -> (World, Vec<i32>) {
    let begin = Instant::now();
    let args = ["--set", "ranks.rendezvous_s=20", "--global-batch", "24"];
    let mut world = Launch { folder, run: "run", size, args: &args }.start_each(edit);
    let (codes, last) = world.ends();
    assert!(codes.iter().all(|&c| c == code), "{words:?}: {codes:?} {}", world.words());
    // Below an error in a recipe stands the place, as lines of the recipe.
    let place = |line: &&str| {
        line.split_once('|').is_none_or(|(number, _)| !number.bytes().all(|b| b" 0123456789".contains(&b)))
    };
    let said: Vec<&str> = world.processes[0].err.lines().filter(place).collect();
    assert!(said.len() == 1 && said[0].starts_with("retort: "), "{words:?}: one line: {said:?}");
    assert!(words.iter().all(|word| said[0].contains(word)), "{words:?}: {}", said[0]);
    assert!(last - begin <= crate::table::target(5.0), "{words:?} after {:?}", last - begin);
    (world, codes)
}

#[test]
fn f14_a_rank_that_never_comes_is_named() {
    let _turn = turn();
    let cases: [(&str, &[&str]); 2] = [("0", &["ranks 1 and 2 of 3 missing"]), ("1", &["rank 1 did not find rank 0"])];
    for (rank, words) in cases {
        let tally = Tally::new("F14", &format!("only rank {rank} of 3 comes; time after the limit of 1 s"));
        for _ in 0..runs(1, 10) {
            let folder = set_up();
            let begin = Instant::now();
            let args = ["--set", "ranks.rendezvous_s=1", "--global-batch", "24"];
            let launch = Launch { folder: folder.path(), run: "run", size: 1, args: &args };
            let mut world = launch.start_each(|_, command| {
                command.env("RETORT_RANK", rank).env("RETORT_WORLD_SIZE", "3");
            });
            let (codes, last) = world.ends();
            assert_eq!(codes, [69], "{}", world.words());
            tally.gone(begin + Duration::from_secs(1), last);
            tally.named(words.iter().all(|word| world.processes[0].err.contains(word)));
            tally.ended(&codes);
        }
        tally.end(0.0, 5.0);
    }
}

#[test]
fn f14_a_rank_that_cannot_ask_where_rank_0_is_says_so() {
    let _turn = turn();
    let cases = [
        ("no-such-host.invalid:29500", "whose name does not resolve", "lookup"),
        ("127.0.0.1:1", "where nobody listens", "refused"),
    ];
    for (address, how, words) in cases {
        let tally = Tally::new("F14", &format!("rank 0 is to be at an address {how}; time after the limit of 1 s"));
        for _ in 0..runs(1, 10) {
            let folder = set_up();
            let secret = folder.path().join("secret");
            std::fs::write(&secret, [7; 32]).unwrap();
            std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
            let begin = Instant::now();
            let args = ["--set", "ranks.rendezvous_s=1", "--global-batch", "24", "--rendezvous", address];
            let launch = Launch { folder: folder.path(), run: "run", size: 1, args: &args };
            let mut world = launch.start_each(|_, command| {
                command.env("RETORT_RANK", "1").env("RETORT_WORLD_SIZE", "2").env("RETORT_JOB_SECRET_FILE", &secret);
                // A name server that does not answer is not this test's matter.
                command.env("RES_OPTIONS", "timeout:1 attempts:1");
            });
            let (codes, last) = world.ends();
            assert_eq!(codes, [69], "{}", world.words());
            tally.gone(begin + Duration::from_secs(1), last);
            tally.named([address, words].iter().all(|word| world.processes[0].err.contains(word)));
            tally.ended(&codes);
        }
        tally.end(0.0, 5.0);
    }
}

#[test]
fn f14_a_late_rank_joins() {
    let _turn = turn();
    let late = Duration::from_secs(if is_long() { 120 } else { 2 });
    let tally = Tally::new("F14", &format!("rank 1 of 2 comes {} s late and joins", late.as_secs()));
    let folder = set_up();
    let launch = Launch { folder: folder.path(), run: "run", size: 1, args: &[] };
    let start = |rank: &str| {
        launch.start_each(|_, command| {
            command.env("RETORT_RANK", rank).env("RETORT_LOCAL_RANK", rank).env("RETORT_WORLD_SIZE", "2");
        })
    };
    let mut first = start("0");
    assert!(!first.processes[0].ends_within(late), "it waits: {}", first.words());
    let begin = Instant::now();
    let mut second = start("1");
    let ((mut codes, _), (others, last)) = (first.ends(), second.ends());
    codes.extend(others);
    assert_eq!(codes, [0, 0], "{} {}", first.words(), second.words());
    tally.gone(begin, last);
    tally.ended(&codes);
    tally.end(0.0, 0.0);
}

/// The program with one more byte, which changes nothing but what it is.
fn other_program(folder: &Path) -> std::path::PathBuf {
    let other = folder.join("retort");
    std::fs::copy(env!("CARGO_BIN_EXE_retort"), &other).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&other).unwrap();
    std::io::Write::write_all(&mut file, &[0]).unwrap();
    other
}

/// A change of the last rank's command.
type Edit = Box<dyn Fn(&Path, &mut Command)>;

fn set(name: &'static str, value: &'static str) -> Edit {
    Box::new(move |_, command| {
        command.env(name, value);
    })
}

fn add(args: &'static [&'static str]) -> Edit {
    Box::new(move |_, command| {
        command.args(args);
    })
}

#[test]
fn f15_launch_mistakes_are_one_line() {
    let _turn = turn();
    let other: Edit = Box::new(|folder, command| {
        let mut changed = Command::new(other_program(folder));
        changed.args(command.get_args()).current_dir(folder);
        changed.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        *command = changed;
    });
    // How, ranks, the change, code, words of the line.
    let cases: Vec<(&str, usize, Edit, i32, &[&str])> = vec![
        ("world sizes 2 and 3", 2, set("RETORT_WORLD_SIZE", "3"), 78, &["world sizes differ", "rank 1 of 3"]),
        ("different recipes", 2, add(&["--lr", "0.07"]), 64, &["different recipes", "rank 1"]),
        (
            "a recipe that is wrong on one rank",
            2,
            add(&["--set", "train.epochs=x"]),
            64,
            &["rank 1: ", "expected a whole number"],
        ),
        ("different programs", 2, other, 78, &["different programs", "rank 1"]),
        ("two processes of one rank", 3, set("RETORT_RANK", "1"), 78, &["two processes are rank 1"]),
        ("two of one local rank", 2, set("RETORT_LOCAL_RANK", "0"), 78, &["local rank 0", "ranks 0 and 1"]),
    ];
    for (how, size, edit, code, words) in cases {
        let tally = Tally::new("F15", how);
        for _ in 0..runs(1, 10) {
            let (folder, begin) = (set_up(), Instant::now());
            let last = |rank: usize, command: &mut Command| {
                if rank + 1 == size {
                    edit(folder.path(), command)
                }
            };
            let (world, codes) = refused(folder.path(), size, (code, words), &last);
            tally.gone(begin, Instant::now());
            tally.ended(&codes);
            tally.named(true);
            assert!(!world.run.join("checkpoints").exists(), "{how}: nothing was begun");
        }
        tally.end(0.0, 5.0);
    }
}

#[test]
fn f15_singletons_never_train() {
    let _turn = turn();
    let slurm = [("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "8")];
    let winners: [(&str, Vec<(&str, &str)>); 3] = [
        ("Open MPI says 1, SLURM 8", vec![("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")]),
        ("PMI says 1, SLURM 8", vec![("PMI_RANK", "0"), ("PMI_SIZE", "1")]),
        ("torchrun says 1, SLURM 8", vec![("RANK", "0"), ("WORLD_SIZE", "1")]),
    ];
    for (how, winner) in winners {
        let (folder, begin) = (set_up(), Instant::now());
        let mut command = command(folder.path(), &["train", "recipe.toml", "--run", "run"]);
        let ran = crate::program::ran(command.envs(slurm).envs(winner));
        let said: Vec<&str> = ran.err.lines().collect();
        assert!(
            ran.code == 78 && said.len() == 1 && said[0].starts_with("retort: "),
            "{how}: {} {}",
            ran.code,
            ran.err
        );
        assert!(said[0].contains("8 unrelated processes") && said[0].contains("--world-size 1"), "{how}: {}", said[0]);
        let tally = Tally::new("F15", how);
        tally.gone(begin, Instant::now());
        tally.ended(&[ran.code]);
        tally.named(true);
        tally.end(0.0, 5.0);
    }
}

#[test]
fn f16_many_jobs_at_once_do_not_meet_each_other() {
    let _turn = turn();
    let jobs = runs(20, 100).max(20);
    let folder = set_up();
    let names: Vec<String> = (0..jobs).map(|job| format!("runs/{job}")).collect();
    let start = |run: &String| Launch { folder: folder.path(), run, size: 2, args: &["--max-steps", "1"] }.start();
    let mut worlds: Vec<World> = names.iter().map(start).collect();
    let tally = Tally::new("F16", &format!("{jobs} jobs of 2 ranks at once"));
    let mut failed = vec![];
    for world in &mut worlds {
        let (codes, _) = world.ends();
        tally.ended(&codes);
        if codes != [0, 0] {
            failed.push(world.words());
        }
    }
    tally.end(0.0, 0.0);
    assert!(failed.is_empty(), "{} of {jobs} jobs failed: {}", failed.len(), failed.join("\n"));
}
