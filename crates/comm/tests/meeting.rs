//! Ranks that find each other over the loopback, each in a thread: the three ways to meet, refusals, and strangers.

use comm::meeting::{By, Links, MeetingError, MeetingLimits, Met, meet, ports_of_job};
use comm::member::Member;
use comm::{Communicator, Invitation, Secret};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

fn limits() -> MeetingLimits {
    let rendezvous = Duration::from_secs(30);
    MeetingLimits { rendezvous, interface: Some("lo".into()), ..MeetingLimits::default() }
}

fn member(rank: u32, world_size: u32) -> Member {
    Member { rank, world_size, host: "n01".into(), pid: 100 + rank, device: "cpu".into(), ..Member::default() }
}

fn members(world_size: u32) -> Vec<Member> {
    (0..world_size).map(|rank| member(rank, world_size)).collect()
}

fn secret(byte: u8) -> Secret {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, [byte; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    Secret::from_file(&path).unwrap()
}

/// Carries an invitation between threads, and shows it to the test.
#[derive(Clone, Default)]
struct Board(Arc<(Mutex<Option<Vec<u8>>>, Condvar)>);

impl Board {
    fn by(&self) -> By {
        let board = self.clone();
        By::Carried(Box::new(move |bytes| {
            if let Some(bytes) = bytes {
                *board.0.0.lock().unwrap() = Some(bytes);
                board.0.1.notify_all();
            }
            Ok(board.wait())
        }))
    }

    fn wait(&self) -> Vec<u8> {
        let shown = self.0.1.wait_while(self.0.0.lock().unwrap(), |bytes| bytes.is_none()).unwrap();
        shown.clone().unwrap()
    }

    /// Where rank 0 listens, once it does.
    fn addresses(&self) -> Vec<SocketAddr> {
        Invitation::decode(&self.wait()).unwrap().addresses
    }
}

type Outcome = Result<Met, MeetingError>;

fn all_meet(members: Vec<Member>, limits: &MeetingLimits, by: impl Fn() -> By + Sync) -> Vec<Outcome> {
    thread::scope(|s| {
        let by = &by;
        let handles: Vec<_> = members.into_iter().map(|m| s.spawn(move || meet(m, "job", by(), limits))).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

/// Checks that everything works that the outcome holds.
fn use_all(met: Vec<Outcome>, size: u32) {
    thread::scope(|s| {
        for (rank, met) in met.into_iter().enumerate() {
            s.spawn(move || {
                let Met { members, mut links, world } = met.unwrap();
                assert_eq!(members.iter().map(|m| m.rank).collect::<Vec<_>>(), (0..size).collect::<Vec<_>>());
                assert!(members.iter().all(|m| m.local_rank.is_some()));
                assert_eq!(world.rank(), rank);
                assert_eq!(world.all_gather(&[rank as u8]).unwrap(), (0..size as u8).collect::<Vec<_>>());
                match &mut links {
                    Links::Hub(members) => {
                        for (rank, link) in members {
                            let mut byte = [0];
                            link.read_exact(&mut byte).unwrap();
                            assert_eq!(byte, [*rank as u8]);
                            assert!(link.nodelay().unwrap());
                        }
                    }
                    Links::Member(link) => link.write_all(&[rank as u8]).unwrap(),
                }
                world.barrier().unwrap();
            });
        }
    });
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn texts(outcomes: Vec<Outcome>) -> Vec<(u8, bool, String)> {
    outcomes.into_iter().map(|o| o.err().unwrap()).map(|e| (e.code(), e.said(), e.to_string())).collect()
}

#[test]
fn by_file_by_address_and_carried() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meeting/job-1");
    use_all(all_meet(members(3), &limits(), || By::File(path.clone())), 3);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "the invitation is gone");
    let address = format!("127.0.0.1:{}", free_port());
    let known = || By::Known { address: address.clone(), secret: secret(1) };
    use_all(all_meet(members(2), &limits(), known), 2);
    let board = Board::default();
    use_all(all_meet(members(4), &limits(), || board.by()), 4);
    // All interfaces of this host, the names of which nobody knows.
    let board = Board::default();
    let any = MeetingLimits { interface: None, ..limits() };
    use_all(all_meet(members(2), &any, || board.by()), 2);
    use_all(all_meet(members(1), &any, || By::File("/nowhere/at/all".into())), 1);
}

/// Ports of a job that are all free, with listeners on them.
fn ports() -> (Vec<u16>, Vec<TcpListener>) {
    let job = |n: u32| ports_of_job(&format!("{}.{n}", std::process::id()));
    let listen = |&port: &u16| TcpListener::bind(("127.0.0.1", port)).ok();
    let listeners = |ports: &[u16]| ports.iter().map(listen).collect::<Option<Vec<_>>>();
    (0..).map(job).find_map(|ports| Some((ports.clone(), listeners(&ports)?))).expect("some job's ports are free")
}

#[test]
fn ports_of_a_job_are_few_and_its_own() {
    let ports = ports_of_job("77.2");
    assert_eq!((ports.len(), &ports), (16, &ports_of_job("77.2")));
    assert!(
        ports.is_sorted() && ports[0] >= 16_384 && ports[15] < 32_768 && ports != ports_of_job("77.3"),
        "{ports:?}"
    );
}

#[test]
fn by_ports_of_the_job_beside_strangers_and_another_job() {
    let (ports, mut taken) = ports();
    // The third port is free again, and all after it. The first two are a stranger who says nothing, and one who says too much.
    taken.truncate(2);
    let noise = taken.pop().unwrap();
    let limits = MeetingLimits { handshake: Duration::from_secs(1), ..limits() };
    let by = |byte| By::Ports { host: "127.0.0.1".into(), ports: ports.clone(), secret: secret(byte) };
    thread::scope(|s| {
        s.spawn(|| {
            // Until the test says that it is over.
            while let Ok((mut stranger, _)) = noise.accept() {
                let mut byte = [0];
                if stranger.read(&mut byte).unwrap_or(0) > 0 && byte == [b'.'] {
                    return;
                }
                let _ = stranger.write_all(&[255; 300]);
            }
        });
        let jobs = [1, 2].map(|byte| {
            s.spawn({
                let (by, limits) = (&by, &limits);
                move || use_all(all_meet(members(3), limits, || by(byte)), 3)
            })
        });
        let met = jobs.map(|job| job.join());
        TcpStream::connect(("127.0.0.1", ports[1])).unwrap().write_all(b".").unwrap();
        assert!(met.iter().all(|job| job.is_ok()), "both jobs meet");
    });
    drop(taken);
}

#[test]
fn ports_that_are_all_taken_are_told() {
    let (ports, _taken) = ports();
    let by = |ports: &[u16]| By::Ports { host: "127.0.0.1".into(), ports: ports.to_vec(), secret: secret(1) };
    let error = meet(member(0, 2), "job", by(&ports), &limits()).err().unwrap();
    let (last, text) = (ports[15], error.to_string());
    assert_eq!(error.code(), 69);
    assert!(text.starts_with(&format!("rank 0 cannot listen on 127.0.0.1:{last}: ")), "{text}");
    assert!(text.contains(&format!(" nor on any of ports {}-{last}; give one", ports[0])), "{text}");
    // A rank that finds nobody there says it once for all of them, and first of all its own trouble.
    drop(_taken);
    let short = MeetingLimits { rendezvous: Duration::from_millis(300), ..limits() };
    let lonely = Member { trouble: Some((65, "no data".into())), ..member(1, 2) };
    let error = meet(lonely, "job", by(&ports), &short).err().unwrap();
    let text = error.to_string();
    assert_eq!((error.code(), error.said()), (65, false));
    assert!(text.starts_with("no data; besides, rank 1 did not find rank 0 in 300ms: 127.0.0.1:"), "{text}");
    assert!(text.contains(&format!("{} and 15 more: Connection refused", ports[0])), "{text}");
}

#[test]
fn local_ranks_come_from_hosts_where_the_launcher_gave_none() {
    let mut world = members(4);
    world[1].host = "n02".into();
    world[3].host = "n02".into();
    world[3].local_rank = Some(0);
    let board = Board::default();
    for met in all_meet(world, &limits(), || board.by()) {
        let members = met.unwrap().members;
        let places: Vec<_> = members.iter().map(|m| (m.host.as_str(), m.local_rank.unwrap())).collect();
        assert_eq!(places, [("n01", 0), ("n02", 1), ("n01", 1), ("n02", 0)]);
    }
}

#[test]
fn a_late_peer_joins_whatever_strangers_did_before() {
    let board = Board::default();
    // A stranger that says nothing is not waited for longer than this.
    let limits = MeetingLimits { handshake: Duration::from_secs(1), ..limits() };
    thread::scope(|s| {
        let rank0 = s.spawn(|| meet(member(0, 2), "job", board.by(), &limits));
        let addresses = board.addresses();
        // A port scan, then words that are no handshake; an end of the connection is the only answer.
        addresses.iter().for_each(|a| drop(TcpStream::connect(a).unwrap()));
        let oversize = [&257u32.to_le_bytes()[..], &[0; 257]].concat();
        for words in
            [&b"GET / HTTP/1.1\r\nHost: n01\r\n\r\n"[..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc], &[255; 300], &oversize]
        {
            let mut stranger = TcpStream::connect(addresses[0]).unwrap();
            stranger.write_all(words).unwrap();
            let _ = stranger.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stranger.read_to_end(&mut answer);
            assert!(answer.is_empty(), "{words:?}: {answer:?}");
        }
        // More half-open connections than there are places; they stay open until the meeting is over.
        let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(addresses[0]).unwrap()).collect();
        let rank1 = s.spawn(|| meet(member(1, 2), "job", board.by(), &limits));
        use_all(vec![rank0.join().unwrap(), rank1.join().unwrap()], 2);
        drop(silent);
    });
}

#[test]
fn an_oversize_frame_is_not_read() {
    let board = Board::default();
    thread::scope(|s| {
        let rank0 = s.spawn(|| meet(member(0, 2), "job", board.by(), &limits()));
        let mut stranger = TcpStream::connect(board.addresses()[0]).unwrap();
        // The length alone, and the connection stays open on this side: rank 0 hangs up.
        stranger.write_all(&257u32.to_le_bytes()).unwrap();
        assert_eq!(stranger.read(&mut [0; 8]).unwrap(), 0);
        let rank1 = meet(member(1, 2), "job", board.by(), &limits());
        use_all(vec![rank0.join().unwrap(), rank1], 2);
    });
}

/// A folder that only its owner may enter.
fn private_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

/// What rank 0 of a job that is dead now left behind.
fn leave_stale(path: &Path) -> Vec<SocketAddr> {
    let board = Board::default();
    let short = MeetingLimits { rendezvous: Duration::from_millis(1), ..limits() };
    assert!(meet(member(0, 2), "job", board.by(), &short).is_err());
    fs::write(path, board.wait()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    board.addresses()
}

#[test]
fn the_file_of_a_dead_job_is_read_again_until_it_is_replaced() {
    let dir = private_folder();
    let path = dir.path().join("job");
    let addresses = leave_stale(&path);
    // Something else has the port by now.
    let other = TcpListener::bind(addresses[0]).unwrap();
    let limits = limits();
    thread::scope(|s| {
        let (path, limits) = (&path, &limits);
        let rank1 = s.spawn(move || meet(member(1, 2), "job", By::File(path.clone()), limits));
        drop(other.accept().unwrap());
        // From here on the connection is refused.
        drop(other);
        let rank0 = meet(member(0, 2), "job", By::File(path.clone()), limits);
        use_all(vec![rank0, rank1.join().unwrap()], 2);
    });
    assert!(!path.exists());
}

#[test]
fn another_secret_or_another_job_does_not_come_in() {
    let short = MeetingLimits { rendezvous: Duration::from_millis(800), ..limits() };
    let address = format!("127.0.0.1:{}", free_port());
    let known = |byte| By::Known { address: address.clone(), secret: secret(byte) };
    let board = Board::default();
    for case in ["secret", "job"] {
        let by = |byte| if case == "secret" { known(byte) } else { board.by() };
        let (one, two) = thread::scope(|s| {
            let (short, by) = (&short, &by);
            let rank0 = s.spawn(move || meet(member(0, 2), "job", by(1), short));
            let rank1 = s.spawn(move || meet(member(1, 2), if case == "job" { "jub" } else { "job" }, by(2), short));
            (rank0.join().unwrap().err().unwrap(), rank1.join().unwrap().err().unwrap())
        });
        assert_eq!((one.code(), one.said(), two.code(), two.said()), (69, false, 69, false));
        let (one, two) = (one.to_string(), two.to_string());
        assert!(one.starts_with("rank 1 of 2 missing after 800ms; rank 0 listens on 127.0.0.1:"), "{one}");
        assert!(one.contains("connections without proof of belonging to this job"), "{one}");
        assert!(two.starts_with("rank 1 did not find rank 0 in 800ms: 127.0.0.1:"), "{two}");
        assert!(two.contains("no proof of belonging to this job: another job, or another secret"), "{two}");
    }
}

#[test]
fn members_that_do_not_fit_are_refused_on_all_ranks_at_once() {
    type Change = fn(&mut Member);
    let cases: [(u8, &str, Change); 7] = [
        (78, "two processes are rank 1 of this job: host n01, pid 101 and host n01, pid 102", |m| {
            m.rank = m.rank.min(1)
        }),
        (78, "world sizes differ: rank 2 of 4, rank 0 (host n01, pid 100) of 3", |m| {
            m.world_size += u32::from(m.rank == 2)
        }),
        (64, "different recipes: ranks 1 and 2 (host n01) 07", |m| m.recipe[0] = if m.rank > 0 { 7 } else { 0 }),
        (78, "different programs: rank 2 (host n01) 07", |m| m.program[0] = if m.rank > 1 { 7 } else { 0 }),
        (
            78,
            "GPU-3f is used by ranks 0 and 1 on host n01; unset CUDA_VISIBLE_DEVICES or set RETORT_SHARE_GPU=1",
            |m| {
                m.uuid = format!("GPU-3{}", ["f", "f", "e"][m.rank as usize]);
            },
        ),
        (78, "NCCL versions differ: rank 1 (host n01) 2.27.5, rank 0 (host n01) 2.28.9", |m| {
            m.nccl = if m.rank == 1 { 22705 } else { 22809 };
        }),
        (65, "rank 0: no such folder /a\nranks 1 and 2: no such folder /b", |m| {
            m.trouble =
                Some(if m.rank == 0 { (65, "no such folder /a".into()) } else { (78, "no such folder /b".into()) });
        }),
    ];
    for (code, text, change) in cases {
        let mut world = members(3);
        world.iter_mut().for_each(change);
        let board = Board::default();
        let begun = Instant::now();
        let limits = MeetingLimits { handshake: Duration::from_secs(1), ..limits() };
        let outcomes = texts(all_meet(world, &limits, || board.by()));
        // Which of two equals came first is chance.
        let either = text.replace("101", "x").replace("102", "101").replace('x', "102");
        for (rank, (got, said, message)) in outcomes.iter().enumerate() {
            assert_eq!((*got, *said), (code, rank != 0), "{message}");
            assert!(message.starts_with(text) || message.starts_with(&either), "{message}");
            assert_eq!(*message, outcomes[0].2);
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{text}");
    }
    let mut world = members(2);
    world.iter_mut().for_each(|m| m.uuid = "GPU-3f".into());
    let board = Board::default();
    use_all(all_meet(world, &MeetingLimits { share_gpu: true, ..limits() }, || board.by()), 2);
}

#[test]
fn a_wrong_member_does_not_wait_for_the_rest() {
    for change in
        [|m: &mut Member| m.recipe[0] = 1, |m: &mut Member| m.trouble = Some((64, "different recipes".into()))]
    {
        let mut world = members(4);
        world.truncate(2);
        change(&mut world[1]);
        let board = Board::default();
        let limits = MeetingLimits { handshake: Duration::from_secs(1), ..limits() };
        for (code, _, text) in texts(all_meet(world, &limits, || board.by())) {
            assert!(code == 64 && text.contains("different recipes"), "{text}");
        }
    }
}

#[test]
fn who_is_missing_is_said_on_all_ranks() {
    let mut world = members(5);
    world.retain(|m| m.rank < 2);
    let board = Board::default();
    let short = MeetingLimits { rendezvous: Duration::from_millis(700), ..limits() };
    let outcomes = texts(all_meet(world, &short, || board.by()));
    assert!(outcomes[0].2.starts_with("ranks 2-4 of 5 missing after 700ms; rank 0 listens on 127.0.0.1:"));
    assert_eq!((outcomes[0].0, outcomes[0].1), (69, false));
    assert_eq!(outcomes[1], (69, true, outcomes[0].2.clone()));
}

#[test]
fn a_rank_that_leaves_may_come_back() {
    let board = Board::default();
    let short =
        MeetingLimits { rendezvous: Duration::from_millis(300), handshake: Duration::from_millis(300), ..limits() };
    thread::scope(|s| {
        let rank0 = s.spawn(|| meet(member(0, 3), "job", board.by(), &limits()));
        board.wait();
        // On a busy machine it may not even be heard in so short a time.
        while !meet(member(1, 3), "job", board.by(), &short)
            .err()
            .unwrap()
            .to_string()
            .ends_with("it does not say whether to start")
        {}
        let rank1 = s.spawn(|| meet(member(1, 3), "job", board.by(), &limits()));
        let rank2 = meet(member(2, 3), "job", board.by(), &limits());
        use_all(vec![rank0.join().unwrap(), rank1.join().unwrap(), rank2], 3);
    });
}

#[test]
fn mistakes_of_the_launch_are_told_without_the_network() {
    for address in ["n01:0", "n01", ":4000", "n01:70000"] {
        for rank in 0..2 {
            let known = By::Known { address: address.into(), secret: secret(1) };
            let error = meet(member(rank, 2), "job", known, &limits()).err().unwrap();
            assert_eq!((error.code(), error.said()), (64, rank != 0));
            assert!(error.to_string().contains("is not host:port with a port of 1 to 65535"), "{error}");
        }
    }
    let missing = MeetingLimits { interface: Some("ib9".into()), ..limits() };
    let board = Board::default();
    let outcomes = texts(all_meet(members(2), &missing, || board.by()));
    assert!(outcomes[0].0 == 78 && outcomes[0].2.contains("RETORT_IFNAME=ib9: no such interface"), "{outcomes:?}");
    assert!(outcomes[1].1, "{outcomes:?}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let known = By::Known { address, secret: secret(1) };
    let error = meet(member(0, 2), "job", known, &limits()).err().unwrap();
    assert!(error.code() == 69 && error.to_string().ends_with("choose another port"), "{error}");
    let mut alone = member(0, 1);
    alone.trouble = Some((65, "no data".into()));
    let error = meet(alone, "job", Board::default().by(), &limits()).err().unwrap();
    assert_eq!((error.code(), error.to_string().as_str()), (65, "no data"));
}

#[test]
fn a_hundred_meetings_at_once_do_not_meet_each_other() {
    let dir = private_folder();
    thread::scope(|s| {
        for job in 0..100 {
            let path = dir.path().join(format!("job-{job}"));
            s.spawn(move || {
                let any = MeetingLimits { interface: None, ..limits() };
                let name = format!("job-{job}");
                let met = thread::scope(|s| {
                    let (path, any, name) = (&path, &any, &name);
                    let rank1 = s.spawn(move || meet(member(1, 2), name, By::File(path.clone()), any));
                    let rank0 = meet(member(0, 2), name, By::File(path.clone()), any);
                    vec![rank0, rank1.join().unwrap()]
                });
                use_all(met, 2);
            });
        }
    });
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
