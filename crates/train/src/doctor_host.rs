//! Preflight of the program itself, of how it was launched, and of the limits that the system sets it.

use crate::device::{Device, all_cores, cores};
use crate::doctor::{Asked, Finding, State, Tell, size};
use crate::joined::speaks_mpi;
use comm::Launcher;
use std::path::Path;

/// Open files of a rank: connections, images, libraries.
const OPEN_FILES: u64 = 4096;
/// Shared memory that NCCL and MPI want between ranks of a host.
const SHARED_BYTES: u64 = 1_000_000_000;
const FETCH: &str = "run tools/fetch-nvcc.sh and build again";

pub(crate) fn program(asked: &Asked, tell: &Tell) {
    let git = option_env!("RETORT_GIT_HASH").unwrap_or("not given to the build");
    tell.tell(Finding::ok("program", format!("retort {}, git hash {git}", env!("CARGO_PKG_VERSION"))));
    tell.tell(match (cuda::archs(), asked.device) {
        (Some(archs), _) => Finding::ok("program", format!("kernels for {archs}")),
        (None, Some(Device::Cuda(_))) => Finding::fail("program", "no embedded kernels", FETCH),
        (None, Some(Device::Cpu)) => Finding::ok("program", "no embedded kernels, and the CPU needs none"),
        (None, None) => Finding::warn("program", "no embedded kernels: it computes on the CPU alone", FETCH),
    });
}

pub(crate) fn launcher(asked: &Asked, tell: &Tell) {
    let place = match &asked.place {
        Ok(place) => place,
        Err(text) => {
            let remedy = "start the ranks with mpirun, srun --mpi=pmix or torchrun";
            return tell.tell(Finding::of_error("launcher", State::Fail, text, remedy));
        }
    };
    tell.tell(Finding::ok("launcher", place.words(None)));
    if place.world_size > 1 && !asked.all_ranks {
        let what = format!("rank {} looks at itself alone; --all-ranks lets all meet and look", place.rank);
        tell.tell(Finding::ok("launcher", what));
    }
    let (own, all, local) = (cores(), all_cores(), asked.local_ranks());
    let threads = if own < all { own } else { (own / local).max(1) };
    let ranks = if local == 1 { String::new() } else { format!(", {local} ranks here") };
    let what = format!("{own} of {all} cores may be used{ranks}: threads per rank {threads}");
    let bound = place.launcher != Launcher::None && own < all / local;
    tell.tell(if bound {
        let remedy = "the launcher binds ranks to cores; Open MPI: --bind-to none, SLURM: --cpu-bind=none";
        Finding::warn("launcher", what, remedy)
    } else {
        Finding::ok("launcher", what)
    });
}

/// The soft limit of this process by its name in /proc/self/limits; `None` is no limit.
fn soft_limit(name: &str) -> Option<u64> {
    let all = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    all.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

pub(crate) fn limits(asked: &Asked, tell: &Tell) {
    let files = soft_limit("Max open files");
    let what = format!("open files: {}", files.map_or("unlimited".to_string(), |n| n.to_string()));
    tell.tell(match files {
        Some(n) if n < OPEN_FILES => {
            Finding::warn("limits", format!("{what}, expected {OPEN_FILES} or more"), "ulimit -n 65536")
        }
        _ => Finding::ok("limits", what),
    });
    let gpu = matches!(asked.chosen(), Ok(Device::Cuda(_)));
    let locked = soft_limit("Max locked memory");
    let what = format!("locked memory: {}", locked.map_or("unlimited".to_string(), size));
    tell.tell(if locked.is_some() && gpu {
        let remedy = "ulimit -l unlimited; in a container --ulimit memlock=-1";
        Finding::warn("limits", format!("{what}, expected unlimited where GPUs and InfiniBand are used"), remedy)
    } else {
        Finding::ok("limits", what)
    });
    let wanted = gpu || asked.place.as_ref().is_ok_and(|p| speaks_mpi(p.launcher));
    tell.tell(match rustix::fs::statvfs(Path::new("/dev/shm")) {
        Ok(stat) => {
            let bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
            let what = format!("/dev/shm: {}", size(bytes));
            if wanted && bytes < SHARED_BYTES {
                let remedy = "mount -o remount,size=8G /dev/shm; in a container --shm-size=8g or --ipc=host";
                Finding::warn("limits", format!("{what}, expected {} or more", size(SHARED_BYTES)), remedy)
            } else {
                Finding::ok("limits", what)
            }
        }
        Err(e) if wanted => Finding::warn("limits", format!("/dev/shm: {e}"), "mount a tmpfs there"),
        Err(e) => Finding::ok("limits", format!("/dev/shm: {e}; nothing here needs it")),
    });
}
