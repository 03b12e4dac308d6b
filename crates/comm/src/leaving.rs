//! What happens between a verdict and the end of the process, in this order on every rank: flight recorder to disk, report,
//! collectives aborted, barrier, `exit-<rank>.json`, `_exit`. Every step has a limit; what touches files or libraries runs on a
//! thread of its own, so that nothing can hold the process.

use crate::death;
use crate::message::Message;
use crate::recorder::Entry;
use crate::verdict::{self, Circumstances, Kind, Verdict, newest_checkpoint};
use crate::watch::{Watcher, within};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::time::Duration;

/// For everything on disk, and for the report.
const DISK: Duration = Duration::from_secs(1);
/// For the last collectives of all ranks.
const COLLECT: Duration = Duration::from_millis(500);
/// Collectives of each rank in `verdict.json`.
const TAIL: usize = 16;

impl Watcher {
    /// Rank 0 judged: tells all, collects, reports, leaves last.
    pub(crate) async fn pronounce(&mut self, mut verdict: Verdict) -> ! {
        death::ignore_stops();
        death::disarm();
        self.post(&Message::Verdict(verdict.clone()));
        self.beat();
        self.dump(&verdict);
        // A stopped rank answers nothing.
        let gone = (verdict.kind != Kind::Failed && self.judge.is_late(verdict.rank)).then_some(verdict.rank);
        self.hear_until(COLLECT, |w| w.all_peers_but(gone, |peer| peer.tail.is_some())).await;
        let mut recent: BTreeMap<usize, Vec<Entry>> =
            self.peers.iter_mut().filter_map(|peer| Some((peer.rank, peer.tail.take()?))).collect();
        recent.insert(0, self.progress.last(TAIL));
        // By now all have told where they are.
        self.judge.describe(&mut verdict);
        verdict = self.complete(verdict);
        let logs = self.settings.logs.clone();
        report(&verdict.text);
        let written = verdict.clone();
        within(DISK, move || written.write(&logs, &recent));
        self.abort();
        self.hear_until(self.settings.limits.barrier, |w| w.all_peers_but(gone, |peer| peer.ready)).await;
        self.post(&Message::Leave(verdict.clone()));
        self.write_exit(&verdict);
        self.hear_until(self.settings.limits.barrier, |w| w.all_peers_but(gone, |_| false)).await;
        death::leave(verdict.code_of(0))
    }

    /// Rank 0 told the verdict.
    pub(crate) async fn obey(&mut self, verdict: Verdict) -> ! {
        death::ignore_stops();
        death::disarm();
        self.dump(&verdict);
        self.beat();
        self.post(&Message::Tail(self.progress.last(TAIL)));
        self.abort();
        self.post(&Message::Ready);
        let limits = self.settings.limits;
        let wait = 3 * DISK + COLLECT + limits.abort + limits.barrier;
        self.hear_until(wait, |w| w.released || w.all_peers_but(None, |_| false)).await;
        let verdict = self.told.take().unwrap_or(verdict);
        self.write_exit(&verdict);
        death::leave(verdict.code_of(self.settings.rank))
    }

    /// Rank 0 is gone: each rank says so itself.
    pub(crate) fn mourn(&mut self, verdict: Verdict) -> ! {
        death::ignore_stops();
        death::disarm();
        self.dump(&verdict);
        let verdict = self.complete(verdict);
        report(verdict.text.lines().next().unwrap_or_default());
        self.abort();
        self.write_exit(&verdict);
        death::leave(verdict.code_of(self.settings.rank))
    }

    /// No verdict came in time: this rank leaves as it must.
    pub(crate) fn leave_alone(&mut self, code: u8) -> ! {
        death::disarm();
        self.abort();
        let (logs, rank) = (self.settings.logs.clone(), self.settings.rank);
        within(DISK, move || verdict::write_exit(&logs, rank, code, None));
        death::leave(code)
    }

    fn all_peers_but(&self, gone: Option<usize>, done: impl Fn(&crate::watch::Peer) -> bool) -> bool {
        self.peers.iter().all(|peer| !peer.open || gone == Some(peer.rank) || done(peer))
    }

    /// The flight recorder and the last lines of the log, into the verdict's folder.
    fn dump(&self, verdict: &Verdict) {
        let folder = self.settings.logs.join(verdict.folder());
        let (progress, rank, tail) = (self.progress.clone(), self.settings.rank, self.settings.log_tail.clone());
        let write = move || -> io::Result<()> {
            fs::create_dir_all(&folder)?;
            let mut file = BufWriter::new(File::create(folder.join(format!("rank-{rank}.jsonl")))?);
            progress.dump(&mut file)?;
            file.flush()?;
            let Some(tail) = tail else { return Ok(()) };
            let mut file = BufWriter::new(File::create(folder.join(format!("rank-{rank}.log")))?);
            tail.dump(&mut file)?;
            file.flush()
        };
        within(DISK, write);
    }

    /// Fills in what this rank knows: the sample's name, the newest checkpoint.
    fn complete(&mut self, verdict: Verdict) -> Verdict {
        let logs = self.settings.logs.clone();
        let name = self.settings.sample_name.take();
        let sample = verdict.sample;
        let find = move || Circumstances {
            sample_name: name.zip(sample).map(|(name, sample)| name(sample)),
            checkpoint: newest_checkpoint(&logs),
        };
        let circumstances = within(DISK, find).unwrap_or_default();
        let folder = self.settings.logs.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut verdict = verdict;
        verdict.complete(&folder, &circumstances);
        verdict
    }

    fn abort(&mut self) {
        if let Some(hook) = self.hook.take() {
            within(self.settings.limits.abort, hook);
        }
    }

    fn write_exit(&self, verdict: &Verdict) {
        let (logs, rank, verdict) = (self.settings.logs.clone(), self.settings.rank, verdict.clone());
        within(DISK, move || verdict::write_exit(&logs, rank, verdict.code_of(rank), Some(&verdict)));
    }
}

/// One block on stderr, which may be closed or full.
fn report(text: &str) {
    let block = format!("{text}\n");
    within(DISK, move || io::stderr().write_all(block.as_bytes()));
}
