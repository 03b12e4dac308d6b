//! The side of the ranks other than 0: find rank 0, prove, say who this is, wait for the verdict.

use crate::auth::{Gate, Role, Secret};
use crate::hosting::{Verdict, blocking};
use crate::invitation::Invitation;
use crate::member::Member;
use crate::rendezvous::{Links, MeetingError, MeetingLimits, Met, Stop, UNREACHABLE, with_port};
use crate::sockets::Sockets;
use crate::wire::{self, MEMBER, STRANGER, WireError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a refused rank waits for rank 0 to say why and end.
const STAY: Duration = Duration::from_secs(1);
/// Longer reasons are cut: rank 0 prints them beside those of others.
const TROUBLE_CHARS: usize = 4096;

/// How this rank learns where rank 0 is; asked again before every attempt.
pub(crate) enum Find {
    File(PathBuf),
    Known(String, Secret),
    /// One of these ports.
    Ports {
        host: String,
        ports: Vec<u16>,
        secret: Secret,
    },
    Fixed(Invitation),
}

impl Find {
    async fn look(&self, limits: &MeetingLimits) -> Result<Invitation, String> {
        match self {
            Self::File(path) => Invitation::read(path).map_err(|why| format!("invitation {}: {why}", path.display())),
            Self::Known(address, secret) => {
                Ok(Invitation { addresses: look_up(address, limits).await?, secret: secret.clone() })
            }
            Self::Ports { host, ports, secret } => {
                let hosts = look_up(&with_port(host, 0), limits).await?;
                let on = |&port: &u16| hosts.iter().map(move |host| SocketAddr::new(host.ip(), port));
                Ok(Invitation { addresses: ports.iter().flat_map(on).collect(), secret: secret.clone() })
            }
            Self::Fixed(invitation) => Ok(invitation.clone()),
        }
    }
}

async fn look_up(address: &str, limits: &MeetingLimits) -> Result<Vec<SocketAddr>, String> {
    let found = timeout(limits.handshake, lookup_host(address)).await;
    let found = found.map_err(|_| format!("{address}: the name was not looked up in time"))?;
    Ok(found.map_err(|e| format!("{address}: {e}"))?.collect())
}

/// Why no address led to rank 0; equal reasons are one.
fn told(reasons: &[(SocketAddr, String)]) -> String {
    let mut told: Vec<String> = Vec::new();
    for (k, (address, why)) in reasons.iter().enumerate() {
        if reasons[..k].iter().any(|(_, earlier)| earlier == why) {
            continue;
        }
        let more = reasons[k + 1..].iter().filter(|(_, later)| later == why).count();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        told.push(format!("{address}{more}: {why}"));
    }
    told.join("; ")
}

/// One rank that looks for rank 0.
struct Seeker<'a> {
    rank: u32,
    job: &'a str,
    limits: &'a MeetingLimits,
    deadline: Instant,
}

pub(crate) async fn join(own: Member, job: &str, find: Find, limits: &MeetingLimits) -> Result<Met, MeetingError> {
    let rank = own.rank;
    let seeker = Seeker { rank, job, limits, deadline: Instant::now() + limits.rendezvous };
    let Found { gate, address, mut control } = seeker.find(own, &find).await?;
    let limit = seeker.deadline + 2 * limits.handshake;
    let (verdict, data) = {
        let mut verdict = pin!(hear(&mut control));
        let mut data = pin!(seeker.insist(&gate, address));
        tokio::select! {
            biased;
            // Rank 0 has the same limit, then writes to all.
            data = &mut data => match timeout_at(limit, verdict).await {
                Ok(verdict) => (verdict, Some(data)),
                Err(_) => return Err(seeker.lost(address, "it does not say whether to start")),
            },
            // If all start, rank 0 has the data connection, and its proof is on the way.
            verdict = &mut verdict => match verdict {
                Ok(Heard::Go(_)) => (verdict, timeout(limits.handshake, data).await.ok()),
                _ => (verdict, None),
            },
        }
    };
    match (verdict.map_err(|e| seeker.lost(address, &e.to_string()))?, data) {
        (Heard::Stop(stop), _) => {
            // Rank 0 says why, and its launcher may end it as soon as any rank has ended: this one stays until rank 0 is gone.
            let _ = timeout(STAY, control.read_u8()).await;
            Err(MeetingError::shared(stop, rank))
        }
        (Heard::Go(_), None) => Err(seeker.lost(address, "it starts without this rank's data connection")),
        (Heard::Go(members), Some(data)) => {
            let failed = |e: std::io::Error| seeker.lost(address, &e.to_string());
            let data = Sockets::member(rank as usize, members.len(), blocking(data).map_err(failed)?);
            Ok(Met { members, links: Links::Member(blocking(control).map_err(failed)?), world: data })
        }
    }
}

struct Found {
    gate: Gate,
    address: SocketAddr,
    control: TcpStream,
}

impl Seeker<'_> {
    /// Until rank 0 has proved itself and heard who this is.
    async fn find(&self, mut own: Member, find: &Find) -> Result<Found, MeetingError> {
        if let Some((_, text)) = &mut own.trouble {
            *text = text.chars().take(TROUBLE_CHARS).collect();
        }
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut warned = false;
        loop {
            let why = match find.look(self.limits).await {
                Err(why) => why,
                Ok(Invitation { addresses, secret }) => {
                    let gate = Gate { secret, job: self.job.to_owned() };
                    let mut reasons = Vec::new();
                    for address in addresses {
                        match timeout_at(self.deadline, self.control(&gate, address, &own)).await {
                            Ok(Ok(control)) => return Ok(Found { gate, address, control }),
                            Ok(Err(why)) => reasons.push((address, why)),
                            Err(_) => reasons.push((address, "no answer yet".to_owned())),
                        }
                    }
                    told(&reasons)
                }
            };
            let now = Instant::now();
            if !warned && now >= begun + self.limits.handshake {
                tracing::warn!("rank {} still looks for rank 0: {why}", self.rank);
                warned = true;
            }
            sleep_until((now + pause).min(self.deadline)).await;
            if Instant::now() >= self.deadline {
                let text = format!("rank {} did not find rank 0 in {:?}: {why}", self.rank, self.limits.rendezvous);
                // What keeps this rank from starting matters more than that nobody heard it.
                return Err(match own.trouble.take() {
                    Some((code, trouble)) => MeetingError::own(code, format!("{trouble}; besides, {text}")),
                    None => MeetingError::own(UNREACHABLE, text),
                });
            }
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    async fn control(&self, gate: &Gate, address: SocketAddr, own: &Member) -> Result<TcpStream, String> {
        let mut control = self.connect(gate, address, Role::Control).await?;
        wire::send_async(&mut control, own).await.map_err(|e| e.to_string())?;
        match timeout(self.limits.handshake, wire::receive_async(&mut control, STRANGER)).await {
            Ok(Ok(Verdict::Welcome)) => Ok(control),
            Ok(Err(error)) => Err(format!("no welcome: {error}")),
            _ => Err("no welcome in time".into()),
        }
    }

    /// The data connection, tried again for as long as the verdict is not there.
    async fn insist(&self, gate: &Gate, address: SocketAddr) -> TcpStream {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.connect(gate, address, Role::Data).await {
                Ok(data) => return data,
                Err(why) => tracing::debug!("rank {}: data connection to {address}: {why}", self.rank),
            }
            sleep_until(Instant::now() + pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    async fn connect(&self, gate: &Gate, address: SocketAddr, role: Role) -> Result<TcpStream, String> {
        let connected = timeout(self.limits.connect, TcpStream::connect(address)).await;
        let mut stream = connected.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let proved = timeout(self.limits.handshake, gate.enter(&mut stream, role, self.rank)).await;
        proved.map_err(|_| "connected, but no proof in time".to_owned())?.map_err(|e| e.to_string())?;
        Ok(stream)
    }

    fn lost(&self, address: SocketAddr, why: &str) -> MeetingError {
        let text = format!("rank {}: rank 0 at {address} was lost during the meeting: {why}", self.rank);
        MeetingError::own(UNREACHABLE, text)
    }
}

enum Heard {
    Go(Vec<Member>),
    Stop(Stop),
}

async fn hear(control: &mut TcpStream) -> Result<Heard, WireError> {
    match wire::receive_async(control, MEMBER).await? {
        Verdict::Stop { code, text } => Ok(Heard::Stop(Stop { code, text })),
        Verdict::Welcome => Err(WireError::Garbled(0)),
        Verdict::Go => {
            let first: Member = wire::receive_async(control, MEMBER).await?;
            let mut members = vec![first];
            for _ in 1..members[0].world_size {
                members.push(wire::receive_async(control, MEMBER).await?);
            }
            Ok(Heard::Go(members))
        }
    }
}
