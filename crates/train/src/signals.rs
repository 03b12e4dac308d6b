//! Signals become flags; the trainer asks for them at step boundaries.
//!
//! USR2, USR1: preempt, or the one that the recipe's `ranks.preempt_signal` chose. First TERM or INT: stop. HUP: reopen log files.
//! CONT, where the launcher announces TERM by it: save.
//! A handler sets a flag and nothing else, except that the second TERM or INT ends the process at once as killed by that signal,
//! whatever it is doing. PIPE is ignored by the Rust runtime.

use crate::recipe::PreemptSignal;
use comm::Launcher;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::{SigId, flag, low_level};
use std::io;
use std::os::unix::process::parent_id;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What a signal asks for, weakest first. Ranks agree on one by the bitwise or of their [`bit`](Self::bit)s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    None,
    /// Open log files anew.
    Reopen,
    /// TERM will follow: checkpoint at the agreed step, and go on if it does not.
    Save,
    /// Checkpoint at the agreed step, exit 75.
    Preempt,
    /// INT: as `Stop`, another exit code.
    Interrupt,
    /// TERM: finish the step, save, stop.
    Stop,
    /// TERM where saving takes longer than the launcher waits: stop.
    StopNow,
}

impl Request {
    /// A bit of its own, none for `None`; for flags reduced over ranks.
    pub const fn bit(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Reopen => 1,
            Self::Preempt => 2,
            Self::Interrupt => 4,
            Self::Stop | Self::StopNow => 8,
            Self::Save => 16,
        }
    }

    /// The strongest request among these bits.
    pub fn strongest(bits: u32) -> Self {
        let all = [Self::Stop, Self::Interrupt, Self::Preempt, Self::Save, Self::Reopen];
        all.into_iter().find(|r| bits & r.bit() != 0).unwrap_or(Self::None)
    }
}

/// The installed handlers.
pub struct Signals {
    stop: Arc<AtomicBool>,
    interrupt: Arc<AtomicBool>,
    preempt: Arc<AtomicBool>,
    /// USR2 where USR1 was chosen: it counts if the launcher is gone, whose end the watch tells by USR2.
    orphan: Arc<AtomicBool>,
    /// Who started this process.
    parent: u32,
    save: Arc<AtomicBool>,
    reopen: Arc<AtomicBool>,
    /// Those that end the process at the second TERM or INT.
    enders: Vec<SigId>,
}

impl Signals {
    /// Installs the handlers, for the whole process and for good. Errors if the system refuses.
    /// The signal of USR1 and USR2 that does not preempt does nothing.
    pub fn install(preempts: PreemptSignal, launcher: Launcher) -> io::Result<Self> {
        let flag = || Arc::new(AtomicBool::new(false));
        let (stop, interrupt, preempt, reopen, stopping) = (flag(), flag(), flag(), flag(), flag());
        let (orphan, nothing, parent, save) = (flag(), flag(), parent_id(), flag());
        let mut enders = Vec::new();
        for (signal, asked) in [(SIGTERM, &stop), (SIGINT, &interrupt)] {
            // The order counts: the first signal finds `stopping` unset and sets it, the second finds it set.
            enders.push(flag::register_conditional_default(signal, Arc::clone(&stopping))?);
            flag::register(signal, Arc::clone(&stopping))?;
            flag::register(signal, Arc::clone(asked))?;
        }
        let (usr1, usr2) = match preempts {
            PreemptSignal::Both => (&preempt, &preempt),
            PreemptSignal::Usr2 => (&nothing, &preempt),
            PreemptSignal::Usr1 => (&preempt, &orphan),
        };
        flag::register(SIGUSR1, Arc::clone(usr1))?;
        flag::register(SIGUSR2, Arc::clone(usr2))?;
        flag::register(SIGHUP, Arc::clone(&reopen))?;
        if launcher.announces_term() {
            flag::register(SIGCONT, Arc::clone(&save))?;
        }
        Ok(Self { stop, interrupt, preempt, orphan, parent, save, reopen, enders })
    }

    /// The strongest request since the last call; weaker ones wait for the next call.
    pub fn take(&self) -> Request {
        if self.orphan.load(Ordering::SeqCst) && parent_id() != self.parent {
            self.orphan.store(false, Ordering::SeqCst);
            self.preempt.store(true, Ordering::SeqCst);
        }
        let order = [
            (&self.stop, Request::Stop),
            (&self.interrupt, Request::Interrupt),
            (&self.preempt, Request::Preempt),
            (&self.save, Request::Save),
            (&self.reopen, Request::Reopen),
        ];
        let set = order.into_iter().find(|(flag, _)| flag.swap(false, Ordering::SeqCst));
        set.map_or(Request::None, |(_, request)| request)
    }

    /// Returns when TERM or INT has come, or after `limit`.
    pub fn wait_for_stop(&self, limit: Duration) {
        let end = Instant::now() + limit;
        while Instant::now() < end && ![&self.stop, &self.interrupt].iter().any(|flag| flag.load(Ordering::SeqCst)) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// After a verdict: no further TERM or INT ends the process, which is about to leave with the verdict's code.
    pub fn ignore_stops(&self) {
        for &id in &self.enders {
            low_level::unregister(id);
        }
    }
}
