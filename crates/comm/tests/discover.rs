//! Who am I: the launchers' variables, their traps, and real launchers where they are installed.

use comm::discover::{DiscoverError, Environment, Explicit, MOST_RANKS, Place, discover};
use comm::hostlist::{HostlistError, LONGEST_NAME, MOST_HOSTS, expand};
use comm::pmix::PmixFacts;
use comm::{Choice, Launcher};
use proptest::prelude::*;
use std::process::{Command, Output};

/// `A=1 B=x`, values without spaces.
fn env(text: &str) -> Environment {
    let pair = |word: &str| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.split_whitespace().filter_map(pair).collect()
}

fn no_pmix() -> Option<PmixFacts> {
    None
}

fn find(text: &str) -> Result<Place, DiscoverError> {
    discover(&env(text), &Explicit::default(), &no_pmix)
}

fn find_with(text: &str, explicit: Explicit) -> Result<Place, DiscoverError> {
    discover(&env(text), &explicit, &no_pmix)
}

/// Rank, size, local rank, local size.
fn numbers(place: &Place) -> (usize, usize, Option<usize>, Option<usize>) {
    (place.rank, place.world_size, place.local_rank, place.local_size)
}

fn refused(text: &str) -> (u8, String) {
    let error = find(text).unwrap_err();
    (error.code(), error.to_string())
}

const OMPI: &str =
    "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=4 ";
const SRUN: &str = "SLURM_JOB_ID=77 SLURM_STEP_ID=2 SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 SLURM_NTASKS=8 SLURM_LOCALID=1 \
                    SLURM_JOB_NODELIST=gpu[01-03] SLURM_STEP_NODELIST=gpu[02-03] ";
const PMIX: &str = "PMIX_RANK=5 PMIX_NAMESPACE=slurm.pmix.77.2 PMIX_SERVER_URI41=x ";

#[test]
fn every_launcher_of_the_table() {
    let rows = [
        ("RETORT_RANK=5 RETORT_WORLD_SIZE=8 RETORT_LOCAL_RANK=1 RETORT_RENDEZVOUS=gpu01:7000", Launcher::Own, None),
        ("RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4", Launcher::Torchrun, Some(4)),
        (OMPI, Launcher::OpenMpi, Some(4)),
        ("PMI_RANK=5 PMI_SIZE=8 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=4", Launcher::Pmi, Some(4)),
        ("PMI_RANK=5 PMI_SIZE=8 PMI_LOCAL_RANK=1 PMI_LOCAL_SIZE=4", Launcher::Pmi, Some(4)),
        (
            "MV2_COMM_WORLD_RANK=5 MV2_COMM_WORLD_SIZE=8 MV2_COMM_WORLD_LOCAL_RANK=1 MV2_COMM_WORLD_LOCAL_SIZE=4",
            Launcher::Mvapich2,
            Some(4),
        ),
        ("PALS_RANKID=5 PMI_SIZE=8 PALS_LOCAL_RANKID=1 PALS_LOCAL_SIZE=4", Launcher::Pals, Some(4)),
        (SRUN, Launcher::Slurm, None),
        ("FLUX_TASK_RANK=5 FLUX_JOB_SIZE=8 FLUX_TASK_LOCAL_ID=1", Launcher::Flux, None),
        (
            "JSM_NAMESPACE_RANK=5 JSM_NAMESPACE_SIZE=8 JSM_NAMESPACE_LOCAL_RANK=1 JSM_NAMESPACE_LOCAL_SIZE=4",
            Launcher::Jsrun,
            Some(4),
        ),
    ];
    for (text, launcher, local_size) in rows {
        let place = find(text).unwrap();
        assert_eq!((place.launcher, numbers(&place)), (launcher, (5, 8, Some(1), local_size)), "{text}");
        assert_eq!(place.has_parent(), launcher != Launcher::Own, "{text}");
    }
}

#[test]
fn nothing_means_one_process() {
    let place = find("HOME=/root PATH=/bin").unwrap();
    assert_eq!((place.launcher, numbers(&place)), (Launcher::None, (0, 1, None, None)));
    assert_eq!(place.words(None), "ranks: 1, one process");
    assert!(!place.has_parent());
    assert_eq!(place.job, "none");
}

#[test]
fn pmix_is_asked_only_when_it_comes_to_it() {
    let facts = || Some(PmixFacts { size: 8, local_rank: Some(1) });
    let never = || -> Option<PmixFacts> { panic!("Open MPI comes first") };
    let place = discover(&env(PMIX), &Explicit::default(), &facts).unwrap();
    assert_eq!((place.launcher, numbers(&place)), (Launcher::Pmix, (5, 8, Some(1), None)));
    assert_eq!(place.job, "slurm.pmix.77.2");
    let place = discover(&env(&(OMPI.to_owned() + PMIX)), &Explicit::default(), &never).unwrap();
    assert_eq!(place.words(None), "ranks: 8, from Open MPI"); // the same launcher: nothing to say
    // Without libpmix SLURM's size, else nothing: eight processes must not take themselves for the only one.
    assert_eq!(find(&(PMIX.to_owned() + SRUN)).unwrap().launcher, Launcher::Slurm);
    for rank in ["0", "5"] {
        let (code, text) = refused(&PMIX.replace("=5", &format!("={rank}")));
        assert_eq!(code, 78);
        assert!(text.starts_with(&format!("PMIx says rank {rank} but not of how many (libpmix.so.2")), "{text}");
    }
    // Not always set under SLURM, and alone it says nothing.
    assert_eq!(find("PMIX_RANK=5").unwrap().launcher, Launcher::None);
}

#[test]
fn mpirun_inside_sbatch() {
    // SLURM_PROCID is that of the daemon, which srun started once per host.
    let daemon = SRUN.replace("PROCID=5", "PROCID=1").replace("TASKS=8", "TASKS=2");
    let place = find(&(OMPI.to_owned() + &daemon)).unwrap();
    assert_eq!((place.launcher, place.rank, place.world_size), (Launcher::OpenMpi, 5, 8));
    assert_eq!(place.words(Some(2)), "ranks: 8 on 2 hosts, from Open MPI (SLURM says 2, not used)");
    // The daemons' step leaves out the host of mpirun.
    assert_eq!(place.first_host.as_deref(), Some("gpu01"));
    // On the host of mpirun itself, the body of the batch script is no step at all.
    let place = find(&(OMPI.to_owned() + "SLURM_JOB_ID=77 SLURM_PROCID=0 SLURM_NTASKS=8")).unwrap();
    assert_eq!(place.words(Some(2)), "ranks: 8 on 2 hosts, from Open MPI (SLURM present outside srun, not used)");
    let place = find(&(OMPI.to_owned() + SRUN)).unwrap();
    assert_eq!(place.words(Some(1)), "ranks: 8 on 1 host, from Open MPI (SLURM present, not used)");
}

#[test]
fn slurm_counts_only_under_srun() {
    let bodies = [
        "SLURM_JOB_ID=7 SLURM_NTASKS=8",
        "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0",
        "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_ID=4294967291", // batch
        "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_ID=4294967290 SLURM_STEP_NUM_TASKS=8", // interactive
        "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_ID=batch",
        "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_STEP_ID=0",
    ];
    for body in bodies {
        let place = find(body).unwrap();
        assert_eq!((place.launcher, place.world_size), (Launcher::None, 1), "{body}");
        assert_eq!(place.words(None), "ranks: 1, one process (SLURM present outside srun, not used)");
    }
    let place = find(&SRUN.replace("SLURM_STEP_NUM_TASKS=8", "").replace("NTASKS=8", "NTASKS=6")).unwrap();
    assert_eq!((place.world_size, place.job.as_str()), (6, "77.2"));
    assert_eq!(place.first_host.as_deref(), Some("gpu02")); // of the step, whose tasks are the ranks
}

#[test]
fn interactive_shells_of_slurm_are_one_process() {
    let shell = SRUN.replace("PROCID=5", "PROCID=0");
    let terminal = || Explicit { terminal: true, ..Explicit::default() };
    for name in ["bash", "interactive"] {
        let words = find(&format!("{shell} SLURM_JOB_NAME={name}")).unwrap().words(None);
        let expected =
            format!("ranks: 1, one process (SLURM present in an interactive shell (job name `{name}`), not used)");
        assert_eq!(words, expected);
    }
    let words = find_with(&shell, terminal()).unwrap().words(None);
    assert!(words.contains("interactive shell (stdin is a terminal)"), "{words}");
    // `srun --mpi=pmix --pty bash`: the shell's PMIx or PMI-2 variables are inherited like SLURM's.
    for inherited in ["PMI_RANK=0 PMI_SIZE=8".to_owned(), PMIX.replace("=5", "=0")] {
        let place = find_with(&format!("{shell} {inherited}"), terminal()).unwrap();
        assert_eq!((place.launcher, place.unused.len()), (Launcher::None, 2), "{:?}", place.unused);
    }
    // Any other rank is no shell: nobody guesses, the user says.
    let task = format!("{SRUN} SLURM_JOB_NAME=interactive");
    let (code, text) = refused(&task);
    assert_eq!(code, 78);
    assert!(text.contains("`--launcher slurm`") && text.contains("`--world-size 1`"), "{text}");
    let slurm = Explicit { launcher: Choice::Slurm, ..terminal() };
    assert_eq!(find_with(&task, slurm).unwrap().world_size, 8);
    // An MPI inside such a shell is not concerned.
    let place = find(&format!("{shell} SLURM_JOB_NAME=bash {OMPI}")).unwrap();
    assert_eq!(place.launcher, Launcher::OpenMpi);
}

#[test]
fn singletons_are_refused() {
    let singleton = "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 ";
    let (code, text) = refused(&(singleton.to_owned() + SRUN));
    assert_eq!(code, 78);
    let expected = "srun started 8 unrelated processes (Open MPI says 1); use `srun --mpi=pmix` or mpirun; if one is meant: \
                    `--world-size 1`";
    assert_eq!(text, expected);
    let (code, text) = refused("RANK=0 WORLD_SIZE=1 PMI_RANK=3 PMI_SIZE=4");
    assert!(code == 78 && text.starts_with("PMI started 4 unrelated processes (torchrun says 1)"), "{text}");
    let one = Explicit { world_size: Some(1), ..Explicit::default() };
    let place = find_with(&(singleton.to_owned() + SRUN), one).unwrap();
    assert_eq!((place.launcher, numbers(&place)), (Launcher::Own, (0, 1, None, None)));
    assert_eq!(place.unused, ["Open MPI present", "SLURM says 8"]);
    let none = Explicit { launcher: Choice::None, ..Explicit::default() };
    assert_eq!(find_with(&(OMPI.to_owned() + SRUN), none).unwrap().world_size, 1);
    // PMIx that says 1 under a step of 8.
    let facts = || Some(PmixFacts { size: 1, local_rank: None });
    let error = discover(&env(&(PMIX.replace("=5", "=0") + SRUN)), &Explicit::default(), &facts).unwrap_err();
    assert!(matches!(error, DiscoverError::Singletons { started: "srun", size: 8, .. }), "{error}");
}

#[test]
fn universe_size_counts_slots() {
    // `mpirun -np 1` on a machine of 8 cores is one process, and says so.
    let one = find("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 OMPI_UNIVERSE_SIZE=8").unwrap();
    assert_eq!((one.launcher, one.world_size), (Launcher::OpenMpi, 1));
    for lost in ["OMPI_UNIVERSE_SIZE=8", "OMPI_UNIVERSE_SIZE=8 RANK=0 WORLD_SIZE=1"] {
        let (code, text) = refused(lost);
        assert!(code == 78 && text.starts_with("Open MPI started 8 unrelated processes"), "{text}");
    }
    assert_eq!(find("OMPI_UNIVERSE_SIZE=1").unwrap().world_size, 1);
    assert_eq!(find("OMPI_UNIVERSE_SIZE=many").unwrap().world_size, 1);
}

#[test]
fn the_earlier_of_two_that_disagree_wins() {
    let place = find(&("RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 ".to_owned() + OMPI + SRUN)).unwrap();
    assert_eq!((place.launcher, place.rank, place.world_size), (Launcher::Torchrun, 1, 4));
    assert_eq!(place.words(Some(1)), "ranks: 4 on 1 host, from torchrun (Open MPI says 8, SLURM says 8, not used)");
}

#[test]
fn a_local_rank_is_borrowed_from_a_set_that_agrees() {
    let local = |text: &str| find(text).unwrap().local_rank;
    let bare = "PMI_RANK=5 PMI_SIZE=8 ";
    assert_eq!(local(bare), None);
    assert_eq!(local(&(bare.to_owned() + SRUN)), Some(1));
    assert_eq!(local(&(bare.to_owned() + &SRUN.replace("PROCID=5", "PROCID=4"))), None);
    assert_eq!(local(&(bare.to_owned() + &SRUN.replace("TASKS=8", "TASKS=16"))), None); // equal ranks by chance
    assert_eq!(local(&(bare.to_owned() + &SRUN.replace("LOCALID", "LOCAL"))), None);
    let pals = find(&(bare.to_owned() + "PALS_RANKID=5 PALS_LOCAL_RANKID=2 PALS_LOCAL_SIZE=4")).unwrap();
    assert_eq!((pals.launcher, numbers(&pals)), (Launcher::Pmi, (5, 8, Some(2), Some(4))));
    assert_eq!(local(&("RETORT_RANK=5 RETORT_WORLD_SIZE=8 ".to_owned() + SRUN)), Some(1));
    assert_eq!(local("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_NODE_RANK=1"), Some(1));
    assert_eq!(local(&("RETORT_LOCAL_RANK=3 ".to_owned() + OMPI)), Some(3));
}

#[test]
fn incomplete_sets_are_passed_over() {
    let place = find(&("RANK=3 PMI_SIZE=2 ".to_owned() + SRUN)).unwrap();
    assert_eq!((place.launcher, place.rank), (Launcher::Slurm, 5));
    assert_eq!(place.unused, ["torchrun present without a size"]);
    assert_eq!(find("WORLD_SIZE=4").unwrap().launcher, Launcher::None);
    assert_eq!(find("RANK=first").unwrap().launcher, Launcher::None); // a common name, nobody's rank
    assert_eq!(find("PMI_RANK=0").unwrap().launcher, Launcher::None);
    let (code, text) = refused("PMI_RANK=3"); // surely not the only one
    assert!(code == 78 && text.starts_with("PMI says rank 3 but not of how many"), "{text}");
}

#[test]
fn own_values_are_taken_at_their_word() {
    let flags = Explicit { rank: Some(2), world_size: Some(4), local_rank: Some(0), ..Explicit::default() };
    let place =
        find_with(&("RETORT_RANK=1 RETORT_WORLD_SIZE=2 RETORT_LOCAL_RANK=1 ".to_owned() + OMPI), flags).unwrap();
    assert_eq!((place.launcher, numbers(&place)), (Launcher::Own, (2, 4, Some(0), None)));
    let (code, text) = refused("RETORT_RANK=1");
    assert!(code == 64 && text.starts_with("RETORT_RANK without a number of ranks"), "{text}");
    let size = |n| Explicit { world_size: Some(n), ..Explicit::default() };
    assert_eq!(find_with(OMPI, size(8)).unwrap().launcher, Launcher::OpenMpi); // as a check
    for (text, found) in [(OMPI, "8, from Open MPI"), ("", "1, from no launcher")] {
        let error = find_with(text, size(4)).unwrap_err();
        assert_eq!(error.code(), 78);
        assert!(error.to_string().contains(&format!("is 4, but the size is {found}")), "{error}");
    }
    let where_to = Explicit { rendezvous: Some("a:1".into()), ..Explicit::default() };
    assert_eq!(find_with("RETORT_RENDEZVOUS=b:2", where_to).unwrap().rendezvous.as_deref(), Some("a:1"));
    assert_eq!(find("RETORT_RENDEZVOUS=b:2").unwrap().rendezvous.as_deref(), Some("b:2"));
    assert_eq!(refused("RETORT_RENDEZVOUS=").0, 64);
}

#[test]
fn a_chosen_launcher_wins_or_is_missed() {
    let choose = |launcher| Explicit { launcher, ..Explicit::default() };
    let all = "RETORT_RANK=0 RETORT_WORLD_SIZE=8 RANK=0 WORLD_SIZE=8 ".to_owned() + OMPI + SRUN;
    let chosen = |choice| find_with(&all, choose(choice)).unwrap().launcher;
    assert_eq!(chosen(Choice::Auto), Launcher::Own);
    assert_eq!(chosen(Choice::Torchrun), Launcher::Torchrun);
    assert_eq!(chosen(Choice::Mpi), Launcher::OpenMpi);
    assert_eq!(chosen(Choice::Slurm), Launcher::Slurm);
    assert_eq!(chosen(Choice::None), Launcher::None);
    for choice in [Choice::Pmi, Choice::Pmix] {
        let error = find_with(&all, choose(choice)).unwrap_err();
        assert_eq!((error.code(), &error), (78, &DiscoverError::Absent(choice.word())));
    }
}

#[test]
fn malformed_and_impossible_numbers() {
    for value in ["", "x", "-1", "+1", "1.0", "0x1", "99999999999", "٣"] {
        for text in [
            format!("RETORT_RANK={value} RETORT_WORLD_SIZE=8"),
            format!("RANK=0 WORLD_SIZE={value}"),
            format!("{SRUN} SLURM_LOCALID={value}"),
        ] {
            let (code, words) = refused(&text);
            assert_eq!(code, 64, "{text}");
            assert!(words.contains(&format!(" is {value:?}, expected a number from 0;")), "{words}");
        }
    }
    // Of no interest behind a set that is complete.
    let place = find(&(OMPI.to_owned() + "PMI_RANK=x PMI_SIZE=8")).unwrap();
    assert_eq!(place.unused, ["PMI present"]);
    let too_many = format!("RANK=0 WORLD_SIZE={}", MOST_RANKS + 1);
    for text in [
        "RANK=8 WORLD_SIZE=8",
        "RANK=0 WORLD_SIZE=0",
        "RETORT_WORLD_SIZE=0",
        "RANK=1 WORLD_SIZE=8 LOCAL_RANK=4 LOCAL_WORLD_SIZE=4",
        "RANK=1 WORLD_SIZE=8 LOCAL_RANK=0 LOCAL_WORLD_SIZE=9",
        "RANK=1 WORLD_SIZE=8 LOCAL_RANK=8",
        &too_many,
    ] {
        let error = find(text).unwrap_err();
        assert!(matches!(error, DiscoverError::Impossible { .. }) && error.code() == 78, "{text}: {error}");
    }
}

#[test]
fn jobs_have_names() {
    let job = |text: &str| find(text).unwrap().job;
    assert_eq!(job(&(OMPI.to_owned() + "PMIX_NAMESPACE=14600 OMPI_MCA_ess_base_jobid=9 SLURM_JOB_ID=4")), "14600");
    assert_eq!(job(&(OMPI.to_owned() + "OMPI_MCA_ess_base_jobid=9")), "9");
    let torchrun = "RANK=0 WORLD_SIZE=2 MASTER_ADDR=gpu01 MASTER_PORT=29500 ";
    assert_eq!(job(&(torchrun.to_owned() + "TORCHELASTIC_RUN_ID=none")), "gpu01:29500");
    assert_eq!(job(&(torchrun.to_owned() + "TORCHELASTIC_RUN_ID=a/../b")), "a_.._b");
    assert_eq!(job("PMI_RANK=0 PMI_SIZE=2 PMI_JOBID=44 SLURM_JOB_ID=4"), "44");
    assert_eq!(job("PMI_RANK=0 PMI_SIZE=2 SLURM_JOB_ID=4"), "4");
    assert_eq!(job("FLUX_TASK_RANK=0 FLUX_JOB_SIZE=2 FLUX_JOB_ID=f3"), "f3");
    assert_eq!(job("JSM_NAMESPACE_RANK=0 JSM_NAMESPACE_SIZE=2 LSB_JOBID=5"), "5");
    assert_eq!(job("RETORT_RANK=0 RETORT_WORLD_SIZE=2 RETORT_RENDEZVOUS=h:1 SLURM_JOB_ID=4"), "h:1");
}

#[test]
fn the_host_of_rank_0_is_the_first_of_the_list_or_the_master() {
    let first = |text: &str| find(text).unwrap().first().map(|(host, _)| host.to_owned());
    let own = "RETORT_RANK=0 RETORT_WORLD_SIZE=2 MASTER_ADDR=".to_owned();
    assert_eq!(first(&(SRUN.to_owned() + "MASTER_ADDR=gpu09")).as_deref(), Some("gpu02"));
    assert_eq!(first(&(SRUN.to_owned() + "RANK=0 WORLD_SIZE=2 MASTER_ADDR=gpu09")).as_deref(), Some("gpu09"));
    assert_eq!((first(&(own.clone() + "gpu09")).as_deref(), first(&own)), (Some("gpu09"), None));
}

#[test]
fn host_lists() {
    let list = |text| expand(text).unwrap().join(" ");
    assert_eq!(list("gpu[01-03,07],login1"), "gpu01 gpu02 gpu03 gpu07 login1");
    assert_eq!(list("a[1-2]b[3-4].x"), "a1b3.x a1b4.x a2b3.x a2b4.x");
    assert_eq!(list(" n[8-11] "), "n8 n9 n10 n11");
    assert_eq!(list("n[098-101]"), "n098 n099 n100 n101");
    assert_eq!(expand("n[1-65536]").unwrap().len(), MOST_HOSTS);
    for text in
        ["", ",", "a,", "a,,b", "a[", "a[]", "a[1", "a[1-]", "a[-1]", "a[1-2-3]", "a]", "a[1]]", "a[[1]]", "a b"]
    {
        assert!(matches!(expand(text), Err(HostlistError::Syntax { .. })), "{text:?}: {:?}", expand(text));
    }
    assert!(matches!(expand("a[1-9999999999]"), Err(HostlistError::Syntax { at: 4, .. })));
    assert_eq!(expand("a[3-1]"), Err(HostlistError::Backwards { at: 5, low: 3, high: 1 }));
    for text in ["n[1-65537]", "x,n[1-65536]", "n[1-999999999]", &"[0-999999999]".repeat(20)] {
        assert_eq!(expand(text), Err(HostlistError::TooMany), "{text}");
    }
    let long = "a".repeat(LONGEST_NAME);
    assert!(expand(&long).is_ok());
    assert!(matches!(expand(&(long + "[1]")), Err(HostlistError::LongName { .. })));
}

/// Names and values that the code looks for, and any others.
fn variables() -> impl Strategy<Value = Vec<(String, String)>> {
    let names = (OMPI.to_owned() + SRUN + PMIX + "RETORT_RANK= RETORT_WORLD_SIZE= RETORT_LOCAL_RANK= RANK= WORLD_SIZE= \
        LOCAL_RANK= MASTER_ADDR= MASTER_PORT= PMI_RANK= PMI_SIZE= MPI_LOCALRANKID= PALS_RANKID= PALS_LOCAL_RANKID= \
        MV2_COMM_WORLD_RANK= MV2_COMM_WORLD_SIZE= FLUX_TASK_RANK= FLUX_JOB_SIZE= JSM_NAMESPACE_RANK= JSM_NAMESPACE_SIZE= \
        OMPI_UNIVERSE_SIZE= SLURM_JOB_NAME= TORCHELASTIC_RUN_ID=")
        .split_whitespace()
        .map(|word| word.split_once('=').map_or(word, |(name, _)| name).to_owned())
        .collect::<Vec<_>>();
    let value = prop_oneof![6 => "[0-9]{1,2}", 1 => "[0-9]{9,21}", 1 => any::<String>(), 1 => Just("bash".to_owned())];
    prop::collection::vec((prop::sample::select(names), value), 0..24)
}

proptest! {
    #[test]
    fn any_environment_is_a_place_or_an_error(
        variables in variables(),
        launcher in prop::sample::select(vec![Choice::Auto, Choice::Torchrun, Choice::Mpi, Choice::Slurm, Choice::None]),
        terminal: bool,
        rank in prop::option::of(0..3_usize),
        size in prop::option::of(any::<usize>()),
    ) {
        let env: Environment = variables.into_iter().collect();
        let explicit = Explicit { rank, world_size: size, launcher, terminal, ..Explicit::default() };
        match discover(&env, &explicit, &|| size.map(|size| PmixFacts { size, local_rank: rank })) {
            Ok(place) => {
                prop_assert!(place.rank < place.world_size && place.world_size <= MOST_RANKS);
                prop_assert!(place.local_rank.is_none_or(|local| local < place.local_size.unwrap_or(place.world_size)));
                prop_assert!(place.job.len() <= 128 && !place.job.contains('/'));
                prop_assert!(place.words(Some(2)).starts_with("ranks: "));
            }
            Err(error) => prop_assert!([64, 78].contains(&error.code()) && error.to_string().len() < 500),
        }
    }

    #[test]
    fn any_host_list_is_names_or_an_error(text in prop_oneof![any::<String>(), "[a0-9,\\[\\]-]{0,40}"]) {
        if let Ok(names) = expand(&text) {
            prop_assert!(!names.is_empty() && names.len() <= MOST_HOSTS);
            prop_assert!(names.iter().all(|name| !name.is_empty() && name.len() <= LONGEST_NAME));
        }
    }
}

/// What this test program does when a launcher of the tests below starts it again.
const ROLE: &str = "RETORT_DISCOVER_TEST_ROLE";

#[test]
fn role_of_a_rank() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let ask = || comm::pmix::ask().map_err(|error| println!("\npmix: {error}")).ok();
    let place = discover(&Environment::of_process(), &Explicit::default(), &ask).unwrap();
    println!("\nplace: {} job {} {:?} {}", place.words(None), place.job, numbers(&place), place.rank);
    match role.as_str() {
        "again" => assert_eq!(ask(), ask()),
        "die" if place.rank == 1 => drop(Command::new("kill").args(["-9", &std::process::id().to_string()]).status()),
        // Until the launcher ends it.
        "die" => loop {
            std::thread::park();
        },
        _ => {}
    }
}

/// Runs ranks of this program under a launcher for at most 30 s, or says that it is not installed.
fn launch(launcher: &str, role: &str, script: &str) -> Option<Output> {
    if Command::new(launcher).arg("--version").output().is_err() {
        eprintln!("skipped: no {launcher} on this machine");
        return None;
    }
    let me = std::env::current_exe().unwrap();
    let script = format!("{script} exec \"$0\" --exact role_of_a_rank --nocapture");
    let mut mpirun = Command::new("timeout");
    mpirun.args(["30", launcher]).env(ROLE, role);
    if launcher.ends_with("openmpi") {
        mpirun.args(["--allow-run-as-root", "--oversubscribe"]);
    }
    Some(mpirun.args(["-n", "2", "sh", "-c", &script]).arg(me).output().unwrap())
}

fn places(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    // A line may begin behind what the other rank has not ended yet.
    let lines = text.split("place: ").skip(1).filter_map(|rest| rest.lines().next());
    let mut places: Vec<String> = lines.map(str::to_owned).collect();
    places.sort_by_key(|place| place.chars().last());
    places
}

/// Takes Open MPI's own variables away, so that only PMIx is left.
const PMIX_ALONE: &str = "for v in $(env | sed -n 's/^\\(OMPI_[A-Za-z0-9_]*\\)=.*/\\1/p'); do unset $v; done;";

/// Whether PMIx could be asked; if libpmix is not installed the ranks must have said so and given up.
fn pmix_answered(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stdout);
    let missing = text.contains("libpmix.so.2 does not load");
    if missing {
        assert!(!output.status.success());
        eprintln!("skipped: no libpmix on this machine");
    }
    !missing
}

#[test]
fn real_ranks_of_open_mpi_and_mpich() {
    for (launcher, name) in [("mpirun.openmpi", "Open MPI"), ("mpirun.mpich", "PMI")] {
        let Some(output) = launch(launcher, "place", "") else { continue };
        let places = places(&output);
        assert!(output.status.success() && places.len() == 2, "{output:?}");
        for (rank, place) in places.iter().enumerate() {
            assert!(place.starts_with(&format!("ranks: 2, from {name} job ")), "{place}");
            assert!(place.contains(&format!("({rank}, 2, Some({rank}), Some(2))")), "{place}");
        }
    }
}

#[test]
fn real_ranks_of_pmix() {
    let Some(output) = launch("mpirun.openmpi", "again", PMIX_ALONE).filter(pmix_answered) else { return };
    let places = places(&output);
    assert!(output.status.success() && places.len() == 2, "{output:?}"); // finalised: no failed job
    let job = |place: &str| place.split(' ').nth(5).map(str::to_owned);
    assert!(job(&places[0]).is_some() && job(&places[0]) == job(&places[1]), "{places:?}");
    for (rank, place) in places.iter().enumerate() {
        let who = format!("({rank}, 2, Some({rank}), None)");
        assert!(place.starts_with("ranks: 2, from PMIx job ") && place.contains(&who), "{place}");
    }
}

#[test]
fn a_killed_rank_still_ends_the_job_after_pmix() {
    let Some(output) = launch("mpirun.openmpi", "die", PMIX_ALONE) else { return };
    let died = !output.status.success() && output.status.code() != Some(124);
    assert!(died || !pmix_answered(&output), "{output:?}");
}

#[test]
fn a_dead_server_of_pmix_is_an_error() {
    let mut rank = Command::new(std::env::current_exe().unwrap());
    rank.args(["--exact", "role_of_a_rank", "--nocapture"]).env(ROLE, "place");
    rank.env("PMIX_RANK", "0").env("PMIX_NAMESPACE", "gone").env("PMIX_SECURITY_MODE", "native");
    for version in ["2", "21", "3", "4", "41"] {
        rank.env(format!("PMIX_SERVER_URI{version}"), "gone.0;tcp4://127.0.0.1:1");
    }
    let output = rank.output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("\npmix: "), "{output:?}");
}
