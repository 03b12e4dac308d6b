//! A rank of the tests: meets the others on loopback sockets, then does what its role says.

use crate::MS;
use comm::progress::Phase;
use comm::{Limits, LogTail, Op, Parent, Progress, Watch, WatchSettings, meeting::Links, member::Member};
use nix::sys::signal::{Signal, raise};
use std::env;
use std::io::{Read, Write, stdin};
use std::net::{TcpListener, TcpStream};
use std::process::{abort, exit, id};
use std::sync::Arc;
use std::thread;

fn number(name: &str) -> usize {
    env::var(name).unwrap().parse().unwrap()
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

fn links(rank: usize, world: usize) -> Links {
    if rank == 0 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        say(&format!("port {}", listener.local_addr().unwrap().port()));
        let accept = |_| {
            let mut stream = listener.accept().unwrap().0;
            let mut rank = [0];
            stream.read_exact(&mut rank).unwrap();
            (rank[0].into(), stream)
        };
        return Links::Hub((1..world).map(accept).collect());
    }
    let mut stream = TcpStream::connect(("127.0.0.1", number("WATCH_PORT") as u16)).unwrap();
    stream.write_all(&[rank as u8]).unwrap();
    Links::Member(stream)
}

pub(crate) fn main(role: &str) {
    let (rank, world) = (number("WATCH_RANK"), number("WATCH_WORLD"));
    let member = |rank: usize| Member {
        rank: rank as u32,
        host: format!("n{rank:02}"),
        pid: id(),
        device: "cpu".into(),
        ..Member::default()
    };
    let ppid = env::var("WATCH_PPID").map(|ppid| Parent::Launched { ppid: ppid.parse().unwrap() });
    let tail = LogTail::default();
    tail.push(format!("rank {rank} logged this\n").as_bytes());
    let settings = WatchSettings {
        rank,
        members: (0..world).map(member).collect(),
        limits: Limits {
            heartbeat: 100 * MS,
            hang: number("WATCH_HANG_MS") as u32 * MS,
            abort: 500 * MS,
            // Longer than its test waits, which a lost goodbye would take.
            barrier: if role == "brief" { 60_000 * MS } else { Limits::default().barrier },
            ..Limits::default()
        },
        logs: env::var("WATCH_LOGS").unwrap().into(),
        parent: ppid.unwrap_or(Parent::ByHand),
        sample_name: Some(Box::new(|sample| format!("sample-{sample}.jpg"))),
        log_tail: Some(tail),
    };
    let progress = Arc::new(Progress::new());
    let links = links(rank, world);
    // Such a rank may end before it could say so later.
    if role.starts_with("brief") {
        say("ready");
    }
    let watch = Watch::start(settings, links, Arc::clone(&progress)).unwrap();
    watch.on_abort(Box::new(|| say("aborted")));
    progress.step(8, 90);
    progress.step(9, 99);
    progress.begin_collective(Op::Barrier, 0);
    progress.end_collective();
    progress.enter(Phase::Forward);
    act(role, watch, &progress);
}

fn act(role: &str, watch: Watch, progress: &Progress) {
    let go = || {
        // Ready when a heartbeat has told of it: the second to come, for the first may be on its way.
        let beats = progress.beats();
        while progress.beats() < beats + 2 {
            thread::sleep(MS);
        }
        say("ready");
        stdin().read_line(&mut String::new()).unwrap();
    };
    match role {
        "brief" => watch.finish(0),
        "brief wait" => drop(stdin().read_to_string(&mut String::new())),
        "brief failed" => watch.failed(71, "the GPU fell off the bus"),
        "wait" | "wait_stuck_abort" => {
            if role == "wait_stuck_abort" {
                watch.on_abort(Box::new(|| {
                    say("aborting");
                    thread::park();
                    unreachable!("nobody unparks it");
                }));
            }
            progress.enter(Phase::Reduce);
            progress.begin_collective(Op::AllReduce, 4096);
            go();
            // Standard input ends with the test that holds it; until then this rank waits in the collective.
            stdin().read_to_string(&mut String::new()).unwrap();
        }
        "lost" => {
            progress.enter(Phase::Reduce);
            progress.begin_collective(Op::AllReduce, 4096);
            go();
            watch.lost()
        }
        "finish" => {
            go();
            watch.finish(0);
        }
        "failed" => {
            go();
            watch.failed(71, "the GPU fell off the bus")
        }
        "panic" => {
            go();
            let panicked = thread::spawn(|| panic!("index out of range")).join();
            assert!(panicked.is_err());
            watch.failed(70, "panicked: index out of range")
        }
        "overflow" => {
            go();
            let deep = deeper(u64::from(id()));
            exit(deep as i32)
        }
        "abort" => {
            go();
            abort()
        }
        _ => {
            progress.enter(match role {
                "stop load" => Phase::Load,
                "stop checkpoint" => Phase::Checkpoint,
                _ => Phase::Forward,
            });
            go();
            match role.split_once(' ') {
                Some(("exit", code)) => exit(code.parse().unwrap()),
                Some(("raise", signal)) => raise(Signal::try_from(signal.parse::<i32>().unwrap()).unwrap()).unwrap(),
                _ => drop(stdin().read_to_string(&mut String::new())),
            }
        }
    }
}

fn deeper(n: u64) -> u64 {
    let block = std::hint::black_box([n; 512]);
    if n == 0 { 0 } else { deeper(n | block[0]) + block[1] }
}
