//! F6, F7: TERM and USR2, to the launcher and to one rank.

use crate::job::{EPOCH, State, set_up};
use crate::launching::{Launch, World, ranks_of, signal, steps, until};
use crate::program::retort_in;
use crate::resumes::{assert_equal, whole};
use crate::table::{Tally, dice, each, runs, turn};
use std::time::Instant;

/// Whom a signal goes to, and the epochs of the run, which is compared with an uninterrupted one. The signal comes in the first few:
/// mpirun may take a second to pass it on, and the run must not be over by then.
const TARGETS: [(&str, &str, u64); 3] = [
    ("", "one rank of 2", 8),
    ("mpirun.openmpi", "mpirun.openmpi with 2 ranks", 40),
    ("mpirun.mpich", "one rank of 2 under mpirun.mpich", 8),
];
const SIGNAL_EPOCHS: u64 = 5;

/// Signals a run of two ranks at a step; it ends with this code, a checkpoint of one agreed step and nothing lost: gone on with,
/// it comes to what the uninterrupted run does.
fn stopped(
    launcher: &str,
    epochs: u64,
    (name, code): (&str, i32),
    (step, rank): (u64, usize),
    (tally, expected): (&Tally, &State),
) {
    let folder = set_up();
    let folder = folder.path();
    let epochs = epochs.to_string();
    let args = ["--epochs", &epochs];
    let launch = Launch { folder, run: "run", size: 2, args: &args };
    let Some(mut world) = (if launcher.is_empty() { Some(launch.start()) } else { launch.under(launcher) }) else {
        return;
    };
    world.at_step(step);
    let pid = match launcher {
        "" => world.processes[rank].id(),
        "mpirun.openmpi" => world.processes[0].id(),
        // It passes no USR2 on, and ends its ranks at once on TERM.
        _ => ranks_of(&world.run)[rank],
    };
    let begin = Instant::now();
    signal(pid, name);
    let at = until("the end of all ranks", || ranks_of(&world.run).is_empty().then(Instant::now));
    // mpirun passes TERM on when it wakes up, within a second, and kills after two: then no code would be written.
    if launcher != "mpirun.openmpi" {
        tally.gone(begin, at);
    }
    let (ends, _) = world.ends();
    if launcher.is_empty() {
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

fn all_targets(fault: &'static str, most: usize, signal: (&str, i32), gone_s: f64) {
    let mut dice = dice();
    for (launcher, to, epochs) in TARGETS {
        let folder = set_up();
        let expected = whole(folder.path(), 2, epochs);
        let tally = Tally::new(fault, &format!("{} to {to}; gone on with, bits as uninterrupted", signal.0));
        let chance = |_| (1 + dice.below(EPOCH * SIGNAL_EPOCHS), dice.below(2) as usize);
        let cases: Vec<_> = (0..runs(1, most)).map(chance).collect();
        each(3, &cases, |&case| stopped(launcher, epochs, signal, case, (&tally, &expected)));
        tally.end(0.0, gone_s);
    }
}

#[test]
fn f06_term_saves_in_time_and_all_leave() {
    let _turn = turn();
    all_targets("F6", 30, ("TERM", 143), 1.8);
}

#[test]
fn f07_usr2_saves_one_agreed_step_and_all_leave() {
    let _turn = turn();
    all_targets("F7", 100, ("USR2", 75), 0.0);
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
