//! How far the clocks of hosts are apart: logs and rules on the age of jobs compare wall times.
//!
//! Rank 0 notes its time, tells all, each notes its own, rank 0 hears of all of them and notes its time again. Whatever a rank noted lies
//! between, so its offset is known to half a round trip, as NTP knows it; several rounds narrow it down.

use crate::doctor::Finding;
use crate::error::TrainError;
use crate::joined::Joined;
use comm::Communicator;
use comm::member::Member;
use std::time::{SystemTime, UNIX_EPOCH};

const ROUNDS: usize = 7;
/// Farther apart, times in logs mislead.
const MOST_S: f64 = 1.0;

/// Times of a round, in seconds.
struct Round {
    /// Of rank 0, before and after.
    begin: f64,
    end: f64,
    /// Of each rank.
    noted: Vec<f64>,
}

fn wall() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// What rank 0 found; nothing on the others, who only take part. Errors: a rank is gone.
pub fn skew(joined: &Joined) -> Result<Option<Finding>, TrainError> {
    let rounds = measured(&joined.comm()?)?;
    Ok((joined.rank == 0).then(|| judge(&rounds, &joined.members)))
}

fn measured(comm: &dyn Communicator) -> Result<Vec<Round>, TrainError> {
    let round = |_| -> Result<Round, TrainError> {
        comm.barrier()?;
        let begin = wall();
        comm.broadcast(&mut [0; 8], 0)?;
        let noted = comm.all_gather(&wall().to_le_bytes())?;
        let noted = noted.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
        Ok(Round { begin, end: wall(), noted })
    };
    (0..ROUNDS).map(round).collect()
}

/// Offset of a rank's clock from rank 0's, and how far that may be wrong.
fn offset(rounds: &[Round], rank: usize) -> (f64, f64) {
    let least = rounds.iter().map(|r| r.noted[rank] - r.end).fold(f64::NEG_INFINITY, f64::max);
    let most = rounds.iter().map(|r| r.noted[rank] - r.begin).fold(f64::INFINITY, f64::min);
    ((least + most) / 2.0, (most - least).abs() / 2.0)
}

fn judge(rounds: &[Round], members: &[Member]) -> Finding {
    let certain = |(offset, error): (f64, f64)| offset.abs() - error;
    let offsets = (1..members.len()).map(|rank| (rank, offset(rounds, rank)));
    let Some((rank, (offset, error))) = offsets.max_by(|a, b| certain(a.1).total_cmp(&certain(b.1))) else {
        return Finding::ok("clocks", "one rank, one clock");
    };
    let host = &members[rank].host;
    if *host == members[0].host && certain((offset, error)) <= MOST_S {
        let what = format!("the clock of rank {rank}, on the host of rank 0, is {} from its", signed(offset, error));
        return Finding::ok("clocks", what);
    }
    let first = &members[0].host;
    let what = format!("the clock of {host} (rank {rank}) is {} from that of {first} (rank 0)", signed(offset, error));
    if certain((offset, error)) > MOST_S {
        let remedy = "let chronyd or ntpd set the clocks of all hosts: times in logs, and the age of what a run finds, are compared";
        return Finding::warn("clocks", format!("{what}, expected within {MOST_S} s"), remedy);
    }
    Finding::ok("clocks", format!("{what}; others are nearer"))
}

/// `+0.31 ms ± 0.05 ms`, or in seconds.
fn signed(offset: f64, error: f64) -> String {
    if offset.abs() >= 1.0 {
        format!("{offset:+.3} s ± {error:.3} s")
    } else {
        format!("{:+.2} ms ± {:.2} ms", 1e3 * offset, 1e3 * error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use comm::Threads;

    fn members(hosts: &[&str]) -> Vec<Member> {
        hosts.iter().map(|host| Member { host: host.to_string(), ..Member::default() }).collect()
    }

    #[test]
    fn rounds_narrow_an_offset_down() {
        // Rank 1 is 5 s ahead; it hears late in the first round and is heard late in the second.
        let rounds = [
            Round { begin: 100.0, end: 100.4, noted: vec![100.1, 105.3] },
            Round { begin: 200.0, end: 200.6, noted: vec![200.1, 205.1] },
        ];
        let (offset, error) = offset(&rounds, 1);
        assert!((offset - 5.0).abs() <= error + 1e-9 && (error - 0.1).abs() < 1e-9, "{offset} ± {error}");
    }

    #[test]
    fn more_than_a_second_for_certain_is_a_warning() {
        let by = |ahead: f64, trip: f64| [Round { begin: 10.0, end: 10.0 + trip, noted: vec![10.0, 10.0 + ahead] }];
        let far = judge(&by(3.01, 0.02), &members(&["n01", "n02"]));
        assert_eq!(far.state, State::Warn);
        assert!(
            far.found.starts_with("the clock of n02 (rank 1) is +3.000 s ± 0.010 s from that of n01"),
            "{}",
            far.found
        );
        assert!(far.remedy.contains("chronyd"));
        assert_eq!(judge(&by(-3.0, 0.02), &members(&["n01", "n02"])).state, State::Warn);
        // 1.2 s apart, or 0.2 s: a slow network cannot tell.
        let near = judge(&by(1.7, 2.0), &members(&["n01", "n02"]));
        assert_eq!((near.state, near.found.contains("+700.00 ms ± 1000.00 ms")), (State::Ok, true), "{}", near.found);
        assert!(judge(&by(0.001, 0.002), &members(&["n01", "n01"])).found.contains("on the host of rank 0"));
    }

    #[test]
    fn threads_of_one_host_have_one_clock() {
        let ranks = Threads::world(3).into_iter();
        let workers: Vec<_> = ranks.map(|comm| std::thread::spawn(move || measured(&comm).unwrap())).collect();
        let rounds = workers.into_iter().map(|w| w.join().unwrap()).next().unwrap();
        for rank in 0..3 {
            let (offset, error) = offset(&rounds, rank);
            assert!(offset.abs() <= error + 1e-6, "rank {rank}: {offset} ± {error}");
        }
    }
}
