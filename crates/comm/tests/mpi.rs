//! MPI ranks under real launchers, Open MPI's and MPICH's: every collective gives the bits of the world of threads.
//!
//! Each test starts this binary as ranks by mpirun, with `RETORT_TEST_RANK` saying what to do and where to leave a mark.
//! The plugins are looked for in `RETORT_MPI_PLUGINS`, else where `tools/build-mpi.sh` puts them. What is missing is
//! skipped, and said.

use comm::mpi::{Mpi, MpiError, find};
use comm::{CommError, Communicator, Op, Threads};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, thread};

const FAMILIES: [&str; 2] = ["openmpi", "mpich"];
/// Elements of the collectives that are compared; the long one is 3 MB of f32.
const SHORT: &[usize] = &[0, 1, 2, 7, 1000];
const LONG: usize = 786_433;

/// Runs `scenario` as `size` ranks of each family, and checks that every rank got to its end.
fn launch(scenario: &str, size: usize) {
    for family in FAMILIES {
        let (mpirun, plugin) = (format!("mpirun.{family}"), plugin(family));
        if Command::new(&mpirun).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            println!("skipped: {scenario} with {family}: there is no {mpirun}");
            continue;
        }
        if !plugin.exists() {
            println!(
                "skipped: {scenario} with {family}: there is no {}; tools/build-mpi.sh makes it",
                plugin.display()
            );
            continue;
        }
        let marks = tempfile::tempdir().unwrap();
        let mut command = Command::new(&mpirun);
        command.args(["-n", &size.to_string()]);
        if family == "openmpi" {
            command.args(["--oversubscribe", "--bind-to", "none"]);
        }
        command.arg(std::env::current_exe().unwrap()).args(["--exact", "as_a_rank", "--nocapture", "--test-threads=1"]);
        command
            .env("RETORT_TEST_RANK", scenario)
            .env("RETORT_TEST_MARKS", marks.path())
            .env("RETORT_TEST_PLUGIN", plugin);
        command
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .env("MPIEXEC_TIMEOUT", "60");
        let output = command.output().unwrap();
        let reached = (0..size).filter(|rank| marks.path().join(format!("done-{rank}")).exists()).count();
        let text = format!(
            "{scenario}, {size} ranks of {family}: {reached} got to the end, {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(reached, size, "{text}");
        // A world that ended in an error does not finalise MPI, which Open MPI calls a failure.
        assert!(output.status.success() || scenario != "collectives", "{text}");
    }
}

fn plugin(family: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let beside = exe.parent().and_then(Path::parent).unwrap().to_path_buf();
    std::env::var_os("RETORT_MPI_PLUGINS").map_or(beside, PathBuf::from).join(format!("libretort_mpi_{family}.so"))
}

/// Not a test by itself: what the processes of the others run.
#[test]
fn as_a_rank() {
    let Ok(scenario) = std::env::var("RETORT_TEST_RANK") else { return };
    let marks = PathBuf::from(std::env::var_os("RETORT_TEST_MARKS").unwrap());
    let plugin = PathBuf::from(std::env::var_os("RETORT_TEST_PLUGIN").unwrap());
    // A file that is not there does not keep the next from being opened.
    let mpi = Mpi::open(&[marks.join("no-such-file.so"), plugin.clone()]).unwrap();
    let (rank, size) = (mpi.rank(), mpi.world_size());
    match scenario.as_str() {
        "collectives" => {
            collectives(mpi, &marks);
            let again = Mpi::open(&[plugin]).err().unwrap();
            assert!(
                matches!(again, MpiError::Start { .. }) && again.to_string().ends_with("once per process"),
                "{again}"
            );
        }
        "mismatch" => mismatch(&mpi),
        "abort" => abort(&mpi),
        other => panic!("no scenario {other}"),
    }
    fs::write(marks.join(format!("done-{rank}")), "").unwrap();
    // MPICH's launcher ends the others when a rank ends without MPI's own end, as it does after an error.
    while scenario != "collectives" && (0..size).any(|rank| !marks.join(format!("done-{rank}")).exists()) {
        thread::yield_now();
    }
}

fn collectives(mpi: Mpi, marks: &Path) {
    let (place, size) = (mpi.place(), mpi.world_size());
    let launcher = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok()).unwrap();
    assert_eq!(place.rank.to_string(), launcher(["OMPI_COMM_WORLD_RANK", "PMI_RANK"]));
    assert_eq!(place.size.to_string(), launcher(["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]));
    assert_eq!((place.local_rank, place.local_size), (place.rank, place.size), "all are on this host");
    assert_eq!((mpi.rank(), size), (place.rank as usize, place.size as usize));
    for round in 0..3 {
        fs::write(marks.join(format!("round-{round}-{}", mpi.rank())), "").unwrap();
        mpi.barrier().unwrap();
        assert!((0..size).all(|rank| marks.join(format!("round-{round}-{rank}")).exists()), "passed the barrier early");
    }
    let bytes: Vec<u8> = (0..1000).map(|i| (i * 7) as u8).collect();
    let given = if mpi.rank() == 0 { Some(bytes.clone()) } else { Some(vec![1; 5]) };
    assert_eq!(mpi.carry(given).unwrap(), bytes);
    assert_eq!(mpi.carry(None).unwrap_err(), "rank 0 has nothing to carry to the other ranks");
    let long = mpi.carry(Some(vec![0; (1 << 20) + 1])).unwrap_err();
    assert_eq!(long, "rank 0 carries 1048577 bytes, at most 1048576 are allowed");

    let mut threads: Vec<Vec<Vec<u8>>> = thread::scope(|s| {
        let handles: Vec<_> = Threads::world(size)
            .into_iter()
            .map(|c| s.spawn(move || results(&c, &[SHORT, &[LONG]].concat())))
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    let expected = threads.swap_remove(mpi.rank());
    // In one call each, and in pieces that divide nothing; from another thread, as a trainer may.
    thread::scope(|s| {
        s.spawn(move || {
            compare(&results(&mpi, &[SHORT, &[LONG]].concat()), &expected);
            let short = results(&mpi.in_pieces(203), SHORT);
            compare(&short, &expected[..short.len()]);
        });
    });
}

fn compare(got: &[Vec<u8>], expected: &[Vec<u8>]) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(got == expected, "result {i}: differs from that of threads");
    }
}

/// The results of every collective at this rank, as bytes.
fn results(c: &dyn Communicator, lengths: &[usize]) -> Vec<Vec<u8>> {
    let (rank, size) = (c.rank(), c.world_size());
    let mut all = Vec::new();
    let mut ordered = vec![[1e8f32, 1.0, -1e8, 1.0][rank % 4]; 9];
    c.all_reduce_sum(&mut ordered).unwrap();
    all.push(bytemuck::cast_slice(&ordered).to_vec());
    let mut zero = [-0.0f32];
    c.all_reduce_sum(&mut zero).unwrap();
    all.push(bytemuck::cast_slice(&zero).to_vec());
    all.push(c.all_reduce_or(1 << rank).unwrap().to_le_bytes().to_vec());
    for &length in lengths {
        // Integers whose sums are exact, and numbers of many magnitudes and signs, whose sums depend on the order.
        let mut whole: Vec<f32> = (0..length).map(|i| ((rank * 7919 + i * 104_729) % 1_000_003) as f32).collect();
        let mut mixed: Vec<f32> = (0..length).map(|i| number(rank, i) as f32).collect();
        let mut double: Vec<f64> = (0..length).map(|i| number(rank, i)).collect();
        c.all_reduce_sum(&mut whole).unwrap();
        c.all_reduce_sum(&mut mixed).unwrap();
        c.all_reduce_sum_f64(&mut double).unwrap();
        let right = (0..length).map(|i| (0..size).map(|r| (r * 7919 + i * 104_729) % 1_000_003).sum::<usize>() as f32);
        assert!(whole.iter().copied().eq(right), "integers have one right sum");
        all.extend([bytemuck::cast_slice(&whole).to_vec(), bytemuck::cast_slice(&mixed).to_vec()]);
        all.push(bytemuck::cast_slice(&double).to_vec());
        for root in [0, size - 1] {
            let mut data: Vec<u8> = (0..length * 4).map(|i| (i * 31 + rank) as u8).collect();
            c.broadcast(&mut data, root).unwrap();
            all.push(data);
        }
        all.push(c.all_gather(&vec![rank as u8 + 1; length]).unwrap());
        all.extend(c.all_gather_varied(&vec![rank as u8 + 1; length * rank / 2]).unwrap());
        c.barrier().unwrap();
    }
    all
}

/// A number of any sign and of magnitude 2^-20 … 2^19, of a rank at an index.
fn number(rank: usize, i: usize) -> f64 {
    let mixed = ((rank * 1_000_003 + i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let sign = if mixed & 1 == 0 { 1.0 } else { -1.0 };
    sign * (1.0 + (mixed >> 12) as f64 * 2f64.powi(-52)) * 2f64.powi((mixed >> 1) as i32 % 40 - 20)
}

/// The same error on all ranks, and in the words of threads; the world is over after it.
fn mismatch(mpi: &Mpi) {
    let last = mpi.world_size() - 1;
    let script = |c: &dyn Communicator| {
        c.barrier().unwrap();
        let result = if c.rank() == last { c.all_gather(&[1, 2]).map(drop) } else { c.broadcast(&mut [0; 3], 1) };
        (result.unwrap_err(), c.all_reduce_sum(&mut [1.0]).unwrap_err())
    };
    let (error, later) = script(mpi);
    let text = format!(
        "collective #1: rank {last} called all_gather of 2 bytes, rank 0 called broadcast from rank 1 of 3 bytes"
    );
    assert_eq!(error.to_string(), text);
    let reason = "called another collective".to_owned();
    assert!(
        matches!(&later, CommError::PeerLost { rank, reason: r, op: Op::AllReduce, .. } if *rank == last && *r == reason)
    );
    let script = &script;
    thread::scope(|s| {
        let handles: Vec<_> = Threads::world(last + 1).into_iter().map(|c| s.spawn(move || script(&c).0)).collect();
        handles.into_iter().for_each(|handle| assert_eq!(handle.join().unwrap(), error));
    });
}

/// This rank's later calls fail at once, whoever else is gone.
fn abort(mpi: &Mpi) {
    mpi.barrier().unwrap();
    mpi.abort("loss is NaN");
    mpi.abort("second");
    let (rank, reason) = (mpi.rank(), "loss is NaN".to_owned());
    let lost = CommError::PeerLost { rank, reason, op: Op::AllGather, sequence: 1 };
    assert_eq!(mpi.all_reduce_or(1).unwrap_err(), lost);
    assert_eq!(mpi.all_gather_varied(&[1; 3]).unwrap_err(), lost);
    assert!(mpi.carry(Some(vec![1])).unwrap_err().contains("loss is NaN"));
}

#[test]
fn collectives_of_two_ranks() {
    launch("collectives", 2);
}

#[test]
fn collectives_of_four_ranks() {
    launch("collectives", 4);
}

#[test]
fn different_collectives_are_an_error_on_all_ranks() {
    launch("mismatch", 3);
}

#[test]
fn an_abort_is_of_this_rank_alone() {
    launch("abort", 2);
}

#[test]
fn plugins_are_sought_in_the_order_of_the_launcher() {
    let names = |set: &[(&str, &str)]| -> Vec<String> {
        let env = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        find(&env).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let (open_mpi, mpich) = ("libretort_mpi_openmpi.so", "libretort_mpi_mpich.so");
    assert_eq!(names(&[]), [open_mpi, mpich]);
    assert_eq!(names(&[("OMPI_COMM_WORLD_SIZE", "2")]), [open_mpi, mpich]);
    for name in ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"] {
        assert_eq!(names(&[(name, "0")]), [mpich, open_mpi]);
        assert_eq!(names(&[(name, "0"), ("OMPI_COMM_WORLD_RANK", "1")]), [open_mpi, mpich]);
    }
    assert_eq!(names(&[("RETORT_MPI_PLUGIN", "/some/own.so"), ("PMI_RANK", "0")]), ["own.so"]);
    assert_eq!(names(&[("RETORT_MPI_PLUGIN", "")]), [open_mpi, mpich]);
    let beside = find(&|_| None);
    assert!(beside.iter().all(|path| path.parent() == std::env::current_exe().unwrap().parent()));
}

#[test]
fn without_a_plugin_every_file_and_its_reason_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (absent, text) = (folder.path().join("absent.so"), folder.path().join("text.so"));
    fs::write(&text, "no library").unwrap();
    let other = PathBuf::from("libm.so.6");
    // A plugin of another version, by the compiler that links this test.
    let (source, newer) = (folder.path().join("newer.c"), folder.path().join("newer.so"));
    fs::write(&source, "unsigned retort_mpi_abi(void) { return 2; }").unwrap();
    assert!(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&newer, &source]).status().unwrap().success());
    let error = Mpi::open(&[absent.clone(), text.clone(), newer, other]).err().unwrap().to_string();
    assert!(error.contains("newer.so: speaks interface 2, this program 1; build it anew; "), "{error}");
    assert!(error.contains(&format!("{}: cannot open shared object file", absent.display())), "{error}");
    assert!(error.contains(&format!("{}: ", text.display())), "{error}");
    assert!(error.contains("libm.so.6: is no MPI plugin of this program: it has no retort_mpi_abi"), "{error}");
    assert!(error.ends_with("or name one by RETORT_MPI_PLUGIN"), "{error}");
    assert!(Mpi::open(&[]).err().unwrap().to_string().starts_with("no MPI: no plugin was named; "));
}
