//! Who am I: rank and size of this process from the command line and the environment. Pure: reads what it is given only.
//!
//! The first launcher with a complete set, rank and size, wins (`launcher.rs` has the table). What was there and not used is
//! kept for the printed line. Many processes that each take themselves for the only one are an error, never many trainings:
//!
//! - The winner says 1 and another complete set says more: [`DiscoverError::Singletons`].
//! - `OMPI_UNIVERSE_SIZE` counts the slots of a host list, so `mpirun -np 1` on a machine of 8 cores may say 8. It is
//!   evidence of more ranks only where Open MPI's own rank and size are missing.
//! - No winner, but a rank other than 0, or any of PMIx, without a size: [`DiscoverError::Sizeless`].
//! - `--world-size 1` and `--launcher none` mean one process and end the discussion.

pub use crate::environment::{DiscoverError, Environment};
use crate::hostlist;
use crate::launcher::{Choice, Claim, Launcher, Standing, standings};
use crate::pmix::PmixFacts;

/// Most ranks of a job.
pub const MOST_RANKS: usize = 65_536;
/// Most characters of a job's name.
const LONGEST_JOB: usize = 128;
/// What the command line says; beats the environment.
#[derive(Clone, Debug, Default)]
pub struct Explicit {
    pub rank: Option<usize>,
    pub world_size: Option<usize>,
    pub local_rank: Option<usize>,
    pub rendezvous: Option<String>,
    pub launcher: Choice,
    /// Stdin is a terminal.
    pub terminal: bool,
}

/// This process among the ranks of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub rank: usize,
    pub world_size: usize,
    /// Place among the ranks of the host, and their number, if known; the meeting fills in the rest.
    pub local_rank: Option<usize>,
    pub local_size: Option<usize>,
    pub launcher: Launcher,
    /// Names the job: equal on all its ranks, different from other jobs as far as the launcher tells, else `none`. Letters,
    /// digits, `.`, `:`, `_` and `-` only, at most 128.
    pub job: String,
    /// Sources that were not used, for the printed line: `SLURM present`, `SLURM says 16`.
    pub unused: Vec<String>,
    /// `--rendezvous` or `RETORT_RENDEZVOUS`: host:port, or a file.
    pub rendezvous: Option<String>,
    /// `MASTER_ADDR`: where rank 0 is, as torchrun and others say it. `MASTER_PORT` beside it belongs to torchrun's own store.
    pub master: Option<String>,
    /// First host of SLURM's node list.
    pub first_host: Option<String>,
}

/// The place of this process. `pmix` asks PMIx for the size; it is called at most once, and only if it comes to PMIx.
pub fn discover(
    env: &Environment,
    explicit: &Explicit,
    pmix: &dyn Fn() -> Option<PmixFacts>,
) -> Result<Place, DiscoverError> {
    let own = Own::read(env, explicit)?;
    let mut sources = standings(env, explicit.launcher, explicit.terminal);
    let mut winner = match own.claim()? {
        Some(claim) => claim,
        None => {
            let found = first_complete(&mut sources, explicit.launcher, pmix)?;
            let claim = found.map_or_else(|| one_process(&sources, explicit.launcher), Ok)?;
            if let Some(asked) = own.size.filter(|&asked| Some(asked) != claim.size) {
                let found = claim.size.unwrap_or(1);
                return Err(DiscoverError::OtherSize { asked, source_name: claim.launcher.name(), found });
            }
            claim
        }
    };
    if winner.launcher != Launcher::Own && explicit.launcher != Choice::None {
        refuse_singletons(env, &sources, &winner)?;
    }
    if let Some(local_rank) = own.local_rank {
        winner.local_rank = Some(local_rank);
    } else if winner.local_rank.is_none() {
        (winner.local_rank, winner.local_size) = borrowed(&sources, &winner);
    }
    check(&winner)?;
    let rendezvous = rendezvous(env, explicit)?;
    Ok(Place {
        rank: winner.rank,
        world_size: winner.size.unwrap_or(1),
        local_rank: winner.local_rank,
        local_size: winner.local_size,
        launcher: winner.launcher,
        job: job(env, winner.launcher, rendezvous.as_deref()),
        unused: unused(&sources, &winner),
        rendezvous,
        master: env.get("MASTER_ADDR").filter(|address| !address.is_empty()).map(str::to_owned),
        first_host: first_host(env, &sources, &winner),
    })
}

/// `--rank --world-size --local-rank` over `RETORT_*`. The latter count only under `--launcher auto`.
struct Own {
    rank: Option<(usize, &'static str)>,
    size: Option<usize>,
    local_rank: Option<usize>,
}

impl Own {
    fn read(env: &Environment, explicit: &Explicit) -> Result<Self, DiscoverError> {
        let over = |flag: Option<usize>, name| match flag {
            None if explicit.launcher == Choice::Auto => env.number(name),
            flag => Ok(flag),
        };
        let given = if explicit.rank.is_some() { "--rank" } else { "RETORT_RANK" };
        Ok(Self {
            rank: over(explicit.rank, "RETORT_RANK")?.map(|rank| (rank, given)),
            size: over(explicit.world_size, "RETORT_WORLD_SIZE")?,
            local_rank: over(explicit.local_rank, "RETORT_LOCAL_RANK")?,
        })
    }

    /// A size alone is complete if it is 1; another has to be what the launcher says.
    fn claim(&self) -> Result<Option<Claim>, DiscoverError> {
        let claim = |rank, size| Claim {
            launcher: Launcher::Own,
            rank,
            size: Some(size),
            local_rank: self.local_rank,
            local_size: None,
        };
        match (self.rank, self.size) {
            (Some((rank, _)), Some(size)) => Ok(Some(claim(rank, size))),
            (Some((_, given)), None) => Err(DiscoverError::RankAlone { given }),
            (None, Some(size)) if size <= 1 => Ok(Some(claim(0, size))),
            (None, _) => Ok(None),
        }
    }
}

type Sources = [(Launcher, Standing)];

/// The first claim with rank and size. PMIx is asked for the size when it comes to it.
fn first_complete(
    sources: &mut Sources,
    choice: Choice,
    pmix: &dyn Fn() -> Option<PmixFacts>,
) -> Result<Option<Claim>, DiscoverError> {
    for (_, standing) in sources.iter_mut().filter(|(launcher, _)| choice.allows(*launcher)) {
        let claim = match standing {
            Standing::Claim(claim) => claim,
            Standing::Aside(_) => continue,
            Standing::Refused(error) => return Err(error.clone()),
        };
        if claim.launcher == Launcher::Pmix
            && let Some(facts) = pmix()
        {
            claim.size = Some(facts.size);
            claim.local_rank = facts.local_rank;
        }
        if claim.size.is_some() {
            return Ok(Some(claim.clone()));
        }
    }
    Ok(None)
}

/// Nobody is complete: one process, if nothing speaks against it.
fn one_process(sources: &Sources, choice: Choice) -> Result<Claim, DiscoverError> {
    let alone = Claim { launcher: Launcher::None, rank: 0, size: Some(1), local_rank: None, local_size: None };
    if choice == Choice::None {
        return Ok(alone);
    }
    for (launcher, standing) in sources.iter().filter(|(launcher, _)| choice.allows(*launcher)) {
        if let Standing::Claim(claim) = standing
            && (*launcher == Launcher::Pmix || claim.rank > 0)
        {
            let remedy = match launcher {
                Launcher::Pmix => "libpmix.so.2 does not answer",
                _ => "its size is not set",
            };
            return Err(DiscoverError::Sizeless { source_name: launcher.name(), rank: claim.rank, remedy });
        }
    }
    if choice == Choice::Auto { Ok(alone) } else { Err(DiscoverError::Absent(choice.word())) }
}

fn refuse_singletons(env: &Environment, sources: &Sources, winner: &Claim) -> Result<(), DiscoverError> {
    if winner.size != Some(1) {
        return Ok(());
    }
    let sizes = || claims(sources).filter_map(|claim| Some((claim.launcher, claim.size?)));
    let slots = || {
        let hidden = sizes().all(|(launcher, _)| launcher != Launcher::OpenMpi);
        let size = env.get("OMPI_UNIVERSE_SIZE").filter(|_| hidden)?.parse().ok()?;
        Some((Launcher::OpenMpi, size))
    };
    match sizes().find(|&(_, size)| size > 1).or_else(slots) {
        Some((launcher, size)) if size > 1 => {
            let started = if launcher == Launcher::Slurm { "srun" } else { launcher.name() };
            let winner = match winner.launcher {
                Launcher::None => "no rank is set".to_owned(),
                launcher => format!("{} says 1", launcher.name()),
            };
            Err(DiscoverError::Singletons { started, size, winner })
        }
        _ => Ok(()),
    }
}

fn claims(sources: &Sources) -> impl Iterator<Item = &Claim> {
    sources.iter().filter_map(|(_, standing)| match standing {
        Standing::Claim(claim) => Some(claim),
        Standing::Aside(_) | Standing::Refused(_) => None,
    })
}

/// Whether two sources may speak of the same ranks: a daemon of another size has its own.
fn agree(a: &Claim, b: &Claim) -> bool {
    a.rank == b.rank && (a.size == b.size || a.size.is_none() || b.size.is_none())
}

/// Local rank, and with it the local size, of another source that agrees.
fn borrowed(sources: &Sources, winner: &Claim) -> (Option<usize>, Option<usize>) {
    claims(sources)
        .find(|claim| claim.local_rank.is_some() && agree(claim, winner))
        .map_or((None, winner.local_size), |claim| (claim.local_rank, claim.local_size.or(winner.local_size)))
}

fn check(winner: &Claim) -> Result<(), DiscoverError> {
    let (rank, size) = (winner.rank, winner.size.unwrap_or(1));
    let reason = if size > MOST_RANKS {
        format!("a job has at most {MOST_RANKS} ranks")
    } else if rank >= size {
        "ranks count from 0 and are less than the size".to_owned()
    } else if winner.local_size.is_some_and(|local| local == 0 || local > size) {
        format!("{} ranks on this host", winner.local_size.unwrap_or(0))
    } else if let Some(local) = winner.local_rank.filter(|&local| local >= winner.local_size.unwrap_or(size)) {
        format!("local rank {local} of {}", winner.local_size.unwrap_or(size))
    } else {
        return Ok(());
    };
    Err(DiscoverError::Impossible { source_name: winner.launcher.name(), rank, size, reason })
}

fn unused(sources: &Sources, winner: &Claim) -> Vec<String> {
    let words = |(launcher, standing): &(Launcher, Standing)| {
        let name = launcher.name();
        match standing {
            _ if *launcher == winner.launcher => None,
            Standing::Aside(words) => Some(words.clone()),
            Standing::Refused(_) => Some(format!("{name} present")),
            // Open MPI and srun speak PMIx themselves.
            Standing::Claim(claim) if *launcher == Launcher::Pmix && agree(claim, winner) => None,
            Standing::Claim(claim) => match claim.size {
                Some(size) if Some(size) != winner.size => Some(format!("{name} says {size}")),
                Some(_) => Some(format!("{name} present")),
                None => Some(format!("{name} present without a size")),
            },
        }
    };
    sources.iter().filter_map(words).collect()
}

fn rendezvous(env: &Environment, explicit: &Explicit) -> Result<Option<String>, DiscoverError> {
    let (variable, value) = match &explicit.rendezvous {
        Some(value) => ("--rendezvous", Some(value.as_str())),
        None => ("RETORT_RENDEZVOUS", env.get("RETORT_RENDEZVOUS")),
    };
    match value {
        Some("") => {
            let expected = "host:port or a file";
            Err(DiscoverError::Malformed { variable: variable.to_owned(), value: String::new(), expected })
        }
        value => Ok(value.map(str::to_owned)),
    }
}

fn job(env: &Environment, launcher: Launcher, rendezvous: Option<&str>) -> String {
    let get = |name: &str| env.get(name).filter(|value| !value.is_empty()).map(str::to_owned);
    let first = |names: &[&str]| names.iter().find_map(|name| get(name));
    let pair = |a: &str, b: &str, mark: char| match (get(a), get(b)) {
        (Some(a), Some(b)) => Some(format!("{a}{mark}{b}")),
        (a, _) => a,
    };
    let slurm = || pair("SLURM_JOB_ID", "SLURM_STEP_ID", '.');
    let name = match launcher {
        // One rank may be inside a batch job and another not, so only what was given to all counts.
        Launcher::Own => rendezvous.map(str::to_owned),
        Launcher::Torchrun => {
            // `none` is torchrun's own default.
            get("TORCHELASTIC_RUN_ID").filter(|id| id != "none").or_else(|| pair("MASTER_ADDR", "MASTER_PORT", ':'))
        }
        Launcher::OpenMpi => first(&["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"]),
        Launcher::Pmi | Launcher::Mvapich2 | Launcher::Pals => first(&["PMI_JOBID", "PALS_APID"]).or_else(slurm),
        Launcher::Pmix => get("PMIX_NAMESPACE"),
        Launcher::Slurm => slurm(),
        Launcher::Flux => get("FLUX_JOB_ID"),
        Launcher::Jsrun => pair("LSB_JOBID", "PMIX_NAMESPACE", '.'),
        Launcher::None => None,
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".:-".contains(c) { c } else { '_' };
    name.map_or_else(|| "none".to_owned(), |name| name.chars().take(LONGEST_JOB).map(plain).collect())
}

/// A step's own list if its tasks are the ranks. The step of mpirun's daemons leaves out the host where mpirun runs.
fn first_host(env: &Environment, sources: &Sources, winner: &Claim) -> Option<String> {
    let tasks = claims(sources).any(|claim| claim.launcher == Launcher::Slurm && agree(claim, winner));
    let step = env.get("SLURM_STEP_NODELIST").filter(|_| tasks);
    let list = step.or_else(|| env.get("SLURM_JOB_NODELIST"))?;
    hostlist::expand(list).ok()?.into_iter().next()
}

impl Place {
    /// For people: `ranks: 8 on 2 hosts, from Open MPI (SLURM present, not used)`. `hosts` is None before the meeting.
    pub fn words(&self, hosts: Option<usize>) -> String {
        let hosts = hosts.map_or_else(String::new, |n| format!(" on {n} host{}", if n == 1 { "" } else { "s" }));
        let from = match self.launcher {
            Launcher::None => "one process".to_owned(),
            launcher => format!("from {}", launcher.name()),
        };
        let unused = match self.unused.as_slice() {
            [] => String::new(),
            unused => format!(" ({}, not used)", unused.join(", ")),
        };
        format!("ranks: {}{hosts}, {from}{unused}", self.world_size)
    }

    /// The host of rank 0 as far as the environment tells, and whose word that is: the first of SLURM's node list, or `MASTER_ADDR`;
    /// under torchrun the latter first.
    pub fn first(&self) -> Option<(&str, &'static str)> {
        let listed = self.first_host.as_deref().map(|host| (host, "the first host of the node list"));
        let master = self.master.as_deref().map(|host| (host, "MASTER_ADDR"));
        if self.launcher == Launcher::Torchrun { master.or(listed) } else { listed.or(master) }
    }

    /// Whether the launcher is a parent that ends its ranks, so that a rank should end with it.
    pub fn has_parent(&self) -> bool {
        !matches!(self.launcher, Launcher::Own | Launcher::None)
    }
}
