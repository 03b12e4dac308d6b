//! The watch between real processes: this binary runs itself once per rank, the ranks meet on loopback sockets.
//!
//! Faults F1, F2, F4 and F5 of the fault list, in short: who is named, when, and what every process leaves with.

mod rank;

use comm::{Limits, Parent, Progress, Watch, WatchSettings, meeting::Links, member::Member};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write, stdin};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio, id};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

/// Not a test of its own: what a child process runs.
#[test]
fn child() {
    let Ok(role) = env::var("WATCH_ROLE") else { return };
    if role == "launcher" { launcher() } else { rank::main(&role) }
}

/// Starts two ranks, one of which shares its stdout and the other its stderr, and stays.
fn launcher() {
    let logs: PathBuf = env::var("WATCH_LOGS").unwrap().into();
    let start = |rank: usize, port: Option<u16>, out: Stdio, err: Stdio| {
        let mut command = command(&env::var("WATCH_TRAP").unwrap());
        configure(&mut command, &logs, (rank, 2), ("wait", 30_000), port);
        command.env("WATCH_PPID", id().to_string()).stdin(Stdio::piped()).stdout(out).stderr(err).spawn().unwrap()
    };
    let mut zero = start(0, None, Stdio::piped(), Stdio::inherit());
    let mut out = BufReader::new(zero.stdout.take().unwrap());
    let port = until(&mut out, "port ").parse().unwrap();
    let one = start(1, Some(port), Stdio::inherit(), Stdio::null());
    until(&mut out, "ready");
    stdin().read_to_string(&mut String::new()).unwrap();
    drop((zero, one));
}

// ---- The side of the test ----

/// This binary; `trap` is a line for the shell in front of it.
fn command(trap: &str) -> Command {
    let mut command = Command::new("sh");
    let line = format!("{trap} exec \"$0\" \"$@\"");
    command.args(["-c", &line]).arg(env::current_exe().unwrap()).args(["--exact", "child", "--nocapture"]);
    command
}

fn configure(command: &mut Command, logs: &Path, rank: (usize, usize), role: (&str, usize), port: Option<u16>) {
    command.env("WATCH_ROLE", role.0).env("WATCH_HANG_MS", role.1.to_string()).env("WATCH_LOGS", logs);
    command.env("WATCH_RANK", rank.0.to_string()).env("WATCH_WORLD", rank.1.to_string());
    command.env("WATCH_PORT", port.unwrap_or(0).to_string()).env_remove("WATCH_PPID");
}

/// Reads lines until one has `marker`; what follows it.
fn until(from: &mut impl BufRead, marker: &str) -> String {
    let mut line = String::new();
    while from.read_line(&mut line).unwrap() > 0 {
        if let Some((_, rest)) = line.split_once(marker) {
            return rest.trim_end().to_owned();
        }
        line.clear();
    }
    panic!("the output ended before {marker:?}");
}

struct Rank {
    child: Child,
    out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Rank {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Lets the rank do what its role says.
    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn end(&mut self) -> (ExitStatus, String) {
        let mut text = String::new();
        self.err.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap(), text)
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // Already gone, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct World {
    ranks: Vec<Rank>,
    run: tempfile::TempDir,
}

impl World {
    /// A rank per role, all of them ready.
    fn new(roles: &[&str], hang_ms: usize) -> Self {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir_all(run.path().join("checkpoints/step-5")).unwrap();
        let logs = run.path().join("logs");
        let mut port = None;
        let mut ranks: Vec<Rank> = Vec::new();
        for (rank, role) in roles.iter().enumerate() {
            let mut command = command("");
            configure(&mut command, &logs, (rank, roles.len()), (role, hang_ms), port);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut out = BufReader::new(child.stdout.take().unwrap());
            let err = BufReader::new(child.stderr.take().unwrap());
            if rank == 0 {
                port = Some(until(&mut out, "port ").parse().unwrap());
            }
            ranks.push(Rank { child, out, err });
        }
        ranks.iter_mut().for_each(|rank| drop(until(&mut rank.out, "ready")));
        Self { ranks, run }
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.run.path().join("logs").join(name)).unwrap()).unwrap()
    }

    /// All survivors leave with `code`, say so in their files, and all flight recorders and logs are written.
    fn survivors(&mut self, survivors: &[usize], code: i32, folder: &str) -> String {
        let mut report = String::new();
        for &rank in survivors {
            let (status, text) = self.ranks[rank].end();
            assert_eq!(status.code(), Some(code), "rank {rank}: {text}");
            assert_eq!(self.json(&format!("exit-{rank}.json"))["code"], code);
            let dump = self.run.path().join("logs").join(folder).join(format!("rank-{rank}.jsonl"));
            assert!(fs::read_to_string(&dump).unwrap().contains("\"barrier\""));
            assert_eq!(fs::read_to_string(dump.with_extension("log")).unwrap(), format!("rank {rank} logged this\n"));
            report += &text;
        }
        report
    }
}

/// Rank 2 of three ends as `role` says: it is named with `what`, in time, and the others leave with 76.
fn dies(role: &str, what: &str) -> (ExitStatus, String) {
    let mut world = World::new(&["wait", "wait", role], 30_000);
    let begin = Instant::now();
    if role == "kill" {
        world.ranks[2].signal(Signal::SIGKILL)
    } else {
        world.ranks[2].go()
    }
    let line = until(&mut world.ranks[0].err, "retort: ");
    let detected = begin.elapsed();
    assert!(detected < 1000 * MS, "{role}: {detected:?}");
    assert!(line.starts_with("rank 2 (n02, pid ") && line.contains(what), "{line}");
    let report = world.survivors(&[0, 1], 76, "lost-9");
    assert!(begin.elapsed() < 5000 * MS, "{role}: {:?}", begin.elapsed());
    assert!(line.contains("all_reduce #1 of 4096 bytes not entered, step 9, phase forward"), "{line}");
    assert!(report.contains("ranks 0-1 wait in it; last heartbeat of rank 2 "), "{report}");
    assert!(report.contains("; last sample 99 (sample-99.jpg)\n"), "{report}");
    assert!(report.ends_with("dump logs/lost-9/; newest good checkpoint step-5; exit 76\n"), "{report}");
    let verdict = world.json("verdict.json");
    assert_eq!((&verdict["verdict"]["rank"], &verdict["verdict"]["code"]), (&2.into(), &76.into()));
    assert_eq!(verdict["recent"]["1"].as_array().unwrap().len(), 2);
    let (status, text) = world.ranks[2].end();
    let own = matches!(role, "failed" | "panic").then(|| world.json("exit-2.json")["code"].clone());
    assert!(own.is_none_or(|code| code == status.code().unwrap()));
    (status, text)
}

#[test]
fn a_killed_rank_is_named_within_a_second() {
    let (status, _) = dies("kill", "died, killed by signal 9 (kill -9, the out-of-memory killer), or its host or link");
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn a_rank_that_exits_early_is_dead_whatever_its_code() {
    assert_eq!(dies("exit 0", "died, exited with code 0 before the end of the run").0.code(), Some(0));
    assert_eq!(dies("exit 3", "died, exited with code 3 before the end of the run").0.code(), Some(3));
}

#[test]
fn fatal_signals_are_told_and_still_kill() {
    for (signal, name) in [(11, "SIGSEGV"), (7, "SIGBUS"), (4, "SIGILL"), (8, "SIGFPE")] {
        let (status, _) = dies(&format!("raise {signal}"), &format!("died, killed by signal {signal} ({name})"));
        assert_eq!(status.signal(), Some(signal));
    }
    assert_eq!(dies("abort", "died, killed by signal 6 (SIGABRT)").0.signal(), Some(6));
}

#[test]
fn a_stack_overflow_is_signal_11_and_keeps_its_message() {
    let (status, text) = dies("overflow", "died, killed by signal 11 (SIGSEGV)");
    assert_eq!(status.signal(), Some(6));
    assert!(text.contains("has overflowed its stack"), "{text}");
}

#[test]
fn a_rank_that_fails_leaves_with_its_own_code() {
    assert_eq!(dies("failed", "failed with code 71, the GPU fell off the bus").0.code(), Some(71));
    assert_eq!(dies("panic", "failed with code 70, panicked: index out of range").0.code(), Some(70));
}

#[test]
fn who_lost_a_peer_waits_for_the_verdict_that_names_it() {
    let mut world = World::new(&["lost", "lost", "kill"], 30_000);
    world.ranks[0].go();
    world.ranks[1].go();
    world.ranks[2].signal(Signal::SIGKILL);
    let report = world.survivors(&[0, 1], 76, "lost-9");
    assert!(report.starts_with("retort: rank 2 (n02, "), "{report}");
}

#[test]
fn a_rank_that_finishes_while_others_work_is_the_culprit() {
    let mut world = World::new(&["lost", "lost", "finish"], 30_000);
    world.ranks[2].go();
    assert_eq!(world.ranks[2].end().0.code(), Some(0));
    assert_eq!(world.json("exit-2.json")["code"], 0);
    world.ranks[1].go();
    let report = world.survivors(&[0, 1], 76, "lost-9");
    assert!(
        report.contains("rank 2 (n02") && report.contains("said that it is done while others still work"),
        "{report}"
    );
}

/// The rank stops in `role`'s phase and is named within the limit and two seconds.
fn stops(role: &str, phase: &str) {
    let mut world = World::new(&["wait", "wait", role], 1_500);
    let begin = Instant::now();
    world.ranks[2].signal(Signal::SIGSTOP);
    let line = until(&mut world.ranks[0].err, "retort: ");
    assert!(begin.elapsed() < 3_500 * MS, "{role}: {:?}", begin.elapsed());
    assert!(line.starts_with("rank 2 (n02") && line.contains(" hung: ") && line.contains(phase), "{line}");
    let report = world.survivors(&[0, 1], 77, "hang-9");
    assert!(report.contains("(it is stopped, or its host or link is gone); last sample 99"), "{report}");
    assert!(report.ends_with("dump logs/hang-9/; newest good checkpoint step-5; exit 77\n"), "{report}");
}

#[test]
fn a_stopped_rank_is_named_with_its_phase() {
    stops("stop load", "not entered, step 9, phase load, ");
    stops("stop checkpoint", "not entered, step 9, phase checkpoint, ");
    stops("wait", "all_reduce #1 of 4096 bytes, step 9, phase all_reduce, ");
}

#[test]
fn a_rank_that_is_stuck_but_alive_is_named() {
    let mut world = World::new(&["wait", "stuck", "wait"], 1_000);
    let line = until(&mut world.ranks[0].err, "retort: ");
    assert!(line.starts_with("rank 1 (n01") && line.contains("not entered, step 9, phase forward, "), "{line}");
    let report = world.survivors(&[0, 1, 2], 77, "hang-9");
    assert!(report.contains("ranks 0,2 wait in it; last heartbeat of rank 1 0."), "{report}");
}

#[test]
fn without_rank_0_every_rank_says_so_itself() {
    for (signal, hang_ms, code, folder) in
        [(Signal::SIGKILL, 30_000, 76, "lost-9"), (Signal::SIGSTOP, 500, 77, "hang-9")]
    {
        // They must not hang for another reason than rank 0.
        let mut world = World::new(&["wait", "wait", "wait"], hang_ms);
        world.ranks[0].signal(signal);
        let report = world.survivors(&[1, 2], code, folder);
        assert_eq!(report.matches("retort: rank 0 (n00").count(), 2, "{report}");
        assert_eq!(report.lines().count(), 2, "{report}");
    }
    let mut world = World::new(&["exit 3", "wait", "wait"], 30_000);
    world.ranks[0].go();
    let report = world.survivors(&[1, 2], 76, "lost-9");
    assert_eq!(report.matches("retort: rank 0 (n00").count(), 2, "{report}");
    assert_eq!(report.matches("died, exited with code 3 before the end of the run: step 9").count(), 2, "{report}");
}

#[test]
fn rank_0_may_be_the_one_that_fails() {
    let mut world = World::new(&["failed", "wait", "lost"], 30_000);
    world.ranks[2].go();
    world.ranks[0].go();
    let report = world.survivors(&[1, 2], 76, "lost-9");
    assert_eq!(report, "");
    let report = world.survivors(&[0], 71, "lost-9");
    assert!(report.starts_with("retort: rank 0 (n00, ") && report.contains("ranks 1-2 wait in it"), "{report}");
}

#[test]
fn an_abort_that_never_returns_and_a_term_change_nothing() {
    let mut world = World::new(&["wait", "wait_stuck_abort", "kill"], 30_000);
    world.ranks[2].signal(Signal::SIGKILL);
    until(&mut world.ranks[1].out, "aborting");
    world.ranks[1].signal(Signal::SIGTERM);
    until(&mut world.ranks[0].out, "aborted");
    world.ranks[0].signal(Signal::SIGTERM);
    world.survivors(&[0, 1], 76, "lost-9");
}

#[test]
fn ranks_that_finish_together_leave_in_order() {
    let mut world = World::new(&["finish", "finish", "finish"], 30_000);
    world.ranks.iter_mut().for_each(Rank::go);
    for rank in 0..3 {
        let (status, text) = world.ranks[rank].end();
        assert_eq!((status.code(), text.as_str()), (Some(0), ""));
        assert_eq!(world.json(&format!("exit-{rank}.json")), serde_json::json!({ "code": 0, "verdict": null }));
    }
    assert!(!world.run.path().join("logs/verdict.json").exists());
}

/// Whoever speaks as soon as the watch is started is heard by rank 0: a goodbye that is lost looks like a death.
#[test]
fn the_first_word_is_heard() {
    for _ in 0..5 {
        let begin = Instant::now();
        let mut world = World::new(&["brief", "brief", "brief"], 30_000);
        for rank in 0..3 {
            let (status, text) = world.ranks[rank].end();
            assert_eq!((status.code(), text.as_str()), (Some(0), ""));
        }
        assert!(begin.elapsed() < 30_000 * MS, "a goodbye was lost: {:?}", begin.elapsed());
        let mut world = World::new(&["brief wait", "brief failed"], 30_000);
        let (status, text) = world.ranks[0].end();
        assert_eq!(status.code(), Some(76), "{text}");
        assert!(
            text.starts_with("retort: rank 1 (n01, pid") && text.contains("failed with code 71, the GPU"),
            "{text}"
        );
    }
}

#[test]
fn a_world_of_one_is_watched_too() {
    let mut world = World::new(&["stuck"], 500);
    let report = world.survivors(&[0], 77, "hang-9");
    assert!(report.contains("rank 0 (n00") && report.contains("no rank waits in a collective"), "{report}");
}

#[test]
fn links_to_nobody_are_refused() {
    let start = |rank: usize, links: Links| {
        let settings = WatchSettings {
            rank,
            members: vec![Member::default()],
            limits: Limits::default(),
            logs: PathBuf::new(),
            parent: Parent::ByHand,
            sample_name: None,
            log_tail: None,
        };
        Watch::start(settings, links, Arc::new(Progress::new())).err().unwrap().to_string()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let of = |rank: usize| format!("watch of rank {rank}: it or a rank linked to it is none of the 1 members");
    assert_eq!(start(0, Links::Hub(vec![(1, stream())])), of(0));
    assert_eq!(start(1, Links::Member(stream())), of(1));
}

/// The launcher is killed; its two ranks, which hold its pipes, are gone within 5 s.
fn launcher_dies(trap: &str) {
    let run = tempfile::tempdir().unwrap();
    let mut command = command("");
    configure(&mut command, &run.path().join("logs"), (0, 0), ("launcher", 0), None);
    command.env("WATCH_TRAP", trap).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut launcher = command.spawn().unwrap();
    let mut out = BufReader::new(launcher.stdout.take().unwrap());
    let mut err = launcher.stderr.take().unwrap();
    until(&mut out, "ready");
    launcher.kill().unwrap();
    let (gone, ended) = mpsc::channel();
    thread::spawn(move || {
        out.read_to_end(&mut Vec::new()).unwrap();
        err.read_to_end(&mut Vec::new()).unwrap();
        gone.send(()).unwrap();
    });
    ended.recv_timeout(5_000 * MS).expect("a rank outlived its launcher by 5 s");
    launcher.wait().unwrap();
}

#[test]
fn no_rank_outlives_its_launcher() {
    launcher_dies("");
}

#[test]
fn nor_does_one_that_ignores_term() {
    launcher_dies("trap '' TERM;");
}
