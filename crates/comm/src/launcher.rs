//! The launchers that start ranks, and the variables in which each says who a process is.

use crate::environment::{DiscoverError, Environment};
use std::str::FromStr;
use std::time::Duration;

/// What started the ranks, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// `--rank --world-size`, `RETORT_RANK RETORT_WORLD_SIZE`.
    Own,
    Torchrun,
    OpenMpi,
    /// Hydra: MPICH, Intel MPI; srun with PMI-2.
    Pmi,
    Mvapich2,
    /// Cray.
    Pals,
    Pmix,
    Slurm,
    Flux,
    /// LSF.
    Jsrun,
    /// One process that nobody numbered.
    None,
}

/// `--launcher`: which launchers may win. `None` means one process, whatever the environment says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    #[default]
    Auto,
    Torchrun,
    Mpi,
    Pmi,
    Pmix,
    Slurm,
    None,
}

/// The variables of one launcher. Of several names for one thing the first that is set counts.
pub(crate) struct Row {
    pub(crate) launcher: Launcher,
    rank: &'static str,
    size: &'static [&'static str],
    local_rank: &'static [&'static str],
    local_size: &'static [&'static str],
}

/// Every launcher but our own variables, which may come from the command line too. SLURM comes after MPI: under an mpirun
/// inside sbatch its numbers are those of mpirun's daemons.
pub(crate) const TABLE: [Row; 9] = [
    Row {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        size: &["WORLD_SIZE"],
        local_rank: &["LOCAL_RANK"],
        local_size: &["LOCAL_WORLD_SIZE"],
    },
    Row {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        size: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_NODE_RANK"],
        local_size: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
    },
    Row {
        launcher: Launcher::Pmi,
        rank: "PMI_RANK",
        size: &["PMI_SIZE"],
        local_rank: &["MPI_LOCALRANKID", "PMI_LOCAL_RANK"],
        local_size: &["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"],
    },
    Row {
        launcher: Launcher::Mvapich2,
        rank: "MV2_COMM_WORLD_RANK",
        size: &["MV2_COMM_WORLD_SIZE"],
        local_rank: &["MV2_COMM_WORLD_LOCAL_RANK"],
        local_size: &["MV2_COMM_WORLD_LOCAL_SIZE"],
    },
    Row {
        launcher: Launcher::Pals,
        rank: "PALS_RANKID",
        size: &["PMI_SIZE"],
        local_rank: &["PALS_LOCAL_RANKID"],
        local_size: &["PALS_LOCAL_SIZE"],
    },
    Row { launcher: Launcher::Pmix, rank: "PMIX_RANK", size: &[], local_rank: &[], local_size: &[] },
    Row {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        size: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_rank: &["SLURM_LOCALID"],
        local_size: &[],
    },
    Row {
        launcher: Launcher::Flux,
        rank: "FLUX_TASK_RANK",
        size: &["FLUX_JOB_SIZE"],
        local_rank: &["FLUX_TASK_LOCAL_ID"],
        local_size: &[],
    },
    Row {
        launcher: Launcher::Jsrun,
        rank: "JSM_NAMESPACE_RANK",
        size: &["JSM_NAMESPACE_SIZE"],
        local_rank: &["JSM_NAMESPACE_LOCAL_RANK"],
        local_size: &["JSM_NAMESPACE_LOCAL_SIZE"],
    },
];

/// What a launcher says of this process. Without a size it is not complete and cannot win.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) launcher: Launcher,
    pub(crate) rank: usize,
    pub(crate) size: Option<usize>,
    pub(crate) local_rank: Option<usize>,
    pub(crate) local_size: Option<usize>,
}

/// How a launcher's variables are to be taken.
pub(crate) enum Standing {
    Claim(Claim),
    /// There, but this process is none of its ranks. For people: `SLURM present outside srun`.
    Aside(String),
    /// An error if it comes to this launcher.
    Refused(DiscoverError),
}

impl Launcher {
    /// From TERM to KILL, where the launcher is one that ends its ranks so. SLURM's default KillWait and torchrun's: 30 s. Open MPI's
    /// mpirun (`odls_base_sigkill_timeout`), measured: 1.0 s, and PMIx may be the same program. MPICH's waits, measured. Those not
    /// measured are taken to wait for 2 s.
    pub fn term_to_kill(self) -> Option<Duration> {
        match self {
            Self::Own | Self::None => None,
            Self::Torchrun | Self::Slurm => Some(Duration::from_secs(30)),
            Self::OpenMpi | Self::Pmix => Some(Duration::from_secs(1)),
            Self::Pmi | Self::Mvapich2 | Self::Pals | Self::Flux | Self::Jsrun => Some(Duration::from_secs(2)),
        }
    }

    /// Whether ranks get CONT before TERM: Open MPI's mpirun sends it at once when it is told to stop, and TERM as much later as KILL
    /// comes after that.
    pub fn announces_term(self) -> bool {
        self == Self::OpenMpi
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "--rank or RETORT_RANK",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI",
            Self::Pmi => "PMI",
            Self::Mvapich2 => "MVAPICH2",
            Self::Pals => "PALS",
            Self::Pmix => "PMIx",
            Self::Slurm => "SLURM",
            Self::Flux => "Flux",
            Self::Jsrun => "jsrun",
            Self::None => "no launcher",
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ALL: [Choice; 7] =
            [Choice::Auto, Choice::Torchrun, Choice::Mpi, Choice::Pmi, Choice::Pmix, Choice::Slurm, Choice::None];
        let words = || ALL.map(Choice::word).join(", ");
        ALL.into_iter().find(|choice| choice.word() == text).ok_or_else(|| format!("expected one of {}", words()))
    }
}

impl Choice {
    pub(crate) fn allows(self, launcher: Launcher) -> bool {
        match self {
            Self::Auto => true,
            Self::Torchrun => launcher == Launcher::Torchrun,
            Self::Mpi => {
                matches!(launcher, Launcher::OpenMpi | Launcher::Pmi | Launcher::Mvapich2 | Launcher::Pals)
            }
            Self::Pmi => matches!(launcher, Launcher::Pmi | Launcher::Pals),
            Self::Pmix => launcher == Launcher::Pmix,
            Self::Slurm => launcher == Launcher::Slurm,
            Self::None => false,
        }
    }

    /// As on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Torchrun => "torchrun",
            Self::Mpi => "mpi",
            Self::Pmi => "pmi",
            Self::Pmix => "pmix",
            Self::Slurm => "slurm",
            Self::None => "none",
        }
    }
}

/// What each launcher of the table says, in its order; who says nothing is left out.
pub(crate) fn standings(env: &Environment, choice: Choice, terminal: bool) -> Vec<(Launcher, Standing)> {
    let standing = |row: &Row| match row.launcher {
        Launcher::Slurm => slurm(row, env, choice, terminal),
        Launcher::Pmi | Launcher::Pmix if choice == Choice::Auto && shell_of_srun(row, env, terminal) => {
            Some(Standing::Aside(format!("{} present in an interactive shell", row.launcher.name())))
        }
        Launcher::Pmix if !pmix_complete(env) => None,
        _ => row.read(env),
    };
    TABLE.iter().filter_map(|row| Some((row.launcher, standing(row)?))).collect()
}

impl Row {
    /// None if the rank is not set, or says nothing and has no size beside it.
    fn read(&self, env: &Environment) -> Option<Standing> {
        env.get(self.rank)?;
        match self.claim(env) {
            Ok(claim) => Some(Standing::Claim(claim)),
            Err(_) if !self.size.is_empty() && self.size.iter().all(|name| env.get(name).is_none()) => None,
            Err(error) => Some(Standing::Refused(error)),
        }
    }

    fn claim(&self, env: &Environment) -> Result<Claim, DiscoverError> {
        let first = |names: &[&str]| names.iter().find_map(|name| env.number(name).transpose()).transpose();
        Ok(Claim {
            launcher: self.launcher,
            rank: env.number(self.rank)?.unwrap_or(0),
            size: first(self.size)?,
            local_rank: first(self.local_rank)?,
            local_size: first(self.local_size)?,
        })
    }
}

/// `PMIX_RANK` alone says nothing: a job has a name and a server too.
fn pmix_complete(env: &Environment) -> bool {
    env.get("PMIX_NAMESPACE").is_some_and(|name| !name.is_empty()) && env.any_begins_with("PMIX_SERVER_URI")
}

/// SLURM counts only in a step of srun, and not in a shell that srun started for people.
fn slurm(row: &Row, env: &Environment, choice: Choice, terminal: bool) -> Option<Standing> {
    if !["SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID"].iter().any(|name| env.get(name).is_some()) {
        return None;
    }
    if !in_step(env) || env.get("SLURM_PROCID").is_none() {
        return Some(Standing::Aside("SLURM present outside srun".to_owned()));
    }
    let standing = row.read(env);
    let Some(Standing::Claim(claim)) = &standing else { return standing };
    match shell(env, terminal) {
        None => standing,
        Some(_) if choice == Choice::Slurm => standing,
        Some(why) if claim.rank == 0 => Some(Standing::Aside(format!("SLURM present in an interactive shell ({why})"))),
        Some(why) => Some(Standing::Refused(DiscoverError::Interactive { rank: claim.rank, why })),
    }
}

/// Whether the process runs in a step that srun numbered. SLURM's own steps (batch script, interactive, extern) have
/// words or the highest numbers of 32 bits as ids.
fn in_step(env: &Environment) -> bool {
    env.get("SLURM_STEP_ID").and_then(|id| id.parse::<u32>().ok()).is_some_and(|id| id < 0xffff_fff0)
}

/// Why this is a shell that people type in, if it is.
fn shell(env: &Environment, terminal: bool) -> Option<String> {
    let name = env.get("SLURM_JOB_NAME").unwrap_or_default();
    if ["bash", "interactive"].contains(&name) {
        return Some(format!("job name `{name}`"));
    }
    terminal.then(|| "stdin is a terminal".to_owned())
}

/// Whether the variables of PMI or PMIx are those that `srun --pty bash` was given. Hydra, which may be used in such a
/// shell and inherits its SLURM variables, gives its ranks no terminal and says their local ranks.
fn shell_of_srun(row: &Row, env: &Environment, terminal: bool) -> bool {
    let zero = |name| env.get(name) == Some("0");
    terminal && in_step(env) && zero(row.rank) && zero("SLURM_PROCID") && env.get("MPI_LOCALRANKID").is_none()
}
