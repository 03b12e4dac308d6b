//! Rank 0's side of the meeting. One task per listener, one per stranger, and the meeting itself, which alone decides.

use crate::auth::{Gate, Role};
use crate::door::Open;
use crate::member::Member;
use crate::rendezvous::{Links, MeetingError, MeetingLimits, Met, Stop, UNREACHABLE};
use crate::roll;
use crate::sockets::Sockets;
use crate::wire::{self, MEMBER, WireError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Most connections that have not proved anything, together.
const STRANGERS: usize = 64;
/// Once this many slots are taken, each newcomer gets a tenth of the time, so silent strangers cannot fill the rest.
const CROWD: usize = STRANGERS / 2;
/// For others to come and be told as well, once it is clear that the meeting fails.
const GRACE: Duration = Duration::from_secs(2);
const NOISE_EVERY: Duration = Duration::from_secs(60);
/// Longer reasons not to start are cut.
const TEXT_CHARS: usize = 100_000;

/// What rank 0 tells each member: `Welcome` when it has heard who that is, and one of the others at the end. After `Go` come the
/// members, one message each, in rank order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Welcome,
    Go,
    Stop { code: u8, text: String },
}

enum Event {
    Control(Box<Guest>),
    Data(u32, TcpStream),
    Noise(SocketAddr, String),
}

struct Guest {
    member: Member,
    control: TcpStream,
}

struct Meeting<'a> {
    own: Member,
    limits: &'a MeetingLimits,
    place: String,
    guests: BTreeMap<u32, Guest>,
    data: BTreeMap<u32, TcpStream>,
    /// Who came after another of the same rank.
    doubles: Vec<Guest>,
    noise: Noise,
}

/// Strangers, counted.
#[derive(Default)]
struct Noise {
    total: u64,
    logged: Option<Instant>,
}

pub(crate) async fn host(own: Member, open: Open, limits: &MeetingLimits) -> Result<Met, MeetingError> {
    let Open { gate, listeners, place, posted } = open;
    let (gate, slots) = (Arc::new(gate), Arc::new(Semaphore::new(STRANGERS)));
    let (sender, mut events) = mpsc::channel(STRANGERS);
    for listener in listeners {
        let ready = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        let listener = ready.map_err(|e| MeetingError::own(UNREACHABLE, format!("rank 0 cannot listen: {e}")))?;
        let door = Door { gate: Arc::clone(&gate), slots: Arc::clone(&slots), events: sender.clone() };
        tokio::spawn(door.keep(listener, limits.handshake));
    }
    let mut meeting = Meeting {
        own,
        limits,
        place,
        guests: BTreeMap::new(),
        data: BTreeMap::new(),
        doubles: Vec::new(),
        noise: Noise::default(),
    };
    let outcome = meeting.wait(&mut events).await;
    // Who comes from here on is too late, and shall look for the next job's invitation.
    drop(posted);
    meeting.close(outcome).await
}

/// What a listener's task has.
struct Door {
    gate: Arc<Gate>,
    slots: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
}

impl Door {
    async fn keep(self, listener: TcpListener, handshake: Duration) {
        loop {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The peer has gone again, or there are no file handles for the moment.
                    tracing::debug!(%error, "accept");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let limit = if self.slots.available_permits() < STRANGERS - CROWD { handshake / 10 } else { handshake };
            let (gate, events) = (Arc::clone(&self.gate), self.events.clone());
            tokio::spawn(async move {
                let event = match timeout(limit, greet(stream, peer, &gate)).await {
                    Ok(Ok(event)) => event,
                    Ok(Err(why)) => Event::Noise(peer, why),
                    Err(_) => Event::Noise(peer, "no proof in time".into()),
                };
                drop(slot);
                // Nobody hears it once the meeting is over.
                let _ = events.send(event).await;
            });
        }
    }
}

/// Lets a member in, and for a control connection hears what it says of itself.
async fn greet(mut stream: TcpStream, peer: SocketAddr, gate: &Gate) -> Result<Event, String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (role, rank) = gate.let_in(&mut stream).await.map_err(|e| e.to_string())?;
    if role == Role::Data {
        return Ok(Event::Data(rank, stream));
    }
    let member = match wire::receive_async::<Member>(&mut stream, MEMBER).await {
        Ok(member) if member.rank == rank => member,
        Err(WireError::Io(error)) => return Err(error.to_string()),
        _ => {
            // It has the secret and speaks otherwise, so it is a rank of this job with another program.
            let text = format!("what it says of itself is unknown here ({peer}); install one build on all hosts");
            Member { rank, host: peer.ip().to_string(), trouble: Some((78, text)), ..Member::default() }
        }
    };
    // Nothing is waited for from here on: who is welcome is a guest.
    wire::send_async(&mut stream, &Verdict::Welcome).await.map_err(|e| e.to_string())?;
    Ok(Event::Control(Box::new(Guest { member, control: stream })))
}

impl Meeting<'_> {
    /// Until all are there, or the meeting cannot end well any more.
    async fn wait(&mut self, events: &mut mpsc::Receiver<Event>) -> Option<Stop> {
        let grace = GRACE.min(self.limits.handshake);
        let deadline = Instant::now() + self.limits.rendezvous;
        let mut closing: Option<Instant> = self.own.trouble.as_ref().map(|_| Instant::now() + grace);
        loop {
            if (1..self.own.world_size).all(|rank| self.guests.contains_key(&rank)) {
                let refusal = self.refusal();
                let connected = (1..self.own.world_size).all(|rank| self.data.contains_key(&rank));
                if refusal.is_some() || connected {
                    return refusal;
                }
            }
            let until = closing.unwrap_or(deadline).min(deadline);
            tokio::select! {
                biased;
                rank = poll_fn(|cx| departed(&self.guests, cx)) => {
                    // A rank that has started again comes back.
                    self.guests.remove(&rank);
                    self.data.remove(&rank);
                }
                Some(event) = events.recv() => {
                    if self.take(event) {
                        closing.get_or_insert(Instant::now() + grace);
                    }
                }
                () = sleep_until(until) => {
                    let refusal = self.refusal();
                    if refusal.is_some() || until == deadline {
                        return Some(refusal.unwrap_or_else(|| self.missing()));
                    }
                    // Who was wrong has left.
                    closing = None;
                }
            }
        }
    }

    /// Whether this shows that the meeting fails.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Control(guest) => {
                let rank = guest.member.rank;
                let double = rank == 0 || self.guests.contains_key(&rank);
                let wrong = double || roll::is_wrong(&self.own, &guest.member);
                if double {
                    self.doubles.push(*guest);
                } else {
                    self.guests.insert(rank, *guest);
                }
                return wrong;
            }
            Event::Data(rank, stream) if (1..self.own.world_size).contains(&rank) => {
                drop(self.data.insert(rank, stream))
            }
            Event::Data(..) => {}
            Event::Noise(peer, why) => self.noise.hear(peer, &why),
        }
        false
    }

    fn refusal(&self) -> Option<Stop> {
        let guests = self.guests.values().map(|g| &g.member);
        let present: Vec<&Member> = std::iter::once(&self.own).chain(guests).collect();
        let doubles: Vec<Member> = self.doubles.iter().map(|g| g.member.clone()).collect();
        roll::refusal(&present, &doubles, self.limits)
    }

    fn missing(&self) -> Stop {
        let there = |rank: &u32| self.guests.contains_key(rank) && self.data.contains_key(rank);
        let missing: Vec<u32> = (1..self.own.world_size).filter(|rank| !there(rank)).collect();
        let strangers = match self.noise.total {
            0 => String::new(),
            n => format!("; {n} connections without proof of belonging to this job"),
        };
        let text = format!(
            "{} of {} missing after {:?}; {} (host {}); if that is not reachable, set RETORT_IFNAME{strangers}",
            roll::name_ranks(&missing),
            self.own.world_size,
            self.limits.rendezvous,
            self.place,
            self.own.host,
        );
        Stop { code: UNREACHABLE, text }
    }

    /// Tells all members the outcome.
    async fn close(mut self, stop: Option<Stop>) -> Result<Met, MeetingError> {
        let mut members: Vec<Member> = vec![self.own.clone()];
        members.extend(self.guests.values().map(|g| g.member.clone()));
        roll::place(&mut members);
        let failed = |e: &dyn fmt::Display| MeetingError::own(UNREACHABLE, format!("the meeting's outcome: {e}"));
        let frames = outcome(stop.as_ref(), &members).map_err(|e| failed(&e))?;
        for guest in self.guests.values_mut().chain(&mut self.doubles) {
            // Who does not hear it finds a closed connection, and rank 0 finds the same.
            let _ = timeout(self.limits.connect, guest.control.write_all(&frames)).await;
        }
        if let Some(stop) = stop {
            // Open until this process has said why and ended, for which the others wait.
            std::mem::forget((self.guests, self.doubles));
            return Err(MeetingError::shared(stop, 0));
        }
        let controls = self.guests.into_iter().map(|(rank, g)| Ok((rank as usize, blocking(g.control)?)));
        let controls = controls.collect::<std::io::Result<_>>().map_err(|e| failed(&e))?;
        let data = self.data.into_values().map(blocking).collect::<std::io::Result<_>>().map_err(|e| failed(&e))?;
        Ok(Met { members, links: Links::Hub(controls), world: Sockets::hub(data) })
    }
}

/// The bytes that tell it.
fn outcome(stop: Option<&Stop>, members: &[Member]) -> Result<Vec<u8>, WireError> {
    if let Some(Stop { code, text }) = stop {
        return wire::encode(&Verdict::Stop { code: *code, text: text.chars().take(TEXT_CHARS).collect() });
    }
    let mut frames = wire::encode(&Verdict::Go)?;
    for member in members {
        frames.extend(wire::encode(member)?);
    }
    Ok(frames)
}

pub(crate) fn blocking(stream: TcpStream) -> std::io::Result<std::net::TcpStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A guest whose connection has ended. Nothing is to be read from guests, so anything to read is an end as well.
fn departed(guests: &BTreeMap<u32, Guest>, cx: &mut Context<'_>) -> Poll<u32> {
    let mut gone = |guest: &Guest| guest.control.poll_peek(cx, &mut ReadBuf::new(&mut [0])).is_ready();
    guests.iter().find(|(_, guest)| gone(guest)).map_or(Poll::Pending, |(&rank, _)| Poll::Ready(rank))
}

impl Noise {
    fn hear(&mut self, peer: SocketAddr, why: &str) {
        self.total += 1;
        if self.logged.is_none_or(|at| at.elapsed() >= NOISE_EVERY) {
            self.logged = Some(Instant::now());
            tracing::warn!(%peer, why, total = self.total, "a connection that is not of this job was refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Secret;

    /// What rank 0 makes of a control connection of rank 3 on which `introduction` is sent.
    fn greeted(introduction: Vec<u8>) -> Result<Event, String> {
        let gate = Gate { secret: Secret::random().unwrap(), job: "job".into() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut member = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            let (event, ()) = tokio::join!(greet(stream, peer, &gate), async {
                gate.enter(&mut member, Role::Control, 3).await.unwrap();
                member.write_all(&introduction).await.unwrap();
                member.shutdown().await.unwrap();
            });
            event
        })
    }

    #[test]
    fn an_unknown_introduction_is_the_trouble_of_a_rank_of_another_build() {
        let other_rank = wire::encode(&Member { rank: 2, ..Member::default() }).unwrap();
        for introduction in [wire::encode(&(1u64, "of another version")).unwrap(), other_rank, vec![255; 8]] {
            let Ok(Event::Control(guest)) = greeted(introduction) else { panic!() };
            let (code, text) = guest.member.trouble.clone().unwrap();
            assert!((guest.member.rank, code) == (3, 78) && text.contains("install one build"), "{text}");
            let own = Member { world_size: 4, ..Member::default() };
            let stop = roll::refusal(&[&own, &guest.member], &[], &MeetingLimits::default()).unwrap();
            assert!(
                stop.text.starts_with("rank 3: what it says of itself is unknown here (127.0.0.1:"),
                "{}",
                stop.text
            );
        }
        let same = wire::encode(&Member { rank: 3, ..Member::default() }).unwrap();
        assert!(matches!(greeted(same), Ok(Event::Control(guest)) if guest.member.trouble.is_none()));
        assert!(greeted(vec![9, 0, 0]).is_err(), "who hangs up in between is noise");
    }

    #[test]
    fn noise_is_logged_once_a_minute_and_counted() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut noise = Noise::default();
            let peer = "10.0.0.9:1".parse().unwrap();
            noise.hear(peer, "first");
            let logged = noise.logged.unwrap();
            noise.hear(peer, "second");
            assert_eq!((noise.total, noise.logged), (2, Some(logged)));
            noise.logged = Some(logged - NOISE_EVERY);
            noise.hear(peer, "a minute later");
            assert!(noise.total == 3 && noise.logged.unwrap() >= logged);
        });
    }
}
