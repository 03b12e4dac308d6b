//! A training that can be watched, signalled and killed, and what it left.

use crate::program::{RECIPE, command, small_fashion, with_recipe};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const IMAGES: u32 = 88;
/// Steps of an epoch; the last is short.
pub(crate) const EPOCH: u64 = 6;

/// A folder with images and a recipe that keeps every kind of state and logs every step.
pub(crate) fn set_up() -> TempDir {
    let train = "epochs = 3\nglobal_batch = 16\nseed = 3\nema_decay = 0.9\n";
    let rest = "nesterov = true\nweight_decay = 5e-4\n[schedule]\nname = \"cosine\"\nper_step = true\n\
                [eval]\nbatch = 32\n[output]\nlog_every = 1\n";
    let folder = with_recipe(&(RECIPE.replace("epochs = 1\nglobal_batch = 10\n", train) + rest));
    small_fashion(folder.path(), IMAGES);
    folder
}

/// A running `retort train recipe.toml`.
pub(crate) struct Job {
    child: Child,
    /// Lines of stderr; closed when the program ends.
    lines: Receiver<String>,
    err: String,
}

pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Job {
    pub(crate) fn start(folder: &Path, args: &[&str]) -> Job {
        let mut command = command(folder, &[&["train", "recipe.toml"], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("retort starts");
        let (send, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Job { child, lines, err: String::new() }
    }

    /// Returns once a line of stderr begins with `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        loop {
            let line = self.lines.recv().unwrap_or_else(|_| panic!("no line begins with {text:?} in {}", self.err));
            self.err += &format!("{line}\n");
            if line.starts_with(text) {
                return;
            }
        }
    }

    /// Whether it ends within this time.
    pub(crate) fn ends_within(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.err += &format!("{line}\n"),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        // The child is not waited for yet, so its number is still its own.
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill starts").success());
    }

    pub(crate) fn end(mut self) -> Ended {
        self.lines.iter().for_each(|line| self.err += &format!("{line}\n"));
        let mut out = String::new();
        self.child.stdout.take().expect("stdout is piped").read_to_string(&mut out).expect("text is UTF-8");
        Ended { status: self.child.wait().expect("a child"), out, err: self.err }
    }
}

/// Trains to the end of what `args` say.
pub(crate) fn train(folder: &Path, args: &[&str]) -> Ended {
    let ended = Job::start(folder, args).end();
    assert_eq!(ended.status.code(), Some(0), "{args:?}: {}", ended.err);
    ended
}

/// What a run came to: the files of its newest checkpoint but the manifest, and its metrics without the clock.
#[derive(PartialEq)]
pub(crate) struct State {
    pub(crate) checkpoint: String,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) metrics: Vec<serde_json::Value>,
}

impl State {
    pub(crate) fn of(run: &Path) -> State {
        let checkpoints = run.join("checkpoints");
        let checkpoint = std::fs::read_to_string(checkpoints.join("latest")).unwrap().trim().to_string();
        let files = std::fs::read_dir(checkpoints.join(&checkpoint)).unwrap().map(|e| e.unwrap());
        let files = files.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
        let files = files.filter(|(name, _)| name != "manifest.json").collect();
        let line = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line.as_object_mut().unwrap().remove("t").is_some());
            line
        };
        let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().map(line).collect();
        State { checkpoint, files, metrics }
    }

    /// Panics with what differs.
    pub(crate) fn assert_equals(&self, expected: &State, what: &str) {
        assert_eq!(self.checkpoint, expected.checkpoint, "{what}");
        let names = |state: &State| state.files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(self), names(expected), "{what}");
        assert_eq!(names(self), ["ema.safetensors", "model.safetensors", "optim.safetensors"], "{what}");
        for (name, bytes) in &self.files {
            assert!(*bytes == expected.files[name], "{what}: {name} differs");
        }
        for (i, (own, other)) in self.metrics.iter().zip(&expected.metrics).enumerate() {
            assert_eq!(own, other, "{what}: line {} of metrics.jsonl", i + 1);
        }
        assert_eq!(self.metrics.len(), expected.metrics.len(), "{what}: lines of metrics.jsonl");
    }
}

/// Random moments; the seed is printed where a test fails.
pub(crate) struct Dice(u64);

impl Dice {
    /// From the seed that the variable gives, if it gives one.
    pub(crate) fn new(variable: &str) -> Dice {
        let given = std::env::var(variable).ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
        eprintln!("{variable}={seed}");
        Dice(seed)
    }

    /// SplitMix64.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
