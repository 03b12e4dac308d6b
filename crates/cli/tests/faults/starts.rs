//! What keeps a rank from starting is told to the others, where ranks meet by a secret alone, and a run without progress ends.

use crate::job::set_up;
use crate::launching::{Launch, World, signal};
use crate::program::retort_in;
use crate::table::{target, turn};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn secret(folder: &Path, byte: u8) -> PathBuf {
    let path = folder.join(format!("secret-{byte}"));
    std::fs::write(&path, [byte; 32]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn two<'a>(folder: &'a Path, args: &'a [&'a str]) -> Launch<'a> {
    Launch { folder, run: "run", size: 2, args }
}

/// Rank 0 says this, and all have ended in time, with these codes.
fn ends(mut world: World, codes: &[i32], words: &[&str]) {
    let begin = Instant::now();
    let (got, last) = world.ends();
    assert_eq!(got, codes, "{}", world.words());
    assert!(words.iter().all(|word| world.processes[0].err.contains(word)), "{words:?}: {}", world.words());
    assert!(last - begin <= target(5.0), "{words:?} after {:?}", last - begin);
}

#[test]
fn a_run_folder_that_rank_0_cannot_make_ends_all() {
    let _turn = turn();
    let folder = set_up();
    std::fs::write(folder.path().join("run"), "no folder").unwrap();
    let secret = secret(folder.path(), 1);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let world = two(folder.path(), &[]).start_each(|_, command| {
        command.env("RETORT_RENDEZVOUS", format!("127.0.0.1:{port}")).env("RETORT_JOB_SECRET_FILE", &secret);
    });
    ends(world, &[74, 74], &["rank 0: cannot create the run folder", "--run"]);
    // In a folder that is not there nobody can be told.
    let alone = Launch { size: 1, ..two(folder.path(), &[]) }.start_each(|_, command| {
        command.env("RETORT_WORLD_SIZE", "2");
    });
    ends(alone, &[74], &["cannot create the run folder", "(rank 0 cannot tell the other ranks, who wait for it up to"]);
}

#[test]
fn what_rank_0_finds_after_the_meeting_ends_all() {
    let _turn = turn();
    let folder = set_up();
    let first = retort_in(folder.path(), &["train", "recipe.toml", "--run", "run", "--max-steps", "1", "-q"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let world = two(folder.path(), &["--lr", "0.01"]).start();
    ends(world, &[64, 76], &["retort: rank 0 (", "holds a run of another recipe"]);
}

#[test]
fn jobs_with_a_secret_alone_meet_on_ports_of_the_first_host() {
    let _turn = turn();
    let folder = set_up();
    let secrets = [1, 2, 3].map(|byte| secret(folder.path(), byte));
    // By hand a job has no name, so the ports of these two are the same ones; torchrun's own store has MASTER_PORT.
    let mut worlds: Vec<World> = (0..2)
        .map(|job| {
            let run = format!("runs/{job}");
            let launch = Launch { run: &run, ..two(folder.path(), &["--max-steps", "1"]) };
            launch.start_each(|_, command| {
                command.env("SLURM_JOB_NODELIST", "localhost,gpu[01-03]").env("RETORT_JOB_SECRET_FILE", &secrets[job]);
            })
        })
        .collect();
    worlds.push(Launch { run: "runs/2", ..two(folder.path(), &["--max-steps", "1"]) }.start_each(|rank, command| {
        for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK"] {
            command.env_remove(format!("RETORT_{name}"));
        }
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string()).env("WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "localhost").env("MASTER_PORT", "1").env("RETORT_JOB_SECRET_FILE", &secrets[2]);
    }));
    for (world, whose) in worlds.iter_mut().zip(["the first host of the node list"; 2].iter().chain(&["MASTER_ADDR"])) {
        assert_eq!(world.ends().0, [0, 0], "{}", world.words());
        assert!(world.processes[0].err.contains(&format!("; met by {whose}\n")), "{}", world.words());
    }
}

#[test]
fn starts_without_progress_end_and_one_that_is_stopped_does_not_count() {
    let _turn = turn();
    let folder = set_up();
    let launch = two(folder.path(), &["--epochs", "2000", "--set", "output.checkpoint_every=2000"]);
    let note = folder.path().join("run/starts.json");
    let begun = || {
        let mut world = launch.start();
        world.processes[0].says("device:");
        world
    };
    for starts in 1..=3 {
        let mut world = begun();
        let noted: serde_json::Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
        assert_eq!((&noted["step"], &noted["starts"]), (&0.into(), &starts.into()));
        signal(world.processes[1].id(), "KILL");
        assert_eq!(world.ends().0, [76, 137], "{}", world.words());
    }
    ends(launch.start(), &[78, 78], &["3 starts in a row from step 0 ended without progress", "starts.json to go on"]);
    std::fs::remove_file(&note).unwrap();
    let mut world = begun();
    signal(world.processes[1].id(), "TERM");
    assert_eq!(world.ends().0, [143, 143], "{}", world.words());
    assert!(!note.exists());
}
