//! Two ranks on two GPUs against two on the CPU.

use crate::steps::{Run, Views, close, on_cpu, ranks, same};
use comm::Communicator;
use std::process::Command;
use train::TrainError;
use train::executor::Executor;
use train::recipe::BnPolicy::{self, Broadcast, Sync};
use train::recipe::RanksSection;

/// A process has one driver, so the ranks are threads of this program, run again with two GPUs of the stand-in.
fn again(case: &str, set: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "gpu::plays_its_case", "--nocapture"]).env("NORMS_CASE", case).env("SIMGPU_DEVICES", "2");
    let output = command.env_remove("RETORT_SHARE_GPU").envs(set.iter().copied()).output().unwrap();
    let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    text.lines().filter(|l| l.starts_with("skipped") || l.starts_with("largest")).for_each(|l| println!("{case}: {l}"));
    assert!(output.status.success(), "{case}: {text}");
}

#[test]
fn sync_on_two_gpus_is_sync_on_the_cpu() {
    again("sync", &[]);
}

#[test]
fn broadcast_on_two_gpus_is_broadcast_on_the_cpu() {
    again("broadcast", &[]);
}

#[test]
fn sync_where_ranks_share_a_gpu_is_refused() {
    again("shared", &[("RETORT_SHARE_GPU", "1")]);
}

/// The GPU of a rank, which has met the others.
fn joined(comm: &dyn Communicator) -> Result<cuda::Executor, TrainError> {
    let mut executor = cuda::Executor::new(comm.rank(), cuda::Mode::Captured, cuda::Math::F32)?;
    Executor::join(&mut executor, comm, &RanksSection::default(), None)?;
    Ok(executor)
}

fn compare(bn: BnPolicy) {
    if let Err(e) = comm::Library::open() {
        return println!("skipped: {e}");
    }
    // A micro-batch a rank, so that a phase is one list; then two, a body each. The last step is short.
    for (views, micro) in [(Views::TwoGroups, 4), (Views::One, 2)] {
        let steps = vec![(0..8).collect(), (8..16).collect(), (16..24).collect(), (24..31).collect()];
        let run = Run { steps, ..Run::new(views, bn, 2, micro) };
        close(&same(ranks(&run, |comm| joined(comm))), &on_cpu(&run), 1e-4);
    }
}

#[test]
fn plays_its_case() {
    let Ok(case) = std::env::var("NORMS_CASE") else { return };
    match cuda::devices() {
        Ok(all) if all.len() >= 2 => {}
        Ok(_) => return println!("skipped: one GPU"),
        Err(e) => return println!("skipped: {e}"),
    }
    match case.as_str() {
        "sync" => compare(Sync),
        "broadcast" => compare(Broadcast),
        _ => {
            let run = Run::new(Views::One, Sync, 2, 4);
            for error in ranks(&run, |comm| joined(comm)).into_iter().map(|r| r.unwrap_err().to_string()) {
                assert!(error.contains("train.bn = \"sync\" on GPUs needs NCCL"), "{error}");
            }
        }
    }
}
