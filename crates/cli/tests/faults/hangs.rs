//! F2: a rank is stopped; and no false alarm where all are starved.

use crate::deaths::goes_on;
use crate::job::set_up;
use crate::launching::{self, Launch, World, signal, steps, until, waits, watch_rests};
use crate::program::small_fashion;
use crate::table::{Dice, Tally, dice, each, is_long, runs, turn};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// When a rank hangs, in every phase.
struct Limits {
    hang_s: f64,
    heartbeat_s: f64,
    settings: [&'static str; 6],
}

const LONG: Limits = Limits {
    hang_s: 10.0,
    heartbeat_s: 1.0,
    settings: ["--set", "ranks.hang_s=10", "--set", "ranks.slow_phase_s=10", "--set", "ranks.heartbeat_s=1"],
};
const SHORT: Limits = Limits {
    hang_s: 1.5,
    heartbeat_s: 0.2,
    settings: ["--set", "ranks.hang_s=1.5", "--set", "ranks.slow_phase_s=1.5", "--set", "ranks.heartbeat_s=0.2"],
};

fn limits() -> Limits {
    if is_long() { LONG } else { SHORT }
}

/// When a rank is stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Step,
    Evaluation,
    /// Of rank 0, which alone writes it.
    Checkpoint,
}

/// Where in a step. A step loads and reduces for so short a time that chance alone would seldom hit these.
#[derive(Clone, Copy)]
enum Moment {
    Begin,
    /// So much of a step later.
    Within(f64),
    /// While it waits for another rank, which is stopped first, about the middle of the step, and goes on afterwards.
    Waiting,
}

/// What the dice say of a run: a step well before the first checkpoint, when in it, a rank, and one that is not rank 0.
#[derive(Clone, Copy)]
struct Chance {
    step: u64,
    moment: Moment,
    of_all: usize,
    of_others: usize,
}

impl Chance {
    fn of(dice: &mut Dice) -> Chance {
        Chance {
            step: 3 + dice.below(CHECKPOINT - 8),
            moment: match dice.below(3) {
                0 => Moment::Begin,
                1 => Moment::Within(dice.below(1000) as f64 / 1000.0),
                _ => Moment::Waiting,
            },
            of_all: dice.below(3) as usize,
            of_others: 1 + dice.below(2) as usize,
        }
    }
}

/// Stops a rank when the moment has come; the rank, and the phases that a report may name.
fn stop(when: When, world: &World, chance: Chance) -> (usize, &'static [&'static str]) {
    let (victim, phases): (_, &[_]) = match when {
        When::Step => {
            world.at_step(chance.step);
            return (chance.of_all, stop_in_step(world, chance));
        }
        When::Evaluation => {
            // The line is written once the phase has begun.
            let log = world.run.join(format!("logs/{}.log", chance.of_others));
            let begun = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("evaluates"));
            until("an evaluation", || begun().then_some(()));
            (chance.of_others, &["evaluate"])
        }
        When::Checkpoint => {
            let begun = |name: std::ffi::OsString| name.to_str().is_some_and(|name| name.starts_with("tmp-"));
            let look = || std::fs::read_dir(world.run.join("checkpoints")).ok();
            until("a checkpoint", || look()?.flatten().any(|entry| begun(entry.file_name())).then_some(()));
            (0, &["checkpoint"])
        }
    };
    let pid = world.processes[victim].id();
    // It tells the others at once that a long phase began.
    watch_rests(pid);
    signal(pid, "STOP");
    (victim, phases)
}

fn stop_in_step(world: &World, chance: Chance) -> &'static [&'static str] {
    let pid = |rank: usize| world.processes[rank].id();
    let victim = pid(chance.of_all);
    let within = |part: f64| {
        let times = step_times_s(&world.run, 0);
        std::thread::sleep(Duration::from_secs_f64(part * times[times.len() - 1]));
    };
    match chance.moment {
        Moment::Begin => (),
        Moment::Within(part) => within(part),
        Moment::Waiting => {
            let late = pid((chance.of_all + chance.of_others) % 3);
            within(0.5);
            launching::stop(late);
            waits(victim);
            // By then it has told where it waits.
            std::thread::sleep(Duration::from_secs_f64(1.1 * limits().heartbeat_s));
            signal(victim, "STOP");
            signal(late, "CONT");
            return &["load", "all_reduce", "update"];
        }
    }
    signal(victim, "STOP");
    &["load", "forward", "all_reduce", "update"]
}

/// Images, of which 30 steps of 24 make an epoch, and steps between checkpoints.
const IMAGES: u32 = 720;
const CHECKPOINT: u64 = 25;

/// How long steps took, by the log of a rank; the first is not there.
fn step_times_s(run: &Path, rank: usize) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join(format!("logs/{rank}.jsonl"))).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let times: Vec<f64> = lines.map(|line| line["t"].as_f64().unwrap()).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Each survivor left its collectives and the last lines of its log in a dump, which is of the step that it heard of.
fn dumped(run: &Path, victim: usize) {
    let logs = std::fs::read_dir(run.join("logs")).unwrap().map(|entry| entry.unwrap().path());
    let dumps: Vec<_> = logs.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("hang-")).collect();
    for rank in (0..3).filter(|&rank| rank != victim) {
        let text = |ending: &str| {
            let files = dumps.iter().map(|dump| dump.join(format!("rank-{rank}.{ending}")));
            files.filter_map(|file| std::fs::read_to_string(file).ok()).collect::<String>()
        };
        let joined = format!("joined rank={rank} world_size=3");
        assert!(text("log").contains(&joined), "rank {rank}: {} in {dumps:?}", text("log"));
        assert!(text("jsonl").contains("\"all_gather\"") || text("jsonl").contains("all_reduce"), "rank {rank}");
    }
}

/// One rank stops: it is named, and the others leave with 77; whether its phase was named rightly, and the phase.
fn one_stops(when: When, chance: Chance, tally: &Tally) -> (bool, String) {
    let folder = set_up();
    small_fashion(folder.path(), IMAGES);
    let Limits { hang_s, settings, .. } = limits();
    // So that the phase lasts.
    let longer: &[&str] = match when {
        When::Step => &[],
        When::Evaluation => &["--set", "eval.batch=1"],
        When::Checkpoint => &["--set", "network.name=mobilenet_v2"],
    };
    let checkpoint = format!("output.checkpoint_steps={CHECKPOINT}");
    let args = ["--epochs", "2000", "--global-batch", "24", "--set", &checkpoint];
    let args = [&args[..], &settings, longer].concat();
    let launch = Launch { folder: folder.path(), run: "run", size: 3, args: &args };
    let mut world = launch.start_each(|_, command| {
        command.env("RETORT_LOG", "info");
    });
    let (victim, phases) = stop(when, &world, chance);
    let (begin, stopped) = (Instant::now(), world.processes[victim].id());
    let witness = usize::from(victim == 0);
    let (at, line) = world.processes[witness].says("retort: rank ");
    // Where steps are long, as on a busy machine, the limit is ten times their 99th percentile, which is rounded up by a quarter.
    let longest_s = (0..3).flat_map(|rank| step_times_s(&world.run, rank)).fold(0.0, f64::max);
    let limit = Duration::from_secs_f64(hang_s.max(12.5 * longest_s));
    // What remains after the limit is compared with the target.
    tally.detected(begin + limit, at);
    let named = line.starts_with(&format!("retort: rank {victim} (")) && line.contains(" hung: ");
    tally.named(named);
    for rank in (0..3).filter(|&rank| rank != victim) {
        let (code, last) = world.processes[rank].ends();
        assert_eq!(code, 77, "rank {rank}: {}", world.words());
        tally.gone(begin + limit, last);
    }
    dumped(&world.run, victim);
    let state = std::fs::read_to_string(format!("/proc/{stopped}/stat")).unwrap();
    assert!(state.contains(") T "), "it is still stopped: {state}");
    signal(stopped, "KILL");
    let codes = world.ends().0;
    tally.ended(&codes);
    goes_on(folder.path(), &args);
    let phase = line.split(", ").find_map(|part| part.strip_prefix("phase ")).unwrap_or("none");
    (phases.contains(&phase), phase.to_string())
}

/// As many runs as asked for, at most 50: of each phase of a step, or in all. Some may be out of the phase by the time that the signal
/// arrives, if they `may_miss`.
fn ranks_stop(when: When, how: &str, may_miss: bool) {
    let _turn = turn();
    let mut dice = dice();
    let limit = limits().hang_s;
    let how = format!("SIGSTOP of a rank of 3 {how}; times after the limit of {limit} s or 12.5 × the longest step");
    let tally = Tally::new("F2", &how);
    // Which phase of a step a signal hits is chance.
    let cases = runs(1, 50) * if when == When::Step && is_long() { 12 } else { 1 };
    let chances: Vec<Chance> = (0..cases).map(|_| Chance::of(&mut dice)).collect();
    let phases = Mutex::new(BTreeMap::<_, usize>::new());
    // Most of the time is the limit; ranks with much state take turns.
    each(if when == When::Checkpoint { 3 } else { 6 }, &chances, |&chance| {
        let often = |phase: &str| {
            let phases = phases.lock().expect("no run has failed");
            phases.iter().any(|((_, of), &times)| of == phase && times >= runs(1, 50))
        };
        if when == When::Step && ["load", "forward", "all_reduce"].into_iter().all(often) {
            return;
        }
        let phase = one_stops(when, chance, &tally);
        *phases.lock().expect("no run has failed").entry(phase).or_default() += 1;
    });
    let phases = phases.into_inner().expect("no run has failed");
    let n: usize = phases.values().sum();
    let right: usize = phases.iter().filter(|((right, _), _)| *right).map(|(_, times)| times).sum();
    let words: Vec<String> = phases.iter().map(|((_, phase), times)| format!("{phase} {times}")).collect();
    tally.note(format!("phase named in {right} of {n}: {}", words.join(", ")));
    assert!(right == n || may_miss, "{how}: the phase was named in {right} of {n}");
    tally.end(2.0, 5.0);
}

#[test]
fn f02_a_rank_stopped_in_a_step_is_named_with_its_phase() {
    ranks_stop(When::Step, "in a step", false);
}

#[test]
fn f02_a_rank_stopped_in_an_evaluation_is_named_with_its_phase() {
    ranks_stop(When::Evaluation, "as it begins an evaluation", true);
}

#[test]
fn f02_a_rank_stopped_in_a_checkpoint_is_named_with_its_phase() {
    ranks_stop(When::Checkpoint, "as it begins a checkpoint", true);
}

/// Takes all it gets of one core.
struct Busy(Child);

impl Busy {
    fn start() -> Busy {
        Busy(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh starts"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn f02_starved_ranks_raise_no_alarm() {
    let _turn = turn();
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
    // In the long form four times as much to do as there are cores for; an hour with 200 runs asked for.
    let (busy, jobs) = (2 * cores, if is_long() { cores } else { 1 });
    let clock = Duration::from_secs(18 * runs(0, 200) as u64).max(Duration::from_secs(5));
    let how =
        format!("{busy} busy processes beside {jobs} jobs of 2 ranks for {} s of clock: no alarm", clock.as_secs());
    let tally = Tally::new("F2", &how);
    let _busy: Vec<Busy> = (0..busy).map(|_| Busy::start()).collect();
    let args = [&["--epochs", "1000000", "--lr", "0.001"][..], &limits().settings].concat();
    each(jobs, &vec![(); jobs], |()| {
        let folder = set_up();
        let mut world = Launch { folder: folder.path(), run: "run", size: 2, args: &args }.start();
        world.at_step(1);
        let ended = world.processes[0].ends_within(clock);
        assert!(!ended, "{}", world.words());
        signal(world.processes[0].id(), "USR2");
        let (codes, _) = world.ends();
        assert_eq!(codes, [75, 75], "{}", world.words());
        tally.ended(&codes);
        let slow = world.words().matches("slower than the median").count();
        tally.note(format!("{} steps, {slow} warnings of a slow rank", steps(&world.run)));
    });
    tally.end(0.0, 0.0);
}
