//! This process as one rank of several: introduced to the others, its collectives, and its watch.

use crate::device::{Device, cores};
use crate::error::TrainError;
use crate::exit::Exit;
use crate::recipe::Recipe;
use crate::seat;
use comm::discover::{Environment, Place};
use comm::meeting::{By, MeetingLimits, Met, meet, ports_of_job};
use comm::member::Member;
use comm::mpi::{self, Mpi};
use comm::progress::{Phase, Progress};
use comm::{Communicator, Launcher, LogTail, Shared};
use comm::{Parent, Watch, WatchSettings, Watched};
use spec::Precision;
use std::fmt::{self, Debug, Formatter};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Names of samples, known once the set is open.
type Samples = OnceLock<Box<dyn Fn(u64) -> String + Send + Sync>>;

/// What a rank brings to the meeting.
pub struct Introduction<'a> {
    pub place: Place,
    pub run_dir: &'a Path,
    /// The recipe, if the ranks meet for one, or why this rank cannot start and the code it would end with.
    pub recipe: Result<Option<&'a Recipe>, (u8, String)>,
    pub device: Option<Device>,
    pub parent: Parent,
    /// What this rank logs, for the dump after a verdict.
    pub log_tail: Option<LogTail>,
}

/// A rank that has met the others. Collectives are called by one thread at a time.
pub struct Joined {
    pub rank: usize,
    pub world_size: usize,
    pub members: Vec<Member>,
    /// What this rank computes on.
    pub device: Device,
    pub launched: bool,
    pub(crate) progress: Arc<Progress>,
    place: Place,
    comm: Mutex<Option<Shared>>,
    watch: Mutex<Option<Watch>>,
    samples: Arc<Samples>,
    /// What the meeting went by, for people.
    by: &'static str,
}

impl Debug for Joined {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.world_size)
    }
}

/// Why the ranks do not start together.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct JoinError {
    pub code: u8,
    pub text: String,
    /// Rank 0 says the same.
    pub said: bool,
}

impl JoinError {
    fn own(code: u8, text: impl ToString) -> JoinError {
        JoinError { code, text: text.to_string(), said: false }
    }
}

impl Joined {
    /// Meets the other ranks of the job and starts the watch. Errors, on every rank: somebody did not come, or does not fit.
    pub fn join(own: Introduction<'_>) -> Result<Joined, JoinError> {
        let Introduction { place, run_dir, recipe, device, parent, log_tail } = own;
        let environment = Environment::of_process();
        let known = recipe.as_ref().ok().copied().flatten();
        let precision = known.map_or(Precision::F32, |r| r.train.precision);
        let limits = known.map(|r| r.ranks.clone()).unwrap_or_default();
        let device = Device::choose(device, precision).and_then(|d| d.of_rank(place.local_rank));
        let mut member = member(&place, recipe.map(|r| r.map_or([0; 32], recipe_hash)));
        match &device {
            Ok(Device::Cuda(ordinal)) => describe_gpu(*ordinal, &mut member),
            Ok(Device::Cpu) => member.device = "cpu".to_string(),
            Err(why) => in_trouble(&mut member, PREFLIGHT, why.to_string()),
        }
        let mut rendezvous_s = limits.rendezvous_s;
        let mpi = over_mpi(&place, &environment).unwrap_or_else(|why| {
            // The others may be in MPI without this rank: it looks for them elsewhere, but not for long.
            rendezvous_s = rendezvous_s.min(OUTSIDE_MPI_S);
            in_trouble(&mut member, PREFLIGHT, why);
            None
        });
        let mpi = mpi.map(Rc::new);
        let (by, words) = meeting_place(&place, run_dir, &environment, mpi.as_ref())
            .map_err(|e| JoinError { text: unheard(&e.text, &place, rendezvous_s), ..e })?;
        // The meeting keeps its own folder private, but not the run's.
        if place.rank == 0
            && let Err(e) = std::fs::create_dir_all(run_dir)
        {
            let text = format!("cannot create the run folder {}: {e}; give another with --run", run_dir.display());
            if matches!(&by, By::File(_)) {
                return Err(JoinError::own(IO, unheard(&text, &place, rendezvous_s)));
            }
            in_trouble(&mut member, IO, text);
        }
        let meeting_limits = MeetingLimits {
            rendezvous: Duration::from_secs_f64(rendezvous_s),
            interface: environment.get("RETORT_IFNAME").map(str::to_string),
            share_gpu: shares_gpu(&environment),
            ..MeetingLimits::default()
        };
        let Met { members, links, world } = meet(member, &place.job, by, &meeting_limits).map_err(|e| JoinError {
            code: e.code(),
            text: e.to_string(),
            said: e.said(),
        })?;
        let progress = Arc::new(Progress::new());
        let samples = Arc::new(Samples::new());
        let names = samples.clone();
        let settings = WatchSettings {
            rank: place.rank,
            members: members.clone(),
            limits: limits.watch(),
            logs: run_dir.join("logs"),
            parent,
            sample_name: Some(Box::new(move |i| {
                names.get().map_or_else(|| "before the set was open".to_string(), |name| name(i))
            })),
            log_tail,
        };
        let watch = Watch::start(settings, links, progress.clone())
            .map_err(|e| JoinError::own(PREFLIGHT, format!("the watch of rank {} does not start: {e}", place.rank)))?;
        let inner: Box<dyn Communicator> = match mpi.and_then(Rc::into_inner) {
            Some(mpi) => Box::new(mpi),
            None => Box::new(world),
        };
        let comm = Shared::new(Box::new(Watched { inner, progress: progress.clone() }));
        let local = members[place.rank].local_rank.map(|l| l as usize);
        let device = match (device, place.local_rank) {
            // The launcher did not say which of the host's ranks this is; the meeting found out.
            (Ok(device), None) => device.of_rank(local).unwrap_or_else(|why| watch.failed(PREFLIGHT, &why.to_string())),
            (Ok(device), Some(_)) => device,
            (Err(why), _) => return Err(JoinError::own(PREFLIGHT, why)),
        };
        Ok(Joined {
            rank: place.rank,
            world_size: place.world_size,
            members,
            device,
            launched: matches!(parent, Parent::Launched { .. }),
            progress,
            place,
            comm: Mutex::new(Some(comm)),
            watch: Mutex::new(Some(watch)),
            samples,
            by: words,
        })
    }

    /// The ranks as a table, a line each, below how they were found.
    pub fn table(&self) -> String {
        let hosts = self.hosts();
        let mut text = format!("{}; met by {}", self.place.words(Some(hosts)), self.by);
        let width = |of: &dyn Fn(&Member) -> &str| self.members.iter().map(|m| of(m).len()).max().unwrap_or(0);
        let [hosts, devices, nics] = [width(&|m| &m.host), width(&|m| &m.device), width(&|m| &m.nic)];
        for m in &self.members {
            text += &format!("\n  rank {:>3}  {:hosts$}  pid {:>7}  {:devices$}", m.rank, m.host, m.pid, m.device);
            if !m.uuid.is_empty() {
                text += &format!("  {}", m.uuid);
            }
            if nics > 0 {
                text += &format!("  {:nics$}", m.nic);
            }
            let numa = m.numa.map_or("-".to_string(), |node| node.to_string());
            text += &format!("  NUMA {numa}  {} core{}", m.cores, if m.cores == 1 { "" } else { "s" });
            if m.gpu_apart().is_some() {
                text += ", of another NUMA node than the GPU";
            }
        }
        text
    }

    fn hosts(&self) -> usize {
        let hosts: std::collections::BTreeSet<_> = self.members.iter().map(|m| &m.host).collect();
        hosts.len()
    }

    /// Ranks on this host.
    pub(crate) fn local_size(&self) -> usize {
        let host = &self.members[self.rank].host;
        self.members.iter().filter(|m| m.host == *host).count()
    }

    pub(crate) fn launcher(&self) -> Launcher {
        self.place.launcher
    }

    pub(crate) fn comm(&self) -> Result<Shared, TrainError> {
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        comm.clone().ok_or_else(|| TrainError::Setting("the ranks of this run have parted".into()))
    }

    /// Lets reports name samples.
    pub(crate) fn name_samples(&self, name: Box<dyn Fn(u64) -> String + Send + Sync>) {
        let _ = self.samples.set(name); // the first set that was opened names them all
    }

    fn watch(&self) -> MutexGuard<'_, Option<Watch>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `hook` runs before this process leaves on a verdict: it aborts collectives of a device.
    pub(crate) fn on_abort(&self, hook: Box<dyn FnMut() + Send>) {
        if let Some(watch) = &*self.watch() {
            watch.on_abort(hook);
        }
    }

    /// `hook` is asked at every heartbeat whether the device between the ranks has failed.
    pub(crate) fn poll(&self, hook: Box<dyn FnMut() -> Option<String> + Send>) {
        if let Some(watch) = &*self.watch() {
            watch.poll(hook);
        }
    }

    /// Lines about slow ranks since the last call; on rank 0 only.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.watch().as_ref().map(Watch::warnings).unwrap_or_default()
    }

    /// This rank cannot go on: all end, this one with `code`. Rank 0 says why.
    pub fn failed(&self, code: u8, text: &str) -> ! {
        match self.watch().take() {
            Some(watch) => watch.failed(code, text),
            None => std::process::exit(i32::from(code)),
        }
    }

    /// All ranks found together that the run cannot go on: all end with `code`.
    pub fn agreed(&self, culprit: Option<usize>, code: u8, text: &str) -> ! {
        match self.watch().take() {
            Some(watch) => watch.agreed(culprit, code, text),
            None => std::process::exit(i32::from(code)),
        }
    }

    /// A collective failed because a rank is gone: ends with the verdict that names it.
    pub fn lost(&self) -> ! {
        match self.watch().take() {
            Some(watch) => watch.lost(),
            None => std::process::exit(76),
        }
    }

    /// The orderly end of all ranks. Returns once all are done, or after a limit.
    pub fn finish(&self, exit: Exit) {
        self.progress.enter(Phase::End);
        if let Some(watch) = self.watch().take() {
            watch.finish(exit.code());
        }
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner).take();
        // To end MPI takes an answer of the launcher, and Open MPI's sleeps until it kills. Others kill who is left once one rank
        // has left without ending MPI.
        if self.launcher() == Launcher::OpenMpi && matches!(exit, Exit::Interrupted | Exit::Terminated) {
            std::mem::forget(comm);
        }
    }
}

const IO: u8 = 74;
const PREFLIGHT: u8 = 78;
const USAGE: u8 = 64;

/// How long a rank that has another MPI than its launcher looks for the others, who may all be in MPI.
const OUTSIDE_MPI_S: f64 = 10.0;

/// Why this rank cannot start, for the others to hear; the first reason counts.
fn in_trouble(member: &mut Member, code: u8, text: String) {
    member.trouble.get_or_insert((code, text));
}

/// What a rank says that has no way to tell the others.
fn unheard(text: &str, place: &Place, rendezvous_s: f64) -> String {
    format!(
        "{text} (rank {} cannot tell the other ranks, who wait for it up to ranks.rendezvous_s = {rendezvous_s})",
        place.rank
    )
}

/// `RETORT_SHARE_GPU=nccl`: ranks on one GPU sum by NCCL after all, which its versions allow with variables of their own.
pub(crate) fn shares_gpu_by_nccl(environment: &Environment) -> bool {
    environment.get("RETORT_SHARE_GPU") == Some("nccl")
}

/// `RETORT_SHARE_GPU`: ranks may use one GPU together.
pub(crate) fn shares_gpu(environment: &Environment) -> bool {
    environment.get("RETORT_SHARE_GPU").is_some_and(|v| !v.is_empty() && v != "0")
}

fn member(place: &Place, recipe: Result<[u8; 32], (u8, String)>) -> Member {
    let (recipe, trouble) = match recipe {
        Ok(hash) => (hash, None),
        Err(trouble) => ([0; 32], Some(trouble)),
    };
    let mut member = Member {
        rank: place.rank as u32,
        world_size: place.world_size as u32,
        local_rank: place.local_rank.map(|l| l as u32),
        host: comm::host_name(),
        pid: std::process::id(),
        cores: cores() as u32,
        recipe,
        trouble,
        ..Member::default()
    };
    match std::fs::read("/proc/self/exe") {
        Ok(program) => member.program = *blake3::hash(&program).as_bytes(),
        Err(e) => in_trouble(
            &mut member,
            PREFLIGHT,
            format!("/proc/self/exe, which says which program this is: {e}; mount /proc where the ranks run"),
        ),
    }
    sit(&mut member, None);
    member
}

/// What must be equal on all ranks: everything of the recipe but where data lies on this host.
fn recipe_hash(recipe: &Recipe) -> [u8; 32] {
    let mut same = recipe.clone();
    same.data.folder = PathBuf::new();
    same.data.workers = 0;
    same.output.folder = None;
    same.teacher.iter_mut().for_each(|t| t.weights = PathBuf::new());
    same.train.init_weights = same.train.init_weights.map(|_| PathBuf::new());
    *blake3::hash(toml::to_string(&same).unwrap_or_default().as_bytes()).as_bytes()
}

/// Where a rank sits whose GPU is at this PCI address, or that has none.
fn sit(member: &mut Member, pci: Option<&str>) {
    let local_rank = member.local_rank.unwrap_or(0) as usize;
    let seat = seat::of_rank(Path::new("/sys"), pci, &seat::allowed_cores(), local_rank);
    (member.numa, member.core_nodes, member.nic) = (seat.numa, seat.core_nodes, seat.nic);
}

fn describe_gpu(ordinal: usize, member: &mut Member) {
    match cuda::devices() {
        Ok(devices) => {
            if let Some(gpu) = devices.get(ordinal) {
                member.device = format!("GPU {ordinal} {}", gpu.name);
                member.uuid = gpu.uuid.clone();
                sit(member, Some(&gpu.pci));
            }
        }
        Err(why) => member.trouble = Some((PREFLIGHT, why.to_string())),
    }
    match comm::Library::open() {
        Ok(library) => member.nccl = library.version(),
        Err(_) if shares_gpu(&Environment::of_process()) => {}
        Err(why) => member.trouble = member.trouble.take().or(Some((PREFLIGHT, why.to_string()))),
    }
}

/// Whether the launcher is one of MPI.
pub(crate) fn speaks_mpi(launcher: Launcher) -> bool {
    matches!(launcher, Launcher::OpenMpi | Launcher::Pmi | Launcher::Mvapich2 | Launcher::Pals | Launcher::Pmix)
}

/// MPI, where a launcher of MPI started this process and the plugin is there.
fn over_mpi(place: &Place, environment: &Environment) -> Result<Option<Mpi>, String> {
    if !speaks_mpi(place.launcher) {
        return Ok(None);
    }
    let plugins = mpi::find(&|name| environment.get(name).map(str::to_string));
    let Ok(mpi) = Mpi::open(&plugins) else { return Ok(None) };
    let found = mpi.place();
    if (found.rank as usize, found.size as usize) != (place.rank, place.world_size) {
        let (found, expected) = match found.size as usize == place.world_size {
            true => (format!("rank {}", found.rank), format!("rank {}", place.rank)),
            false => (format!("a size of {}", found.size), place.world_size.to_string()),
        };
        return Err(format!(
            "MPI says {found}, the launcher {expected}: the plugin was built for another MPI than the launcher's; build it with \
             tools/build-mpi.sh for this one, or take it away to go without MPI"
        ));
    }
    Ok(Some(mpi))
}

fn meeting_place(
    place: &Place,
    run_dir: &Path,
    environment: &Environment,
    mpi: Option<&Rc<Mpi>>,
) -> Result<(By, &'static str), JoinError> {
    if let Some(text) = &place.rendezvous {
        let port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if !port {
            return Ok((By::File(PathBuf::from(text)), "a file"));
        }
        let Some(secret) = secret(environment)? else {
            let text = format!(
                "rendezvous {text}: expected RETORT_JOB_SECRET_FILE beside it, a file of at least 16 random bytes (mode 0600) that \
                 all ranks have; without one give a file on a shared disk as rendezvous"
            );
            return Err(JoinError::own(USAGE, text));
        };
        return Ok((By::Known { address: text.clone(), secret }, "an address"));
    }
    if let Some(mpi) = mpi.cloned() {
        return Ok((By::Carried(Box::new(move |bytes| mpi.carry(bytes))), "MPI"));
    }
    if let Some((host, whose)) = place.first()
        && let Some(secret) = secret(environment)?
    {
        return Ok((By::Ports { host: host.to_string(), ports: ports_of_job(&place.job), secret }, whose));
    }
    Ok((By::File(run_dir.join(".rendezvous").join(&place.job)), "a file in the run folder"))
}

/// What `RETORT_JOB_SECRET_FILE` names, if it is set.
fn secret(environment: &Environment) -> Result<Option<comm::Secret>, JoinError> {
    let file = environment.get("RETORT_JOB_SECRET_FILE").filter(|file| !file.is_empty());
    file.map(|file| comm::Secret::from_file(Path::new(file)).map_err(|e| JoinError::own(USAGE, e))).transpose()
}
