//! Collectives on exactly representable integers, bit for bit, in worlds of several sizes.

use comm::{CommError, Communicator, Op, Sockets, Solo, Threads};
use std::net::{TcpListener, TcpStream};
use std::thread;

const SIZES: [usize; 5] = [1, 2, 3, 4, 8];

/// How the ranks of a world are made.
#[derive(Clone, Copy, Debug)]
enum World {
    Threads,
    Sockets,
}

const WORLDS: [World; 2] = [World::Threads, World::Sockets];

impl World {
    fn of(self, size: usize) -> Vec<Box<dyn Communicator>> {
        match self {
            Self::Threads => Threads::world(size).into_iter().map(|c| Box::new(c) as _).collect(),
            Self::Sockets => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let pair = |_| {
                    let member = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    (listener.accept().unwrap().0, member)
                };
                let (hub, members): (Vec<_>, Vec<_>) = (1..size).map(pair).unzip();
                hub.iter().chain(&members).for_each(|s| s.set_nodelay(true).unwrap());
                let members = members.into_iter().zip(1..).map(|(s, rank)| Sockets::member(rank, size, s));
                std::iter::once(Sockets::hub(hub)).chain(members).map(|c| Box::new(c) as _).collect()
            }
        }
    }
}

/// Runs `rank` as each rank of a world; results in rank order.
fn run<T: Send>(world: World, size: usize, rank: impl Fn(Box<dyn Communicator>) -> T + Sync) -> Vec<thread::Result<T>> {
    thread::scope(|s| {
        let handles: Vec<_> = world.of(size).into_iter().map(|c| s.spawn(|| rank(c))).collect();
        handles.into_iter().map(|h| h.join()).collect()
    })
}

fn run_ok<T: Send>(world: World, size: usize, rank: impl Fn(Box<dyn Communicator>) -> T + Sync) -> Vec<T> {
    run(world, size, rank).into_iter().map(|r| r.unwrap()).collect()
}

fn worlds() -> impl Iterator<Item = (World, usize)> {
    WORLDS.into_iter().flat_map(|world| SIZES.map(|size| (world, size)))
}

/// The integer of a rank at an index; sums over 8 ranks stay below 2^24.
fn value(rank: usize, i: usize) -> u32 {
    (rank * 7919 + i * 104_729) as u32 % 1_000_003
}

#[test]
fn sums_are_the_one_right_integer() {
    for (world, size) in worlds() {
        for len in [0, 1, 2, 7, 8, 1000] {
            let sums = run_ok(world, size, |c| {
                let mut a: Vec<f32> = (0..len).map(|i| value(c.rank(), i) as f32).collect();
                let mut b: Vec<f64> = (0..len).map(|i| f64::from(value(c.rank(), i)) * 2f64.powi(30)).collect();
                c.all_reduce_sum(&mut a).unwrap();
                c.all_reduce_sum_f64(&mut b).unwrap();
                (a, b)
            });
            let right: Vec<u32> = (0..len).map(|i| (0..size).map(|r| value(r, i)).sum()).collect();
            for (a, b) in sums {
                assert_eq!(a, right.iter().map(|&x| x as f32).collect::<Vec<_>>());
                assert_eq!(b, right.iter().map(|&x| f64::from(x) * 2f64.powi(30)).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn sums_are_taken_in_rank_order() {
    // In any other order the sum of these four is 0 or 2, or 1 at another place.
    let terms = [1e8f32, 1.0, -1e8, 1.0];
    let right = ((terms[0] + terms[1]) + terms[2]) + terms[3];
    assert_eq!(right, 1.0);
    for world in WORLDS {
        for sums in run_ok(world, 4, |c| {
            let mut data = vec![terms[c.rank()]; 9];
            c.all_reduce_sum(&mut data).unwrap();
            data
        }) {
            assert_eq!(sums, [right; 9]);
        }
    }
    // A sum over one rank changes no bit, the sign of zero included.
    let mut zero = [-0.0f32];
    for world in WORLDS {
        run_ok(world, 1, |c| {
            let mut z = [-0.0f32];
            c.all_reduce_sum(&mut z).unwrap();
            assert_eq!(z[0].to_bits(), (-0.0f32).to_bits());
        });
    }
    Solo::default().all_reduce_sum(&mut zero).unwrap();
    assert_eq!(zero[0].to_bits(), (-0.0f32).to_bits());
}

#[test]
fn broadcast_gather_or_and_barrier() {
    for (world, size) in worlds() {
        run_ok(world, size, |c| {
            let me = c.rank();
            assert_eq!(c.world_size(), size);
            for root in 0..size {
                let mut data = [me as u8; 5];
                c.broadcast(&mut data, root).unwrap();
                assert_eq!(data, [root as u8; 5]);
            }
            let all = c.all_gather(&[me as u8, 255]).unwrap();
            assert_eq!(all, (0..size).flat_map(|r| [r as u8, 255]).collect::<Vec<_>>());
            assert_eq!(c.all_reduce_or(1 << me).unwrap(), (1 << size) - 1);
            assert_eq!(c.all_reduce_or(0).unwrap(), 0);
            let varied = c.all_gather_varied(&vec![me as u8; me]).unwrap();
            assert_eq!(varied, (0..size).map(|r| vec![r as u8; r]).collect::<Vec<_>>());
            c.barrier().unwrap();
        });
    }
}

#[test]
fn a_barrier_lets_nobody_pass_early() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    for (world, size) in worlds() {
        let entered = AtomicUsize::new(0);
        run_ok(world, size, |c| {
            for round in 1..200 {
                entered.fetch_add(1, SeqCst);
                c.barrier().unwrap();
                assert!(entered.load(SeqCst) >= round * size);
                c.barrier().unwrap();
            }
        });
    }
}

#[test]
fn a_rank_that_ends_early_is_named() {
    for (world, size) in worlds().filter(|w| w.1 > 1) {
        for gone in 0..size {
            let results = run_ok(world, size, |c| {
                c.barrier().unwrap();
                if c.rank() == gone { Ok(()) } else { c.all_reduce_sum(&mut [1.0; 10]) }
            });
            for (rank, result) in results.into_iter().enumerate().filter(|(rank, _)| *rank != gone) {
                let reason = "ended early".to_owned();
                let lost = CommError::PeerLost { rank: gone, reason, op: Op::AllReduce, sequence: 1 };
                assert_eq!(result, Err(lost), "rank {rank} of {size}, {world:?}");
            }
        }
    }
}

#[test]
fn a_rank_that_panics_is_named_and_stays_the_culprit() {
    std::panic::set_hook(Box::new(|_| ()));
    for (world, size) in worlds().filter(|w| w.1 > 1) {
        let results = run(world, size, |c| {
            let culprit = size - 1;
            for step in 0.. {
                if c.rank() == culprit && step == 5 {
                    panic!("planted");
                }
                if let Err(e) = c.all_gather(&[step]) {
                    // Later calls tell the same, whoever has left by then.
                    let again = c.barrier().unwrap_err();
                    return (e.to_string(), again.to_string());
                }
            }
            unreachable!()
        });
        assert!(results[size - 1].is_err());
        for result in &results[..size - 1] {
            let (e, again) = result.as_ref().unwrap();
            assert_eq!(e, &format!("rank {} is gone (panicked); found in all_gather #5", size - 1));
            assert_eq!(again, &format!("rank {} is gone (panicked); found in barrier #5", size - 1));
        }
    }
    let _ = std::panic::take_hook();
}

#[test]
fn an_abort_reaches_everyone_with_its_reason() {
    for (world, culprit) in WORLDS.into_iter().flat_map(|world| (0..4).map(move |culprit| (world, culprit))) {
        for result in run_ok(world, 4, |c| {
            if c.rank() == culprit {
                c.abort("loss is NaN");
            }
            c.all_reduce_or(1)
        }) {
            let e = result.unwrap_err().to_string();
            assert_eq!(e, format!("rank {culprit} is gone (loss is NaN); found in all_gather #0"));
        }
    }
    let solo = Solo::default();
    solo.barrier().unwrap();
    solo.abort("first");
    solo.abort("second");
    assert!(solo.all_gather(&[1]).unwrap_err().to_string().contains("(first)"));
}

#[test]
fn ranks_that_end_after_the_last_collective_disturb_nobody() {
    for world in WORLDS {
        for _ in 0..150 {
            run_ok(world, 3, |c| c.all_reduce_or(1).unwrap());
        }
    }
}

#[test]
fn different_collectives_are_an_error_on_all_ranks() {
    for world in WORLDS {
        let results = run_ok(world, 3, |c| match c.rank() {
            1 => c.all_gather(&[1, 2]).map(drop),
            _ => {
                let result = c.barrier();
                assert!(matches!(c.barrier(), Err(CommError::PeerLost { rank: 1, .. })), "the world is over");
                result
            }
        });
        for result in results {
            let e = result.unwrap_err().to_string();
            assert_eq!(e, "collective #0: rank 1 called all_gather of 2 bytes, rank 0 called barrier of 0 bytes");
        }
        let results = run_ok(world, 2, |c| c.all_reduce_sum(&mut vec![0.0; 3 + c.rank()]));
        assert!(results.iter().all(|r| matches!(r, Err(CommError::Mismatch { rank: 1, .. }))));
    }
}

#[test]
fn a_world_of_trait_objects() {
    let solo: Box<dyn Communicator> = Box::new(Solo::default());
    assert_eq!((solo.rank(), solo.world_size()), (0, 1));
    assert_eq!(solo.all_gather_varied(b"xy").unwrap(), [b"xy".to_vec()]);
    assert_eq!(solo.all_reduce_or(5).unwrap(), 5);
    let mut data = *b"abc";
    solo.broadcast(&mut data, 0).unwrap();
    assert_eq!(&data, b"abc");
}
