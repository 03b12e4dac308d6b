//! How fast all ranks sum: by the collectives of the run through the hosts, or by NCCL between GPUs.

use crate::doctor_pairs::{Measured, Ranks, Speed, neighbour_rounds, over};
use crate::error::TrainError;
use crate::joined::Joined;
use comm::{Communicator, Library, Nccl, NcclSettings};
use cuda::{Gradients, Meeting, Reduction};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Bytes of an all-reduce that nears the bandwidth of a link; fewer where they would take too long.
pub(crate) const MOST_BYTES: usize = 64 << 20;
/// Bytes that tell how many fit.
const FEW_BYTES: usize = 256 << 10;
/// Of all runs that are measured together.
const MEASURE: Duration = Duration::from_millis(800);
/// For NCCL to connect, and for a communicator to be measured: past it, it is aborted.
const CONNECT: Duration = Duration::from_secs(4);
const RUNS: usize = 3;

/// An all-reduce of all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Whole {
    pub bytes: usize,
    pub seconds: f64,
    pub latency_s: f64,
}

/// Bytes of which so many runs fit into the time, if `FEW_BYTES` take `seconds`: a power of two.
fn fitting(seconds: f64, runs: usize) -> usize {
    let times = MEASURE.as_secs_f64() / (runs as f64 * seconds.max(1e-9));
    let mut bytes = FEW_BYTES;
    while bytes < MOST_BYTES && (2 * bytes) as f64 <= times * FEW_BYTES as f64 {
        bytes *= 2;
    }
    bytes
}

/// What rank 0 says, on all ranks.
fn agreed(comm: &dyn Communicator, number: usize) -> Result<usize, TrainError> {
    let mut bytes = (number as u64).to_le_bytes();
    comm.broadcast(&mut bytes, 0)?;
    Ok(u64::from_le_bytes(bytes) as usize)
}

/// By the communicator. Errors: a rank is gone.
pub(crate) fn by_hosts(comm: &dyn Communicator) -> Result<Whole, TrainError> {
    let median = |bytes: usize, runs: usize| {
        let mut data = vec![0f32; bytes / 4];
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            comm.barrier()?;
            let begin = Instant::now();
            comm.all_reduce_sum(&mut data)?;
            times.push(begin.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok::<f64, TrainError>(times[runs / 2])
    };
    let latency_s = median(8, 11)?;
    let few = median(FEW_BYTES, 1)?;
    let bytes = agreed(comm, fitting(few, RUNS))?;
    Ok(Whole { bytes, seconds: median(bytes, RUNS)?, latency_s })
}

/// NCCL between the GPUs of ranks.
pub(crate) struct Gpus<'a> {
    pub joined: &'a Joined,
    pub ordinal: usize,
    pub library: Arc<Library>,
}

impl Gpus<'_> {
    /// Ids that this rank makes become those of all, `count` of each.
    fn ids(&self, comm: &dyn Communicator, count: usize) -> Result<Vec<Vec<[u8; 128]>>, TrainError> {
        // An id that cannot be made is zeros, which no rank can join.
        let own: Vec<[u8; 128]> = (0..count).map(|_| Nccl::unique_id(&self.library).unwrap_or([0; 128])).collect();
        let all = comm.all_gather(own.as_flattened())?;
        Ok(all.chunks_exact(128 * count).map(|ids| ids.as_chunks().0.to_vec()).collect())
    }

    /// Joins `world` ranks as `rank`, to be ended if it is still open after `limit`.
    fn open(&self, id: [u8; 128], [rank, world]: [usize; 2], limit: Duration) -> Result<Open, String> {
        let settings = NcclSettings { limit: CONNECT, max_ctas: None };
        let library = self.library.clone();
        let meeting = Meeting { library, id, rank, world, settings, gradients: Gradients::F32, word: None };
        let reduction = Reduction::join(self.ordinal, meeting, MOST_BYTES).map_err(|e| e.to_string())?;
        let [aborter, asked] = [reduction.aborter(), reduction.aborter()];
        self.joined.on_abort(Box::new(move || drop(asked.abort())));
        let (guard, gone) = channel();
        std::thread::spawn(move || {
            if gone.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let _ = aborter.abort(); // what waits hears of it
            }
        });
        Ok(Open { reduction, _guard: guard })
    }

    /// All ranks. The text says why there is no number; if one rank has none, no rank has.
    pub(crate) fn whole(&self, comm: &dyn Communicator) -> Result<Result<Whole, String>, TrainError> {
        let least = |own: f64| -> Result<f64, TrainError> {
            let all = comm.all_gather(&own.to_le_bytes())?;
            Ok(all.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).fold(f64::INFINITY, f64::min))
        };
        let other = || "another rank could not measure".to_string();
        let ids = self.ids(comm, 1)?;
        let open = self.open(ids[0][0], [comm.rank(), comm.world_size()], CONNECT + 4 * MEASURE);
        let first = open.as_ref().map_err(String::clone).and_then(|open| {
            let seconds = |bytes| open.reduction.seconds(bytes).map_err(|e| e.to_string());
            Ok((seconds(8)?, seconds(FEW_BYTES)?))
        });
        let bytes = least(first.as_ref().map_or(0.0, |&(_, few)| fitting(few, Reduction::RUNS) as f64))? as usize;
        let whole = match (first, &open) {
            (Ok((latency_s, _)), Ok(open)) if bytes > 0 => {
                let seconds = open.reduction.seconds(bytes).map_err(|e| e.to_string());
                seconds.map(|seconds| Whole { bytes, seconds, latency_s })
            }
            (Err(why), _) => Err(why),
            (Ok(_), _) => Err(other()),
        };
        let all_have = least(f64::from(u8::from(whole.is_ok())))? > 0.0;
        Ok(whole.and_then(|whole| if all_have { Ok(whole) } else { Err(other()) }))
    }

    /// Neighbours on the ring, by communicators of two, which sum so many bytes.
    pub(crate) fn pairs(&self, comm: &dyn Communicator, bytes: usize, limit: Duration) -> Result<Measured, TrainError> {
        let rounds = neighbour_rounds(comm.world_size());
        let ids = self.ids(comm, rounds.len())?;
        over(comm, &rounds, limit, |round, (a, b): Ranks| {
            let rank = usize::from(comm.rank() == b);
            let speed = self.open(ids[a][round], [rank, 2], CONNECT + 2 * MEASURE).and_then(|open| {
                let seconds = |bytes| open.reduction.seconds(bytes).map_err(|e| e.to_string());
                // Of two ranks each byte passes once: 2 (n - 1) / n = 1.
                Ok(Speed { latency_s: seconds(8)?, bytes_per_s: bytes as f64 / seconds(bytes)? })
            });
            speed.map_err(|e| format!("between ranks {a} and {b}, as seen by rank {}: {e}", comm.rank()))
        })
    }
}

/// A communicator that ends in time.
struct Open {
    reduction: Reduction,
    /// Its drop calls the abort off.
    _guard: Sender<()>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use comm::Threads;

    #[test]
    fn what_is_summed_fits_into_the_time() {
        // 256 KiB in 1 ms: 266 of them in 0.8 s, a third of it a run.
        assert_eq!(fitting(1e-3, 3), 256 * FEW_BYTES);
        assert_eq!(fitting(10e-3, 3), 16 * FEW_BYTES);
        assert_eq!(fitting(10.0, 3), FEW_BYTES, "no less");
        assert_eq!(fitting(0.0, 3), MOST_BYTES, "no more");
    }

    #[test]
    fn all_ranks_sum_the_same_number_of_bytes() {
        let rank = |comm| std::thread::spawn(move || by_hosts(&comm).unwrap());
        let ranks: Vec<_> = Threads::world(3).into_iter().map(rank).collect();
        let seen: Vec<Whole> = ranks.into_iter().map(|r| r.join().unwrap()).collect();
        assert!(seen.iter().all(|w| w.bytes == seen[0].bytes && w.seconds > 0.0 && w.latency_s > 0.0), "{seen:?}");
    }
}
