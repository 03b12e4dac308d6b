//! The watch over a run: one thread per rank that hears, tells and, on a verdict, ends the process.
//!
//! It reads the progress of its own rank (atomics only) and talks over the control connections: members to rank 0, rank 0 to
//! all. Nothing that the trainer does can hold it: locks of log lines are tried, never waited for. Before a verdict no file is touched.
//! Rank 0 judges; the others judge only whether rank 0 is there. What happens after a verdict is in `leaving`.

use crate::death::{self, Death};
use crate::judge::{Finding, Heard, Judge};
use crate::limits::Limits;
use crate::log_tail::LogTail;
use crate::member::Member;
use crate::message::Message;
use crate::progress::Progress;
use crate::recorder::Entry;
use crate::rendezvous::Links;
use crate::verdict::{self, PEER_LOST, Verdict};
use crate::wire;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt::TcpUserTimeout};
use nix::unistd::{Pid, getppid};
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// What a rank gets when its launcher is gone: it saves and stops. It may come twice, which a second TERM must not.
const ORPHANED: Signal = Signal::SIGUSR2;
/// How long a run whose launcher is gone may take to stop by that.
const ORPHAN: Duration = Duration::from_secs(3);
/// How long a rank that cannot go on waits for the verdict; then, besides, the barrier.
const VERDICT: Duration = Duration::from_secs(2);
/// Exit code of a device that failed.
const DEVICE: u8 = 71;
/// Most characters of a failure's text that are sent.
const TEXT: usize = 8_192;
/// Messages that wait for the loop; more wait in the sockets.
const QUEUE: usize = 256;

/// What a watch needs to know.
pub struct WatchSettings {
    pub rank: usize,
    /// All ranks, in order.
    pub members: Vec<Member>,
    pub limits: Limits,
    /// Folder of logs; checkpoints are in `checkpoints` beside it.
    pub logs: PathBuf,
    pub parent: Parent,
    /// Name of a sample, for the report.
    pub sample_name: Option<SampleName>,
    /// What this rank logs, for the dump.
    pub log_tail: Option<LogTail>,
}

/// From the index of a sample to its name.
pub type SampleName = Box<dyn Fn(u64) -> String + Send>;

/// Who started this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// A launcher, with whose end the rank ends. `ppid` was read as early as possible. The system also counts the end of
    /// the thread that started this process, so a launcher starts ranks from a thread that stays.
    Launched { ppid: u32 },
    /// A person; the rank may outlive the shell.
    ByHand,
}

/// What ends the trainer's collectives.
pub(crate) type AbortHook = Box<dyn FnMut() + Send>;

/// Asks a device; a text is its failure.
pub(crate) type PollHook = Box<dyn FnMut() -> Option<String> + Send>;

/// What the trainer tells the watch.
enum Command {
    OnAbort(AbortHook),
    Poll(PollHook),
    Failed { code: u8, text: String },
    Agreed { culprit: Option<u32>, code: u8, text: String },
    Lost,
    Finish { code: u8 },
}

/// A running watch. Dropping it ends nothing: the run stays watched until the process ends.
pub struct Watch {
    commands: mpsc::UnboundedSender<Command>,
    warnings: Mutex<sync::Receiver<String>>,
    limits: Limits,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Starts the thread, and the handlers that tell what this process dies of. Errors if the system refuses a thread, a
    /// handler or a socket's option, or if the links are to ranks that are no members.
    pub fn start(settings: WatchSettings, links: Links, progress: Arc<Progress>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let (warn, warnings) = sync::channel();
        let limits = settings.limits;
        if let Parent::Launched { ppid } = settings.parent {
            nix::sys::prctl::set_pdeathsig(ORPHANED)?;
            if is_orphan(ppid) {
                nix::sys::signal::raise(ORPHANED)?;
            }
        }
        let watcher = {
            let _context = runtime.enter();
            Watcher::new(settings, links, progress, (inbox, warn))?
        };
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(move || {
            let _guard = Fatal;
            runtime.block_on(watcher.run());
        });
        // Without the thread the sockets are closed, and their numbers somebody else's.
        let thread = thread.inspect_err(|_| death::disarm())?;
        Ok(Self { commands, warnings: Mutex::new(warnings), limits, thread })
    }

    /// `hook` runs on a verdict, before this process leaves: `ncclCommAbort`. The last one given counts.
    pub fn on_abort(&self, hook: AbortHook) {
        self.tell(Command::OnAbort(hook));
    }

    /// `hook` runs at every heartbeat and never waits; what it says is a failure of this rank's device, of which the trainer, who
    /// waits for that device, may never hear.
    pub fn poll(&self, hook: PollHook) {
        self.tell(Command::Poll(hook));
    }

    /// This rank cannot go on. Tells rank 0, waits for the verdict and leaves, with `code` if nobody failed before.
    pub fn failed(&self, code: u8, text: &str) -> ! {
        self.tell(Command::Failed { code, text: text.chars().take(TEXT).collect() });
        self.wait_for_the_end(code)
    }

    /// All ranks found the same, together: the run cannot go on. All leave with `code`; `culprit` is the rank whose fault it is, if
    /// it is one's.
    pub fn agreed(&self, culprit: Option<usize>, code: u8, text: &str) -> ! {
        let culprit = culprit.map(|rank| rank as u32);
        self.tell(Command::Agreed { culprit, code, text: text.chars().take(TEXT).collect() });
        self.wait_for_the_end(code)
    }

    /// A collective failed because a peer is gone: waits for the verdict that names it, and leaves.
    pub fn lost(&self) -> ! {
        self.tell(Command::Lost);
        self.wait_for_the_end(PEER_LOST)
    }

    /// Orderly end with this code: returns when all ranks have finished or the barrier's limit has passed. Does not return if
    /// a verdict comes first.
    pub fn finish(self, code: u8) {
        self.tell(Command::Finish { code });
        // The guard of the thread lets no panic through.
        let _ = self.thread.join();
    }

    /// Lines about slow ranks since the last call; on rank 0 only.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).try_iter().collect()
    }

    /// The thread listens until the process or the watch ends.
    fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// The watch thread ends the process. Should it be stuck, this does.
    fn wait_for_the_end(&self, code: u8) -> ! {
        let Limits { link, heartbeat, abort, barrier, .. } = self.limits;
        thread::sleep(link + 3 * heartbeat + abort + 2 * (VERDICT + barrier));
        death::leave(code)
    }
}

/// A watch that panics would leave the run unwatched: it ends the process.
struct Fatal;

impl Drop for Fatal {
    fn drop(&mut self) {
        if thread::panicking() {
            death::leave(70);
        }
    }
}

fn is_orphan(ppid: u32) -> bool {
    getppid() != Pid::from_raw(ppid as i32)
}

fn dying(death: Death) -> Vec<u8> {
    wire::encode(&Message::Dying(death)).expect("a few bytes")
}

/// A control connection.
pub(crate) struct Peer {
    pub(crate) rank: usize,
    writer: OwnedWriteHalf,
    pub(crate) open: bool,
    pub(crate) tail: Option<Vec<Entry>>,
    pub(crate) ready: bool,
}

impl Peer {
    /// Never waits: a peer that takes nothing gets nothing, and half a frame is the last. The system is asked, not tokio, which
    /// takes a socket for full until it has looked at it once: the first word of a rank may be its last.
    fn post(&mut self, frame: &[u8]) {
        let partial = |sent: usize| sent > 0 && sent < frame.len();
        let socket = self.writer.as_ref().as_raw_fd();
        if self.open && send(socket, frame, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_ok_and(partial) {
            self.open = false;
        }
    }
}

/// State of the watch thread.
pub(crate) struct Watcher {
    pub(crate) settings: WatchSettings,
    pub(crate) progress: Arc<Progress>,
    pub(crate) judge: Judge,
    pub(crate) peers: Vec<Peer>,
    pub(crate) hook: Option<AbortHook>,
    inbox: mpsc::UnboundedReceiver<Command>,
    /// Message of a rank; none: its connection ended.
    events: mpsc::Receiver<(usize, Option<Message>)>,
    warn: sync::Sender<String>,
    origin: Instant,
    /// When this rank leaves if no verdict comes, and its code.
    leave: Option<(tokio::time::Instant, u8)>,
    /// Code of the orderly end that has begun.
    poll: Option<PollHook>,
    finishing: Option<u8>,
    orphan_since: Option<Instant>,
    /// What rank 0 decided, and whether it said to leave.
    pub(crate) told: Option<Verdict>,
    pub(crate) released: bool,
}

impl Watcher {
    fn new(
        settings: WatchSettings,
        links: Links,
        progress: Arc<Progress>,
        (inbox, warn): (mpsc::UnboundedReceiver<Command>, sync::Sender<String>),
    ) -> io::Result<Self> {
        let now = Duration::ZERO;
        let size = settings.members.len();
        let strangers = |streams: &[(usize, TcpStream)]| streams.iter().any(|&(rank, _)| rank >= size);
        if settings.rank >= size || matches!(&links, Links::Hub(streams) if strangers(streams)) {
            let text =
                format!("watch of rank {}: it or a rank linked to it is none of the {size} members", settings.rank);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let (judge, streams) = match links {
            Links::Hub(streams) => (Judge::new(&settings.members, settings.limits, now), streams),
            Links::Member(stream) => (Judge::of_rank_0(&settings.members[0], settings.limits, now), vec![(0, stream)]),
        };
        let sockets = streams.iter().map(|(_, stream)| stream.as_raw_fd()).collect();
        let (sender, events) = mpsc::channel(QUEUE);
        let mut peers = Vec::new();
        for (rank, stream) in streams {
            stream.set_nodelay(true)?;
            setsockopt(&stream, TcpUserTimeout, &(settings.limits.link.as_millis() as u32))?;
            stream.set_nonblocking(true)?;
            let (reader, writer) = tokio::net::TcpStream::from_std(stream)?.into_split();
            tokio::spawn(read(rank, reader, sender.clone()));
            peers.push(Peer { rank, writer, open: true, tail: None, ready: false });
        }
        death::arm(sockets, dying)?;
        Ok(Self {
            settings,
            progress,
            judge,
            peers,
            hook: None,
            poll: None,
            inbox,
            events,
            warn,
            origin: Instant::now(),
            leave: None,
            finishing: None,
            orphan_since: None,
            told: None,
            released: false,
        })
    }

    pub(crate) fn is_hub(&self) -> bool {
        self.settings.rank == 0
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// To all peers.
    pub(crate) fn post(&mut self, message: &Message) {
        // Every message is bounded far below the limit.
        let Ok(frame) = wire::encode(message) else { return };
        self.peers.iter_mut().for_each(|peer| peer.post(&frame));
    }

    async fn run(mut self) {
        let mut beat = tokio::time::interval(self.settings.limits.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let progress = self.progress.clone();
        let mut commands_open = true;
        let mut peers_open = true;
        loop {
            let deadline = self.leave.map_or_else(tokio::time::Instant::now, |(at, _)| at);
            tokio::select! {
                command = self.inbox.recv(), if commands_open => match command {
                    Some(command) => self.command(command),
                    None => commands_open = false,
                },
                event = self.events.recv(), if peers_open => match event {
                    Some((rank, message)) => self.hear(rank, message),
                    None => peers_open = false,
                },
                () = progress.turned() => self.beat(),
                _ = beat.tick() => {
                    self.beat();
                    self.check_parent();
                    if let Some(text) = self.poll.as_mut().and_then(|ask| ask()) {
                        self.poll = None;
                        self.command(Command::Failed { code: DEVICE, text });
                    }
                }
                () = tokio::time::sleep_until(deadline), if self.leave.is_some() => {
                    let code = self.leave.map_or(PEER_LOST, |(_, code)| code);
                    if self.finishing.is_some() {
                        return self.goodbye(code).await;
                    }
                    self.leave_alone(code);
                }
            }
            while let Ok((rank, message)) = self.events.try_recv() {
                self.hear(rank, message);
            }
            self.decide().await;
            if let Some(code) = self.finishing.filter(|_| self.judge.all_finished()) {
                return self.goodbye(code).await;
            }
        }
    }

    fn command(&mut self, command: Command) {
        let now = self.now();
        let Limits { link, heartbeat, barrier, .. } = self.settings.limits;
        let after = |wait: Duration, code: u8| Some((tokio::time::Instant::now() + wait, code));
        match command {
            Command::OnAbort(hook) => self.hook = Some(hook),
            Command::Poll(hook) => self.poll = Some(hook),
            Command::Failed { code, text } => {
                self.leave = after(VERDICT + barrier, code);
                self.beat();
                match self.is_hub() {
                    true => self.judge.observe(0, Heard::Failed { code, text }, now),
                    false => self.post(&Message::Failed { code, text }),
                }
            }
            Command::Agreed { culprit, code, text } => {
                self.leave = after(VERDICT + barrier, code);
                self.beat();
                match self.is_hub() {
                    true => self.judge.observe(0, Heard::Agreed { culprit, code, text }, now),
                    false => self.post(&Message::Agreed { culprit, code, text }),
                }
            }
            Command::Lost => {
                self.leave = after(link + 2 * heartbeat + VERDICT + barrier, PEER_LOST);
                self.beat();
                // A rank 0 that has finished judges nobody any more.
                if self.is_hub() || self.judge.all_finished() {
                    self.judge.observe(0, Heard::Lost, now);
                } else {
                    self.post(&Message::Lost);
                }
            }
            Command::Finish { code } => {
                death::disarm();
                self.leave = after(barrier, code);
                self.finishing = Some(code);
                if self.is_hub() {
                    self.judge.observe(0, Heard::Bye, now);
                } else {
                    self.post(&Message::Bye);
                }
            }
        }
    }

    /// Takes note of what a peer said; nothing follows from it yet.
    pub(crate) fn hear(&mut self, rank: usize, message: Option<Message>) {
        let now = self.now();
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.rank == rank) else { return };
        let heard = match message {
            None => {
                peer.open = false;
                Heard::Closed
            }
            Some(Message::Beat(seen)) => Heard::Beat(seen),
            Some(Message::Dying(death)) => Heard::Dying(death),
            Some(Message::Failed { code, text }) => Heard::Failed { code, text },
            Some(Message::Agreed { culprit, code, text }) => Heard::Agreed { culprit, code, text },
            Some(Message::Lost) => Heard::Lost,
            Some(Message::Bye) => Heard::Bye,
            Some(Message::Tail(tail)) => return peer.tail = Some(tail),
            Some(Message::Ready) => return peer.ready = true,
            Some(Message::Verdict(verdict)) => return self.told = Some(verdict),
            Some(Message::Leave(verdict)) => {
                self.released = true;
                return self.told = Some(verdict);
            }
        };
        self.judge.observe(rank, heard, now);
    }

    /// Tells what this rank is doing.
    pub(crate) fn beat(&mut self) {
        let seen = self.progress.beat();
        self.post(&Message::Beat(seen));
        if self.is_hub() {
            self.judge.observe(0, Heard::Beat(seen), self.now());
        }
    }

    /// A rank whose launcher is gone has a short time to save and stop.
    fn check_parent(&mut self) {
        let Parent::Launched { ppid } = self.settings.parent else { return };
        if is_orphan(ppid) && self.orphan_since.get_or_insert_with(Instant::now).elapsed() > ORPHAN {
            death::leave(143);
        }
    }

    /// Acts on a verdict, if there is one.
    async fn decide(&mut self) {
        if let Some(verdict) = self.told.take() {
            self.obey(verdict).await;
        }
        for finding in self.judge.tick(self.now()) {
            match finding {
                Finding::Verdict(verdict) if self.is_hub() => self.pronounce(verdict).await,
                Finding::Verdict(verdict) => self.mourn(verdict),
                // Nobody reads warnings of a watch that was dropped.
                Finding::Straggler { text, .. } => drop(self.warn.send(text)),
            }
        }
    }

    /// The end of a rank whose run ended in order.
    async fn goodbye(mut self, code: u8) {
        if self.is_hub() {
            self.post(&Message::Bye);
            // Rank 0 leaves last, so that its message arrives.
            self.hear_until(self.settings.limits.barrier, |w| w.peers.iter().all(|peer| !peer.open)).await;
        }
        let (logs, rank) = (self.settings.logs.clone(), self.settings.rank);
        // A log that cannot be written does not change the end of a run.
        let _ = verdict::write_exit(&logs, rank, code, None);
    }

    /// Hears peers until `done` or for this long.
    pub(crate) async fn hear_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + limit;
        while !done(self) {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some((rank, message))) => self.hear(rank, message),
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// Passes a peer's messages on until its connection ends. A frame that is no message is the end as well.
async fn read(rank: usize, mut from: OwnedReadHalf, events: mpsc::Sender<(usize, Option<Message>)>) {
    loop {
        let message = wire::receive_async(&mut from, wire::MEMBER).await.ok();
        let ended = message.is_none();
        if events.send((rank, message)).await.is_err() || ended {
            return;
        }
    }
}

/// Runs `work` on a thread of its own; none if it is not back in time, or panics.
pub(crate) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = sync::channel();
    let thread = thread::Builder::new().name("watch-end".to_owned());
    thread.spawn(move || drop(done.send(work()))).ok()?;
    result.recv_timeout(limit).ok()
}
