//! Ranks as processes: this test program again, once for each rank, with a case to play.

use comm::{Library, Nccl};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Longest that anything here may take; beyond it something hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Which GPU each rank has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Devices {
    Own,
    Shared,
}

pub(crate) struct Process {
    pub(crate) child: Child,
    input: ChildStdin,
    words: Receiver<String>,
    errors: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

/// Whether the stand-in GPU and NCCL are there; says aloud if not.
pub(crate) fn ready() -> bool {
    // SAFETY: loading the driver has no effect on the program.
    let stand_in = unsafe { libloading::Library::new("libcuda.so.1") }
        // SAFETY: only asked for.
        .is_ok_and(|driver| unsafe { driver.get::<unsafe extern "C" fn()>("simgpu_launch") }.is_ok());
    match Library::open() {
        Ok(_) if stand_in => true,
        Ok(_) => {
            println!("skipped: the stand-in GPU of simgpu/build.sh is not on LD_LIBRARY_PATH");
            false
        }
        Err(e) => {
            println!("skipped: {e}");
            false
        }
    }
}

/// Starts `ranks` processes that play `case`.
pub(crate) fn start(case: &str, ranks: usize, devices: Devices, settings: &[(&str, &str)]) -> Vec<Process> {
    let id = Nccl::unique_id(&Library::open().unwrap()).unwrap();
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let start_rank = |rank: usize| {
        let mut command = this_program(case);
        command.env("CASE_RANK", rank.to_string()).env("CASE_WORLD", ranks.to_string()).env("CASE_ID", &id);
        match devices {
            Devices::Own => command.env("SIMGPU_DEVICES", "4").env("CASE_DEVICE", rank.to_string()),
            // What the documentation says about several ranks on one GPU.
            Devices::Shared => command.env("CASE_DEVICE", "0").env("NCCL_HOSTID", format!("job-{rank}")),
        };
        Process::start(command.envs(settings.iter().copied()))
    };
    (0..ranks).map(start_rank).collect()
}

/// This test program, to play a case.
pub(crate) fn this_program(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "plays_its_case", "--nocapture", "--test-threads=1"]).env("CASE", case);
    command
}

/// Runs the case to its end on all ranks, each without a failure.
pub(crate) fn play(case: &str, ranks: usize, devices: Devices, settings: &[(&str, &str)]) {
    for process in start(case, ranks, devices, settings) {
        process.succeeds();
    }
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (send, words) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, word)) = line.split_once('@') {
                    let _ = send.send(word.to_owned());
                }
            }
        });
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let errors = Arc::new(Mutex::new(String::new()));
        let text = Arc::clone(&errors);
        let reader = thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| text.lock().unwrap().push_str(&(line + "\n")));
        });
        Self { input: child.stdin.take().unwrap(), child, words, errors, reader }
    }

    /// The next word that the rank says.
    pub(crate) fn hears(&mut self) -> String {
        match self.words.recv_timeout(LIMIT) {
            Ok(word) => word,
            Err(_) => {
                let _ = self.child.kill();
                panic!("said nothing more: {:?}\n{}", self.child.wait(), self.errors.lock().unwrap());
            }
        }
    }

    /// Says nothing for a while.
    pub(crate) fn is_silent(&mut self) {
        assert_eq!(self.words.recv_timeout(Duration::from_millis(200)).ok(), None);
    }

    /// Makes the rank do what it waits with: abort its communicator, or wait for its stream.
    pub(crate) fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    pub(crate) fn succeeds(self) {
        let (code, errors) = self.ends();
        assert_eq!(code, Some(0), "{errors}");
    }

    /// Exit code and what it wrote as errors.
    pub(crate) fn ends(mut self) -> (Option<i32>, String) {
        drop(self.input);
        let code = self.child.wait().unwrap().code();
        self.reader.join().unwrap();
        (code, std::mem::take(&mut *self.errors.lock().unwrap()))
    }
}
