//! The ranks of a job find each other: rank 0 listens, the others come, and all start together or nobody does.
//!
//! Every rank opens two connections to rank 0, for control and for data, and both ends of each prove that they belong to the job
//! (`auth`). Rank 0 compares what the members say of themselves (`roll`) and tells all of them the outcome, so errors are equal
//! on all ranks. Strangers are counted and logged; they can neither join the meeting nor stop it.

use crate::auth::{Gate, Secret};
use crate::hosting;
use crate::interface;
use crate::invitation::{Invitation, Posted};
use crate::joining::{self, Find};
use crate::member::Member;
use crate::roll::Stop;
use crate::sockets::Sockets;
use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
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
const PREFLIGHT: u8 = 78;

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

/// Returns when all ranks of `own`'s world are there, have proved to be of `job`, and fit together; or tells why not, at the latest
/// after `limits.rendezvous`. Blocks.
pub fn meet(own: Member, job: &str, by: By, limits: &MeetingLimits) -> Result<Met, MeetingError> {
    let rank = own.rank;
    let refuse = |code, text| Err(MeetingError::shared(Stop { code, text }, rank));
    if own.rank >= own.world_size {
        return refuse(PREFLIGHT, format!("rank {rank} is outside the world of {} ranks", own.world_size));
    }
    if own.world_size == 1 {
        return alone(own);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| MeetingError::own(UNREACHABLE, format!("rank {rank} cannot use the network: {e}")))?;
    let met = match (rank, by) {
        (_, By::Known { address, .. }) if port(&address).is_none() => {
            let text = format!("rendezvous address `{address}` is not host:port with a port of 1 to 65535");
            return refuse(USAGE, text);
        }
        (0, by) => {
            let open = Open::new(job, by, limits)?;
            runtime.block_on(hosting::host(own, open, limits))
        }
        (_, by) => {
            let find = match by {
                By::File(path) => Find::File(path),
                By::Known { address, secret } => Find::Known(address, secret),
                By::Ports { host, ports, secret } => Find::Ports { host, ports, secret },
                By::Carried(carry) => Find::Fixed(carried(carry)?),
            };
            runtime.block_on(joining::join(own, job, find, limits))
        }
    };
    // A look-up of a name may still hang in a thread of its own.
    runtime.shutdown_background();
    met
}

fn alone(mut own: Member) -> Result<Met, MeetingError> {
    if let Some((code, text)) = own.trouble {
        return Err(MeetingError::own(code, text));
    }
    own.local_rank.get_or_insert(0);
    Ok(Met { members: vec![own], links: Links::Hub(Vec::new()), world: Sockets::hub(Vec::new()) })
}

fn port(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse().ok().filter(|&port| port != 0 && !host.is_empty())
}

/// A member's share of carrying.
fn carried(carry: Box<Carry>) -> Result<Invitation, MeetingError> {
    let trouble = |text| MeetingError::own(UNREACHABLE, text);
    let bytes = carry(None).map_err(|e| trouble(format!("the invitation of rank 0 did not come: {e}")))?;
    if bytes.is_empty() {
        let text = "rank 0 cannot listen".to_owned();
        return Err(MeetingError { code: UNREACHABLE, text, said: true });
    }
    Invitation::decode(&bytes).map_err(|e| trouble(format!("what came from rank 0 is no invitation: {e}")))
}

/// Rank 0's open door.
pub(crate) struct Open {
    pub(crate) gate: Gate,
    pub(crate) listeners: Vec<TcpListener>,
    /// For messages: addresses, and where the invitation is.
    pub(crate) place: String,
    /// Held as long as members may come.
    pub(crate) posted: Option<Posted>,
}

impl Open {
    fn new(job: &str, by: By, limits: &MeetingLimits) -> Result<Self, MeetingError> {
        let unreachable = |text: String| MeetingError::own(UNREACHABLE, text);
        let random = |e| unreachable(format!("no random numbers for a secret: {e}"));
        let ready = listen(limits, &by).and_then(|l| Ok((l, Secret::random().map_err(random)?)));
        let (listeners, secret, by) = match (ready, by) {
            (Ok((listeners, secret)), by) => (listeners, secret, by),
            (Err(error), By::Carried(carry)) => {
                // The others wait in it. What it answers changes nothing.
                let _ = carry(Some(Vec::new()));
                return Err(error);
            }
            (Err(error), _) => return Err(error),
        };
        let addresses: Vec<SocketAddr> = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let mut place = format!("rank 0 listens on {}", list.join(", "));
        let mut posted = None;
        let secret = match by {
            By::Known { secret, .. } => secret,
            By::Ports { host, ports, secret } => {
                place += &format!("; the others look on {host}, {}", name_ports(&ports));
                secret
            }
            By::File(path) => {
                place += &format!("; invitation in {}", path.display());
                let written = Posted::new(&path, &Invitation { addresses, secret: secret.clone() });
                let failed = |e| unreachable(format!("cannot write the invitation {}: {e}", path.display()));
                posted = Some(written.map_err(failed)?);
                secret
            }
            By::Carried(carry) => {
                let bytes = Invitation { addresses, secret: secret.clone() }.encode();
                let bytes = bytes.map_err(|e| unreachable(format!("invitation: {e}")))?;
                carry(Some(bytes)).map_err(|e| unreachable(format!("the invitation was not carried: {e}")))?;
                secret
            }
        };
        Ok(Self { gate: Gate { secret, job: job.to_owned() }, listeners, place, posted })
    }
}

/// `ports 17000-17015`.
fn name_ports(ports: &[u16]) -> String {
    match ports {
        [first, .., last] => format!("ports {first}-{last}"),
        _ => format!("port {}", ports.first().copied().unwrap_or_default()),
    }
}

/// Listeners on each address of the right interfaces: on any free port, on the one that is known, or on the first of several on
/// which nobody listens.
fn listen(limits: &MeetingLimits, by: &By) -> Result<Vec<TcpListener>, MeetingError> {
    let unreachable = |text: String| MeetingError::own(UNREACHABLE, text);
    let all = interface::all().map_err(|e| unreachable(format!("cannot list the network interfaces: {e}")))?;
    let addresses = interface::choose(&all, limits.interface.as_deref());
    let mut addresses = addresses.map_err(|text| MeetingError::own(PREFLIGHT, text))?;
    let (known, ports, remedy) = match by {
        By::Known { address, .. } => (Some(address.clone()), vec![port(address).unwrap_or(0)], "choose another port"),
        By::Ports { host, ports, .. } => {
            (Some(with_port(host, 0)), ports.clone(), "give one that is free by --rendezvous")
        }
        By::File(_) | By::Carried(_) => (None, vec![0], ""),
    };
    if let (Some(known), None) = (known, &limits.interface) {
        // Some systems map their own name to 127.0.1.1; then the ranks beside this one look there.
        let named = known.to_socket_addrs().into_iter().flatten().map(|a| a.ip());
        let loopback: Vec<IpAddr> = named.filter(|a| a.is_loopback() && !addresses.contains(a)).collect();
        addresses.extend(loopback);
    }
    let mut taken = String::new();
    for &port in &ports {
        match bind(&addresses, port).map_err(unreachable)? {
            Ok(listeners) => return Ok(listeners),
            Err(error) => taken = error,
        }
    }
    let more = if ports.len() > 1 { format!(" nor on any of {}", name_ports(&ports)) } else { String::new() };
    Err(unreachable(format!("rank 0 cannot listen on {taken}{more}; {remedy}")))
}

/// `host:port`, for an address of IPv6 in brackets.
pub(crate) fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Listeners on this port, or at which address somebody else has it. Errors: no address can be listened on at all.
fn bind(addresses: &[IpAddr], port: u16) -> Result<Result<Vec<TcpListener>, String>, String> {
    let mut listeners = Vec::new();
    let mut failed = Vec::new();
    for &address in addresses {
        match TcpListener::bind((address, port)) {
            Ok(listener) => listeners.push(listener),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                return Ok(Err(format!("{}: {e}", SocketAddr::new(address, port))));
            }
            Err(e) => failed.push(format!("{address}: {e}")),
        }
    }
    if listeners.is_empty() {
        return Err(format!("rank 0 cannot listen on any address: {}", failed.join(", ")));
    }
    Ok(Ok(listeners))
}
