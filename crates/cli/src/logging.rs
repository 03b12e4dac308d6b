//! Diagnostics of the program itself (`tracing`): what `RETORT_LOG` asks for, warnings without it.
//!
//! `RETORT_LOG=info,comm=debug` is a level, then levels of parts. They go to stderr; of ranks other than 0 into `logs/<rank>.log`
//! of the run folder, as soon as that is known. The last lines of these and of level info are kept for the dump after a verdict.

use comm::LogTail;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Where diagnostics go.
#[derive(Clone, Default)]
pub(crate) struct Log {
    file: Arc<OnceLock<File>>,
    /// The last lines, whether shown or not.
    pub tail: LogTail,
}

impl Log {
    /// Starts logging, to stderr. A filter that cannot be read is said there and replaced by warnings.
    pub(crate) fn start() -> Log {
        let log = Log::default();
        let asked = std::env::var("RETORT_LOG").unwrap_or_default();
        let mut levels = if asked.is_empty() { "warn" } else { asked.as_str() };
        if let Err(why) = EnvFilter::try_new(levels) {
            let _ =
                writeln!(io::stderr(), "warning: RETORT_LOG={asked:?}: {why}; expected for example info,comm=debug");
            levels = "warn";
        }
        let tail = log.tail.clone();
        let shown = fmt::layer().with_ansi(false).with_writer(log.clone()).with_filter(EnvFilter::new(levels));
        let kept = fmt::layer().with_ansi(false).with_writer(move || tail.clone());
        let kept = kept.with_filter(EnvFilter::new(levels).or(LevelFilter::INFO));
        // Only a second start could fail.
        let _ = tracing_subscriber::registry().with(shown).with(kept).try_init();
        log
    }

    /// From now on into this rank's file. Stderr stays where there can be none.
    pub(crate) fn move_to_file(&self, run_dir: &Path, rank: usize) {
        let logs = run_dir.join("logs");
        let open = || OpenOptions::new().create(true).append(true).open(logs.join(format!("{rank}.log")));
        if let Ok(file) = std::fs::create_dir_all(&logs).and_then(|()| open()) {
            let _ = self.file.set(file);
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Box<dyn Write + 'a>;

    fn make_writer(&'a self) -> Box<dyn Write + 'a> {
        match self.file.get() {
            Some(file) => Box::new(file),
            None => Box::new(io::stderr()),
        }
    }
}
