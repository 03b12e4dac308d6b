//! What a process dies of, told on its control connections in its last moment.
//!
//! Handlers of the fatal signals and a hook of `exit` write a frame that was prepared before, then let the process die as it
//! would have: the previous action of the signal follows, so that Rust's message about a stack overflow stays. Signals that
//! no process can handle leave no frame, which is how the others know them. The only globals of the crate are here.

use nix::libc::{self, c_int, c_void};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

const SIGNALS: [(c_int, &str); 5] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGABRT, "SIGABRT"),
];

/// What a process died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Death {
    /// A signal that it could still report.
    Signal(i32),
    /// It called `exit` or returned from `main` without saying goodbye.
    Exit(i32),
    /// Its connection ended without a word.
    Silent,
}

impl Death {
    /// The code that its parent sees, as shells count; for a silent death the most likely one.
    pub fn code(self) -> u8 {
        match self {
            Self::Signal(signal) => 128 + signal as u8,
            Self::Exit(code) => code as u8,
            Self::Silent => 128 + libc::SIGKILL as u8,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Signal(signal) => match SIGNALS.iter().find(|(number, _)| *number == signal) {
                Some((_, name)) => write!(f, "killed by signal {signal} ({name})"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::Exit(code) => write!(f, "exited with code {code} before the end of the run"),
            Self::Silent => {
                f.write_str("killed by signal 9 (kill -9, the out-of-memory killer), or its host or link is gone")
            }
        }
    }
}

struct Armed {
    sockets: Vec<RawFd>,
    /// In the order of [`SIGNALS`].
    frames: Vec<Vec<u8>>,
    exit: fn(Death) -> Vec<u8>,
}

/// What handlers and hook write where; null: nothing. Never freed, since a handler may be reading it.
static ARMED: AtomicPtr<Armed> = AtomicPtr::new(ptr::null_mut());
/// What was installed before, in the order of [`SIGNALS`].
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

unsafe extern "C" {
    /// glibc: as `atexit`, with the code. Not in the libc crate.
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

/// From now on a death is told on these sockets, which stay open until [`disarm`]. Errors if the system refuses.
pub(crate) fn arm(sockets: Vec<RawFd>, frame: fn(Death) -> Vec<u8>) -> io::Result<()> {
    let frames = SIGNALS.iter().map(|&(signal, _)| frame(Death::Signal(signal))).collect();
    ARMED.store(Box::into_raw(Box::new(Armed { sockets, frames, exit: frame })), Ordering::Release);
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    // SAFETY: a sigaction is plain data; all zeros is the default action.
    let mut previous: [libc::sigaction; SIGNALS.len()] = unsafe { std::mem::zeroed() };
    for (&(signal, _), old) in SIGNALS.iter().zip(&mut previous) {
        // SAFETY: only reads the action, into a live struct.
        check(unsafe { libc::sigaction(signal, ptr::null(), old) })?;
    }
    if PREVIOUS.set(previous).is_err() {
        return Ok(());
    }
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    // Threads of Rust have an alternate stack, since the runtime handles SIGSEGV itself.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    for (signal, _) in SIGNALS {
        // SAFETY: the handler calls nothing but async-signal-safe functions.
        check(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) })?;
    }
    // SAFETY: the hook lives as long as the program and ignores its argument.
    check(unsafe { on_exit(at_exit, ptr::null_mut()) })
}

/// A death is nobody's concern any more.
pub(crate) fn disarm() {
    ARMED.store(ptr::null_mut(), Ordering::Release);
}

fn check(outcome: c_int) -> io::Result<()> {
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn armed() -> Option<&'static Armed> {
    // SAFETY: null, or from Box::into_raw and never freed.
    unsafe { ARMED.load(Ordering::Acquire).as_ref() }
}

/// Async-signal-safe. A peer that does not take the bytes at once does not get them.
fn tell(sockets: &[RawFd], frame: &[u8]) {
    for &socket in sockets {
        // SAFETY: reads within the frame; a closed descriptor is an error that changes nothing.
        unsafe { libc::send(socket, frame.as_ptr().cast(), frame.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    }
}

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(at) = SIGNALS.iter().position(|(number, _)| *number == signal) else { return };
    if let Some(armed) = armed() {
        tell(&armed.sockets, &armed.frames[at]);
    }
    let Some(previous) = PREVIOUS.get() else { return };
    // SAFETY: restores what was installed before. A fault happens again on return, with its address.
    unsafe { libc::sigaction(signal, &previous[at], ptr::null_mut()) };
    // SAFETY: the system passes a valid siginfo.
    let was_sent = unsafe { (*info).si_code <= 0 };
    if was_sent {
        pass_on(&previous[at], (signal, info, context));
    }
}

/// A signal that was sent comes only once: its previous handler runs here, and should that return, the default action follows.
fn pass_on(previous: &libc::sigaction, (signal, info, context): (c_int, *mut libc::siginfo_t, *mut c_void)) {
    let handler = previous.sa_sigaction;
    // SAFETY: a handler that was installed has one of these two types, by its flags; it gets what the system passed. The
    // signal is blocked here, so the raised one is delivered on return.
    unsafe {
        if handler != libc::SIG_DFL && handler != libc::SIG_IGN && previous.sa_flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            std::mem::transmute::<usize, Handler>(handler)(signal, info, context);
        } else if handler != libc::SIG_DFL && handler != libc::SIG_IGN {
            std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal);
        }
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn at_exit(code: c_int, _argument: *mut c_void) {
    if let Some(armed) = armed() {
        tell(&armed.sockets, &(armed.exit)(Death::Exit(code & 0xff)));
    }
}

/// After a verdict: TERM and INT change nothing, this process is about to leave with the verdict's code.
pub(crate) fn ignore_stops() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: replaces a handler by none.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Ends the process now: no hook, no destructor, whatever other threads are stuck in.
pub(crate) fn leave(code: u8) -> ! {
    // SAFETY: never returns, and leaves nothing behind that anybody could see.
    unsafe { libc::_exit(code.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_have_the_codes_of_shells() {
        let all = [(Death::Signal(11), 139), (Death::Exit(0), 0), (Death::Exit(3), 3), (Death::Silent, 137)];
        assert!(all.iter().all(|(death, code)| death.code() == *code));
        assert_eq!(Death::Signal(libc::SIGFPE).to_string(), "killed by signal 8 (SIGFPE)");
        assert_eq!(Death::Exit(0).to_string(), "exited with code 0 before the end of the run");
    }
}
