//! The environment of a process as data, and why it may not tell who the process is.

use std::collections::BTreeMap;

/// Most characters of a value in an error.
const SHOWN: usize = 40;

/// Environment of a process as data, so that tests can fake it.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

/// Why this process does not know who it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoverError {
    #[error("{variable} is {value:?}, expected {expected}; set it, unset it, or pick another launcher with --launcher")]
    Malformed { variable: String, value: String, expected: &'static str },
    #[error("{given} without a number of ranks; add --world-size or RETORT_WORLD_SIZE")]
    RankAlone { given: &'static str },
    #[error("{source_name} says rank {rank} of {size}, which cannot be: {reason}")]
    Impossible { source_name: &'static str, rank: usize, size: usize, reason: String },
    #[error(
        "--world-size or RETORT_WORLD_SIZE is {asked}, but the size is {found}, from {source_name}; start {asked} ranks with \
         mpirun, or leave it out"
    )]
    OtherSize { asked: usize, source_name: &'static str, found: usize },
    #[error(
        "{started} started {size} unrelated processes ({winner}); use `srun --mpi=pmix` or mpirun; if one is meant: \
         `--world-size 1`"
    )]
    Singletons { started: &'static str, size: usize, winner: String },
    #[error(
        "{source_name} says rank {rank} but not of how many ({remedy}); use mpirun, or give --rank and --world-size; if one \
         process is meant: `--world-size 1`"
    )]
    Sizeless { source_name: &'static str, rank: usize, remedy: &'static str },
    #[error(
        "SLURM says rank {rank}, but this looks like an interactive shell ({why}); if srun started the ranks: \
         `--launcher slurm`; if one process is meant: `--world-size 1`"
    )]
    Interactive { rank: usize, why: String },
    #[error(
        "--launcher {0}, but its rank and size are not both in the environment; start with it, or leave --launcher out"
    )]
    Absent(&'static str),
}

impl DiscoverError {
    /// Exit code: 64 for what somebody wrote wrongly, 78 for a set of ranks that cannot be a job.
    pub fn code(&self) -> u8 {
        match self {
            Self::Malformed { .. } | Self::RankAlone { .. } => 64,
            Self::Impossible { .. }
            | Self::OtherSize { .. }
            | Self::Singletons { .. }
            | Self::Sizeless { .. }
            | Self::Interactive { .. }
            | Self::Absent(_) => 78,
        }
    }
}

impl Environment {
    /// That of this process. What is not UTF-8 keeps its place as U+FFFD.
    pub fn of_process() -> Self {
        let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
        std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A variable's value as a number from 0, if it is set. Errors: it is empty or anything but digits.
    pub(crate) fn number(&self, name: &str) -> Result<Option<usize>, DiscoverError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        match value.parse::<u32>() {
            Ok(number) if digits => Ok(Some(number as usize)),
            _ => Err(DiscoverError::Malformed {
                variable: name.to_owned(),
                value: value.chars().take(SHOWN).collect(),
                expected: "a number from 0",
            }),
        }
    }

    pub(crate) fn any_begins_with(&self, prefix: &str) -> bool {
        self.0.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}
