//! `retort doctor` where something is wrong, and where nothing is.

#[path = "support/program.rs"]
mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{RECIPE, Ran, command, ran, retort_in, small_fashion, with_recipe};
use tempfile::TempDir;

fn with_data() -> TempDir {
    let folder = with_recipe(RECIPE);
    small_fashion(folder.path(), 40);
    folder
}

fn doctor(folder: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    ran(command(folder, &[&["doctor"], args].concat()).envs(variables.iter().copied()))
}

/// It fails, and says this of that area, and this as its remedy.
#[track_caller]
fn fails(ran: &Ran, area: &str, found: &str, remedy: &str) {
    assert_eq!(ran.code, 78, "{}{}", ran.out, ran.err);
    let mut lines = ran.out.lines().skip_while(|l| !(l.starts_with(&format!("fail  {area} ")) && l.contains(found)));
    assert!(lines.next().is_some(), "no failure of {area} with {found:?} in {}", ran.out);
    let next = lines.next().unwrap_or_default();
    assert!(next.trim_start().starts_with("-> ") && next.contains(remedy), "{remedy:?} is not in {next:?}");
    let last = ran.out.lines().last().unwrap_or_default();
    assert!(last.starts_with("fail (") && last.ends_with(')'), "{last}");
}

#[test]
fn this_machine_is_looked_at_in_ten_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let seen = doctor(folder.path(), &["--device", "cpu"], &[]);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(seen.code, 0, "{}{}", seen.out, seen.err);
    for part in
        ["program   retort ", "launcher  ranks: 1", "cores may be used", "listens and connects on", "open files: "]
    {
        assert!(seen.out.contains(part), "no {part} in {}", seen.out);
    }
    let last = seen.out.lines().last().unwrap_or_default();
    assert!(last == "ok" || last.starts_with("warn ("), "{last}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn a_recipe_is_looked_at_with_its_data_memory_and_disk() {
    let folder = with_data();
    let begin = Instant::now();
    let seen = doctor(folder.path(), &["recipe.toml", "--json", "--run", "runs/a"], &[]);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(seen.code, 0, "{}{}", seen.out, seen.err);
    let found: Vec<Value> = serde_json::from_str(&seen.out).expect("a JSON array");
    let has = |area: &str, part: &str| {
        found.iter().any(|f| f["area"] == area && f["found"].as_str().is_some_and(|t| t.contains(part)))
    };
    for (area, part) in [
        ("data", "40 training and 40 test images of 28x28x1, 10 classes, sample hash "),
        ("data", "read by "),
        ("recipe", "4 an epoch of 40 units in batches of 10"),
        ("memory", "the run takes "),
        ("disk", "can be written"),
        ("disk", "two checkpoints need "),
    ] {
        assert!(has(area, part), "no {area}: {part} in {}", seen.out);
    }
    for finding in &found {
        assert_eq!(finding["state"] == "ok", finding["remedy"].is_null(), "{finding}");
    }
    let rate = found.iter().find(|f| f["measured"]["unit"] == "img/s").expect("a rate");
    assert!(rate["measured"]["least"].as_f64().unwrap() > 0.0);
    assert!(!folder.path().join("runs").exists(), "nothing was written");
}

#[test]
fn unrelated_processes_of_srun_are_a_failure_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let slurm = [("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "8")];
    let seen = doctor(folder.path(), &[], &[&slurm[..], &[("PMI_RANK", "0"), ("PMI_SIZE", "1")]].concat());
    fails(&seen, "launcher", "srun started 8 unrelated processes", "use `srun --mpi=pmix` or mpirun");
}

#[test]
fn what_is_wrong_with_a_recipe_or_its_data_is_said() {
    let folder = with_recipe(RECIPE);
    let seen = doctor(folder.path(), &["recipe.toml"], &[]);
    fails(&seen, "data", "data.folder: there is nothing at", "$RETORT_DATA");

    let folder = with_data();
    let ranks = [("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "4")];
    let seen = doctor(folder.path(), &["recipe.toml"], &ranks);
    fails(&seen, "recipe", "global_batch 10 is not divisible by world_size 4", "use 8 or 12");
    assert!(seen.out.contains("10 classes"), "the data is looked at all the same: {}", seen.out);

    let images = folder.path().join("images/train-images-idx3-ubyte");
    let bytes = std::fs::read(&images).unwrap();
    std::fs::write(&images, &bytes[..bytes.len() - 100]).unwrap();
    fails(&doctor(folder.path(), &["recipe.toml"], &[]), "data", "train-images-idx3-ubyte", "");

    let folder = with_recipe(&RECIPE.replace("momentum", "momentun"));
    fails(&doctor(folder.path(), &["recipe.toml"], &[]), "recipe", "unknown field `momentun`", "`momentum`?");
}

#[test]
fn a_run_folder_that_cannot_be_written_or_is_full_fails() {
    let folder = with_data();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let seen = doctor(folder.path(), &["recipe.toml", "--run", "file/a"], &[]);
    fails(&seen, "disk", "cannot be written: ", "--run");
    // No room there for anybody.
    let seen = doctor(folder.path(), &["recipe.toml", "--run", "/proc/retort"], &[]);
    fails(&seen, "disk", "cannot be written: ", "--run");
    fails(&seen, "disk", "0 bytes free, two checkpoints need ", "free some space");
}

#[test]
fn libraries_interfaces_and_devices_that_were_asked_for_and_are_not_there_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let seen = doctor(
        folder.path(),
        &[],
        &[("RETORT_NCCL_LIB", "/nowhere/libnccl.so"), ("RETORT_MPI_PLUGIN", "/nowhere/mpi.so")],
    );
    assert_eq!(seen.code, 0, "one process needs neither: {}", seen.out);
    for part in [
        "warn  NCCL      NCCL was not found: /nowhere/libnccl.so: ",
        "-> install NCCL 2.27 or newer, or name its file by RETORT_NCCL_LIB",
        "warn  MPI       RETORT_MPI_PLUGIN=/nowhere/mpi.so: there is no such file",
    ] {
        assert!(seen.out.contains(part), "no {part} in {}", seen.out);
    }
    let seen = doctor(folder.path(), &[], &[("RETORT_IFNAME", "nosuch0")]);
    fails(&seen, "network", "RETORT_IFNAME=nosuch0: no such interface is up", "there are: ");
    let seen = doctor(folder.path(), &["--device", "cuda"], &[]);
    fails(&seen, "GPU", "CUDA driver", "--device cpu");
}

#[test]
fn ranks_that_should_meet_need_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let seen = doctor(folder.path(), &["--all-ranks"], &[("RANK", "0"), ("WORLD_SIZE", "2")]);
    assert_eq!((seen.code, seen.out.as_str()), (64, ""), "{}", seen.err);
    assert!(seen.err.contains("a recipe or --run DIR"), "{}", seen.err);
    assert_eq!(
        retort_in(folder.path(), &["doctor", "--all-ranks", "--device", "cpu"]).code,
        0,
        "one rank meets nobody"
    );
}

/// The stand-in GPU (simgpu/build.sh), in the folder that SIMGPU names.
#[test]
fn a_gpu_is_named_with_its_memory_and_whether_kernels_fit() {
    let Some(driver) = std::env::var_os("SIMGPU").filter(|d| Path::new(d).join("libcuda.so.1").is_file()) else {
        return println!("skipped: SIMGPU names no folder with libcuda.so.1");
    };
    let folder = with_data();
    let look = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = command(folder.path(), &[&["doctor", "recipe.toml"], args].concat());
        command.env_remove("CUDA_VISIBLE_DEVICES").env("LD_LIBRARY_PATH", &driver);
        ran(command.envs(variables.iter().copied()))
    };
    let seen = look(&["--device", "cuda"], &[]);
    for part in ["GPU 0 ", "GPU-", "multiprocessors", "the run takes ", "of GPU 0, free are"] {
        assert!(seen.out.contains(part), "no {part} in {}", seen.out);
    }
    if seen.out.contains("kernels for sm_") {
        assert_eq!(seen.code, 0, "{}", seen.out);
    } else {
        fails(&seen, "program", "no embedded kernels", "tools/fetch-nvcc.sh");
    }
    fails(&look(&["--device", "cuda:99"], &[]), "GPU", "no GPU 99: this machine has", "CUDA_VISIBLE_DEVICES");
    assert!(
        seen.out.contains("GPU 0: clocks are not known: ") && seen.out.contains(" at 0000:01:00.0, "),
        "{}",
        seen.out
    );
    let two = [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("RETORT_NCCL_LIB", "/nowhere/libnccl.so")];
    fails(&look(&["--device", "cuda"], &two), "NCCL", "NCCL was not found: /nowhere/libnccl.so", "RETORT_NCCL_LIB");
}

/// What rank 0 prints of so many processes of this host.
fn together(folder: &Path, ranks: usize, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let start = |rank: usize| {
        let shared = ["doctor", "recipe.toml", "--run", "runs/a", "--all-ranks", "--global-batch", "12"];
        let mut command = command(folder, &[&shared[..], args].concat());
        command.args(["--set", "ranks.rendezvous_s=20", "--world-size", &ranks.to_string()]);
        command.args(["--rank", &rank.to_string(), "--local-rank", &rank.to_string()]).envs(variables.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("retort starts")
    };
    let mut processes: Vec<Child> = (0..ranks).map(start).collect();
    let first = processes.remove(0).wait_with_output().unwrap();
    for other in processes {
        let done = other.wait_with_output().unwrap();
        assert_eq!((done.status.code(), done.stdout.len()), (first.status.code(), 0), "{done:?}");
    }
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: first.status.code().unwrap(), out: text(first.stdout), err: text(first.stderr) }
}

#[test]
fn what_flows_between_ranks_is_measured_and_held_to_the_link() {
    let folder = with_data();
    let begin = Instant::now();
    let seen = together(folder.path(), 3, &["--device", "cpu", "--bandwidth", "--link", "1MB/s"], &[]);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_eq!(seen.code, 0, "{}{}", seen.out, seen.err);
    for part in [
        "3 pairs of ranks (TCP from process to process, both ways, one pair at a time): median ",
        "among 3 ranks by the collectives of the run, through the hosts: ",
        " of a link of 1.0 MB/s) ",
        "on the host of rank 0, is ",
        "  NUMA ",
    ] {
        assert!(seen.out.contains(part), "no {part} in {}", seen.out);
    }
    let slow = together(folder.path(), 2, &["--device", "cpu", "--bandwidth", "--link", "900GB/s"], &[]);
    assert_eq!(slow.code, 0, "slow is no failure: {}{}", slow.out, slow.err);
    let warned = |part: &str| slow.out.lines().any(|l| l.starts_with("warn  bandwidth ") && l.contains(part));
    assert!(warned("1 below 0.7 of 900.0 GB/s: 1 pair of ranks") && warned("all-reduce of "), "{}", slow.out);
    let alone = doctor(folder.path(), &["--device", "cpu", "--all-ranks", "--bandwidth"], &[]);
    assert!(alone.out.contains("one rank exchanges data with nobody"), "{}", alone.out);
    assert_eq!(doctor(folder.path(), &["--bandwidth"], &[]).code, 64);
}

/// The stand-in's NCCL between processes.
#[test]
fn gpus_of_ranks_are_measured_by_nccl() {
    let Some(driver) = std::env::var("SIMGPU").ok().filter(|d| Path::new(d).join("libnccl.so.2").is_file()) else {
        return println!("skipped: SIMGPU names no folder with libnccl.so.2");
    };
    let folder = with_data();
    let variables = [("LD_LIBRARY_PATH", driver.as_str()), ("SIMGPU_DEVICES", "3"), ("CUDA_VISIBLE_DEVICES", "0,1,2")];
    let seen = together(folder.path(), 3, &["--device", "cuda", "--bandwidth"], &variables);
    for part in [
        "among 3 ranks by NCCL: ",
        "GB/s of a link of 460.0 GB/s)",
        "3 pairs of ranks (all-reduce of two by NCCL, neighbours of a ring, many at a time): median ",
        "stand-in GPU",
    ] {
        assert!(seen.out.contains(part), "no {part} in {}{}", seen.out, seen.err);
    }
}

#[test]
fn all_ranks_meet_and_say_what_is_equal_once() {
    if Command::new("mpirun.openmpi").arg("--version").output().is_err() {
        return println!("skipped: there is no mpirun.openmpi");
    }
    let folder = with_data();
    let ranks = |recipe: &str| {
        let mut mpirun = Command::new("mpirun.openmpi");
        mpirun.args(["-n", "2", "--oversubscribe", "--bind-to", "none", env!("CARGO_BIN_EXE_retort"), "doctor"]);
        mpirun.args([recipe, "--run", "runs/a", "--device", "cpu", "--all-ranks"]).current_dir(folder.path());
        mpirun.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
        mpirun.env_remove("LD_LIBRARY_PATH").env("CUDA_VISIBLE_DEVICES", "-1");
        ran(&mut mpirun)
    };
    let seen = ranks("recipe.toml");
    assert_eq!(seen.code, 0, "{}{}", seen.out, seen.err);
    for part in [
        "ranks: 2 on 1 host, from Open MPI",
        "rank   0  ",
        "rank   1  ",
        "ranks 0 and 1: 40 training and 40 test images",
    ] {
        assert_eq!(seen.out.matches(part).count(), 1, "{part} in {}", seen.out);
    }
    let seen = ranks("missing.toml");
    assert_eq!(seen.code, 78, "{}{}", seen.out, seen.err);
    assert!(seen.out.contains("ranks 0 and 1: missing.toml: cannot read the recipe"), "{}", seen.out);
}
