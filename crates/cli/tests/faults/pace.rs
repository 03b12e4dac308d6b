//! Who slows a process down: the test, to a wanted factor, or other virtual machines on the same cores, as the kernel counts.

use crate::launching::signal;
use std::collections::VecDeque;
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

/// Seconds of this machine's cores that other virtual machines had, since the start; 0 where nobody counts.
fn taken_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // cpu user nice system idle iowait irq softirq steal, in hundredths of a second.
    stat.split_whitespace().nth(8).and_then(|steal| steal.parse::<f64>().ok()).unwrap_or_default() / 100.0
}

/// Finds the most cores that other virtual machines took on average over `window`.
pub(crate) fn taken(window: Duration) -> Beside<f64> {
    Beside::start(move |asked| {
        let (mut seen, mut most) = (VecDeque::from([(Instant::now(), taken_s())]), 0.0_f64);
        while !asked.load(Ordering::SeqCst) {
            std::thread::sleep(CYCLE);
            let (now, seconds) = (Instant::now(), taken_s());
            seen.push_back((now, seconds));
            while seen.get(1).is_some_and(|&(at, _)| now - at >= window) {
                seen.pop_front();
            }
            most = most.max((seconds - seen[0].1) / (now - seen[0].0).max(window).as_secs_f64());
        }
        most
    })
}
