//! What a meeting of ranks is told, and what it comes to.

use crate::auth::Secret;
use crate::member::Member;
use crate::sockets::Sockets;
use std::fmt;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

/// How ranks other than 0 learn where rank 0 is.
pub enum By {
    /// Rank 0 writes addresses and a new secret into this private file, whose name comes from the job id, and takes it away when
    /// the meeting is over; the others wait for it. What a dead job left there is read again until rank 0 replaces it.
    File(PathBuf),
    /// `host:port` that everybody knows, and a secret.
    Known { address: String, secret: Secret },
    /// A host that everybody knows, one of the [`ports_of_job`] there, and a secret. Rank 0 takes the first port that is free; the
    /// others try all of them, and the proof tells whether they found it or another job, or a stranger.
    Ports { host: String, ports: Vec<u16>, secret: Secret },
    /// Something else carries the invitation. Called once on each rank, with rank 0's bytes there and `None` elsewhere; returns
    /// those bytes on every rank. Empty bytes say that rank 0 cannot listen.
    Carried(Box<Carry>),
}

/// Ports on which a job may meet if nobody gave one: 16 of 16384 to 32383, below those that systems give to connections.
pub fn ports_of_job(job: &str) -> Vec<u16> {
    let hash = blake3::derive_key("retort: ports of a job", job.as_bytes());
    let first = 16_384 + u16::from_le_bytes([hash[0], hash[1]]) % 1_000 * JOB_PORTS;
    (first..first + JOB_PORTS).collect()
}

/// See [`By::Carried`].
pub type Carry = dyn FnOnce(Option<Vec<u8>>) -> Result<Vec<u8>, String>;

/// Limits of RELIABILITY.md, section 6.
#[derive(Clone, Debug)]
pub struct MeetingLimits {
    /// Until all ranks are there.
    pub rendezvous: Duration,
    /// Of one attempt to connect.
    pub connect: Duration,
    /// From a connection to the end of its proof.
    pub handshake: Duration,
    /// The interface to listen on, by name; otherwise all that lead anywhere.
    pub interface: Option<String>,
    /// Ranks may use one GPU together.
    pub share_gpu: bool,
}

impl Default for MeetingLimits {
    fn default() -> Self {
        Self {
            rendezvous: Duration::from_secs(300),
            connect: Duration::from_secs(2),
            handshake: Duration::from_secs(5),
            interface: None,
            share_gpu: false,
        }
    }
}

/// The control connections after the meeting: blocking, TCP_NODELAY.
#[derive(Debug)]
pub enum Links {
    /// On rank 0, to each other rank, in rank order.
    Hub(Vec<(usize, TcpStream)>),
    /// To rank 0.
    Member(TcpStream),
}

/// A meeting that went well.
pub struct Met {
    /// By rank, all with local ranks.
    pub members: Vec<Member>,
    pub links: Links,
    /// Collectives over the data connections.
    pub world: Sockets,
}

/// Why the ranks do not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeetingError {
    code: u8,
    text: String,
    said: bool,
}

const JOB_PORTS: u16 = 16;

pub(crate) const USAGE: u8 = 64;
pub(crate) const UNREACHABLE: u8 = 69;
pub(crate) const PREFLIGHT: u8 = 78;

impl MeetingError {
    /// The exit code of this rank.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Rank 0 says the same, so this rank need not.
    pub fn said(&self) -> bool {
        self.said
    }

    /// What only this rank knows.
    pub(crate) fn own(code: u8, text: String) -> Self {
        Self { code, text, said: false }
    }

    /// What rank 0 says too.
    pub(crate) fn of_rank_0(code: u8, text: String) -> Self {
        Self { code, text, said: true }
    }

    /// What rank 0 decided, or each rank finds in the same way.
    pub(crate) fn shared(stop: Stop, rank: u32) -> Self {
        Self { code: stop.code, text: stop.text, said: rank != 0 }
    }
}

impl fmt::Display for MeetingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for MeetingError {}

/// Why nobody starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) code: u8,
    pub(crate) text: String,
}

/// The port of `host:port`; none where it is not of this form.
pub(crate) fn port(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse().ok().filter(|&port| port != 0 && !host.is_empty())
}

/// `host:port`, for an address of IPv6 in brackets.
pub(crate) fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
