//! F6, F7: TERM and USR2, to the launcher and to one rank.

use crate::job::{EPOCH, State, set_up};
use crate::launching::{Launch, World, ranks_of, signal, steps, until};
use crate::program::retort_in;
use crate::resumes::{assert_equal, whole};
use crate::table::{Tally, dice, each, runs, turn};
use std::time::Instant;

/// Whom a signal goes to, and the epochs of the run, which is compared with an uninterrupted one.
struct Target {
    to: To,
    epochs: u64,
}

#[derive(Clone, Copy)]
enum To {
    Launcher(&'static str),
    RankUnder(&'static str),
    /// Of two by hand.
    Rank,
}

const RANK: Target = Target { to: To::Rank, epochs: 8 };
/// Its TERM reaches ranks a second later: the run must not be over by then.
const OPEN_MPI: Target = Target { to: To::Launcher("mpirun.openmpi"), epochs: 40 };
const MPICH: Target = Target { to: To::Launcher("mpirun.mpich"), epochs: 8 };
const RANK_OF_MPICH: Target = Target { to: To::RankUnder("mpirun.mpich"), epochs: 8 };

impl To {
    fn words(self) -> String {
        match self {
            To::Launcher(launcher) => format!("{launcher} with 2 ranks"),
            To::RankUnder(launcher) => format!("one rank of 2 under {launcher}"),
            To::Rank => "one rank of 2".to_string(),
        }
    }
}

/// The signal comes within so many.
const SIGNAL_EPOCHS: u64 = 5;

/// Signals a run of two ranks at a step; it ends with this code, a checkpoint of one agreed step and nothing lost: gone on with,
/// it comes to what the uninterrupted run does.
fn stopped(
    target: &Target,
    (name, code): (&str, i32),
    (step, rank): (u64, usize),
    (tally, expected): (&Tally, &State),
) {
    let folder = set_up();
    let folder = folder.path();
    let epochs = target.epochs.to_string();
    let args = ["--epochs", &epochs];
    let launch = Launch { folder, run: "run", size: 2, args: &args };
    let started = match target.to {
        To::Rank => Some(launch.start()),
        To::Launcher(launcher) | To::RankUnder(launcher) => launch.under(launcher),
    };
    let Some(mut world) = started else { return };
    world.at_step(step);
    let pid = match target.to {
        To::Rank => world.processes[rank].id(),
        To::RankUnder(_) => ranks_of(&world.run)[rank],
        To::Launcher(_) => world.processes[0].id(),
    };
    let begin = Instant::now();
    signal(pid, name);
    let at = until("the end of all ranks", || ranks_of(&world.run).is_empty().then(Instant::now));
    tally.gone(begin, at);
    let (ends, _) = world.ends();
    if matches!(target.to, To::Rank) {
        assert_eq!(ends, [code; 2], "{}", world.words());
    }
    let codes = world.written_codes(2);
    tally.ended(&codes);
    assert_eq!(codes, [code; 2], "{}", world.words());
    let newest = std::fs::read_to_string(world.run.join("checkpoints/latest")).unwrap();
    assert_eq!(newest.trim(), format!("step-{}", steps(&world.run)), "no step is lost: {}", world.words());
    drop(world);
    assert!(retort_in(folder, &["export", "run", "--to", "net.safetensors"]).code == 0, "the checkpoint is good");
    let mut on = Launch { folder, run: "run", size: 2, args: &args }.start();
    assert_eq!(on.ends().0, [0, 0], "{}", on.words());
    assert!(
        on.processes[0].err.contains(&format!("resumed at {} from", newest.trim().replace('-', " "))),
        "{}",
        on.words()
    );
    assert_equal(&on.run, expected, name);
}

fn all_targets(fault: &'static str, targets: &[Target], most: usize, signal: (&str, i32), gone_s: f64) {
    let mut dice = dice();
    for target in targets {
        let folder = set_up();
        let expected = whole(folder.path(), 2, target.epochs);
        let tally =
            Tally::new(fault, &format!("{} to {}; gone on with, bits as uninterrupted", signal.0, target.to.words()));
        let chance = |_| (1 + dice.below(EPOCH * SIGNAL_EPOCHS), dice.below(2) as usize);
        let cases: Vec<_> = (0..runs(1, most)).map(chance).collect();
        each(3, &cases, |&case| stopped(target, signal, case, (&tally, &expected)));
        tally.end(0.0, gone_s);
    }
}

#[test]
fn f06_term_saves_in_time_and_all_leave() {
    let _turn = turn();
    all_targets("F6", &[RANK, OPEN_MPI, MPICH, RANK_OF_MPICH], 30, ("TERM", 143), 1.8);
}

/// What is too much to save between TERM and KILL is saved before TERM, which mpirun announces.
#[test]
fn f06_term_to_mpirun_leaves_time_for_300_mb() {
    let _turn = turn();
    let Ok(shm) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: there is no /dev/shm here");
        return;
    };
    let tally = Tally::new("F6", "TERM to mpirun.openmpi with 2 ranks, 282 MB of state on tmpfs");
    for _ in 0..runs(1, 30) {
        let folder = set_up();
        let args = ["--epochs", "200", "--global-batch", "4", "--set", "network.name=resnet50"];
        let run = tempfile::tempdir_in(shm.path()).expect("a folder");
        let launch = Launch { folder: folder.path(), run: run.path().to_str().expect("UTF-8"), size: 2, args: &args };
        let Some(mut world) = launch.under("mpirun.openmpi") else { return };
        world.at_step(3);
        let begin = Instant::now();
        signal(world.processes[0].id(), "TERM");
        tally.gone(begin, until("the end of all ranks", || ranks_of(&world.run).is_empty().then(Instant::now)));
        world.ends();
        let codes = world.written_codes(2);
        tally.ended(&codes);
        assert_eq!(codes, [143; 2], "{}", world.words());
        let newest = std::fs::read_to_string(world.run.join("checkpoints/latest")).unwrap();
        assert_eq!(newest.trim(), format!("step-{}", steps(&world.run)), "no step is lost: {}", world.words());
        let bytes = |entry: std::fs::DirEntry| entry.metadata().expect("a file").len();
        let files =
            std::fs::read_dir(world.run.join("checkpoints").join(newest.trim())).expect("a checkpoint").flatten();
        let bytes: u64 = files.map(bytes).sum();
        assert_eq!(bytes / 1_000_000, 282, "the state");
    }
    tally.end(0.0, 1.8);
}

#[test]
fn f07_usr2_saves_one_agreed_step_and_all_leave() {
    let _turn = turn();
    // MPICH's passes no USR2 on.
    all_targets("F7", &[RANK, OPEN_MPI, RANK_OF_MPICH], 100, ("USR2", 75), 0.0);
}

/// The launcher's own end is what a script sees.
#[test]
fn f07_mpirun_passes_the_code_on() {
    let _turn = turn();
    let folder = set_up();
    let launch = Launch { folder: folder.path(), run: "run", size: 2, args: &["--epochs", "2000"] };
    let Some(mut world): Option<World> = launch.under("mpirun.openmpi") else { return };
    world.at_step(3);
    signal(world.processes[0].id(), "USR2");
    assert_eq!(world.ends().0, [75], "{}", world.words());
}
