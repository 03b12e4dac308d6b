//! Rank 0's open door: where it listens, and how the others learn of it.

use crate::auth::{Gate, Secret};
use crate::interface;
use crate::invitation::{Invitation, Posted};
use crate::rendezvous::{By, MeetingError, MeetingLimits, PREFLIGHT, UNREACHABLE, port, with_port};
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};

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
    /// Listens, and tells the others by `by`. Errors: no address or port to listen on, or the invitation does not get out.
    pub(crate) fn new(job: &str, by: By, limits: &MeetingLimits) -> Result<Self, MeetingError> {
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
