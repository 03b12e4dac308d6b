//! Collectives over TCP: sizes beyond any socket buffer, and peers that go, lie or say nothing.

use comm::{CommError, Communicator, Sockets, Threads};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Connections between rank 0 and ranks 1 to `size - 1`.
fn wires(size: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pair = |_| {
        let member = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, member)
    };
    (1..size).map(pair).unzip()
}

fn world(size: usize) -> Vec<Sockets> {
    let (hub, members) = wires(size);
    let members = members.into_iter().zip(1..).map(|(s, rank)| Sockets::member(rank, size, s));
    std::iter::once(Sockets::hub(hub)).chain(members).collect()
}

fn run<C: Communicator, T: Send>(world: Vec<C>, rank: impl Fn(C) -> T + Sync) -> Vec<T> {
    thread::scope(|s| {
        let handles: Vec<_> = world.into_iter().map(|c| s.spawn(|| rank(c))).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

/// Floats of all magnitudes whose sums depend on the order.
fn float(rank: usize, i: usize) -> f32 {
    let hash = (i as u32).wrapping_mul(0x9e37_79b9).wrapping_add(rank as u32 * 0x85eb_ca6b);
    (hash as i32 as f32) * [1e-9, 1.0, 1e6][(hash >> 7) as usize % 3]
}

#[test]
fn sums_equal_those_of_threads_bit_for_bit() {
    // Around the size of a part, 32,768 values of f32.
    for len in [32_767, 32_768, 32_769, 100_003] {
        let sum = |c: &dyn Communicator| {
            let mut a: Vec<f32> = (0..len).map(|i| float(c.rank(), i)).collect();
            let mut b: Vec<f64> = a.iter().map(|&x| f64::from(x) / 3.0).collect();
            c.all_reduce_sum(&mut a).unwrap();
            c.all_reduce_sum_f64(&mut b).unwrap();
            (a, b)
        };
        let threads = run(Threads::world(4), |c| sum(&c));
        let sockets = run(world(4), |c| sum(&c));
        for (a, b) in sockets {
            assert!(a.iter().zip(&threads[0].0).all(|(x, y)| x.to_bits() == y.to_bits()));
            assert!(b.iter().zip(&threads[0].1).all(|(x, y)| x.to_bits() == y.to_bits()));
        }
    }
}

/// Passes bytes on from one connection to the other, 16 KiB every 2 ms: a link of 8 MB/s.
fn narrow(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        thread::sleep(Duration::from_millis(2));
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn a_slow_link_shows_in_the_time_that_its_bytes_take_to_arrive_and_in_no_other() {
    let (hub, mut members) = wires(4);
    // The second member's goes by way of a narrow one.
    let (mut near, mut far) = wires(2);
    let (near, far) = (near.remove(0), far.remove(0));
    let direct = std::mem::replace(&mut members[1], far);
    let copies = [(near.try_clone(), direct.try_clone()), (direct.try_clone(), near.try_clone())];
    for (from, to) in copies {
        let (from, to) = (from.unwrap(), to.unwrap());
        thread::spawn(move || narrow(from, to));
    }
    let members = members.into_iter().zip(1..).map(|(s, rank)| Sockets::member(rank, 4, s));
    let times = run(std::iter::once(Sockets::hub(hub)).chain(members).collect(), |c| {
        let mut data = vec![1.0_f32; 64 << 10];
        (0..4).for_each(|_| c.all_reduce_sum(&mut data).unwrap());
        c.arriving()
    });
    // 1 MiB at 8 MB/s, less what came with the first byte of each answer.
    let [None, Some(fast), Some(slow), Some(other)] = times[..] else { panic!("{times:?}") };
    assert!(slow > Duration::from_millis(80) && slow > 3 * fast.max(other), "{times:?}");
}

#[test]
fn payloads_far_beyond_the_buffers_pass_both_ways() {
    const N: usize = 24 << 20;
    let checks = run(world(3), |c| {
        let mut data = vec![c.rank() as f32 + 1.0; N];
        c.all_reduce_sum(&mut data).unwrap();
        assert!(data.iter().all(|&x| x == 6.0));
        let mut bytes = vec![c.rank() as u8; N];
        for root in [2, 0] {
            bytes[N - 1] = c.rank() as u8;
            c.broadcast(&mut bytes, root).unwrap();
            assert!(bytes.iter().all(|&b| b == 2 || root == 0 && b == 0), "{root}");
        }
        let all = c.all_gather(&bytes[..N / 4 + 1]).unwrap();
        all.len()
    });
    assert_eq!(checks, [3 * (N / 4 + 1); 3]);
}

#[test]
fn unequal_lengths_keep_their_order_and_size() {
    let lengths = [0, 300_001, 7, 131_072];
    for all in run(world(4), |c| c.all_gather_varied(&vec![c.rank() as u8; lengths[c.rank()]]).unwrap()) {
        let right: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(rank, &n)| vec![rank as u8; n]).collect();
        assert_eq!(all, right);
    }
    let nothing = run(world(2), |c| c.all_gather_varied(&[]).unwrap());
    assert!(nothing.iter().all(|all| *all == [Vec::<u8>::new(), Vec::new()]));
}

#[test]
fn a_rank_lost_between_parts_is_named_on_all() {
    let (hub, mut members) = wires(4);
    let gone = members.pop().unwrap();
    let mut ranks = vec![Sockets::hub(hub)];
    ranks.extend(members.into_iter().zip(1..).map(|(s, rank)| Sockets::member(rank, 4, s)));
    // Rank 3 takes part in the first part and is killed.
    let rank3 = Sockets::member(3, 4, gone.try_clone().unwrap());
    let killed = thread::spawn(move || {
        let _ = rank3.all_reduce_sum(&mut vec![1.0; 32_768]);
        gone.shutdown(Shutdown::Both).unwrap();
    });
    for (rank, result) in run(ranks, |c| {
        // A later collective fails alike, and at once.
        let first = c.all_reduce_sum(&mut vec![1.0; 32_768]).and_then(|()| c.all_reduce_sum(&mut vec![1.0; 1 << 20]));
        assert!(c.barrier().is_err());
        first
    })
    .into_iter()
    .enumerate()
    {
        let Err(CommError::PeerLost { rank: 3, reason, sequence: 1, .. }) = result else {
            panic!("{rank}: {result:?}")
        };
        assert_eq!(reason, "ended early");
    }
    killed.join().unwrap();
}

#[test]
fn the_reason_of_rank_0_is_heard_without_its_help() {
    let mut ranks = world(2);
    let (member, hub) = (ranks.pop().unwrap(), ranks.pop().unwrap());
    hub.abort("disk full");
    // Rank 0 does not read any more, and the post is not small.
    let error = member.all_gather(&vec![7; 50 << 20]).unwrap_err().to_string();
    assert_eq!(error, "rank 0 is gone (disk full); found in all_gather #0");
    assert_eq!(hub.barrier().unwrap_err().to_string(), "rank 0 is gone (disk full); found in barrier #0");
    drop(hub);
    assert_eq!(member.barrier().unwrap_err().to_string(), "rank 0 is gone (disk full); found in barrier #0");
}

#[test]
fn a_connection_that_ends_is_a_lost_rank() {
    let (hub, members) = wires(2);
    drop(members);
    let error = Sockets::hub(hub).barrier().unwrap_err().to_string();
    assert_eq!(error, "rank 1 is gone (ended early); found in barrier #0");
    let (hub, mut members) = wires(2);
    drop(hub);
    let error = Sockets::member(1, 2, members.pop().unwrap()).barrier().unwrap_err().to_string();
    assert_eq!(error, "rank 0 is gone (ended early); found in barrier #0");
}

#[test]
fn bytes_that_are_no_message_are_an_error_that_names_the_rank() {
    let (hub, mut members) = wires(3);
    let mut liar = members.pop().unwrap();
    liar.write_all(&[255; 64]).unwrap();
    let honest = Sockets::member(1, 3, members.pop().unwrap());
    for result in run(vec![Sockets::hub(hub), honest], |c| c.all_reduce_or(1)) {
        let Err(CommError::PeerLost { rank: 2, reason, .. }) = result else { panic!("{result:?}") };
        assert_eq!(reason, "a message of 4294967295 bytes, at most 1048576 are expected here");
    }
}
