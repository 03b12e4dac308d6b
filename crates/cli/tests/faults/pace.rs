//! How fast processes go: one as slow as wanted, two alike whatever else the machine does.

use crate::launching::signal;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Work beside a run, until it is asked to end or dropped.
pub(crate) struct Beside<T> {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Beside<T> {
    fn start(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Beside<T> {
        let done = Arc::new(AtomicBool::new(false));
        let asked = done.clone();
        Beside { done, thread: Some(std::thread::spawn(move || work(&asked))) }
    }

    /// What it found.
    pub(crate) fn ends(mut self) -> T {
        self.done.store(true, Ordering::SeqCst);
        self.thread.take().expect("it ends once").join().expect("no panic")
    }
}

impl<T> Drop for Beside<T> {
    /// A test that fails leaves no thread behind.
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One stop and one go: far below the length of the window in which ranks are compared.
const CYCLE: Duration = Duration::from_millis(100);

/// Makes a process `factor` times as slow, by stopping it for the rest of every cycle. Finds how slow it was in fact, since a thread
/// sleeps longer than it asks for.
pub(crate) fn slow_down(pid: u32, factor: f64) -> Beside<f64> {
    Beside::start(move |asked| {
        let (begin, mut stopped) = (Instant::now(), Duration::ZERO);
        while !asked.load(Ordering::SeqCst) {
            let stop = Instant::now();
            signal(pid, "STOP");
            std::thread::sleep(CYCLE.mul_f64(1.0 - 1.0 / factor));
            signal(pid, "CONT");
            stopped += stop.elapsed();
            std::thread::sleep(CYCLE.mul_f64(1.0 / factor));
        }
        let all = begin.elapsed();
        all.as_secs_f64() / (all - stopped).as_secs_f64()
    })
}

/// How long a process has a core before it trades it; not in step with [`CYCLE`].
const TENURE: Duration = Duration::from_millis(70);

/// Makes two processes trade cores again and again, so that a core which other virtual machines slow down slows both alike.
pub(crate) fn trade_cores(processes: [u32; 2]) -> Beside<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the cores of this process");
    let cores: Vec<usize> = (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false)).collect();
    let two = [cores[0], cores[1 % cores.len()]];
    Beside::start(move |asked| {
        for turn in 0.. {
            for (i, pid) in processes.into_iter().enumerate() {
                bind(pid, two[(turn + i) % 2]);
            }
            if asked.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(TENURE);
        }
    })
}

/// Binds all threads that a process has to a core; later ones inherit it.
fn bind(pid: u32, core: usize) {
    let mut set = CpuSet::new();
    set.set(core).expect("a core's number");
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let thread = thread.file_name().to_str().and_then(|id| id.parse().ok()).expect("a thread's number");
        // It may have ended since.
        let _ = sched_setaffinity(Pid::from_raw(thread), &set);
    }
}
