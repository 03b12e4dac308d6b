//! NCCL through the stand-in of `simgpu/`, which `LD_LIBRARY_PATH` names; without it skipped aloud. Ranks are processes, and
//! threads of one process. Sums are of integers that every type holds exactly, so they are compared bit for bit.

mod gpu;
mod rank;
mod world;

use std::fs;
use world::{Devices, Process, play, ready, start, this_program};

/// Not a test: a rank that another test has started.
#[test]
fn plays_its_case() {
    if let Ok(case) = std::env::var("CASE") {
        rank::play(&case);
    }
}

#[test]
fn a_missing_or_foreign_library_is_an_error_that_says_where() {
    let says = |path: &str| {
        let mut process = Process::start(this_program("open").env("RETORT_NCCL_LIB", path));
        let word = process.hears();
        process.succeeds();
        word
    };
    let missing = says("/nowhere/libnccl.so.2");
    assert!(missing.contains("/nowhere/libnccl.so.2") && missing.contains("RETORT_NCCL_LIB"), "{missing}");
    let foreign = says("libc.so.6");
    assert!(foreign.starts_with("NCCL in libc.so.6 has no ncclGetVersion"), "{foreign}");
}

#[test]
fn version_and_id_need_no_gpu() {
    if !ready() {
        return;
    }
    let library = comm::Library::open().unwrap();
    assert_eq!((library.version(), comm::version_text(library.version()).as_str()), (22_809, "2.28.9"));
    assert_ne!(comm::Nccl::unique_id(&library).unwrap(), comm::Nccl::unique_id(&library).unwrap());
    let mut process = start("no_gpu", 1, Devices::Own, &[("SIMGPU_DEVICES", "0")]).remove(0);
    let word = process.hears();
    assert!(word.contains("ncclCommInitRankConfig on rank 0: ncclUnhandledCudaError (1)"), "{word}");
    process.succeeds();
}

#[test]
fn collectives_are_exact() {
    if ready() {
        play("collectives", 2, Devices::Own, &[]);
        play("collectives", 4, Devices::Shared, &[]);
    }
}

#[test]
fn graphs_replay_collectives() {
    if ready() {
        play("graph", 2, Devices::Shared, &[]);
        play("graph", 4, Devices::Own, &[]);
    }
}

#[test]
fn collectives_follow_their_streams() {
    if ready() {
        play("streams", 2, Devices::Own, &[("SIMGPU_ASYNC", "late")]);
        play("streams", 2, Devices::Shared, &[("SIMGPU_ASYNC", "early")]);
    }
}

#[test]
fn work_goes_on_though_its_program_waits_elsewhere() {
    if !ready() {
        return;
    }
    let mut ranks = start("ahead", 2, Devices::Own, &[("SIMGPU_ASYNC", "late")]);
    assert_eq!(ranks[1].hears(), "submitted");
    ranks[0].go_on();
    assert_eq!((ranks[0].hears(), ranks[0].hears()), ("submitted".to_owned(), "summed".to_owned()));
    ranks[1].go_on();
    ranks.into_iter().for_each(Process::succeeds);
}

#[test]
fn groups_end_and_nest() {
    if ready() {
        play("group", 2, Devices::Own, &[]);
    }
}

#[test]
fn ranks_may_be_threads() {
    if ready() {
        let mut command = this_program("threads");
        Process::start(command.env("CASE_WORLD", "3").env("SIMGPU_DEVICES", "4")).succeeds();
    }
}

#[test]
fn wrong_arguments_are_refused_and_forgotten() {
    if ready() {
        play("refused", 2, Devices::Own, &[]);
    }
}

#[test]
fn joining_alone_ends_at_the_limit() {
    if !ready() {
        return;
    }
    let mut ranks = start("alone", 2, Devices::Own, &[]);
    ranks[1].child.kill().unwrap();
    ranks[1].child.wait().unwrap();
    let word = ranks[0].hears();
    // The other may have joined before it was killed; then it is named as one that shares the GPU.
    assert!(word.contains("still in progress after 0.1 s") || word.contains("Duplicate GPU"), "{word}");
}

#[test]
fn two_ranks_on_one_gpu_are_told() {
    if !ready() {
        return;
    }
    for mut rank in start("duplicate", 2, Devices::Own, &[]) {
        let word = rank.hears();
        assert!(word.contains("ncclInvalidUsage (5)") && word.contains("Duplicate GPU"), "{word}");
        rank.succeeds();
    }
}

#[test]
fn different_calls_are_an_error_on_all() {
    if ready() {
        play("mismatch", 2, Devices::Own, &[]);
    }
}

/// Starts two watched ranks with a fault, up to the sum that it hits.
fn watched(settings: &[(&str, &str)]) -> [Process; 2] {
    let mut ranks = start("watched", 2, Devices::Own, settings);
    for rank in &mut ranks {
        assert_eq!(rank.hears(), "waits");
    }
    ranks.try_into().ok().unwrap()
}

#[test]
fn an_abort_by_all_frees_a_hung_world_and_one_alone_waits() {
    if !ready() {
        return;
    }
    let [mut a, mut b] = watched(&[("SIMNCCL_FAULT", "rank=1,op=all_reduce,seq=1,do=hang")]);
    a.go_on();
    a.is_silent();
    b.go_on();
    for mut rank in [a, b] {
        assert_eq!((rank.hears(), rank.hears()), ("aborted".to_owned(), "ends".to_owned()));
        rank.succeeds();
    }
}

#[test]
fn an_error_of_one_rank_is_its_own() {
    if !ready() {
        return;
    }
    let [mut a, mut b] = watched(&[("SIMNCCL_FAULT", "rank=1,seq=1,do=async_error")]);
    let word = b.hears();
    assert!(word.contains("on rank 1: ncclSystemError (2): rank 1: an error at all_reduce"), "{word}");
    a.is_silent();
    a.go_on();
    b.go_on();
    for mut rank in [a, b] {
        assert_eq!((rank.hears(), rank.hears()), ("aborted".to_owned(), "ends".to_owned()));
        rank.succeeds();
    }
}

#[test]
fn an_abort_that_hangs_leaves_the_others_free() {
    if !ready() {
        return;
    }
    let fault = "rank=1,op=all_reduce,seq=1,do=hang;rank=1,do=abort_hangs";
    let [mut a, mut b] = watched(&[("SIMNCCL_FAULT", fault)]);
    a.go_on();
    b.go_on();
    assert_eq!(a.hears(), "aborted");
    b.is_silent();
    b.child.kill().unwrap();
    a.succeeds();
}

#[test]
fn a_rank_that_leaves_hangs_the_others_or_is_an_error() {
    if !ready() {
        return;
    }
    let fault = ("SIMNCCL_FAULT", "rank=1,op=all_reduce,seq=1,do=exit");
    let [mut a, b] = watched(&[fault]);
    assert_eq!(b.ends().0, Some(1));
    a.is_silent();
    a.go_on();
    assert_eq!((a.hears(), a.hears()), ("aborted".to_owned(), "ends".to_owned()));
    a.succeeds();

    let [mut a, b] = watched(&[fault, ("SIMNCCL_PEER_DEATH", "error")]);
    assert_eq!(b.ends().0, Some(1));
    let word = a.hears();
    assert!(word.contains("ncclRemoteError (6): rank 0: the process of rank 1 is gone"), "{word}");
    a.go_on();
    assert_eq!((a.hears(), a.hears()), ("aborted".to_owned(), "ends".to_owned()));
    a.succeeds();
}

#[test]
fn a_killed_rank_leaves_nothing_behind() {
    if !ready() {
        return;
    }
    let [mut a, mut b] = watched(&[("SIMNCCL_FAULT", "rank=1,op=all_reduce,seq=1,do=hang")]);
    b.child.kill().unwrap();
    assert_eq!(b.ends().0, None);
    a.go_on();
    assert_eq!(a.hears(), "aborted");
    a.succeeds();
    let left: Vec<_> = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("nccl")), "{left:?}");
}

#[test]
fn delays_and_wrong_bits_come_where_they_were_ordered() {
    if !ready() {
        return;
    }
    play("wrong_bits", 2, Devices::Own, &[("SIMNCCL_FAULT", "rank=1,op=all_reduce,seq=1,do=wrong_bits")]);
    play("delay", 2, Devices::Own, &[("SIMNCCL_FAULT", "rank=1,op=all_reduce,seq=1,do=delay=200")]);
}

#[test]
fn an_order_that_cannot_be_read_is_refused() {
    if !ready() {
        return;
    }
    let rank = start("collectives", 1, Devices::Own, &[("SIMNCCL_FAULT", "rank=0,do=dance")]).remove(0);
    let (code, errors) = rank.ends();
    assert_eq!(code, Some(2));
    assert!(errors.contains("do=dance is not known; expected rank=R"), "{errors}");
}
