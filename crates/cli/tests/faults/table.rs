//! How often, how soon, and what came of it: the rows of the table, the limits, the random choices.

pub(crate) use crate::job::Dice;
use std::collections::BTreeMap;
use std::io::Write;
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

/// A row of the table.
pub(crate) struct Tally {
    fault: &'static str,
    how: String,
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
        Tally {
            fault,
            how: how.to_string(),
            detected: vec![],
            gone: vec![],
            right: 0,
            named: 0,
            codes: BTreeMap::new(),
            notes: vec![],
            written: false,
        }
    }

    /// A run ended with these codes of its ranks, or of its launcher.
    pub(crate) fn ended(&mut self, codes: &[i32]) {
        let words: Vec<String> = codes.iter().map(i32::to_string).collect();
        *self.codes.entry(words.join(" ")).or_default() += 1;
    }

    /// From the fault to the report.
    pub(crate) fn detected(&mut self, begin: Instant, at: Instant) {
        self.detected.push(at.saturating_duration_since(begin));
    }

    /// From the fault to the end of the last process.
    pub(crate) fn gone(&mut self, begin: Instant, at: Instant) {
        self.gone.push(at.saturating_duration_since(begin));
    }

    /// Whether the report named whom it had to name.
    pub(crate) fn named(&mut self, right: bool) {
        self.named += 1;
        self.right += usize::from(right);
    }

    pub(crate) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    fn row(&self) -> String {
        let seconds = |d: &Duration| format!("{:.2}", d.as_secs_f64());
        let dash = || "–".to_string();
        let middle =
            |all: &[Duration]| all.last().map(|max| format!("{} / {}", seconds(&all[all.len() / 2]), seconds(max)));
        let right = if self.named == 0 { dash() } else { format!("{}/{}", self.right, self.named) };
        let codes = self.codes.iter().map(|(codes, n)| if *n == 1 { codes.clone() } else { format!("{codes} (×{n})") });
        let outcome: Vec<String> = codes.chain(self.notes.iter().cloned()).collect();
        format!(
            "| {} | {} | {} | {} | {} | {right} | {} |\n",
            self.fault,
            self.how,
            self.codes.values().sum::<usize>(),
            middle(&self.detected).unwrap_or_else(dash),
            self.gone.last().map_or_else(dash, seconds),
            outcome.join("; "),
        )
    }

    fn write(&mut self) -> String {
        self.written = true;
        self.detected.sort();
        self.gone.sort();
        let row = self.row();
        eprint!("{row}");
        if let Ok(path) = std::env::var("RETORT_FAULT_TABLE") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            file.and_then(|mut f| f.write_all(row.as_bytes())).expect("the table can be written");
        }
        row
    }

    /// Writes the row, then holds the figures to the targets in seconds; 0: none. All have to be named rightly.
    pub(crate) fn end(mut self, detect_s: f64, gone_s: f64) {
        let row = self.write();
        assert_eq!(self.right, self.named, "wrongly named: {row}");
        for (what, took, limit) in [("detected", &self.detected, detect_s), ("gone", &self.gone, gone_s)] {
            let late = limit > 0.0 && took.last().is_some_and(|&took| took > target(limit));
            assert!(!late, "{what} after more than {limit} s: {row}");
        }
    }
}

impl Drop for Tally {
    /// A test that fails has its row too.
    fn drop(&mut self) {
        if !self.written && std::thread::panicking() {
            self.note("**FAILED**".to_string());
            self.write();
        }
    }
}
