//! How often, how soon, and what came of it: the rows of the table, the limits, the random choices.

pub(crate) use crate::job::Dice;
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The tests take turns: each measures times, and has the machine's cores for itself.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn asked() -> Option<usize> {
    std::env::var("RETORT_FAULT_RUNS").ok().map(|n| n.parse().expect("RETORT_FAULT_RUNS is a number"))
}

/// Whether this is the long form.
pub(crate) fn is_long() -> bool {
    asked().is_some()
}

/// Runs of a fault: `short` of them, in the long form as many as asked for up to `long`.
pub(crate) fn runs(short: usize, long: usize) -> usize {
    asked().map_or(short, |n| n.min(long))
}

/// The target in seconds; three times that in the short form, which runs on machines that do other things too.
pub(crate) fn target(seconds: f64) -> Duration {
    Duration::from_secs_f64(if is_long() { seconds } else { 3.0 * seconds })
}

/// Random choices; the seed is printed, and taken from RETORT_FAULT_SEED.
pub(crate) fn dice() -> Dice {
    Dice::new("RETORT_FAULT_SEED")
}

/// Runs `run` on all cases; in the long form `at_once` of them beside each other, where much of a run is waiting. Panics with the
/// first that does.
pub(crate) fn each<C: Sync>(at_once: usize, cases: &[C], run: impl Fn(&C) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            run(case);
        }
    };
    std::thread::scope(|scope| {
        let threads = (0..if is_long() { at_once } else { 1 }).map(|_| scope.spawn(work));
        let ends: Vec<_> = threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join()).collect();
        ends.into_iter().for_each(|end| end.unwrap_or_else(|panic| resume_unwind(panic)));
    });
}

/// How many times as long the first takes as the second, `n` times beside each other in turns: median of the ratios, and its
/// standard error.
pub(crate) fn in_pairs(n: usize, first: impl Fn() -> f64, second: impl Fn() -> f64) -> (f64, f64) {
    let pair = |i: usize| match i % 2 {
        0 => first() / second(),
        _ => 1.0 / (second() / first()),
    };
    let mut ratios: Vec<f64> = (0..n).map(pair).collect();
    ratios.sort_by(f64::total_cmp);
    // Of the median of normal values.
    let error = (ratios[3 * n / 4] - ratios[n / 4]) / 1.35 * 1.25 / (n as f64).sqrt();
    (ratios[n / 2], error)
}

/// A row of the table.
pub(crate) struct Tally {
    fault: &'static str,
    how: String,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    detected: Vec<Duration>,
    gone: Vec<Duration>,
    right: usize,
    named: usize,
    codes: BTreeMap<String, usize>,
    notes: Vec<String>,
    written: bool,
}

impl Tally {
    pub(crate) fn new(fault: &'static str, how: &str) -> Tally {
        Tally { fault, how: how.to_string(), found: Mutex::default() }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run ended with these codes of its ranks, or of its launcher.
    pub(crate) fn ended(&self, codes: &[i32]) {
        let words: Vec<String> = codes.iter().map(i32::to_string).collect();
        *self.found().codes.entry(words.join(" ")).or_default() += 1;
    }

    /// From the fault to the report.
    pub(crate) fn detected(&self, begin: Instant, at: Instant) {
        self.found().detected.push(at.saturating_duration_since(begin));
    }

    /// From the fault to the end of the last process.
    pub(crate) fn gone(&self, begin: Instant, at: Instant) {
        self.found().gone.push(at.saturating_duration_since(begin));
    }

    /// Whether the report named whom it had to name.
    pub(crate) fn named(&self, right: bool) {
        let mut found = self.found();
        found.named += 1;
        found.right += usize::from(right);
    }

    pub(crate) fn note(&self, text: String) {
        self.found().notes.push(text);
    }

    fn write(&self) -> String {
        let row = self.found().row(self.fault, &self.how);
        eprint!("{row}");
        if let Ok(path) = std::env::var("RETORT_FAULT_TABLE") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            file.and_then(|mut f| f.write_all(row.as_bytes())).expect("the table can be written");
        }
        row
    }

    /// Writes the row, then holds the figures to the targets in seconds; 0: none. All have to be named rightly.
    pub(crate) fn end(self, detect_s: f64, gone_s: f64) {
        let (row, found) = (self.write(), self.found());
        assert_eq!(found.right, found.named, "wrongly named: {row}");
        for (what, took, limit) in [("detected", &found.detected, detect_s), ("gone", &found.gone, gone_s)] {
            let late = limit > 0.0 && took.last().is_some_and(|&took| took > target(limit));
            assert!(!late, "{what} after more than {limit} s: {row}");
        }
    }
}

impl Found {
    fn row(&mut self, fault: &str, how: &str) -> String {
        self.written = true;
        self.detected.sort();
        self.gone.sort();
        let seconds = |d: &Duration| format!("{:.2}", d.as_secs_f64());
        let dash = || "–".to_string();
        let middle =
            |all: &[Duration]| all.last().map(|max| format!("{} / {}", seconds(&all[all.len() / 2]), seconds(max)));
        let right = if self.named == 0 { dash() } else { format!("{}/{}", self.right, self.named) };
        let codes = self.codes.iter().map(|(codes, n)| if *n == 1 { codes.clone() } else { format!("{codes} (×{n})") });
        let outcome: Vec<String> = codes.chain(self.notes.iter().cloned()).collect();
        format!(
            "| {fault} | {how} | {} | {} | {} | {right} | {} |\n",
            self.codes.values().sum::<usize>(),
            middle(&self.detected).unwrap_or_else(dash),
            self.gone.last().map_or_else(dash, seconds),
            outcome.join("; "),
        )
    }
}

impl Drop for Tally {
    /// A test that fails has its row too.
    fn drop(&mut self) {
        let written = self.found().written;
        if !written && std::thread::panicking() {
            self.note("**FAILED**".to_string());
            self.write();
        }
    }
}
