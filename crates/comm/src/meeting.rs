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
    /// Something else carries the invitation. Called once on each rank, with rank 0's bytes there and `None` elsewhere; returns
    /// those bytes on every rank. Empty bytes say that rank 0 cannot listen.
    Carried(Box<Carry>),
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
        let known = if let By::Known { address, .. } = &by { Some(address.as_str()) } else { None };
        let random = |e| unreachable(format!("no random numbers for a secret: {e}"));
        let ready = listen(limits, known).and_then(|l| Ok((l, Secret::random().map_err(random)?)));
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

/// Listeners on a free port of each address of the right interfaces, or on the port that is known.
fn listen(limits: &MeetingLimits, known: Option<&str>) -> Result<Vec<TcpListener>, MeetingError> {
    let unreachable = |text: String| MeetingError::own(UNREACHABLE, text);
    let all = interface::all().map_err(|e| unreachable(format!("cannot list the network interfaces: {e}")))?;
    let addresses = interface::choose(&all, limits.interface.as_deref());
    let mut addresses = addresses.map_err(|text| MeetingError::own(PREFLIGHT, text))?;
    let port = known.and_then(port).unwrap_or(0);
    if let (Some(known), None) = (known, &limits.interface) {
        // Some systems map their own name to 127.0.1.1; then the ranks beside this one look there.
        let named = known.to_socket_addrs().into_iter().flatten().map(|a| a.ip());
        let loopback: Vec<IpAddr> = named.filter(|a| a.is_loopback() && !addresses.contains(a)).collect();
        addresses.extend(loopback);
    }
    let mut listeners = Vec::new();
    let mut failed = Vec::new();
    for address in addresses {
        match TcpListener::bind((address, port)) {
            Ok(listener) => listeners.push(listener),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                let text =
                    format!("rank 0 cannot listen on {}: {e}; choose another port", SocketAddr::new(address, port));
                return Err(unreachable(text));
            }
            Err(e) => failed.push(format!("{address}: {e}")),
        }
    }
    if listeners.is_empty() {
        return Err(unreachable(format!("rank 0 cannot listen on any address: {}", failed.join(", "))));
    }
    Ok(listeners)
}
