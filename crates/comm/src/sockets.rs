//! Ranks as processes: collectives over one TCP connection from each rank to rank 0, which takes part itself.
//!
//! A collective is a series of rounds over parts of the data. In a round each member posts its bytes and rank 0 answers all of
//! them; nobody posts again before the answer. Posts fit into a send buffer, so no rank ever waits in a write for one that waits in
//! a write, and what rank 0 holds is bounded whatever the length of the data. Rank 0 reads in rank order, so sums are those of
//! `Threads` bit for bit. There are no time limits here.

use crate::wire::{self, MEMBER, WireError};
use crate::{Call, CommError, Communicator, Op};
use bytemuck::Pod;
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::{AddAssign, Range};
use std::time::{Duration, Instant};

/// Most bytes of a post.
const PART: usize = 128 << 10;
/// Asked of the system for a member's connection; it grants at least this much for payload by default (`wmem_max` 212,992, doubled).
const SEND_BUFFER: usize = 256 << 10;
/// Frames and payloads up to this are one write, hence one packet where they fit.
const JOINED: usize = 16 << 10;
/// For the last words of a rank that leaves: a peer that does not read shall not keep it.
const LAST_WORDS: Duration = Duration::from_secs(1);
const REASON_CHARS: usize = 1000;

/// From a member. Payload of so many bytes follows.
#[derive(Debug, Serialize, Deserialize)]
enum Post {
    Part { sequence: u64, call: Call, bytes: u64 },
    Gone { reason: String },
}

/// From rank 0.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Part { bytes: u64 },
    Lost { rank: u64, reason: String },
    Mismatch { rank: u64, expected: Call, got: Call },
}

/// One rank of a world of connected processes. May move to another thread, but not be shared.
#[derive(Debug)]
pub struct Sockets {
    rank: usize,
    size: usize,
    /// On rank 0 to ranks 1, 2, …; elsewhere to rank 0.
    peers: Vec<TcpStream>,
    /// Number of completed collectives.
    sequence: Cell<u64>,
    /// How long answers took to arrive after their first bytes had.
    arriving: Cell<Duration>,
    /// The first rank that is known to be gone, and why.
    lost: RefCell<Option<(usize, String)>>,
}

/// Why a round does not complete.
#[derive(Clone)]
enum End {
    Lost { rank: usize, reason: String },
    Mismatch { rank: usize, expected: Call, got: Call },
}

impl Sockets {
    /// Rank 0 with connections from ranks 1, 2, …, whose peers are known and trusted.
    pub fn hub(peers: Vec<TcpStream>) -> Self {
        Self::new(0, peers.len() + 1, peers)
    }

    /// Another rank with its connection to rank 0.
    pub fn member(rank: usize, world_size: usize, hub: TcpStream) -> Self {
        // A smaller buffer costs speed, and a wait only when the world ends.
        let _ = setsockopt(&hub, sockopt::SndBuf, &SEND_BUFFER);
        Self::new(rank, world_size, vec![hub])
    }

    fn new(rank: usize, size: usize, peers: Vec<TcpStream>) -> Self {
        Self { rank, size, peers, sequence: Cell::new(0), arriving: Cell::default(), lost: RefCell::new(None) }
    }

    /// Runs the rounds of a collective.
    fn run(&self, op: Op, rounds: impl FnOnce() -> Result<(), End>) -> Result<(), CommError> {
        let sequence = self.sequence.get();
        if let Some((rank, reason)) = self.lost.borrow().clone() {
            return Err(CommError::PeerLost { rank, reason, op, sequence });
        }
        rounds().map_err(|end| {
            self.finish(&end);
            match end {
                End::Lost { rank, reason } => CommError::PeerLost { rank, reason, op, sequence },
                End::Mismatch { rank, expected, got } => CommError::Mismatch { rank, sequence, expected, got },
            }
        })?;
        self.sequence.set(sequence + 1);
        Ok(())
    }

    /// Ends the world for this rank, and for all if it is rank 0.
    fn finish(&self, end: &End) {
        let (rank, reason) = match end {
            End::Lost { rank, reason } => (*rank, reason.as_str()),
            End::Mismatch { rank, .. } => (*rank, "called another collective"),
        };
        *self.lost.borrow_mut() = Some((rank, reason.to_owned()));
        if self.rank == 0 {
            self.last_words(&match end.clone() {
                End::Lost { rank, reason } => Answer::Lost { rank: rank as u64, reason },
                End::Mismatch { rank, expected, got } => Answer::Mismatch { rank: rank as u64, expected, got },
            });
        }
    }

    /// To all peers, who may be gone.
    fn last_words(&self, message: &impl Serialize) {
        for mut peer in &self.peers {
            let _ = peer.set_write_timeout(Some(LAST_WORDS));
            let _ = wire::send(&mut peer, message);
        }
    }

    /// Ends the world unless it has ended before.
    fn leave(&self, reason: &str) {
        if self.lost.borrow().is_some() {
            return;
        }
        let reason: String = reason.chars().take(REASON_CHARS).collect();
        if self.rank == 0 {
            self.finish(&End::Lost { rank: 0, reason });
        } else {
            *self.lost.borrow_mut() = Some((self.rank, reason.clone()));
            self.last_words(&Post::Gone { reason });
        }
    }

    /// Rank 0: the post of `rank`, which must fit `call` and fill `into`.
    fn collect(&self, rank: usize, call: Call, into: &mut [u8]) -> Result<(), End> {
        let mut peer = &self.peers[rank - 1];
        let lost = |reason| End::Lost { rank, reason };
        match wire::receive(&mut peer, MEMBER).map_err(|e| lost(reason(&e)))? {
            Post::Gone { reason } => Err(lost(reason)),
            Post::Part { call: got, .. } if got != call => Err(End::Mismatch { rank, expected: call, got }),
            Post::Part { sequence, bytes, .. } if (sequence, bytes) != (self.sequence.get(), into.len() as u64) => {
                Err(lost(format!("out of step: {bytes} bytes in #{sequence}, expected {}", into.len())))
            }
            Post::Part { .. } => peer.read_exact(into).map_err(|e| lost(reason(&e.into()))),
        }
    }

    /// Rank 0: the end of a round for `rank`.
    fn answer(&self, rank: usize, payload: &[u8]) -> Result<(), End> {
        let sent = send(&self.peers[rank - 1], &Answer::Part { bytes: payload.len() as u64 }, payload);
        sent.map_err(|e| End::Lost { rank, reason: reason(&e) })
    }

    fn members(&self) -> Range<usize> {
        1..self.size
    }

    /// A member's half of a round.
    fn post(&self, call: Call, payload: &[u8]) {
        let post = Post::Part { sequence: self.sequence.get(), call, bytes: payload.len() as u64 };
        // If rank 0 is gone, what it said last can still be read, or reading tells the same.
        let _ = send(&self.peers[0], &post, payload);
    }

    /// A member's other half: rank 0's answer, which must fill `into`.
    fn hear(&self, into: &mut [u8]) -> Result<(), End> {
        let mut hub = &self.peers[0];
        let lost = |e: &WireError| End::Lost { rank: 0, reason: reason(e) };
        match wire::receive(&mut hub, MEMBER).map_err(|e| lost(&e))? {
            Answer::Lost { rank, reason } => Err(End::Lost { rank: rank as usize, reason }),
            Answer::Mismatch { rank, expected, got } => Err(End::Mismatch { rank: rank as usize, expected, got }),
            Answer::Part { bytes } if bytes != into.len() as u64 => {
                let reason = format!("out of step: {bytes} bytes, expected {}", into.len());
                Err(End::Lost { rank: 0, reason })
            }
            Answer::Part { .. } => {
                let begin = Instant::now();
                hub.read_exact(into).map_err(|e| lost(&e.into()))?;
                self.arriving.set(self.arriving.get() + begin.elapsed());
                Ok(())
            }
        }
    }

    fn sum<T: Pod + AddAssign>(&self, op: Op, data: &mut [T]) -> Result<(), CommError> {
        let call = Call { op, bytes: size_of_val(data) };
        let step = PART / size_of::<T>();
        let mut terms = vec![T::zeroed(); if self.rank == 0 { step.min(data.len()) } else { 0 }];
        self.run(op, || {
            for range in parts(data.len(), step) {
                let part = &mut data[range];
                if self.rank != 0 {
                    self.post(call, bytemuck::cast_slice(part));
                    self.hear(bytemuck::cast_slice_mut(part))?;
                    continue;
                }
                let terms = &mut terms[..part.len()];
                for rank in self.members() {
                    self.collect(rank, call, bytemuck::cast_slice_mut(terms))?;
                    part.iter_mut().zip(&*terms).for_each(|(sum, term)| *sum += *term);
                }
                self.members().try_for_each(|rank| self.answer(rank, bytemuck::cast_slice(part)))?;
            }
            Ok(())
        })
    }

    /// The data of all ranks one after the other; each rank's length is known to all.
    fn gather(&self, call: Call, lengths: &[usize], data: &[u8]) -> Result<Vec<u8>, CommError> {
        let mut out = vec![0; lengths.iter().sum()];
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut window = Vec::new();
        self.run(call.op, || {
            for range in parts(longest, PART) {
                let clip = |length: usize| range.start.min(length)..range.end.min(length);
                window.resize(lengths.iter().map(|&n| clip(n).len()).sum(), 0);
                if self.rank == 0 {
                    let (own, mut rest) = window.split_at_mut(clip(data.len()).len());
                    own.copy_from_slice(&data[clip(data.len())]);
                    for rank in self.members() {
                        let (theirs, after) = rest.split_at_mut(clip(lengths[rank]).len());
                        self.collect(rank, call, theirs)?;
                        rest = after;
                    }
                    self.members().try_for_each(|rank| self.answer(rank, &window))?;
                } else {
                    self.post(call, &data[clip(data.len())]);
                    self.hear(&mut window)?;
                }
                let (mut from, mut to) = (window.as_slice(), out.as_mut_slice());
                for &length in lengths {
                    let (part, rest) = from.split_at(clip(length).len());
                    let (place, after) = to.split_at_mut(length);
                    place[clip(length)].copy_from_slice(part);
                    (from, to) = (rest, after);
                }
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// Ranges of at most `step` that cover `0..n`; one of nothing if there is nothing.
fn parts(n: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n.div_ceil(step).max(1)).map(move |k| k * step..((k + 1) * step).min(n))
}

fn send(mut to: &TcpStream, message: &impl Serialize, payload: &[u8]) -> Result<(), WireError> {
    let mut frame = wire::encode(message)?;
    if payload.len() <= JOINED {
        frame.extend_from_slice(payload);
        return Ok(to.write_all(&frame)?);
    }
    to.write_all(&frame)?;
    Ok(to.write_all(payload)?)
}

/// Why a peer is gone, as far as its connection shows.
fn reason(error: &WireError) -> String {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    match error {
        WireError::Io(e)
            if matches!(e.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected) =>
        {
            "ended early".to_owned()
        }
        error => error.to_string(),
    }
}

impl Communicator for Sockets {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.size
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.sum::<u8>(Op::Barrier, &mut [])
    }

    fn broadcast(&self, data: &mut [u8], root: usize) -> Result<(), CommError> {
        assert!(root < self.size, "broadcast from rank {root} in a world of {}", self.size);
        let call = Call { op: Op::Broadcast { root }, bytes: data.len() };
        self.run(call.op, || {
            for range in parts(data.len(), PART) {
                let part = &mut data[range];
                if self.rank != 0 {
                    self.post(call, if self.rank == root { part } else { &[] });
                    self.hear(if self.rank == root { &mut [] } else { part })?;
                    continue;
                }
                for rank in self.members() {
                    self.collect(rank, call, if rank == root { &mut *part } else { &mut [] })?;
                }
                self.members().try_for_each(|rank| self.answer(rank, if rank == root { &[] } else { &*part }))?;
            }
            Ok(())
        })
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommError> {
        self.sum(Op::AllReduce, data)
    }

    fn all_reduce_sum_f64(&self, data: &mut [f64]) -> Result<(), CommError> {
        self.sum(Op::AllReduce, data)
    }

    fn all_gather(&self, data: &[u8]) -> Result<Vec<u8>, CommError> {
        let call = Call { op: Op::AllGather, bytes: data.len() };
        self.gather(call, &vec![data.len(); self.size], data)
    }

    fn abort(&self, reason: &str) {
        self.leave(reason);
    }

    /// Rank 0 reads its members one after the other, so it cannot tell how long the bytes of one took.
    fn arriving(&self) -> Option<Duration> {
        (self.rank != 0).then(|| self.arriving.get())
    }

    /// Nothing is padded: each rank's own bytes travel.
    fn all_gather_varied(&self, data: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let lengths = self.all_gather(&(data.len() as u64).to_le_bytes())?;
        let lengths: Vec<usize> = lengths.as_chunks().0.iter().map(|&n| u64::from_le_bytes(n) as usize).collect();
        let call = Call { op: Op::AllGather, bytes: lengths.iter().sum() };
        let all = self.gather(call, &lengths, data)?;
        let mut rest = all.as_slice();
        Ok(lengths.iter().map(|&n| rest.split_off(..n).expect("all lengths together").to_vec()).collect())
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.leave(if std::thread::panicking() { "panicked" } else { "ended early" });
    }
}
