//! Real signals: flags in this process, endings in a child.

use comm::Launcher;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::raise;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use train::recipe::PreemptSignal;
use train::signals::{Request, Signals};

const CHILD: &str = "RETORT_TEST_SIGNALS";

/// Runs [`child`] in a process of its own.
fn run_child(what: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--test-threads=1"]).env(CHILD, what).output().unwrap().status
}

/// Does nothing unless started by another test.
#[test]
fn child() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let preempts = match what.as_str() {
        "usr2 alone" => PreemptSignal::Usr2,
        "usr1 alone" => PreemptSignal::Usr1,
        _ => PreemptSignal::Both,
    };
    let launcher = if what == "announced" { Launcher::OpenMpi } else { Launcher::Pmi };
    let signals = Signals::install(preempts, launcher).unwrap();
    let send = |list: &[i32]| list.iter().for_each(|&s| raise(s).unwrap());
    match what.as_str() {
        "term twice" => send(&[SIGTERM, SIGTERM]),
        "int twice" => send(&[SIGINT, SIGINT]),
        "term, int" => send(&[SIGTERM, SIGINT]),
        "one stop" => send(&[SIGTERM, SIGUSR2, SIGUSR1, SIGHUP, SIGHUP]),
        "usr2 alone" | "usr1 alone" => {
            let (other, chosen) = if what == "usr2 alone" { (SIGUSR1, SIGUSR2) } else { (SIGUSR2, SIGUSR1) };
            send(&[other]);
            assert_eq!(signals.take(), Request::None);
            send(&[chosen]);
            assert_eq!((signals.take(), signals.take()), (Request::Preempt, Request::None));
        }
        "announced" => {
            signals.wait_for_stop(Duration::ZERO);
            send(&[SIGHUP, SIGCONT, SIGTERM]);
            let begin = Instant::now();
            signals.wait_for_stop(Duration::from_secs(600));
            assert!(begin.elapsed() < Duration::from_secs(300), "TERM is there");
            let taken: Vec<_> = (0..4).map(|_| signals.take()).collect();
            assert_eq!(taken, [Request::Stop, Request::Save, Request::Reopen, Request::None]);
        }
        "continued" => {
            send(&[SIGCONT]);
            assert_eq!(signals.take(), Request::None);
        }
        "ignored" => {
            send(&[SIGTERM]);
            assert_eq!(signals.take(), Request::Stop);
            signals.ignore_stops();
            send(&[SIGTERM, SIGTERM, SIGINT]);
        }
        _ => unreachable!(),
    }
}

#[test]
fn the_second_stop_ends_the_process_as_killed() {
    assert_eq!(run_child("term twice").signal(), Some(SIGTERM));
    assert_eq!(run_child("int twice").signal(), Some(SIGINT));
    assert_eq!(run_child("term, int").signal(), Some(SIGINT));
    assert!(run_child("one stop").success());
    assert!(run_child("ignored").success(), "after a verdict TERM is ignored");
}

#[test]
fn the_signal_that_was_not_chosen_does_nothing() {
    assert!(run_child("usr2 alone").success());
    assert!(run_child("usr1 alone").success());
}

#[test]
fn a_launcher_that_announces_term_by_cont_is_understood() {
    assert!(run_child("announced").success());
    assert!(run_child("continued").success(), "from others CONT is no request");
}

#[test]
fn requests_come_strongest_first() {
    let signals = Signals::install(PreemptSignal::Both, Launcher::None).unwrap();
    assert_eq!(signals.take(), Request::None);
    for signal in [SIGUSR1, SIGUSR2] {
        raise(signal).unwrap();
        assert_eq!((signals.take(), signals.take()), (Request::Preempt, Request::None));
    }
    for signal in [SIGHUP, SIGUSR2, SIGTERM, SIGUSR1] {
        raise(signal).unwrap();
    }
    let taken: Vec<_> = (0..4).map(|_| signals.take()).collect();
    assert_eq!(taken, [Request::Stop, Request::Preempt, Request::Reopen, Request::None]);
}

#[test]
fn ranks_agree_by_or() {
    let or = |requests: &[Request]| Request::strongest(requests.iter().fold(0, |bits, r| bits | r.bit()));
    assert_eq!(or(&[Request::None, Request::None]), Request::None);
    assert_eq!(or(&[Request::None, Request::Preempt, Request::Reopen]), Request::Preempt);
    assert_eq!(or(&[Request::Preempt, Request::Stop]), Request::Stop);
}
