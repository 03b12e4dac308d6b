//! Ranks as threads of one process.
//!
//! Everything rests on one primitive, `exchange`: each rank posts bytes and gets those of all, once all have posted.
//! A handle that is dropped (a rank returned, or panicked) ends the world: who waits, or calls later, gets an error.

use crate::{Call, CommError, Communicator, Op};
use bytemuck::Pod;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::AddAssign;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One rank of a world of threads. May move to another thread, but not be shared: a rank is in one collective at a time.
pub struct Threads {
    rank: usize,
    world: Arc<World>,
    not_shared: PhantomData<Cell<()>>,
}

struct World {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Number of completed exchanges.
    sequence: u64,
    /// What the ranks that have arrived at the current exchange posted.
    posted: Vec<Option<(Call, Arc<[u8]>)>>,
    arrived: usize,
    /// Outcome of the last exchange; not overwritten before all ranks have left it, since the next needs them all.
    outcome: Option<Outcome>,
    /// The first rank that went away, and why.
    lost: Option<(usize, String)>,
}

/// The bytes of all ranks in rank order.
type Outcome = Result<Arc<[Arc<[u8]>]>, CommError>;

impl Threads {
    /// The handles of a world of `size` ranks, in rank order, one to give to each thread.
    pub fn world(size: usize) -> Vec<Self> {
        assert!(size > 0, "a world has at least one rank");
        let state = State { posted: vec![None; size], ..State::default() };
        let world = Arc::new(World { size, state: Mutex::new(state), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, world: Arc::clone(&world), not_shared: PhantomData }).collect()
    }

    /// Posts `data`, returns that of all ranks.
    fn exchange(&self, call: Call, data: &[u8]) -> Outcome {
        let mut state = self.world.lock();
        let sequence = state.sequence;
        if let Some(lost) = state.peer_lost(call.op) {
            return Err(lost);
        }
        state.posted[self.rank] = Some((call, data.into()));
        state.arrived += 1;
        if state.arrived == self.world.size {
            let outcome = state.complete();
            self.world.changed.notify_all();
            return outcome;
        }
        while state.sequence == sequence {
            if let Some(lost) = state.peer_lost(call.op) {
                return Err(lost);
            }
            state = self.world.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.outcome.clone().expect("a completed exchange has an outcome")
    }

    /// Each rank sums one share of the elements over all ranks, then the shares are exchanged: every element is summed
    /// once, in rank order, so shares change no bit.
    fn sum<T: Pod + AddAssign>(&self, data: &mut [T]) -> Result<(), CommError> {
        let (size, width) = (self.world.size, size_of::<T>());
        let call = Call { op: Op::AllReduce, bytes: size_of_val(data) };
        let all = self.exchange(call, bytemuck::cast_slice(data))?;
        let bound = |rank: usize| data.len() * rank / size;
        let (begin, end) = (bound(self.rank), bound(self.rank + 1));
        let share = |rank: usize| all[rank][begin * width..end * width].chunks_exact(width);
        let mut total: Vec<T> = share(0).map(bytemuck::pod_read_unaligned).collect();
        for rank in 1..size {
            total.iter_mut().zip(share(rank)).for_each(|(t, x)| *t += bytemuck::pod_read_unaligned(x));
        }
        let shares = self.exchange(call, bytemuck::cast_slice(&total))?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        let mut at = 0;
        for share in shares.iter() {
            bytes[at..at + share.len()].copy_from_slice(share);
            at += share.len();
        }
        Ok(())
    }

    /// Ends the world unless it has ended before.
    fn leave(&self, reason: &str) {
        self.world.lock().lost.get_or_insert_with(|| (self.rank, reason.to_owned()));
        self.world.changed.notify_all();
    }
}

impl World {
    /// The state is valid between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn peer_lost(&self, op: Op) -> Option<CommError> {
        let (rank, reason) = self.lost.clone()?;
        Some(CommError::PeerLost { rank, reason, op, sequence: self.sequence })
    }

    /// Ends the exchange at which all ranks have arrived.
    fn complete(&mut self) -> Outcome {
        let posted: Vec<_> = self.posted.iter_mut().map(|slot| slot.take().expect("all ranks have arrived")).collect();
        let expected = posted[0].0;
        let sequence = self.sequence;
        let outcome = match posted.iter().position(|(call, _)| *call != expected) {
            Some(rank) => {
                self.lost.get_or_insert_with(|| (rank, "called another collective".to_owned()));
                Err(CommError::Mismatch { rank, sequence, expected, got: posted[rank].0 })
            }
            None => Ok(posted.into_iter().map(|(_, bytes)| bytes).collect()),
        };
        self.arrived = 0;
        self.sequence += 1;
        self.outcome = Some(outcome.clone());
        outcome
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world.size
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.exchange(Call { op: Op::Barrier, bytes: 0 }, &[]).map(drop)
    }

    fn broadcast(&self, data: &mut [u8], root: usize) -> Result<(), CommError> {
        assert!(root < self.world.size, "broadcast from rank {root} in a world of {}", self.world.size);
        let call = Call { op: Op::Broadcast { root }, bytes: data.len() };
        let all = self.exchange(call, if self.rank == root { data } else { &[] })?;
        data.copy_from_slice(&all[root]);
        Ok(())
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommError> {
        self.sum(data)
    }

    fn all_reduce_sum_f64(&self, data: &mut [f64]) -> Result<(), CommError> {
        self.sum(data)
    }

    fn all_gather(&self, data: &[u8]) -> Result<Vec<u8>, CommError> {
        let all = self.exchange(Call { op: Op::AllGather, bytes: data.len() }, data)?;
        Ok(all.concat())
    }

    fn abort(&self, reason: &str) {
        self.leave(reason);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.leave(if std::thread::panicking() { "panicked" } else { "ended early" });
    }
}
