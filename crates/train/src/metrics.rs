//! Logs of numbers: `metrics.jsonl` (rank 0) and `logs/<rank>.jsonl`, one JSON object a line.
//!
//! No log may cost the run anything: lines go through a queue to a thread of their own; what does not fit, or fails, is
//! dropped and counted, and reported once. A resumed run first [`cut`]s the lines behind its checkpoint, so that its log
//! equals that of a run never stopped, but for `t`. For that, all lines of a step must be written, and the log synced,
//! before the checkpoint of that step.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// Version of the lines, their `v`.
pub const SCHEMA_VERSION: u32 = 1;
/// Messages that wait for the disk before more are dropped.
const QUEUE_LENGTH: usize = 4096;
/// Longest wait for the disk at the end, and before a checkpoint.
const SYNC_LIMIT: Duration = Duration::from_secs(2);

/// Appends to a file from a thread of its own. Never blocks on the disk, never fails.
pub struct Sink {
    path: PathBuf,
    queue: SyncSender<Message>,
    losses: Arc<Mutex<Losses>>,
}

enum Message {
    /// To be written wholly or not at all.
    Bytes(Vec<u8>),
    Reopen,
    Sync(SyncSender<()>),
}

#[derive(Default)]
struct Losses {
    dropped: u64,
    first_reason: Option<String>,
    reported: bool,
}

impl Sink {
    /// A sink that appends to `path`, which is created, with its folder, if it is not there.
    pub fn append_to(path: &Path) -> Self {
        let (queue, messages) = sync_channel(QUEUE_LENGTH);
        let losses = Arc::new(Mutex::new(Losses::default()));
        let (file, counted) = (path.to_owned(), Arc::clone(&losses));
        let writer = std::thread::Builder::new().name("log".into());
        if let Err(e) = writer.spawn(move || write_all(&file, &messages, &counted)) {
            lose(&losses, &format!("cannot start a thread: {e}"));
        }
        Self { path: path.into(), queue, losses }
    }

    /// Queues bytes that belong together, such as a line.
    pub fn send(&self, bytes: Vec<u8>) {
        match self.queue.try_send(Message::Bytes(bytes)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => lose(&self.losses, "the disk does not keep up"),
            Err(TrySendError::Disconnected(_)) => lose(&self.losses, "the writer is gone"),
        }
    }

    /// Opens the file anew, after it was moved away.
    pub fn reopen(&self) {
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// Waits until all that was sent is on the disk, at most 2 s. False if it is not.
    pub fn sync(&self) -> bool {
        let (done, waiting) = sync_channel(1);
        self.queue.try_send(Message::Sync(done)).is_ok() && waiting.recv_timeout(SYNC_LIMIT).is_ok()
    }

    /// Messages lost so far.
    pub fn dropped(&self) -> u64 {
        locked(&self.losses).dropped
    }

    /// Once, after the first loss: what to tell the user.
    pub fn take_warning(&self) -> Option<String> {
        let mut losses = locked(&self.losses);
        let reason = losses.first_reason.clone().filter(|_| !losses.reported)?;
        losses.reported = true;
        Some(format!("{}: {reason}; lines are dropped and counted, training goes on", self.path.display()))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.sync();
    }
}

/// The thread of a sink; ends with it.
fn write_all(path: &Path, messages: &Receiver<Message>, losses: &Mutex<Losses>) {
    let mut file = open(path);
    for message in messages {
        match message {
            Message::Bytes(bytes) => {
                let written = match &mut file {
                    Ok(file) => append_whole(file, &bytes),
                    Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
                };
                written.unwrap_or_else(|e| lose(losses, &e.to_string()));
            }
            Message::Reopen => file = open(path),
            Message::Sync(done) => {
                if file.as_ref().is_ok_and(|f| f.sync_data().is_ok()) {
                    let _ = done.try_send(());
                }
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    OpenOptions::new().create(true).append(true).open(path)
}

/// After an error the file is as it was: no half line, no half record.
fn append_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(bytes).inspect_err(|_| drop(file.set_len(before)))
}

fn locked(losses: &Mutex<Losses>) -> MutexGuard<'_, Losses> {
    losses.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lose(losses: &Mutex<Losses>, reason: &str) {
    let mut losses = locked(losses);
    losses.dropped += 1;
    losses.first_reason.get_or_insert_with(|| reason.to_owned());
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Step,
    Eval,
    Save,
    Event,
}

/// Writer of JSON lines `{"v":1,"t":…,"step":…,"kind":"step|eval|save|event",…}`; `t` is in seconds since 1970.
pub struct MetricsLog {
    pub sink: Sink,
}

impl MetricsLog {
    /// Appends to the file.
    pub fn append_to(path: &Path) -> Self {
        Self { sink: Sink::append_to(path) }
    }

    /// Queues a line. Numbers that are not finite become `null`; `fields` must not repeat `v`, `t`, `step` or `kind`.
    pub fn write(&self, step: u64, kind: Kind, fields: &Map<String, Value>) {
        let kind = match kind {
            Kind::Step => "step",
            Kind::Eval => "eval",
            Kind::Save => "save",
            Kind::Event => "event",
        };
        let t = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64();
        let mut line = format!(r#"{{"v":{SCHEMA_VERSION},"t":{t:.3},"step":{step},"kind":"{kind}""#);
        for (key, value) in fields {
            line += &format!(",{}:{value}", Value::from(key.as_str()));
        }
        line += "}\n";
        self.sink.send(line.into_bytes());
    }
}

/// Removes the lines of steps after `step`, and lines that are not whole, by writing a new file and renaming it. Returns
/// how many. No file is no error.
pub fn cut(path: &Path, step: u64) -> io::Result<usize> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    let old = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => BufReader::new(opened?),
    };
    let new_path = path.with_extension("jsonl.tmp");
    let mut new = BufWriter::new(File::create(&new_path)?);
    let mut removed = 0;
    for line in old.split(b'\n') {
        let mut line = line?;
        let keep = serde_json::from_slice(&line).is_ok_and(|l: Line| l.step <= step);
        line.push(b'\n');
        if keep { new.write_all(&line)? } else { removed += 1 }
    }
    new.into_inner()?.sync_all()?;
    fs::rename(&new_path, path)?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    /// The lines without `t`, which is a wall clock.
    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        let line = |l: &str| {
            let mut value: Value = serde_json::from_str(l).unwrap();
            assert!(value.as_object_mut().unwrap().remove("t").unwrap().as_f64().unwrap() > 1.7e9);
            value
        };
        text.lines().map(line).collect()
    }

    fn run(path: &Path, steps: std::ops::RangeInclusive<u64>) {
        let log = MetricsLog::append_to(path);
        for step in steps {
            log.write(step, Kind::Step, &fields(json!({ "loss": 1.0 / step as f64, "lr": 0.1 })));
            if step % 3 == 0 {
                log.write(step, Kind::Eval, &fields(json!({ "top1": step })));
                log.write(step, Kind::Save, &Map::new());
            }
        }
        assert!(log.sink.sync());
        assert_eq!((log.sink.dropped(), log.sink.take_warning()), (0, None));
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, resumed) = (dir.path().join("a/metrics.jsonl"), dir.path().join("b/metrics.jsonl"));
        run(&whole, 1..=10);
        assert_eq!(lines(&whole)[0], json!({ "v": 1, "step": 1, "kind": "step", "loss": 1.0, "lr": 0.1 }));
        // Killed at step 8 in the middle of a line; the checkpoint is of step 6.
        assert_eq!(cut(&resumed, 6).unwrap(), 0, "no file yet");
        run(&resumed, 1..=8);
        OpenOptions::new().append(true).open(&resumed).unwrap().write_all(b"{\"v\":1,\"t\":17").unwrap();
        assert_eq!(cut(&resumed, 6).unwrap(), 3);
        run(&resumed, 7..=10);
        assert_eq!(lines(&resumed), lines(&whole));
        assert_eq!(fs::read_dir(dir.path().join("b")).unwrap().count(), 1);
    }

    #[test]
    fn keys_are_escaped_and_nan_is_null() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let log = MetricsLog::append_to(&path);
        log.write(1, Kind::Event, &fields(json!({ "a \"b\"": "x\ny", "loss": f64::NAN })));
        drop(log);
        assert_eq!(lines(&path), [json!({ "v": 1, "step": 1, "kind": "event", "a \"b\"": "x\ny", "loss": null })]);
    }

    #[test]
    fn a_full_disk_costs_lines_and_one_warning() {
        let log = MetricsLog::append_to(Path::new("/dev/full"));
        (0..10).for_each(|step| log.write(step, Kind::Step, &Map::new()));
        log.sink.sync();
        assert_eq!(log.sink.dropped(), 10);
        let warning = log.sink.take_warning().unwrap();
        assert!(warning.starts_with("/dev/full: No space left on device"), "{warning}");
        assert_eq!(log.sink.take_warning(), None);
        // A place where no file can be.
        let log = MetricsLog::append_to(Path::new("/dev/null/metrics.jsonl"));
        log.write(1, Kind::Step, &Map::new());
        assert!(!log.sink.sync());
        assert_eq!(log.sink.dropped(), 1);
    }

    #[test]
    fn a_disk_that_never_answers_fills_the_queue_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        // Nobody reads this pipe, so the writer waits in `open` until the end of the test.
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let log = MetricsLog::append_to(&path);
        (0..5000).for_each(|step| log.write(step, Kind::Step, &Map::new()));
        assert_eq!(log.sink.dropped(), 5000 - QUEUE_LENGTH as u64);
        assert!(log.sink.take_warning().unwrap().contains("the disk does not keep up"));
    }

    #[test]
    fn a_moved_log_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("0.jsonl"), dir.path().join("0.jsonl.1"));
        let log = MetricsLog::append_to(&path);
        log.write(1, Kind::Step, &Map::new());
        assert!(log.sink.sync());
        fs::rename(&path, &moved).unwrap();
        log.sink.reopen();
        log.write(2, Kind::Step, &Map::new());
        assert!(log.sink.sync());
        assert_eq!((lines(&moved)[0]["step"].clone(), lines(&path)[0]["step"].clone()), (json!(1), json!(2)));
    }
}
