//! The launcher of these tests: ranks as processes, by hand or under an mpirun; their true codes, their stderr; none outlives it.

use crate::program::command;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Longest wait for what has to come; far beyond every target.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks every millisecond until there is something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a signal by its name; to a process that is gone, none.
pub(crate) fn signal(pid: u32, name: &str) {
    let signal: Signal = format!("SIG{name}").parse().expect("the name of a signal");
    match kill(Pid::from_raw(pid as i32), signal) {
        Ok(()) | Err(Errno::ESRCH) => (),
        Err(error) => panic!("SIG{name} to {pid}: {error}"),
    }
}

/// A process whose stderr is heard as it comes.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<(Instant, String)>,
    pub(crate) err: String,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Process {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let (send, lines) = channel();
        let err = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let heard = move || err.lines().map_while(Result::ok).try_for_each(|line| send.send((Instant::now(), line)));
        std::thread::spawn(heard);
        Process { child, lines, err: String::new() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// When it said a line with `text`, and the line.
    pub(crate) fn says(&mut self, text: &str) -> (Instant, String) {
        let end = Instant::now() + PATIENCE;
        loop {
            let heard = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let (at, line) = heard.unwrap_or_else(|why| panic!("no line with {text:?} ({why}) in {}", self.err));
            self.err += &format!("{line}\n");
            if line.contains(text) {
                return (at, line);
            }
        }
    }

    /// Whether its stderr, and so it, ends within this time.
    pub(crate) fn ends_within(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((_, line)) => self.err += &format!("{line}\n"),
                Err(why) => return why == RecvTimeoutError::Disconnected,
            }
        }
    }

    /// Its code, as shells count, once it has ended.
    pub(crate) fn ends(&mut self) -> (i32, Instant) {
        let status = until("the end of a process", || self.child.try_wait().expect("a child"));
        let at = Instant::now();
        // What an orphan holds open does not end.
        while let Ok((_, line)) = self.lines.recv_timeout(Duration::from_secs(1)) {
            self.err += &format!("{line}\n");
        }
        (status.code().unwrap_or_else(|| 128 + status.signal().expect("ended")), at)
    }
}

/// A line of /proc about a process or a thread: what follows `name` in this file, up to the end of the line; empty when it is gone.
fn told(file: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_string()
}

/// Threads of a process, as folders of /proc.
fn threads(pid: u32) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process").map(|entry| entry.unwrap().path())
}

/// Stops a process; returns when none of its threads runs.
pub(crate) fn stop(pid: u32) {
    signal(pid, "STOP");
    let stopped = |thread: PathBuf| told(&thread.join("status"), "State:").starts_with('T');
    until("all threads stop", || threads(pid).all(stopped).then_some(()));
}

/// Returns when no thread of a process has run at 30 looks in a row, a millisecond apart: it waits for somebody else.
pub(crate) fn waits(pid: u32) {
    let mut looks = 0;
    until("no thread runs", || {
        let sleeps = |thread: PathBuf| told(&thread.join("status"), "State:").starts_with('S');
        looks = if threads(pid).all(sleeps) { looks + 1 } else { 0 };
        (looks == 30).then_some(())
    });
}

/// The watch thread of a rank, as a folder of /proc.
pub(crate) fn watch_thread(pid: u32) -> PathBuf {
    let is_watch = |thread: &PathBuf| std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name == "watch\n");
    threads(pid).find(is_watch).expect("a rank has a watch")
}

/// Returns when the watch thread of a rank has done what it was woken for: only then it sleeps.
pub(crate) fn watch_rests(pid: u32) {
    let watch = watch_thread(pid);
    until("the watch rests", || told(&watch.join("status"), "State:").starts_with('S').then_some(()));
}

/// Sends TERM; returns when the process has taken it.
pub(crate) fn term(pid: u32) {
    signal(pid, "TERM");
    let pending = || u64::from_str_radix(&told(Path::new(&format!("/proc/{pid}/status")), "ShdPnd:"), 16).unwrap_or(0);
    until("the TERM is taken", || (pending() >> (Signal::SIGTERM as u64 - 1) & 1 == 0).then_some(()));
}

/// Starts ranks that learn who they are from the variables of these two names.
const SHELL: &str = r#"rank=$1 size=$2 n=$3; shift 3
for r in $(seq 0 $((n - 1))); do env "$rank=$r" "$size=$n" "$@" & done; wait"#;

/// What is to be started: `retort train recipe.toml --run <folder>/<run>` on each of `size` ranks.
pub(crate) struct Launch<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) run: &'a str,
    pub(crate) size: usize,
    pub(crate) args: &'a [&'a str],
}

/// A running job.
pub(crate) struct World {
    /// The ranks in order, or their launcher.
    pub(crate) processes: Vec<Process>,
    pub(crate) run: PathBuf,
}

impl Launch<'_> {
    fn words(&self) -> (PathBuf, Vec<String>) {
        let run = self.folder.join(self.run);
        let words = ["train", "recipe.toml", "--threads", "1", "--run", run.to_str().expect("UTF-8")];
        let words = words.iter().chain(self.args).map(|word| word.to_string()).collect();
        (run, words)
    }

    /// By hand: no rank ends with its parent.
    pub(crate) fn start(&self) -> World {
        self.start_each(|_, _| ())
    }

    /// As `start`, after `edit` of each rank's command.
    pub(crate) fn start_each(&self, edit: impl Fn(usize, &mut Command)) -> World {
        let (run, words) = self.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let start = |rank: usize| {
            let mut command = command(self.folder, &words);
            for (name, value) in [("RANK", rank), ("WORLD_SIZE", self.size), ("LOCAL_RANK", rank)] {
                command.env(format!("RETORT_{name}"), value.to_string());
            }
            edit(rank, &mut command);
            Process::spawn(&mut command)
        };
        World { processes: (0..self.size).map(start).collect(), run }
    }

    /// Under `mpirun.openmpi`, `mpirun.mpich`, `shell`: a shell that looks like Open MPI to its ranks, or `shell by hand`. `None`,
    /// said aloud, where it is missing.
    pub(crate) fn under(&self, launcher: &str) -> Option<World> {
        let (run, words) = self.words();
        let size = self.size.to_string();
        let (program, args): (&str, &[&str]) = match launcher {
            "shell" => ("sh", &["-c", SHELL, "sh", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", &size]),
            "shell by hand" => ("sh", &["-c", SHELL, "sh", "RETORT_RANK", "RETORT_WORLD_SIZE", &size]),
            "mpirun.openmpi" => (launcher, &["--oversubscribe", "--bind-to", "none", "-n", &size]),
            _ => (launcher, &["-n", &size]),
        };
        let mut start = Command::new(program);
        start.args(args).env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            eprintln!("SKIPPED: there is no {launcher} here");
            return None;
        }
        start.arg(env!("CARGO_BIN_EXE_retort")).args(words).current_dir(self.folder).stdin(Stdio::null());
        if launcher == "shell" {
            start.env("RETORT_MPI_PLUGIN", "none"); // MPI itself would see through it
        }
        start.env_remove("RETORT_DATA").env_remove("LD_LIBRARY_PATH").env("CUDA_VISIBLE_DEVICES", "-1");
        Some(World { processes: vec![Process::spawn(&mut start)], run })
    }
}

impl World {
    /// Returns once rank 0 has done this many steps.
    pub(crate) fn at_step(&self, step: u64) {
        until("a step", || (steps(&self.run) >= step).then_some(()));
    }

    /// The codes of all processes, once they have ended, and when the last had.
    pub(crate) fn ends(&mut self) -> (Vec<i32>, Instant) {
        let ends: Vec<_> = self.processes.iter_mut().map(Process::ends).collect();
        let last = ends.iter().map(|end| end.1).max().expect("a process");
        (ends.iter().map(|end| end.0).collect(), last)
    }

    /// Everything said on stderr, by rank, for messages of failed tests.
    pub(crate) fn words(&self) -> String {
        self.processes.iter().map(|p| format!("---\n{}", p.err)).collect()
    }

    /// `logs/<name>`, as JSON.
    pub(crate) fn log(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.run.join("logs").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e} in {text}"))
    }

    /// The codes that ranks wrote down, since launchers hide them.
    pub(crate) fn written_codes(&self, size: usize) -> Vec<i32> {
        (0..size).map(|rank| self.log(&format!("exit-{rank}.json"))["code"].as_i64().expect("a code") as i32).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        ranks_of(&self.run).iter().for_each(|&pid| signal(pid, "KILL"));
    }
}

/// Steps in the log of rank 0.
pub(crate) fn steps(run: &Path) -> u64 {
    let log = std::fs::read(run.join("logs/0.jsonl")).unwrap_or_default();
    log.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// Living processes of retort that train in this folder.
pub(crate) fn ranks_of(run: &Path) -> Vec<u32> {
    let folder = run.to_str().expect("UTF-8").as_bytes();
    let lives = |pid: &u32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let ours = read("cmdline").split(|&b| b == 0).any(|word| word == folder);
        // Of a zombie no command line is left.
        ours && read("comm").starts_with(b"retort")
    };
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(lives).collect()
}
