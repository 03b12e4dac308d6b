//! F1, F4, F5: a rank, or the launcher, is killed.

use crate::job::set_up;
use crate::launching::{Launch, PATIENCE, World, ranks_of, signal, steps, term, until};
use crate::program::retort_in;
use crate::table::{Dice, Tally, dice, each, runs, turn};
use std::path::Path;
use std::time::Instant;

/// Three ranks, far more steps than happen, a checkpoint at every second.
const THREE: [&str; 6] = ["--epochs", "2000", "--global-batch", "24", "--set", "output.checkpoint_steps=2"];

fn three(folder: &Path) -> World {
    Launch { folder, run: "run", size: 3, args: &THREE }.start()
}

/// The run goes on from its newest checkpoint, if it had come to one.
pub(crate) fn goes_on(folder: &Path, args: &[&str]) {
    let run = folder.join("run");
    // A whole checkpoint counts, also where the hint `latest` was not written any more.
    let names =
        std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let (to, saved) =
        ((steps(&run) + 3).to_string(), names.into_iter().any(|name| name.to_string_lossy().starts_with("step-")));
    let on = retort_in(folder, &[&["train", "recipe.toml", "--run", "run", "--max-steps", &to], args].concat());
    assert!(on.code == 0 && on.err.contains("resumed at step ") == saved, "{}, {saved}: {}", on.code, on.err);
}

/// A rank of three, and a step.
fn any(dice: &mut Dice) -> (usize, u64) {
    (dice.below(3) as usize, 3 + dice.below(12))
}

/// One rank dies by this signal at this step: it is named, with what it died of; the others leave with 76.
fn one_dies(name: &str, code: i32, what: &str, (victim, step): (usize, u64), tally: &Tally) {
    let folder = set_up();
    let mut world = three(folder.path());
    world.at_step(step);
    let begin = Instant::now();
    signal(world.processes[victim].id(), name);
    // Without rank 0 every rank says so itself.
    let witness = usize::from(victim == 0);
    let (at, line) = world.processes[witness].says("retort: rank ");
    tally.detected(begin, at);
    let named = format!("retort: rank {victim} (");
    tally.named(line.starts_with(&named) && line.contains(&format!("pid {}", world.processes[victim].id())));
    assert!(line.contains(what) && line.contains(", phase "), "{name} on rank {victim} at step {step}: {line}");
    let (codes, last) = world.ends();
    tally.gone(begin, last);
    let survivors: Vec<usize> = (0..3).filter(|&rank| rank != victim).collect();
    tally.ended(&survivors.iter().map(|&rank| codes[rank]).collect::<Vec<_>>());
    let expected: Vec<i32> = (0..3).map(|rank| if rank == victim { code } else { 76 }).collect();
    assert_eq!(codes, expected, "{name} on rank {victim} at step {step}: {}", world.words());
    for rank in survivors {
        let written = world.log(&format!("exit-{rank}.json"));
        assert_eq!(
            (&written["code"], &written["verdict"]["rank"]),
            (&76.into(), &victim.into()),
            "rank {rank}: {written}"
        );
    }
    if victim != 0 {
        let verdict = &world.log("verdict.json")["verdict"];
        assert_eq!((&verdict["rank"], &verdict["culprit_code"]), (&victim.into(), &code.into()), "{verdict}");
    }
    goes_on(folder.path(), &THREE);
}

#[test]
fn f01_a_killed_rank_is_named_and_all_end() {
    let _turn = turn();
    let (mut dice, tally) = (dice(), Tally::new("F1", "kill -9 of a random rank of 3 at a random step; goes on"));
    let cases: Vec<_> = (0..runs(3, 200)).map(|_| any(&mut dice)).collect();
    each(2, &cases, |&case| one_dies("KILL", 137, "died, killed by signal 9", case, &tally));
    tally.end(1.0, 5.0);
}

#[test]
fn f04_fatal_signals_are_told_apart() {
    let _turn = turn();
    let mut dice = dice();
    for (name, code, how) in [("SEGV", 139, "signal 11 (SIGSEGV)"), ("ABRT", 134, "signal 6 (SIGABRT)")] {
        let tally = Tally::new("F4", &format!("{how} of a random rank of 3"));
        for _ in 0..runs(1, 10) {
            one_dies(name, code, &format!("died, killed by {how}"), any(&mut dice), &tally);
        }
        tally.end(1.0, 5.0);
    }
}

/// The second TERM kills at once, unless the first had ended the run in order before it came.
#[test]
fn f04_a_rank_that_a_second_term_kills() {
    let _turn = turn();
    let tally = Tally::new("F4", "TERM twice to rank 1 of 3");
    for _ in 0..runs(1, 10) {
        let folder = set_up();
        let mut world = three(folder.path());
        world.at_step(3);
        let begin = Instant::now();
        (0..2).for_each(|_| term(world.processes[1].id()));
        let (codes, last) = world.ends();
        tally.gone(begin, last);
        tally.ended(&codes);
        assert!(codes == [76, 143, 76] || codes == [143; 3], "{codes:?} {}", world.words());
        if codes[0] == 76 {
            tally.named(world.processes[0].err.contains("retort: rank 1 ("));
        }
        goes_on(folder.path(), &THREE);
    }
    tally.end(0.0, 5.0);
}

/// Returns when no rank is left, at the latest after a time that fails every target.
fn all_gone(run: &Path) -> Instant {
    let begin = Instant::now();
    until("the end of all ranks", || (ranks_of(run).is_empty() || begin.elapsed() > PATIENCE / 2).then(Instant::now))
}

#[test]
fn f05_no_rank_outlives_its_launcher() {
    let _turn = turn();
    let mut dice = dice();
    for launcher in ["mpirun.openmpi", "mpirun.mpich", "shell"] {
        let tally = Tally::new("F5", &format!("kill -9 of {launcher} with 2 ranks"));
        let cases: Vec<u64> = (0..runs(1, 100)).map(|_| 1 + dice.below(8)).collect();
        each(2, &cases, |&step| {
            let folder = set_up();
            let launch = Launch { folder: folder.path(), run: "run", size: 2, args: &["--epochs", "2000"] };
            let Some(mut world) = launch.under(launcher) else { return };
            world.at_step(step);
            assert_eq!(ranks_of(&world.run).len(), 2);
            let begin = Instant::now();
            signal(world.processes[0].id(), "KILL");
            tally.gone(begin, all_gone(&world.run));
            tally.ended(&[world.processes[0].ends().0]);
            goes_on(folder.path(), &["--epochs", "2000"]);
        });
        tally.end(0.0, 5.0);
    }
}

/// By hand: the shell may end and the ranks go on.
#[test]
fn f05_ranks_started_by_hand_are_left_alone() {
    let _turn = turn();
    let folder = set_up();
    let launch = Launch { folder: folder.path(), run: "run", size: 2, args: &["--epochs", "4"] };
    let world = launch.under("shell by hand").expect("there is a shell");
    world.at_step(2);
    signal(world.processes[0].id(), "KILL");
    all_gone(&world.run);
    assert_eq!((world.written_codes(2), steps(&world.run)), (vec![0, 0], 24));
    let tally = Tally::new("F5", "kill -9 of the shell of 2 ranks by hand: they end as planned");
    tally.ended(&[0, 0]);
    tally.end(0.0, 0.0);
}
