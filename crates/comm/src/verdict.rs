//! What the watch decided: who broke the run, how, and the code that each rank leaves with. The first verdict is the only one.

use crate::progress::Phase;
use crate::recorder::Entry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// Survivors of a lost rank leave with this code.
pub const PEER_LOST: u8 = 76;
/// All leave with this code when a rank hangs.
pub const HANG: u8 = 77;

/// What became of the culprit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Its connection ended without goodbye, or it told what it dies of.
    Dead,
    /// No progress beyond the limit, or no heartbeat.
    Hung,
    /// It said that it cannot go on.
    Failed,
    /// It said goodbye while others work.
    Early,
}

/// Who, why, and the codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub kind: Kind,
    /// The culprit.
    pub rank: usize,
    pub host: String,
    pub pid: u32,
    pub device: String,
    pub phase: Phase,
    pub step: u64,
    pub sequence: u64,
    /// Last sample given to the culprit's device.
    pub sample: Option<u64>,
    /// What the culprit ends with; that of a dead one is a guess.
    pub culprit_code: u8,
    /// What the others end with.
    pub code: u8,
    /// The report. Rank 0 completes it before it is printed.
    pub text: String,
}

/// What only the reporting rank knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circumstances {
    pub(crate) sample_name: Option<String>,
    /// Highest step with a checkpoint.
    pub(crate) checkpoint: Option<u64>,
}

impl Verdict {
    /// What `rank` leaves with.
    pub fn code_of(&self, rank: usize) -> u8 {
        if rank == self.rank { self.culprit_code } else { self.code }
    }

    /// Folder of the flight recorders, in the folder of logs: `hang-9171`, `lost-9171`.
    pub fn folder(&self) -> String {
        let what = if self.kind == Kind::Hung { "hang" } else { "lost" };
        format!("{what}-{}", self.step)
    }

    /// Adds the sample's name and the last line. `logs` is the folder's name.
    pub(crate) fn complete(&mut self, logs: &str, circumstances: &Circumstances) {
        if let (Some(_), Some(name)) = (self.sample, &circumstances.sample_name) {
            self.text += &format!(" ({name})");
        }
        let checkpoint = match circumstances.checkpoint {
            Some(step) => format!("newest good checkpoint step-{step}"),
            None => "no checkpoint yet".to_owned(),
        };
        self.text += &format!("\n        dump {logs}/{}/; {checkpoint}; exit {}", self.folder(), self.code);
    }

    /// Writes `verdict.json`: the verdict, and the last collectives of each rank that could tell.
    pub(crate) fn write(&self, logs: &Path, recent: &BTreeMap<usize, Vec<Entry>>) -> io::Result<()> {
        let json = serde_json::json!({ "verdict": self, "recent": recent });
        write(logs, "verdict.json", &json)
    }
}

/// Writes `exit-<rank>.json`, for launchers hide codes.
pub(crate) fn write_exit(logs: &Path, rank: usize, code: u8, verdict: Option<&Verdict>) -> io::Result<()> {
    let json = serde_json::json!({ "code": code, "verdict": verdict });
    write(logs, &format!("exit-{rank}.json"), &json)
}

fn write(logs: &Path, name: &str, json: &serde_json::Value) -> io::Result<()> {
    fs::create_dir_all(logs)?;
    fs::write(logs.join(name), format!("{json:#}\n"))
}

/// Highest step of the folders `step-<n>` in `checkpoints` beside the folder of logs.
pub(crate) fn newest_checkpoint(logs: &Path) -> Option<u64> {
    let folders = fs::read_dir(logs.parent()?.join("checkpoints")).ok()?;
    folders.flatten().filter_map(|f| f.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).max()
}

/// `0-4,6-7`
pub(crate) fn ranges(ranks: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &rank in ranks {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => parts.push((rank, rank)),
        }
    }
    let part = |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 4, 6, 7, 9]), "0-4,6-7,9");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn the_newest_checkpoint_is_the_highest_step() {
        let run = tempfile::tempdir().unwrap();
        let logs = run.path().join("logs");
        assert_eq!(newest_checkpoint(&logs), None);
        for name in ["step-9", "step-100", "tmp-200-ab", "step-x", "trash-300-cd"] {
            fs::create_dir_all(run.path().join("checkpoints").join(name)).unwrap();
        }
        assert_eq!(newest_checkpoint(&logs), Some(100));
    }
}
