//! What flows between two ranks: which pairs are measured when, and TCP between two processes.

use crate::error::TrainError;
use comm::Communicator;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Up to so many ranks all pairs are measured, one at a time; beyond, neighbours, many at a time.
pub(crate) const ALL_PAIRS: usize = 8;
/// For two ranks to come together, and for what is in flight to arrive.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes that are sent at a time; the first says whether more follow.
const BLOCK: usize = 64 << 10;
const TRIPS: usize = 21;

/// Of two ranks, the lower first.
pub(crate) type Ranks = (usize, usize);

/// How fast data flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Speed {
    pub bytes_per_s: f64,
    pub latency_s: f64,
}

/// Pairs that were measured, and why others were not.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub pairs: Vec<(Ranks, Speed)>,
    pub troubles: Vec<String>,
    /// For want of time.
    pub left_out: usize,
}

/// Pairs by round. No rank is twice in a round.
pub(crate) fn all_rounds(world: usize) -> Vec<Vec<Ranks>> {
    if world <= ALL_PAIRS {
        return (0..world).flat_map(|a| (a + 1..world).map(move |b| vec![(a, b)])).collect();
    }
    neighbour_rounds(world)
}

/// Neighbours on a ring: every second pair, the others, and of an odd number the one that closes it.
pub(crate) fn neighbour_rounds(world: usize) -> Vec<Vec<Ranks>> {
    let from = |first| (first..world - 1).step_by(2).map(|a| (a, a + 1)).collect::<Vec<_>>();
    let mut rounds = vec![from(0), from(1)];
    if world > 2 {
        let closing = (0, world - 1);
        if world.is_multiple_of(2) { rounds[1].push(closing) } else { rounds.push(vec![closing]) }
    }
    rounds.retain(|round| !round.is_empty());
    rounds
}

/// Measures round by round, all ranks together, until rank 0's time is over; `measure` gets the number of the round and this rank's pair.
/// Of what the two ranks of a pair saw the slower counts. Errors: a rank is gone.
pub(crate) fn over(
    comm: &dyn Communicator,
    rounds: &[Vec<Ranks>],
    limit: Duration,
    mut measure: impl FnMut(usize, Ranks) -> Result<Speed, String>,
) -> Result<Measured, TrainError> {
    let (rank, begin) = (comm.rank(), Instant::now());
    let mut measured = Measured::default();
    let mut own = String::new();
    for (number, round) in rounds.iter().enumerate() {
        comm.barrier()?; // whoever is measured is alone
        let pair = round.iter().find(|pair| pair.0 == rank || pair.1 == rank);
        let speed = pair.map(|&pair| measure(number, pair));
        let [mut rate, mut latency] = [f64::NAN; 2];
        match speed {
            Some(Ok(speed)) => [rate, latency] = [speed.bytes_per_s, speed.latency_s],
            Some(Err(why)) if own.is_empty() => own = why,
            Some(Err(_)) | None => {}
        }
        let left = limit.as_secs_f64() - begin.elapsed().as_secs_f64();
        let all = comm.all_gather(bytemuck::bytes_of(&[rate, latency, left]))?;
        let of = |rank: usize| -> [f64; 3] { bytemuck::pod_read_unaligned(&all[24 * rank..24 * (rank + 1)]) };
        for &(a, b) in round {
            let ([rate_a, latency_a, _], [rate_b, latency_b, _]) = (of(a), of(b));
            if rate_a > 0.0 && rate_b > 0.0 {
                let speed = Speed { bytes_per_s: rate_a.min(rate_b), latency_s: latency_a.max(latency_b) };
                measured.pairs.push(((a, b), speed));
            }
        }
        if of(0)[2] <= 0.0 {
            measured.left_out = rounds[number + 1..].iter().map(Vec::len).sum();
            break;
        }
    }
    let troubles = comm.all_gather_varied(own.as_bytes())?;
    measured.troubles = troubles.iter().filter(|t| !t.is_empty()).map(|t| String::from_utf8_lossy(t).into()).collect();
    Ok(measured)
}

/// TCP between two processes: `limit` for all of them together. Addresses are of this host, the first to try first; none is a trouble.
pub(crate) fn by_tcp(
    comm: &dyn Communicator,
    addresses: &[(String, IpAddr)],
    limit: Duration,
) -> Result<Measured, TrainError> {
    let token = RandomState::new().hash_one(comm.rank());
    let door = addresses.first().ok_or_else(|| io::Error::other("no interface is up")).and_then(|(_, ip)| {
        let listener = TcpListener::bind((*ip, 0))?;
        listener.set_nonblocking(true)?;
        Ok((listener.local_addr()?, listener))
    });
    let card = door.as_ref().map_or(String::new(), |(address, _)| format!("{address} {token}"));
    let cards = comm.all_gather_varied(card.as_bytes())?;
    let card = |rank: usize| {
        let text = std::str::from_utf8(&cards[rank]).ok()?;
        let (address, token) = text.split_once(' ')?;
        Some((address.parse::<SocketAddr>().ok()?, token.parse::<u64>().ok()?))
    };
    let rounds = all_rounds(comm.world_size());
    let time = (limit / (4 * rounds.len().max(1) as u32)).clamp(Duration::from_millis(20), Duration::from_millis(100));
    over(comm, &rounds, limit, |_, (a, b)| {
        let (rank, peer) = (comm.rank(), if comm.rank() == a { b } else { a });
        if rank == a {
            let (_, listener) = door.as_ref().map_err(|e| format!("rank {a} cannot listen: {e}"))?;
            let heard = accept(listener, token).and_then(|stream| exchange(stream, Turn::Second, time));
            heard.map_err(|e| format!("between ranks {a} and {peer}, as seen by rank {a}: {e}"))
        } else {
            let (address, token) = card(a).ok_or_else(|| format!("rank {a} does not listen"))?;
            let spoken = connect(address, token).and_then(|stream| exchange(stream, Turn::First, time));
            spoken.map_err(|e| format!("from rank {b} to rank {a} at {address}: {e}"))
        }
    })
}

fn connect(address: SocketAddr, token: u64) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    prepare(&stream)?;
    stream.write_all(&token.to_le_bytes())?;
    Ok(stream)
}

/// The connection that brings the token; others are strangers.
fn accept(listener: &TcpListener, token: u64) -> io::Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                prepare(&stream)?;
                let mut said = [0; 8];
                if stream.read_exact(&mut said).is_ok() && u64::from_le_bytes(said) == token {
                    return Ok(stream);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_micros(200)),
            Err(e) => return Err(e),
        }
        if begin.elapsed() > PATIENCE + PATIENCE / 2 {
            return Err(io::Error::new(ErrorKind::TimedOut, "no connection came"));
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Who sends first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    Second,
}

/// Round trips of eight bytes, then blocks one way and blocks the other. The rate is that of what came in here.
fn exchange(mut stream: TcpStream, turn: Turn, time: Duration) -> io::Result<Speed> {
    let mut trips = Vec::with_capacity(TRIPS);
    let mut word = [0; 8];
    for _ in 0..TRIPS {
        let begin = Instant::now();
        if turn == Turn::First {
            stream.write_all(&word)?;
            stream.read_exact(&mut word)?;
        } else {
            stream.read_exact(&mut word)?;
            stream.write_all(&word)?;
        }
        trips.push(begin.elapsed().as_secs_f64() / 2.0);
    }
    trips.sort_by(f64::total_cmp);
    let bytes_per_s = if turn == Turn::First {
        send(&mut stream, time)?;
        receive(&mut stream, time)?
    } else {
        let rate = receive(&mut stream, time)?;
        send(&mut stream, time)?;
        rate
    };
    Ok(Speed { bytes_per_s, latency_s: trips[TRIPS / 2] })
}

/// At least three blocks.
fn send(stream: &mut TcpStream, time: Duration) -> io::Result<()> {
    let (begin, mut block) = (Instant::now(), vec![1; BLOCK]);
    let mut sent = 0;
    while block[0] == 1 {
        block[0] = u8::from(sent < 2 || begin.elapsed() < time);
        stream.write_all(&block)?;
        sent += 1;
    }
    Ok(())
}

/// Bytes per second from the end of the first block to the end of the last.
fn receive(stream: &mut TcpStream, time: Duration) -> io::Result<f64> {
    let mut block = vec![0; BLOCK];
    stream.read_exact(&mut block)?;
    let (begin, mut bytes) = (Instant::now(), 0);
    while block[0] == 1 {
        stream.read_exact(&mut block)?;
        bytes += BLOCK;
        if begin.elapsed() > time + PATIENCE {
            let what = format!("only {bytes} bytes came in {:.1} s", begin.elapsed().as_secs_f64());
            return Err(io::Error::new(ErrorKind::TimedOut, what));
        }
    }
    Ok(bytes as f64 / begin.elapsed().as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use comm::Threads;
    use std::collections::BTreeSet;

    #[test]
    fn every_pair_or_every_neighbour_is_measured_once_and_no_rank_twice_in_a_round() {
        for world in 2..=19 {
            let neighbours = neighbour_rounds(world);
            assert!(neighbours.len() <= 3, "{world}");
            for (rounds, expected) in [
                (all_rounds(world), if world <= ALL_PAIRS { world * (world - 1) / 2 } else { world }),
                (neighbours, if world == 2 { 1 } else { world }),
            ] {
                let pairs: Vec<Ranks> = rounds.concat();
                assert_eq!(pairs.iter().collect::<BTreeSet<_>>().len(), pairs.len(), "{world}: {pairs:?}");
                assert_eq!(pairs.len(), expected, "{world}: {pairs:?}");
                for round in rounds {
                    let ranks: BTreeSet<_> = round.iter().flat_map(|p| [p.0, p.1]).collect();
                    assert_eq!(ranks.len(), 2 * round.len(), "{world}: {round:?}");
                    assert!(round.iter().all(|p| p.0 < p.1 && p.1 < world));
                }
            }
        }
    }

    /// What each rank of a world of threads gets.
    fn on_all<T: Send + 'static>(world: usize, work: impl Fn(Threads) -> T + Clone + Send + 'static) -> Vec<T> {
        let start = |comm| {
            let work = work.clone();
            std::thread::spawn(move || work(comm))
        };
        let ranks: Vec<_> = Threads::world(world).into_iter().map(start).collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    }

    #[test]
    fn the_slower_of_two_counts_and_the_time_is_rank_0s() {
        let seen = on_all(3, |comm| {
            let rank = comm.rank();
            let limit = if rank == 0 { Duration::from_secs(60) } else { Duration::ZERO };
            over(&comm, &all_rounds(3), limit, |_, pair| match (rank, pair) {
                (2, (0, 2)) => Err("no way".to_string()),
                _ => Ok(Speed { bytes_per_s: 10.0 + rank as f64, latency_s: rank as f64 }),
            })
            .unwrap()
        });
        for measured in seen {
            let slower = |a: usize, b: usize| ((a, b), Speed { bytes_per_s: 10.0 + a as f64, latency_s: b as f64 });
            assert_eq!(measured.pairs, [slower(0, 1), slower(1, 2)]);
            assert_eq!((measured.troubles, measured.left_out), (vec!["no way".to_string()], 0));
        }
        let seen = on_all(4, |comm| {
            let rates = |_, _| Ok(Speed { bytes_per_s: 1.0, latency_s: 0.0 });
            over(&comm, &all_rounds(4), Duration::ZERO, rates).unwrap()
        });
        assert!(seen.iter().all(|m| m.pairs.len() == 1 && m.left_out == 5), "{seen:?}");
    }

    #[test]
    fn bytes_flow_over_the_loopback_and_a_closed_door_is_a_trouble() {
        let lo = [("lo".to_string(), IpAddr::from([127, 0, 0, 1]))];
        let here = lo.clone();
        for measured in on_all(2, move |comm| by_tcp(&comm, &here, Duration::from_millis(200)).unwrap()) {
            let [((0, 1), speed)] = measured.pairs[..] else { panic!("{measured:?}") };
            assert!(speed.bytes_per_s > 1e6 && speed.latency_s > 0.0 && speed.latency_s < 1.0, "{speed:?}");
        }
        let seen = on_all(2, move |comm| {
            let own = if comm.rank() == 0 { &lo[..0] } else { &lo[..] };
            by_tcp(&comm, own, Duration::from_millis(200)).unwrap()
        });
        assert!(seen.iter().all(|m| m.pairs.is_empty() && m.troubles.len() == 2), "{seen:?}");
        assert!(seen[0].troubles[0].contains("rank 0 cannot listen: no interface is up"), "{seen:?}");
    }

    #[test]
    fn a_stranger_is_not_measured() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let _stranger = connect(address, 1).unwrap();
        let friend = connect(address, 7).unwrap();
        assert_eq!(accept(&listener, 7).unwrap().peer_addr().unwrap(), friend.local_addr().unwrap());
    }
}
