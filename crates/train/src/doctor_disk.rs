//! Preflight of the disk that a run writes to.

use crate::checkpoint::{CheckpointError, SPACE_FOR_CHECKPOINTS};
use crate::disk::{Disk, OsDisk};
use crate::doctor::{Asked, Finding, State, Tell, size};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// A sync of one small file that takes longer makes every save slow.
const SLOW_SYNC_S: f64 = 0.5;
const ELSEWHERE: &str = "give a folder on another disk by --run";

/// `needed` gives the bytes of a checkpoint, once they are known; it closes if they never will be.
pub(crate) fn disk(asked: &Asked, tell: &Tell, needed: &Receiver<u64>) {
    let Some(run_dir) = asked.run_dir.as_deref() else { return };
    let run_dir = std::path::absolute(run_dir).unwrap_or(run_dir.to_path_buf());
    // Nothing is made here that a run did not ask for.
    let Some(folder) = run_dir.ancestors().find(|p| p.exists()) else { return };
    let shown = match folder == run_dir {
        true => run_dir.display().to_string(),
        false => format!("{} (for {})", folder.display(), run_dir.display()),
    };
    tell.tell(match sync_time(folder) {
        Ok(seconds) if seconds > SLOW_SYNC_S => {
            let what = format!("{shown} can be written, but a sync of a small file is slow, taking");
            Finding::warn("disk", what, ELSEWHERE).measured(1e3 * seconds, "ms")
        }
        Ok(seconds) => {
            Finding::ok("disk", format!("{shown} can be written, a sync takes")).measured(1e3 * seconds, "ms")
        }
        Err(e) => Finding::fail("disk", format!("{shown} cannot be written: {e}"), format!("allow it, or {ELSEWHERE}")),
    });
    let free = match OsDisk.free_bytes(folder) {
        Ok(free) => free,
        Err(e) => {
            let what = format!("{}: its free space is not known: {e}", folder.display());
            return tell.tell(Finding::warn("disk", what, ELSEWHERE));
        }
    };
    let Ok(bytes) = needed.recv() else {
        return tell.tell(Finding::ok("disk", "free space").measured(free as f64 / 1e9, "GB"));
    };
    let needed = bytes.saturating_mul(SPACE_FOR_CHECKPOINTS);
    tell.tell(if free < needed {
        let error = CheckpointError::NoSpace { path: folder.to_path_buf(), free, needed };
        Finding::of_error("disk", State::Fail, &error.to_string(), ELSEWHERE)
    } else {
        Finding::ok("disk", format!("two checkpoints need {}, free are", size(needed)))
            .measured(free as f64 / 1e9, "GB")
    });
}

/// Seconds until a small new file is durable. It is taken away again.
fn sync_time(folder: &Path) -> io::Result<f64> {
    if !folder.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let path = folder.join(format!(".retort-doctor-{}-{}", comm::host_name(), std::process::id()));
    let begin = Instant::now();
    let written = OsDisk.create(&path).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync()
    });
    let seconds = begin.elapsed().as_secs_f64();
    // What was not made need not go.
    let _ = OsDisk.remove_file(&path);
    written.map(|()| seconds)
}
