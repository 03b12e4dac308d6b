//! F3, F22: a rank that is slow is told of and the run goes on; what the watching costs.

use crate::job::set_up;
use crate::launching::{Launch, World, signal};
use crate::program::small_fashion;
use crate::table::{Tally, is_long, runs, turn};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One stop and one go: far below the length of the window in which ranks are compared.
const CYCLE: Duration = Duration::from_millis(100);

/// Makes a process `factor` times as slow, by stopping it for the rest of every cycle.
struct Slow {
    done: Arc<AtomicBool>,
    /// Returns how slow it was made in fact: a thread sleeps longer than it asks for.
    thread: Option<JoinHandle<f64>>,
}

impl Slow {
    fn down(pid: u32, factor: f64) -> Slow {
        let done = Arc::new(AtomicBool::new(false));
        let asked = done.clone();
        let cycle = move || {
            let (begin, mut stopped) = (Instant::now(), Duration::ZERO);
            while !asked.load(Ordering::SeqCst) {
                let stop = Instant::now();
                signal(pid, "STOP");
                std::thread::sleep(CYCLE.mul_f64(1.0 - 1.0 / factor));
                signal(pid, "CONT");
                stopped += stop.elapsed();
                std::thread::sleep(CYCLE.mul_f64(1.0 / factor));
            }
            begin.elapsed().as_secs_f64() / (begin.elapsed() - stopped).as_secs_f64()
        };
        Slow { done, thread: Some(std::thread::spawn(cycle)) }
    }

    /// How slow the process was.
    fn ends(mut self) -> f64 {
        self.done.store(true, Ordering::SeqCst);
        self.thread.take().expect("it ends once").join().expect("no panic")
    }
}

impl Drop for Slow {
    /// A test that fails leaves no thread that sends signals.
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// How much of this machine's cores others had: time that other virtual machines took, in seconds since the start.
fn taken() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // cpu user nice system idle iowait irq softirq steal, in hundredths of a second.
    stat.split_whitespace().nth(8).and_then(|steal| steal.parse::<f64>().ok()).unwrap_or_default() / 100.0
}

/// Measures [`taken`] and the factors while runs go on, for the row.
struct Circumstances {
    begin: Instant,
    taken: f64,
    factors: Vec<f64>,
}

impl Circumstances {
    fn begin() -> Circumstances {
        Circumstances { begin: Instant::now(), taken: taken(), factors: Vec::new() }
    }

    fn note(mut self, tally: &Tally) {
        self.factors.sort_by(f64::total_cmp);
        if let (Some(least), Some(most)) = (self.factors.first(), self.factors.last()) {
            tally.note(format!("in fact {least:.2} to {most:.2} × as slow"));
        }
        let share = (taken() - self.taken) / self.begin.elapsed().as_secs_f64();
        tally.note(format!("{share:.2} cores taken by other machines"));
    }
}

fn lines(run: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Steps at which ranks were told of as slow, with the words.
fn warnings(run: &Path) -> Vec<(u64, String)> {
    let told = lines(run, "metrics.jsonl").into_iter().filter(|line| line["event"] == "straggler");
    told.map(|line| (line["step"].as_u64().unwrap(), line["text"].as_str().unwrap().to_string())).collect()
}

/// Two ranks train to the end, rank 1 `factor` times as slow from [`SLOW_FROM`] on. The job, codes, and how slow it was in fact.
fn two(folder: &Path, factor: f64) -> (World, Vec<i32>, Option<f64>) {
    small_fashion(folder, 4800); // 100 steps an epoch
    let steps = (SLOW_FROM + if factor >= 1.3 { 35 } else { 75 }).to_string();
    let args = ["--epochs", "2000", "--max-steps", &steps, "--set", "ranks.heartbeat_s=0.05"];
    // Several cycles in half a window.
    let args = [&args[..], &["--global-batch", "48"]].concat();
    let mut world = Launch { folder, run: "run", size: 2, args: &args }.start();
    world.at_step(SLOW_FROM);
    let slow = (factor > 1.0).then(|| Slow::down(world.processes[1].id(), factor));
    if factor >= 1.3 {
        let told = world.processes[0].says("warning: rank 1 (");
        assert!(told.1.ends_with("the run goes on"), "{}", told.1);
        let in_fact = slow.map(Slow::ends);
        let codes = world.ends().0;
        return (world, codes, in_fact);
    }
    let codes = world.ends().0;
    (world, codes, slow.map(Slow::ends))
}

/// A window of steps without a slow phase or the first step comes before it.
const SLOW_FROM: u64 = 25;

/// Factors near the threshold are in `comm`'s tests of the judge: here the machine's own noise would decide.
#[test]
fn f03_a_slow_rank_is_told_of_and_the_run_goes_on() {
    let _turn = turn();
    for factor in [2.0, 5.0] {
        let tally = Tally::new("F3", &format!("rank 1 of 2 stopped so often that it is {factor} × as slow"));
        let (mut worst, mut circumstances) = (0, Circumstances::begin());
        for _ in 0..runs(1, 20) {
            let folder = set_up();
            let (world, codes, in_fact) = two(folder.path(), factor);
            circumstances.factors.extend(in_fact);
            assert_eq!(codes, [0, 0], "{}", world.words());
            let told = warnings(&world.run);
            let rank_1 = |(_, text): &(u64, String)| text.starts_with("warning: rank 1 (");
            // Other work on the machine may slow the other rank down as well; it must not in the long form.
            tally.named(if is_long() { told.iter().all(rank_1) } else { told.iter().any(rank_1) });
            tally.ended(&codes);
            let after = told.iter().find(|t| rank_1(t)).expect("it is in the log too").0 - SLOW_FROM;
            let limit = if is_long() { 20 } else { 40 };
            assert!(after <= limit, "{factor}: told after {after} steps: {told:?}");
            worst = worst.max(after);
        }
        tally.note(format!("told after {worst} steps at most"));
        circumstances.note(&tally);
        tally.end(0.0, 0.0);
    }
}

#[test]
fn f03_ranks_of_one_pace_are_not_told_of() {
    let _turn = turn();
    for factor in [1.0, 1.1] {
        let tally =
            Tally::new("F3", &format!("rank 1 of 2 stopped so often that it is {factor} × as slow: no warning"));
        let mut circumstances = Circumstances::begin();
        for _ in 0..runs(1, 20) {
            // A machine with other work may slow one of two ranks down by itself: in the short form the third run counts.
            let tries = if is_long() { 1 } else { 3 };
            let mut try_once = || {
                let folder = set_up();
                let (world, codes, in_fact) = two(folder.path(), factor);
                assert_eq!(codes, [0, 0], "{}", world.words());
                tally.ended(&codes);
                circumstances.factors.extend(in_fact);
                let told = warnings(&world.run);
                println!("{factor}: {told:?}");
                told.is_empty()
            };
            let quiet = (0..tries).any(|_| try_once());
            assert!(quiet, "{factor}: a warning in each of {tries} runs");
        }
        circumstances.note(&tally);
        tally.end(0.0, 0.0);
    }
}

/// Seconds from the first step of a run to its last, at this heartbeat.
fn seconds(heartbeat: &str) -> f64 {
    let folder = set_up();
    small_fashion(folder.path(), 3200);
    let heartbeat = format!("ranks.heartbeat_s={heartbeat}");
    let args = ["--max-steps", "199", "--set", &heartbeat, "--set", "ranks.hang_s=1000"];
    let mut world = Launch { folder: folder.path(), run: "run", size: 2, args: &args }.start();
    assert_eq!(world.ends().0, [0, 0], "{}", world.words());
    let times: Vec<f64> = lines(&world.run, "logs/0.jsonl").iter().map(|line| line["t"].as_f64().unwrap()).collect();
    times.last().unwrap() - times[0]
}

/// Nanoseconds for which the watch threads of these processes computed so far.
fn watching_ns(world: &World) -> u64 {
    let of = |pid: u32| -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path());
        let read = |thread: &Path, name: &str| std::fs::read_to_string(thread.join(name)).unwrap_or_default();
        let watch: Vec<_> = threads.filter(|thread| read(thread, "comm").trim_end() == "watch").collect();
        assert_eq!(watch.len(), 1, "{watch:?}");
        read(&watch[0], "schedstat").split(' ').next().unwrap().parse().expect("schedstat begins with nanoseconds")
    };
    world.processes.iter().map(|process| of(process.id())).sum()
}

/// Share of the time of a run in which the watch thread of a rank computes, at this heartbeat.
fn share(heartbeat: &str) -> f64 {
    let folder = set_up();
    small_fashion(folder.path(), 3200);
    let heartbeat = format!("ranks.heartbeat_s={heartbeat}");
    let args = ["--epochs", "2000", "--set", &heartbeat];
    let mut world = Launch { folder: folder.path(), run: "run", size: 2, args: &args }.start();
    world.at_step(20);
    let (begin, before) = (Instant::now(), watching_ns(&world));
    world.at_step(200);
    let share = (watching_ns(&world) - before) as f64 / begin.elapsed().as_nanos() as f64 / 2.0;
    signal(world.processes[0].id(), "USR2");
    assert_eq!(world.ends().0, [75, 75], "{}", world.words());
    share
}

/// What the trainer itself pays is held to a microsecond a call in `comm::progress`.
#[test]
fn f22_the_watch_thread_sleeps() {
    let _turn = turn();
    let tally = Tally::new("F22", "share of a run in which the watch thread computes, at heartbeats of 1 s and 0.1 s");
    for heartbeat in ["1", "0.1"] {
        let share = share(heartbeat);
        tally.ended(&[75, 75]);
        tally.note(format!("{:.3} %", 100.0 * share));
        assert!(share <= 0.005, "{share} at a heartbeat of {heartbeat} s");
    }
    tally.end(0.0, 0.0);
}

/// A run of several processes is always watched, so ten times the usual heartbeats are held against none.
#[test]
fn f22_watching_costs_nothing() {
    let _turn = turn();
    let pairs = runs(0, 40);
    if pairs == 0 {
        eprintln!("in the long form only: a difference of 0.5 % takes many pairs to see");
        return;
    }
    let pair = |i: usize| match i % 2 {
        0 => seconds("0.1") / seconds("100"),
        _ => 1.0 / (seconds("100") / seconds("0.1")),
    };
    let mut ratios: Vec<f64> = (0..pairs).map(pair).collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[pairs / 2];
    // Of the median of normal values.
    let spread = (ratios[3 * pairs / 4] - ratios[pairs / 4]) / 1.35 * 1.25 / (pairs as f64).sqrt();
    let tally = Tally::new("F22", "199 steps of 2 ranks with heartbeats of 0.1 s against 100 s, in pairs");
    (0..pairs).for_each(|_| tally.ended(&[0, 0]));
    tally.note(format!("time of a step × {median:.4} ± {spread:.4} (median, standard error)"));
    tally.end(0.0, 0.0);
    assert!(median - 2.0 * spread <= 1.005, "{median} ± {spread}: {ratios:?}");
}
