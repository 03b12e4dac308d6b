//! Starts without progress: a run that begins at one step again and again is stopped, so that a requeue loop ends.
//!
//! `starts.json` in the run folder says at which step the run began last, how often in a row, and by which recipe. Rank 0 writes it
//! when all checks are done, and takes it away at an end after which nothing needs to be tried again: done, stopped by TERM or
//! INT, preempted after at least one step. A crash, a kill, a verdict, an error and a preemption without a step leave it. Another
//! step, another recipe or `--resume never` begin a new count; so does a person who deletes the file.

use crate::disk::Disk;
use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file's name in the run folder.
const NOTE: &str = "starts.json";
/// Starts in a row from one step; there is no further one.
const MOST: u32 = 3;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    step: u64,
    starts: u32,
    /// BLAKE3 of the resolved recipe.
    recipe: String,
}

/// The starts of one run.
pub(crate) struct Starts<'a> {
    disk: &'a dyn Disk,
    run_dir: &'a Path,
    recipe: String,
}

impl<'a> Starts<'a> {
    /// `text` is the resolved recipe.
    pub(crate) fn new(disk: &'a dyn Disk, run_dir: &'a Path, text: &str) -> Starts<'a> {
        Starts { disk, run_dir, recipe: blake3::hash(text.as_bytes()).to_hex().to_string() }
    }

    fn path(&self) -> PathBuf {
        self.run_dir.join(NOTE)
    }

    /// Starts in a row from `step` so far. A file that cannot be read, or is none of ours, counts nothing.
    fn so_far(&self, step: u64) -> u32 {
        let note = self.disk.read(&self.path()).ok().and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        note.filter(|note| note.step == step && note.recipe == self.recipe).map_or(0, |note| note.starts)
    }

    /// Errors: the run started at `step` too often already.
    pub(crate) fn check(&self, step: u64) -> Result<(), TrainError> {
        match self.so_far(step) {
            starts if starts >= MOST => {
                Err(TrainError::NoProgress { step, starts, run_dir: self.run_dir.to_path_buf(), note: self.path() })
            }
            _ => Ok(()),
        }
    }

    /// The run starts at `step`. Errors: it could not be noted; the old note stands.
    pub(crate) fn note(&self, step: u64) -> io::Result<()> {
        let note = Note { step, starts: self.so_far(step) + 1, recipe: self.recipe.clone() };
        let new = self.run_dir.join(format!("{NOTE}.tmp"));
        // One that a killed program left, or none.
        let _ = self.disk.remove_file(&new);
        let mut file = self.disk.create(&new)?;
        file.write_all(&serde_json::to_vec(&note)?)?;
        file.sync()?;
        self.disk.rename(&new, &self.path())?;
        self.disk.sync_dir(self.run_dir)
    }

    /// The count begins anew. Errors: a note is there and stays.
    pub(crate) fn forget(&self) -> io::Result<()> {
        match self.disk.remove_file(&self.path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OsDisk;

    #[test]
    fn the_fourth_start_from_one_step_is_refused() {
        let run = tempfile::tempdir().unwrap();
        let starts = Starts::new(&OsDisk, run.path(), "recipe");
        for step in [0, 120] {
            for _ in 0..MOST {
                starts.check(step).unwrap();
                starts.note(step).unwrap();
            }
            let error = starts.check(step).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("3 starts in a row from step {step} ended without progress")),
                "{error}"
            );
            assert!(error.contains("logs/verdict.json") && error.contains("starts.json to go on"), "{error}");
        }
        starts.check(0).unwrap(); // another step than the last
        Starts::new(&OsDisk, run.path(), "another").check(120).unwrap();
        assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 1, "no temporary file is left");
        starts.forget().unwrap();
        starts.forget().unwrap();
        starts.check(120).unwrap();
    }

    #[test]
    fn what_is_no_note_counts_nothing() {
        let run = tempfile::tempdir().unwrap();
        let starts = Starts::new(&OsDisk, run.path(), "recipe");
        for bytes in [&b""[..], b"{\"step\":0}", b"\xff", b"{\"step\":0,\"starts\":-1,\"recipe\":\"\"}"] {
            std::fs::write(run.path().join(NOTE), bytes).unwrap();
            starts.check(0).unwrap();
        }
        starts.note(0).unwrap();
        assert_eq!(starts.so_far(0), 1);
        let gone = Starts::new(&OsDisk, Path::new("/proc/none"), "recipe");
        assert!(gone.check(0).is_ok() && gone.note(0).is_err());
    }
}
